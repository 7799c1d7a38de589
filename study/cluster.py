"""Connecting to Ray, and finding out whether its machines see the run's folder."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from data.storage import InputError, Location, reason_of
from models.memory import MEMORY_ENVIRONMENT
from study.address import is_local, named

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
ATTEMPTS = 3
_PASSED_ON = ("MARIPOSA_CHECKPOINT_SECONDS",)  # from the driver's environment to the workers'


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to Ray for the time of the block.

    Args:
        address: of a cluster; None: the cluster this process was submitted to, else a local Ray
            of its own, which ends with the block.

    Raises:
        InputError: nothing answers at that address, or a Ray of another version; this machine is
            too busy to start one.
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
    _start(address, options)
    try:
        yield
    finally:
        # Here and not in a thread beside the report: a reference that Python drops meanwhile
        # finds Ray's worker gone, and Ray then ends the process (docs/LOG.md).
        ray.shutdown()


def _start(address: str | None, options: dict[str, Any]) -> None:
    """`ray.init`; a local Ray that was too slow for its 30 s, which cannot be set, once more."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(**options)
            return
        except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
            raise InputError(
                f"{named(address)}: {reason_of(error)}; expected a Ray cluster"
            ) from None
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            if attempt == ATTEMPTS:
                raise InputError(
                    f"{named(address)}: Ray has not started in {ATTEMPTS} times 30 s, "
                    f"expected a machine with less to do"
                ) from None
            print("Ray has not started in 30 s: trying again", flush=True)
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
