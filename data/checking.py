"""Read every image of a folder: which are damaged, which are there twice, how many there are."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.decoding import BadImageError, quiet_decoders, read_file, read_image
from data.folders import SPLITS, ImageFile, ImageFolder
from data.storage import Location


@dataclass(frozen=True)
class CheckReport:
    """What is in a data set, and what is wrong with it.

    Attributes:
        counts: species -> split -> readable images.
        bad: (file, reason) of each file that is no whole image.
        strays: files that lie in no species' folder, and are passed over.
        duplicates: (file, file) of the same split and species with the same pixels.
        conflicts: (file, file) of the same split with the same pixels and another species.
        leaks: (file, file) with the same pixels, the second in another split. The first is in
            the later of train, valid, test.
    """

    counts: dict[str, dict[str, int]]
    bad: tuple[tuple[str, str], ...]
    strays: tuple[str, ...]
    duplicates: tuple[tuple[str, str], ...]
    conflicts: tuple[tuple[str, str], ...]
    leaks: tuple[tuple[str, str], ...]

    def lines(self) -> list[str]:
        """The report for a terminal: bad files, a table of counts, what is there twice."""
        return [
            *(f"bad: {file}: {reason}" for file, reason in self.bad),
            *(f"passed over: {file}: in no species' folder" for file in self.strays),
            *_table(self.counts),
            *(f"duplicate: {file} is also {other}" for file, other in self.duplicates),
            *(f"two species: {file} is also {other}" for file, other in self.conflicts),
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
    return CheckReport(counts, tuple(bad), folder.strays, *_repeats(same.values()))


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


_Pairs = tuple[tuple[str, str], ...]


def _repeats(groups: Iterable[list[ImageFile]]) -> tuple[_Pairs, _Pairs, _Pairs]:
    """Duplicates, conflicts, leaks."""
    duplicates: list[tuple[str, str]] = []
    conflicts: list[tuple[str, str]] = []
    leaks: list[tuple[str, str]] = []
    for group in groups:
        first: dict[str, ImageFile] = {}  # split -> the first of the group in it, train before test
        for file in sorted(group, key=_split_then_path):
            if file.split in first:
                twin = first[file.split]
                kind = duplicates if twin.species == file.species else conflicts
                kind.append((file.path, twin.path))
            elif first:
                leaks.append((file.path, next(iter(first.values())).path))
            first.setdefault(file.split, file)
    return tuple(sorted(duplicates)), tuple(sorted(conflicts)), tuple(sorted(leaks))


def leaked(
    pixels: npt.NDArray[np.uint8], of_splits: Mapping[str, np.ndarray]
) -> dict[str, list[tuple[int, int]]]:
    """Which images of valid and of test have the pixels of one in an earlier split.

    Args:
        pixels: of all images, (N, H, W, 3).
        of_splits: indices of the images of train, valid and test.

    Returns:
        For valid and test, (image, the one in an earlier split), as indices.
    """
    seen: dict[bytes, int] = {}
    twins = {}
    for split in SPLITS:
        found = [
            (hashlib.blake2b(pixels[i], digest_size=16).digest(), int(i)) for i in of_splits[split]
        ]
        twins[split] = [(image, seen[digest]) for digest, image in found if digest in seen]
        seen |= dict(found)
    return {split: twins[split] for split in SPLITS[1:]}


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
