"""How often 95 % intervals hold the truth, and how often 5 % tests find what is not there.

    python benchmarks/coverage.py    # 2 minutes on 2 idle cores

Made-up studies of known truth: R repeats, N test images of 20 species, right with a probability
that depends on the species, the image, the seed, and the image in that seed (a logit-normal model
with crossed effects). Of each study the interval of one cell's accuracy, and of the difference of
two cells that share images and seeds, as `analysis.statistics` makes them, beside the plain crossed
bootstrap (repeats and images drawn with replacement, percentiles), and the share of p < 0.05 where
there is no difference. Binomial standard error at 95 % of 250 studies: 1.4 points.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from record import write_result

from analysis.statistics import CellScores, Draws, compare, estimate, pair

KINDS, PER_KIND, DRAWS = 20, 25, 500
SPECIES = np.repeat(np.arange(KINDS), PER_KIND)
EASE = np.linspace(-1, 1, KINDS)  # logit of each species
EFFECT = 0.2  # logit between the two cells of a difference


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


def truth(sizes: Sizes, shift: float = 0.0) -> float:
    """The expected accuracy, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    logits = EASE[:, None] + shift + sizes.total * nodes
    return float((weights / (1 + np.exp(-logits))).sum(axis=1).mean() / weights.sum())


def cells(
    sizes: Sizes, repeats: int, shifts: tuple[float, ...], draws: Draws, random: np.random.Generator
) -> list[CellScores]:
    """Cells of one study: their images' difficulty is shared, seeds and noise are their own."""
    difficulty = EASE[SPECIES] + sizes.images * random.normal(size=len(SPECIES))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=250)
    parser.add_argument("--repeats", type=int, nargs="+", default=[2, 3, 5, 10])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    work = [(repeats, sizes) for repeats in options.repeats for sizes in REGIMES]
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = [pool.submit(regime, *each, options.studies) for each in work]
        rows = [job.result() for job in jobs]
    figures = {"studies": options.studies, "n": len(SPECIES), "draws": DRAWS, "rows": rows}
    print(write_result("coverage", sys.argv[1:], figures))


if __name__ == "__main__":
    main()
