"""Ray: connecting to it, what it has, and running plain functions as its tasks."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import ray

from data.storage import InputError
from models.memory import MEMORY_ENVIRONMENT
from study.config import Config
from study.planning import gpu_share

TASK_RETRIES = 10  # of a task whose process or machine dies; its own exceptions end it
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # study.stages has its own, for all its parts
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails reports no metric
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # Tune's own experiment state is never read back (docs/DESIGN.md): write it once, at the end.
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
}
_WORKERS = MEMORY_ENVIRONMENT | {
    "PL_DISABLE_FORK": "1",  # as Tune sets it for its actors: so they can take any idle worker
    # A trial's function may be in the middle of an epoch when its actor is given to the next.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
}


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to Ray for the time of the block.

    Args:
        address: of a cluster; None: the cluster this process was submitted to, else a local Ray
            of its own, which ends with the block.

    Raises:
        InputError: nothing answers at that address.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # Tune warns of each trial's missing result.json, which nobody asked it to write.
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options |= {"runtime_env": {"env_vars": _WORKERS}}
    if address is None and "RAY_ADDRESS" not in os.environ:
        # Ray would otherwise join whatever cluster was last started on this machine.
        options |= {"address": "local", "include_dashboard": False}
        options |= {"object_store_memory": 256 * 2**20}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--address {address}: {reason}; expected a Ray cluster") from None
    try:
        yield
    finally:
        # Here and not in a thread beside the report: a reference that Python drops meanwhile
        # finds Ray's worker gone, and Ray then ends the process (docs/LOG.md).
        ray.shutdown()


def slots(config: Config) -> int:
    """How many trials of this study fit on the cluster at once; at least 1."""
    have = ray.cluster_resources()
    wanted = resources_per_trial(config)
    fits = [int(have.get(name, 0) / amount) for name, amount in wanted.items() if amount]
    limit = config.resources.max_concurrent
    fitting = max(1, min(fits, default=1))
    return fitting if limit == "auto" else min(limit, fitting)


def resources_per_trial(config: Config) -> dict[str, float]:
    """``{"CPU": ..., "GPU": ...}`` of one trial; ``auto`` gives each trial a share of a GPU."""
    gpus = config.resources.gpus_per_trial
    if gpus == "auto":
        gpus = gpu_share(config) if ray.cluster_resources().get("GPU", 0) else 0.0
    return {"CPU": float(config.resources.cpus_per_trial), "GPU": float(gpus)}


class Tasks:
    """Plain functions as Ray tasks, a result by name.

    Args:
        function: a module's function; runs in another process.
        resources: ``{"CPU": ..., "GPU": ...}`` of one task.
        at_once: how many may be in flight.
    """

    def __init__(
        self, function: Callable[..., Any], resources: Mapping[str, float], at_once: int = 10**6
    ):
        self._remote = ray.remote(function).options(
            num_cpus=resources.get("CPU", 1),
            num_gpus=resources.get("GPU", 0),
            max_retries=TASK_RETRIES,
            retry_exceptions=False,
        )
        self._at_once = at_once
        self._waiting: list[tuple[Hashable, tuple[Any, ...]]] = []
        self._running: dict[ray.ObjectRef, Hashable] = {}

    def add(self, name: Hashable, *arguments: Any) -> None:
        self._waiting.append((name, arguments))
        self._fill()

    def __len__(self) -> int:
        """Tasks that have not ended."""
        return len(self._waiting) + len(self._running)

    def ended(self, seconds: float = 0.0) -> list[tuple[Hashable, Any]]:
        """Names and results of what has ended since; waits up to that long for the first.

        A task that raised has its exception as its result.
        """
        if not self._running:
            return []
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=seconds)
        rest = [ref for ref in self._running if ref not in done]
        if rest:
            done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        results = [(self._running.pop(ref), _result(ref)) for ref in done]
        self._fill()
        return results

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._at_once:
            name, arguments = self._waiting.pop(0)
            self._running[self._remote.remote(*arguments)] = name


def one_line(error: BaseException) -> str:
    """An error's type and message, short enough for a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _result(ref: ray.ObjectRef) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except ray.exceptions.RayError as error:
        return error
