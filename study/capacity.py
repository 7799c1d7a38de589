"""What one trial of a study gets of a Ray cluster, and how many fit on it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import ray
import yaml

from data.storage import InputError
from study.config import Config
from study.planning import gpu_share

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml").expanduser()  # `ray up` leaves it on the head
CAPACITY_SECONDS = 2.0  # how long an answer of the cluster about its machines is believed
WAITING_SECONDS = 60.0  # between two lines that no machine can take a trial
KINDS = ("CPU", "GPU")


class Capacity:
    """What one trial of a study gets, and how many fit on the cluster.

    Machines come and go: a spot machine is taken away, an autoscaler adds one. What its
    autoscaler may add counts as there, or it would never be asked for.

    Args:
        config: the study.
        alone: whether it has started this Ray for itself, which no machine will join.

    Attributes:
        gpus: the fraction (or number) of GPUs for one trial.
    """

    def __init__(self, config: Config, alone: bool = False):
        self.config = config
        self._may_come = [] if alone else _autoscaled()
        self._slots, self._asked, self._said = 1, -math.inf, -math.inf
        wanted = config.resources.gpus_per_trial
        if wanted == "auto":
            any_gpu = any(machine.get("GPU", 0) for machine in self._machines())
            wanted = gpu_share(config) if any_gpu else 0.0
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
        return [f"{reason}; waiting for one that has" for reason in [self._too_large()] if reason]

    def _too_large(self) -> str | None:
        machines = self._machines()
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
        here = sum(map(self._fit_on, _machines_here()))
        coming = sum(count * self._fit_on(machine) for machine, count in self._may_come)
        return max(1, here, coming)

    def _fit_on(self, machine: Mapping[str, float]) -> int:
        """How many trials a machine takes at once; a share of a GPU is one of a single GPU."""
        fits = []
        for name, needed in self.per_trial.items():
            have = machine.get(name, 0)
            if 0 < needed < 1:
                fits.append(int(have) * int(1 / needed + 1e-6))
            elif needed:
                fits.append(int(have / needed + 1e-6))
        return min(fits)

    def _machines(self) -> list[dict[str, float]]:
        """What each machine has, and each kind of machine that may come."""
        return _machines_here() + [machine for machine, _ in self._may_come]


def _machines_here() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _autoscaled(config: Path = BOOTSTRAP) -> list[tuple[dict[str, float], int]]:
    """The kinds of machines that `ray up`'s autoscaler may add, and how many of each at most;
    nothing where there is none.

    Ray 2.60 can be asked for it, but answers nothing before the first machine has come.
    """
    try:
        cluster = yaml.safe_load(config.read_text())
    except (OSError, yaml.YAMLError):
        return []
    found = []
    for kind in cluster.get("available_node_types", {}).values():
        machine = {name: float(kind.get("resources", {}).get(name, 0)) for name in KINDS}
        found.append((machine, min(kind.get("max_workers", 0), cluster.get("max_workers", 0))))
    return found
