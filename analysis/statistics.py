"""Test metrics and their uncertainty: a crossed bootstrap over repeats and test images.

Each draw takes as many test images of each species, with replacement, and normal weights for the
repeats (an exchangeably weighted bootstrap: Præstgaard & Wellner, Ann. Probab. 21, 1993), the same
for all cells, so that a difference between two cells is paired image by image and seed by seed.

Resampling both factors (A. Owen, "The pigeonhole bootstrap", Ann. Appl. Stat. 1, 2007) is wrong
twice where repeats are few: it counts what is particular to one image in one repeat three times,
and knows the spread of five seeds as if they were many. So the draws give an interval its shape,
and its width comes from the variance of two crossed factors, repeats + images − both (Cameron,
Gelbach & Miller, J. Bus. Econ. Stat. 29, 2011), with Student's t for its degrees of freedom.
In ``benchmarks/coverage.py``, over what may vary most (images, seeds, both), these intervals hold
the truth 90 to 99 % of the time with three to ten repeats, 95.6 % on average, where the plain
bootstrap's hold it 82 to 100 %; with two repeats 89 to 98 % against 67 to 99 %.

The variance of two or three repeats is known so badly that the smallest of many p-values would be
that of the row whose repeats agree by luck. So rows that are adjusted together lend each other
their repeats' variance (`Prior`): with it Holm's adjustment keeps its level with two repeats too,
unless seeds vary tenfold between rows.

Where all images of a species are named right, or wrong, they do not vary, which is no proof that
others would not: the images' part of a variance is never less than what gives the score interval
of none in N, and has a normal's shape where it would be. In a macro score a species of a few
images weighs as much as any other: its variance is moderated too (`Draws.moderated`). With one
repeat nothing is known of the spread between seeds: intervals are over images alone, without
p-value.

Shapes: R repeats, N test images, K species, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from data.storage import InputError

METRICS = ("loss", "acc", "f1", "precision", "recall")
MACRO = ("f1", "precision", "recall")
DRAWS = 2000
_Z = 1.959964  # the normal distribution's 97.5 %


def metrics(
    true: np.ndarray,
    pred: np.ndarray,
    loss: np.ndarray,
    classes: int,
    weights: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Loss, accuracy, and macro F1, precision and recall as scikit-learn with zero_division=0.

    A species without images and predictions is left out of the macro means.

    Args:
        true: species of each image, (N,) in [0, K).
        pred: predicted species by each repeat, (R, N) in [0, K).
        loss: cross entropy of each image in nats, (R, N).
        classes: K.
        weights: how often each draw holds each image, (N, B); without it, once each.

    Returns:
        For each of `METRICS`, (R, B).
    """
    if weights is None:
        weights = np.ones((len(true), 1))
    total = weights.sum(axis=0)
    hit = pred == true
    of_class = np.arange(classes)[:, None]
    support = (true == of_class).astype(weights.dtype) @ weights  # (K, B)
    result = {name: np.empty((len(pred), weights.shape[1])) for name in METRICS}
    result["loss"][:] = loss.astype(weights.dtype) @ weights / total
    for r in range(len(pred)):
        named = (pred[r] == of_class).astype(weights.dtype)  # (K, N)
        predicted = named @ weights  # (K, B)
        found = (named * hit[r]) @ weights
        result["acc"][r] = found.sum(axis=0) / total
        occurs = (predicted + support > 0).sum(axis=0)
        result["precision"][r] = _ratio(found, predicted).sum(axis=0) / occurs
        result["recall"][r] = _ratio(found, support).sum(axis=0) / occurs
        result["f1"][r] = _ratio(2 * found, predicted + support).sum(axis=0) / occurs
    return result


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


