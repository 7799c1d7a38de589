"""The search: one Optuna study a cell, and what to run next over all cells.

Nothing here knows Ray: `StudySearch` is asked for a trial, told each epoch, and told how the
trial ended; `study.tuning` connects it to Ray Tune, and a ten-line loop can drive it as well.
All of its state comes from the ledger, so that a resumed search is the one that was interrupted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from study.cells import Cell, Hyperparameter, cells_of, searched, trial_number
from study.choosing import best_epoch, score
from study.chosen import file_name, from_point, settings_of, to_point
from study.config import Config
from study.records import FINISHED, Ledger, Row
from study.samplers import SAMPLERS, Point, make
from study.sections import Search
from study.seeds import seed_for
from study.stopping import Rungs

optuna.logging.set_verbosity(optuna.logging.WARNING)
Direction = Literal["maximize", "minimize"]
GOOD = 25  # of the best trials that a sampler goes on to see: TPE tells no more from the rest
CUT_SHORT = "search.max_seconds"
"""The error of a trial that is PRUNED because the time is over, not for its scores."""
_STATES = {"COMPLETE": TrialState.COMPLETE, "PRUNED": TrialState.PRUNED, "FAIL": TrialState.FAIL}


class CellSearch:
    """One cell's Optuna study.

    The sampler of trial n is seeded by (study seed, cell, n) alone: an interrupted search goes
    on with the points that it would have tried, and repeats none.

    Samplers look at every trial of their study for each new one. So that a trial of a large search
    costs no more than one of a small one, the study that is asked is begun anew every memory / 2
    trials, with the best and the latest ones (where the sampler can do without the others);
    `finished` has them all, as they ended.

    Args:
        cell: its name.
        space: what is searched.
        search: the budget, the metric and the sampler.
        seed: the study's.
    """

    def __init__(self, cell: str, space: Iterable[Hyperparameter], search: Search, seed: int):
        self.cell, self.search, self.seed = cell, search, seed
        self.space = tuple(space)
        self.sampler = SAMPLERS[search.sampler]
        self.distributions = {h.name: _distribution(h) for h in self.space}
        self.direction: Direction = "maximize" if search.mode == "max" else "minimize"
        self.study = optuna.create_study(study_name=cell, direction=self.direction)
        self.started = 0  # trials so far, in any state
        self.finished: list[tuple[int, FrozenTrial]] = []  # numbers and trials, as they ended
        self._seen: list[tuple[int, FrozenTrial]] = []  # the sampler's view of the latest and best
        self._running: dict[int, tuple[optuna.Study, optuna.Trial]] = {}

    def ask(self, known: Point | None = None) -> tuple[int, dict[str, Any]]:
        """The next trial's number and its point: a number or a choice for each hyperparameter.

        Args:
            known: the point of a trial that is on record; otherwise Optuna chooses. The first
                trial is the paper's own configuration, where the space has it.
        """
        number = self._begin()
        if known is None and number == 0 and all(h.has(h.first) for h in self.space):
            known = {h.name: h.first for h in self.space}
        seed = seed_for(self.seed, "sampler", self.cell, number)
        self.study.sampler = make(self.sampler, seed, self.search.trials, len(self.space), known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self.study.ask(self.distributions)
        self._running[number] = self.study, trial
        return number, trial.params

    def report(self, number: int, epoch: int, value: float) -> None:
        self._running[number][1].report(value, epoch)

    def tell(
        self,
        number: int,
        state: str,
        value: float | None,
        record: Row | None = None,
        epochs: Iterable[Row] = (),
    ) -> None:
        """How the trial ended.

        Args:
            number: of the trial.
            state: COMPLETE, PRUNED or FAIL.
            value: its best one, if it has any.
            record: its row, and
            epochs: those of its epochs, for who looks at the study later; samplers do not.
        """
        study, trial = self._running.pop(number)
        shown = _STATES[state]
        if shown == TrialState.PRUNED and value is not None and not self.sampler.ranks_pruned:
            shown = TrialState.COMPLETE
        seen = study.tell(trial, value if shown == TrialState.COMPLETE else None, state=shown)
        if self.sampler.memory is not None:
            self._seen.append((number, seen))
        ended = _as_it_ended(seen, _STATES[state])
        _add_record(ended, record or {}, epochs)
        self.finished.append((number, ended))
        if study is not self.study:
            self.study.add_trial(seen)

    def replay(self, row: Row, values: Mapping[int, float], epochs: Iterable[Row] = ()) -> None:
        """A finished trial from the records, with its value at each epoch, and their rows."""
        number, _ = self.ask(self.point_of(row))
        for epoch, value in values.items():
            self.report(number, epoch, value)
        self.tell(number, row["state"], row[self.search.metric], row, epochs)

    def point_of(self, row: Row) -> Point:
        """What a trial on record was tried with."""
        return to_point(row, [h.name for h in self.space])

    def _begin(self) -> int:
        """The number of a trial that begins now."""
        number, self.started = self.started, self.started + 1
        memory = self.sampler.memory
        if memory is not None and number >= memory and number % (memory // 2) == 0:
            self.study = optuna.create_study(study_name=self.cell, direction=self.direction)
            self._seen = self._worth_remembering(memory // 2)
            self.study.add_trials([trial for _, trial in self._seen])
        return number

    def _worth_remembering(self, most: int) -> list[tuple[int, FrozenTrial]]:
        complete = [(n, t) for n, t in self._seen if t.state == TrialState.COMPLETE]
        sign = -1 if self.direction == "maximize" else 1
        best = sorted(complete, key=lambda one: sign * (one[1].value or 0.0))[:GOOD]
        latest = sorted(self._seen, key=lambda one: one[0])[GOOD - most :]
        return sorted(dict(best + latest).items())


def _distribution(hyperparameter: Hyperparameter) -> BaseDistribution:
    if hyperparameter.choices:
        return CategoricalDistribution(hyperparameter.choices)
    return FloatDistribution(hyperparameter.low, hyperparameter.high, log=hyperparameter.log)


def _as_it_ended(seen: FrozenTrial, state: TrialState) -> FrozenTrial:
    """A trial without its sampler's notes, and PRUNED where the sampler was shown it COMPLETE."""
    trial = copy(seen)
    trial.system_attrs = {}
    if seen.state != state:
        last = seen.last_step
        trial.state, trial.value = state, None if last is None else seen.intermediate_values[last]
    return trial


