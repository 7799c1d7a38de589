"""Decode a data set once, into one array on disk that every process of a node maps.

    folder -> DESTINATION/KEY.npy, KEY.json -> CACHE/KEY.npy, on each node's own disk -> a map

KEY follows from the files' content, so that another study on the same images decodes nothing.
Shapes: N images of H × W pixels (H = W = image_size), RGB.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data.decoding import BadImageError, quiet_decoders, read_file, read_image
from data.folders import ImageFile, ImageFolder
from data.sealing import seal_json, unseal_json
from data.storage import InputError, Location, reason_of

PACKING_VERSION = 1  # raise it whenever the same files would give other pixels
_BLOCK = 32  # images a thread decodes before it writes


@dataclass(frozen=True)
class PackedImages:
    """The decoded images of a data set.

    Attributes:
        pixels: (N, H, W, 3) uint8, a read-only memory map.
        labels: (N,) int64, indices into ``species``, read-only.
        files: N paths relative to the folder's root.
        splits: N times "train", "valid" or "test"; "" where the layout is pooled.
        species: names, sorted.
        image_size: H and W.
        key: names the packed files.
        fingerprint: a hash of all paths and of all files' content.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    files: tuple[str, ...]
    splits: tuple[str, ...]
    species: tuple[str, ...]
    image_size: int
    key: str
    fingerprint: str


def image_from_bytes(content: bytes, image_size: int) -> npt.NDArray[np.uint8]:
    """Decode an image file and stretch it to a square, with antialiasing.

    Returns:
        (H, W, 3) uint8, RGB, H = W = image_size.

    Raises:
        BadImageError: see ``data.decoding.read_image``. Its message lacks the file's name.
    """
    # Twice the side: a JPEG scaled down while it is decoded then loses nothing that one can see.
    image = read_image(content, at_least=2 * image_size)
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))


def pack_images(
    folder: ImageFolder, image_size: int, destination: Location, workers: int
) -> tuple[str, bool]:
    """Decode all images into ``destination``, unless they are there.

    Threads, not processes: decoding and resizing let go of Python's lock, and on two cores they
    were a quarter faster than two processes that first have to start.

    Args:
        folder: what ``data.folders.find_images`` found.
        image_size: H and W.
        destination: a folder, made where it is missing. Packed files that are damaged there are
            written again.
        workers: threads.

    Returns:
        The key for ``open_packed``, and whether anything had to be decoded.

    Raises:
        InputError: an image is bad; the destination cannot be written.
    """
    fingerprint = _fingerprint(folder, workers)
    key = _key(fingerprint, image_size, folder.layout)
    if _is_whole(destination, key):
        return key, False
    try:
        with temporary_file(_beside(destination)) as temporary:
            _decode(folder, image_size, temporary, workers)
            checksum, size = _checksum(temporary), temporary.stat().st_size
            _publish(temporary, destination / f"{key}.npy")
        index = _index(folder, image_size, fingerprint) | {"blake2b": checksum, "bytes": size}
        (destination / f"{key}.json").write_text(seal_json(index))  # last: it says "complete"
    except OSError as error:
        raise InputError(_cannot_write(destination, error)) from None
    return key, True


def _fingerprint(folder: ImageFolder, workers: int) -> str:
    with ThreadPoolExecutor(max(1, workers)) as pool:
        hashes = list(pool.map(lambda file: _content_hash(folder, file), folder.files))
    return hashlib.blake2b("\n".join(hashes).encode(), digest_size=16).hexdigest()


def _content_hash(folder: ImageFolder, file: ImageFile) -> str:
    try:
        content = read_file(folder.root / file.path)
    except BadImageError as error:
        return f"{file.path}\t{error.reason}"  # named with the other bad files when decoded
    return f"{file.path}\t{hashlib.blake2b(content, digest_size=16).hexdigest()}"


def _key(fingerprint: str, image_size: int, layout: str) -> str:
    parts = f"{PACKING_VERSION} {fingerprint} {image_size} {layout}"
    return hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()


def _index(folder: ImageFolder, image_size: int, fingerprint: str) -> dict[str, Any]:
    number = {name: i for i, name in enumerate(folder.species)}
    return {
        "files": [file.path for file in folder.files],
        "labels": [number[file.species] for file in folder.files],
        "splits": [file.split for file in folder.files],
        "species": folder.species,
        "image_size": image_size,
        "fingerprint": fingerprint,
    }


