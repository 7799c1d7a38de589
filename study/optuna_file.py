"""``optuna.db``: what optuna-dashboard reads, a copy of every cell's Optuna study."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial

from data.storage import Location
from study.search import CellSearch


class OptunaFile:
    """``optuna.db``: the finished trials of every cell, an Optuna study each.

    The file that optuna-dashboard reads is a copy. It is written on the driver's own disk, as
    sqlite must not be on a network share, and copied to the run whole.

    Optuna makes the tables and the studies; the trials' rows are put into its tables directly,
    as `Study.add_trial` takes a query a value: 84 s for 1,000 trials of 30 epochs, this 0.2 s.
    """

    def __init__(self, run: Location):
        self.target = run / "optuna.db"
        self.folder = tempfile.TemporaryDirectory(prefix="mariposa-optuna-")
        self.file = Path(self.folder.name) / "optuna.db"
        self.storage = optuna.storages.RDBStorage(f"sqlite:///{self.file}")
        self.storage.engine.dispose()  # from here on the file has one writer, `_write`
        self._studies: dict[str, int] = {}  # cell -> id
        self._written: dict[str, int] = {}  # cell -> trials
        self._copied = False

    def save(self, searches: Iterable[CellSearch]) -> None:
        """Add what has finished since, and copy the file to the run."""
        searches = list(searches)
        new = [
            (self._study(search), *one)
            for search in searches
            for one in search.finished[self._written.get(search.cell, 0) :]
        ]
        if new:
            self._write(new)
            self._written = {search.cell: len(search.finished) for search in searches}
        if new or not self._copied:
            self._copied = False
            self.target.upload(self.file)
            self._copied = True

    def _study(self, search: CellSearch) -> int:
        if search.cell not in self._studies:
            directions = [search.study.direction]
            self._studies[search.cell] = self.storage.create_new_study(directions, search.cell)
        return self._studies[search.cell]

    def _write(self, new: list[tuple[int, int, FrozenTrial]]) -> None:
        if self.storage.get_head_version() == _SCHEMA:
            self._write_directly(new)
            return
        for study, _, trial in new:
            self.storage.create_new_trial(study, template_trial=trial)

    def _write_directly(self, new: list[tuple[int, int, FrozenTrial]]) -> None:
        rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in _COLUMNS}
        first = 1 + sum(self._written.values())
        for key, (study, number, trial) in enumerate(new, first):
            for table, row in _rows_of(key, study, number, trial):
                rows[table].append(row)
        with closing(sqlite3.connect(self.file)) as connection, connection:
            connection.execute("PRAGMA synchronous=OFF")  # a crash loses only this copy
            for table, columns in _COLUMNS.items():
                places = ", ".join("?" * len(columns.split(",")))
                statement = f"INSERT INTO {table} ({columns}) VALUES ({places})"
                connection.executemany(statement, rows[table])


_SCHEMA = "v3.2.0.a"  # Optuna's name for it; tests read back through Optuna what is written
_COLUMNS = {
    "trials": "trial_id, number, study_id, state, datetime_start, datetime_complete",
    "trial_params": "trial_id, param_name, param_value, distribution_json",
    "trial_user_attributes": "trial_id, key, value_json",
    "trial_values": "trial_id, objective, value, value_type",
    "trial_intermediate_values": "trial_id, step, intermediate_value, intermediate_value_type",
}


def _rows_of(
    key: int, study: int, number: int, trial: FrozenTrial
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """A finished trial's rows in Optuna's tables, by table."""
    times = (_sql_time(trial.datetime_start), _sql_time(trial.datetime_complete))
    yield "trials", (key, number, study, trial.state.name, *times)
    for name, distribution in trial.distributions.items():
        value = distribution.to_internal_repr(trial.params[name])
        yield "trial_params", (key, name, value, distribution_to_json(distribution))
    for name, noted in trial.user_attrs.items():
        yield "trial_user_attributes", (key, name, json.dumps(noted))
    if trial.value is not None:
        yield "trial_values", (key, 0, trial.value, "FINITE")
    for step, value in trial.intermediate_values.items():
        yield "trial_intermediate_values", (key, step, value, "FINITE")


def _sql_time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S.%f")
