"""A study's images: where they are pooled, they stay so, also when they are gone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

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
