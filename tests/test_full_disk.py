"""A disk that is full for a while, or for good, in the middle of a search: a real small tmpfs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import World, ended_trials, environment

from data.demo import write_demo

TRIALS, EPOCHS = 5, 3
STUDY = f"""
name: tiny
data: {{image_size: 32}}
cells: {{variants: [A], label_ratios: [100]}}
training: {{batch_size: 32, max_epochs: {EPOCHS}, patience: {EPOCHS}, min_steps_per_epoch: 10}}
search: {{trials: {TRIALS}, grace_period: {EPOCHS}}}
evaluation: {{repeats: 1}}
resources: {{max_concurrent: 1}}
tracking: {{wandb: disabled}}
"""
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB: on a busy machine checkpoints are written to it as well."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "mariposa-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def world(tmp_path: Path) -> World:
    counts = {"train_per_species": 4, "valid_per_species": 1, "test_per_species": 1}
    write_demo(tmp_path / "images", **counts, size=48)
    (tmp_path / "study.yaml").write_text(STUDY)
    return World(tmp_path, environment(MARIPOSA_CACHE=str(tmp_path / "cache")))


def start(world: World, disk: Path, patience: int) -> subprocess.Popen[str]:
    patient = World(world.folder, world.environment | {"MARIPOSA_STORAGE_PATIENCE": str(patience)})
    out = str(disk / "runs")
    return patient.start("run", "study.yaml", "--data", "images", "--out", out)


def wait_for_a_trial(run: Path) -> None:
    """That ends from now on."""
    limit, before = time.monotonic() + 200, ended_trials(run)
    while ended_trials(run) <= before:
        assert time.monotonic() < limit, "no trial after 200 s"
        time.sleep(0.1)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(1 << 16))
        except OSError:
            pass
    return ballast


def test_a_study_waits_for_a_full_disk_and_ends_where_it_stays_full(
    world: World, disk: Path
) -> None:
    """It ends so that it can go on; both times trials are left to run."""
    run = disk / "runs" / "tiny"
    driver = start(world, disk, patience=2)
    wait_for_a_trial(run)
    ballast = fill(disk)
    _, err = driver.communicate(timeout=200)
    assert driver.returncode == 1, err
    assert "Traceback" not in err
    assert "No space left on device" in err
    assert "mariposa resume" in err.splitlines()[-1]
    ballast.unlink()

    driver = start(world, disk, patience=120)
    wait_for_a_trial(run)
    ballast = fill(disk)
    assert len(ended_trials(run)) < TRIALS
    time.sleep(6)
    assert driver.poll() is None
    ballast.unlink()
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert "storage refuses" in err
    assert yaml.safe_load((run / "study.yaml").read_text())["state"] == "COMPLETE"
    trials = pd.read_parquet(run / "trials.parquet")
    assert list(trials["state"]) == ["COMPLETE"] * TRIALS
    epochs = pd.read_parquet(run / "epochs.parquet").groupby("trial_id")["epoch"].apply(list)
    assert list(epochs) == [list(range(1, EPOCHS + 1))] * TRIALS
    assert len(pd.read_csv(run / "table_i.csv")) == 1
