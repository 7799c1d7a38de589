"""The leaderboard: order, JSON, CSV, what a terminal shows, and what it shows as time goes on."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY
from records_example import write_run

from analysis import load
from analysis.leaderboard import (
    View,
    leaderboard,
    render,
    so_far,
    sort_by,
    to_csv,
    to_json,
    winners,
)
from analysis.watch import watch
from data.storage import InputError, Location
from study.cli import main


def _trial(name: str, state: str, f1: float | None, loss: float | None, **more: object) -> dict:
    row = {"trial_id": f"A@10-{name}", "cell": "A@10", "variant": "A", "label_ratio": 10}
    row |= {"lr": 3.2e-4, "seed": 1, "state": state, "epochs": 3, "best_epoch": 2}
    row |= {"val_loss": loss, "val_acc": f1, "val_f1": f1, "seconds": 1.0, "node": "n"}
    return row | {"error": None} | more


TRIALS = pd.DataFrame(
    [
        _trial("0", "FAIL", None, None, error="ValueError: bad [bold]value[/bold]\ntraceback"),
        _trial("1", "COMPLETE", 0.5, 1.2),
        _trial("2", "PRUNED", 0.7, 0.9),
        _trial("3", "COMPLETE", 0.5, 1.1),
        _trial("4", "RUNNING", 0.9, 0.5, best_epoch=None),
        _trial("5", "COMPLETE", 0.6, 1.5),
    ]
)


def _order(metric: str) -> list[str]:
    return [name[-1] for name in leaderboard(TRIALS, metric)["trial_id"]]


def test_best_first_ties_by_loss_unfinished_and_failed_last() -> None:
    assert _order("val_f1") == ["2", "5", "3", "1", "4", "0"]
    assert _order("val_loss") == ["2", "3", "1", "5", "4", "0"]
    assert list(leaderboard(TRIALS, "val_f1", top=3)["rank"]) == [1, 2, 3]


def test_a_running_trial_shows_what_it_has_reached() -> None:
    rows = [("A@10-4", 1, 0.2, 2.0), ("A@10-4", 2, 0.4, 1.6), ("A@10-4", 3, 0.4, 1.5)]
    rows += [("A@10-4", 4, 0.3, 1.4), ("A@10-1", 1, 0.1, 3.0)]
    epochs = pd.DataFrame(rows, columns=["trial_id", "epoch", "val_f1", "val_loss"])
    epochs = epochs.assign(val_acc=epochs["val_f1"] + 0.1, seconds=2.0)
    began = {"epochs": 0, "best_epoch": None, "val_f1": None, "val_loss": None, "seconds": 0.0}
    trials = pd.DataFrame([_trial("1", "COMPLETE", 0.5, 1.2), _trial("4", "RUNNING", 0, 0) | began])
    found = so_far(trials, epochs, "val_f1")
    reached = found.iloc[1][["epochs", "best_epoch", "val_f1", "val_acc", "val_loss", "seconds"]]
    assert list(reached) == [4, 2, 0.4, 0.5, 1.6, 8]
    assert so_far(trials, epochs, "val_loss").iloc[1]["best_epoch"] == 4
    pd.testing.assert_series_equal(found.iloc[0], trials.iloc[0], check_dtype=False)
    assert "no trial yet" in render(leaderboard(trials.head(0), "val_f1"), "val_f1")


def test_a_winner_is_complete(tmp_path: Path) -> None:
    assert winners(TRIALS, "val_f1").loc["A@10", "trial_id"] == "A@10-5"
    assert winners(TRIALS.iloc[[1, 3]], "val_f1").loc["A@10", "trial_id"] == "A@10-3"
    assert winners(TRIALS.iloc[:1], "val_f1").empty


def test_one_cell(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10, 25), trials=5, encoders=0))
    board = leaderboard(run.trials, run.metric, cell="B1@25", top=2)
    assert set(board["cell"]) == {"B1@25"}
    assert list(board["rank"]) == [1, 2]
    assert board["val_f1"].iloc[0] == run.trials.query("cell == 'B1@25'")["val_f1"].max()


def test_json_has_the_columns_and_null_for_what_is_missing(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10,), trials=5, encoders=0))
    rows = json.loads(to_json(leaderboard(run.trials, run.metric)))
    assert list(rows[0]) == ["rank", *run.trials.columns]
    assert [type(rows[0][k]) for k in ("rank", "label_ratio", "epochs")] == [int, int, int]
    failed = rows[-1]
    assert failed["state"] == "FAIL"
    assert failed["val_f1"] is failed["val_loss"] is failed["best_epoch"] is failed["node"] is None
    assert failed["error"].startswith("RuntimeError")
    assert rows[0]["error"] is None
    assert json.loads(to_json(leaderboard(run.trials.head(0), run.metric))) == []


def test_a_terminal_shows_a_line_a_trial() -> None:
    long = TRIALS.assign(error="RuntimeError: " + "x" * 300 + "\nsecond line")
    lines = render(leaderboard(long, "val_f1"), "val_f1").splitlines()
    assert len(lines) == 1 + len(TRIALS)
    assert max(map(len, lines)) <= 100
    assert lines[-1].endswith("…")
    shown = render(leaderboard(TRIALS, "val_f1"), "val_f1")
    assert "3.2e-04" in shown
    assert "ValueError: bad [bold]value[/bold]" in shown
    assert "traceback" not in shown
    assert "nan" not in shown.lower()


@pytest.mark.parametrize("metric", ["val_f1", "val_loss"])
def test_no_trials_yet(tmp_path: Path, metric: str) -> None:
    folder = write_run(tmp_path / "run", ratios=(10,), encoders=0)
    (folder / "trials.parquet").unlink()
    board = leaderboard(load(folder).trials, metric)
    assert board.empty
    assert render(board, metric).startswith("#")


def test_csv_is_what_json_is(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10,), trials=5, encoders=0))
    board = leaderboard(run.trials, run.metric)
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    told = json.loads(to_json(board))
    assert list(rows[0]) == list(told[0])
    for row, same in zip(rows, told, strict=True):
        assert {k: v == "" for k, v in row.items()} == {k: v is None for k, v in same.items()}
        assert float(row["lr"]) == same["lr"]
        assert row["epochs"] == str(same["epochs"])
    assert rows[-1]["error"] == told[-1]["error"]  # of two lines


def test_another_column_orders_the_rows_but_not_the_ranks() -> None:
    board = leaderboard(TRIALS.assign(seconds=[6, 5, 4, 3, None, 1]), "val_f1")
    assert [name[-1] for name in sort_by(board, "seconds")["trial_id"]] == list("532104")
    assert [name[-1] for name in sort_by(board, "-seconds", top=2)["trial_id"]] == list("01")
    assert sort_by(board, "val_acc")["val_acc"].iloc[0] == 0.9  # scores: highest first
    assert sort_by(board, "-val_acc")["val_acc"].iloc[0] == 0.5
    assert sorted(sort_by(board, "seconds")["rank"]) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(InputError, match=r"--sort: found 'speed', expected one of rank, trial_id"):
        sort_by(board, "speed")


def test_by_loss_the_other_score_is_shown_beside_it() -> None:
    head = render(leaderboard(TRIALS, "val_loss"), "val_loss").splitlines()[0]
    assert head.split() == [
        "#",
        "trial",
        "state",
        "lr",
        "val_loss",
        "val_f1",
        "epochs",
        "s",
        "error",
    ]


class Growing:
    """A run whose trials end between two looks, and whose study ends at last."""

    def __init__(self, folder: Path):
        self.folder = write_run(folder, ratios=(10,), variants=("A", "B2"), trials=4, encoders=0)
        self.trials = pd.read_parquet(self.folder / "trials.parquet")
        self.looks = 0
        self._write(2, "RUNNING")

    def sleep(self, _: float) -> None:
        self.looks += 1
        if self.looks > 1:  # at the first look nothing has changed
            self._write(min(2 + 3 * self.looks, len(self.trials)), "RUNNING")
        if self.looks == 4:
            self._write(len(self.trials), "COMPLETE")

    def _write(self, ended: int, state: str) -> None:
        trials = self.trials.head(ended + 1).copy()
        if len(trials) > ended:
            trials.loc[ended, ["state", "error"]] = ("RUNNING", None)
        trials.to_parquet(self.folder / "trials.parquet", index=False)
        study = yaml.safe_load((self.folder / "study.yaml").read_text())
        (self.folder / "study.yaml").write_text(yaml.safe_dump(study | {"state": state}))


def test_watch_prints_each_trial_once_when_it_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    growing = Growing(tmp_path / "run")
    watch(Location(growing.folder), View(), growing.sleep)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["#", "trial", "state"]
    assert sorted(line.split()[1] for line in lines[1:-1]) == sorted(growing.trials["trial_id"])
    assert not any("RUNNING" in line for line in lines)
    assert any("RuntimeError: loss is NaN" in line for line in lines)
    assert lines[-1] == "run · complete · 8 of 8 trials ended · 2 pruned · 1 failed"


def test_watch_redraws_a_terminal_only_on_change_and_leaves_the_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    growing = Growing(tmp_path / "run")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    watch(Location(growing.folder), View(top=3, sort="lr"), growing.sleep)
    screens, left = capsys.readouterr().out.split("\x1b[?1049l")  # back from the other screen
    assert screens.count("trials ended") == 3  # 4 looks, one without a change
    assert "2 of 8 trials ended" in screens
    assert "8 of 8 trials ended" in left
    lowest = growing.trials.sort_values("lr")["trial_id"].head(3)
    assert [name for name in growing.trials["trial_id"] if name in left] == sorted(lowest)


def test_a_small_terminal_still_says_why_a_trial_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    growing = Growing(tmp_path / "run")
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("LINES", "9")):
        monkeypatch.setenv(name, value)
    watch(Location(growing.folder), View(), growing.sleep)
    screens = capsys.readouterr().out.split("\x1b[?1049l")[0].split("trials ended")
    last = screens[-1].splitlines()
    assert len(last) <= 9
    assert any("A@10-003 failed: RuntimeError: loss is NaN" in line for line in last)
    assert any("… 5 more" in line for line in last)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_run(tmp_path / "run", ratios=(10,), trials=5, encoders=0))
    assert main(["leaderboard", folder, "--cell", "A@10", "--sort", "lr", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["cell"] for row in rows] == ["A@10"] * 5
    assert [float(row["lr"]) for row in rows] == sorted(float(row["lr"]) for row in rows)
    assert main(["leaderboard", folder, "--watch"]) == 0  # has ended: shown once
    assert "complete · 20 of 20 trials ended" in capsys.readouterr().out
    for wrong, said in (("--sort=x", "--sort: found 'x'"), ("--json", "not allowed with")):
        assert main(["leaderboard", folder, "--csv", wrong]) == 2
        assert said in capsys.readouterr().err


def test_stopping_to_look_is_no_failure(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "run")
    command = [sys.executable, "-m", "study", "leaderboard", str(growing.folder), "--watch"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]  # a head, and two that have ended
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert len([line for line in lines if "@10-" in line]) == 2
