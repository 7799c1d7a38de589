"""Early stopping of trials: ASHA's rungs, one set a cell.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (arXiv:1810.05934), in
the stopping form that Ray Tune's ASHAScheduler has: a trial that reaches a rung goes on unless
it is below the best 1/η of those that came before. The first to come always goes on.
"""

from __future__ import annotations

import numpy as np


class Rungs:
    """The rungs of one cell.

    Args:
        grace_period: epochs of the first rung; no trial is stopped before.
        max_epochs: a trial of that many epochs is complete, not stopped.
        reduction_factor: η, the ratio between rungs and the share that goes on.
    """

    def __init__(self, grace_period: int, max_epochs: int, reduction_factor: int):
        self.keep = 1 / reduction_factor
        self.values: dict[int, dict[str, float]] = {}  # milestone in epochs -> trial -> score
        milestone = grace_period
        while milestone < max_epochs:
            self.values[milestone] = {}
            milestone *= reduction_factor

    def goes_on(self, trial_id: str, epoch: int, score: float) -> bool:
        """Record the score (larger is better) if the epoch is a rung; whether to go on."""
        rung = self.values.get(epoch)
        if rung is None or trial_id in rung:
            return True
        cutoff = np.percentile(list(rung.values()), (1 - self.keep) * 100) if rung else -np.inf
        rung[trial_id] = score
        return bool(score >= cutoff)

    def record(self, trial_id: str, epoch: int, score: float) -> None:
        """Put back a score from the records, without judging it again."""
        if epoch in self.values:
            self.values[epoch].setdefault(trial_id, score)
