"""Whether the W&B server can be had, and what the driver says of it.

A server that cannot be had costs a process seconds once: it is asked before the first run, and
runs are kept offline from then on.
"""

from __future__ import annotations

import base64
import json
import logging
import netrc
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from functools import lru_cache
from typing import Any

from data.storage import Location
from study.config import Config
from study.wandb_files import own_temporary_files, sweep

log = logging.getLogger(__name__)

PROBE_SECONDS = 5.0  # for the server's first answer
NOT_SENT = "not-sent"  # in the folder of a run that the server did not take whole


def notice(config: Config, run: Location) -> str | None:
    """What the driver should say of W&B before the search; asks the server, at most 5 s."""
    if config.tracking.wandb != "online":
        return None
    reason = unreachable()
    if reason is None:
        return None
    return f"W&B is not reached ({reason}): its runs are kept offline; {_how_to_send(run)}"


def closing_notice(config: Config, run: Location) -> str | None:
    """Tidy up when the workers have ended; what to say of W&B runs that were not sent."""
    sweep()
    if config.tracking.wandb != "online":
        return None
    waiting = not_sent(run)
    if not waiting:
        return None
    offline = all(name.startswith("offline") for name in waiting)
    pattern = "offline-run-*" if offline else "*run-*"
    return f"{len(waiting)} W&B runs were not sent; {_how_to_send(run, pattern)}"


def not_sent(run: Location) -> list[str]:
    """Names of the folders below ``RUN/wandb`` that no server has, or not the whole of."""
    names = []
    for folder in (run / "wandb").children():
        inside = [file.name for file in folder.children()] if "run-" in folder.name else []
        sent = any(name.endswith(".synced") for name in inside)
        if not sent and (folder.name.startswith("offline-run-") or NOT_SENT in inside):
            names.append(folder.name)
    return names


def _how_to_send(run: Location, pattern: str = "offline-run-*") -> str:
    if run.is_local:
        return f"send them with: wandb sync {run}/wandb/{pattern}"
    return f"copy {run}/wandb to a disk, and send them with: wandb sync wandb/{pattern}"


_given_up: list[str] = []  # why this process keeps its runs offline from now on


def unreachable() -> str | None:
    """Why runs cannot be sent; None where they can. Found out once a process."""
    return _given_up[0] if _given_up else _probe_once()


@lru_cache(maxsize=1)
def _probe_once() -> str | None:
    with own_temporary_files():
        import wandb

        settings = wandb.setup().settings
    answers: list[str | None] = []
    key = _key(settings)
    if key is None:
        return f"no key for {settings.base_url}: see `wandb login`"
    # A name that is not resolved, or an answer in drops, keeps to no time limit of a socket.
    asking = threading.Thread(
        target=lambda: answers.append(_ask(settings.base_url, key)), daemon=True
    )
    asking.start()
    asking.join(PROBE_SECONDS)
    return answers[0] if answers else _silent(settings.base_url)


def _silent(url: str) -> str:
    return f"{url}: no answer in {PROBE_SECONDS:.0f} s"


def _key(settings: Any) -> str | None:
    """The user's key, as W&B looks for it; empty where another kind of login is set up."""
    if settings.identity_token_file:
        return ""
    if settings.api_key:
        return str(settings.api_key)
    host = urllib.parse.urlsplit(settings.base_url).hostname or ""
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None


def _ask(url: str, key: str) -> str | None:
    """Whether the server knows the key; why not, without the key."""
    query = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
    try:
        request = urllib.request.Request(f"{url}/graphql", query)
        request.add_header("Content-Type", "application/json")
        if key:  # not to be sent to wherever the server redirects
            token = base64.b64encode(f"api:{key}".encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as answer:
            viewer = json.load(answer)["data"]["viewer"]
    except urllib.error.HTTPError as error:
        return f"{url}: {error.code} {error.reason}"
    except TimeoutError:
        return _silent(url)
    except urllib.error.URLError as error:
        return f"{url}: {error.reason}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{url}: {type(error).__name__}, no W&B server"
    return f"{url}: the key is not known there" if key and viewer is None else None


def give_up(error: Exception) -> None:
    """Keep this process's runs offline from now on."""
    _given_up.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    log.warning("W&B is offline in this process: %s", _given_up[0])
