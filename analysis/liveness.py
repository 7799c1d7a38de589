"""Whether the process that runs a study is alive: it holds a lock in the run's folder."""

from __future__ import annotations

import fcntl
import socket
from contextlib import suppress
from pathlib import Path

from data.storage import Location

LOCK = ".driver"
"""In the run's folder: locked by the study's driver (`study.driver`), and says on which machine."""


def this_machine() -> str:
    """A name for this boot of this machine, or for this container."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot}"


def driver_is_gone(run: Location) -> bool:
    """Whether a driver on this machine held the run's lock and none does now: it was killed.

    Also False if that cannot be known: on an object store, on a share without locks, or if the
    driver is on another machine, as locks do not reach everywhere.
    """
    if not run.is_local:
        return False
    try:
        with (run.local / LOCK).open() as stream:
            if stream.read() != this_machine():
                return False
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # the lock is held, or there is no file
        return False
    return True
