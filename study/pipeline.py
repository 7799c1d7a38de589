"""A study from a folder of images to its report, top to bottom."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data.demo import write_demo
from data.folders import ImageFolder, find_images
from data.packing import node_cache, pack_images
from data.storage import InputError, Location
from study.cells import Cell, cells_of
from study.cluster import Tasks, connected, resources_per_trial, slots
from study.config import Config, PooledSplit, config_from, differences
from study.evaluation import Repeat, evaluate, record, repeats_to_run
from study.features import CONTROLS, extract_features, features_file, write_feature_files
from study.material import Material
from study.pretraining import EncoderPool
from study.progress import Progress
from study.records import LABELS, Ledger, read_study, write_study, write_table
from study.search import OptunaFile, StudySearch
from study.tuning import run_search

PACKAGES = ("mariposa", "ray", "optuna", "torch", "torchvision", "lightning", "torchmetrics")


class StudyFailedError(Exception):
    """The study ended, but a cell of it has no result: exit code 1."""


def run_study(config: Config, out: Location, address: str | None) -> Location:
    """Run, go on with, or grow the study ``out/config.name``.

    1. open: a new run, or the one of that name if its configuration allows
    2. images: found, decoded once, split; Ray starts meanwhile
    3. encoders: their pretraining starts, as tasks
    4. search: one Tune run over all cells
    5. final evaluation: each cell's chosen configuration, ``evaluation.repeats`` times
    6. features of all images by each encoder
    7. report: tables, figures, report.html

    Returns:
        The report.

    Raises:
        InputError: bad input.
        StudyFailedError: a cell has no result. The report is written all the same.
        KeyboardInterrupt: interrupted; everything so far is saved.
    """
    run = out / config.name
    study = open_study(config, run)
    if study["state"] != "COMPLETE":
        with _recorded(run, study):
            study["failures"] = _work(config, out, run, study, address)
    report = _report(run)
    if study["failures"]:
        raise StudyFailedError("; ".join(study["failures"]))
    return report


def open_study(config: Config, run: Location) -> dict[str, Any]:
    """The content of ``study.yaml``: new, or of the run of that name.

    Its state is COMPLETE only where nothing is left to do.

    Raises:
        InputError: a run of that name has another configuration, or cannot be made or read.
    """
    if not (run / "study.yaml").is_file():
        if run.is_file() or run.children():
            raise InputError(f"{run}: exists and is no run, expected a new name or a run's folder")
        return _new_study(config)
    study = read_study(run)
    before = config_from(study["config"], str(run / "study.yaml"))
    if study["data"].get("layout") == "pooled":
        config = with_pooled_split(config)
    keys = differences(before, config)
    if keys:
        changes = _changes(before, config, keys)
        raise InputError(
            f"{run}: a run of that name has another configuration ({changes}); "
            f"expected the same, or another --name"
        )
    grows = config.search.trials > before.search.trials
    if study["state"] != "COMPLETE" or grows:
        study["state"] = "RUNNING"
    study["config"] = config.model_dump(mode="json")
    return study


def _new_study(config: Config) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "commit": _commit(),
        "machine": f"{platform.node()}, {os.cpu_count()} CPUs, {platform.machine()}",
        "data": {},
        "state": "RUNNING",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": 0.0,
        "failures": [],
    }


def _changes(before: Config, after: Config, keys: list[str]) -> str:
    def value(config: Any, key: str) -> object:
        for part in key.split("."):
            config = getattr(config, part, None)
        return config

    return ", ".join(f"{k}: {value(before, k)!r} there, {value(after, k)!r} here" for k in keys)


@contextmanager
def _recorded(run: Location, study: dict[str, Any]) -> Iterator[None]:
    """Keep ``study.yaml``'s state and seconds right, however the block ends."""
    started = time.monotonic() - study["seconds"]
    ends = {KeyboardInterrupt: "INTERRUPTED", InputError: "INTERRUPTED"}
    try:
        yield
        study["state"] = "FAILED" if study["failures"] else "COMPLETE"
    except BaseException as error:
        study["state"] = ends.get(type(error), "FAILED")
        raise
    finally:
        study["seconds"] = round(time.monotonic() - started, 1)
        if (run / "study.yaml").is_file():
            write_study(run, study)


