"""The search on Ray Tune: one Tuner for all cells.

`study.search.StudySearch` decides everything; what follows only translates. Tune asks the
`CellSearcher` for trials and the `CellScheduler` about results, and both pass on to it.

Ray's side of it, found in its sources (2.60):

- A result that stops a trial reaches the scheduler only, and every ending reaches the searcher
  as the same call; so the scheduler records, and the searcher closes.
- ``num_samples`` caps a searcher, and defaults to 1.
- A searcher that answers None is asked again; with no trial alive, in a loop that calls nothing
  else. So whatever has to go on meanwhile happens in `suggest`.
- ``max_failures=-1`` would also retry a trial that raises, for ever: `run_trial` catches, and
  only lost processes and machines are retried.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from data.storage import Location
from study.cells import Cell
from study.cluster import one_line, resources_per_trial, slots
from study.material import Material
from study.records import Row
from study.search import StudySearch, Trial

LOST_PROCESSES = 10  # a trial whose process is lost that often is FAIL


def run_trial(config: dict[str, Any], material: Material) -> None:
    """What Ray Tune runs in an actor: one trial, each epoch reported.

    A trial that raises reports that as its last result and ends in good order.
    """
    from study.fitting import Checkpoint
    from study.trial import train_classifier

    trial: Trial = Trial(**config["trial"] | {"cell": Cell(**config["trial"]["cell"])})
    node = ray.util.get_node_ip_address()

    def report(row: Row) -> None:
        tune.report({**row, "node": node})

    try:
        train_classifier(
            material,
            trial.cell,
            lr=trial.lr,
            seed=trial.seed,
            name=trial.trial_id,
            report=report,
            checkpoint=Checkpoint(checkpoint_file(material, trial.trial_id)),
        )
    except Exception as error:
        tune.report({"error": one_line(error), "node": node})


def checkpoint_file(material: Material, trial_id: str) -> Location:
    """Where a trial keeps its checkpoint until it ends."""
    return material.run / "checkpoints" / f"{trial_id}.ckpt"


def run_search(material: Material, search: StudySearch, tick: Callable[[], None]) -> None:
    """Run all trials that the search hands out.

    Args:
        material: what each trial works on.
        search: decides which, and how they end.
        tick: called at every turn of the driver; may raise to end the search.
    """
    if search.finished:
        return
    config = material.config
    todo = len(search.cells) * config.search.trials
    running: dict[str, Trial] = {}
    scheduler = CellScheduler(search, running)
    with tempfile.TemporaryDirectory(prefix="mariposa-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, material=material),
                {name.lower(): n for name, n in resources_per_trial(config).items() if n},
            ),
            tune_config=tune.TuneConfig(
                search_alg=CellSearcher(search, running, material, tick),
                scheduler=scheduler,
                num_samples=todo,
                max_concurrent_trials=slots(config),
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["trial"]["trial_id"],
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=LOST_PROCESSES),
                callbacks=[_Tick(tick)],
            ),
        )
        tuner.fit()


class _Stateless:
    """Tune pickles its searcher, scheduler and callbacks; theirs is the ledger's state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class CellSearcher(_Stateless, Searcher):
    """Hands out the search's trials."""

    def __init__(
        self,
        search: StudySearch,
        running: dict[str, Trial],
        material: Material,
        tick: Callable[[], None],
    ):
        super().__init__(metric=search.metric, mode=search.config.search.mode)
        self.search, self.running = search, running
        self.material, self.tick = material, tick

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self.tick()
        if self.search.finished:
            return Searcher.FINISHED
        trial = self.search.next_trial()
        if trial is None:
            return None
        self.running[trial_id] = trial
        cell = {"variant": trial.cell.variant, "label_ratio": trial.cell.label_ratio}
        plain = {"trial_id": trial.trial_id, "lr": trial.lr, "seed": trial.seed, "cell": cell}
        return {"trial": plain}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial = self.running.pop(trial_id)
        if error:
            self.search.fail(trial, f"its process was lost {LOST_PROCESSES + 1} times")
        self.search.end(trial, (result or {}).get("node"))
        checkpoint_file(self.material, trial.trial_id).delete()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all state is in the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: all state is in the ledger."""


class CellScheduler(_Stateless, FIFOScheduler):
    """Records each result and stops trials as the search says."""

    def __init__(self, search: StudySearch, running: dict[str, Trial]):
        super().__init__()
        self.search, self.running = search, running

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        known = self.running[trial.trial_id]
        if "error" in result:
            self.search.fail(known, result["error"])
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
