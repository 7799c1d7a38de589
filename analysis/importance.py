"""How much of the variation in score is due to variant, label ratio, learning rate, what else was
searched, and their interactions: a functional analysis of variance.

A random forest learns the score from the trials. What it predicts over the whole space, all
variants × all ratios × log lr × the others with equal weight, is then split into a mean, a part for
each factor and a part for each interaction, whose variances add up to the whole: Hutter, Hoos &
Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter Importance" (ICML).
The factors are few, so that the marginals are means over a grid.
The forest's mean is split, not each tree as in the paper: on functions with known shares and
120 trials that halved the largest error. With so few trials a small interaction comes out too
small (0.05 for 0.16).

Shapes: N trials, V variants, R ratios, L steps of log lr.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analysis.variants import with_recipe

LEAST_TRIALS = 20  # a forest of fewer is useless
ENOUGH = 0.5  # R² above which shares are meaningful
_STEPS = (4, 64)  # of each number, as far as
_POINTS = 50_000  # on the grid allow
_ORDER = 3  # factors that an interaction is named by
_HIGHER = "interactions of more factors"
_TREES = 100
_MOST_TRIALS = 4000  # more make the forest slower, not better
_SEED = 0


@dataclass(frozen=True)
class Importance:
    """What the score's variation is due to.

    Attributes:
        shares: ``factors share``, largest first: names joined by " × ", and the share of the
            variance in [0, 1], together 1. What has a single level has no row.
        explained: R² of the forest on trials that its trees had not seen, at most 1. Shares mean
            little below `ENOUGH`; NaN where there are no shares.
        trials: N, that the forest learned from.
    """

    shares: pd.DataFrame
    explained: float
    trials: int


def importance(trials: pd.DataFrame, metric: str) -> Importance:
    """Split the variance of a score over the study's trials.

    Trials that were stopped early count with the best score that they reached: without them, bad
    learning rates would be left out. Failed trials have no score and are left out. There are no
    shares with fewer than `LEAST_TRIALS` trials, nor if all have the same score. Of a variant whose
    recipe is searched, each recipe is a level of its own. Of `search.space` what all trials have
    counts, so nothing that C alone has beside other variants.

    Args:
        trials: as ``trials.parquet``.
        metric: val_f1, val_acc or val_loss.
    """
    known = trials[trials["state"].isin(["COMPLETE", "PRUNED"]) & trials[metric].notna()]
    if len(known) > _MOST_TRIALS:
        known = known.sample(_MOST_TRIALS, random_state=_SEED)
    score = known[metric].to_numpy(dtype=float)
    if len(score) < LEAST_TRIALS or np.ptp(score) == 0:
        return Importance(pd.DataFrame(columns=["factors", "share"]), float("nan"), len(score))
    factors = _factors(known)
    surface, explained = _learn(factors, score)
    names = tuple(factor.name for factor in factors)
    return Importance(shares(surface, names), explained, len(score))


def shares(surface: np.ndarray, names: tuple[str, ...]) -> pd.DataFrame:
    """Split the variance of a function on a full grid, all points weighing the same.

    Args:
        surface: its values, an axis a factor, (V, R, L) say.
        names: of the axes.

    Returns:
        ``factors share``, as `Importance.shares`.
    """
    axes = [axis for axis, size in enumerate(surface.shape) if size > 1]
    parts: dict[tuple[int, ...], np.ndarray] = {(): surface.mean(keepdims=True)}
    for order in range(1, min(len(axes), _ORDER) + 1):
        for kept in combinations(axes, order):
            others = tuple(axis for axis in range(surface.ndim) if axis not in kept)
            part = surface.mean(axis=others, keepdims=True)
            for fewer in range(order):
                part = part - sum(parts[each] for each in combinations(kept, fewer))
            parts[kept] = part
    variance = surface.var() or 1.0
    rows = [
        (" × ".join(names[axis] for axis in kept), float((part**2).mean() / variance))
        for kept, part in parts.items()
        if kept
    ]
    if len(axes) > _ORDER:
        rows.append((_HIGHER, max(0.0, 1 - sum(share for _, share in rows))))
    frame = pd.DataFrame(rows, columns=["factors", "share"])
    return frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)


@dataclass(frozen=True)
class _Factor:
    """A factor of the score.

    Attributes:
        name: as it is shown.
        values: of each trial, (N,): a number, or the index of a level.
        levels: how many, where it is no number.
    """

    name: str
    values: np.ndarray
    levels: int = 0

    def columns(self, values: np.ndarray) -> np.ndarray:
        """What the forest sees of it: a column, or one a level."""
        return np.eye(self.levels)[values.astype(int)] if self.levels else values[:, None]

    def grid(self, steps: int) -> np.ndarray:
        """Its levels, or so many numbers from its least to its greatest."""
        if self.levels:
            return np.arange(self.levels)
        return (np.arange(steps) + 0.5) / steps * np.ptp(self.values) + self.values.min()


def _factors(trials: pd.DataFrame) -> list[_Factor]:
    trained = [with_recipe(*each) for each in zip(trials["variant"], trials["recipe"], strict=True)]
    first = "variant, recipe" if trials["recipe"].notna().any() else "variant"
    found = [_levels(first, trained), _levels("label ratio", trials["label_ratio"].tolist())]
    found.append(_Factor("learning rate", np.log(trials["lr"].to_numpy(dtype=float))))
    settings = [json.loads(text) if isinstance(text, str) else {} for text in trials["settings"]]
    for key in sorted(set.intersection(*map(set, settings))):
        name, values = key.split(".")[-1].replace("_", " "), [each[key] for each in settings]
        found.append(_number(name, values) or _levels(name, values))
    return found


def _number(name: str, values: list[Any]) -> _Factor | None:
    """A range's values, by their logarithm where they span more than a power of ten."""
    if not all(isinstance(value, float) for value in values):
        return None
    numbers = np.array(values)
    wide = numbers.min() > 0 and numbers.max() > 10 * numbers.min()
    return _Factor(name, np.log(numbers) if wide else numbers)


def _levels(name: str, values: list[Any]) -> _Factor:
    known = sorted(set(values), key=lambda value: (str(type(value)), value))
    return _Factor(name, np.array([known.index(value) for value in values]), len(known))


def _learn(factors: list[_Factor], score: np.ndarray) -> tuple[np.ndarray, float]:
    """The forest's prediction over the grid, an axis a factor, and its out-of-bag R²."""
    from sklearn.ensemble import RandomForestRegressor

    numbers = sum(1 for factor in factors if not factor.levels)
    points = _POINTS / np.prod([factor.levels or 1 for factor in factors])
    steps = int(np.clip(points ** (1 / numbers), *_STEPS))
    grid = np.meshgrid(*(factor.grid(steps) for factor in factors), indexing="ij")
    forest = RandomForestRegressor(_TREES, oob_score=True, random_state=_SEED)
    forest.fit(np.hstack([factor.columns(factor.values) for factor in factors]), score)
    pairs = zip(factors, grid, strict=True)
    predicted = forest.predict(np.hstack([factor.columns(axis.ravel()) for factor, axis in pairs]))
    return predicted.reshape(grid[0].shape), float(forest.oob_score_)
