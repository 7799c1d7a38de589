"""`mariposa submit`: a study as a Ray job, and its log followed from here.

It fills in the arguments of ``ray job submit``, no more: the job's command is ``python -m study
run ...`` and its id is the study's name. Ray's side of it, found in its sources (2.60):

- A finished job's id can be used again once it is deleted, but the process that watched over the
  first one looks for its actor for about a second more, and would call the second one failed.
- A job's log is a file by its id, so a second job of that id goes on in the same file.
- ``RAY_AUTH_MODE`` is read when Ray is imported, and not again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from data.storage import InputError, Location, reason_of
from study.config import PRESETS, Config

DASHBOARD = "http://127.0.0.1:8265"
PATIENCE = 40.0  # seconds: a cluster that has just started has no agent yet and answers 500
SETTLE = 5.0  # seconds from a job's end until its id is free
STOP_SECONDS = 30  # for the driver to write its records after `ray job stop`; Ray's own are 3
# What no cluster needs; .gitignore counts as well. The packages' own pictures are needed.
EXCLUDES = (
    *("/.git", "/.venv", "/venv", "/runs", "/wandb", "/lightning_logs", "/build", "/dist"),
    *("__pycache__", "*.egg-info", ".*_cache", ".ipynb_checkpoints", "node_modules"),
    *("*.jpg", "*.jpeg", "*.png", "*.webp", "*.bmp", "*.gif", "*.tif", "*.tiff"),
    *("*.npy", "*.npz", "*.parquet", "*.safetensors", "*.db", "*.zip", "*.tar", "*.tar.gz"),
    *("!/data/**", "!/models/**", "!/study/**", "!/analysis/**", "__pycache__"),  # the last wins
)
T = TypeVar("T")


class SubmissionFailedError(Exception):
    """The cluster took no job, or was lost while its log was followed: exit code 1."""


@dataclass(frozen=True)
class Job:
    """A study as a Ray job.

    Args:
        name: the study's, and the submission id.
        command: the entry point.
        run: where the run will lie, in words.
        working_dir: the folder that is uploaded, and in which the command runs.
        cpus: reserved for the entry point, which may then run on any node; 0: on the head.
    """

    name: str
    command: str
    run: str
    working_dir: Path
    cpus: float = 0.0

    @property
    def runtime_env(self) -> dict[str, Any]:
        """Ray's ``runtime_env``; its variables may not be those of `study.cluster.connected`."""
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        commit = _commit(self.working_dir)
        if commit:
            variables["MARIPOSA_COMMIT"] = commit
        return {
            "working_dir": str(self.working_dir),
            "excludes": list(EXCLUDES),
            "env_vars": variables,
        }


def job_of(
    config: Config,
    source: str | None,
    *,
    out: str,
    overrides: Sequence[str] = (),
    working_dir: str = ".",
    cpus: float = 0.0,
) -> Job:
    """The job that runs a study.

    Args:
        config: the study's configuration, already checked.
        source: what it was read from: a preset's name, or a file in ``working_dir``.
        out: a folder that all machines of the cluster share, or a URI.
        overrides: ``key=value``, as after ``--set``.
        working_dir: a checkout of this project, or any folder where the cluster has it installed.
        cpus: for the entry point.

    Raises:
        InputError: the folder or the file cannot be uploaded, or a URI holds a password.
    """
    folder = Path(working_dir).resolve()
    if not folder.is_dir():
        raise InputError(f"--working-dir {working_dir}: found no folder, expected one to upload")
    words = ["python", "-m", "study", "run", _uploaded(source or "quick", folder)]
    if config.data.root is not None:
        words += ["--data", _as_seen_there(config.data.root, "--data")]
    out = _as_seen_there(out, "--out")
    words += ["--out", out, "--name", config.name]
    words += [word for override in overrides for word in ("--set", override)]
    return Job(config.name, shlex.join(words), f"{config.name} in {out}", folder, cpus)


