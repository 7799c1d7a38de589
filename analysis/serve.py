"""`mariposa serve`: the report of one run, on this machine only, and live while the study runs.

The page asks for a version every few seconds. Only then are the records read, and only if they
have changed is the page made anew, so a page that nobody looks at costs nothing, and one that
somebody looks at a fifth of a core at most. Nothing but the page is served: no path of a request
is ever looked up on disk.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from analysis import page
from analysis.load import Run, load
from analysis.report import content
from analysis.results import Results
from analysis.sections.shown import Shown
from data.storage import InputError, Location

ADDRESS, PORT = "127.0.0.1", 8642
NAMES = {"127.0.0.1", "localhost", "[::1]"}
REST = 4.0  # seconds between two looks, or so many times what the last took
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class LivePage:
    """The page of a run, made from its newest records.

    Raises:
        InputError: on creation, if it is not a run or a record is torn. If a record is torn
            later, the page stays as it was and says so.
    """

    def __init__(self, run: Location):
        self._run = run
        self._busy = threading.Lock()
        self._due = 0.0
        self._version = self.html = b""
        self._state = ""
        self._problem: str | None = None
        self._look()

    def poll(self) -> dict[str, str | None]:
        """``version state problem``; starts a look at the records in a thread if one is due."""
        if time.monotonic() > self._due and self._busy.acquire(blocking=False):
            threading.Thread(target=self._look_beside, daemon=True).start()
        state, problem = self._state, self._problem
        return {"version": self._version.decode(), "state": state, "problem": problem}

    def _look_beside(self) -> None:
        try:
            self._look()
            self._problem = None
        except (InputError, OSError) as error:
            self._problem = f"not renewed: {error}"
        finally:
            self._busy.release()

    def _look(self) -> None:
        begun = time.monotonic()
        version = fingerprint(self._run)
        run = load(self._run)
        version += run.state.encode()
        if version != self._version and not (self.html and _about_to_report(run)):
            found = content(Shown(Results(run))) | {"live": True, "version": version.decode()}
            self.html = page.render(found).encode()
            state = run.state.lower()
            self._version, self._state = version, f"{'live · ' * (state == 'running')}{state}"
        took = time.monotonic() - begun
        self._due = time.monotonic() + REST * max(1.0, took)


def _about_to_report(run: Run) -> bool:
    """Whether the study itself is about to make maps and report: making them twice at once takes
    longer than one after the other, and would hold up the study.
    """
    mapped = (run.location / "latents.parquet").is_file()
    return run.state == "RUNNING" and bool(run.encoders) and not mapped


def fingerprint(run: Location) -> bytes:
    """A hash that changes with any record of a run, but not with what a report writes."""
    digest = hashlib.sha256()
    for file in run.children():
        record = file.name == "study.yaml" or file.name.endswith(".parquet")
        if record and file.name not in ("latents.parquet", "probes.parquet"):
            digest.update(file.name.encode() + file.read_bytes())
    digest.update(repr([each.name for each in (run / "features").children()]).encode())
    return digest.hexdigest()[:16].encode()


def bind(port: int) -> ThreadingHTTPServer:
    """A server that does not answer yet; ``port`` 0 takes a free one.

    Raises:
        InputError: the port is taken, or not allowed.
    """
    try:
        return ThreadingHTTPServer((ADDRESS, port), _Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--port: found {port} ({reason}), expected a free port") from None


def serve(run: Location, port: int = PORT) -> None:
    """Serve a run's page until Ctrl-C.

    Raises:
        InputError: the port is taken, it is not a run, or a record is torn.
    """
    with bind(port) as server:
        server.live = LivePage(run)  # type: ignore[attr-defined]
        print(
            f"http://{ADDRESS}:{server.server_port}/ shows {run.name}; Ctrl-C ends it", flush=True
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(flush=True)


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "Mariposa", ""
    timeout = 30

    def do_GET(self) -> None:
        live: LivePage = self.server.live  # type: ignore[attr-defined]
        if _name(self.headers.get("Host", "")) not in NAMES:  # as with DNS rebinding
            self._answer(403, b"expected the host 127.0.0.1 or localhost\n", "text/plain")
        elif self.path == "/":
            self._answer(200, live.html, "text/html")
        elif self.path == "/version":
            self._answer(200, json.dumps(live.poll()).encode(), "application/json")
        else:
            self._answer(404, b"there are only / and /version\n", "text/plain")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def _name(host: str) -> str:
    """``localhost`` of ``localhost:8642``; through a tunnel the port may be another."""
    name, _, port = host.rpartition(":")
    return name if name and port.isdecimal() else host
