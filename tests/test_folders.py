"""Find the images of a folder, and check them: on real files, and every bad folder one by one."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from data.checking import check_images, leaked
from data.decoding import BadImageError, read_image
from data.folders import find_images
from data.storage import InputError, Location


def draw(path: Path, seed: int = 0) -> None:
    """A small picture; another one for another seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def draw_species(folder: Path, count: int = 2, suffix: str = "png") -> None:
    for species in ("ATALA", "GREAT JAY"):
        for i in range(count):
            draw(
                folder / species / f"{i}.{suffix}",
                seed=crc32(f"{folder.name} {species} {i}".encode()),
            )


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """train/, valid/ and test/ of two species, three, two and one images each."""
    for split, count in (("train", 3), ("valid", 2), ("test", 1)):
        draw_species(tmp_path / "data" / split, count)
    return tmp_path / "data"


def counts(root: Path | Location, split: str = "folders") -> dict[tuple[str, str], int]:
    found = find_images(Location(root), split)
    keys = [(file.split, file.species) for file in found.files]
    return {key: keys.count(key) for key in sorted(set(keys))}


WHOLE = {
    ("test", "ATALA"): 1,
    ("test", "GREAT JAY"): 1,
    ("train", "ATALA"): 3,
    ("train", "GREAT JAY"): 3,
    ("valid", "ATALA"): 2,
    ("valid", "GREAT JAY"): 2,
}


def test_three_splits(splits: Path) -> None:
    found = find_images(Location(splits))
    assert found.layout == "folders"
    assert found.species == ("ATALA", "GREAT JAY")
    assert counts(splits) == WHOLE
    paths = [file.path for file in found.files]
    assert paths == sorted(paths)
    assert paths[0] == "test/ATALA/0.png"
    assert all((found.root / path).is_file() for path in paths)


@pytest.mark.parametrize("names", [("TRAIN", "VALID", "TEST"), ("Train", "val", "Test"),
                                   ("train", "Validation", "test")])  # fmt: skip
def test_splits_by_other_names(splits: Path, names: tuple[str, str, str]) -> None:
    for old, new in zip(("train", "valid", "test"), names, strict=True):
        (splits / old).rename(splits / new)
    assert counts(splits) == WHOLE


def test_all_splits_pooled(splits: Path) -> None:
    found = find_images(Location(splits), "pooled")
    assert found.layout == "pooled"
    assert counts(splits, "pooled") == {("", "ATALA"): 6, ("", "GREAT JAY"): 6}


def test_pooled_needs_no_valid(splits: Path) -> None:
    shutil.rmtree(splits / "valid")
    assert sum(counts(splits, "pooled").values()) == 8


@pytest.mark.parametrize("split", ["folders", "pooled"])
def test_a_folder_of_species_is_pooled(tmp_path: Path, split: str) -> None:
    draw_species(tmp_path, 4)
    found = find_images(Location(tmp_path), split)
    assert found.layout == "pooled"
    assert {file.split for file in found.files} == {""}
    assert counts(tmp_path, split) == {("", "ATALA"): 4, ("", "GREAT JAY"): 4}


def test_every_format_and_nothing_else(splits: Path) -> None:
    folder = splits / "train" / "ATALA"
    for suffix in ("jpg", "JPEG", "bmp", "gif", "tif", "TIFF", "webp", "PNG"):
        draw(folder / f"x{suffix}.{suffix}")
    for name in ("Thumbs.db", ".DS_Store", ".hidden.jpg", "a.txt", "b.csv", "c.json", "README.md"):
        (folder / name).write_text("no image")
        (splits / name).write_text("no image")
        (splits / "train" / name).write_text("no image")
    (splits / "__MACOSX").mkdir()
    (splits / "train" / ".cache").mkdir()
    assert counts(splits) == WHOLE | {("train", "ATALA"): 11}


def test_images_deeper_in_a_species_are_its_own(splits: Path) -> None:
    draw(splits / "train" / "ATALA" / "session 2" / "0.png")
    assert counts(splits) == WHOLE | {("train", "ATALA"): 4}


