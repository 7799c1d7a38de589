"""How often 95 % intervals hold the truth, and how often 5 % tests find what is not there.

    python benchmarks/coverage.py    # 5 minutes on 2 idle cores

Made-up studies of known truth: R repeats, N test images of 20 species, right with a probability
that depends on the species, the image, the seed, and the image in that seed (a logit-normal model
with crossed effects). Of each study the interval of one cell's accuracy, and of the difference of
two cells that share images and seeds, as `analysis.statistics` makes them, beside the plain crossed
bootstrap (repeats and images drawn with replacement, percentiles), and the share of p < 0.05 where
there is no difference. Binomial standard error at 95 % of 250 studies: 1.4 points.

And of families as a study has them (one variant less three others at five ratios, after Holm): how
many studies without any difference find one, and what share of differences of half a logit is
found, with the repeats' variance of each row alone and with `Prior`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from record import write_result

from analysis.statistics import (
    NO_PRIOR,
    CellScores,
    Draws,
    Paired,
    compare,
    estimate,
    holm,
    pair,
    prior_of,
)

KINDS, PER_KIND, DRAWS = 20, 25, 500
SPECIES = np.repeat(np.arange(KINDS), PER_KIND)
EASE = np.linspace(-1, 1, KINDS)  # logit of each species
EFFECT = 0.2  # logit between the two cells of a difference
FAMILY_DRAWS, FAMILY_EFFECT = 2000, 0.5
MOST_FEW = 5  # repeats, for which families are made


@dataclass(frozen=True)
class Sizes:
    """Standard deviations of the logit: between images, between seeds, of an image in a seed."""

    name: str
    images: float
    repeats: float
    both: float

    @property
    def total(self) -> float:
        return float(np.sqrt(self.images**2 + self.repeats**2 + self.both**2))


REGIMES = (
    Sizes("images vary most", 2.0, 0.02, 0.3),
    Sizes("mixed", 1.5, 0.1, 1.0),
    Sizes("seeds vary", 1.0, 0.3, 0.5),
    Sizes("seeds vary most", 0.5, 0.6, 0.5),
    Sizes("noise of each image in each seed", 0.2, 0.0, 2.0),
)


FAMILIES = {each.name: [each] * 5 for each in REGIMES} | {
    "mixed, seeds twice that": [Sizes("", 1.5, 0.2, 1.0)] * 5,
    "seeds vary more where labels are few": [
        Sizes("", 1.2, seeds, 0.8) for seeds in (0.3, 0.2, 0.15, 0.1, 0.1)
    ],
    "seeds vary tenfold": [Sizes("", 1.0, seeds, 0.5) for seeds in (0.5, 0.3, 0.2, 0.1, 0.05)],
}
"""Sizes at each of five ratios."""


def truth(sizes: Sizes, shift: float = 0.0) -> float:
    """The expected accuracy, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    logits = EASE[:, None] + shift + sizes.total * nodes
    return float((weights / (1 + np.exp(-logits))).sum(axis=1).mean() / weights.sum())


