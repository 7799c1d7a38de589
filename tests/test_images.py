"""A study's images: where they are pooled, they stay so, also when they are gone."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import SPECIES, World, draw_image, environment, left_behind, tiny_tree
from PIL import Image

from data.storage import Location
from study.config import config_from
from study.images import begin, images_of, prepare
from study.pipeline import on_record, open_study


def opened(root: Path, out: Path) -> dict[str, Any]:
    """What `study.yaml` says after a ``run``, up to where Ray would start."""
    config, location = config_from(tiny_tree(root), "a test"), Location(out)
    run = location / config.name
    study = open_study(config, run, on_record(run))
    _, labels = prepare(config, location, run, study, images_of(config, study))
    begin(run, study, labels)
    written: dict[str, Any] = yaml.safe_load((out / "tiny" / "study.yaml").read_text())
    return written


def test_images_of_two_splits_are_said_at_once_and_recorded(
    tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(tiny_images, images)
    source = next((images / "train" / SPECIES[0]).iterdir())
    shutil.copy(source, images / "test" / SPECIES[0] / f"twin{source.suffix}")
    shutil.copy(source, images / "train" / f"loose{source.suffix}")
    assert opened(images, out)["data"]["leaks"] == {"valid": 0, "test": 1}
    said = capsys.readouterr().out
    assert "warning: of test, 1 image is in an earlier split as well" in said
    assert f"test/{SPECIES[0]}/twin{source.suffix} is train/{SPECIES[0]}/{source.name}" in said
    assert f"in no species' folder: 1 image, train/loose{source.suffix}" in said
    assert opened(images, out)["data"]["leaks"] == {"valid": 0, "test": 1}
    assert capsys.readouterr().out == "", "once is enough"


def test_a_pool_is_said_to_be_one_and_keeps_its_split_when_it_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, out = tmp_path / "pool", tmp_path / "out"
    for number, species in enumerate(SPECIES):
        for i in range(40):
            draw_image(pool / species / f"{number}{i:02d}.png", number)
    first = opened(pool, out)
    assert f"{pool}: has no train/, so its images are pooled" in capsys.readouterr().out
    assert first["data"]["counts"] == {"train": 15, "valid": 30, "test": 75}
    labels = (out / "tiny" / "labels.parquet").read_bytes()
    shutil.rmtree(pool)
    assert opened(pool, out) == first
    assert (out / "tiny" / "labels.parquet").read_bytes() == labels


@pytest.mark.timeout(120)
def test_ctrl_c_ends_the_decoding(tmp_path: Path) -> None:
    """Half a minute of it: the same large picture under many names."""
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    for split in ("train", "valid", "test"):
        for species in SPECIES:
            folder = tmp_path / "images" / split / species
            folder.mkdir(parents=True)
            for i in range(60):
                os.link(tmp_path / "large.png", folder / f"{i}.png")
    world = World(tmp_path, environment(MARIPOSA_CACHE=str(tmp_path / "cache")))
    study = world.start("run", "smoke", "--data", "images", "--out", "runs")
    while not list(tmp_path.glob("runs/packed/.part-*.npy")):
        assert study.poll() is None
        time.sleep(0.05)
    study.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, err = study.communicate(timeout=60)
    assert (study.returncode, err) == (130, "mariposa: interrupted; go on with: the same command\n")
    assert time.monotonic() - asked < 15
    assert left_behind(tmp_path / "runs") == []
