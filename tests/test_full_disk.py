"""A disk that is full for a while, or for good, in the middle of a search: a real small tmpfs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import environment

from data.demo import write_demo

STUDY = """
name: tiny
data: {image_size: 32}
cells: {variants: [A, B2], label_ratios: [100]}
encoder: {width: 4, epochs: 2, per_repeat: false}
training: {batch_size: 32, max_epochs: 6, patience: 6, min_steps_per_epoch: 10}
search: {trials: 8, grace_period: 6}
evaluation: {repeats: 1}
resources: {max_concurrent: 1}
tracking: {wandb: disabled}
"""
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "mariposa-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def start(folder: Path, disk: Path, patience: float) -> subprocess.Popen[str]:
    if not (folder / "images").is_dir():
        counts = {"train_per_species": 4, "valid_per_species": 1, "test_per_species": 1}
        write_demo(folder / "images", **counts, size=48)
        (folder / "study.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "study", "run", "study.yaml", "--data", "images"]
    changes = {"MARIPOSA_STORAGE_PATIENCE": str(patience), "MARIPOSA_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [*command, "--out", str(disk / "runs")],
        cwd=folder,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_trials(run: Path) -> None:
    limit = time.monotonic() + 200
    while time.monotonic() < limit:
        if list((run / "journal").glob("*.jsonl")) and (run / "checkpoints").parent.is_dir():
            text = "".join(p.read_text() for p in (run / "journal").glob("*.jsonl"))
            if '"COMPLETE"' in text:
                return
        time.sleep(0.05)
    raise AssertionError("no trial after 200 s")


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(1 << 16))
        except OSError:
            pass
    return ballast


def require_whole(run: Path) -> None:
    assert yaml.safe_load((run / "study.yaml").read_text())["state"] == "COMPLETE"
    trials = pd.read_parquet(run / "trials.parquet")
    assert trials.groupby("cell").size().to_dict() == {"A@100": 8, "B2@100": 8}
    assert set(trials["state"]) == {"COMPLETE"}
    epochs = pd.read_parquet(run / "epochs.parquet").groupby("trial_id")["epoch"].apply(list)
    assert all(numbers == [1, 2, 3, 4, 5, 6] for numbers in epochs)
    assert len(pd.read_csv(run / "table_i.csv")) == 2


def test_a_study_waits_for_a_full_disk(tmp_path: Path, disk: Path) -> None:
    driver = start(tmp_path, disk, patience=120)
    run = disk / "runs" / "tiny"
    wait_for_trials(run)
    ballast = fill(disk)
    time.sleep(6)
    assert driver.poll() is None
    ballast.unlink()
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert "storage refuses" in err
    require_whole(run)


def test_a_disk_that_stays_full_ends_a_study_that_can_go_on(tmp_path: Path, disk: Path) -> None:
    driver = start(tmp_path, disk, patience=2)
    run = disk / "runs" / "tiny"
    wait_for_trials(run)
    ballast = fill(disk)
    _, err = driver.communicate(timeout=200)
    assert driver.returncode == 1, err
    assert "Traceback" not in err
    assert "No space left on device" in err
    assert "mariposa resume" in err.splitlines()[-1]
    ballast.unlink()
    driver = start(tmp_path, disk, patience=2)
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    require_whole(run)