def submit(job: Job, address: str | None = None, wait: bool = True) -> int:
    """Submit a study, or find it running, and follow its log.

    Args:
        job: the study.
        address: of the dashboard, ``http://HOST:PORT``; None: ``RAY_API_SERVER_ADDRESS``, else
            this machine's.
        wait: until the job ends; Ctrl-C only ends the waiting.

    Returns:
        The job's own exit code; 0 without waiting; 130 where it was stopped, or no longer
        followed.

    Raises:
        InputError: no dashboard answers there, it refuses the token, or another study has that
            name.
        SubmissionFailedError: the cluster took no job, or was lost.
    """
    cluster = Cluster(address or os.environ.get("RAY_API_SERVER_ADDRESS") or DASHBOARD)
    what, skip = _start_or_find(cluster, job)
    print(f"{job.name}: {what} {cluster.address}; run {job.run}", flush=True)
    stop = f"stop it: {cluster.prefix}ray job stop {job.name} --address {cluster.address}"
    if not wait:
        print(f"follow it: the same command without --no-wait; {stop}")
        return 0
    try:
        return _report(job.name, cluster.follow(job.name, skip))
    except KeyboardInterrupt:
        print(f"\n{job.name}: runs on. follow it: the same command again; {stop}")
        return 130


def _start_or_find(cluster: Cluster, job: Job) -> tuple[str, int]:
    """What was done, in words, and how much of the log to skip."""
    before = cluster.find(job.name)
    if before is None or before.status.is_terminal():
        return "submitted to", cluster.start(job, before)
    if before.entrypoint != job.command:
        raise InputError(
            f"{job.name}: a job of that name runs `{before.entrypoint}`, expected "
            f"`{job.command}`, or another --name"
        )
    return "runs already on", cluster.last_start(job.name)


class Cluster:
    """A Ray cluster through its dashboard, the Jobs API.

    Args:
        address: ``http://HOST:PORT``.

    Raises:
        InputError: nothing or something else answers there, or it refuses the token.
    """

    def __init__(self, address: str):
        self.address = _reachable(address)
        self.prefix = use_token()
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # RAY_ADDRESS would have its way
        from ray.job_submission import JobSubmissionClient

        for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._client: Any = self._answer(lambda: JobSubmissionClient(self.address))
        self._seen = 0

    def find(self, name: str) -> Any:
        """The job of that id, Ray's ``JobDetails``; None where there is none."""
        jobs = self._answer(lambda: self._client.list_jobs())
        return next((job for job in jobs if job.submission_id == name), None)

    def start(self, job: Job, before: Any = None) -> int:
        """Submit a job, in place of one that has ended.

        Returns:
            How much of its log is of that one, in characters.
        """
        log = ""
        if before is not None:
            log = self._answer(lambda: self._client.get_job_logs(job.name))
            time.sleep(SETTLE)
            self._answer(lambda: self._client.delete_job(job.name))
        self._answer(lambda: self._submit(job))
        return 0 if job.cpus else len(log)  # with CPUs of its own it may run elsewhere

    def _submit(self, job: Job) -> None:
        if self.find(job.name) is not None:  # the answer to an attempt before was lost
            return
        self._client.submit_job(
            entrypoint=job.command,
            submission_id=job.name,
            runtime_env=job.runtime_env,
            entrypoint_num_cpus=job.cpus or None,
        )

    def last_start(self, name: str) -> int:
        """Where in its log the last job of that id begins, in characters."""
        log = self._answer(lambda: self._client.get_job_logs(name))
        return max(0, log.rfind(f"Running entrypoint for job {name}:"))

    def follow(self, name: str, skip: int = 0) -> Any:
        """Print a job's log from there until the job ends; its last ``JobDetails``.

        Raises:
            SubmissionFailedError: the cluster is gone.
        """
        import aiohttp

        self._seen = 0
        limit = time.monotonic() + PATIENCE
        while True:
            try:
                asyncio.run(self._print_log(name, skip))
                details = self.find(name)
            except BrokenPipeError:
                raise
            except (aiohttp.ClientError, OSError, RuntimeError, InputError) as error:
                if time.monotonic() > limit:
                    raise SubmissionFailedError(
                        f"{name}: {self.address} no longer answers ({_last_line(error)}); the "
                        f"same command goes on, here or, if this cluster is gone, on another "
                        f"with the same --out"
                    ) from None
            else:
                limit = time.monotonic() + PATIENCE
                if details is None:
                    raise SubmissionFailedError(f"{name}: the job was deleted on {self.address}")
                if details.status.is_terminal():
                    return details
            time.sleep(1)

    async def _print_log(self, name: str, skip: int) -> None:
        """Print what was not printed before: a connection begins at the log's beginning."""
        position = 0
        async for text in self._client.tail_job_logs(name):
            new = text[max(0, max(skip, self._seen) - position) :]
            position += len(text)
            self._seen = max(self._seen, position)
            print(new, end="", flush=True)

    def _answer(self, call: Callable[[], T]) -> T:
        """What the dashboard answers; while it starts, it is asked again.

        Raises:
            InputError: it is none, or refuses the token.
            SubmissionFailedError: it refuses the call.
        """
        import ray
        import requests

        limit = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except ray.exceptions.AuthenticationError as error:
                raise InputError(
                    f"{self.address}: {reason_of(error)}; expected the cluster's token "
                    f"in ~/.ray/auth_token or RAY_AUTH_TOKEN"
                ) from None
            except (ConnectionError, requests.RequestException, KeyError) as error:
                wrong: Exception = InputError(
                    f"{self.address}: {_last_line(error)}; expected a Ray dashboard"
                )
                again = "RemoteDisconnected" in str(error)
            except (RuntimeError, ValueError) as error:
                wrong = SubmissionFailedError(f"{self.address}: {_last_line(error)}")
                again = "status code 5" in str(error) and "maximum size" not in str(error)
            if not again or time.monotonic() > limit:
                raise wrong
            time.sleep(1)


