"""Find the images of a folder, read one, and check them all.

Two layouts are known: ``train/ valid/ test/`` with a folder per species in each ("folders"), and
one pool of images per species ("pooled"), from which the splits are drawn later.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.storage import InputError, Location

SPLITS = ("train", "valid", "test")
_SPLIT_NAMES = {s: s for s in SPLITS} | {"val": "valid", "validation": "valid"}
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_EXPECTED = "expected train/, valid/ and test/ with a folder per species, or a folder per species"
# No other decoder sees the bytes: PostScript named .jpg must not reach Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb: half a gigabyte of RGB


@dataclass(frozen=True)
class ImageFile:
    """One image.

    Attributes:
        path: relative to the folder's root, with forward slashes.
        species: the name of its species' folder.
        split: "train", "valid" or "test"; "" where the layout is pooled.
    """

    path: str
    species: str
    split: str


@dataclass(frozen=True)
class ImageFolder:
    """The images of a data set.

    Attributes:
        root: where it lies.
        layout: "folders" or "pooled".
        species: names, sorted.
        files: sorted by path.
    """

    root: Location
    layout: str
    species: tuple[str, ...]
    files: tuple[ImageFile, ...]


class BadImageError(InputError):
    """Bytes that are no whole image. The message names no file; whoever knows it puts it first."""

    def __init__(self, reason: str):
        super().__init__(f"cannot be read as an image ({reason}); expected a whole image")
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadImageError], tuple[str]]:
        return BadImageError, (self.reason,)


def find_images(root: Location, split: str = "folders") -> ImageFolder:
    """List the images of a data set without opening any.

    Hidden files and files that are not images by name are passed over.

    Args:
        root: holds train/, valid/ (or val/, validation/) and test/, in any case, each with a
            folder per species; or the species' folders themselves.
        split: "folders" keeps those splits (a root without them is pooled all the same, and
            ``layout`` says so); "pooled" puts the images of all splits into one pool.

    Raises:
        InputError: the folder is missing, empty, unreadable or no folder; a split is missing, or
            there twice; fewer than two species; a species with fewer than two images in train/
            (or in the pool), or one that only valid/ or test/ has.
    """
    listing = _list(root)
    split_folders = _split_folders(root, listing)
    if split == "folders" and split_folders:
        _require_all_splits(root, split_folders)
        found = {name: _by_species(listing, folder) for name, folder in split_folders.items()}
        _require_species(root / split_folders["train"], found["train"])
        for name in ("valid", "test"):
            _require_known(root / split_folders[name], found[name], found["train"])
        return _image_folder(root, "folders", found)
    pool: dict[str, list[str]] = defaultdict(list)
    for folder in split_folders.values() or [""]:
        for species, paths in _by_species(listing, folder).items():
            pool[species] += paths
    _require_species(root, pool)
    return _image_folder(root, "pooled", {"": pool})


def _image_folder(
    root: Location, layout: str, found: dict[str, dict[str, list[str]]]
) -> ImageFolder:
    files = [
        ImageFile(path, species, split)
        for split, by_species in found.items()
        for species, paths in by_species.items()
        for path in paths
    ]
    files.sort(key=lambda file: file.path)
    return ImageFolder(root, layout, tuple(sorted({f.species for f in files})), tuple(files))


# What lies in a folder: every folder's relative path ("" is the root) -> the images right in it.
_Listing = dict[str, list[str]]


def _list(root: Location) -> _Listing:
    try:
        listing = _list_local(str(root.local)) if root.is_local else _list_store(root)
    except FileNotFoundError:
        raise InputError(f"{root}: no such folder; {_EXPECTED}") from None
    except NotADirectoryError:
        raise InputError(f"{root}: is not a folder; {_EXPECTED}") from None
    except PermissionError as error:
        where = error.filename or root
        raise InputError(f"{where}: permission denied; expected a readable folder") from None
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{root}: cannot be listed ({reason}); {_EXPECTED}") from None
    if not any(listing.values()):
        found = "no image in it" if len(listing) > 1 else "an empty folder"
        raise InputError(f"{root}: {found}; {_EXPECTED}")
    return listing


def _list_local(root: str) -> _Listing:
    listing: _Listing = {}
    waiting: list[tuple[str, tuple[str, ...]]] = [("", ())]
    while waiting:
        folder, above = waiting.pop()
        here = f"{root}/{folder}" if folder else root
        real = os.path.realpath(here)
        if real in above:  # a link to a folder that holds it
            continue
        listing[folder] = []
        with os.scandir(here) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if _is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    waiting.append((path, (*above, real)))
                elif _is_image_name(entry.name) and (entry.is_file() or entry.is_symlink()):
                    listing[folder].append(path)  # a dangling link too: it is to be named as bad
    return listing


def _list_store(root: Location) -> _Listing:
    children = root.children(recursive=True)
    if not children:
        raise NotADirectoryError if root.is_file() else FileNotFoundError
    listing: _Listing = {"": []}
    for child in children:
        path = child.path[len(root.path) :].lstrip("/")
        if any(_is_hidden(part) for part in path.split("/")):
            continue
        folder = path.rpartition("/")[0]
        while folder not in listing:
            listing[folder] = []
            folder = folder.rpartition("/")[0]
        if _is_image_name(path):
            listing[path.rpartition("/")[0]].append(path)
    return listing


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(_EXTENSIONS)


def _split_folders(root: Location, listing: _Listing) -> dict[str, str]:
    """Split -> its folder's own name, in the order train, valid, test."""
    named: dict[str, str] = {}
    for folder in sorted(listing):
        split = _SPLIT_NAMES.get(folder.lower())
        if split in named:
            raise InputError(
                f"{root}: both {named[split]}/ and {folder}/ are there; expected one {split}/"
            )
        if split:
            named[split] = folder
    return {split: named[split] for split in SPLITS if split in named}