def cells(
    sizes: Sizes,
    repeats: int,
    shifts: tuple[float, ...],
    draws: Draws,
    random: np.random.Generator,
    images: np.ndarray | None = None,
) -> list[CellScores]:
    """Cells of one study: their images' difficulty is shared, seeds and noise are their own.

    Args:
        images: standard normal, of each image, (N,): where other cells share them too.
    """
    if images is None:
        images = random.normal(size=len(SPECIES))
    difficulty = EASE[SPECIES] + sizes.images * images
    found = []
    for shift in shifts:
        logit = difficulty + shift + sizes.repeats * random.normal(size=(repeats, 1))
        logit = logit + sizes.both * random.normal(size=(repeats, len(SPECIES)))
        hit = (random.random(logit.shape) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        drawn = (hit @ draws.images / len(SPECIES)).astype(np.float64)
        value = {"acc": hit.mean(axis=1, dtype=np.float64)}
        found.append(CellScores(tuple(range(repeats)), len(SPECIES), value, {"acc": drawn}))
    return found


def plain(drawn: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """Percentiles of the crossed bootstrap: repeats drawn with replacement as well."""
    count = len(drawn)
    weights = random.multinomial(count, np.full(count, 1 / count), size=drawn.shape[1]).T
    low, high = np.quantile((weights * drawn).sum(axis=0) / count, [0.025, 0.975])
    return float(low), float(high)


def study(
    sizes: Sizes, repeats: int, draws: Draws, random: np.random.Generator
) -> Iterator[tuple[str, float]]:
    """What one study gives: name and 0 or 1, or a width."""
    one, other, same = cells(sizes, repeats, (EFFECT, 0.0, 0.0), draws, random)
    accuracy, effect = truth(sizes), truth(sizes, EFFECT) - truth(sizes)
    found, paired = estimate(other, "acc", draws), pair(one, other, "acc")
    difference, _ = compare(paired, draws)
    intervals = {
        "cell": ((found.low, found.high), plain(other.drawn["acc"], random), accuracy),
        "difference": ((difference.low, difference.high), plain(paired.drawn, random), effect),
    }
    for name, (ours, bootstrap, true) in intervals.items():
        for kind, (low, high) in (("ours", ours), ("plain", bootstrap)):
            yield f"{name} {kind} holds", float(low <= true <= high)
            yield f"{name} {kind} width", high - low
    yield (
        "p under 0.05 without a difference",
        float(compare(pair(other, same, "acc"), draws)[1] < 0.05),
    )


def regime(repeats: int, sizes: Sizes, studies: int) -> dict[str, object]:
    """One row: means over the studies."""
    draws, random = Draws(SPECIES, DRAWS), np.random.default_rng([repeats, REGIMES.index(sizes)])
    many = [dict(study(sizes, repeats, draws, random)) for _ in range(studies)]
    means = {name: round(float(np.mean([one[name] for one in many])), 4) for name in many[0]}
    return {"repeats": repeats, "regime": sizes.name} | means


def family(
    ratios: list[Sizes], repeats: int, effect: float, draws: Draws, random: np.random.Generator
) -> list[Paired]:
    """One variant less three others at each ratio, better than all of them by an effect."""
    images, shifts = random.normal(size=len(SPECIES)), (effect, 0.0, 0.0, 0.0)
    found = []
    for sizes in ratios:
        one, *others = cells(sizes, repeats, shifts, draws, random, images)
        found += [pair(one, other, "acc") for other in others]
    return found


def families(repeats: int, name: str, studies: int) -> dict[str, object]:
    """One row: false alarms after Holm, and the share of true differences that is found."""
    draws = Draws(SPECIES, FAMILY_DRAWS)
    random = np.random.default_rng([repeats, list(FAMILIES).index(name), 1])
    counts = dict.fromkeys(["any alone", "any", "found alone", "found"], 0.0)
    for _ in range(studies):
        for what, effect in (("any", 0.0), ("found", FAMILY_EFFECT)):
            rows = family(FAMILIES[name], repeats, effect, draws, random)
            for end, prior in ((" alone", NO_PRIOR), ("", prior_of(row.value for row in rows))):
                sure = holm([compare(row, draws, prior)[1] for row in rows]) < 0.05
                counts[what + end] += float(sure.mean() if effect else sure.any()) / studies
    return {"repeats": repeats, "regime": name} | {key: round(n, 4) for key, n in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=250)
    parser.add_argument("--repeats", type=int, nargs="+", default=[2, 3, 5, 10])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    work = [(repeats, sizes) for repeats in options.repeats for sizes in REGIMES]
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = [pool.submit(regime, *each, options.studies) for each in work]
        after = [
            pool.submit(families, repeats, name, options.studies)
            for repeats in options.repeats
            if repeats <= MOST_FEW
            for name in FAMILIES
        ]
        rows = [job.result() for job in jobs]
        of_families = [job.result() for job in after]
    figures = {"studies": options.studies, "n": len(SPECIES), "draws": DRAWS, "rows": rows}
    figures |= {"family draws": FAMILY_DRAWS, "families": of_families}
    print(write_result("coverage", sys.argv[1:], figures))


if __name__ == "__main__":
    main()
