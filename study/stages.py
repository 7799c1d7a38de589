"""The parts of a study that run on Ray: encoders, search, final evaluation, features."""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from analysis.load import CAPPED, is_capped
from analysis.wording import counted
from data.storage import StorageError
from study.address import is_local
from study.capacity import Capacity
from study.cells import Cell, all_trained_cells, cells_of, trained_cells
from study.cluster import connected, require_seen_by_all
from study.encoders import plan_encoder
from study.evaluation import (
    Repeat,
    evaluate,
    forget_outdated,
    noise_levels,
    record,
    repeats_to_run,
)
from study.features import (
    CONTROLS,
    cluster_in_noise,
    extract_features,
    has_clusters,
    has_features,
    write_feature_files,
)
from study.gpu_memory import measure, share_for
from study.material import Material
from study.optuna_file import OptunaFile
from study.pretraining import EncoderPool
from study.progress import Count, Progress
from study.reconstructions import has_reconstructions, reconstruct, write_reconstructions
from study.records import Ledger, Row
from study.search import StudySearch
from study.tasks import Tasks, one_line
from study.tuning import run_search
from study.wandb_server import closing_notice, notice


def run_stages(material: Material, address: str | None) -> list[str]:
    """Do what the run's records do not have yet.

    Args:
        material: images and configuration.
        address: of a Ray cluster; None: the one this process is in, or a local one.

    Returns:
        Why cells have no result, a line each.

    Raises:
        InputError: no cluster answers, or a record is damaged.
        KeyboardInterrupt: interrupted; all records are saved.
        StorageError: storage refused for too long; what was recorded by then is there.
    """
    failures = _run_on_ray(material, address)
    line = closing_notice(material.config, material.run)
    if line:
        print(line, flush=True)
    return failures


def _run_on_ray(material: Material, address: str | None) -> list[str]:
    with connected(address):
        require_seen_by_all(material.run)
        alone = is_local(address)
        capacity = Capacity(material.config, alone)
        if alone:
            capacity.require_room()
        ledger = Ledger(material.run)
        progress = Progress(material.config, ledger, cells_of(material.config))
        with progress, _interruptible() as check, _saved_at_the_end(ledger):
            progress.say_all(ledger.repaired)
            progress.say_all(filter(None, [notice(material.config, material.run)]))
            return Stages(material, ledger, progress, capacity, check).run()


@contextmanager
def _saved_at_the_end(ledger: Ledger) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise  # a last save would only wait once more; the journal is there
    except BaseException:
        ledger.save(closing=True)
        raise
    ledger.save(closing=True)


