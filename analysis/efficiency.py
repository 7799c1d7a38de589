"""Labels saved: how many labels the network from random weights needs to match a pretrained one.

A variant's curve is its test accuracy against the logarithm of its labels, made monotone by pool
adjacent violators (Ayer et al., Ann. Math. Stat. 26, 1955) and linear between the studied ratios.
The interval comes from the draws of `analysis.statistics.Spread`, the same for all cells: in each,
the curve and the accuracy to be reached move together. The curve is known between its fewest and
its most labels alone: an end beyond them is −inf or inf. Where a cell has a single repeat nothing
is known of the spread between seeds, so there are no ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from analysis.statistics import CellScores, Draws, above_chance, spread_of
from analysis.variants import cell_name, is_pretrained, kind_of, variant_of

BASELINE = "B0"
COLUMNS = ["variant", "baseline", "label_ratio", "labels", "acc", "needed", "needed_low"]
COLUMNS += ["needed_high", "saved", "saved_low", "saved_high", "bound", "least", "most"]

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]


def labels_saved(
    scores: Mapping[str, CellScores], draws: Draws, labels: Mapping[int, int]
) -> pd.DataFrame:
    """`COLUMNS`, see docs/RECORDS.md: one row per pretrained variant and ratio at which it is
    surely better than chance; otherwise any number of labels would match it.

    Args:
        scores: by cell.
        labels: labelled images at each ratio.
    """
    rows = []
    curve = curve_of(scores, draws, labels, BASELINE)
    if curve is None:
        return pd.DataFrame(columns=COLUMNS)
    for variant in pretrained(scores):
        for ratio in sorted(labels):
            cell = scores.get(cell_name(variant, ratio))
            if cell is not None and above_chance(cell, draws):
                key = (variant, BASELINE, ratio, labels[ratio])
                row = _row(cell, draws, curve, labels[ratio])
                rows.append((*key, *row, curve[0][0], curve[0][-1]))
    return pd.DataFrame(rows, columns=COLUMNS)


def pretrained(scores: Iterable[str]) -> list[str]:
    """The pretrained variants among the cells, the fine-tuned ones first."""
    variants = {variant_of(cell) for cell in scores}
    found = filter(is_pretrained, variants)
    return sorted(found, key=lambda variant: (kind_of(variant) == "B1", variant))


def curve_of(
    scores: Mapping[str, CellScores], draws: Draws, labels: Mapping[int, int], variant: str
) -> Curve | None:
    """Labels (P,), accuracies (P,) and draws of them (P, B), NaN where a cell has one repeat; None
    for fewer than two ratios.
    """
    cells = {labels[r]: scores.get(cell_name(variant, r)) for r in sorted(labels)}
    known = {count: cell for count, cell in cells.items() if cell is not None}
    if len(known) < 2:
        return None
    drawn = [_drawn(cell, draws) for cell in known.values()]
    values = np.array([cell.value["acc"].mean() for cell in known.values()])
    return np.array(list(known)), values, np.stack(drawn)


def _drawn(cell: CellScores, draws: Draws) -> np.ndarray:
    if len(cell.repeats) < 2:
        return np.full(draws.count, np.nan)
    return spread_of(cell, "acc", draws).draws()


def _row(cell: CellScores, draws: Draws, curve: Curve, labels: int) -> tuple[object, ...]:
    target = float(cell.value["acc"].mean())
    needed, low, high, bound = reached(curve, target, _drawn(cell, draws))
    saved = (needed - labels, low - labels, high - labels)
    return (target, needed, low, high, *saved, bound)


def reached(
    curve: Curve, target: float, drawn_targets: np.ndarray
) -> tuple[float, float, float, str]:
    """How many labels of a curve reach an accuracy, the interval's ends, and what the number is:
    ``exact``, ``at least`` (the most labels do not reach it: inf) or ``at most`` (the fewest do).

    Args:
        target: the accuracy.
        drawn_targets: what it is on each draw, (B,).
    """
    counts, values, drawn = curve
    needed = float(labels_for(np.array([target]), counts, values[:, None])[0])
    low, high = _ends(counts, drawn, drawn_targets)
    bound = "exact"
    if np.isinf(needed):
        bound = "at least"
    elif needed <= counts[0]:
        bound = "at most"
    return needed, low, high, bound


def _ends(counts: np.ndarray, drawn: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """The interval's ends; −inf for the lower one where the fewest labels reach the target."""
    if np.isnan(drawn).any() or np.isnan(targets).any():
        return np.nan, np.nan
    many = labels_for(targets, counts, drawn)
    low, high = np.quantile(many, [0.025, 0.975], method="inverted_cdf")  # between inf: none
    return -np.inf if low <= counts[0] else float(low), float(high)


def labels_for(target: np.ndarray, labels: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """How many labels reach a target accuracy, (B,).

    Args:
        target: accuracies, (B,).
        labels: of the curve's points, ascending, (P,).
        accuracy: at those, (P, B).

    Returns:
        Labels: the curve's fewest if they reach the target, inf if its most do not.
    """
    curve = monotone(accuracy)
    reached = curve >= target
    first = reached.argmax(axis=0)  # (B,)
    before, column = np.maximum(first - 1, 0), np.arange(len(target))
    low, high = curve[before, column], curve[first, column]
    rise = np.where(high > low, high - low, 1.0)
    share = np.clip(np.where(first > 0, (target - low) / rise, 1.0), 0.0, 1.0)
    logs = np.log(labels)
    found = np.exp(logs[before] + share * (logs[first] - logs[before]))
    found = np.where(first == 0, labels[0], found)
    return np.where(reached.any(axis=0), found, np.inf)


def monotone(values: np.ndarray) -> np.ndarray:
    """The nearest curve that never falls, for each column of (P, B): max-min of means."""
    count = len(values)
    sums = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0)])
    result = np.empty_like(values, dtype=float)
    for i in range(count):
        of_starts = [
            np.min([(sums[t + 1] - sums[s]) / (t + 1 - s) for t in range(i, count)], axis=0)
            for s in range(i + 1)
        ]
        result[i] = np.max(of_starts, axis=0)
    return result