def test_links_are_followed(splits: Path, tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere" / "1.png")
    (splits / "train" / "ATALA" / "link.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (splits / "train" / "ATALA" / "round").symlink_to(splits / "train")  # in a circle
    (splits / "valid").rename(tmp_path / "valid")
    (splits / "valid").symlink_to(tmp_path / "valid")
    assert counts(splits) == WHOLE | {("train", "ATALA"): 4}


def test_an_object_store_gives_the_same(splits: Path) -> None:
    store = Location(f"mock://bucket/{uuid.uuid4().hex}/my data")
    for file in splits.rglob("*.png"):
        (store / str(file.relative_to(splits))).upload(file)
    (store / "train" / "README.md").write_text("no image")
    (store / "train" / ".hidden" / "x.png").write_text("no image")
    assert find_images(store).files == find_images(Location(splits)).files
    assert check_images(find_images(store), 2) == check_images(find_images(Location(splits)), 2)
    with pytest.raises(InputError, match="no such folder"):
        find_images(store / "none")
    with pytest.raises(InputError, match="is not a folder"):
        find_images(store / "train" / "ATALA" / "0.png")


def refusal(root: Path, split: str = "folders") -> str:
    with pytest.raises(InputError) as error:
        find_images(Location(root), split)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(root))
    assert "expected" in message
    return message.removeprefix(str(root))


def test_a_missing_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").startswith(": no such folder; expected train/")


def test_a_file(tmp_path: Path) -> None:
    draw(tmp_path / "1.png")
    assert refusal(tmp_path / "1.png").startswith(": is not a folder")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(": an empty folder")


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "train" / "ATALA").mkdir(parents=True)
    assert refusal(tmp_path).startswith(": no image in it")


def test_images_without_species(tmp_path: Path) -> None:
    draw(tmp_path / "1.png")
    assert refusal(tmp_path).startswith(": 0 species (none); expected a folder each")


def test_a_single_species(splits: Path) -> None:
    shutil.rmtree(splits / "train" / "ATALA")
    assert refusal(splits).startswith("/train: 1 species (GREAT JAY)")


@pytest.mark.parametrize(("left", "found"), [(1, "1 image"), (0, "no image")])
def test_a_species_with_hardly_an_image(splits: Path, left: int, found: str) -> None:
    for i in range(left, 3):
        (splits / "train" / "ATALA" / f"{i}.png").unlink()
    assert refusal(splits) == f"/train/ATALA: {found}; expected at least 2 of each species"


def test_a_pooled_species_with_one_image(tmp_path: Path) -> None:
    draw_species(tmp_path, 3)
    draw(tmp_path / "CLEOPATRA" / "0.png")
    assert refusal(tmp_path).startswith("/CLEOPATRA: 1 image")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_species_that_train_lacks(splits: Path, split: str) -> None:
    draw(splits / split / "CLEOPATRA" / "0.png")
    assert refusal(splits).startswith(f"/{split}/CLEOPATRA: a species that train/ lacks")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_species_of_which_a_split_has_none(splits: Path, split: str) -> None:
    """Scores that are means over species would be over others than in training."""
    shutil.rmtree(splits / split / "ATALA")
    assert refusal(splits).startswith(f"/{split}/ATALA: no image; expected one at least")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_missing_split_suggests_pooling(splits: Path, split: str) -> None:
    shutil.rmtree(splits / split)
    message = refusal(splits)
    assert f"without {split}/; expected all three" in message
    assert "--set data.split=pooled" in message


def test_splits_without_train(splits: Path) -> None:
    shutil.rmtree(splits / "train")
    assert "found valid/, test/ without train/" in refusal(splits)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_an_empty_split(splits: Path, split: str) -> None:
    shutil.rmtree(splits / split)
    (splits / split).mkdir()
    assert refusal(splits).startswith(f"/{split}: no image in it")


def test_a_split_that_is_there_twice(splits: Path) -> None:
    shutil.copytree(splits / "valid", splits / "val")
    assert "both val/ and valid/" in refusal(splits)


