"""The ledger: whatever moment a driver is killed at, its records are whole."""

from __future__ import annotations

import errno
import math
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from data.sealing import MARK
from data.storage import InputError, Location
from study.completeness import missing_or_damaged
from study.records import TABLES, Ledger, read_table
from study.study_file import is_study, read_study, write_study

CELL = {"cell": "A@10", "variant": "A", "label_ratio": 10}


def trial(number: int, state: str = "COMPLETE", **values: Any) -> dict[str, Any]:
    row = {"trial_id": f"A@10-{number:03d}", **CELL, "lr": 1e-4, "seed": 1, "state": state}
    row |= {"epochs": 0, "best_epoch": 1, "val_loss": 0.5, "val_acc": 0.5, "val_f1": 0.5}
    return (
        row
        | {"seconds": 1.0, "node": None, "error": None, "recipe": None, "settings": None}
        | values
    )


def epoch(number: int, epoch: int, **values: Any) -> dict[str, Any]:
    row = {"trial_id": f"A@10-{number:03d}", **CELL, "epoch": epoch, "train_loss": 1.0}
    return (
        row
        | {"val_loss": 0.5, "val_acc": 0.5, "val_f1": 0.5, "seconds": 1.0, "ended": 9.0}
        | values
    )


@pytest.fixture(params=["local", "object store"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A run's folder: local, and on pyarrow's file system in memory."""
    if request.param == "local":
        return Location(tmp_path / "run")
    return Location(f"mock://bucket-{uuid.uuid4().hex}/runs/mine")


def contents(ledger: Ledger) -> dict[str, Any]:
    return {
        name: {tuple(row[k] for k in table.key): row for row in table.rows()}
        for name, table in ledger.tables.items()
    }


def journal(run: Location) -> list[str]:
    return [segment.name for segment in (run / "journal").children()]


def test_what_was_flushed_is_there_and_what_was_not_is_lost(run: Location) -> None:
    ledger = Ledger(run)
    assert ledger.put("trials", trial(0, "RUNNING"))
    ledger.put("epochs", epoch(0, 1))
    ledger.flush()
    assert not ledger.put("trials", trial(0, epochs=1)), "replaced"
    ledger.flush()
    expected = contents(ledger)
    ledger.put("epochs", epoch(0, 2))
    again = Ledger(run)
    assert contents(again) == expected
    assert again.rows("trials") == [trial(0, epochs=1)]
    assert len(journal(run)) == 2


def test_a_save_moves_the_journal_into_tables(run: Location) -> None:
    ledger = Ledger(run)
    ledger.put("trials", trial(0, epochs=1))
    ledger.put("epochs", epoch(0, 1))
    ledger.save()
    assert journal(run) == []
    assert read_table(run / "trials.parquet") == [trial(0, epochs=1)]
    assert contents(Ledger(run)) == contents(ledger)
    ledger.put("trials", trial(1))
    ledger.flush()
    assert contents(Ledger(run)) == contents(ledger)


def test_killed_between_tables_and_the_end_of_the_journal(tmp_path: Path) -> None:
    """The journal is applied again to tables that hold it, at any point of its removal."""
    run = Location(tmp_path / "run")
    ledger = Ledger(run)
    for i in range(3):
        ledger.put("trials", trial(i, "RUNNING"))
        ledger.flush()
    for i in range(2):
        ledger.put("trials", trial(i, "PRUNED", epochs=1))
        ledger.put("epochs", epoch(i, 1))
        ledger.flush()
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "run" / "journal", kept)
    ledger.save()
    segments = sorted(kept.iterdir())
    assert len(segments) == 5
    for removed in range(6):  # they are removed oldest first
        for segment in segments[removed:]:
            shutil.copy(segment, tmp_path / "run" / "journal")
        again = Ledger(run)
        assert contents(again) == contents(ledger)
        again.save()
        assert journal(run) == []
        assert contents(Ledger(run)) == contents(ledger)


def test_killed_before_any_of_the_tables_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tables are new and some old: the journal makes them agree."""
    run = Location(tmp_path / "run")
    ledger = Ledger(run)
    ledger.put("trials", trial(0, "RUNNING"))
    ledger.save()
    ledger.put("trials", trial(0, epochs=1))
    ledger.put("epochs", epoch(0, 1))

    write = Location.write_bytes

    def killed(self: Location, content: bytes) -> None:
        if self.name == "epochs.parquet":
            raise KeyboardInterrupt
        write(self, content)

    monkeypatch.setattr(Location, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        ledger.save()
    monkeypatch.undo()
    again = Ledger(run)
    assert again.rows("trials") == [trial(0, epochs=1)]
    assert again.rows("epochs") == [epoch(0, 1)]


def test_a_segment_written_after_a_crash_comes_after_the_old_ones(tmp_path: Path) -> None:
    run = Location(tmp_path)
    for state in ("RUNNING", "PRUNED", "COMPLETE"):
        ledger = Ledger(run)
        ledger.put("trials", trial(0, state))
        ledger.flush()
    assert Ledger(run).rows("trials") == [trial(0, "COMPLETE")]
    assert len(set(journal(run))) == 3


def test_what_is_no_segment_is_no_record(tmp_path: Path) -> None:
    ledger = Ledger(Location(tmp_path))
    ledger.put("trials", trial(0))
    ledger.flush()
    (tmp_path / "journal" / ".part-1234abcd-000002.jsonl").write_text('["trials", {"tri')
    for foreign in ("000001 (copy).jsonl", "000001.jsonl.sync-conflict.jsonl", "notes.jsonl"):
        (tmp_path / "journal" / foreign).write_text("somebody else's")
    (tmp_path / ".part-1234abcd-trials.parquet").write_bytes(b"PAR1")
    assert Ledger(Location(tmp_path)).rows("trials") == [trial(0)]


def test_a_study_that_ends_shows_no_running_trial_and_forgets_none(run: Location) -> None:
    ledger = Ledger(run)
    ledger.put("trials", trial(0))
    ledger.put("trials", trial(1, "RUNNING"))
    ledger.save()
    assert [row["state"] for row in read_table(run / "trials.parquet")] == ["COMPLETE", "RUNNING"]
    ledger.save(closing=True)
    assert [row["state"] for row in read_table(run / "trials.parquet")] == ["COMPLETE"]
    again = Ledger(run)
    assert sorted(row["state"] for row in again.rows("trials")) == ["COMPLETE", "RUNNING"]
    again.save(closing=True)
    again = Ledger(run)
    again.put("trials", trial(1, "PRUNED"))
    again.save(closing=True)
    assert [row["state"] for row in read_table(run / "trials.parquet")] == ["COMPLETE", "PRUNED"]
    assert journal(run) == []


def test_rows_that_were_dropped_stay_away(run: Location) -> None:
    ledger = Ledger(run)
    for number in (0, 1):
        ledger.put("trials", trial(number, "RUNNING"))
        for n in (1, 2, 3):
            ledger.put("epochs", epoch(number, n))
    ledger.save()
    ledger.drop("epochs", trial_id="A@10-000")
    ledger.put("epochs", epoch(0, 1, val_f1=0.9))
    ledger.flush()
    again = Ledger(run)
    for known in (again, ledger):
        assert contents(known) == contents(ledger)
        assert len(known.rows("epochs")) == 4
    again.save()
    assert len(read_table(run / "epochs.parquet")) == 4
    again.drop("epochs", trial_id="none of them")
    again.flush()
    assert journal(run) == []


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_a_missing_value_is_null_never_zero(run: Location, missing: float | None) -> None:
    ledger = Ledger(run)
    ledger.put("trials", trial(0, "FAIL", epochs=1, val_f1=missing, error="it broke"))
    ledger.put("epochs", {"trial_id": "A@10-000", "epoch": 1, "val_f1": missing})
    ledger.flush()
    for known in (Ledger(run), ledger):
        known.save()
        for name in ("trials", "epochs"):
            (row,) = read_table(run / f"{name}.parquet")
            assert row["val_f1"] is None
    assert read_table(run / "epochs.parquet")[0]["train_loss"] is None, "never given"


def test_what_is_run_again_from_scratch_has_no_checkpoint(run: Location) -> None:
    """A driver that is killed as a trial fails leaves it."""
    ledger = Ledger(run)
    ledger.put("trials", trial(1, "FAIL", epochs=1, error="it broke"))
    ledger.put("trials", trial(10))
    kept, left = (run / "checkpoints" / f"{trial(n)['trial_id']}-lr0.001.ckpt" for n in (10, 1))
    for file in (kept, left):
        file.write_bytes(b"a checkpoint")
    assert ledger.restart_errored() == 1
    assert (kept.is_file(), left.is_file()) == (True, False)


def test_columns_are_those_of_the_contract(tmp_path: Path) -> None:
    ledger = Ledger(Location(tmp_path))
    ledger.put("trials", trial(0) | {"unknown": 1})
    ledger.save()
    columns = "trial_id cell variant label_ratio lr seed state epochs best_epoch val_loss val_acc"
    columns += " val_f1 seconds node error recipe settings"
    assert pq.read_schema(tmp_path / "trials.parquet").names == columns.split()
    columns = "cell variant label_ratio repeat seed lr epochs best_epoch val_loss val_acc val_f1"
    columns += " test_loss test_acc test_f1 test_precision test_recall seconds recipe settings"
    assert TABLES["evaluations"][0].names == columns.split()
    columns = "cell variant label_ratio repeat file true pred probability"
    assert set(TABLES["predictions"][0].names) >= set(columns.split())


@pytest.mark.parametrize("spoil", [lambda content: content[:-9], lambda _: b"", lambda _: b"text"])
@pytest.mark.parametrize("name", ["trials", "epochs", "evaluations"])
def test_a_damaged_table_is_named(
    tmp_path: Path, name: str, spoil: Callable[[bytes], bytes]
) -> None:
    ledger = Ledger(Location(tmp_path))
    ledger.put("trials", trial(0, epochs=1))
    ledger.put("epochs", epoch(0, 1))
    ledger.put("evaluations", {**CELL, "repeat": 0})
    ledger.save()
    file = tmp_path / f"{name}.parquet"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputError) as caught:
        Ledger(Location(tmp_path))
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def spoilt(content: bytes, at: int) -> Iterator[bytes]:
    """Cut at that byte, and with another byte there."""
    yield content[:at]
    yield content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]


def test_a_segment_spoilt_at_any_byte_is_seen_and_what_it_recorded_is_done_again(
    tmp_path: Path,
) -> None:
    """Also one that is cut at a line's end."""
    ledger = Ledger(Location(tmp_path / "whole"))
    ledger.put("trials", trial(0, "RUNNING"))
    ledger.flush()
    ledger.put("epochs", epoch(0, 1))
    ledger.put("trials", trial(0, epochs=1))
    ledger.flush()
    content = (tmp_path / "whole" / "journal" / "000002.jsonl").read_bytes()
    for at in range(len(content)):
        for damaged in spoilt(content, at):
            run = tmp_path / "run"
            shutil.copytree(tmp_path / "whole", run)
            (run / "journal" / "000002.jsonl").write_bytes(damaged)
            again = Ledger(Location(run))
            assert again.rows("trials") == [trial(0, "RUNNING")]
            assert again.rows("epochs") == []
            (line,) = again.repaired
            assert line.startswith(f"{run}/journal/000002.jsonl: is damaged (")
            assert journal(Location(run)) == [], "repaired on disk, too"
            assert Ledger(Location(run)).repaired == []
            shutil.rmtree(run)


def test_a_table_spoilt_at_any_byte_is_refused_or_read_right(tmp_path: Path) -> None:
    ledger = Ledger(Location(tmp_path))
    ledger.put("trials", trial(0, epochs=1))
    ledger.put("epochs", epoch(0, 1))
    ledger.save()
    file = tmp_path / "epochs.parquet"
    content = file.read_bytes()
    refused: list[str] = []
    for at in range(len(content)):
        for damaged in spoilt(content, at):
            file.write_bytes(damaged)
            try:
                assert read_table(Location(file)) == [epoch(0, 1)]
            except InputError as error:
                refused.append(str(error))
    assert not any("\n" in line for line in refused)
    assert len(refused) >= 2 * len(content) - len(MARK), "a byte of the mark does not matter"


def test_other_readers_read_sealed_tables(tmp_path: Path) -> None:
    ledger = Ledger(Location(tmp_path))
    ledger.put("trials", trial(0, epochs=1))
    ledger.put("epochs", epoch(0, 1))
    ledger.save()
    for name, row in (("trials", trial(0, epochs=1)), ("epochs", epoch(0, 1))):
        assert pq.read_table(tmp_path / f"{name}.parquet").to_pylist() == [row]


# --- Records that lack others --------------------------------------------------------------------


def evaluation(repeat: int, **values: Any) -> dict[str, Any]:
    row = dict.fromkeys(TABLES["evaluations"][0].names) | CELL | {"repeat": repeat, "seed": 1}
    return row | {"lr": 1e-4, "epochs": 2, "test_acc": 0.5} | values


def whole_run(run: Location) -> Ledger:
    """Two trials, two repeats and an encoder, all whole."""
    ledger = Ledger(run)
    for number in (0, 1):
        ledger.put("trials", trial(number, epochs=1))
        ledger.put("epochs", epoch(number, 1))
    for repeat in (0, 1):
        for n in (1, 2):
            ledger.put("evaluation_epochs", CELL | {"repeat": repeat, "epoch": n})
        for file, pred in (("1.png", "x"), ("2.png", "y")):
            row = {"repeat": repeat, "file": file, "true": "x", "pred": pred}
            ledger.put("predictions", CELL | row)
        ledger.put("evaluations", evaluation(repeat))
    ledger.put("encoder_epochs", {"encoder": "unet-1", "epoch": 1})
    ledger.put("encoders_made", {"encoder": "unet-1", "epochs": 1})
    ledger.save()
    return ledger


def counts(ledger: Ledger) -> dict[str, int]:
    return {name: len(table) for name, table in ledger.tables.items()}


def test_reading_a_table_leaves_no_thread_behind(tmp_path: Path) -> None:
    """One that lets go of the file's content while Python exits would abort the process."""
    ledger = Ledger(Location(tmp_path))
    for number in range(3000):
        ledger.put("trials", trial(number))
    ledger.save()
    code = f"""
import os
import pyarrow.parquet
from data.storage import Location
from study.records import read_table
before = len(os.listdir("/proc/self/task"))
assert len(read_table(Location({str(tmp_path)!r}) / "trials.parquet")) == 3000
assert len(os.listdir("/proc/self/task")) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_whole_records_are_left_alone(run: Location) -> None:
    ledger = whole_run(run)
    assert Ledger(run).repaired == []
    assert contents(Ledger(run)) == contents(ledger)


def test_without_its_trials_no_epoch_enters_a_new_trial(run: Location) -> None:
    whole_run(run)
    (run / "trials.parquet").delete()
    ledger = Ledger(run)
    assert ledger.rows("epochs") == []
    assert read_table(run / "epochs.parquet") == [], "on disk, before a new trial has that name"
    assert len(ledger.repaired) == 1


def test_without_its_epochs_a_trial_is_run_again_with_its_configuration(run: Location) -> None:
    whole_run(run)
    (run / "epochs.parquet").delete()
    rows = Ledger(run).rows("trials")
    assert [row["state"] for row in rows] == ["RUNNING", "RUNNING"]
    assert [(row["lr"], row["seed"], row["val_f1"]) for row in rows] == [(1e-4, 1, None)] * 2


@pytest.mark.parametrize("missing", ["evaluations", "evaluation_epochs", "predictions"])
def test_a_repeat_goes_with_its_epochs_and_predictions(run: Location, missing: str) -> None:
    whole_run(run)
    (run / f"{missing}.parquet").delete()
    found = counts(Ledger(run))
    assert {found[name] for name in ("evaluations", "evaluation_epochs", "predictions")} == {0}
    assert found["trials"] == 2
    assert read_table(run / "evaluations.parquet") == []


def test_a_repeat_whose_predictions_are_anothers_is_run_again(run: Location) -> None:
    whole_run(run).put("evaluations", evaluation(1, test_acc=0.75))
    ledger = whole_run(run)
    ledger.put("evaluations", evaluation(1, test_acc=0.75))
    ledger.save()
    assert [row["repeat"] for row in Ledger(run).rows("evaluations")] == [0]


@pytest.mark.parametrize("name", ["encoders_made", "encoder_epochs"])
def test_damaged_tables_of_encoders_are_made_again_from_their_cards(
    run: Location, name: str
) -> None:
    whole_run(run)
    file = run / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    ledger = Ledger(run)
    assert counts(ledger)["encoders_made"] == counts(ledger)["encoder_epochs"] == 0
    assert ledger.repaired[0].startswith(f"{file}: is damaged")
    assert Ledger(run).repaired == []


# --- Storage that refuses ------------------------------------------------------------------------


@pytest.mark.parametrize("refused", ["000002.jsonl", "trials.parquet", "epochs.parquet", "delete"])
@pytest.mark.parametrize("closing", [False, True])
def test_what_storage_refuses_is_written_by_the_next_save(
    run: Location, refused: str, closing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(run)
    ledger.put("trials", trial(0, "RUNNING"))
    ledger.flush()
    ledger.put("epochs", epoch(0, 1))
    ledger.put("trials", trial(0, epochs=1))
    ledger.put("trials", trial(1, "RUNNING"))
    write, delete = Location.write_bytes, Location.delete

    def no_room(self: Location, content: bytes = b"") -> None:
        if self.name == refused or (refused == "delete" and not content):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, content) if content else delete(self)

    monkeypatch.setattr(Location, "write_bytes", no_room)
    monkeypatch.setattr(Location, "delete", no_room)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            ledger.save(closing)
    monkeypatch.undo()
    killed_now = Ledger(run)
    if refused != "000002.jsonl":
        assert contents(killed_now) == contents(ledger)
    ledger.save(closing)
    assert contents(Ledger(run)) == contents(ledger)
    shown = read_table(run / "trials.parquet")
    assert [row["state"] for row in shown] == ["COMPLETE"] + ["RUNNING"] * (not closing)
    assert read_table(run / "epochs.parquet") == [epoch(0, 1)]
    assert bool(journal(run)) == closing, "nothing is left but the unfinished trial"


def test_saving_costs_at_most_a_tenth_of_the_time(tmp_path: Path) -> None:
    ledger = Ledger(Location(tmp_path))
    ledger.put("trials", trial(0))
    assert not ledger.save_if_due(), "not yet five seconds"
    ledger._saved_at -= 6
    assert ledger.save_if_due()
    ledger._save_cost = 2.0
    ledger._saved_at -= 6
    assert not ledger.save_if_due()


def test_where_no_trial_is_complete_no_evaluation_is_missing(tmp_path: Path) -> None:
    """As after `search.max_seconds`."""
    ledger = Ledger(Location(tmp_path))
    ledger.put("trials", trial(0, "PRUNED"))
    ledger.put("epochs", epoch(0, 1))
    ledger.save()
    (tmp_path / "optuna.db").touch()
    assert missing_or_damaged(Location(tmp_path), 3) == []
    ledger.put("trials", trial(1))
    ledger.save()
    assert "evaluations.parquet" in missing_or_damaged(Location(tmp_path), 3)


STUDY = {
    "config": {"name": "mine", "seed": 3, "search": {"trials": 4}},
    "versions": {"python": "3.11"},
    "data": {"key": "abc", "species": ["Ätä", "b"]},
    "state": "RUNNING",
    "started": "2026-01-01T00:00:00+0000",
    "seconds": 0.0,
    "failures": [],
}


def test_study_yaml_comes_back(run: Location) -> None:
    write_study(run, STUDY)
    assert read_study(run) == STUDY


def test_a_study_yaml_spoilt_at_any_byte_is_restored_from_its_copy(tmp_path: Path) -> None:
    """Cut, it may well be valid YAML; changed, it may be another study's configuration."""
    run, file = Location(tmp_path), tmp_path / "study.yaml"
    write_study(run, STUDY)
    whole = file.read_bytes()
    for at in range(len(whole)):
        for damaged in spoilt(whole, at):
            file.write_bytes(damaged)
            assert read_study(run) == STUDY


def test_a_study_yaml_that_is_gone_is_restored_from_its_copy(run: Location) -> None:
    write_study(run, STUDY)
    (run / "study.yaml").delete()
    assert is_study(run)
    assert read_study(run) == STUDY
    assert (run / "study.yaml").is_file()


def test_a_study_yaml_and_its_copy_spoilt(tmp_path: Path) -> None:
    run = Location(tmp_path)
    write_study(run, STUDY)
    for name in ("study.yaml", ".study.yaml"):
        file = tmp_path / name
        file.write_bytes(file.read_bytes().replace(b"trials: 4", b"trials: 5"))
    with pytest.raises(InputError, match=r"study\.yaml: is damaged.*another --name"):
        read_study(run)


def test_a_study_yaml_without_a_checksum_is_read(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    assert read_study(Location(tmp_path)) == STUDY


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: found no study\.yaml"):
        read_study(Location(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: found no study\.yaml"):
        read_study(Location(tmp_path / "file"))
