"""A study from a folder of images to its report, top to bottom."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data.demo import write_demo
from data.folders import ImageFolder, find_images
from data.packing import node_cache, pack_images
from data.storage import InputError, Location, StorageError
from study.config import Config, PooledSplit, config_from, differences
from study.material import Material
from study.records import LABELS, amiss, read_study, write_study, write_table

# While a study runs, storage may refuse for so many seconds: a full disk, a server's restart.
STORAGE_PATIENCE = float(os.environ.get("MARIPOSA_STORAGE_PATIENCE", 180.0))
PACKAGES = ("mariposa", "ray", "optuna", "torch", "torchvision", "lightning", "torchmetrics")


class StudyFailedError(Exception):
    """The study ended, but a cell of it has no result: exit code 1."""


def run_study(config: Config, out: Location, address: str | None) -> Location:
    """Run, go on with, or grow the study ``out/config.name``.

    1. open: a new run, or the one of that name if its configuration allows
    2. images: found, decoded once, split
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
        _work(config, out, run, study, address)
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
    final = config.evaluation
    missing = amiss(run, final.repeats, any(final.noise), final.quantise)
    if study["state"] != "COMPLETE" or grows or missing:
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


def _work(
    config: Config, out: Location, run: Location, study: dict[str, Any], address: str | None
) -> None:
    """Parts 2 to 6. Until the images are prepared, nothing of the run has changed on disk."""
    folder = images_of(config, study)
    _require_writable(out)
    _require_reachable(address)
    with ThreadPoolExecutor(1) as thread:
        preparing = thread.submit(prepare, config, out, run, study, folder)
        from study.stages import run_stages  # brings Ray and Optuna, while images are decoded

        material = preparing.result().patient(STORAGE_PATIENCE)
    with _recorded(run, study):
        study["failures"] = run_stages(material, address)


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
        reason = error.strerror or str(error).splitlines()[0]
        raise InputError(f"{out}: cannot be written ({reason}); expected a folder") from None


def _require_reachable(address: str | None) -> None:
    """Find out in seconds; Ray would try for minutes.

    Raises:
        InputError: nothing listens at ``HOST:PORT`` (or ``ray://HOST:PORT``).
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # "auto", "local"
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--address {address}: {error}; expected a Ray cluster") from None


def images_of(config: Config, study: dict[str, Any]) -> ImageFolder | None:
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


def _report(run: Location) -> Location:
    from analysis.report import write_report

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
