"""What a study knows, and how it stays on disk.

The `Ledger` holds a row for each trial, epoch, encoder and evaluation. A change is first written
to the journal, a folder of small JSON files that are never changed, and later to the parquet
files that people read; journal files that the parquet files have caught up with are removed.
Opening a ledger reads the parquet files and applies the journal that is left, so a driver that
is killed at any moment loses nothing that it had acted upon:

    journal/000042.jsonl -> trials.parquet, epochs.parquet, ... -> journal/000042.jsonl deleted

Applying a journal file twice changes nothing. One process at a time writes a run.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from data.storage import InputError, Location

Row = dict[str, Any]

TEXT, INT, REAL = pa.string(), pa.int64(), pa.float64()
_CELL = {"cell": TEXT, "variant": TEXT, "label_ratio": INT}
_VALID = {"val_loss": REAL, "val_acc": REAL, "val_f1": REAL}
# ended: when the epoch was over, by its own machine's clock, in seconds since 1970 (UTC)
_EPOCH = {"epoch": INT, "train_loss": REAL, **_VALID, "seconds": REAL, "ended": REAL}

TRIALS = pa.schema(
    {"trial_id": TEXT, **_CELL, "lr": REAL, "seed": INT, "state": TEXT, "epochs": INT}
    | {"best_epoch": INT, **_VALID, "seconds": REAL, "node": TEXT, "error": TEXT}
)
EPOCHS = pa.schema({"trial_id": TEXT, **_CELL, **_EPOCH})
EVALUATIONS = pa.schema(
    {**_CELL, "repeat": INT, "seed": INT, "lr": REAL, "epochs": INT, "best_epoch": INT, **_VALID}
    | {f"test_{name}": REAL for name in ("loss", "acc", "f1", "precision", "recall")}
    | {"seconds": REAL}
)
EVALUATION_EPOCHS = pa.schema({**_CELL, "repeat": INT, **_EPOCH})
PREDICTIONS = pa.schema(
    {**_CELL, "repeat": INT, "file": TEXT, "true": TEXT, "pred": TEXT}
    | {"probability": REAL, "loss": REAL}
)
ENCODERS = pa.schema(
    {"encoder": TEXT, "architecture": TEXT, "objective": TEXT, "images": INT, "epochs": INT}
    | {"best_epoch": INT, "loss": REAL, "seconds": REAL, "repeat": INT}
)
ENCODER_EPOCHS = pa.schema(
    {"encoder": TEXT, "epoch": INT, "train_loss": REAL, "valid_loss": REAL, "seconds": REAL}
    | {"ended": REAL}
)
LABELS = pa.schema({"label_ratio": INT, "repeat": INT, "file": TEXT})

# Table, its schema, and the columns that name a row.
TABLES: dict[str, tuple[pa.Schema, tuple[str, ...]]] = {
    "trials": (TRIALS, ("trial_id",)),
    "epochs": (EPOCHS, ("trial_id", "epoch")),
    "evaluations": (EVALUATIONS, ("cell", "repeat")),
    "evaluation_epochs": (EVALUATION_EPOCHS, ("cell", "repeat", "epoch")),
    "predictions": (PREDICTIONS, ("cell", "repeat", "file")),
    "encoders_made": (ENCODERS, ("encoder",)),
    "encoder_epochs": (ENCODER_EPOCHS, ("encoder", "epoch")),
}
FINISHED = ("COMPLETE", "PRUNED", "FAIL")
SAVE_SECONDS = 5.0  # at most this long do the parquet files lag (the contract allows 10 s)


class Ledger:
    """All rows of a run, in memory and on disk.

    Args:
        run: the run's folder; created by the first write.

    Raises:
        InputError: a record is damaged; the line names the file.
    """

    def __init__(self, run: Location):
        self.run = run
        self.tables: dict[str, dict[tuple[Any, ...], Row]] = {}
        self._changed: set[str] = set()
        for name, (_, key) in TABLES.items():
            rows = read_table(run / f"{name}.parquet")
            self.tables[name] = {tuple(row[k] for k in key): row for row in rows}
        self._segments = self._apply_journal()
        self._next_segment = 1 + max((int(s.name.split(".")[0]) for s in self._segments), default=0)
        self._pending: list[str] = []
        self._saved_at = time.monotonic()
        self._save_cost = 0.0

    def put(self, table: str, row: Mapping[str, Any]) -> bool:
        """Add or replace a row; whether it is a new one. Written by the next `flush`."""
        clean = {name: _null_if_not_finite(row.get(name)) for name in TABLES[table][0].names}
        self._pending.append(json.dumps([table, clean]))
        return self._put(table, clean)

    def drop(self, table: str, **match: Any) -> None:
        """Remove the rows with these values. Written by the next `flush`."""
        if self._drop(table, match):
            self._pending.append(json.dumps([table, None, match]))

    def rows(self, table: str) -> list[Row]:
        return list(self.tables[table].values())

    def flush(self) -> None:
        """Make every change so far durable."""
        if not self._pending:
            return
        segment = self.run / "journal" / f"{self._next_segment:06d}.jsonl"
        segment.write_text("\n".join(self._pending) + "\n")
        self._next_segment += 1
        self._segments.append(segment)
        self._pending.clear()

    def save_if_due(self) -> bool:
        """`save` if the last one is long enough ago, and never more than a tenth of the time."""
        wait = max(SAVE_SECONDS, 10 * self._save_cost)
        if time.monotonic() - self._saved_at < wait:
            return False
        self.save()
        return True

    def save(self, closing: bool = False) -> None:
        """Bring the parquet files up to date, then drop the journal that they contain.

        Args:
            closing: the study ends here. Trials that it leaves unfinished stay in the journal
                alone, as RUNNING is to be read only while a study runs.
        """
        started = time.monotonic()
        self.flush()
        old, self._segments = self._segments, []
        if closing:
            self._keep_unfinished_in_journal()
        for name in [name for name in TABLES if name in self._changed]:
            rows = self.rows(name)
            if closing:
                rows = [row for row in rows if row.get("state") != "RUNNING"]
            write_table(self.run / f"{name}.parquet", rows, TABLES[name][0])
        self._changed.clear()
        for segment in old:
            segment.delete()
        self._saved_at = time.monotonic()
        self._save_cost = self._saved_at - started

    def _keep_unfinished_in_journal(self) -> None:
        for row in self.rows("trials"):
            if row["state"] == "RUNNING":
                self.put("trials", row)
        self.flush()

    def _put(self, table: str, row: Row) -> bool:
        key = tuple(row[name] for name in TABLES[table][1])
        new = key not in self.tables[table]
        self.tables[table][key] = row
        self._changed.add(table)
        return new

    def _drop(self, table: str, match: Mapping[str, Any]) -> bool:
        rows = self.tables[table]
        gone = [key for key, row in rows.items() if all(row[k] == v for k, v in match.items())]
        for key in gone:
            del rows[key]
        if gone:
            self._changed.add(table)
        return bool(gone)

    def _apply_journal(self) -> list[Location]:
        segments = (self.run / "journal").children()
        for segment in segments:
            try:
                for line in segment.read_text().splitlines():
                    table, row, *match = json.loads(line)
                    if row is None:
                        self._drop(table, match[0])
                    else:
                        self._put(table, row)
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{segment}: is damaged, expected a line of JSON a row; delete it to go on "
                    f"without what it recorded"
                ) from None
        return segments


def read_table(file: Location) -> list[Row]:
    """The rows of a parquet file; none where there is no file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    try:
        rows: list[Row] = pq.read_table(io.BytesIO(content)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: is damaged ({reason}), expected a parquet file") from None
    return rows


def write_table(file: Location, rows: Iterable[Row], schema: pa.Schema) -> None:
    """Replace a parquet file; null stays null."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink)
    file.write_bytes(sink.getvalue())


def write_study(run: Location, study: Mapping[str, Any]) -> None:
    """Replace ``study.yaml``."""
    text = yaml.safe_dump(dict(study), sort_keys=False, allow_unicode=True)
    (run / "study.yaml").write_text(text)


def read_study(run: Location) -> dict[str, Any]:
    """``study.yaml`` of a run.

    Raises:
        InputError: there is no such run, or its file is torn.
    """
    file = run / "study.yaml"
    try:
        study = yaml.safe_load(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{run}: found no study.yaml, expected the folder of a run") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        study = None
    # A part of a YAML file may be valid YAML: it is whole if its last key is there.
    if not isinstance(study, dict) or not {"config", "failures"} <= study.keys():
        raise InputError(f"{file}: is damaged, expected the study's configuration as YAML")
    return study


def _null_if_not_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
