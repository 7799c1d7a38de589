"""How a study went over time: what early stopping saved, and how busy the machines were.

Times are seconds since 1970 (UTC) by the clock of the machine that did the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.load import Run, stopped_by_rung

UNKNOWN = "node not recorded"
KINDS = ("encoders", "search", "evaluation")


@dataclass(frozen=True)
class Savings:
    """What stopping trials early saved.

    Attributes:
        trials: that ended, except those that failed or ran out of time.
        stopped: how many of them a rung stopped.
        trained: epochs of all of them together.
        saved: epochs that the stopped ones had left. An upper bound: without rungs, patience
            would have ended some of them as well.
    """

    trials: int
    stopped: int
    trained: int
    saved: int

    @property
    def share(self) -> float:
        """Saved epochs over those without rungs, in [0, 1]; NaN before the first epoch."""
        return self.saved / whole if (whole := self.trained + self.saved) else float("nan")


def savings(trials: pd.DataFrame, max_epochs: int) -> Savings:
    """What ASHA saved against training every trial to the end.

    Args:
        trials: as ``trials.parquet``.
        max_epochs: ``training.max_epochs``.
    """
    by_rung = stopped_by_rung(trials)
    stopped, ended = trials[by_rung], trials[by_rung | (trials["state"] == "COMPLETE")]
    left = (max_epochs - stopped["epochs"]).clip(lower=0)
    trained = int(ended["epochs"].sum())
    return Savings(len(ended), len(stopped), trained, int(left.sum()))


def rungs(run: Run) -> list[int]:
    """The epochs at which ASHA compares the trials of a cell; empty without ASHA."""
    search = run.config.get("search", {})
    if search.get("scheduler") != "asha":
        return []
    found, milestone = [], int(search["grace_period"])
    while milestone < max_epochs(run):
        found.append(milestone)
        milestone *= int(search["reduction_factor"])
    return found


def max_epochs(run: Run) -> int:
    """How many epochs a trial may train at most."""
    return int(run.config["training"]["max_epochs"])


def work(run: Run) -> pd.DataFrame:
    """When each epoch of the study was trained, and where.

    Returns:
        ``node kind start end``, one row per epoch whose end is known; ``kind`` is one of `KINDS`.
        An epoch without a recorded node has the study's only node, or `UNKNOWN`.
    """
    nodes = run.trials.set_index("trial_id")["node"]
    only = pd.unique(nodes.dropna())
    default = str(only[0]) if len(only) == 1 else UNKNOWN
    parts = [
        _intervals("encoders", run.encoder_epochs, None),
        _intervals("search", run.epochs, run.epochs["trial_id"].map(nodes)),
        _intervals("evaluation", run.evaluation_epochs, None),
    ]
    found = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return found.assign(node=found["node"].fillna(default).astype("str"))


def _intervals(kind: str, epochs: pd.DataFrame, nodes: pd.Series | None) -> pd.DataFrame:
    known = epochs[epochs["ended"].notna() & epochs["seconds"].notna()]
    node = pd.Series(np.nan, known.index, dtype=object) if nodes is None else nodes[known.index]
    start = known["ended"] - known["seconds"]
    return pd.DataFrame({"node": node, "kind": kind, "start": start, "end": known["ended"]})


def busy(work: pd.DataFrame, edges: np.ndarray) -> dict[str, np.ndarray]:
    """How many epochs were trained at the same time, for each kind of work.

    Args:
        work: rows of `work`, for example of one node.
        edges: of T bins of time, (T + 1,), rising.

    Returns:
        For each of `KINDS`, the mean number over each bin, (T,).
    """
    result = {}
    for kind in KINDS:
        rows = work[work["kind"] == kind]
        start, end = rows["start"].to_numpy(), rows["end"].to_numpy()
        result[kind] = np.diff(_done_by(edges, start, end)) / np.diff(edges)
    return result


def _done_by(times: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How many seconds of the intervals lie before each time."""
    return _since(times, start) - _since(times, end)


def _since(times: np.ndarray, begun: np.ndarray) -> np.ndarray:
    """At each time, the seconds since their beginning, summed over all that have begun."""
    order = np.sort(begun)
    number = np.searchsorted(order, times)
    sums = np.concatenate([[0.0], np.cumsum(order - times[0])])
    return number * (times - times[0]) - sums[number]
