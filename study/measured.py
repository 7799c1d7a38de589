"""What a run recorded that says how long another would take: curves, epoch times, start-up."""

from __future__ import annotations

import math
import re
import statistics
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.storage import InputError, Location
from study.cells import Cell
from study.config import Config, config_from
from study.records import FINISHED, Row, read_table
from study.study_file import read_study

START, WORKER, BETWEEN = 10.0, 5.0, 0.1  # seconds, benchmarks/results/startup.json
NEEDED: tuple[str, ...] = ("labels", "trials", "epochs", "evaluations", "evaluation_epochs")
NEEDED += ("encoders_made", "encoder_epochs")
FORWARD = 1 / 3  # of an image's forward and backward pass is the forward one


@dataclass(frozen=True)
class Curve:
    """The epochs of one classifier.

    Attributes:
        lr: its learning rate.
        rows: an epoch each, from the first: ``val_*`` and ``seconds``.
        stopped: it ended by patience; otherwise it would have gone on.
        beside: seconds that it took and that are no epoch's.
    """

    lr: float
    rows: tuple[Row, ...]
    stopped: bool
    beside: float = 0.0


@dataclass(frozen=True)
class Overhead:
    """Seconds that are not training.

    Attributes:
        fixed: once a study: Ray's start, features, closing.
        worker: until a new process can train: it imports torch.
        between: from the end of a trial to the start of the next.
        measured: whether these are the run's own, or those of ``benchmarks/startup.py``.
    """

    fixed: float = START
    worker: float = WORKER
    between: float = BETWEEN
    measured: bool = False


@dataclass(frozen=True)
class Took:
    """What a run took: seconds in all, and of its search and final evaluation where known."""

    seconds: float
    search: float | None = None
    evaluation: float | None = None


@dataclass(frozen=True)
class Measured:
    """A run's records as a forecast needs them.

    Attributes:
        images: of train and valid, as ``{"train": n, "valid": n}``.
        labelled: label ratio (percent) -> labelled training images.
        trials, repeats: the search's and the final evaluation's curves of each cell.
        encoders: images, epochs and seconds of each pretrained encoder.
        side_by_side: how many trials it ran at once.
        took: None where the run is not complete.
    """

    run: Location
    config: Config
    machine: str
    images: dict[str, int]
    labelled: dict[int, int]
    trials: dict[Cell, list[Curve]]
    repeats: dict[Cell, list[Curve]] = field(default_factory=dict)
    encoders: tuple[tuple[int, int, float], ...] = ()
    side_by_side: int = 1
    overhead: Overhead = Overhead()
    took: Took | None = None

    @property
    def epochs(self) -> int:
        """Epochs of classifiers that were measured."""
        curves = [*self.trials.values(), *self.repeats.values()]
        return sum(len(curve.rows) for of_cell in curves for curve in of_cell)


def read_measured(run: Location) -> Measured:
    """Read a finished or running study.

    Raises:
        InputError: it is no run, a file is damaged, or it has no epoch yet.
    """
    study = read_study(run)
    config = config_from(study["config"], str(run / "study.yaml"))
    tables = {name: read_table(run / f"{name}.parquet") for name in NEEDED}
    trials = _trial_curves(config, tables["trials"], tables["epochs"])
    if not trials:
        raise InputError(f"{run}: found no epoch of a trial, expected a run that has trained some")
    made = tables["encoders_made"]
    clock = _Clock(tables)
    whole = study["state"] == "COMPLETE" and bool(tables["trials"])
    took = clock.took(study["seconds"]) if whole else None
    return Measured(
        run=run,
        config=config,
        machine=str(study.get("machine", "an unknown machine")),
        images={name: int(n) for name, n in (study["data"].get("counts") or {}).items()},
        labelled=Counter(r["label_ratio"] for r in tables["labels"] if r["repeat"] is None),
        trials=trials,
        repeats=_repeat_curves(config, tables["evaluations"], tables["evaluation_epochs"]),
        encoders=tuple((row["images"], row["epochs"], row["seconds"]) for row in made),
        side_by_side=clock.side_by_side() or _cpus(study) // config.resources.cpus_per_trial or 1,
        overhead=clock.overhead(took),
        took=took,
    )


def epoch_work(config: Config, labelled: int, valid: int) -> float:
    """What an epoch of a classifier costs, up to a factor that is the network's own."""
    least = config.training.min_steps_per_epoch * config.training.batch_size
    return max(labelled, least) + FORWARD * valid


