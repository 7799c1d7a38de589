"""What W&B leaves in the temporary folder, and how it is kept from piling up there.

It makes folders on import and for each of its service processes, and removes them when Python
ends in good order, which a Ray worker never does. So they are made in a folder of the process,
below the node's cache, that is locked while the process lives; what is not locked goes, at the
start of the next and when a study ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

from data.packing import file_lock, node_cache
from data.storage import InputError

_SOCKET = 107 - len("/wandb-1234567-1234567-1234567890/socket")  # Linux: 107 characters a path


@contextlib.contextmanager
def own_temporary_files() -> Iterator[None]:
    """Have W&B put its temporary files into this process's own folder."""
    folder = _own_folder()
    if folder is None:
        yield
        return
    values = {f"WANDB_{kind}_DIR": str(folder) for kind in ("CACHE", "DATA")}
    values["WANDB_ERROR_REPORTING"] = "false"  # offline asks nobody, not even for that
    values = {name: value for name, value in values.items() if name not in os.environ}
    if len(str(folder)) <= _SOCKET:
        values["TMPDIR"] = str(folder)  # of W&B's own process, which makes its socket there
    before, place = {name: os.environ.get(name) for name in values}, tempfile.tempdir
    os.environ.update(values)
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = place
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


_locks: list[IO[str]] = []  # held open, and with them locked, until the process ends


@lru_cache(maxsize=1)
def _own_folder() -> Path | None:
    """This process's folder; None where it cannot be had: W&B then uses the common one."""
    try:
        sweep()
        base = _base()
        with file_lock(base / ".lock"):
            folder = Path(tempfile.mkdtemp(dir=base))
            _locks.append((folder / ".lock").open("w"))
            fcntl.flock(_locks[-1], fcntl.LOCK_EX)
    except (OSError, InputError):
        return None
    return folder


def _base() -> Path:
    base = node_cache() / "wandb-tmp"
    base.mkdir(exist_ok=True)
    return base


def sweep() -> None:
    """Remove the temporary files of W&B that processes of this node have left."""
    with contextlib.suppress(OSError, InputError):
        base = _base()
        with file_lock(base / ".lock"):
            for folder in [each for each in base.iterdir() if each.is_dir()]:
                if _left(folder / ".lock"):
                    shutil.rmtree(folder, ignore_errors=True)


def _left(lock: Path) -> bool:
    """Whether nobody holds it."""
    try:
        with lock.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