class Draws:
    """The draws that all cells share.

    Args:
        true: species of each test image, (N,).
        draws: B.
        seed: of the draws; the same seed gives the same intervals to the digit.

    Attributes:
        images: how often each draw holds each image, (N, B); each species keeps its number, if
            that is above 1.
        freedom: N − K, degrees of freedom of the variance between images; at least 1. Species
            with a single image count as one of the K.
        inflation: N / (N − K): n images drawn from n vary too little by (n − 1) / n.
        least: `least_variance` of each of `METRICS`; 0 for the loss, which is of no bound.
        chance: 1 / K, the macro recall of whoever names species without looking.
    """

    def __init__(self, true: np.ndarray, draws: int = DRAWS, seed: int = 0):
        self.count, self._seed = draws, seed
        random = np.random.default_rng([seed, 0])
        self.images = np.zeros((len(true), draws), dtype=np.float32)
        _, species, count = np.unique(true, return_inverse=True, return_counts=True)
        # The species that have one image each are drawn together, or none of them would vary.
        together = np.where(count[species] > 1, species, -1)
        kinds, self._stratum, self._sizes = np.unique(
            together, return_inverse=True, return_counts=True
        )
        of_kinds = np.where(kinds < 0, self._sizes, 1)  # species in each
        self._shares = of_kinds / max(len(count), 1)
        for kind in range(len(kinds)):
            members = np.flatnonzero(self._stratum == kind)
            self.images[members] = _multinomial(random, len(members), draws)
        self.freedom = max(len(true) - len(kinds), 1)
        self.inflation = len(true) / self.freedom if len(true) > len(kinds) else 1.0
        self.chance = 1 / max(len(count), 1)
        # As many images, evenly spread, would be as sure of a mean over species.
        even = len(count) ** 2 / (1 / count).sum() if len(count) else 0.0
        self.least = dict.fromkeys(METRICS, least_variance(even))
        self.least |= {"acc": least_variance(len(true)), "loss": 0.0}

    def repeats(self, repeats: Sequence[int]) -> np.ndarray:
        """Centred normal weights of each repeat in each draw, (R, B), the same for the same
        repeats: the variance of ``value @ weights`` is that of the mean of R values.
        """
        count = len(repeats)
        if count < 2:
            return np.zeros((count, self.count))
        random = np.random.default_rng([self._seed, 1, *repeats])
        weights = random.normal(size=(count, self.count))
        return (weights - weights.mean(axis=0)) / np.sqrt(count * (count - 1))

    def moderated(self, right: np.ndarray) -> tuple[float, float]:
        """How much more a mean over species varies by its images than their draws do, which know
        the variance of a rare species from two or three images, or see none; and the degrees of
        freedom of that variance (Satterthwaite).

        Each species' variance counts as if two more images of it had the variance that is common
        to all (a fixed prior, as `Prior`; where species are even, nothing changes).

        Args:
            right: of each image, whether it was named right, or a mean or difference of that, (N,).
        """
        sizes, shares = self._sizes, self._shares
        mean = np.bincount(self._stratum, right) / sizes
        squares = np.bincount(self._stratum, (right - mean[self._stratum]) ** 2)
        if squares.sum() <= 1e-12:
            return 1.0, self.freedom
        known = sizes - 1 + COMMON_IMAGES
        variance = (squares + COMMON_IMAGES * squares.sum() / self.freedom) / known
        parts = variance / sizes * shares**2
        as_drawn = float((squares / sizes**2 * shares**2).sum()) * self.inflation
        more = parts.sum() / as_drawn if as_drawn > 0 else 1.0
        return max(float(more), 1.0), float(parts.sum() ** 2 / (parts**2 / known).sum())

    def unmoved(self) -> np.ndarray:
        """Normal draws, (B,), for a score that is the same in every draw."""
        from scipy import stats

        evenly = stats.norm.ppf((np.arange(self.count) + 0.5) / self.count)
        return np.random.default_rng([self._seed, 2]).permutation(evenly)


COMMON_IMAGES = 2
"""As many images of each species are taken from all species together (`Draws.moderated`)."""


def least_variance(images: float) -> float:
    """Variance of a share of which none, or all, of N images are: the 95 % interval has the width
    of the score interval then, z² / (N + z²) (Wilson, JASA 22, 1927; for the difference of paired
    shares Tango, Stat. Med. 17, 1998).
    """
    return (_Z / (images + _Z**2)) ** 2


def _multinomial(random: np.random.Generator, n: int, draws: int) -> np.ndarray:
    return random.multinomial(n, np.full(n, 1 / n), size=draws).T.astype(np.float32)


