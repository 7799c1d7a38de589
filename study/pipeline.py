"""A study from a folder of images to its report, top to bottom."""

from __future__ import annotations

import os
import platform
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from analysis.liveness import LOCK
from analysis.load import CAPPED
from analysis.wording import counted
from data.storage import InputError, Location, StorageError, reason_of
from study.address import require_reachable
from study.completeness import missing_or_damaged
from study.config import Config, config_from, differences, grown
from study.driver import only_driver
from study.images import begin, images_of, prepare, with_pooled_split
from study.records import Ledger
from study.study_file import is_study, read_study, write_study

# While a study runs, storage may refuse for so many seconds: a full disk, a server's restart.
STORAGE_PATIENCE = float(os.environ.get("MARIPOSA_STORAGE_PATIENCE", 180.0))
PACKAGES = ("mariposa", "ray", "optuna", "torch", "torchvision", "lightning", "torchmetrics")


class StudyFailedError(Exception):
    """The study ended, but a cell of it has no result: exit code 1."""


def run_study(
    config: Config, out: Location, address: str | None, restart_errored: bool = False
) -> Location:
    """Run, go on with, or grow the study ``out/config.name``; also run trials that are FAIL again.

    1. open: a new run, or the one of that name if its configuration allows
    2. images: found, decoded once, split
    3. encoders: their pretraining starts, as tasks
    4. search: one Tune run over all cells
    5. final evaluation: each cell's chosen configuration, ``evaluation.repeats`` times
    6. features of all images by each encoder; where asked for: noise, reconstructions, int8
    7. report: tables, figures, report.html

    Returns:
        The report.

    Raises:
        InputError: bad input.
        StudyFailedError: a cell has no result. The report is written all the same.
        KeyboardInterrupt: interrupted; everything so far is saved.
    """
    run = out / config.name
    found = on_record(run)
    study = open_study(config, run, found)
    if restart_errored:
        study["state"] = "RUNNING"
    if study["state"] != "COMPLETE":
        _work(config, out, run, found, study, address, restart_errored)
    report = _report(run)
    if study["failures"]:
        raise StudyFailedError("; ".join(study["failures"]))
    return report


def open_study(config: Config, run: Location, found: dict[str, Any] | None) -> dict[str, Any]:
    """The content of ``study.yaml``: new, or what was ``found`` `on_record` of the run.

    Its state is COMPLETE only where nothing is left to do.

    Raises:
        InputError: a run of that name has another configuration, or cannot be made or read.
    """
    if found is None:
        if run.is_file() or any(file.name != LOCK for file in run.children()):
            raise InputError(f"{run}: exists and is no run, expected a new name or a run's folder")
        return _new_study(config)
    study = dict(found)
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
    final = config.evaluation
    missing = missing_or_damaged(run, final.repeats, any(final.noise), final.quantise)
    if study["state"] != "COMPLETE" or grown(before, config) or missing:
        study["state"] = "RUNNING"
    study["config"] = config.model_dump(mode="json")
    return study


def on_record(run: Location) -> dict[str, Any] | None:
    """What ``study.yaml`` holds; None where there is no run of that name.

    Raises:
        InputError: it is torn.
    """
    return read_study(run) if is_study(run) else None


def _new_study(config: Config) -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex[:12],  # two of the same name may start in the same second
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


def _work(
    config: Config,
    out: Location,
    run: Location,
    found: dict[str, Any] | None,
    study: dict[str, Any],
    address: str | None,
    restart_errored: bool,
) -> None:
    """Parts 2 to 6. Until the images are prepared and no other process runs the study, nothing of
    the run has changed on disk.

    Raises:
        InputError: another process has begun or ended the study since it was ``found``.
    """
    folder = images_of(config, study)
    _require_writable(out)
    require_reachable(address)
    with ThreadPoolExecutor(1) as thread:  # for Ray and Optuna: Ctrl-C interrupts this one alone
        loading = thread.submit(import_module, "study.stages")
        material, labels = prepare(config, out, run, study, folder)
        run_stages = loading.result().run_stages
    with only_driver(run):
        if on_record(run) != found:
            raise InputError(
                f"{run}: another process has run this study meanwhile, expected none; "
                f"the same command goes on with it"
            )
        begin(run, study, labels)
        with _recorded(run, study):
            if restart_errored:
                failed = Ledger(run).restart_errored()
                if failed:  # also where search.max_seconds had ended the search
                    (run / CAPPED).delete()
                print(f"to be run again: {counted(failed, 'failed trial')}", flush=True)
            study["failures"] = run_stages(material.patient(STORAGE_PATIENCE), address)


@contextmanager
def _recorded(run: Location, study: dict[str, Any]) -> Iterator[None]:
    """Write ``study.yaml``'s state and seconds, however the block ends."""
    started = time.monotonic() - study["seconds"]

    def write(state: str) -> None:
        seconds = round(time.monotonic() - started, 1)
        write_study(run, study | {"state": state, "seconds": seconds})

    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | InputError | StorageError)
        with suppress(OSError):  # what ended the study says more
            write("INTERRUPTED" if stopped else "FAILED")
        raise
    write("FAILED" if study["failures"] else "COMPLETE")


def _require_writable(out: Location) -> None:
    """Find out before Ray starts.

    Raises:
        InputError: nothing can be written there.
    """
    probe = out / f".part-{uuid.uuid4().hex[:8]}"
    try:
        probe.write_bytes(b"")
        probe.delete()
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({reason_of(error)}); expected a folder"
        ) from None


def _report(run: Location) -> Location:
    from analysis.report import write_report

    print("writing the report: latent maps, tables, figures", flush=True)  # minutes, if large
    return write_report(run)


def _commit() -> str | None:
    handed = os.environ.get("MARIPOSA_COMMIT")  # a job's copy of the checkout has no .git
    if handed:
        return handed
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
