"""A study's scheduler, simulated: how long so many slots take over epochs that a run recorded.

The simulation drives the search that a run has, `study.search.StudySearch` with its Optuna
studies and ASHA rungs; a discrete-event simulation in which a slot trains one classifier or
encoder at a time. Nothing of Ray is started.

What it leaves out: that epochs are slower or faster with another number of trials on the same
machine, and the time that the driver itself needs.
"""

from __future__ import annotations

import heapq
import math
import tempfile
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from data.storage import Location
from study.cells import Cell, cells_of, trained_cells
from study.choosing import is_better
from study.config import Config
from study.evaluation import Repeat, repeats_to_run
from study.measured import Curve, Measured, epoch_work
from study.planning import Counts, encoder_key
from study.records import Ledger, Row
from study.search import StudySearch, Trial
from study.seeds import seed_for

SIMULATED = 5  # studies for each number of slots, each with a seed of its own; fewer if LARGE
LARGE = 200  # trials
NEAREST = 3  # curves, by learning rate, that a simulated trial is drawn from
METRICS = ("val_loss", "val_acc", "val_f1")
Job = Iterator[float]  # seconds until it goes on


@dataclass(frozen=True)
class Outcome:
    """One simulated study, in seconds.

    Attributes:
        wall: from Ray's start to its end, as ``study.yaml`` counts them.
        search: from the first epoch, an encoder's perhaps, to the last one of a trial.
        evaluation: from there to the last repeat.
        busy: of all slots together, in training.
    """

    wall: float
    search: float
    evaluation: float
    busy: float


class Curves:
    """Epochs for simulated trials, drawn from those that were measured.

    A cell that was not measured has the curves of the nearest one, and epochs take longer or
    shorter by the images they go through and by pixels × width.

    Args:
        config: of the study to be simulated.
        counts: its images.
        measured: the run.
    """

    def __init__(self, config: Config, counts: Counts, measured: Measured):
        self.config, self.counts, self.measured = config, counts, measured
        self.size = size_factor(config, measured.config)

    def source(self, cell: Cell) -> Cell:
        """The measured cell that stands for it: its own, or the nearest ratio of its variant."""
        if cell in self.measured.trials:
            return cell
        frozen = cell.kind.frozen

        def distance(other: Cell) -> tuple[bool, bool, int, str]:
            unlike = other.kind.frozen != frozen
            ratios = abs(other.label_ratio - cell.label_ratio)
            return other.variant != cell.variant, unlike, ratios, other.name

        return min(self.measured.trials, key=distance)

    def scale(self, cell: Cell) -> float:
        """By how much its epochs take longer than those of `source`."""
        source, run = self.source(cell), self.measured
        labelled = run.labelled.get(source.label_ratio) or self.counts.labelled(source.label_ratio)
        then = epoch_work(run.config, labelled, run.images.get("valid", self.counts.valid))
        now = epoch_work(self.config, self.counts.labelled(cell.label_ratio), self.counts.valid)
        return self.size * now / then

    def trial(self, cell: Cell, lr: float, random: np.random.Generator) -> Iterator[Row]:
        """The epochs of a trial, until patience or ``training.max_epochs`` ends it."""
        return self._rows(cell, self.measured.trials[self.source(cell)], lr, random)

    def repeat(self, cell: Cell, lr: float, random: np.random.Generator) -> Iterator[Row]:
        """The epochs of a repeat of the final evaluation."""
        source = self.source(cell)
        curves = self.measured.repeats.get(source) or self.measured.trials[source]
        return self._rows(cell, curves, lr, random)

    def beside(self, cell: Cell) -> float:
        """Seconds of a repeat that are no epoch's: the test, writing its weights."""
        of_all = [c.beside for curves in self.measured.repeats.values() for c in curves]
        own = [c.beside for c in self.measured.repeats.get(self.source(cell), ())]
        return fmean(own or of_all or [0.0])

    def encoder(self, images: int, random: np.random.Generator) -> float:
        """Seconds of one encoder's pretraining."""
        made = self.measured.encoders
        most, then = self.config.encoder.epochs, self.measured.config.encoder.epochs
        if not made:  # the paper's autoencoder takes as long as B2 and its decoder
            seconds = [
                1.2 * row["seconds"] * self.size / epoch_work(self.measured.config, labelled, 0)
                for cell, curves in self.measured.trials.items()
                if not cell.kind.frozen
                for labelled in [self.measured.labelled.get(cell.label_ratio, 0)]
                for row in curves[0].rows
                if labelled
            ]
            return fmean(seconds or [0.0]) * images * most
        of, epochs, took = made[random.integers(len(made))]
        epochs_now = most if epochs == then else min(epochs, most)
        return took / epochs * epochs_now * images / of * self.size

    def _rows(
        self, cell: Cell, curves: list[Curve], lr: float, random: np.random.Generator
    ) -> Iterator[Row]:
        near = sorted(curves, key=lambda curve: abs(math.log(curve.lr / lr)))
        first = int(random.integers(min(NEAREST, len(near))))
        drawn = [near[first], *near[:first], *near[first + 1 :]]
        scale, metric = self.scale(cell), self.config.search.metric
        best: Row | None = None
        since = 0
        for row in _continued(drawn, self.config.training.max_epochs):
            since = 0 if is_better(row, best, metric) else since + 1
            best = row if since == 0 else best
            yield {**row, "seconds": row["seconds"] * scale}
            if since >= self.config.training.patience:
                return


