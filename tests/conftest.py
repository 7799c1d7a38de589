"""Shared by all tests: a tiny data set, and nothing that reaches outside a temporary folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from analysis.load import load
from data.storage import InputError, Location

SPECIES = ("ATALA", "BROWN ARGUS", "GREAT JAY")
COUNTS = {"train": 8, "valid": 4, "test": 4}  # of each species
REPOSITORY = Path(__file__).parent.parent

Change = dict[str, Any]

# A shell that starts tests in the background lets them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Long files, most of which wait for clusters: begun first, or one is left alone at the end.
LONG = "pipeline machines submit s3 damage full_disk recipe_search reconstructions cluster report"
FIRST = {f"test_{name}.py": place for place, name in enumerate(LONG.split())}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.get(item.path.name, len(FIRST)))


@pytest.fixture(scope="session", autouse=True)
def _nothing_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This node's cache and W&B's files lie in a temporary folder, for subprocesses as well."""
    folder = tmp_path_factory.mktemp("session")
    values = {"MARIPOSA_CACHE": str(folder / "cache"), "WANDB_MODE": "offline"}
    values |= {f"WANDB_{name}_DIR": str(folder / "wandb") for name in ("CACHE", "CONFIG", "DATA")}
    values |= {"WANDB_DIR": str(folder / "wandb"), "PYTHONPATH": str(REPOSITORY)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        for name in ("WANDB_API_KEY", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        yield


def draw_image(file: Path, species: int, size: int = 24) -> None:
    """A striped square: the stripes' direction and colour are the species', the rest is noise."""
    random = np.random.default_rng(crc32(f"{file.parent.parent.name} {file.name}".encode()))
    pixels = random.integers(0, 120, (size, size, 3))
    stripes = (np.arange(size) // 3 % 2).astype(bool)
    pixels[(slice(None), stripes) if species % 2 else stripes] += 60
    pixels[..., species % 3] += 70
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


def draw_folder(root: Path, counts: dict[str, int] | None = None) -> Path:
    """``train/ valid/ test/`` of three species."""
    for split, count in (counts or COUNTS).items():
        for number, species in enumerate(SPECIES):
            for i in range(count):
                draw_image(root / split / species / f"{number}{i:02d}.png", number)
    return root


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three species, 8 + 4 + 4 images each. Read it, do not change it."""
    return draw_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def own_images(tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return draw_folder(tmp_path / "images")


def tiny_tree(root: Path | None = None, **changes: Change) -> Change:
    """A configuration of the smallest study, as YAML would hold it; sections may be changed."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "data": {"root": None if root is None else str(root), "image_size": 16},
        "cells": {"variants": ["A", "B1"], "label_ratios": [50, 100]},
        "encoder": {"width": 2, "epochs": 1, "per_repeat": False},
        "training": {"batch_size": 4, "max_epochs": 4, "patience": 4},
        "search": {"trials": 2, "lr": [1e-4, 1e-2], "grace_period": 1},
        "evaluation": {"repeats": 1},
        "tracking": {"wandb": "disabled"},
    }
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values
    return tree


@pytest.fixture(scope="session")
def make_material(
    tiny_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """``make_material(search={...}, ...)``: the tiny images packed, and a run folder of its own."""
    from data.folders import find_images
    from data.packing import pack_images
    from data.storage import Location
    from study.config import config_from
    from study.material import Material

    packed = Location(tmp_path_factory.mktemp("packed"))
    key, _ = pack_images(find_images(Location(tiny_images)), 16, packed, 1)

    def make(**changes: Change) -> Material:
        config = config_from(tiny_tree(tiny_images, **changes), "a test")
        run = Location(tmp_path_factory.mktemp("runs") / config.name)
        return Material(config, run, packed, key)

    return make


@pytest.fixture(scope="module")
def no_png() -> Iterator[None]:
    """Reports with empty PNG files: to draw them is a quarter of the time of a report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.to_png", lambda figure: b"")
        yield


@dataclass(frozen=True)
class World:
    """A working folder, and the program's commands in it."""

    folder: Path
    environment: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "study", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err


def left_behind(folder: Path) -> list[str]:
    """Runs and unfinished files in a folder, by relative path; packed images are no harm."""
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return [name for name in found if ".part-" in name or not name.startswith("packed")]


def ended_trials(run: str | Path | Location) -> set[str]:
    """Trials of a running study that have ended, as its readers see it at this moment."""
    try:
        trials = load(run).trials
    except InputError:  # not begun
        return set()
    return set(trials.loc[trials["state"] != "RUNNING", "trial_id"])


def environment(**changes: str) -> dict[str, str]:
    return dict(os.environ) | changes