def _work(
    config: Config,
    out: Location,
    run: Location,
    study: dict[str, Any],
    address: str | None,
) -> list[str]:
    """Parts 2 to 6; the reasons of cells that have no result."""
    folder = _find(config, study)
    with ThreadPoolExecutor(1) as thread:
        preparing = thread.submit(prepare, config, out, run, study, folder)
        with connected(address):
            material = preparing.result()
            ledger = Ledger(run)
            cells = cells_of(config)
            with Progress(config, ledger, cells) as progress, _interruptible() as check:
                try:
                    return _Stages(material, ledger, progress, check).run()
                finally:
                    ledger.save(closing=True)


class _Stages:
    """Parts 3 to 6, with what they share."""

    def __init__(
        self, material: Material, ledger: Ledger, progress: Progress, check: Callable[[], None]
    ):
        self.material, self.ledger, self.progress = material, ledger, progress
        self.config, self.check = material.config, check
        self.cells = cells_of(self.config)
        self.resources = resources_per_trial(self.config)
        at_once = max(1, slots(self.config) - 1)
        self.pool = EncoderPool(material, ledger, self.resources, at_once)
        self.search = StudySearch(self.config, ledger, lambda cell: self.pool.ready(cell, None))
        self.database = OptunaFile(material.run)
        limit = self.config.search.max_seconds
        self.deadline = None if limit is None else time.monotonic() + limit
        self.failures: dict[str, str] = {}

    def run(self) -> list[str]:
        self.pretrain_and_search()
        self.evaluate()
        self.extract_features()
        self.say_how_many_failed()
        return [f"{cell}: {reason}" for cell, reason in sorted(self.failures.items())]

    def tick(self) -> None:
        """What has to go on whatever the driver is doing."""
        self.check()
        self.pool.collect()
        if self.ledger.save_if_due():
            self.database.save(self.search.searches.values())
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.search.stopped = True
        self.progress.show()

    def pretrain_and_search(self) -> None:
        self.progress.enter("search", self._encoders_in_work)
        if not self.search.finished:
            self.pool.want(self.cells, [None])
            # Trials that need no encoder run beside its pretraining, if there is room for both.
            while self.pool.in_work and slots(self.config) == 1:
                self.pool.collect(0.5)
                self.tick()
            run_search(self.material, self.search, self.search_tick)
        self.ledger.save()
        self.database.save(self.search.searches.values())
        for cell in self.cells:
            self._note_if_all_failed(cell)

    def search_tick(self) -> None:
        self.tick()
        for cell in self.cells if self.pool.failed else ():
            reason = self.pool.failure(cell, None)
            if reason is not None:
                self.search.give_up(cell, reason)

    def evaluate(self) -> None:
        waiting = list(repeats_to_run(self.config, self.ledger))
        total = len(self.cells) * self.config.evaluation.repeats
        self.progress.enter(
            "final evaluation", lambda: f"{len(self.ledger.rows('evaluations'))}/{total} repeats"
        )
        self.pool.want([one.cell for one in waiting], range(self.config.evaluation.repeats))
        tasks = Tasks(evaluate, self.resources)
        while waiting or len(tasks):
            for one in [one for one in waiting if self.pool.ready(one.cell, one.repeat)]:
                waiting.remove(one)
                tasks.add(one, self.material, one)
            for one in list(waiting):
                reason = self.pool.failure(one.cell, one.repeat)
                if reason is not None:
                    waiting.remove(one)
                    self.failures[one.cell.name] = reason
            if not len(tasks):
                self.pool.collect(0.2)
            for ended, result in tasks.ended(0.2):
                assert isinstance(ended, Repeat)
                if isinstance(result, Exception):
                    text = " ".join(str(result).split())[:200]
                    self.failures[ended.cell.name] = f"repeat {ended.repeat}: {text}"
                else:
                    record(self.material, self.ledger, ended, result)
            self.tick()

    def extract_features(self) -> None:
        self.pool.want(self.cells, [None])
        if not self.pool.plans:  # nothing to compare the controls with
            return
        self.progress.enter("features")
        tasks = Tasks(extract_features, self.resources)
        for encoder in (*sorted(self.pool.made), *CONTROLS):
            if not features_file(self.material.run, encoder).is_file():
                tasks.add(encoder, self.material, encoder, self.pool.plans.get(encoder))
        write_feature_files(self.material)
        while len(tasks):
            for _, result in tasks.ended(0.2):
                if isinstance(result, Exception):
                    raise result
            self.tick()

    def say_how_many_failed(self) -> None:
        trials = self.ledger.rows("trials")
        failed = [row for row in trials if row["state"] == "FAIL"]
        if failed:
            self.progress.say(
                f"{len(failed)} of {len(trials)} trials failed, "
                f"{failed[0]['trial_id']} for one: {failed[0]['error']}"
            )

    def _encoders_in_work(self) -> str:
        return f"pretraining {self.pool.in_work} encoder(s)" if self.pool.in_work else ""

    def _note_if_all_failed(self, cell: Cell) -> None:
        rows = [row for row in self.ledger.rows("trials") if row["cell"] == cell.name]
        if rows and all(row["state"] == "FAIL" for row in rows):
            self.failures[cell.name] = f"all {len(rows)} trials failed: {rows[-1]['error']}"


