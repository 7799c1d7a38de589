"""What a study knows, and how it stays on disk.

The `Ledger` holds a row for each trial, epoch, encoder and evaluation. A change is first written
to the journal, a folder of small JSON files that are never changed, and later to the parquet
files that people read; journal files that the parquet files have caught up with are removed.
Opening a ledger reads the parquet files and applies the journal that is left, so a driver that
is killed at any moment loses nothing that it had acted upon:

    journal/000042.jsonl -> trials.parquet, epochs.parquet, ... -> journal/000042.jsonl deleted

Applying a journal file twice changes nothing. One process at a time writes a run.

Every file has its checksum in it, so that a cut or a changed byte is seen, and what a ledger
opens with is made consistent (`study.repair`): a row never outlives those that it belongs to.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data.sealing import seal_lines, unseal_lines
from data.storage import InputError, Location
from data.tables import from_parquet, to_parquet
from study.repair import UNFINISHED, repair

Row = dict[str, Any]

TEXT, INT, REAL = pa.string(), pa.int64(), pa.float64()
_CELL = {"cell": TEXT, "variant": TEXT, "label_ratio": INT}
_VALID = {"val_loss": REAL, "val_acc": REAL, "val_f1": REAL}
TEST_METRICS = ("test_loss", "test_acc", "test_f1", "test_precision", "test_recall")
# ended: when the epoch was over, by its own machine's clock, in seconds since 1970 (UTC)
_EPOCH = {"epoch": INT, "train_loss": REAL, **_VALID, "seconds": REAL, "ended": REAL}

TRIALS = pa.schema(
    {"trial_id": TEXT, **_CELL, "lr": REAL, "seed": INT, "state": TEXT, "epochs": INT}
    | {"best_epoch": INT, **_VALID, "seconds": REAL, "node": TEXT, "error": TEXT, "recipe": TEXT}
    | {"settings": TEXT}
)
EPOCHS = pa.schema({"trial_id": TEXT, **_CELL, **_EPOCH})
EVALUATIONS = pa.schema(
    {**_CELL, "repeat": INT, "seed": INT, "lr": REAL, "epochs": INT, "best_epoch": INT, **_VALID}
    | dict.fromkeys(TEST_METRICS, REAL)
    | {"seconds": REAL, "recipe": TEXT, "settings": TEXT}
)
EVALUATION_EPOCHS = pa.schema({**_CELL, "repeat": INT, **_EPOCH})
PREDICTIONS = pa.schema(
    {**_CELL, "repeat": INT, "file": TEXT, "true": TEXT, "pred": TEXT}
    | {"probability": REAL, "loss": REAL}
)
# noise: the share of noisy pixels, above 0: without noise, they are the predictions
ROBUSTNESS = pa.schema(
    {**_CELL, "repeat": INT, "noise": REAL, "file": TEXT, "true": TEXT, "pred": TEXT}
    | {"probability": REAL, "loss": REAL}
)
ENCODERS = pa.schema(
    {
        "encoder": TEXT,
        "recipe": TEXT,
        "architecture": TEXT,
        "objective": TEXT,
        "images": INT,
        "epochs": INT,
    }
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
    "robustness": (ROBUSTNESS, ("cell", "repeat", "noise", "file")),
    "encoders_made": (ENCODERS, ("encoder",)),
    "encoder_epochs": (ENCODER_EPOCHS, ("encoder", "epoch")),
}
FINISHED = ("COMPLETE", "PRUNED", "FAIL")
SAVE_SECONDS = 5.0  # at most this long do the parquet files lag (the contract allows 10 s)
PIECE = 1000  # rows of a table that are converted together
_SEGMENT = '["blake2b", "', '"]'  # around a segment's checksum

# What to do about a damaged table, which only a person may decide: it costs training.
ON_CARDS = ("encoders_made", "encoder_epochs")
_TRIALS_AGAIN = "put back a copy of it, or delete it and resume, which runs its trials again"
_REPEATS_AGAIN = "put back a copy of it, or delete it and resume, which runs its repeats again"
AGAIN = {"trials": _TRIALS_AGAIN, "epochs": _TRIALS_AGAIN} | dict.fromkeys(
    ("evaluations", "evaluation_epochs", "predictions", "robustness"), _REPEATS_AGAIN
)


class Table:
    """Rows by key, in the order in which they came.

    Their Arrow form is kept in pieces, and only pieces in which a row has changed are made anew:
    what a save costs in Python depends on what has changed, not on what there is.

    Args:
        schema: its columns; others are left out of the Arrow form.
        key: the columns that name a row.
        start: what it begins with, as it lies on disk.
    """

    def __init__(self, schema: pa.Schema, key: tuple[str, ...], start: pa.Table | None = None):
        self.schema, self.key = schema, key
        self._rows: list[Row] = []
        self._places: dict[tuple[Any, ...], int] = {}
        self._pieces: dict[int, pa.Table] = {}
        for row in [] if start is None else start.to_pylist():
            self.put(row)
        if start is not None and start.schema == schema and len(start) == len(self):
            pieces = range(-(-len(start) // PIECE))
            self._pieces = {number: start.slice(number * PIECE, PIECE) for number in pieces}
        self.changed = False  # since it was last written

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return key in self._places

    def rows(self) -> list[Row]:
        return list(self._rows)

    def put(self, row: Row) -> bool:
        """Add or replace a row; whether it is a new one."""
        place = self._places.setdefault(self._key_of(row), len(self._rows))
        new = place == len(self._rows)
        self._rows[place : place + 1] = [row]
        self._pieces.pop(place // PIECE, None)
        self.changed = True
        return new

    def keep(self, wanted: Callable[[Row], bool]) -> int:
        """Remove all other rows; how many they were."""
        gone = [place for place, row in enumerate(self._rows) if not wanted(row)]
        if not gone:
            return 0
        self._rows = [row for row in self._rows if wanted(row)]
        self._places = {self._key_of(row): place for place, row in enumerate(self._rows)}
        self._pieces = {n: p for n, p in self._pieces.items() if n < gone[0] // PIECE}
        self.changed = True
        return len(gone)

    def to_arrow(self) -> pa.Table:
        for number in range(-(-len(self._rows) // PIECE)):
            if number not in self._pieces:
                rows = self._rows[number * PIECE : (number + 1) * PIECE]
                self._pieces[number] = pa.Table.from_pylist(rows, schema=self.schema)
        pieces = [self._pieces[number] for number in sorted(self._pieces)]
        return pa.concat_tables([self.schema.empty_table(), *pieces])

    def _key_of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.key)


class Ledger:
    """All rows of a run, in memory and on disk.

    A write that fails (a full disk) raises, loses nothing, and is made good by the next one.

    Args:
        run: the run's folder; created by the first write.

    Attributes:
        tables: by name.
        repaired: what had to be repaired when it was opened, a line each.

    Raises:
        InputError: a table is damaged; the line names the file and what to do.
    """

    def __init__(self, run: Location):
        self.run = run
        self.repaired: list[str] = []
        self.tables = {name: self._read(name) for name in TABLES}
        self._segments = [s for s in (run / "journal").children() if _is_segment(s.name)]
        self._next_segment = 1 + max((int(s.name.split(".")[0]) for s in self._segments), default=0)
        self._pending: list[str] = []
        self._saved_at = time.monotonic()
        self._save_cost = 0.0
        self._apply_journal()
        self.repaired += repair(self.tables)
        if self.repaired:  # on disk before anything follows from it
            self.save()

    def put(self, table: str, row: Mapping[str, Any]) -> bool:
        """Add or replace a row; whether it is a new one. Written by the next `flush`."""
        clean = {name: _null_if_not_finite(row.get(name)) for name in TABLES[table][0].names}
        self._pending.append(json.dumps([table, clean]))
        return self.tables[table].put(clean)

    def drop(self, table: str, **match: Any) -> None:
        """Remove the rows with these values. Written by the next `flush`."""
        if self.tables[table].keep(_other_than(match)):
            self._pending.append(json.dumps([table, None, match]))

    def rows(self, table: str) -> list[Row]:
        return self.tables[table].rows()

    def restart_errored(self) -> int:
        """Have all trials that are FAIL run again, from scratch; how many they are."""
        failed = [row for row in self.rows("trials") if row["state"] == "FAIL"]
        for row in failed:
            self.put("trials", row | UNFINISHED)
            self.drop("epochs", trial_id=row["trial_id"])
        begun = tuple(f"{row['trial_id']}-lr" for row in failed)  # names of their checkpoints
        for file in (self.run / "checkpoints").children():
            if file.name.startswith(begun):
                file.delete()  # a driver was killed before it could
        self.flush()
        return len(failed)

    def flush(self) -> None:
        """Make every change so far durable."""
        if not self._pending:
            return
        segment = self.run / "journal" / f"{self._next_segment:06d}.jsonl"
        body = "\n".join(self._pending) + "\n"
        segment.write_bytes(seal_lines(body, *_SEGMENT))
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
        contained = len(self._segments)
        if closing:
            self._keep_unfinished_in_journal()
        for name, table in self.tables.items():
            if table.changed:
                rows = table.to_arrow()
                if closing and name == "trials":
                    rows = rows.filter(pc.field("state") != "RUNNING")
                (self.run / f"{name}.parquet").write_bytes(to_parquet(rows))
                table.changed = False
        for _ in range(contained):
            self._segments[0].delete()
            del self._segments[0]
        self._saved_at = time.monotonic()
        self._save_cost = self._saved_at - started

    def _keep_unfinished_in_journal(self) -> None:
        for row in self.rows("trials"):
            if row["state"] == "RUNNING":
                self.put("trials", row)
        self.flush()

    def _read(self, name: str) -> Table:
        schema, key = TABLES[name]
        file = self.run / f"{name}.parquet"
        try:
            return Table(schema, key, read_arrow(file))
        except InputError as error:
            if name not in ON_CARDS:
                raise InputError(f"{error}; {AGAIN[name]}") from None
            self.repaired.append(f"{error}; it is made again from the cards in encoders/")
        except KeyError as missing:
            raise InputError(f"{file}: found no column {missing}; {AGAIN[name]}") from None
        empty = Table(schema, key)
        empty.changed = True  # so that it takes the damaged one's place
        return empty

    def _apply_journal(self) -> None:
        """Segments that are damaged are passed over; `repair` finds what they leave undone."""
        for segment in self._segments:
            try:
                changes = _changes(segment.read_bytes())
            except ValueError as error:
                reason = f"{segment}: is damaged ({error}); what it alone recorded is done again"
                self.repaired.append(reason)
                continue
            for table, row, *match in changes:
                if row is None:
                    self.tables[table].keep(_other_than(match[0]))
                else:
                    self.tables[table].put(row)


def is_whole(file: Location, unseal: Callable[[bytes], bytes]) -> bool:
    """Whether the file is there, and its own checksum right."""
    try:
        unseal(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


def read_table(file: Location) -> list[Row]:
    """The rows of a parquet file; none where there is no file.

    Raises:
        InputError: the file is damaged.
    """
    table = read_arrow(file)
    rows: list[Row] = [] if table is None else table.to_pylist()
    return rows


def read_arrow(file: Location) -> pa.Table | None:
    """A parquet file; None where there is no file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return from_parquet(content)
    except ValueError as error:
        raise InputError(f"{file}: is damaged ({error}), expected a parquet file") from None


def write_table(file: Location, rows: Iterable[Row], schema: pa.Schema) -> None:
    """Replace a parquet file; null stays null."""
    file.write_bytes(to_parquet(pa.Table.from_pylist(list(rows), schema=schema)))


def _is_segment(name: str) -> bool:
    """Not what an editor or a synchronised folder left beside them."""
    number, _, kind = name.partition(".")
    return kind == "jsonl" and number.isdecimal()


def _changes(content: bytes) -> list[Any]:
    body = unseal_lines(content, *_SEGMENT)
    if body is None:
        raise ValueError("has no checksum")
    return [json.loads(line) for line in body.splitlines()]


def _other_than(match: Mapping[str, Any]) -> Callable[[Row], bool]:
    return lambda row: not all(row[name] == value for name, value in match.items())


def _null_if_not_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
