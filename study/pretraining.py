"""The encoders of a study while it runs: each made once, as a Ray task, or found on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from data.storage import StorageError
from study.capacity import Capacity
from study.cells import Cell
from study.encoders import EncoderPlan, plan_encoder, pretrain, read_card
from study.material import Material
from study.records import Ledger
from study.tasks import Tasks, one_line


class EncoderPool:
    """What encoders there are, are being made, and could not be made.

    Args:
        material: the study.
        ledger: gets the rows of encoders as they are finished.
        capacity: of the cluster. All slots but one are for encoders, or trials that need none
            would wait for them.
    """

    def __init__(self, material: Material, ledger: Ledger, capacity: Capacity):
        self.material, self.ledger = material, ledger
        self.plans: dict[str, EncoderPlan] = {}
        self.made: set[str] = set()
        self.failed: dict[str, str] = {}
        self._tasks = Tasks(pretrain, capacity, lambda: max(1, capacity.slots() - 1))

    def want(self, cells: Iterable[Cell], repeats: Iterable[int | None]) -> None:
        """Make sure that the encoders of these cells and repeats are there or on their way."""
        cells = list(cells)
        for repeat in repeats:
            for cell in cells:
                plan = plan_encoder(self.material, cell, repeat)
                if plan is not None and plan.key not in self.plans:
                    self._start(plan)

    def _start(self, plan: EncoderPlan) -> None:
        self.plans[plan.key] = plan
        card = read_card(plan, self.material.run)
        if card is None:
            self._tasks.add(plan.key, self.material, plan)
        else:
            self._record(plan.key, card)

    def collect(self, seconds: float = 0.0) -> None:
        """Take in what has been finished; waits up to that long for the first.

        Raises:
            StorageError: storage refused the weights for too long.
        """
        for key, result in self._tasks.ended(seconds):
            if isinstance(result, StorageError):
                raise result  # no fault of the encoder: the study goes on when storage does
            if isinstance(result, Exception):
                self.failed[str(key)] = f"encoder {key}: {one_line(result)}"
            else:
                self._record(str(key), result)

    def _record(self, key: str, card: Mapping[str, object]) -> None:
        row, epochs = card["row"], card["epochs"]
        assert isinstance(row, dict)
        assert isinstance(epochs, list)
        for epoch in epochs:
            self.ledger.put("encoder_epochs", epoch)
        self.ledger.put("encoders_made", row)
        self.ledger.flush()
        self.made.add(key)

    @property
    def in_work(self) -> int:
        """Encoders that are neither made nor failed."""
        return len(self._tasks)

    @property
    def in_flight(self) -> int:
        """Encoders that have, or are about to get, a slot of the cluster."""
        return self._tasks.in_flight

    def ready(self, cell: Cell, repeat: int | None) -> bool:
        """Whether the cell's classifiers can be trained now."""
        plan = plan_encoder(self.material, cell, repeat)
        return plan is None or plan.key in self.made

    def failure(self, cell: Cell, repeat: int | None) -> str | None:
        """Why the cell's encoder cannot be had; None where it can."""
        plan = plan_encoder(self.material, cell, repeat)
        return None if plan is None else self.failed.get(plan.key)
