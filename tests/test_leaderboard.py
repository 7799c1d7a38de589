"""The leaderboard: order, JSON, and what a terminal shows."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from records_example import write_run

from analysis import load
from analysis.leaderboard import leaderboard, render, to_json, winners


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
