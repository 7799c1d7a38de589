"""What would decide a difference that this data leaves open: more repeats, or more test images.

The variance of a paired difference over R repeats and N test images, both random and crossed, is

    V(R, N) = s_repeats² / R + s_images² / N + s_both² / (R N)

(Westfall, Kenny & Judd, J. Exp. Psychol. Gen. 143, 2014, for participants and stimuli), the part of
the images being at least `analysis.statistics.least_variance`. The power
is that of a two-sided t test with the degrees of freedom of `analysis.statistics.Components`, by
the noncentral t. It has a ceiling in each factor: with few images no number of repeats is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.contrasts import Pairs
from analysis.statistics import Components, components, least_variance
from analysis.verdicts import SMALL, SURE
from analysis.wording import rounded_up

POWER = 0.8
ONE_REPEAT = "One repeat says nothing of the spread between seeds: it takes two at least."
MOST_REPEATS, MOST_IMAGES = 100, 100_000  # more would not help a reader
_GRID = (np.arange(200) + 0.5) / 200
COLUMNS = ["contrast", "label_ratio", "difference", "verdict", "sd_repeats", "sd_images"]
COLUMNS += ["sd_both", "target", "level", "repeats", "repeats_needed", "n", "images_needed"]


@dataclass(frozen=True)
class Deviations:
    """Standard deviations of a paired difference, in the units of the metric.

    Attributes:
        repeats: between repeats, for infinitely many images.
        images: between images of a species, for infinitely many repeats.
        both: of what is particular to one image in one repeat.
    """

    repeats: float
    images: float
    both: float

    def variance(self, repeats: float, images: float) -> float:
        """V(R, N)."""
        return self.repeats**2 / repeats + self._of_images(repeats, images)

    def _of_images(self, repeats: float, images: float) -> float:
        found = self.images**2 / images + self.both**2 / (repeats * images)
        return max(found, least_variance(images))

    def freedom(self, repeats: float, images: float, kinds: int) -> float:
        """Degrees of freedom of V(R, N), Satterthwaite."""
        crossed = self.both**2 / (repeats * images)
        of_repeats = (self.repeats**2 / repeats + crossed) ** 2 / (repeats - 1)
        of_images = self._of_images(repeats, images) ** 2 / max(images - kinds, 1)
        parts = of_repeats + of_images
        return self.variance(repeats, images) ** 2 / parts if parts > 0 else repeats - 1


def deviations(found: Components) -> Deviations:
    """The standard deviations behind a mean's variance; a negative estimate is 0."""
    repeats, images, _ = found.shape
    own = max(found.repeats - found.both, 0.0) * repeats
    common = max(found.images - found.both, 0.0) * images
    return Deviations(own**0.5, common**0.5, (found.both * repeats * images) ** 0.5)


def power_of(
    target: float,
    spread: Deviations,
    repeats: float,
    images: float,
    kinds: int,
    level: float = SURE,
) -> float:
    """The chance that a true difference is found: two-sided p below the level, in [0, 1].

    Args:
        target: the true difference, in the units of the spread.
        repeats: R, at least 2.
        images: N test images of K = ``kinds`` species.
    """
    from scipy import stats

    variance = spread.variance(repeats, images)
    if not variance > 0:
        return 1.0
    freedom = spread.freedom(repeats, images, kinds)
    bound = stats.t.ppf(1 - level / 2, freedom)
    shift = abs(target) / variance**0.5
    # The noncentral t as a mean of normals over its chi-squared scale: scipy's own is NaN at some
    # points.
    scale = np.sqrt(stats.chi2.ppf(_GRID, freedom) / freedom)
    found = stats.norm.cdf(shift - bound * scale) + stats.norm.cdf(-shift - bound * scale)
    return float(found.mean())


def smallest(enough: Callable[[int], bool], least: int, most: int) -> int | None:
    """The smallest number that is enough, by bisection; None if even the largest is not."""
    if not enough(most):
        return None
    while least < most:
        middle = (least + most) // 2
        if enough(middle):
            most = middle
        else:
            least = middle + 1
    return least


def power(compared: Pairs, differences: pd.DataFrame) -> pd.DataFrame:
    """What would decide each difference: `COLUMNS`, see docs/RECORDS.md.

    A difference over one repeat has no row, as the spread between repeats is unknown.

    Args:
        differences: what `contrasts` gave for the same pairs.
    """
    verdicts = differences.set_index(["contrast", "label_ratio"])["verdict"].to_dict()
    open_still = max(int((differences["p_holm"] >= SURE).sum()), 1)
    priors, rows = compared.priors(), []
    for (contrast, ratio), paired in compared.found.items():
        if len(paired.repeats) < 2:
            continue
        of_paired = (paired.value, paired.drawn, paired.images, compared.draws)
        found = components(*of_paired, prior=priors[contrast.probe])
        row = {"contrast": contrast.name, "label_ratio": ratio}
        row |= {"verdict": verdicts[contrast.name, ratio]}
        rows.append(row | _needed(found, float(paired.value.mean()), SURE / open_still))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    whole = ["repeats", "repeats_needed", "n", "images_needed"]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def _needed(found: Components, difference: float, level: float) -> dict[str, Any]:
    spread, (repeats, images, kinds) = deviations(found), found.shape
    target = max(abs(difference), SMALL)

    def enough(count: int, of_images: int) -> bool:
        return power_of(target, spread, count, of_images, kinds, level) >= POWER

    return {
        "difference": difference,
        "sd_repeats": spread.repeats,
        "sd_images": spread.images,
        "sd_both": spread.both,
        "target": target,
        "level": level,
        "repeats": repeats,
        "repeats_needed": smallest(lambda count: enough(count, images), 2, MOST_REPEATS),
        "n": images,
        "images_needed": smallest(lambda count: enough(repeats, count), kinds + 1, MOST_IMAGES),
    }


def what_would_decide(power: pd.DataFrame, difference: pd.Series) -> str:
    """What would decide a row of `analysis.contrasts`, as a sentence; empty if not known.

    Args:
        power: what `power` gave.
    """
    if difference["repeats"] < 2:
        return ONE_REPEAT
    same = power["contrast"] == difference["contrast"]
    found = power[same & (power["label_ratio"] == difference["label_ratio"])]
    return _sentence(found.iloc[0].to_dict()) if len(found) else ""


def _sentence(row: dict[Any, Any]) -> str:
    points = f"{100 * row['target']:.1f} points"
    if abs(row["difference"]) < SMALL:
        points = f"a difference of {points}"
    else:
        points = f"a true difference of that size ({points})"
    more = []
    kinds = (("repeats", "repeats_needed", "repeats"), ("n", "images_needed", "test images"))
    estimated = f", estimated from {row['repeats']} repeats"
    for there, needed, name in kinds:
        if not pd.isna(row[needed]):
            if row[needed] <= row[there]:
                return f"This data would find {points} about four times in five{estimated}."
            about = rounded_up(int(row[needed])).removeprefix("about ")
            more.append(f"about {about} {name} (there are {row[there]:,})")
    if not more:
        return (
            f"Neither {MOST_REPEATS:,} repeats nor {MOST_IMAGES:,} test images alone would decide "
            f"{points}; it takes more of both."
        )
    return f"To find {points} four times in five would take {' or '.join(more)}{estimated}."
