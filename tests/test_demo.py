"""The butterflies that the program draws itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.demo import draw_butterfly, write_demo
from data.species import SPECIES, TABLE
from data.storage import InputError
from study.config import config_from
from study.images import images_of


def pixels(species: str, seed: int, size: int = 32) -> np.ndarray:
    return np.asarray(draw_butterfly(species, seed, size), np.float64) / 255


def test_the_same_arguments_give_the_same_image_and_another_seed_another() -> None:
    first = draw_butterfly("Copper Gazer", 7)
    assert (first.mode, first.size) == ("RGB", (96, 96))
    assert first.tobytes() == draw_butterfly("Copper Gazer", 7).tobytes()
    assert first.tobytes() != draw_butterfly("Copper Gazer", 8).tobytes()


def test_another_size_shows_the_same_butterfly() -> None:
    small = np.asarray(draw_butterfly("Ember Wanderer", 3, 48), np.float64)
    large = draw_butterfly("Ember Wanderer", 3, 96).resize((48, 48), Image.Resampling.BOX)
    other = np.asarray(draw_butterfly("Ember Wanderer", 4, 48), np.float64)
    assert abs(small - np.asarray(large)).mean() < 0.4 * abs(small - other).mean()


def test_the_twenty_species_have_names_and_traits_of_their_own() -> None:
    assert len(SPECIES) == len(set(SPECIES)) == 20
    assert len({(s.outline, s.palette, s.markings) for s in TABLE}) == 20


def test_colour_outline_and_markings_alone_do_not_tell_a_species() -> None:
    for trait in ("outline", "palette", "markings"):
        shared = [getattr(species, trait) for species in TABLE]
        alone = [value for value in shared if shared.count(value) == 1]
        assert len(alone) <= 1, f"{trait} gives away {alone}"


def test_the_mean_colour_does_not_tell_the_species() -> None:
    train, test = range(8), range(100, 105)
    colours = {s: [pixels(s, i).mean((0, 1)) for i in (*train, *test)] for s in SPECIES}
    centres = np.array([np.mean(colours[s][: len(train)], axis=0) for s in SPECIES])
    hits = [
        np.square(colour - centres).sum(1).argmin() == k
        for k, s in enumerate(SPECIES)
        for colour in colours[s][len(train) :]
    ]
    assert np.mean(hits) < 0.3


def test_writes_an_image_folder_whose_files_are_the_drawn_images(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "demo"
    counts = {"train": 3, "valid": 1, "test": 2}
    written = write_demo(
        folder, train_per_species=3, valid_per_species=1, test_per_species=2, size=32, workers=2
    )
    assert written == 20 * 6
    assert sorted(p.name for p in folder.iterdir()) == sorted(counts)
    for split, count in counts.items():
        assert sorted(p.name for p in (folder / split).iterdir()) == sorted(SPECIES)
        for species in SPECIES:
            files = sorted((folder / split / species).iterdir())
            assert [f.name for f in files] == [f"{i:03d}.jpg" for i in range(count)]
            assert Image.open(files[0]).size == (32, 32)
    files = list(folder.rglob("*.jpg"))
    assert len({f.read_bytes() for f in files}) == len(files), "two images are the same"
    assert [p.name for p in folder.parent.iterdir()] == ["demo"], "left a temporary folder"


def test_the_data_set_depends_on_the_seed_and_not_on_the_processes(tmp_path: Path) -> None:
    def written(name: str, seed: int, workers: int) -> list[bytes]:
        few = {"train_per_species": 1, "valid_per_species": 0, "test_per_species": 0}
        write_demo(tmp_path / name, **few, size=16, seed=seed, workers=workers)
        return [f.read_bytes() for f in sorted((tmp_path / name).rglob("*.jpg"))]

    first = written("first", seed=0, workers=1)
    assert first == written("again", seed=0, workers=2)
    assert not set(first) & set(written("other", seed=1, workers=2))


@pytest.mark.parametrize("kind", ["a folder with files in it", "a file"])
def test_leaves_what_is_there_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "mine"
    if kind == "a file":
        target.write_text("notes")
    else:
        target.mkdir()
        (target / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match=f"mine: found {kind}, expected a new or an empty folder"):
        write_demo(target, train_per_species=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder that can be written"):
        write_demo(tmp_path / "file" / "demo", train_per_species=1)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    few = {"train_per_species": 1, "valid_per_species": 0, "test_per_species": 0}
    assert write_demo(tmp_path / "empty", **few, size=16, workers=1) == 20


def test_the_data_set_of_this_machine_is_drawn_once_and_again_where_files_are_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also by two studies at once, and after something has cleaned /tmp."""
    monkeypatch.setenv("MARIPOSA_CACHE", str(tmp_path))
    sizes = {"train_per_species": 2, "valid_per_species": 1, "test_per_species": 1, "size": 32}
    config = config_from({"name": "tiny", "data": {"demo": sizes}}, "tiny")
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: images_of(config, {"data": None}), range(2))
    assert one == two
    assert one is not None
    first = Path(str(one.root)) / one.files[0].path
    content = first.read_bytes()
    first.unlink()
    assert images_of(config, {"data": None}) == one
    assert first.read_bytes() == content
