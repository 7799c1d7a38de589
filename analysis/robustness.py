"""What noise in the images costs: classifiers, and clusters of the encoders' features.

Every cell is tested on the same test images without noise and at each of the study's levels, a
share of pixels, half of which become white and half black. The noise of an image is the same for
every cell and repeat, so all is paired image by image and seed by seed, on the draws of
`analysis.statistics`: two variants at one level, one variant with and without noise, and what
noise costs the one against what it costs the other (a difference of differences).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.contrasts import Contrast, asked, sides, subtract
from analysis.latents import agreement
from analysis.load import Run
from analysis.statistics import (
    CellScores,
    Draws,
    Paired,
    above_chance,
    compare,
    difference_columns,
    estimate,
    holm,
    interval_columns,
    pair,
    prior_of,
    score_cells,
)
from analysis.variants import cell_name
from analysis.verdicts import AT_CHANCE, HIGHER, LOWER, verdict
from data.storage import InputError

METRIC = "acc"
ROBUSTNESS = ["variant", "label_ratio", "noise", "n", "repeats"]
ROBUSTNESS += interval_columns(["test_acc", "test_f1", "change"])
KINDS = ("acc", "change")
"""What is compared between two variants: accuracy in noise, and its change by noise."""
DIFFERENCES = ["contrast", "effect", "descriptive", "label_ratio", "noise", "of", "difference"]
DIFFERENCES += ["low", "high", "p", "p_holm", "verdict", "repeats", "n"]
AGREEMENT = ("nmi", "ami", "ari", "purity")
CLUSTERS = ["encoder", "noise", "k", *interval_columns(AGREEMENT)]

Scores = Mapping[str, CellScores]


@dataclass(frozen=True)
class InNoise:
    """Every cell's scores by the share of noisy pixels; empty if nothing was tested in noise.

    Attributes:
        levels: share of noisy pixels to scores by cell, 0 first.
        draws: shared by all.
    """

    levels: dict[float, Scores]
    draws: Draws

    @property
    def noisy(self) -> list[float]:
        """The levels above 0."""
        return list(self.levels)[1:]


def score_in_noise(run: Run, scored: tuple[Scores, Draws]) -> InNoise:
    """Score every cell at every level.

    Args:
        scored: what `score_cells` gave for the test images without noise.

    Raises:
        InputError: the test images in noise are not those without noise.
    """
    found, (clean, draws) = run.robustness, scored
    levels: dict[float, Scores] = {0.0: clean} if len(found) else {}
    for noise, part in found.groupby("noise", sort=True):
        if set(part["file"]) != set(run.predictions["file"]):
            raise InputError(
                f"{run.location}: robustness.parquet has other test images at noise {noise:g} than "
                f"predictions.parquet, expected the same"
            )
        scores, _ = score_cells(part, run.species, draws.count, source="robustness.parquet")
        levels[float(noise)] = scores  # type: ignore[arg-type]
    return InNoise(levels, draws)


def robustness_table(run: Run, tested: InNoise) -> pd.DataFrame:
    """`ROBUSTNESS`, see docs/RECORDS.md: one row per cell and level, including 0."""
    rows = [
        {"variant": variant, "label_ratio": ratio, "noise": noise} | _row(tested, noise, cell)
        for noise, scores in tested.levels.items()
        for cell, variant, ratio in run.cells
        if cell in scores
    ]
    frame = pd.DataFrame(rows, columns=ROBUSTNESS)
    return frame.sort_values(["label_ratio", "variant", "noise"], ignore_index=True)


def _row(tested: InNoise, noise: float, cell: str) -> dict[str, Any]:
    scores = tested.levels[noise][cell]
    row: dict[str, Any] = {"n": scores.images, "repeats": len(scores.repeats)}
    for name in ("acc", "f1"):
        row |= estimate(scores, name, tested.draws).columns(f"test_{name}")
    changed = _change(tested, noise, cell)
    if noise and changed is not None:
        row |= compare(changed, tested.draws)[0].clipped(-1.0, 1.0).columns("change")
    return row


def _change(tested: InNoise, noise: float, cell: str) -> Paired | None:
    """A cell's accuracy in noise minus that without noise."""
    return _pair(tested.levels[noise].get(cell), tested.levels[0.0].get(cell))


def _pair(one: CellScores | None, other: CellScores | None) -> Paired | None:
    if one is None or other is None or not set(one.repeats) & set(other.repeats):
        return None
    return pair(one, other, METRIC)


