"""The search on Ray Tune: one Tuner for all cells.

`study.search.StudySearch` decides everything; what follows only translates. Tune asks the
`CellSearcher` for trials and the `CellScheduler` about results, and both pass on to it.

Ray's side of it, found in its sources (2.60):

- A result that stops a trial reaches the scheduler only, and every ending reaches the searcher
  as the same call; so the scheduler records, and the searcher closes.
- ``num_samples`` caps a searcher, and defaults to 1.
- A searcher that answers None is asked again; with no trial alive, in a loop that calls nothing
  else. So whatever has to go on meanwhile happens in `suggest`.
- What `on_trial_complete` raises is taken for the trial's own failure: so it is kept, and raised
  at the next turn.
- What Tune runs again itself it may lose: a trial that was to take over the actor of one that has
  ended is given up at once if the actor dies at that moment, as the death is counted twice. So
  its own ``max_failures`` is 0, and a trial whose process or machine is lost is handed out anew.
- An actor whose trial was stopped and that gets no other ends at once, with all child processes: so
  that its W&B run is closed first, the trial's thread has itself waited for.
- An actor that Ray ends for want of memory raises what Tune does not know for a death: all ends.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from study.capacity import Capacity
from study.cells import Cell
from study.chosen import settings_of
from study.material import Material, checkpoint_file
from study.records import Row
from study.search import StudySearch, Trial
from study.tasks import is_out_of_memory, loses_the_gpu, one_line

CLOSING_SECONDS = 10.0  # for what a stopped trial has to close
LOST_PROCESSES = 10  # a trial that loses more is FAIL
GOES_ON = "it runs again, from its checkpoint if it has one"


def run_trial(config: dict[str, Any], material: Material) -> None:
    """What Ray Tune runs in an actor: one trial, each epoch reported.

    A trial that raises reports that as its last result and ends in good order. Where it has lost
    its GPU, its process must not be given to the next trial, and raises.
    """
    from study.fitting import Checkpoint
    from study.tracking import tracker
    from study.trial import train_classifier

    trial: Trial = Trial(**config["trial"] | {"cell": Cell(**config["trial"]["cell"])})
    node = ray.util.get_node_ip_address()

    in_report = _waited_for()

    def report(row: Row) -> None:
        tracked.epoch(row)
        in_report.set()
        tune.report({**row, "node": node})
        in_report.clear()

    try:
        with tracker(material, trial.trial_id, trial.fit_name, "search", trial.facts) as tracked:
            train_classifier(
                material,
                trial.trained_as,
                lr=trial.lr,
                settings=settings_of(trial.settings),
                seed=trial.seed,
                report=report,
                logger=tracked.loggers,
                checkpoint=Checkpoint(material.run, trial.fit_name),
            )
    except Exception as error:
        if loses_the_gpu(error):
            tune.report({"lost": one_line(error), "node": node})
            raise
        kind = "out_of_memory" if is_out_of_memory(error) else "error"
        tune.report({kind: one_line(error), "node": node})


def _waited_for() -> threading.Event:
    """While the event is set, Tune waits for this thread when it stops the trial; else as ever."""
    thread, in_report = threading.current_thread(), threading.Event()
    join = thread.join

    def patient_join(timeout: float | None = None) -> Any:
        wait = timeout is not None and in_report.is_set()
        return join(CLOSING_SECONDS if wait else timeout)

    thread.join = patient_join  # type: ignore[method-assign]
    return in_report


def run_search(
    material: Material,
    search: StudySearch,
    capacity: Capacity,
    room: Callable[[], int],
    tick: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Run all trials that the search hands out, until there is none that could start.

    That may be because their encoders are not there yet. Tune's actors, which are kept for the
    next trial, would hold the processors that the encoders wait for; so they end first.

    A trial that runs out of a shared GPU's memory is put off; when those that run have ended,
    all go on with a larger share of a GPU each.

    Args:
        material: what each trial works on.
        search: decides which, and how they end.
        capacity: what a trial gets.
        room: how many may run at once.
        tick: called at every turn of the driver; may raise to end the search.
        say: shows a line to the user.
    """
    lost = Losses()
    while search.can_start:
        _run_tuner(material, search, capacity, room, tick, say, lost)
        if search.postponed:
            capacity.enlarge()
            say(f"out of GPU memory: from now on each trial gets {capacity.gpus:g} of a GPU")
            search.take_up_postponed()


