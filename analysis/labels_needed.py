"""How many labels these images need: what a round accuracy takes, and whether more still help.

Both are read from each variant's own curve (`analysis.efficiency`), on the draws that all cells
share, so that the scores of two ratios move together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.efficiency import curve_of, reached
from analysis.statistics import (
    CellScores,
    Draws,
    above_chance,
    difference_columns,
    holm,
    pair,
    prior_of,
)
from analysis.variants import cell_name, variant_of
from analysis.verdicts import verdict

NEEDED = ["variant", "acc", "needed", "needed_low", "needed_high", "bound", "least", "most"]
GAINED = ["variant", "label_ratio", "labels", "to_ratio", "to_labels", "difference", "low"]
GAINED += ["high", "p", "p_holm", "verdict", "repeats", "n"]
STEPS = (0.1, 0.05, 0.02, 0.01)
"""Candidates for the distance of the accuracies: the widest that gives at least two."""


def labels_needed(
    scores: Mapping[str, CellScores], draws: Draws, labels: Mapping[int, int]
) -> pd.DataFrame:
    """`NEEDED`, see docs/RECORDS.md: one row per variant and round accuracy, without variants
    that are not surely better than chance even with all their labels.

    Args:
        scores: by cell.
        labels: labelled images at each ratio.
    """
    curves = {}
    for variant in _variants(scores):
        curve = curve_of(scores, draws, labels, variant)
        most = _ratios(scores, variant, labels)[-1]
        if curve is not None and above_chance(scores[cell_name(variant, most)], draws):
            curves[variant] = curve
    targets = round_accuracies([values for _, values, _ in curves.values()], draws.chance)
    rows = []
    for variant, curve in curves.items():
        for target in targets:
            found = reached(curve, target, np.full(draws.count, target))
            rows.append((variant, target, *found, curve[0][0], curve[0][-1]))
    return pd.DataFrame(rows, columns=NEEDED)


def round_accuracies(curves: Sequence[np.ndarray], above: float) -> list[float]:
    """The round accuracies that the curves pass, in ascending order.

    Args:
        curves: accuracies of each variant.
        above: the accuracy of guessing; lower ones do not count.
    """
    if not curves:
        return []
    least, most = max(min(map(np.min, curves)), above), max(map(np.max, curves))
    for step in STEPS:
        first, last = math.floor(least / step + 1e-9) + 1, math.floor(most / step + 1e-9)
        if last > first:
            return [round(number * step, 2) for number in range(first, last + 1)]
    return []


def gains(
    scores: Mapping[str, CellScores], draws: Draws, labels: Mapping[int, int]
) -> pd.DataFrame:
    """`GAINED`, see docs/RECORDS.md: one row per variant, what it gains from about half of its
    labels to all of them: whether its curve still rises. Holm is over the variants.
    """
    found, learned = [], []
    for variant in _variants(scores):
        *fewer, most = _ratios(scores, variant, labels)
        if not fewer:
            continue
        half = min(fewer, key=lambda ratio: abs(math.log(2 * ratio / most)))
        less, more = (scores[cell_name(variant, ratio)] for ratio in (half, most))
        if set(less.repeats) & set(more.repeats):
            key = (variant, half, labels[half], most, labels[most])
            found.append((key, pair(more, less, "acc")))
            learned.append(above_chance(less, draws) or above_chance(more, draws))
    prior = prior_of(change.value for _, change in found)
    rows = [
        dict(zip(GAINED, key, strict=False)) | difference_columns(change, draws, prior)
        for key, change in found
    ]
    frame = pd.DataFrame(rows, columns=GAINED)
    frame["p_holm"] = holm(frame["p"].tolist())
    frame["verdict"] = list(map(verdict, frame.to_dict("records"), learned))
    return frame


def _ratios(scores: Iterable[str], variant: str, labels: Mapping[int, int]) -> list[int]:
    """The label ratios at which a variant has a score, in ascending order."""
    return [ratio for ratio in sorted(labels) if cell_name(variant, ratio) in scores]


def _variants(scores: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(variant_of, scores)))