@dataclass(frozen=True)
class CellScores:
    """What one cell scored on the test set.

    Attributes:
        repeats: of the final evaluation, (R,).
        images: N.
        value: for each of `METRICS`, each repeat's score, (R,).
        drawn: the same on each draw of the images, (R, B).
        copies: repeats that gave, to the digit, what an earlier one did, and that one: probes of
            the same features with the same labels. They say nothing of the spread of repeats.
        right: 1 where a repeat names an image right, else 0, (R, N); if None, the images' part of a
            macro score is as its draws have it (see `Draws.moderated`).
    """

    repeats: tuple[int, ...]
    images: int
    value: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]
    copies: Mapping[int, int] = field(default_factory=dict)
    right: np.ndarray | None = None

    @property
    def distinct(self) -> tuple[int, ...]:
        """The repeats without copies."""
        return tuple(repeat for repeat in self.repeats if repeat not in self.copies)

    def on(self, repeats: Sequence[int]) -> CellScores:
        """The same scores on these repeats alone, counted as ``repeats`` that are no copies."""
        rows = [self.repeats.index(repeat) for repeat in repeats]
        value, drawn = (
            {metric: of_repeats[rows] for metric, of_repeats in kind.items()}
            for kind in (self.value, self.drawn)
        )
        right = None if self.right is None else self.right[rows]
        return CellScores(tuple(repeats), self.images, value, drawn, right=right)


def interval_columns(names: Iterable[str]) -> list[str]:
    """The columns of values with intervals: ``NAME NAME_low NAME_high`` for each name."""
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def clipped(self, least: float, most: float) -> Estimate:
        """With the interval cut to the range of its metric."""
        return Estimate(self.value, max(self.low, least), min(self.high, most))

    def columns(self, name: str) -> dict[str, float]:
        """As the `interval_columns` of that name."""
        return dict(zip(interval_columns([name]), (self.value, self.low, self.high), strict=True))


def score_cells(
    predictions: pd.DataFrame,
    species: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
    source: str = "predictions.parquet",
) -> tuple[dict[str, CellScores], Draws]:
    """Score every cell of ``predictions.parquet`` on the same draws.

    Args:
        source: the file that errors name.

    Raises:
        InputError: a repeat lacks test images, or a species is not of the study.
    """
    files, image = np.unique(predictions["file"].to_numpy(dtype=str), return_inverse=True)
    codes = _codes(predictions, species, source)
    true = np.zeros(len(files), dtype=np.int64)
    true[image] = codes["true"]
    shared = Draws(true, draws, seed)
    scores = {}
    for cell, found in predictions.groupby("cell", sort=True).indices.items():
        rows = np.asarray(found)
        repeat = predictions["repeat"].to_numpy()[rows]
        repeats, which = np.unique(repeat, return_inverse=True)
        pred, loss = _tables(len(repeats), len(files), which, image[rows], codes, rows)
        _check_whole(f"{source}: {cell}", repeats, pred, len(rows))
        exact = metrics(true, pred, loss, len(species))
        drawn = metrics(true, pred, loss, len(species), shared.images)
        value = {name: exact[name][:, 0] for name in METRICS}
        names = tuple(map(int, repeats))
        copies, right = _copies(names, pred, loss), (pred == true).astype(np.float32)
        scores[str(cell)] = CellScores(names, len(files), value, drawn, copies, right)
    return scores, shared


def _copies(repeats: Sequence[int], pred: np.ndarray, loss: np.ndarray) -> dict[int, int]:
    """Repeats with the predictions and losses of an earlier one, and that one."""
    first: dict[bytes, int] = {}
    found = {}
    for repeat, *gave in zip(repeats, pred, loss, strict=True):
        same = first.setdefault(b"".join(each.tobytes() for each in gave), repeat)
        if same != repeat:
            found[repeat] = same
    return found


def _codes(predictions: pd.DataFrame, species: Sequence[str], source: str) -> dict[str, np.ndarray]:
    index = pd.Index(list(species))
    codes = {name: index.get_indexer(pd.Index(predictions[name])) for name in ("true", "pred")}
    for name, code in codes.items():
        if (code < 0).any():
            unknown = predictions[name].iloc[int(np.argmin(code))]
            raise InputError(f"{source}: {name} {unknown!r} is no species of the study")
    return {**codes, "loss": predictions["loss"].to_numpy(dtype=np.float64)}


