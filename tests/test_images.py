"""A study's images: where they are pooled, they stay so, also when they are gone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SPECIES, draw_image, tiny_tree

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


def test_a_pool_that_is_gone_keeps_its_split(tmp_path: Path) -> None:
    pool, out = tmp_path / "pool", tmp_path / "out"
    for number, species in enumerate(SPECIES):
        for i in range(40):
            draw_image(pool / species / f"{number}{i:02d}.png", number)
    first = opened(pool, out)
    assert first["data"]["counts"] == {"train": 15, "valid": 30, "test": 75}
    labels = (out / "tiny" / "labels.parquet").read_bytes()
    shutil.rmtree(pool)
    assert opened(pool, out) == first
    assert (out / "tiny" / "labels.parquet").read_bytes() == labels