def _trial_curves(config: Config, trials: list[Row], epochs: list[Row]) -> dict[Cell, list[Curve]]:
    curves = _by(epochs, "trial_id")
    found: dict[Cell, list[Curve]] = defaultdict(list)
    for trial in trials:
        rows = curves.get((trial["trial_id"],), ())
        if not rows or trial["state"] == "FAIL":
            continue
        stopped = trial["state"] == "COMPLETE" and len(rows) < config.training.max_epochs
        cell = Cell(trial["variant"], trial["label_ratio"])
        found[cell].append(Curve(trial["lr"], rows, stopped))
    return dict(found)


def _repeat_curves(
    config: Config, evaluations: list[Row], epochs: list[Row]
) -> dict[Cell, list[Curve]]:
    curves = _by(epochs, "cell", "repeat")
    found: dict[Cell, list[Curve]] = defaultdict(list)
    for row in evaluations:
        rows = curves.get((row["cell"], row["repeat"]), ())
        if rows:
            beside = max(0.0, row["seconds"] - sum(epoch["seconds"] for epoch in rows))
            stopped = len(rows) < config.training.max_epochs
            cell = Cell(row["variant"], row["label_ratio"])
            found[cell].append(Curve(row["lr"], rows, stopped, beside))
    return dict(found)


def _by(epochs: Iterable[Row], *key: str) -> dict[tuple[Any, ...], tuple[Row, ...]]:
    """Epochs in order, by what they belong to; one without a number ends its curve."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in sorted(epochs, key=lambda row: row["epoch"]):
        if all(row[name] is not None for name in ("seconds", "val_loss", "val_acc", "val_f1")):
            groups[tuple(row[name] for name in key)].append(row)
    return {name: tuple(rows) for name, rows in groups.items()}


def _cpus(study: dict[str, Any]) -> int:
    found = re.search(r"(\d+) CPUs", str(study.get("machine", "")))
    return int(found[1]) if found else 1


class _Clock:
    """When the parts of a run began and ended, by what its epochs recorded.

    Runs of before epochs recorded when they ended have no spans.
    """

    def __init__(self, tables: dict[str, list[Row]]):
        finished = {row["trial_id"] for row in tables["trials"] if row["state"] in FINISHED}
        trials = [row for row in tables["epochs"] if row["trial_id"] in finished]
        self.trials = _spans(trials, "trial_id")
        self.repeats = _spans(tables["evaluation_epochs"], "cell", "repeat")
        self.encoders = _spans(tables["encoder_epochs"], "encoder")

    def side_by_side(self) -> int:
        """The most classifiers in training at one moment; 0 where it is not known."""
        spans = self.trials + self.repeats
        changes = [(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans]
        now = most = 0
        for _, change in sorted(changes):
            now += change
            most = max(most, now)
        return most

    def took(self, seconds: float) -> Took:
        if not self.trials or not self.repeats:
            return Took(seconds)
        searched = max(end for _, end in self.trials)
        first = min(begin for begin, _ in self.trials + self.encoders)
        ended = max(end for _, end in self.repeats)
        if ended - first > seconds:  # it paused: interrupted, or grown
            return Took(seconds)
        return Took(seconds, searched - first, ended - searched)

    def overhead(self, took: Took | None) -> Overhead:
        """The run's own start-up where it ran in one piece, else the usual one."""
        if took is None or took.search is None or took.evaluation is None:
            return Overhead()
        searched = max(end for _, end in self.trials)
        later = [begin for begin, _ in self.repeats + self.encoders if begin > searched]
        worker = min(later, default=searched) - searched
        fixed = took.seconds - took.search - took.evaluation - worker
        if not (0 < worker < 60 and 0 < fixed < 300):  # interrupted, or grown
            return Overhead()
        return Overhead(fixed, worker, self._between(), measured=True)

    def _between(self) -> float:
        """The usual time from the end of a trial to the next that starts."""
        ends = sorted(end for _, end in self.trials)
        before = [(begin, bisect_right(ends, begin)) for begin, _ in self.trials]
        gaps = [begin - ends[place - 1] for begin, place in before if place]
        return statistics.median(gaps) if gaps else BETWEEN


def _spans(epochs: Sequence[Row], *key: str) -> list[tuple[float, float]]:
    """When each began and ended, in seconds since 1970."""
    found: dict[tuple[Any, ...], tuple[float, float]] = {}
    for row in epochs:
        if row.get("ended") is None or row["seconds"] is None:
            continue
        name = tuple(row[part] for part in key)
        begin, end = found.get(name, (math.inf, -math.inf))
        found[name] = min(begin, row["ended"] - row["seconds"]), max(end, row["ended"])
    return list(found.values())