def _continued(curves: list[Curve], epochs: int) -> Iterator[Row]:
    """The first curve; where it was cut off, the next that is longer, put to its end.

    Past all of them a curve that patience had stopped stays where it is, and another gets better
    for ever, which is the most that it can cost.
    """
    curve, shift = curves[0], dict.fromkeys(METRICS, 0.0)
    last: Row = {}
    for epoch in range(1, epochs + 1):
        if epoch > len(curve.rows) and not curve.stopped:
            longer = next((c for c in curves if len(c.rows) >= epoch), None)
            if longer is not None:
                before = longer.rows[epoch - 2]
                curve, shift = longer, {name: last[name] - before[name] for name in METRICS}
        if epoch <= len(curve.rows):
            row = curve.rows[epoch - 1]
            last = row | {name: row[name] + shift[name] for name in METRICS}
        elif not curve.stopped:
            better = {"val_loss": -1e-6, "val_acc": 1e-6, "val_f1": 1e-6}
            last = last | {name: last[name] + better[name] for name in METRICS}
        yield last | {"epoch": epoch}


class MemoryLedger(Ledger):
    """A ledger that keeps its rows to itself."""

    def flush(self) -> None:
        self._pending.clear()


class Simulation:
    """One study on so many slots.

    Slots are given away as a run gives them: to encoders first, at most all but one at a time,
    then to trials as the search hands them out, and to the repeats of the final evaluation
    whose encoder is there.

    Args:
        curves: what its trials are drawn from.
        slots: how many classifiers or encoders are trained at once.
        seed: of the search and of the draws.
    """

    def __init__(self, curves: Curves, slots: int, seed: int):
        self.config = curves.config.model_copy(update={"seed": seed})
        self.curves, self.slots = curves, slots
        self.cells = cells_of(self.config)
        self.overhead = curves.measured.overhead
        self.random = np.random.default_rng(seed_for(seed, "forecast", slots))
        self.now = self.busy = 0.0
        self._jobs: list[tuple[float, int, Job]] = []  # when each goes on, a heap
        self._number = 0
        self._encoders: dict[Hashable, int] = {}  # waiting: key -> images
        self._known: set[Hashable] = set()
        self._made: set[Hashable] = {None}
        self._pretraining = self._live = 0
        self._workers = {"task": 0, "actor": 0}  # processes that have imported everything
        self._idle = dict(self._workers)

    def run(self) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="mariposa-forecast-") as folder:
            self.ledger = MemoryLedger(Location(folder))
            self.search = StudySearch(self.config, self.ledger, self._ready)
            self._want(self.cells, [None])
            self._until_idle(self._fill_search)
            searched = self.now
            self._idle["task"] = self._workers["task"]
            self._waiting = list(repeats_to_run(self.config, self.ledger))
            cells = [one.trained_as for one in self._waiting]
            self._want(cells, range(self.config.evaluation.repeats))
            self._until_idle(self._fill_evaluation)
        wall = self.now + self.overhead.fixed
        first = self.overhead.worker  # nothing is trained before
        return Outcome(wall, searched - first, self.now - searched, self.busy)

    def _until_idle(self, fill: Callable[[], None]) -> None:
        while True:
            fill()
            if not self._jobs:
                return
            self.now, _, job = heapq.heappop(self._jobs)
            self._go_on(job)

    def _go_on(self, job: Job) -> None:
        wait = next(job, None)
        if wait is not None:
            self._number += 1  # among equals the first that came
            heapq.heappush(self._jobs, (self.now + wait, self._number, job))

    @property
    def _free(self) -> int:
        return self.slots - len(self._jobs)

    def _start(self, kind: str, job: Job) -> None:
        self._go_on(self._in_worker(kind, job))

    def _in_worker(self, kind: str, job: Job) -> Job:
        """The job in a process that has run before, or in a new one."""
        if self._idle[kind]:
            self._idle[kind] -= 1
        else:
            self._workers[kind] += 1
            yield self.overhead.worker
        for seconds in job:
            self.busy += seconds
            yield seconds
        self._idle[kind] += 1

    def _ready(self, cell: Cell, repeat: int | None = None) -> bool:
        cells = trained_cells(self.config, cell)
        return all(encoder_key(self.config, one, repeat) in self._made for one in cells)

    def _want(self, cells: list[Cell] | tuple[Cell, ...], repeats: list[None] | range) -> None:
        for repeat in repeats:
            for cell in [t for one in cells for t in trained_cells(self.config, one)]:
                key = encoder_key(self.config, cell, repeat)
                if key is not None and key not in self._known:
                    self._known.add(key)
                    self._encoders[key] = self._images(cell)

    def _images(self, cell: Cell) -> int:
        """Images that the cell's encoder is pretrained on."""
        counts, recipe = self.curves.counts, self.config.recipe(cell.variant)
        if recipe.pretrain_on == "drawn":
            return recipe.drawn.train
        unlabelled = recipe.pretrain_on == "unlabelled"
        return sum(counts.train) - (counts.labelled(cell.label_ratio) if unlabelled else 0)

    def _fill_encoders(self) -> None:
        while self._encoders and self._free and self._pretraining < max(1, self.slots - 1):
            key = next(iter(self._encoders))
            self._pretraining += 1
            self._start("task", self._pretrain(key, self._encoders.pop(key)))

    def _pretrain(self, key: Hashable, images: int) -> Job:
        yield self.curves.encoder(images, self.random)
        self._pretraining -= 1
        self._made.add(key)

    def _fill_search(self) -> None:
        self._fill_encoders()
        limit = self.config.search.max_seconds
        if limit is not None and self.now > limit and not self.search.stopped:
            self.search.stop()
        while self._free:
            trial = self.search.next_trial()
            if trial is None:
                return
            self._start("actor", self._train(trial))

    def _train(self, trial: Trial) -> Job:
        for row in self.curves.trial(trial.cell, trial.lr, self.random):
            yield row["seconds"]
            if not self.search.report(trial, row):
                break
        self.search.end(trial)
        yield self.overhead.between

    def _fill_evaluation(self) -> None:
        self._fill_encoders()
        for one in [one for one in self._waiting if self._ready(one.trained_as, one.repeat)]:
            if not self._free:
                return
            self._waiting.remove(one)
            self._start("task", self._evaluate(one))

    def _evaluate(self, one: Repeat) -> Job:
        for row in self.curves.repeat(one.cell, one.lr, self.random):
            yield row["seconds"]
        yield self.curves.beside(one.cell)


def size_factor(config: Config, measured: Config) -> float:
    """How much more an image costs by its pixels and the network's width."""
    pixels = (config.data.image_size / measured.data.image_size) ** 2
    return pixels * config.encoder.width / measured.encoder.width


def simulate(curves: Curves, slots: int, studies: int | None = None) -> list[Outcome]:
    """The study with so many slots, with one seed after another from its own."""
    seeds = range(curves.config.seed, curves.config.seed + (studies or studies_of(curves.config)))
    return [Simulation(curves, slots, seed).run() for seed in seeds]


def studies_of(config: Config) -> int:
    """How many are simulated."""
    return SIMULATED if trials_of(config) <= LARGE else 3


def trials_of(config: Config) -> int:
    """Of all cells together."""
    return len(cells_of(config)) * config.search.trials