def _run_tuner(
    material: Material,
    search: StudySearch,
    capacity: Capacity,
    room: Callable[[], int],
    tick: Callable[[], None],
    say: Callable[[str], None],
    lost: Losses,
) -> None:
    most = len(search.cells) * material.config.search.trials * (1 + LOST_PROCESSES)
    running: dict[str, Trial] = {}
    searcher = CellSearcher(search, running, material, room, tick, say, lost)
    with tempfile.TemporaryDirectory(prefix="mariposa-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, material=material),
                {name.lower(): n for name, n in capacity.per_trial.items() if n},
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=CellScheduler(search, running, capacity, lost),
                num_samples=most,
                max_concurrent_trials=most,  # fewer: the searcher's own limit follows the cluster
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["trial"]["trial_id"],
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                callbacks=[_Tick(searcher.turn)],
            ),
        )
        try:
            tuner.fit()
        except RuntimeError as error:
            if not isinstance(error.__cause__, ray.exceptions.RayError):
                raise
            searcher.take_back()


class _Stateless:
    """Tune pickles its searcher, scheduler and callbacks; theirs is the ledger's state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Losses:
    """The processes that trials have lost.

    Attributes:
        times: how many, by trial.
        reasons: of the next loss, where a trial could say.
    """

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}

    def add(self, trial_id: str) -> tuple[int, str]:
        """One more: how many there are now, and why."""
        self.times[trial_id] += 1
        return self.times[trial_id], self.reasons.pop(trial_id, "its process was lost")


class CellSearcher(_Stateless, Searcher):
    """Hands out the search's trials."""

    def __init__(
        self,
        search: StudySearch,
        running: dict[str, Trial],
        material: Material,
        room: Callable[[], int],
        tick: Callable[[], None],
        say: Callable[[str], None],
        lost: Losses,
    ):
        super().__init__(metric=search.metric, mode=search.config.search.mode)
        self.search, self.running = search, running
        self.material, self.room, self.tick, self.say = material, room, tick, say
        self.failed: Exception | None = None
        self.lost = lost
        self._failed_cells: set[Cell] = set()

    def turn(self) -> None:
        """At every turn of the driver."""
        if self.failed is not None:
            raise self.failed
        self.tick()

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Say that `suggest` keeps to a limit of its own, as machines come and go."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self.turn()
        if not (self.running or self.search.can_start):
            return Searcher.FINISHED
        if len(self.running) >= self.room():
            return None
        trial = self.search.next_trial()
        if trial is None:
            return None
        self.running[trial_id] = trial
        cell = {"variant": trial.cell.variant, "label_ratio": trial.cell.label_ratio}
        return {"trial": {**vars(trial), "cell": cell}}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        try:
            self._end(self.running.pop(trial_id), (result or {}).get("node"), lost=error)
        except Exception as caught:  # Tune would take it for the trial's own
            self.failed = self.failed or caught

    def take_back(self) -> None:
        """Count all that run as lost: Tune has ended them."""
        while self.running:
            self._end(self.running.popitem()[1], None, lost=True)

    def _end(self, trial: Trial, node: str | None, lost: bool) -> None:
        if trial in self.search.postponed:
            return
        if lost:
            times, reason = self.lost.add(trial.trial_id)
            if times <= LOST_PROCESSES:
                if not self.search.stopped:
                    self.say(f"{trial.trial_id}: {reason}; {GOES_ON}")
                self.search.take_up([trial])
                return
            self.search.fail(trial, f"{reason} ({times} in all)")
        row = self.search.end(trial, node)
        if row["state"] == "FAIL" and trial.cell not in self._failed_cells:
            self._failed_cells.add(trial.cell)  # the others of a cell tend to fail alike
            self.say(f"{trial.trial_id} failed: {row['error']}")
        checkpoint_file(self.material.run, trial.fit_name).delete()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all state is in the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: all state is in the ledger."""


class CellScheduler(_Stateless, FIFOScheduler):
    """Records each result and stops trials as the search says."""

    def __init__(
        self, search: StudySearch, running: dict[str, Trial], capacity: Capacity, lost: Losses
    ):
        super().__init__()
        self.search, self.running, self.capacity, self.lost = search, running, capacity, lost

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        known = self.running[trial.trial_id]
        if "out_of_memory" in result and self.capacity.shares_gpus:
            self.search.postpone(known)
            return TrialScheduler.STOP
        if "lost" in result:  # its last words
            self.lost.reasons[known.trial_id] = result["lost"]
            return TrialScheduler.CONTINUE
        if "out_of_memory" in result or "error" in result:
            self.search.fail(known, result.get("error") or result["out_of_memory"])
            return TrialScheduler.STOP
        row = {name: result[name] for name in _ROW}
        goes_on = self.search.report(known, row)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leave it to Tune's own queue, which is FIFO; the inherited way looks at all trials."""


_ROW = ("epoch", "train_loss", "val_loss", "val_acc", "val_f1", "seconds", "ended")


class _Tick(_Stateless, tune.Callback):
    def __init__(self, tick: Callable[[], None]):
        self.tick = tick

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.tick()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Drop what Tune has computed of the trial's metrics, 40 KB; the ledger has them."""
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()