def _tables(
    repeats: int,
    images: int,
    which: np.ndarray,
    image: np.ndarray,
    codes: dict[str, np.ndarray],
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    pred = np.full((repeats, images), -1)
    loss = np.zeros((repeats, images))
    pred[which, image] = codes["pred"][rows]
    loss[which, image] = codes["loss"][rows]
    return pred, loss


def _check_whole(cell: str, repeats: np.ndarray, pred: np.ndarray, rows: int) -> None:
    found = (pred >= 0).sum(axis=1)
    worst = int(found.argmin())
    if found[worst] < pred.shape[1] or rows != pred.size:
        raise InputError(
            f"{cell} repeat {repeats[worst]} has {found[worst]} images in "
            f"{rows} rows of the cell, expected each of {pred.shape[1]} once a repeat"
        )


@dataclass(frozen=True)
class Prior:
    """What rows that are adjusted together say of the variance between repeats of any of them.

    Each row's variance is taken to be drawn from a scaled inverse chi-squared distribution, the
    same for all, whose parameters come from the variances that are seen: empirical Bayes after
    G. Smyth (Stat. Appl. Genet. Mol. Biol. 3, 2004, article 3, sections 3 and 6.2).

    Attributes:
        variance: s0², of one repeat.
        freedom: d0, how many degrees of freedom it is worth; 0: nothing is known.
    """

    variance: float
    freedom: float

    def moderated(self, variance: float, freedom: int) -> tuple[float, float]:
        """A row's own variance of d degrees of freedom, drawn to s0², and the degrees of freedom
        of that: (d0 s0² + d s²) / (d0 + d), with d0 + d.

        d0 counts as 4 d at most: few rows, correlated as these are, cannot show that all
        variances are equal.
        """
        known = min(self.freedom, MOST_LENT * freedom)
        total = known + freedom
        return (known * self.variance + freedom * variance) / total, total


MOST_LENT = 4
FLOOR = 0.01
"""Of the mean variance: a row's smaller one counts as this. Scores are whole images, so that two
repeats may agree by rounding, and the logarithm of 0 would hide what the other rows say."""
NO_PRIOR = Prior(0.0, 0.0)


def prior_of(rows: Iterable[np.ndarray]) -> Prior:
    """The prior of rows that are adjusted together; `NO_PRIOR` for fewer than two.

    Args:
        rows: of each row its repeats' values, (R,); one with a single repeat does not count.
    """
    from scipy import special

    known = [row for row in rows if len(row) > 1]
    variance = np.array([row.var(ddof=1) for row in known])
    half = np.array([len(row) - 1 for row in known]) / 2
    if len(known) < 2 or not variance.any():
        return NO_PRIOR
    pooled = float((half * variance).sum() / half.sum())
    logs = np.log(np.maximum(variance, FLOOR * pooled)) - special.digamma(half) + np.log(half)
    excess = float(logs.var(ddof=1) - special.polygamma(1, half).mean())
    most = float(half.sum())  # half of all degrees of freedom: rows share variants and images
    if excess <= 0:
        return Prior(pooled, most)
    half_prior = _inverse_trigamma(excess)
    scale = logs.mean() + special.digamma(half_prior) - math.log(half_prior)
    return Prior(float(np.exp(scale)), min(2 * half_prior, most))


def _inverse_trigamma(value: float) -> float:
    """Where the trigamma function, which falls, has a value above 0; 1,000 at most."""
    from scipy import optimize, special

    def above(logarithm: float) -> float:
        return float(special.polygamma(1, math.exp(logarithm))) - value

    low, high = math.log(1e-3), math.log(1e3)
    if above(high) >= 0:
        return 1e3
    return math.exp(optimize.brentq(above, low, high)) if above(low) > 0 else 1e-3


@dataclass(frozen=True)
class Components:
    """Variance of a mean over R repeats and N images, by where it comes from.

    Attributes:
        repeats: of the mean, from the spread of the repeats' values, moderated by the `Prior`;
            NaN with one repeat.
        images: of the mean, from test images with the repeats as they are.
        both: the part that is particular to one image in one repeat, and that the other two
            both count; 0 with one repeat.
        shape: R, N, K.
        freedoms: degrees of freedom of ``repeats`` and of ``images``.
    """

    repeats: float
    images: float
    both: float
    shape: tuple[int, int, int]
    freedoms: tuple[float, float]

    @property
    def total(self) -> float:
        """Variance of the mean: repeats + images − both, and never less than either."""
        if np.isnan(self.repeats):
            return self.images
        return max(self.repeats + self.images - self.both, self.repeats, self.images)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the total by Satterthwaite (Biometrics Bulletin 2, 1946)."""
        of_repeats, of_images = self.freedoms
        parts = self.images**2 / of_images
        if not np.isnan(self.repeats):
            parts += self.repeats**2 / of_repeats
        return self.total**2 / parts if parts > 0 else of_images


def components(
    value: np.ndarray,
    drawn: np.ndarray,
    images: int,
    draws: Draws,
    least: float = 0.0,
    prior: Prior = NO_PRIOR,
    right: np.ndarray | None = None,
) -> Components:
    """Where the variance of a score's mean over repeats comes from.

    Args:
        value: each repeat's score, (R,).
        drawn: the same on each draw of the images, (R, B).
        images: N.
        least: variance that the images have in any case (`Draws.least`).
        prior: of the rows that are adjusted together.
        right: of a macro score, as in `CellScores`.
    """
    count, shape = len(value), (len(value), images, images - draws.freedom)
    of_mean, of_each = (float(each) * draws.inflation for each in _by_images(drawn))
    freedom = float(draws.freedom)
    if right is not None:
        more, freedom = draws.moderated(right.mean(axis=0))
        of_mean *= more
        of_each *= float(np.mean([draws.moderated(of_repeat)[0] for of_repeat in right]))
    of_mean = max(of_mean, least)
    if count < 2:
        return Components(np.nan, of_mean, 0.0, shape, (0.0, freedom))
    both = max((of_each - of_mean) / (count - 1), 0.0)
    variance, of_repeats = prior.moderated(float(value.var(ddof=1)), count - 1)
    return Components(variance / count, of_mean, both, shape, (of_repeats, freedom))


def _by_images(drawn: np.ndarray) -> tuple[float, float]:
    """The variance over draws of images, of the mean over repeats and of a repeat's own score."""
    return drawn.mean(axis=0).var(), drawn.var(axis=1).mean()


@dataclass(frozen=True)
class Spread:
    """How far a mean may be off: crossed draws, with Student's t for the width of their tails.

    Attributes:
        value: the mean over repeats.
        shape: draws of it, centred and scaled to variance 1, (B,).
        sd: the square root of `Components.total`.
        freedom: its degrees of freedom.
    """

    value: float
    shape: np.ndarray
    sd: float
    freedom: float

    def interval(self) -> tuple[float, float]:
        """The middle 95 %."""
        low, high = self.value + self.sd * self._tails(np.quantile(self.shape, [0.025, 0.975]))
        return float(low), float(high)

    def estimate(self) -> Estimate:
        """The value with its interval."""
        return Estimate(self.value, *self.interval())

    def draws(self) -> np.ndarray:
        """Draws of the value, (B,), as wide as its interval says."""
        return np.asarray(self.value + self.sd * self._tails(self.shape))

    def p_value(self) -> float:
        """How often a draw, centred on the value, lies as far from 0 as the value: (1 + as far) /
        (1 + draws), so never 0 (Davison & Hinkley 1997, 4.4). Two-sided.
        """
        from scipy import stats

        if self.sd > 0:
            tail = stats.t.sf(abs(self.value) / self.sd, self.freedom)
            as_far = np.abs(self.shape) >= stats.norm.isf(tail) - 1e-12
        else:
            as_far = np.full(len(self.shape), abs(self.value) <= 1e-12)
        return float((1 + as_far.sum()) / (1 + len(self.shape)))

    def _tails(self, normal: np.ndarray) -> np.ndarray:
        from scipy import stats

        return np.asarray(stats.t.ppf(stats.norm.cdf(normal), self.freedom))


def spread(
    value: np.ndarray,
    drawn: np.ndarray,
    images: int,
    draws: Draws,
    repeats: Sequence[int],
    least: float = 0.0,
    prior: Prior = NO_PRIOR,
    right: np.ndarray | None = None,
) -> Spread:
    """The spread of a score's mean over repeats. Arguments as for `components`."""
    found = components(value, drawn, images, draws, least, prior, right)
    by_images = drawn.mean(axis=0) - drawn.mean()
    if by_images.var() * draws.inflation <= least:
        by_images = draws.unmoved() * least**0.5
    moved = by_images + value @ draws.repeats(repeats)
    if moved.std() <= 1e-12:
        moved = draws.unmoved()
    shape = (moved - moved.mean()) / moved.std()
    return Spread(float(value.mean()), shape, found.total**0.5, found.freedom)


def estimate(scores: CellScores, metric: str, draws: Draws) -> Estimate:
    """A cell's score: the mean over its repeats, with its 95 % interval.

    With one repeat the interval is over test images alone.
    """
    found = spread_of(scores, metric, draws)
    return found.estimate().clipped(0.0, math.inf if metric == "loss" else 1.0)


def above_chance(scores: CellScores, draws: Draws) -> bool:
    """Whether a cell is surely better than guessing, by macro recall: in accuracy, always naming
    the most frequent species may beat 1 / K.
    """
    return estimate(scores, "recall", draws).low > draws.chance + 1e-9


def spread_of(scores: CellScores, metric: str, draws: Draws, prior: Prior = NO_PRIOR) -> Spread:
    """The spread of a cell's score."""
    if scores.copies:
        scores = scores.on(scores.distinct)
    values = (scores.value[metric], scores.drawn[metric])
    right = scores.right if metric in MACRO else None
    least = draws.least[metric]
    return spread(*values, scores.images, draws, scores.repeats, least, prior, right)


@dataclass(frozen=True)
class Paired:
    """First minus second of two cells, on the repeats they share.

    Attributes:
        value: each repeat's difference, (R,).
        drawn: the same on each draw of the images, (R, B).
        repeats: R of them.
        images: N.
        metric: one of `METRICS`.
        right: of a macro score the difference in which images are named right, (R, N), or None.
    """

    value: np.ndarray
    drawn: np.ndarray
    repeats: tuple[int, ...]
    images: int
    metric: str = "acc"
    right: np.ndarray | None = None


def pair(first: CellScores, second: CellScores, metric: str) -> Paired:
    """The difference of two cells' scores on the repeats they share, without those in which both
    are copies of an earlier one.

    Raises:
        ValueError: they share none.
    """
    given: dict[tuple[int, int], int] = {}
    for repeat in sorted(set(first.repeats) & set(second.repeats)):
        given.setdefault(
            (first.copies.get(repeat, repeat), second.copies.get(repeat, repeat)), repeat
        )
    shared = tuple(given.values())
    if not shared:
        raise ValueError("no repeat is in both cells")
    one, other = first.on(shared), second.on(shared)
    value, drawn = (
        getattr(one, kind)[metric] - getattr(other, kind)[metric] for kind in ("value", "drawn")
    )
    right = None
    if metric in MACRO and one.right is not None and other.right is not None:
        right = one.right - other.right
    return Paired(value, drawn, shared, first.images, metric, right)


def difference(
    first: CellScores, second: CellScores, metric: str, draws: Draws, prior: Prior = NO_PRIOR
) -> tuple[Estimate, float]:
    """First minus second on the same images and seeds, and its two-sided p-value.

    Raises:
        ValueError: the two share no repeat.
    """
    return compare(pair(first, second, metric), draws, prior)


def compare(paired: Paired, draws: Draws, prior: Prior = NO_PRIOR) -> tuple[Estimate, float]:
    """A paired difference with its interval, and its p-value (`Spread.p_value`). With one repeat
    the interval is over images alone, and the p-value is NaN.

    Args:
        prior: of the differences that are adjusted together (`prior_of`).
    """
    of_paired = (paired.value, paired.drawn, paired.images, draws, paired.repeats)
    found = spread(*of_paired, draws.least[paired.metric], prior, paired.right)
    p_value = found.p_value() if len(paired.repeats) > 1 else float("nan")
    return found.estimate(), p_value


def difference_columns(
    paired: Paired, draws: Draws, prior: Prior, most: float = 1.0
) -> dict[str, float]:
    """A paired difference as a row of a table: ``difference low high p repeats n``.

    Args:
        prior: of the rows that are adjusted together.
        most: the largest difference that is possible, in size.
    """
    found, p_value = compare(paired, draws, prior)
    found = found.clipped(-most, most)
    row = {"difference": found.value, "low": found.low, "high": found.high, "p": p_value}
    return row | {"repeats": len(paired.repeats), "n": paired.images}


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values adjusted for their number by S. Holm (Scand. J. Stat. 6, 1979), in their order.

    NaN stays NaN, and is not counted.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN is last
    stepped = p[order] * np.arange(len(order), 0, -1)
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted
