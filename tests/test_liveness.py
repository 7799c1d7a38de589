"""A study whose driver was killed is INTERRUPTED to whoever reads it."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from records_example import write_run

from analysis import load
from analysis.liveness import LOCK, driver_is_gone, this_machine
from data.storage import Location
from study.driver import only_driver


def _drive(run: Path) -> None:
    with only_driver(Location(run)):
        (run / "begun").touch()
        time.sleep(60)


def test_a_killed_drivers_study_is_interrupted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ratios=(10,), trials=2, repeats=0, state="RUNNING")
    assert load(folder).state == "RUNNING", "there is no lock to ask"
    driver = multiprocessing.get_context("fork").Process(target=_drive, args=(folder,))
    driver.start()
    limit = time.monotonic() + 20
    while not (folder / "begun").exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    while_running = load(folder)
    assert while_running.state == "RUNNING"
    driver.kill()
    driver.join(20)
    killed = load(folder)
    assert killed.state == "INTERRUPTED"
    assert "RUNNING" not in set(killed.trials["state"])
    with only_driver(Location(folder)):
        assert load(folder).state == "RUNNING"
    study = (folder / "study.yaml").read_text()
    (folder / "study.yaml").write_text(study.replace("RUNNING", "COMPLETE"))
    assert load(folder).state == "COMPLETE"
    assert while_running.state == "RUNNING", "what was read is of one moment"


def test_signs_of_life_are_no_lock(tmp_path: Path) -> None:
    """Where the file system has no locks, or another machine has it, who only reads cannot know."""
    for text in ("someone 12", "another-machine 0123"):
        (tmp_path / LOCK).write_text(text)
        assert not driver_is_gone(Location(tmp_path))
    (tmp_path / LOCK).write_text(this_machine())
    assert driver_is_gone(Location(tmp_path))