def _find(config: Config, study: dict[str, Any]) -> ImageFolder | None:
    """The images; None where they are gone but were packed before."""
    root = Location(config.data.root) if config.data.root else _demo(config)
    split = "pooled" if isinstance(config.data.split, PooledSplit) else "folders"
    try:
        return find_images(root, split)
    except InputError:
        if study["data"] and not root.is_dir():
            return None
        raise


def _demo(config: Config) -> Location:
    """The drawn data set, on this node's disk; drawn once."""
    sizes = config.data.demo.model_dump()
    name = "-".join(str(value) for value in sizes.values())
    folder = node_cache() / f"demo-{name}"
    if not folder.is_dir():
        print(f"drawing butterflies into {folder}", flush=True)
        write_demo(folder, **sizes)
    return Location(folder)


def prepare(
    config: Config, out: Location, run: Location, study: dict[str, Any], folder: ImageFolder | None
) -> Material:
    """Decode the images if need be, and begin the run on disk.

    Raises:
        InputError: an image is bad, the images have changed since the run began, the splits or
            labels cannot be drawn, or OUT cannot be written.
    """
    packed = out / "packed"
    if folder is not None and folder.layout == "pooled" and config.data.split == "folders":
        print(f"{folder.root}: has no train/, so its images are pooled and split anew", flush=True)
        config = with_pooled_split(config)
    key = study["data"].get("key")
    if folder is not None:
        key, _ = pack_images(folder, config.data.image_size, packed, os.cpu_count() or 1)
    if study["data"] and key != study["data"]["key"]:
        raise InputError(
            f"{config.data.root}: its images are not those that {run} began with, "
            f"expected the same or another --name"
        )
    material = Material(config, run, packed, key)
    labels = list(material.label_rows())
    study["config"] = config.model_dump(mode="json")
    layout = folder.layout if folder is not None else study["data"]["layout"]
    study["data"] = describe_data(material) | {"layout": layout}
    try:
        write_study(run, study)
        write_table(run / "labels.parquet", labels, LABELS)
    except OSError as error:
        raise InputError(f"{run}: cannot be written ({error.strerror or error})") from None
    return material


def with_pooled_split(config: Config) -> Config:
    """The configuration with the default pooled split where it asks for the folders' own."""
    if isinstance(config.data.split, PooledSplit):
        return config
    data = config.data.model_copy(update={"split": PooledSplit()})
    return config.model_copy(update={"data": data})


def describe_data(material: Material) -> dict[str, Any]:
    images = material.images
    return {
        "root": material.config.data.root,
        "key": material.key,
        "fingerprint": images.fingerprint,
        "image_size": images.image_size,
        "species": list(images.species),
        "counts": {name: len(material.rows(name)) for name in ("train", "valid", "test")},
    }


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


def _report(run: Location) -> Location:
    from analysis.report import write_report

    return write_report(run)


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
