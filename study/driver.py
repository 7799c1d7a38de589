"""One driver a run, as its records have one writer."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from data.storage import InputError, Location

log = logging.getLogger(__name__)
LOCK = ".driver"  # in the run's folder


@contextmanager
def only_driver(run: Location) -> Iterator[None]:
    """Keep a second driver from a run.

    The lock goes with the process, however it ends. An object store has none, nor have some shares.

    Raises:
        InputError: another process has it, or the folder cannot be written.
    """
    if not run.is_local:
        yield
        return
    with _opened(run) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{run}: another process is running this study, expected none; "
                f"`mariposa leaderboard` shows how far it is"
            ) from None
        except OSError as error:
            log.warning("%s: has no locks (%s), so start it only once", run, error.strerror)
        yield


def _opened(run: Location) -> IO[str]:
    try:
        run.local.mkdir(parents=True, exist_ok=True)
        return (run.local / LOCK).open("w")
    except OSError as error:
        raise InputError(f"{run}: cannot be written ({error.strerror or error})") from None
