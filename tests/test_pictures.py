"""Thumbnails: the right image under each file's name, and no error where the images are gone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from records_example import write_run

from analysis import load
from analysis.pictures import EMPTY, Pictures

FILES = ["test/Map/000.jpg", "test/Map/001.jpg", "../odd/<b>.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run beside which three flat images of 8 × 8 pixels are packed: 0, 100 and 200."""
    folder = write_run(tmp_path / "run", ratios=(10,), trials=3, repeats=0, encoders=0)
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["data"]["key"] = "abc"
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    pixels = np.repeat([0, 100, 200], 8 * 8 * 3).reshape(3, 8, 8, 3).astype(np.uint8)
    (tmp_path / "packed").mkdir()
    np.save(tmp_path / "packed" / "abc.npy", pixels)
    (tmp_path / "packed" / "abc.json").write_text(json.dumps({"files": FILES}))
    return folder


def test_a_thumbnail_is_the_image_of_that_name(folder: Path) -> None:
    pictures = Pictures(load(folder))
    assert pictures
    for size in (4, 8, 16):
        found = pictures.thumbnail("test/Map/001.jpg", size)
        assert found is not None
        assert (found.shape, found.dtype) == ((size, size, 3), np.uint8)
        assert (found == 100).all()
    assert pictures.thumbnail("test/Map/002.jpg", 4) is None


def test_a_sprite_holds_them_row_by_row(folder: Path) -> None:
    jpeg, columns = Pictures(load(folder)).sprite([FILES[2], "gone", FILES[1]], 16)
    sheet = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert (columns, sheet.shape) == (2, (32, 32, 3))
    middles = [int(sheet[y, x, 0]) for y in (8, 24) for x in (8, 24)]
    assert middles == pytest.approx([200, EMPTY, 100, EMPTY], abs=3)


@pytest.mark.parametrize("spoil", ["packed/abc.npy", "packed/abc.json"])
@pytest.mark.parametrize("torn", [True, False])
def test_without_images_there_are_none_and_no_error(folder: Path, spoil: str, torn: bool) -> None:
    file = folder.parent / spoil
    if torn:
        file.write_bytes(file.read_bytes()[:20])
    else:
        file.unlink()
    pictures = Pictures(load(folder))
    assert not pictures
    assert pictures.thumbnail(FILES[0], 8) is None
    assert pictures.sprite([], 8)[1] == 1