def _add_record(trial: FrozenTrial, record: Row, epochs: Iterable[Row]) -> None:
    """As user attributes what Optuna does not know, and when it ran, not when it was replayed."""
    known = ("state", "settings", *trial.params)
    trial.user_attrs = {
        name: value for name, value in record.items() if value is not None and name not in known
    }
    ends = [row for row in epochs if row.get("ended")]  # older studies have none
    if ends:
        begin = min(row["ended"] - (row["seconds"] or 0.0) for row in ends)
        trial.datetime_start = datetime.fromtimestamp(begin)
        trial.datetime_complete = datetime.fromtimestamp(max(row["ended"] for row in ends))


@dataclass(frozen=True)
class Trial:
    """A trial to run: what `study.trial` needs to know of it."""

    trial_id: str
    cell: Cell
    lr: float
    seed: int
    recipe: str | None = None  # where the cell searches it
    settings: str | None = None  # where `search.space` has some, see `study.chosen`

    @property
    def trained_as(self) -> Cell:
        """What is trained."""
        return self.cell.trained_as(self.recipe)

    @property
    def fit_name(self) -> str:
        """Names its checkpoint; a trial whose record was lost may come again at another point."""
        return f"{self.trial_id}-{file_name(self.lr, self.recipe, self.settings)}"

    @property
    def facts(self) -> Row:
        """What it is tracked with: its cell, the variant that is trained, what was chosen, seed."""
        own = {"cell": self.cell.name, "lr": self.lr, "seed": self.seed}
        return self.trained_as.columns | own | settings_of(self.settings)


