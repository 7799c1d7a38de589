"""One driver a run, as its records have one writer."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from analysis.liveness import LOCK, this_machine
from data.storage import InputError, Location, reason_of

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
SILENCE_SECONDS = 20.0  # after which a driver that has not said goodbye is taken for dead


@contextmanager
def only_driver(run: Location) -> Iterator[None]:
    """Keep a second driver from a run.

    A lock of the file system goes with the process, however it ends. Where there is none, on object
    stores and some shares, the driver writes a new sign of life every 5 s; who finds one waits
    until it has been the same for 20 s. A driver that finds another's in its place ends at once.

    Raises:
        InputError: another process runs the study, or the folder cannot be written.
    """
    if not run.is_local:
        with _signs_of_life(run):
            yield
        return
    with _opened(run) as stream:
        try:
            _lock(stream)
        except BlockingIOError:
            raise _is_running(run) from None
        except OSError as error:
            log.warning("%s: has no locks (%s)", run, reason_of(error))
            with _signs_of_life(run):
                yield
            return
        stream.truncate(0)
        stream.write(this_machine())
        stream.flush()
        yield


def _lock(stream: IO[str]) -> None:
    """Lock it, or raise BlockingIOError: who only looks (`analysis.liveness`) holds it briefly."""
    for _ in range(3):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _opened(run: Location) -> IO[str]:
    try:
        run.local.mkdir(parents=True, exist_ok=True)
        return (run.local / LOCK).open("a")
    except OSError as error:
        raise InputError(f"{run}: cannot be written ({reason_of(error)})") from None


def _is_running(run: Location) -> InputError:
    return InputError(
        f"{run}: another process is running this study, expected none; "
        f"`mariposa leaderboard` shows how far it is"
    )


@contextmanager
def _signs_of_life(run: Location) -> Iterator[None]:
    sign = run / LOCK
    _await_silence(run, sign)
    name, ended = uuid.uuid4().hex, threading.Event()
    sign.write_text(f"{name} 0")
    beats = threading.Thread(target=_beat, args=(sign, name, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join(BEAT_SECONDS)  # storage may keep silent
        with suppress(OSError):
            sign.delete()


def _await_silence(run: Location, sign: Location) -> None:
    last = _read(sign)
    if not last:
        return
    print(f"{run}: its last driver did not say goodbye; {SILENCE_SECONDS:g} s to see", flush=True)
    limit = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < limit:
        time.sleep(min(1.0, SILENCE_SECONDS / 4))
        if _read(sign) not in ("", last):
            raise _is_running(run)


def _beat(sign: Location, name: str, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_SECONDS):
        beat += 1
        try:
            if not (_read(sign) or name).startswith(name):
                print(f"{sign.parent}: another process has taken over", file=sys.stderr, flush=True)
                os._exit(1)  # nothing may be written any more; what is recorded is there
            sign.write_text(f"{name} {beat}")
        except OSError as error:
            log.warning("%s: cannot be written (%s)", sign, error)


def _read(sign: Location) -> str:
    """What is there; "" where nothing is."""
    try:
        return sign.read_text()
    except FileNotFoundError:
        return ""