def _report(name: str, details: Any) -> int:
    """Say how a job ended; its exit code."""
    status, code = str(details.status.value), details.driver_exit_code
    if status == "STOPPED":
        print(f"{name}: stopped; the same command goes on with it")
        return 130
    print(f"{name}: {status}" + (f", exit code {code}" if code else ""))
    if code is None and status == "FAILED":  # its driver was lost, or never began
        print(_last_line(details.message or "Ray says no reason"))
        return 1
    return int(code or 0)


def _uploaded(source: str, folder: Path) -> str:
    """A preset's name, or a file's path in the uploaded folder."""
    if source in PRESETS:
        return source
    file = Path(source).resolve()
    if not file.is_relative_to(folder):
        raise InputError(
            f"{source}: lies outside {folder}, which is all that is uploaded; expected a file in "
            f"it, or another --working-dir"
        )
    name = file.relative_to(folder).as_posix()
    if _git(folder, "check-ignore", "--quiet", "--no-index", name) is not None:
        raise InputError(f"{source}: is in .gitignore, so Ray uploads it not; expected another")
    return name


def _as_seen_there(where: str, option: str) -> str:
    """A URI as it is, a path made absolute: the job runs in another folder.

    The command is shown on the dashboard and in logs, so it may hold no password.
    """
    if "://" not in where:
        return str(Location(where))
    if "@" in urlsplit(where).netloc:
        raise InputError(
            f"{option}: found a user or a key in the URI, which all users of the cluster would "
            f"see; expected it in the cluster's environment"
        )
    return where


def _reachable(address: str) -> str:
    """The address with its scheme, if something listens there; Ray would try for minutes."""
    url = address.rstrip("/") if "://" in address else f"http://{address.rstrip('/')}"
    scheme = url.partition("://")[0]
    if scheme not in ("http", "https"):
        raise InputError(f"--address {address}: expected a dashboard, http://HOST:8265")
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[scheme]
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"--address {address}: {reason}; expected a Ray dashboard (`ray start --head` on that "
            f"machine, or `ray dashboard cluster.yaml` for one on AWS)"
        ) from None
    return url


def use_token() -> str:
    """Use the token that ``ray start`` found; to be called before Ray is imported.

    Returns:
        What `ray job` commands need in front for the same.
    """
    token = Path("~/.ray/auth_token").expanduser()
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    set_already = "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules
    if set_already or not (given or token.is_file()):
        return ""
    os.environ["RAY_AUTH_MODE"] = "token"
    return "RAY_AUTH_MODE=token "


def _commit(folder: Path) -> str | None:
    """Of the checkout that is uploaded, if it is one."""
    if not (folder / "study" / "pipeline.py").is_file():
        return None
    return _git(folder, "rev-parse", "--short", "HEAD")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails or there is none."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