def differences_in_noise(run: Run, tested: InNoise) -> pd.DataFrame:
    """The differences between variants in noise: `DIFFERENCES`, see docs/RECORDS.md.

    Holm's adjustment is over all rows of a kind: of accuracies, or of changes.
    """
    rows = list(_differences(run, tested)) if tested.levels else []
    frame = pd.DataFrame(rows, columns=DIFFERENCES)
    for kind in KINDS:
        of_kind = frame["of"] == kind
        frame.loc[of_kind, "p_holm"] = holm(frame.loc[of_kind, "p"].tolist())
    learned = {
        (noise, cell)
        for noise, scores in tested.levels.items()
        for cell, each in scores.items()
        if above_chance(each, tested.draws)
    }
    frame["verdict"] = [_verdict(row, learned) for row in frame.to_dict("records")]
    return frame.astype({"descriptive": bool, "p_holm": float})[DIFFERENCES]


def _verdict(row: Mapping[Any, Any], learned: Set[tuple[float, str]]) -> str:
    """As in `analysis.verdicts`, except that a classifier at chance in noise had no more to lose:
    that it loses less than another, or as much, says nothing.
    """
    one, other = (
        (row["noise"], cell_name(each, row["label_ratio"])) in learned
        for each in sides(row["contrast"])
    )
    found = verdict(row, one or other)
    if row["of"] == "acc":
        return found
    able = {HIGHER: one, LOWER: other}.get(found, one or other)
    return found if able else AT_CHANCE


def _differences(run: Run, tested: InNoise) -> Iterator[dict[str, object]]:
    found = list(_pairs(run, tested))
    for_kind = {
        kind: prior_of(paired.value for key, paired in found if key["of"] == kind) for kind in KINDS
    }
    most = dict(zip(KINDS, (1.0, 2.0), strict=True))
    for key, paired in found:
        kind = str(key["of"])
        yield key | difference_columns(paired, tested.draws, for_kind[kind], most[kind])


def _pairs(run: Run, tested: InNoise) -> Iterator[tuple[dict[str, object], Paired]]:
    """What is compared in noise, with the columns that name it."""
    cells = tested.levels[0.0]
    for contrast in (each for each in asked(cells, run.other_networks) if not each.probe):
        for ratio in run.label_ratios:
            for noise in tested.noisy:
                pairs = _compared(tested, contrast, ratio, noise)
                for kind, paired in zip(KINDS, pairs, strict=True):
                    if paired is not None:
                        key = {"label_ratio": ratio, "noise": noise, "of": kind}
                        yield contrast.columns | key, paired


def _compared(
    tested: InNoise, contrast: Contrast, ratio: int, noise: float
) -> tuple[Paired | None, Paired | None]:
    """The difference in accuracy at a level of noise, and the difference in what noise costs."""
    names = [cell_name(each, ratio) for each in (contrast.one, contrast.other)]
    noisy, clean = (
        _pair(*(tested.levels[level].get(name) for name in names)) for level in (noise, 0.0)
    )
    return noisy, None if noisy is None or clean is None else subtract(noisy, clean)


def clusters_table(run: Run, clean: pd.DataFrame) -> pd.DataFrame:
    """How well clusters match species in noise: `CLUSTERS`, see docs/RECORDS.md.

    Args:
        clean: as ``clusters.csv``, which has the rows without noise.
    """
    rows: list[dict[Any, Any]] = []
    for encoder in run.encoders:
        found = run.clusters_in_noise(encoder)
        if len(found):
            own = clean[(clean["encoder"] == encoder) & (clean["space"] == "latent")]
            rows += own.assign(noise=0.0).to_dict("records")
            rows += [_matched(run, encoder, noise, part) for noise, part in found.groupby("noise")]
    return pd.DataFrame(rows, columns=CLUSTERS)


def _matched(run: Run, encoder: str, noise: Any, part: pd.DataFrame) -> dict[str, Any]:
    files = run.feature_files
    cluster = part.drop_duplicates("file").set_index("file")["cluster"].reindex(files["file"])
    if len(part) != len(files) or cluster.isna().any():
        raise InputError(
            f"{run.location}/features/{encoder}.noise.parquet: has other images at noise "
            f"{noise:g} than files.parquet, expected the same"
        )
    codes, species = pd.factorize(files["species"], sort=True)
    found = agreement(codes, cluster.to_numpy(dtype=np.int64), None)
    return {"encoder": encoder, "noise": float(noise), "k": len(species), **found}
