"""Whether the process that runs a study is alive, by the lock that goes with it."""

from __future__ import annotations

import fcntl

from data.storage import Location

LOCK = ".driver"
"""In the run's folder: locked by the study's driver (`study.driver`)."""


def driver_is_gone(run: Location) -> bool:
    """Whether a driver held the lock of a local run, and none does now: it was killed.

    False as well where that cannot be known: on an object store, or a share without locks.
    """
    if not run.is_local:
        return False
    try:
        with (run.local / LOCK).open() as stream:
            if stream.read(1):  # a sign of life, as there are no locks
                return False
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held, or not there
        return False
    return True
