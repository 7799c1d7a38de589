"""Which epoch, which trial, which repeat is the best: always by the validation set.

Rows are mappings with the search's metric (``val_f1``, ``val_acc`` or ``val_loss``) and
``val_loss``; a missing value loses to any other. The test set appears nowhere here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]


def score(row: Row, metric: str) -> float:
    """The row's metric, turned so that larger is better; -inf where it is missing."""
    value = row.get(metric)
    if value is None or not math.isfinite(value):
        return -math.inf
    return -float(value) if metric.endswith("loss") else float(value)


def is_better(row: Row, best: Row | None, metric: str) -> bool:
    """Whether a later row replaces the best so far; an equal one does not."""
    return best is None or score(row, metric) > score(best, metric)


def best_epoch(epochs: Iterable[Row], metric: str) -> Row | None:
    """The first epoch with the best metric; None without epochs."""
    best: Row | None = None
    for row in sorted(epochs, key=lambda row: row["epoch"]):
        if is_better(row, best, metric):
            best = row
    return best


def winner(trials: Iterable[Row], metric: str) -> Row | None:
    """A cell's COMPLETE trial with the best metric, ties by lower ``val_loss``, then by name."""
    complete = [row for row in trials if row["state"] == "COMPLETE"]
    return min(complete, key=lambda row: _order(row, metric, row["trial_id"]), default=None)


def best_repeat(evaluations: Iterable[Row], metric: str) -> Row | None:
    """The evaluation with the best metric on the validation set."""
    return min(evaluations, key=lambda row: _order(row, metric, row["repeat"]), default=None)


def _order(row: Row, metric: str, name: Any) -> tuple[float, float, Any]:
    return -score(row, metric), -score(row, "val_loss"), name
