"""Plain functions as Ray tasks, and what their errors and a trial's mean."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import ray

from study.capacity import Capacity

TASK_RETRIES = 10  # of a task whose process or machine dies; its own exceptions end it
_LIBRARIES = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_WITHOUT_MEMORY = ("CUDA error: out of memory", *_LIBRARIES)


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
    """Whether it is the error of a GPU without memory left: PyTorch's own, or that of CUDA and its
    libraries, which take memory for themselves in each process.
    """
    if type(error).__name__ == "OutOfMemoryError":
        return "torch" in type(error).__module__
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _WITHOUT_MEMORY)


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
