"""A frozen encoder's features on the node's disk: made once, deleted at last, never in the way."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from study import feature_cache
from study.feature_cache import UNUSED_SECONDS, kept

pytestmark = pytest.mark.timeout(60)
VALUES = np.arange(6.0).reshape(2, 3)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MARIPOSA_CACHE", str(tmp_path))
    return tmp_path / "features"


def never() -> np.ndarray:
    raise AssertionError("it is there")


def test_it_is_made_once_and_mapped(folder: Path) -> None:
    kept("a.npy", lambda: VALUES)
    found = kept("a.npy", never)
    assert isinstance(found, np.memmap)
    assert (found == VALUES).all()
    assert not found.flags.writeable


def test_files_that_nobody_asks_for_are_deleted(folder: Path) -> None:
    mapped = kept("old.npy", lambda: VALUES)
    kept("used.npy", lambda: VALUES)
    (folder / ".part-0123.npy").touch()  # of a process that was killed
    long_ago = time.time() - UNUSED_SECONDS - 60
    for file in folder.iterdir():
        os.utime(file, (long_ago, long_ago))
    kept("used.npy", never)
    kept("new.npy", lambda: VALUES)
    assert sorted(file.name for file in folder.glob("*.npy")) == ["new.npy", "used.npy"]
    assert not (folder / ".part-0123.npy").exists()
    assert (mapped == VALUES).all(), "who has mapped it keeps it"


@pytest.mark.parametrize("left", [0, 5, 150])
def test_one_that_a_power_cut_has_cut_is_made_again(folder: Path, left: int) -> None:
    kept("a.npy", lambda: VALUES)
    feature_cache._map.cache_clear()  # as in another process
    os.truncate(folder / "a.npy", left)
    assert (kept("a.npy", lambda: VALUES) == VALUES).all()
    assert (kept("a.npy", never) == VALUES).all()


def test_a_full_disk_costs_time_and_no_trial(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path, values: np.ndarray) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache.np, "save", refuse)
    for _ in range(2):
        assert (kept("a.npy", lambda: VALUES) == VALUES).all()
    assert [file.suffix for file in folder.iterdir()] == [".lock"]
