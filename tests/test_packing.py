"""Images are decoded once into a map that every process shares, and damage is noticed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import packing
from data.decoding import BadImageError
from data.folders import ImageFolder, find_images
from data.packing import PackedImages, image_from_bytes, open_packed, pack_images
from data.storage import InputError, Location

SIZE = 16


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (3, 4, 3), np.uint8)
    size = (int(random.integers(20, 60)), int(random.integers(20, 60)))
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train/, valid/ and test/ of two species; 50 images of any size."""
    seed = 0
    for split, count in (("train", 20), ("valid", 3), ("test", 2)):
        for species in ("ATALA", "GREAT JAY"):
            for i in range(count):
                suffix = ("jpg", "png", "webp")[i % 3]
                draw(tmp_path / "data" / split / species / f"{i:02d}.{suffix}", seed)
                seed += 1
    return tmp_path / "data"


@pytest.fixture
def folder(root: Path) -> ImageFolder:
    return find_images(Location(root))


@pytest.fixture
def packed_at(tmp_path: Path) -> Location:
    return Location(tmp_path / "runs" / "packed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARIPOSA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack_and_open(folder: ImageFolder, packed_at: Location) -> PackedImages:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    return open_packed(packed_at, key)


def test_every_image_is_at_its_place(folder: ImageFolder, packed_at: Location) -> None:
    packed = pack_and_open(folder, packed_at)

    assert packed.pixels.shape == (50, SIZE, SIZE, 3)
    assert packed.pixels.dtype == np.uint8
    assert packed.labels.dtype == np.int64
    assert packed.species == ("ATALA", "GREAT JAY")
    assert packed.image_size == SIZE
    assert packed.files == tuple(file.path for file in folder.files)
    for i, file in enumerate(folder.files):
        assert packed.species[packed.labels[i]] == file.species
        assert packed.splits[i] == file.split
        alone = image_from_bytes((folder.root / file.path).read_bytes(), SIZE)
        assert np.array_equal(packed.pixels[i], alone)


def test_the_pixels_are_a_map_that_nobody_can_write(
    folder: ImageFolder, packed_at: Location
) -> None:
    packed = pack_and_open(folder, packed_at)
    assert isinstance(packed.pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        packed.pixels[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        packed.labels[0] = 1


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    """Stripes of one pixel average to grey; without a filter they would stay stripes."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[::2] = 255
    Image.fromarray(stripes).save(tmp_path / "x.png")
    pixels = image_from_bytes((tmp_path / "x.png").read_bytes(), 16)
    assert np.abs(pixels.astype(int) - 128).max() < 12


def test_a_faster_decoded_photograph_looks_the_same(tmp_path: Path) -> None:
    """A large JPEG is decoded at a fraction of its size: that may not cost quality."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8))
    photograph = coarse.resize((1600, 1200), Image.Resampling.BICUBIC)
    photograph.save(tmp_path / "x.jpg", quality=95)
    photograph.save(tmp_path / "x.png")
    fast, full = (
        image_from_bytes((tmp_path / name).read_bytes(), 64).astype(int)
        for name in ("x.jpg", "x.png")
    )
    assert np.abs(fast - full).mean() < 1.5


def test_the_second_time_nothing_is_decoded(
    folder: ImageFolder, packed_at: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pack_images(folder, SIZE, packed_at, 2)
    monkeypatch.setattr(packing, "read_image", None)
    second = pack_images(folder, SIZE, packed_at, 2)
    assert first == (second[0], True)
    assert second == (first[0], False)


def test_the_same_images_elsewhere_are_known(
    root: Path, folder: ImageFolder, packed_at: Location, tmp_path: Path
) -> None:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    shutil.copytree(root, tmp_path / "moved")
    assert pack_images(find_images(Location(tmp_path / "moved")), SIZE, packed_at, 1) == (
        key,
        False,
    )


def test_the_key_follows_size_layout_names_and_content(
    root: Path, folder: ImageFolder, packed_at: Location
) -> None:
    keys = [pack_images(folder, SIZE, packed_at, 2)[0]]
    keys.append(pack_images(folder, SIZE + 1, packed_at, 2)[0])
    keys.append(pack_images(find_images(Location(root), "pooled"), SIZE, packed_at, 2)[0])
    first = root / "train" / "ATALA" / "00.jpg"
    first.rename(first.with_name("new.jpg"))
    keys.append(pack_images(find_images(Location(root)), SIZE, packed_at, 2)[0])
    draw(first.with_name("new.jpg"), seed=1000)
    keys.append(pack_images(find_images(Location(root)), SIZE, packed_at, 2)[0])
    assert len(set(keys)) == 5


def test_pooled_images_have_no_split(root: Path, packed_at: Location) -> None:
    packed = pack_and_open(find_images(Location(root), "pooled"), packed_at)
    assert set(packed.splits) == {""}
    assert np.bincount(packed.labels).tolist() == [25, 25]


def test_only_packed_files_are_left(folder: ImageFolder, packed_at: Location) -> None:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    assert sorted(os.listdir(packed_at.local)) == [f"{key}.json", f"{key}.npy"]


def test_an_object_store_gives_the_same(root: Path, folder: ImageFolder) -> None:
    store = Location(f"mock://bucket/{uuid.uuid4().hex}")
    for file in folder.files:
        (store / "data" / file.path).upload(root / file.path)
    remote = find_images(store / "data")
    key, decoded = pack_images(remote, SIZE, store / "packed", 2)
    assert decoded
    assert pack_images(remote, SIZE, store / "packed", 2) == (key, False)
    packed = open_packed(store / "packed", key)
    for i in (0, 17, 49):
        alone = image_from_bytes((root / packed.files[i]).read_bytes(), SIZE)
        assert np.array_equal(packed.pixels[i], alone)


# Bad images and bad places


def refusal(folder: ImageFolder, packed_at: Location) -> str:
    with pytest.raises(InputError) as error:
        pack_images(folder, SIZE, packed_at, 2)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_bad_image_is_named_and_nothing_is_left(root: Path, packed_at: Location) -> None:
    path = root / "train" / "ATALA" / "00.jpg"
    path.write_text("not a butterfly")
    assert refusal(find_images(Location(root)), packed_at) == (
        f"{path}: cannot be read as an image (not an image); expected a whole image"
    )
    assert os.listdir(packed_at.local) == []


def test_several_bad_images_are_counted(root: Path, packed_at: Location) -> None:
    truncated = root / "test" / "GREAT JAY" / "00.jpg"
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])
    (root / "train" / "ATALA" / "05.webp").write_bytes(b"")
    assert refusal(find_images(Location(root)), packed_at) == (
        f"{truncated}: cannot be read as an image (truncated); expected a whole image "
        f"(1 more bad file: mariposa data check {root} lists them)"
    )
    (root / "train" / "ATALA" / "00.jpg").write_text("x")
    assert "(2 more bad files:" in refusal(find_images(Location(root)), packed_at)


def test_an_image_that_vanishes_is_named(
    root: Path, folder: ImageFolder, packed_at: Location
) -> None:
    (root / "train" / "ATALA" / "00.jpg").unlink()
    assert "00.jpg: cannot be read as an image (no such file)" in refusal(folder, packed_at)


def test_bad_bytes_are_refused() -> None:
    with pytest.raises(BadImageError, match="not an image"):
        image_from_bytes(b"GIF89a and nothing else", SIZE)


def test_a_destination_that_is_a_file(folder: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(folder, Location(tmp_path / "file"))
    assert message.startswith(f"{tmp_path}/file: cannot hold the packed images (file exists)")
    assert "expected a folder that can be written" in message


@contextmanager
def at_most(file_bytes: int) -> Iterator[None]:
    """No file may grow beyond that: the disk is full, as far as a process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_half_written(folder: ImageFolder, packed_at: Location) -> None:
    with at_most(20_000), pytest.raises(InputError) as error:
        pack_images(folder, SIZE, packed_at, 2)
    assert str(error.value).startswith(f"{packed_at}: cannot hold the packed images (file too")
    assert os.listdir(packed_at.local) == []
    assert pack_images(folder, SIZE, packed_at, 2)[1]


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write anywhere: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_destination_that_may_not_be_written(root: Path) -> None:
    with tempfile.TemporaryDirectory() as public:
        os.chmod(public, 0o755)
        shutil.copytree(root, f"{public}/data")
        folder = find_images(Location(f"{public}/data"))
        os.mkdir(f"{public}/closed", 0o555)
        with ordinary_user():
            message = refusal(folder, Location(f"{public}/closed"))
    assert message.startswith(f"{public}/closed: cannot hold the packed images (permission denied)")


# Damage


@pytest.mark.parametrize("how", ["cut short", "one byte changed", "gone"])
def test_damage_is_repaired_from_the_images(
    folder: ImageFolder, packed_at: Location, how: str
) -> None:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    before = (packed_at / f"{key}.npy").read_bytes()
    damage((packed_at / f"{key}.npy").local, how)
    assert pack_images(folder, SIZE, packed_at, 2) == (key, True)
    assert (packed_at / f"{key}.npy").read_bytes() == before
    assert open_packed(packed_at, key).files[0] == "test/ATALA/00.jpg"


def damage(path: Path, how: str) -> None:
    """Written in place, as a failing disk or an interrupted copy would."""
    if how == "gone":
        path.unlink()
    elif how == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    else:
        with path.open("r+b") as stream:
            stream.seek(1000)
            byte = stream.read(1)
            stream.seek(1000)
            stream.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("how", ["cut short", "keys are missing"])
def test_a_torn_index_is_repaired(folder: ImageFolder, packed_at: Location, how: str) -> None:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    index = (packed_at / f"{key}.json").local
    index.write_text(index.read_text()[:100] if how == "cut short" else '{"files": []}')
    with pytest.raises(InputError, match=f"{key}.json: is damaged"):
        open_packed(packed_at, key)
    assert pack_images(folder, SIZE, packed_at, 2) == (key, True)
    open_packed(packed_at, key)


@pytest.mark.parametrize("how", ["cut short", "one byte changed"])
def test_a_damaged_pack_is_named_when_opened(
    folder: ImageFolder, packed_at: Location, cache: Path, how: str
) -> None:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    damage((packed_at / f"{key}.npy").local, how)
    with pytest.raises(InputError) as error:
        open_packed(packed_at, key)
    assert str(error.value).startswith(f"{packed_at}/{key}.npy: is damaged (its checksum is wrong)")
    assert "delete it" in str(error.value)
    assert not (cache / f"{key}.npy").exists()


@pytest.mark.parametrize("how", ["cut short", "one byte changed", "gone"])
def test_a_damaged_copy_is_replaced(
    folder: ImageFolder, packed_at: Location, cache: Path, how: str
) -> None:
    whole = np.array(pack_and_open(folder, packed_at).pixels)
    copy = next(cache.glob("*.npy"))
    shutil.copy(copy, copy.with_suffix(".own"))  # another disk: no hard link to the pack
    copy.with_suffix(".own").replace(copy)
    damage(copy, how)
    assert np.array_equal(pack_and_open(folder, packed_at).pixels, whole)


def test_packed_images_that_are_not_there(packed_at: Location) -> None:
    with pytest.raises(InputError, match=f"{packed_at}/abc.json: no such file"):
        open_packed(packed_at, "abc")


def test_an_index_without_pixels(folder: ImageFolder, packed_at: Location) -> None:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    (packed_at / f"{key}.npy").delete()
    with pytest.raises(InputError, match=f"{packed_at}/{key}.npy: no such file"):
        open_packed(packed_at, key)


# The node's own copy


def test_an_open_verifies_only_the_first_time(
    folder: ImageFolder, packed_at: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    open_packed(packed_at, key)
    monkeypatch.setattr(packing, "_checksum", None)
    open_packed(packed_at, key)


def test_the_cache_is_where_one_says(
    folder: ImageFolder, packed_at: Location, cache: Path, tmp_path: Path
) -> None:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    packed = open_packed(packed_at, key, tmp_path / "mine")
    assert packed.pixels.filename == tmp_path / "mine" / f"{key}.npy"  # type: ignore[attr-defined]
    assert not cache.exists()


def test_the_default_cache_is_one_a_user(
    folder: ImageFolder, packed_at: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MARIPOSA_CACHE")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    pack_and_open(folder, packed_at)
    own = tmp_path / "tmp" / f"mariposa-{os.getuid()}"
    assert own.is_dir()
    assert own.stat().st_mode & 0o077 == 0
    if os.geteuid() == 0:
        os.chown(own, 65534, 65534)
        with pytest.raises(InputError, match="belongs to another user"):
            pack_and_open(folder, packed_at)


def test_a_cache_that_is_a_file(folder: ImageFolder, packed_at: Location, tmp_path: Path) -> None:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"{tmp_path}/file: cannot hold the packed images"):
        open_packed(packed_at, key, tmp_path / "file")


def test_a_running_map_outlives_a_repair(folder: ImageFolder, packed_at: Location) -> None:
    packed = pack_and_open(folder, packed_at)
    before = np.array(packed.pixels)
    (packed_at / f"{packed.key}.json").delete()
    assert pack_images(folder, SIZE, packed_at, 2)[1]
    assert np.array_equal(packed.pixels, before)


OPEN = """
import sys
from data import packing
from data.storage import Location

download = Location.download
def logged(self, target):
    with open(sys.argv[3], "a") as log:
        log.write("copied\\n")
    download(self, target)
Location.download = logged
sys.stdin.readline()  # all at once
packed = packing.open_packed(Location(sys.argv[1]), sys.argv[2])
print(int(packed.pixels.sum()))
"""


def test_eight_processes_copy_once(
    folder: ImageFolder, packed_at: Location, tmp_path: Path
) -> None:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    command = [sys.executable, "-c", OPEN, str(packed_at), key, str(tmp_path / "log")]
    pipe = subprocess.PIPE
    openers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(8)]
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    sums = [int(opener.communicate()[0]) for opener in openers]
    assert sums == [int(open_packed(packed_at, key).pixels.sum())] * 8
    assert (tmp_path / "log").read_text() == "copied\n"


PACK = """
import sys
from data.folders import find_images
from data.packing import pack_images
from data.storage import Location
print(*pack_images(find_images(Location(sys.argv[1])), 16, Location(sys.argv[2]), 2))
"""


def test_two_studies_may_pack_at_once(root: Path, folder: ImageFolder, packed_at: Location) -> None:
    command = [sys.executable, "-c", PACK, str(root), str(packed_at)]
    packers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    keys = {packer.communicate()[0].split()[0] for packer in packers}
    assert keys == {pack_images(folder, SIZE, packed_at, 2)[0]}
    assert pack_images(folder, SIZE, packed_at, 2) == (*keys, False)
    open_packed(packed_at, *keys)


def test_light_imports() -> None:
    """Every worker process and ``mariposa data check`` pay for them."""
    names = ("torch", "lightning", "ray", "pandas", "pyarrow")
    load = (
        "import sys, data.folders, data.packing, data.splits, data.storage\n"
        f"print([name for name in {names} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_index_is_plain_json(folder: ImageFolder, packed_at: Location) -> None:
    key, _ = pack_images(folder, SIZE, packed_at, 2)
    index = json.loads((packed_at / f"{key}.json").read_text())
    assert index["files"][0] == "test/ATALA/00.jpg"
    assert index["species"] == ["ATALA", "GREAT JAY"]
    assert index["bytes"] == (packed_at / f"{key}.npy").local.stat().st_size