class StudySearch:
    """All cells' searches and rungs, over one ledger.

    Args:
        config: the study.
        ledger: its rows; what they hold is replayed.
        ready: whether a cell's trials can run yet (its encoder is there).
    """

    def __init__(self, config: Config, ledger: Ledger, ready: Callable[[Cell], bool]):
        self.config, self.ledger, self.ready = config, ledger, ready
        self.metric = config.search.metric
        self.cells = cells_of(config)
        self.searches = {
            c: CellSearch(c.name, searched(config, c.variant), config.search, config.seed)
            for c in self.cells
        }
        self.rungs = {c: self._new_rungs() for c in self.cells}
        self.stopped = False  # `stop` was called
        self.postponed: list[Trial] = []  # until `take_up_postponed`, no new trial
        self._interrupted: list[Trial] = []
        self._history: dict[str, dict[int, Row]] = {}  # trial -> epoch -> row
        self._verdicts: dict[str, tuple[str, str | None]] = {}
        self._replay()

    @property
    def finished(self) -> bool:
        """Whether no trial is left to hand out."""
        if self.stopped or self.postponed:
            return True
        return not (self._interrupted or self._open_cells())

    @property
    def can_start(self) -> bool:
        """Whether `next_trial` has one to give; if not, encoders are waited for, or it is over."""
        if self.finished:
            return False
        cells = [trial.cell for trial in self._interrupted] + self._open_cells()
        return any(self.ready(cell) for cell in cells)

    def next_trial(self) -> Trial | None:
        """The trial to start now; None while none can (or none is left: `finished`).

        Interrupted trials go first. Then the cell that has had the smallest number of trials,
        so that cells finish evenly; among equals the one with most labels, as it takes longest.
        """
        if self.stopped or self.postponed:
            return None
        for trial in self._interrupted:
            if self.ready(trial.cell):
                self._interrupted.remove(trial)
                return trial
        cells = [cell for cell in self._open_cells() if self.ready(cell)]
        if not cells:
            return None
        cell = min(cells, key=lambda c: (self.started(c), -c.label_ratio))
        trial = self._new_trial(cell)
        self.ledger.flush()  # before it starts: its number is never given to another
        return trial

    def _new_trial(self, cell: Cell) -> Trial:
        number, point = self.searches[cell].ask()
        trial_id = cell.trial_id(number)
        seed = seed_for(self.config.seed, "trial", trial_id)
        trial = Trial(trial_id, cell, seed=seed, **from_point(point))
        self.ledger.put("trials", self._row(trial, "RUNNING"))
        return trial

    def started(self, cell: Cell) -> int:
        """Trials of the cell so far, in any state."""
        return self.searches[cell].started

    def report(self, trial: Trial, row: Row) -> bool:
        """An epoch has ended; whether the trial goes on.

        An epoch that was reported before (by a trial that went back to a checkpoint) was judged
        before: its first values stay.
        """
        history = self._history.setdefault(trial.trial_id, {})
        epoch = row["epoch"]
        if self.stopped and epoch < self.config.training.max_epochs:
            self._verdicts[trial.trial_id] = ("PRUNED", CUT_SHORT)
        if epoch not in history:
            history[epoch] = row
            self.ledger.put("epochs", {**row, **trial.cell.columns, "trial_id": trial.trial_id})
            self._judge(trial, epoch, row)
        verdict = self._verdicts.get(trial.trial_id)
        if verdict is not None:  # on disk with the epoch it follows from: a kill parts them never
            ended = self._row(trial, verdict[0], history.values(), error=verdict[1])
            self.ledger.put("trials", ended)
        return verdict is None

    def _judge(self, trial: Trial, epoch: int, row: Row) -> None:
        value = row[self.metric]
        if not math.isfinite(value):
            self.fail(trial, f"{self.metric} is {value} at epoch {epoch}")
            return
        self.searches[trial.cell].report(trial_number(trial.trial_id), epoch, value)
        if not self.rungs[trial.cell].goes_on(trial.trial_id, epoch, score(row, self.metric)):
            self._verdicts[trial.trial_id] = ("PRUNED", None)

    def fail(self, trial: Trial, error: str) -> None:
        """The trial cannot go on; `end` will record it as FAIL with this reason."""
        self._verdicts[trial.trial_id] = ("FAIL", error)

    def end(self, trial: Trial, node: str | None = None) -> Row:
        """The trial has ended: record how, and tell Optuna."""
        history = self._history.get(trial.trial_id, {})
        missing = ("COMPLETE", None) if history else ("FAIL", "ended without a single epoch")
        state, error = self._verdicts.pop(trial.trial_id, missing)
        row = self._row(trial, state, history.values(), node, error)
        self.ledger.put("trials", row)
        self.ledger.flush()
        number = trial_number(trial.trial_id)
        self.searches[trial.cell].tell(number, state, row[self.metric], row, history.values())
        self._history.pop(trial.trial_id, None)
        return row

    def stop(self) -> None:
        """The time is over: no new trial, those that wait are cut short, those that run end with
        their epoch.
        """
        self.stopped = True
        waiting, self._interrupted = self._interrupted, []
        self.take_up(waiting)

    def postpone(self, trial: Trial) -> None:
        """The trial has to go on later, under other circumstances; until then none starts."""
        if self.stopped:
            self._verdicts[trial.trial_id] = ("PRUNED", CUT_SHORT)
        else:
            self.postponed.append(trial)

    def take_up_postponed(self) -> None:
        """Hand out the postponed trials again, first of all."""
        postponed, self.postponed = self.postponed, []
        self.take_up(postponed)

    def take_up(self, trials: list[Trial]) -> None:
        """Hand these out again, first of all; after `stop` they have ended."""
        if not self.stopped:
            self._interrupted = trials + self._interrupted
            return
        for trial in trials:
            self._verdicts[trial.trial_id] = ("PRUNED", CUT_SHORT)
            self.end(trial)

    def give_up(self, cell: Cell, error: str) -> None:
        """Record all trials that the cell has left as FAIL: its encoder cannot be had."""
        kept = [trial for trial in self._interrupted if trial.cell != cell]
        lost = [trial for trial in self._interrupted if trial.cell == cell]
        self._interrupted = kept
        for trial in lost:
            self.fail(trial, error)
            self.end(trial)
        for _ in range(self.config.search.trials - self.started(cell)):
            trial = self._new_trial(cell)
            self.fail(trial, error)
            self.end(trial)

    def _open_cells(self) -> list[Cell]:
        return [cell for cell in self.cells if self.started(cell) < self.config.search.trials]

    def _new_rungs(self) -> Rungs:
        max_epochs = self.config.training.max_epochs
        search = self.config.search
        grace = search.grace_period if search.scheduler == "asha" else max_epochs
        return Rungs(grace, max_epochs, search.reduction_factor)

    def _row(
        self,
        trial: Trial,
        state: str,
        epochs: Iterable[Row] = (),
        node: str | None = None,
        error: str | None = None,
    ) -> Row:
        epochs = list(epochs)
        best = best_epoch(epochs, self.metric) or {}
        row: Row = {"trial_id": trial.trial_id, **trial.cell.columns, "lr": trial.lr}
        row |= {"recipe": trial.recipe, "settings": trial.settings, "seed": trial.seed}
        row |= {"state": state, "node": node, "error": error}
        row |= {"epochs": len(epochs), "seconds": sum(epoch["seconds"] or 0.0 for epoch in epochs)}
        row |= {name: best.get(name) for name in ("val_loss", "val_acc", "val_f1")}
        return row | {"best_epoch": best.get("epoch")}

    def _replay(self) -> None:
        for row in self.ledger.rows("epochs"):
            self._history.setdefault(row["trial_id"], {})[row["epoch"]] = row
        by_name = {cell.name: cell for cell in self.cells}
        rows = sorted(self.ledger.rows("trials"), key=lambda row: trial_number(row["trial_id"]))
        for row in rows:
            cell = by_name[row["cell"]]
            while self.started(cell) < trial_number(row["trial_id"]):
                self._interrupted.append(self._new_trial(cell))  # its record was lost
            self._replay_trial(cell, row)

    def _replay_trial(self, cell: Cell, row: Row) -> None:
        history = self._history.get(row["trial_id"], {})
        # A metric that was no number was never judged.
        judged = {e: past for e, past in sorted(history.items()) if past[self.metric] is not None}
        values = {epoch: past[self.metric] for epoch, past in judged.items()}
        for epoch, past in judged.items():
            self.rungs[cell].record(row["trial_id"], epoch, score(past, self.metric))
        if row["state"] in FINISHED:
            self.searches[cell].replay(row, values, history.values())
            self._history.pop(row["trial_id"], None)
            return
        number, point = self.searches[cell].ask(self.searches[cell].point_of(row))
        for epoch, value in values.items():
            self.searches[cell].report(number, epoch, value)
        chosen = from_point(point)
        self._interrupted.append(Trial(row["trial_id"], cell, seed=row["seed"], **chosen))