def _is_whole(destination: Location, key: str) -> bool:
    pixels = destination / f"{key}.npy"
    try:
        index = _read_index(destination, key)
        if not pixels.is_local:
            return pixels.is_file()  # an object store has no half-written file
        return (
            pixels.local.stat().st_size == index["bytes"]
            and _checksum(pixels.local) == index["blake2b"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_index(destination: Location, key: str) -> dict[str, Any]:
    return unseal_json((destination / f"{key}.json").read_text())


def _beside(destination: Location) -> Path:
    """Where a rename suffices to publish a file; else the folder of temporary files."""
    return destination.local if destination.is_local else Path(tempfile.gettempdir())


@contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """A name for an array in that folder, which is made; gone with the block.

    So are those that a process left there which was killed, a day ago or longer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    delete_older(folder.glob(".part-*.npy"), 24 * 3600.0)
    temporary = folder / f".part-{uuid.uuid4().hex[:8]}.npy"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def delete_older(files: Iterable[Path], seconds: float) -> None:
    """Delete those of the files that nobody has written or touched for so long."""
    for file in files:
        with suppress(OSError):  # another process's or user's
            if time.time() - file.stat().st_mtime > seconds:
                file.unlink()


def _publish(temporary: Path, target: Location) -> None:
    if target.is_local:
        os.replace(temporary, target.local)
    else:
        target.upload(temporary)


def _decode(folder: ImageFolder, image_size: int, target: Path, workers: int) -> None:
    header = io.BytesIO()
    shape = (len(folder.files), image_size, image_size, 3)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    target.write_bytes(header.getvalue())
    image_bytes, start = image_size * image_size * 3, len(header.getvalue())

    def decode_block(first: int) -> list[tuple[str, BadImageError]]:
        files = folder.files[first : first + _BLOCK]
        pixels, bad = _decode_files(folder.root, files, image_size)
        with target.open("r+b") as stream:
            stream.seek(start + first * image_bytes)
            stream.write(pixels.data)
        return bad

    with quiet_decoders(), ThreadPoolExecutor(max(1, workers)) as pool:
        blocks = pool.map(decode_block, range(0, len(folder.files), _BLOCK))
        bad = [entry for block in blocks for entry in block]
    if bad:
        raise InputError(_bad_images(folder, bad))


def _decode_files(
    root: Location, files: tuple[ImageFile, ...], image_size: int
) -> tuple[npt.NDArray[np.uint8], list[tuple[str, BadImageError]]]:
    pixels = np.zeros((len(files), image_size, image_size, 3), np.uint8)
    bad = []
    for i, file in enumerate(files):
        try:
            pixels[i] = image_from_bytes(read_file(root / file.path), image_size)
        except BadImageError as error:
            bad.append((file.path, error))
    return pixels, bad


def _bad_images(folder: ImageFolder, bad: list[tuple[str, BadImageError]]) -> str:
    path, error = bad[0]
    line = f"{folder.root / path}: {error}"
    if len(bad) == 1:
        return line
    files = "file" if len(bad) == 2 else "files"
    return f"{line} ({len(bad) - 1} more bad {files}: mariposa data check {folder.root} lists them)"


def _cannot_write(destination: Location | Path, error: OSError) -> str:
    room = "free disk space" if error.errno == errno.ENOSPC else "a folder that can be written"
    reason = reason_of(error).lower()
    return f"{destination}: cannot hold the packed images ({reason}); expected {room}"


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def open_packed(destination: Location, key: str, cache: Path | None = None) -> PackedImages:
    """Map the packed images, from this node's own copy.

    The copy is made and verified once, by whichever process comes first; all processes that map
    it share its memory.

    Args:
        destination: where ``pack_images`` wrote them.
        key: what it returned.
        cache: a folder on this node's disk; by default $MARIPOSA_CACHE, else a folder for this
            user among the temporary files.

    Raises:
        InputError: the packed images are missing or damaged, or the cache cannot be written.
    """
    where = destination / f"{key}.json"
    try:
        index = _read_index(destination, key)
        labels = np.array(index["labels"], np.int64)
        labels.flags.writeable = False
        return PackedImages(
            pixels=np.load(_cached(destination / f"{key}.npy", index, cache), mmap_mode="r"),
            labels=labels,
            files=tuple(index["files"]),
            splits=tuple(index["splits"]),
            species=tuple(index["species"]),
            image_size=index["image_size"],
            key=key,
            fingerprint=index["fingerprint"],
        )
    except FileNotFoundError:
        raise InputError(f"{where}: no such file; expected packed images") from None
    except OSError as error:
        raise InputError(f"{where}: {reason_of(error).lower()}; expected packed images") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(_damaged(where, "not what was written")) from None


def _cached(source: Location, index: dict[str, Any], cache: Path | None) -> Path:
    """This node's verified copy of KEY.npy."""
    folder = node_cache(cache)
    copy = folder / source.name
    if _is_verified(copy, index):
        return copy
    try:
        with file_lock(copy.with_suffix(".lock")):
            if not _is_verified(copy, index) and not _verify(copy, index):
                source.download(copy)
                if not _verify(copy, index):
                    copy.unlink()
                    raise InputError(_damaged(source, "its checksum is wrong"))
    except FileNotFoundError:
        raise InputError(f"{source}: no such file; expected packed images") from None
    except OSError as error:
        raise InputError(_cannot_write(folder, error)) from None
    return copy


def node_cache(chosen: Path | None = None) -> Path:
    """This node's folder for what can be made again; see ``open_packed``.

    Raises:
        InputError: it cannot be made, or belongs to another user.
    """
    own = Path(tempfile.gettempdir()) / f"mariposa-{os.getuid()}"
    folder = chosen or Path(os.environ.get("MARIPOSA_CACHE") or own).expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(_cannot_write(folder, error)) from None
    if folder == own and folder.stat().st_uid != os.getuid():  # /tmp: anyone may make it first
        raise InputError(f"{folder}: belongs to another user; expected $MARIPOSA_CACHE to be set")
    return folder


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock among the processes of this node."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # let go of by the kernel if this process dies
        yield


def _verify(copy: Path, index: dict[str, Any]) -> bool:
    """Compare the checksum; where it is right, leave a mark that saves the next one the work."""
    if not copy.is_file() or copy.stat().st_size != index["bytes"]:
        return False
    mark = _mark(copy, index)
    if _checksum(copy) != index["blake2b"]:
        return False
    Location(copy.with_suffix(".ok")).write_text(mark)
    return True


def _is_verified(copy: Path, index: dict[str, Any]) -> bool:
    try:
        return copy.with_suffix(".ok").read_text() == _mark(copy, index)
    except OSError:
        return False


def _mark(copy: Path, index: dict[str, Any]) -> str:
    state = copy.stat()
    return f"{index['blake2b']} {state.st_size} {state.st_mtime_ns}"


def _damaged(where: Location, how: str) -> str:
    return f"{where}: is damaged ({how}); delete it and start again, it is made anew"
