"""One driver a run where the file system has no locks, as on object stores and some shares."""

from __future__ import annotations

import errno
import multiprocessing
import time
from pathlib import Path

import pytest

from analysis.liveness import LOCK
from data.storage import InputError, Location
from study import driver
from study.driver import only_driver

pytestmark = pytest.mark.timeout(60)


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture(autouse=True)
def _quick_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver.fcntl, "flock", no_locks)
    monkeypatch.setattr(driver, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(driver, "SILENCE_SECONDS", 0.8)


def test_a_second_driver_is_bad_input(tmp_path: Path) -> None:
    run = Location(tmp_path / "run")
    with only_driver(run):
        with pytest.raises(InputError, match="another process is running this study"):
            with only_driver(run):
                pass
        assert (tmp_path / "run" / LOCK).is_file()
    assert not (tmp_path / "run" / LOCK).exists()
    started = time.monotonic()
    with only_driver(run):  # the first has said goodbye
        assert time.monotonic() - started < 0.5


def test_a_dead_driver_is_followed_after_a_while(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOCK).write_text("dead 12")
    started = time.monotonic()
    with only_driver(Location(tmp_path)):
        assert time.monotonic() - started >= 0.8
        assert not (tmp_path / LOCK).read_text().startswith("dead")
    assert "did not say goodbye" in capsys.readouterr().out


def drive(folder: Path) -> None:
    with only_driver(Location(folder)):
        time.sleep(30)
        (folder / "written").touch()


def test_a_driver_that_was_taken_for_dead_ends_without_writing(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=drive, args=(tmp_path,))
    process.start()
    limit = time.monotonic() + 20
    while not (tmp_path / LOCK).is_file() or not (tmp_path / LOCK).read_text():
        assert time.monotonic() < limit
        time.sleep(0.01)
    Location(tmp_path / LOCK).write_text("another 0")
    process.join(20)
    assert process.exitcode == 1
    assert (tmp_path / LOCK).read_text() == "another 0"
    assert not (tmp_path / "written").exists()
