"""Where Ray is looked for: ``--address``, else the environment, else a local Ray of its own."""

from __future__ import annotations

import os
import socket

from data.storage import InputError


def is_local(address: str | None) -> bool:
    """Whether a study starts a Ray of its own: neither option nor environment names a cluster."""
    return address is None and "RAY_ADDRESS" not in os.environ


def named(address: str | None) -> str:
    """Where it is, and who says so, for an error's line."""
    if is_local(address):
        return "a local Ray"
    return f"--address {address}" if address else f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}"


def require_reachable(address: str | None) -> None:
    """Find out in seconds; Ray would try for minutes.

    Raises:
        InputError: nothing listens at ``HOST:PORT``, or it is Ray Client's address: Tune would run
            elsewhere then, with copies of the search and of its ledger.
    """
    where = address or os.environ.get("RAY_ADDRESS", "")
    if where.startswith("ray://"):
        raise InputError(
            f"{named(address)}: found an address of Ray Client, expected HOST:6379 on a machine of "
            f"the cluster, or `mariposa submit`"
        )
    host, _, port = where.rpartition(":")
    if not port.isdecimal():  # "auto", "local"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"{named(address)}: {error}; expected a Ray cluster") from None
