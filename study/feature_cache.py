"""A frozen encoder's features, on the node's disk: made once, mapped by all of its trials."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.packing import delete_older, file_lock, node_cache, temporary_file

UNUSED_SECONDS = 3 * 24 * 3600.0  # after which a file is taken for another study's, and deleted
log = logging.getLogger(__name__)


def kept(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The node's array of that name; made by the first process that asks for it.

    A disk that cannot hold it costs time, and no trial: each makes its own.

    Args:
        name: of the file; says all that the array follows from.
        make: computes it.
    """
    folder = node_cache() / "features"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    with file_lock(file.with_suffix(".lock")):
        if not _is_whole(file):
            delete_older(folder.glob("*.npy"), UNUSED_SECONDS)  # who has one mapped keeps it
            values = make()
            try:
                with temporary_file(folder) as temporary:
                    _save(temporary, values)
                    os.replace(temporary, file)
            except OSError as error:
                log.warning("%s: cannot be written (%s), going on without", file, error)
                return values
        with suppress(OSError):
            os.utime(file)
        return _map(file)


def _save(file: Path, values: np.ndarray) -> None:
    """When it is on the disk: after a power cut some file systems have the name and no content."""
    np.save(file, values)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _is_whole(file: Path) -> bool:
    """Whether it is there, and as long as it says."""
    try:
        _map(file)
    except (OSError, EOFError, ValueError):
        return False
    return True


@lru_cache(maxsize=4)
def _map(file: Path) -> np.ndarray:
    return np.load(file, mmap_mode="r")
