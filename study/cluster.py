"""Ray: connecting to it, what it has, and running plain functions as its tasks."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from data.storage import InputError, Location
from models.memory import MEMORY_ENVIRONMENT
from study.address import is_local, named
from study.config import Config
from study.planning import gpu_share

TASK_RETRIES = 10  # of a task whose process or machine dies; its own exceptions end it
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml").expanduser()  # `ray up` leaves it on the head
CAPACITY_SECONDS = 2.0  # how long an answer of the cluster about its machines is believed
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # study.tuning runs again what is lost, not Tune
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # study.stages has its own, for all its parts
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails reports no metric
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # Tune's own experiment state is never read back (docs/DESIGN.md): write it once, at the end.
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
}
_WORKERS = MEMORY_ENVIRONMENT | {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # hide the GPUs from what asked for none
    "PL_DISABLE_FORK": "1",  # as Tune sets it for its actors: so they can take any idle worker
    # A trial that has ended may still close its W&B run when its actor is given to the next. Tune
    # drops the next one, and tells nobody, where that takes longer.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "86400",
}
_PASSED_ON = ("MARIPOSA_CHECKPOINT_SECONDS",)  # from the driver's environment to the workers'


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to Ray for the time of the block.

    Args:
        address: of a cluster; None: the cluster this process was submitted to, else a local Ray
            of its own, which ends with the block.

    Raises:
        InputError: nothing answers at that address, or a Ray of another version.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # Tune warns of each trial's missing result.json, which nobody asked it to write, and calls a
    # trial whose process was lost an error, which goes on as another one of Tune's.
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    given = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    options |= {"runtime_env": {"env_vars": _WORKERS | given}}
    if is_local(address):
        # Ray would otherwise join whatever cluster was last started on this machine.
        options |= {"address": "local", "include_dashboard": False}
        options |= {"object_store_memory": 256 * 2**20}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{named(address)}: {reason}; expected a Ray cluster") from None
    try:
        yield
    finally:
        # Here and not in a thread beside the report: a reference that Python drops meanwhile
        # finds Ray's worker gone, and Ray then ends the process (docs/LOG.md).
        ray.shutdown()


def require_seen_by_all(run: Location) -> None:
    """Find out whether every machine sees the run's folder, before trials fail for it.

    Raises:
        InputError: a machine of the cluster does not.
    """
    machines = [node for node in ray.nodes() if node["Alive"]]
    if not run.is_local or len(machines) == 1:
        return
    seen = {
        machine["NodeManagerAddress"]: _on_machine(machine["NodeID"]).remote(run.local)
        for machine in machines
    }
    for address, answer in seen.items():
        if not ray.get(answer):
            raise InputError(
                f"{run}: is not seen by the machine {address}, "
                f"expected an --out that all machines share (NFS, s3://, gs://)"
            )


def _on_machine(node_id: str) -> Any:
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=True)
    return ray.remote(_exists).options(num_cpus=0, scheduling_strategy=strategy)


def _exists(folder: Path) -> bool:
    return (folder / "study.yaml").is_file()


WAITING_SECONDS = 60.0  # between two lines that no machine can take a trial


class Capacity:
    """What one trial of a study gets, and how many fit on the cluster.

    Machines come and go: a spot machine is taken away, an autoscaler adds one. What its
    autoscaler may add counts as there, or it would never be asked for.

    Attributes:
        gpus: the fraction (or number) of GPUs for one trial.
    """

    def __init__(self, config: Config):
        self.config = config
        self._may_come, self._most = _autoscaler_limits()
        self._slots, self._asked, self._said = 1, -math.inf, -math.inf
        wanted = config.resources.gpus_per_trial
        if wanted == "auto":
            wanted = gpu_share(config) if self._resources().get("GPU", 0) else 0.0
        self.gpus = float(wanted)

    @property
    def per_trial(self) -> dict[str, float]:
        """``{"CPU": ..., "GPU": ...}``."""
        return {"CPU": float(self.config.resources.cpus_per_trial), "GPU": self.gpus}

    @property
    def shares_gpus(self) -> bool:
        """Whether a trial gets less than a whole GPU."""
        return 0 < self.gpus < 1

    def enlarge(self) -> None:
        """Give each trial twice the share of a GPU, at most a whole one."""
        if self.shares_gpus:
            self.gpus, self._asked = min(1.0, 2 * self.gpus), -math.inf

    def slots(self) -> int:
        """How many trials fit at once, at least 1."""
        if time.monotonic() - self._asked > CAPACITY_SECONDS:
            self._slots, self._asked = self._fitting(), time.monotonic()
        return self._slots

    def require_room(self) -> None:
        """Find out whether a machine has what a trial asks for.

        Raises:
            InputError: none has, now or by its autoscaler.
        """
        reason = self._too_large()
        if reason:
            raise InputError(reason)

    def waits(self) -> list[str]:
        """A line, now and then, while no machine can take a trial; Ray would wait in silence."""
        if time.monotonic() - self._said < WAITING_SECONDS:
            return []
        self._said = time.monotonic()
        return [f"{reason}, so far" for reason in [self._too_large()] if reason]

    def _too_large(self) -> str | None:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]] + self._may_come
        wanted = {name: n for name, n in self.per_trial.items() if n}
        if any(all(one.get(name, 0) >= n for name, n in wanted.items()) for one in machines):
            return None
        found = " and ".join(f"{n:g} {name}s" for name, n in wanted.items())
        most = {name: max((one.get(name, 0) for one in machines), default=0) for name in wanted}
        have = " and ".join(f"{n:g} {name}s" for name, n in most.items())
        return f"resources: found {found} for a trial, expected at most {have}: no machine has more"

    def _fitting(self) -> int:
        limit = self.config.resources.max_concurrent
        if limit != "auto":  # as it is: an autoscaler is asked for what is waiting
            return limit
        have = self._resources()
        fits = [int(have.get(name, 0) / n + 1e-6) for name, n in self.per_trial.items() if n]
        return max(1, min(fits, default=1))

    def _resources(self) -> dict[str, float]:
        have = ray.cluster_resources()
        return {name: max(have.get(name, 0), self._most.get(name, 0)) for name in ("CPU", "GPU")}


def _autoscaler_limits(
    config: Path = BOOTSTRAP,
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """The machines that `ray up`'s autoscaler may add, one of a kind, and the most that it may
    bring the cluster to; nothing where it has none.

    Ray 2.60 can be asked for it, but answers nothing before the first machine has come.
    """
    try:
        cluster = yaml.safe_load(config.read_text())
    except (OSError, yaml.YAMLError):
        return [], {}
    machines, limits = [], {"CPU": 0.0, "GPU": 0.0}
    for kind in cluster.get("available_node_types", {}).values():
        machines.append({n: float(kind.get("resources", {}).get(n, 0)) for n in limits})
        count = min(kind.get("max_workers", 0), cluster.get("max_workers", 0))
        for name in limits:
            limits[name] += count * machines[-1][name]
    return machines, limits


class Tasks:
    """Plain functions as Ray tasks, a result by name.

    A task that runs out of a shared GPU's memory is run again with a larger share of it.

    Args:
        function: a module's function; runs in another process.
        capacity: what each task gets.
        at_once: how many may be in flight; None: any number.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        capacity: Capacity,
        at_once: Callable[[], int] | None = None,
    ):
        # As Ray does where a function itself asks for GPUs: its process would go on holding memory.
        self._remote = ray.remote(max_calls=1)(function) if capacity.gpus else ray.remote(function)
        self._capacity, self._at_once = capacity, at_once
        self._waiting: list[_Task] = []
        self._running: dict[ray.ObjectRef, _Task] = {}

    def add(self, name: Hashable, *arguments: Any) -> None:
        self._waiting.append(_Task(name, arguments))
        self._fill()

    def __len__(self) -> int:
        """Tasks that have not ended."""
        return len(self._waiting) + len(self._running)

    @property
    def in_flight(self) -> int:
        """Those of them that Ray has been given."""
        return len(self._running)

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
        tasks = [(self._running.pop(ref), _result(ref)) for ref in done]
        results = [(task.name, result) for task, result in tasks if not self._again(task, result)]
        self._fill()
        return results

    def _again(self, task: _Task, result: Any) -> bool:
        if not (is_out_of_memory(result) and 0 < task.gpus < 1):
            return False
        if task.gpus == self._capacity.gpus:  # else another task has enlarged it already
            self._capacity.enlarge()
        self._waiting.append(task)
        return True

    def _fill(self) -> None:
        while self._waiting and (self._at_once is None or len(self._running) < self._at_once()):
            task = self._waiting.pop(0)
            task.gpus = self._capacity.gpus
            remote = self._remote.options(
                num_cpus=self._capacity.per_trial["CPU"],
                num_gpus=task.gpus,
                max_retries=TASK_RETRIES,
                retry_exceptions=False,
            )
            self._running[remote.remote(*task.arguments)] = task


@dataclass
class _Task:
    name: Hashable
    arguments: tuple[Any, ...]
    gpus: float = 0.0  # its share, of the capacity at its start


def is_out_of_memory(error: object) -> bool:
    """Whether it is PyTorch's error of a GPU without memory left."""
    return type(error).__name__ == "OutOfMemoryError" and "torch" in type(error).__module__


def loses_the_gpu(error: object) -> bool:
    """Whether it is an error of CUDA's after which the process cannot use it any more."""
    if is_out_of_memory(error):
        return False
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


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