class Stages:
    """The parts of a study, with what they share."""

    def __init__(
        self,
        material: Material,
        ledger: Ledger,
        progress: Progress,
        capacity: Capacity,
        check: Callable[[], None],
    ):
        self.material, self.ledger, self.progress = material, ledger, progress
        self.config, self.capacity, self.check = material.config, capacity, check
        self.cells = cells_of(self.config)
        self.pool = EncoderPool(material, ledger, self.capacity)
        self.search = StudySearch(self.config, ledger, self.encoders_are_ready)
        self.database = OptunaFile(material.run)
        self.deadline = math.inf  # until the search begins
        if is_capped(material.run, self.config.search.trials):  # in an earlier session
            unfinished = any(row["state"] == "RUNNING" for row in ledger.rows("trials"))
            if ledger.repaired and unfinished:  # they had ended, and a stopped search runs none
                (material.run / CAPPED).delete()
            else:
                self.search.stop()
        self.failures: dict[str, str] = {}
        self.progress.aside = self._encoders_in_work

    def run(self) -> list[str]:
        self.share_gpus()
        self.pretrain_and_search()
        self.evaluate()
        self.extract_features()
        self.cluster_in_noise()
        self.reconstruct()
        self.quantise()
        self.say_how_many_failed()
        with suppress(OSError):  # a machine that was cut off may still write there
            (self.material.run / "checkpoints").delete()
        cells = [cell.name for cell in self.cells]
        of_cells = [cell for cell in cells if cell in self.failures]
        others = [part for part in self.failures if part not in cells]
        return [f"{each}: {self.failures[each]}" for each in of_cells + others]

    def tick(self) -> None:
        """What has to go on whatever the driver is doing."""
        self.check()
        self.pool.collect()
        if self.ledger.save_if_due():
            self.database.save(self.search.searches.values())
        if time.monotonic() > self.deadline:
            self.end_search()
        self.progress.say_all(self.capacity.waits())
        self.progress.show()

    def end_search(self) -> None:
        """At search.max_seconds: for good, unless more trials are asked for."""
        if not self.search.finished:  # else at a later tick: trials may be put off for a while
            (self.material.run / CAPPED).write_text(str(self.config.search.trials))
            self.search.stop()
            self.progress.say(
                f"search.max_seconds ({self.config.search.max_seconds:g} s) is over: no new trial "
                f"starts, and running ones end with their epoch"
            )
            self.progress.enter("end of the search")

    def share_gpus(self) -> None:
        """Replace the estimate of a trial's share of a GPU by what its networks need there."""
        if self.config.resources.gpus_per_trial != "auto" or not self.capacity.gpus:
            return
        self.progress.enter("measuring GPU memory")
        self.capacity.gpus, share = 1.0, self.capacity.gpus
        tasks = Tasks(measure, self.capacity)
        tasks.add("memory", self.material)
        while len(tasks):
            for _, result in tasks.ended(0.2):
                if isinstance(result, Exception):
                    self.progress.say(f"GPU memory not measured ({one_line(result)}): estimated")
                else:
                    share = share_for(*result)
            self.tick()
        self.capacity.gpus = share
        self.progress.say(f"each trial gets {share:g} of a GPU")

    def pretrain_and_search(self) -> None:
        total = len(self.cells) * self.config.search.trials
        self.progress.enter("search", Count("trials", self._ended_trials, total))
        if self.config.search.max_seconds is not None:
            self.deadline = time.monotonic() + self.config.search.max_seconds
        if not self.search.finished:
            self.pool.want(all_trained_cells(self.config), [None])
        while not self.search.finished:
            # Trials that need no encoder run beside its pretraining, if there is room for both.
            while (
                self.pool.in_work
                and not self.search.stopped
                and (self.capacity.slots() == 1 or not self.search.can_start)
            ):
                self.pool.collect(0.5)
                self.search_tick()
            self.search_tick()  # gives up what the last failed encoder was for
            run_search(
                self.material,
                self.search,
                self.capacity,
                self.room_for_trials,
                self.search_tick,
                self.progress.say,
            )
        self.ledger.save()
        self.database.save(self.search.searches.values())
        for cell in self.cells:
            self._note_if_no_result(cell)

    def room_for_trials(self) -> int:
        """Slots that no encoder is pretrained on, or Tune's actors would take and keep them."""
        return max(1, self.capacity.slots() - self.pool.in_flight)

    def encoders_are_ready(self, cell: Cell) -> bool:
        """Whether each is made, or failed: a trial that takes a failed one is FAIL by itself."""
        several = trained_cells(self.config, cell)
        made = [self.pool.ready(one, None) for one in several]
        failed = [self.pool.failure(one, None) is not None for one in several]
        return any(made) and all(one or other for one, other in zip(made, failed, strict=True))

    def search_tick(self) -> None:
        self.tick()
        for cell in self.cells if self.pool.failed else ():
            several = trained_cells(self.config, cell)
            reasons = [self.pool.failure(one, None) for one in several]
            if None not in reasons:
                self.search.give_up(cell, str(reasons[0]))

    def evaluate(self) -> None:
        forget_outdated(self.config, self.ledger)
        waiting = list(repeats_to_run(self.config, self.ledger))
        total = len(self.cells) * self.config.evaluation.repeats
        done = Count("repeats", lambda: len(self.ledger.rows("evaluations")), total)
        self.progress.enter("final evaluation", done)
        self.pool.want([one.trained_as for one in waiting], range(self.config.evaluation.repeats))
        tasks = Tasks(evaluate, self.capacity)
        while waiting or len(tasks):
            for one in [one for one in waiting if self.pool.ready(one.trained_as, one.repeat)]:
                waiting.remove(one)
                tasks.add(one, self.material, one)
            for one in list(waiting):
                reason = self.pool.failure(one.trained_as, one.repeat)
                if reason is not None:
                    waiting.remove(one)
                    self.failures[one.cell.name] = reason
            if not len(tasks):
                self.pool.collect(0.2)
            for ended, result in tasks.ended(0.2):
                assert isinstance(ended, Repeat)
                if isinstance(result, Exception):
                    reason = f"repeat {ended.repeat}: {one_line(result)}"
                    self.failures[ended.cell.name] = reason
                else:
                    record(self.material, self.ledger, ended, result)
            self.tick()

    def extract_features(self) -> None:
        """Of all images, those of test among them, so only after a final evaluation."""
        self.pool.want(all_trained_cells(self.config), [None])
        made = {row["encoder"] for row in self.ledger.rows("encoders_made")}
        for cell in all_trained_cells(self.config):  # of an earlier session or choice, too
            for repeat in range(self.config.evaluation.repeats):
                plan = plan_encoder(self.material, cell, repeat)
                if plan is not None and plan.key in made:
                    self.pool.want([cell], [repeat])
        if not self.pool.plans or self.config.evaluation.repeats == 0:
            return
        self.progress.enter("features")
        while self.pool.in_work:  # one that was damaged
            self.pool.collect(0.5)
            self.tick()
        tasks = Tasks(extract_features, self.capacity)
        for encoder in (*sorted(self.pool.made), *CONTROLS):
            if not has_features(self.material.run, encoder):
                tasks.add(encoder, self.material, encoder, self.pool.plans.get(encoder))
        write_feature_files(self.material)
        self._finish(tasks)

    def cluster_in_noise(self) -> None:
        """By the search's encoders and the controls, of all images."""
        if not self.pool.plans or not noise_levels(self.config):
            return
        self.progress.enter("clusters in noise")
        plans = {key: p for key, p in sorted(self.pool.plans.items()) if p.repeat is None}
        tasks = Tasks(cluster_in_noise, self.capacity)
        for encoder in (*(key for key in plans if key in self.pool.made), *CONTROLS):
            if not has_clusters(self.material.run, encoder):
                tasks.add(encoder, self.material, encoder, plans.get(encoder))
        self._finish(tasks)

    def reconstruct(self) -> None:
        """What the search's encoders give back of the test images."""
        plans = [p for key, p in sorted(self.pool.plans.items()) if key in self.pool.made]
        plans = [plan for plan in plans if plan.repeat is None]
        if not plans or self.config.evaluation.repeats == 0:
            return
        self.progress.enter("reconstructions")
        tasks = Tasks(reconstruct, self.capacity)
        for plan in plans:
            if not has_reconstructions(self.material.run, plan.key):
                tasks.add(plan.key, self.material, plan)
        self._finish(tasks)
        made = [plan.key for plan in plans if has_reconstructions(self.material.run, plan.key)]
        write_reconstructions(self.material.run, made)

    def _finish(self, tasks: Tasks) -> None:
        while len(tasks):
            for _, result in tasks.ended(0.2):
                if isinstance(result, StorageError):
                    raise result
                if isinstance(result, Exception):  # the study has its answer: report it
                    self.failures[self.progress.phase] = one_line(result)
            self.tick()

    def quantise(self) -> None:
        """Compare the best classifiers with their int8 forms; alone, as it takes their times."""
        if not self.config.evaluation.quantise or not self.ledger.rows("evaluations"):
            return
        self.ledger.save()  # it reads what is on disk
        self.progress.enter("int8")
        tasks = Tasks(quantise_best, self.capacity)
        tasks.add("int8", self.material)
        self._finish(tasks)

    def say_how_many_failed(self) -> None:
        # The trials that took one know only that it is missing.
        self.progress.say_all(self.pool.failed.values())
        trials = self.ledger.rows("trials")
        failed = [row for row in trials if row["state"] == "FAIL"]
        if failed:
            self.progress.say(
                f"{len(failed)} of {len(trials)} trials failed, "
                f"{failed[0]['trial_id']} for one: {failed[0]['error']}"
            )

    def _encoders_in_work(self) -> str:
        return f"pretraining {counted(self.pool.in_work, 'encoder')}" if self.pool.in_work else ""

    def _ended_trials(self) -> int:
        return sum(row["state"] != "RUNNING" for row in self.ledger.rows("trials"))

    def _note_if_no_result(self, cell: Cell) -> None:
        rows = [row for row in self.ledger.rows("trials") if row["cell"] == cell.name]
        reason = why_no_result(rows)
        if reason is None:
            return
        if not self.search.stopped or any(row["state"] == "FAIL" for row in rows):
            self.failures[cell.name] = reason
        elif any(row["state"] == "COMPLETE" for row in self.ledger.rows("trials")):
            self.progress.say(f"{cell.name}: {reason}, before search.max_seconds was over")
        else:
            self.failures[cell.name] = (
                f"{reason}, before search.max_seconds was over; expected more search.trials, or "
                f"another --name with more seconds"
            )


def why_no_result(trials: Sequence[Row]) -> str | None:
    """Why a cell with these trials cannot be evaluated; None where it can.

    The best trial may fail after others were stopped early for being worse than it.
    """
    states = Counter(row["state"] for row in trials)
    if states["COMPLETE"]:
        return None
    if states["FAIL"] and states["FAIL"] == len(trials):
        return f"all {len(trials)} trials failed: {trials[-1]['error']}"
    return f"no trial was completed: {states['FAIL']} failed, {states['PRUNED']} pruned"


def quantise_best(material: Material) -> None:
    """Make ``quantised.parquet`` where it is missing or of other classifiers; runs in a worker."""
    from study.quantisation import has_quantised, quantise_run

    if not has_quantised(material.run, material.config.search.metric):
        quantise_run(material.run, material, seconds=1.0)


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """A function that raises KeyboardInterrupt once SIGINT or SIGTERM has come.

    So the driver ends between two events, with its records whole. A second signal ends it now.
    ``ray job stop`` sends SIGTERM and three seconds later SIGKILL.
    """
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    def check() -> None:
        if received:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