def _by_species(listing: _Listing, folder: str) -> dict[str, list[str]]:
    prefix = f"{folder}/" if folder else ""
    found: dict[str, list[str]] = {}
    for path, images in listing.items():
        if path and path.startswith(prefix) and path != folder:
            species = path[len(prefix) :].split("/", 1)[0]
            found.setdefault(species, []).extend(images)
    return found


def _require_all_splits(root: Location, split_folders: dict[str, str]) -> None:
    missing = [f"{split}/" for split in SPLITS if split not in split_folders]
    if missing:
        there = ", ".join(f"{folder}/" for folder in split_folders.values())
        raise InputError(
            f"{root}: found {there} without {' and '.join(missing)}; expected all three, or "
            "--set data.split=pooled to draw the splits from all images"
        )


def _require_species(where: Location, found: dict[str, list[str]]) -> None:
    if len(found) < 2:
        names = ", ".join(found) or "none"
        raise InputError(
            f"{where}: {len(found)} species ({names}); expected a folder each for two or more"
        )
    for species, paths in sorted(found.items()):
        if len(paths) < 2:
            count = "1 image" if paths else "no image"
            raise InputError(f"{where / species}: {count}; expected at least 2 of each species")


def _require_known(
    where: Location, found: dict[str, list[str]], train: dict[str, list[str]]
) -> None:
    for species in sorted(found):
        if species not in train:
            raise InputError(
                f"{where / species}: a species that train/ lacks; "
                "expected only species that are in train/"
            )
    if not any(found.values()):
        raise InputError(f"{where}: no image in it; expected a folder per species")


