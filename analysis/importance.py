"""How much of the variation in score is due to variant, label ratio, learning rate and their
interactions: a functional analysis of variance.

A random forest learns the score from the trials. What it predicts over the whole space, all
variants × all ratios × log lr with equal weight, is then split into a mean, a part for each
factor and a part for each interaction, whose variances add up to the whole: Hutter, Hoos &
Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter Importance" (ICML).
Variants and ratios are few and lr is one number, so that the marginals are means over a grid.
The forest's mean is split, not each tree as in the paper: on functions with known shares and
120 trials that halved the largest error. With so few trials a small interaction comes out too
small (0.05 for 0.16).

Shapes: N trials, V variants, R ratios, L steps of log lr.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.variants import with_recipe

LEAST_TRIALS = 20  # a forest of fewer is useless
ENOUGH = 0.5  # R² above which shares are meaningful
_STEPS = 64  # of log lr
_TREES = 100
_MOST_TRIALS = 4000  # more make the forest slower, not better
_SEED = 0
_NAMES = ("label ratio", "learning rate")


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
    recipe is searched, each recipe is a level of its own.

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
    surface, explained = _learn(known, score)
    first = "variant, recipe" if known["recipe"].notna().any() else "variant"
    return Importance(shares(surface, (first, *_NAMES)), explained, len(score))


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
    for order in range(1, len(axes) + 1):
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
    frame = pd.DataFrame(rows, columns=["factors", "share"])
    return frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)


def _learn(trials: pd.DataFrame, score: np.ndarray) -> tuple[np.ndarray, float]:
    """The forest's prediction over the grid, (V, R, L), and its out-of-bag R²."""
    from sklearn.ensemble import RandomForestRegressor

    trained = [with_recipe(*each) for each in zip(trials["variant"], trials["recipe"], strict=True)]
    variants, variant = np.unique(np.array(trained, dtype=str), return_inverse=True)
    ratios, ratio = np.unique(trials["label_ratio"].to_numpy(), return_inverse=True)
    lr = np.log(trials["lr"].to_numpy(dtype=float))
    steps = (np.arange(_STEPS) + 0.5) / _STEPS * np.ptp(lr) + lr.min()
    grid = np.meshgrid(np.arange(len(variants)), np.arange(len(ratios)), steps, indexing="ij")
    forest = RandomForestRegressor(_TREES, oob_score=True, random_state=_SEED)
    forest.fit(_columns(variant, ratio, lr, len(variants)), score)
    v, r, x = (axis.ravel() for axis in grid)
    points = _columns(v, r, x, len(variants))
    return forest.predict(points).reshape(grid[0].shape), float(forest.oob_score_)


def _columns(variant: np.ndarray, ratio: np.ndarray, lr: np.ndarray, variants: int) -> np.ndarray:
    return np.column_stack([np.eye(variants)[variant], ratio, lr])