@contextmanager
def ordinary_user(folder: Path) -> Iterator[None]:
    """Root may read anything: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("closed", ["", "train/ATALA"])
def test_a_folder_that_may_not_be_read(public: Path, closed: str) -> None:
    draw_species(public / "data" / "train", 2)
    (public / "data" / closed).chmod(0)
    with ordinary_user(public):
        with pytest.raises(InputError) as error:
            find_images(Location(public / "data"))
    (public / "data" / closed).chmod(0o755)
    where = Location(public / "data" / closed)
    assert str(error.value) == f"{where}: permission denied; expected a readable folder"


# Checking


def test_a_good_data_set(splits: Path) -> None:
    report = check_images(find_images(Location(splits)), 2)
    assert not report.bad
    assert not report.duplicates
    assert not report.leaks
    assert report.lines() == [
        "species    train  valid  test",
        "ATALA          3      2     1",
        "GREAT JAY      3      2     1",
        "2 species      6      4     2",
    ]


def test_a_pooled_data_set(tmp_path: Path) -> None:
    draw_species(tmp_path, 4)
    report = check_images(find_images(Location(tmp_path)), 2)
    assert report.lines()[0] == "species    images"
    assert report.lines()[-1] == "2 species       8"


def make_bad(folder: Path) -> None:
    (folder / "text.jpg").write_text("this is not a butterfly")
    (folder / "empty.png").write_bytes(b"")
    (folder / "dangling.png").symlink_to(folder / "none.png")
    whole = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for suffix in ("jpg", "png", "bmp", "gif", "tif", "webp"):
        path = folder / f"short.{suffix}"
        Image.fromarray(whole).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    (folder / "script.jpg").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    )


def test_every_bad_file_is_named(splits: Path) -> None:
    make_bad(splits / "train" / "ATALA")
    report = check_images(find_images(Location(splits)), 2)
    reasons = {file.removeprefix("train/ATALA/"): reason for file, reason in report.bad}
    assert reasons.pop("text.jpg") == "not an image"
    assert reasons.pop("script.jpg") == "not an image"
    assert reasons.pop("empty.png") == "an empty file"
    assert reasons.pop("dangling.png") == "no such file"
    assert "pixels" in reasons.pop("bomb.png")
    assert set(reasons) == {f"short.{s}" for s in ("jpg", "png", "bmp", "gif", "tif", "webp")}
    assert reasons["short.jpg"] == "truncated"
    assert "bad: train/ATALA/text.jpg: not an image" in report.lines()
    assert report.counts["ATALA"]["train"] == 3  # the good ones


def test_duplicates_and_leakage_are_named(splits: Path) -> None:
    source = splits / "train" / "ATALA" / "0.png"
    for copy in ("train/ATALA/7.png", "test/GREAT JAY/1.png", "valid/ATALA/again.png"):
        shutil.copy(source, splits / copy)
    report = check_images(find_images(Location(splits)), 2)
    assert report.duplicates == (("train/ATALA/7.png", "train/ATALA/0.png"),)
    assert report.leaks == (
        ("test/GREAT JAY/1.png", "train/ATALA/0.png"),
        ("valid/ATALA/again.png", "train/ATALA/0.png"),
    )
    assert report.lines()[-3:] == [
        "duplicate: train/ATALA/7.png is also train/ATALA/0.png",
        "leakage: test/GREAT JAY/1.png is also train/ATALA/0.png",
        "leakage: valid/ATALA/again.png is also train/ATALA/0.png",
    ]


def test_an_image_in_two_species_is_named(splits: Path) -> None:
    shutil.copy(splits / "train/ATALA/0.png", splits / "train/GREAT JAY/8.png")
    report = check_images(find_images(Location(splits)), 2)
    assert report.duplicates == ()
    said = "two species: train/GREAT JAY/8.png is also train/ATALA/0.png"
    assert report.lines()[-1] == said


def test_images_in_no_species_folder_are_named(splits: Path) -> None:
    shutil.copy(splits / "train/ATALA/0.png", splits / "train/loose.png")
    shutil.copy(splits / "train/ATALA/0.png", splits / "loose.png")
    for split in ("folders", "pooled"):
        found = find_images(Location(splits), split)
        assert found.strays == ("loose.png", "train/loose.png")
        assert not {"loose.png", "train/loose.png"} & {file.path for file in found.files}
    assert "passed over: loose.png: in no species' folder" in check_images(found, 2).lines()


def test_images_of_two_splits_are_counted() -> None:
    pixels = np.arange(6, dtype=np.uint8).repeat(12).reshape(6, 2, 2, 3)
    pixels = pixels[[0, 1, 2, 0, 2, 3, 0, 3]]
    splits = {"train": np.arange(3), "valid": np.arange(3, 6), "test": np.arange(6, 8)}
    assert leaked(pixels, splits) == {"valid": [(3, 0), (4, 2)], "test": [(6, 3), (7, 5)]}


def test_leakage_between_valid_and_test(splits: Path) -> None:
    shutil.copy(splits / "valid" / "ATALA" / "1.png", splits / "test" / "ATALA" / "copy.png")
    report = check_images(find_images(Location(splits)), 2)
    assert report.leaks == (("test/ATALA/copy.png", "valid/ATALA/1.png"),)


def test_the_same_pixels_in_another_file_are_leakage(splits: Path) -> None:
    with Image.open(splits / "train" / "ATALA" / "0.png") as image:
        image.save(splits / "test" / "ATALA" / "x.bmp")
    report = check_images(find_images(Location(splits)), 2)
    assert report.leaks == (("test/ATALA/x.bmp", "train/ATALA/0.png"),)


def test_two_broken_files_are_no_duplicates(splits: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (splits / "train" / "ATALA" / name).write_text("no image")
    assert not check_images(find_images(Location(splits)), 2).duplicates


# Reading one image


def saved(image: Image.Image, path: Path, **options: object) -> bytes:
    image.save(path, **options)
    return path.read_bytes()


def grey_ramp(dtype: type, top: float) -> np.ndarray:
    return (np.arange(256).reshape(16, 16) / 255 * top).round(6).astype(dtype)


@pytest.mark.parametrize(
    ("pixels", "suffix"),
    [
        (grey_ramp(np.uint8, 255), "png"),
        (grey_ramp(np.uint16, 65535), "png"),
        (grey_ramp(np.uint16, 65535), "tif"),
        (grey_ramp(np.int32, 65535), "tif"),
        (grey_ramp(np.int32, 255), "tif"),
        (grey_ramp(np.float32, 1), "tif"),
        (grey_ramp(np.float32, 255), "tif"),
    ],
)
def test_grey_of_any_depth(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    image = read_image(saved(Image.fromarray(pixels), tmp_path / f"x.{suffix}"))
    assert image.mode == "RGB"
    expected = np.arange(256).reshape(16, 16)
    assert np.abs(np.asarray(image).astype(int) - expected[..., None]).max() <= 1


def test_a_dark_image_of_16_bits_stays_dark(tmp_path: Path) -> None:
    content = saved(Image.fromarray(np.full((4, 4), 200, np.uint16)), tmp_path / "x.png")
    assert np.asarray(read_image(content)).max() == 1


def test_black_and_white(tmp_path: Path) -> None:
    content = saved(Image.new("1", (4, 4), 1), tmp_path / "x.png")
    assert read_image(content).getpixel((0, 0)) == (255, 255, 255)


def test_a_palette(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    content = saved(image, tmp_path / "x.png")
    assert read_image(content).getpixel((1, 1)) == (10, 200, 30)


def test_cmyk(tmp_path: Path) -> None:
    content = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "x.jpg")
    red, green, blue = read_image(content).getpixel((8, 8))  # type: ignore[misc]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    content = saved(image.convert(mode), tmp_path / "x.png")
    assert read_image(content).getpixel((2, 2)) == (255, 255, 255)
    assert read_image(content).getpixel((0, 0)) == (0, 0, 0)


def test_half_transparent_is_mixed_with_white(tmp_path: Path) -> None:
    content = saved(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), tmp_path / "x.png")
    assert read_image(content).getpixel((0, 0)) == (255, 127, 127)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    content = saved(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(content).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    """A camera's sensor rows, with the tag that says how the camera was held."""
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32] = 255  # the top left quarter is white
    undo = {2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
            6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
            8: lambda x: np.rot90(x, 3)}.get(orientation, lambda x: x)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
    image = read_image(saved(stored, tmp_path / f"x.{suffix}", exif=exif))
    assert image.size == (64, 32)
    assert np.abs(np.asarray(image).astype(int) - upright).mean() < 4


def test_broken_metadata_is_no_broken_image(splits: Path) -> None:
    path = splits / "train" / "ATALA" / "x.jpg"
    Image.new("RGB", (8, 8), "red").save(path, exif=b"Exif\0\0MM\0*junk")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not check_images(find_images(Location(splits)), 2).bad


def test_a_large_photograph_is_not_decoded_in_full(tmp_path: Path) -> None:
    content = saved(Image.new("RGB", (1600, 1200), "red"), tmp_path / "x.jpg")
    assert read_image(content, at_least=256).size == (400, 300)
    assert read_image(content, at_least=1000).size == (1600, 1200)


def test_the_reason_is_in_the_message() -> None:
    with pytest.raises(BadImageError, match=r"cannot be read as an image \(an empty file\); exp"):
        read_image(b"")