def read_image(content: bytes, at_least: int | None = None) -> Image.Image:
    """Decode one image file to RGB, upright, transparency on white, the first frame only.

    Args:
        content: the bytes of a JPEG, PNG, BMP, GIF, TIFF or WebP file.
        at_least: a side in pixels; a larger JPEG may be decoded at 1/2, 1/4 or 1/8 of its size,
            never below this one, which is several times faster.

    Raises:
        BadImageError: it is empty, truncated, no image, or too large to be one.
    """
    if not content:
        raise BadImageError("an empty file")
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImageError(f"{image.width}×{image.height} pixels")
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        _turn_upright(image)
        return _to_rgb(image)
    except BadImageError:
        raise
    except Exception as error:  # a decoder may raise anything on bytes that are not its own
        raise BadImageError(_reason(error)) from None


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # the pixels are whole: broken metadata is no broken image
        return


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits; or of 32 bits or floats, where the values show what white is."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    whites = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(image.mode, (65535.0,))
    white = next((w for w in whites if values.max() <= w), 65535.0)
    return Image.fromarray((values.clip(0, white) * (255 / white) + 0.5).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    text = " ".join(str(error).split()) or type(error).__name__
    return "truncated" if "truncated" in text.lower() else text


@dataclass(frozen=True)
class CheckReport:
    """What is in a data set, and what is wrong with it.

    Attributes:
        counts: species -> split -> readable images.
        bad: (file, reason) of each file that is no whole image.
        duplicates: (file, file) of the same split with the same pixels.
        leaks: (file, file) with the same pixels, the second in another split. The first is in
            the later of train, valid, test.
    """

    counts: dict[str, dict[str, int]]
    bad: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, str], ...]
    leaks: tuple[tuple[str, str], ...]

    def lines(self) -> list[str]:
        """The report for a terminal: bad files, a table of counts, duplicates, leakage."""
        return [
            *(f"bad: {file}: {reason}" for file, reason in self.bad),
            *_table(self.counts),
            *(f"duplicate: {file} is also {other}" for file, other in self.duplicates),
            *(f"leakage: {file} is also {other}" for file, other in self.leaks),
        ]


def check_images(folder: ImageFolder, workers: int) -> CheckReport:
    """Read every image, count them, and find those that are there twice.

    Two files are the same if their decoded pixels are equal, whatever their bytes.

    Args:
        folder: what ``find_images`` found.
        workers: threads; decoding lets go of Python's lock.
    """
    with quiet_decoders(), ThreadPoolExecutor(max(1, workers)) as pool:
        results = list(pool.map(lambda file: _pixels_hash(folder.root / file.path), folder.files))
    bad, same = [], defaultdict(list)
    counts = {species: dict.fromkeys(_splits_of(folder), 0) for species in folder.species}
    for file, (digest, reason) in zip(folder.files, results, strict=True):
        if reason:
            bad.append((file.path, reason))
        else:
            counts[file.species][file.split] += 1
            same[digest].append(file)
    duplicates, leaks = _repeats(same.values())
    return CheckReport(counts, tuple(bad), duplicates, leaks)


def _splits_of(folder: ImageFolder) -> tuple[str, ...]:
    return SPLITS if folder.layout == "folders" else ("",)


def _pixels_hash(where: Location) -> tuple[str, str]:
    """(hash, "") of a good image, ("", reason) of a bad one."""
    try:
        image = read_image(read_file(where))
    except BadImageError as error:
        return "", error.reason
    digest = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest(), ""


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep Pillow's remarks on odd metadata off the terminal, for all threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def read_file(where: Location) -> bytes:
    """The bytes of an image file.

    Raises:
        BadImageError: it is gone, or may not be read.
    """
    try:
        return where.read_bytes()
    except FileNotFoundError:
        raise BadImageError("no such file") from None
    except OSError as error:
        raise BadImageError((error.strerror or str(error).splitlines()[0]).lower()) from None


_Pairs = tuple[tuple[str, str], ...]


def _repeats(groups: Iterable[list[ImageFile]]) -> tuple[_Pairs, _Pairs]:
    duplicates, leaks = [], []
    for group in groups:
        first: dict[str, str] = {}  # split -> the first of the group in it, train before test
        for file in sorted(group, key=_split_then_path):
            if file.split in first:
                duplicates.append((file.path, first[file.split]))
            elif first:
                leaks.append((file.path, next(iter(first.values()))))
            first.setdefault(file.split, file.path)
    return tuple(sorted(duplicates)), tuple(sorted(leaks))


def _split_then_path(file: ImageFile) -> tuple[int, str]:
    return (SPLITS.index(file.split) if file.split else 0), file.path


def _table(counts: dict[str, dict[str, int]]) -> Iterator[str]:
    totals: Counter[str] = Counter()
    for by_split in counts.values():
        totals.update(by_split)
    splits = list(totals)
    rows = [["species", *(split or "images" for split in splits)]]
    rows += [[species, *(str(n[s]) for s in splits)] for species, n in counts.items()]
    rows += [[f"{len(counts)} species", *(str(totals[s]) for s in splits)]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers in rows:
        cells = [n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *cells])
