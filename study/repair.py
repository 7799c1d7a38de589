"""Makes the records of a run agree with each other, whichever file or row is missing.

- An epoch without its trial goes. A finished trial without just the epochs that it had is
  unfinished: it is run again, under its name and with its configuration.
- A repeat without its epochs and predictions goes, and is run again; so do those without it. So
  does one without a prediction in noise of each image. (Who knows what noise the study asks for
  sees to levels that are not there at all: `study.evaluation.repeats_to_run`.)
- An encoder without its epochs goes, and the other way round; both are on its card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from analysis.wording import counted

Row = dict[str, Any]
_OUTCOME = ("best_epoch", "val_loss", "val_acc", "val_f1", "node", "error")
UNFINISHED: Row = dict.fromkeys(_OUTCOME) | {"state": "RUNNING", "epochs": 0, "seconds": 0.0}


class Table(Protocol):
    """What is needed of `study.records.Table`."""

    def __contains__(self, key: tuple[Any, ...]) -> bool: ...
    def rows(self) -> list[Row]: ...
    def put(self, row: Row) -> bool: ...
    def keep(self, wanted: Callable[[Row], bool]) -> int: ...


def repair(tables: Mapping[str, Table]) -> list[str]:
    """Do it; what was done, a line each."""
    return [
        f"not whole on record: {counted(count, thing)}, {done}"
        for count, thing, done in (
            (_orphans(tables), "epoch", "left out"),
            (_trials(tables), "trial", "run again"),
            (_evaluations(tables), "repeat", "run again"),
            (_encoders(tables), "encoder", "read from the card beside its file"),
        )
        if count
    ]


def _orphans(tables: Mapping[str, Table]) -> int:
    trials = tables["trials"]
    return tables["epochs"].keep(lambda row: (row["trial_id"],) in trials)


def _trials(tables: Mapping[str, Table]) -> int:
    epochs = Counter(row["trial_id"] for row in tables["epochs"].rows())
    torn = {
        row["trial_id"]: row
        for row in tables["trials"].rows()
        if row["state"] != "RUNNING" and row["epochs"] != epochs[row["trial_id"]]
    }
    for row in torn.values():
        tables["trials"].put(row | UNFINISHED)
    tables["epochs"].keep(lambda row: row["trial_id"] not in torn)
    return len(torn)


def _evaluations(tables: Mapping[str, Table]) -> int:
    epochs = Counter(map(_repeat, tables["evaluation_epochs"].rows()))
    predictions = tables["predictions"].rows()
    tested = Counter(map(_repeat, predictions))
    right = Counter(_repeat(row) for row in predictions if row["true"] == row["pred"])
    torn = _torn_in_noise(tables["robustness"].rows(), tested)

    def is_whole(row: Row) -> bool:
        key = _repeat(row)
        if not tested[key] or row["epochs"] != epochs[key] or key in torn:
            return False
        return abs(right[key] / tested[key] - (row["test_acc"] or 0.0)) < 1e-4

    evaluations = tables["evaluations"]
    count = evaluations.keep(is_whole)
    for name in ("evaluation_epochs", "predictions", "robustness"):
        left = tables[name].keep(lambda row: _repeat(row) in evaluations)
        count = count or min(left, 1)
    return count


def _torn_in_noise(rows: list[Row], tested: Mapping[tuple[Any, ...], int]) -> set[tuple[Any, ...]]:
    """Repeats that have another number of images at a level of noise than without."""
    images = Counter((_repeat(row), row["noise"]) for row in rows)
    return {repeat for (repeat, _), count in images.items() if count != tested[repeat]}


def _encoders(tables: Mapping[str, Table]) -> int:
    made, all_epochs = tables["encoders_made"], tables["encoder_epochs"]
    epochs = Counter(row["encoder"] for row in all_epochs.rows())
    count = made.keep(lambda row: bool(row["epochs"] == epochs[row["encoder"]]))
    left = all_epochs.keep(lambda row: (row["encoder"],) in made)
    return count or min(left, 1)


def _repeat(row: Row) -> tuple[Any, ...]:
    return row["cell"], row["repeat"]
