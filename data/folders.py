"""Find the images of a folder, without opening any.

Two layouts are known: ``train/ valid/ test/`` with a folder per species in each ("folders"), and
one pool of images per species ("pooled"), from which the splits are drawn later.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from data.storage import InputError, Location, reason_of, require_text

SPLITS = ("train", "valid", "test")
_SPLIT_NAMES = {s: s for s in SPLITS} | {"val": "valid", "validation": "valid"}
_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_EXPECTED = "expected train/, valid/ and test/ with a folder per species, or a folder per species"

# What lies in a folder: every folder's relative path ("" is the root) -> the images right in it.
_Listing = dict[str, list[str]]


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
        strays: paths of images that lie in no species' folder, and are passed over; sorted.
    """

    root: Location
    layout: str
    species: tuple[str, ...]
    files: tuple[ImageFile, ...]
    strays: tuple[str, ...] = ()


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
            (or in the pool), or one that is not in each of train/, valid/ and test/.
    """
    listing = _list(root)
    split_folders = _split_folders(root, listing)
    if split == "folders" and split_folders:
        _require_all_splits(root, split_folders)
        found = {name: _by_species(listing, folder) for name, folder in split_folders.items()}
        _require_species(root / split_folders["train"], found["train"])
        for name in ("valid", "test"):
            _require_known(root / split_folders[name], found[name], found["train"])
        return _image_folder(root, "folders", found, _strays(listing, split_folders.values()))
    pool: dict[str, list[str]] = defaultdict(list)
    for folder in split_folders.values() or [""]:
        for species, paths in _by_species(listing, folder).items():
            pool[species] += paths
    _require_species(root, pool)
    strays = _strays(listing, split_folders.values())
    return _image_folder(root, "pooled", {"": pool}, strays)


def _strays(listing: _Listing, split_folders: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(path for folder in ("", *split_folders) for path in listing[folder]))


def _image_folder(
    root: Location, layout: str, found: dict[str, dict[str, list[str]]], strays: tuple[str, ...]
) -> ImageFolder:
    files = [
        ImageFile(path, species, split)
        for split, by_species in found.items()
        for species, paths in by_species.items()
        for path in paths
    ]
    files.sort(key=lambda file: file.path)
    species = tuple(sorted({file.species for file in files}))
    return ImageFolder(root, layout, species, tuple(files), strays)


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
        raise InputError(f"{root}: cannot be listed ({reason_of(error)}); {_EXPECTED}") from None
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
                    require_text(path)
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
    for species in sorted(train):
        if not found.get(species):
            raise InputError(
                f"{where / species}: no image; expected one at least of each species in train/, or "
                "--set data.split=pooled to draw the splits from all images"
            )
