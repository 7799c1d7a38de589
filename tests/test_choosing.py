"""Which trial wins: on records of four numbers, every rule one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from study.choosing import best_epoch, best_repeat, winner

NAN, INF = math.nan, math.inf


def trial(name: str, f1: float | None, loss: float | None, state: str = "COMPLETE") -> Any:
    return {"trial_id": name, "val_f1": f1, "val_loss": loss, "state": state}


def test_the_best_metric_wins() -> None:
    rows = [trial("0", 0.5, 0.1), trial("1", 0.7, 9.0), trial("2", 0.6, 0.1)]
    assert winner(rows, "val_f1") is rows[1]


def test_a_tie_goes_to_the_lower_loss_and_then_to_the_first() -> None:
    rows = [trial("0", 0.7, 2.0), trial("2", 0.7, 1.0), trial("1", 0.7, 1.0)]
    assert winner(rows, "val_f1") is rows[2]
    assert winner(reversed(rows), "val_f1") is rows[2]


def test_a_loss_is_minimised() -> None:
    rows = [trial("0", 0.9, 2.0), trial("1", 0.1, 1.0), trial("2", 0.5, 3.0)]
    assert winner(rows, "val_loss") is rows[1]


@pytest.mark.parametrize("missing", [None, NAN, INF, -INF])
@pytest.mark.parametrize("metric", ["val_f1", "val_loss"])
def test_a_missing_value_loses_to_any_other(missing: float | None, metric: str) -> None:
    rows = [trial("0", missing, missing), trial("1", 0.0, 1e9)]
    assert winner(rows, metric) is rows[1]
    assert winner([trial("0", 0.5, missing), trial("1", 0.5, 7.0)], "val_f1") == {
        **trial("1", 0.5, 7.0)
    }


@pytest.mark.parametrize("state", ["PRUNED", "FAIL", "RUNNING"])
def test_only_a_complete_trial_wins(state: str) -> None:
    rows = [trial("0", 0.9, 0.1, state), trial("1", 0.2, 0.5)]
    assert winner(rows, "val_f1") is rows[1]
    assert winner(rows[:1], "val_f1") is None
    assert winner([], "val_f1") is None


def test_the_first_of_equally_good_epochs_is_the_best() -> None:
    rows: list[Any] = [
        {"epoch": 3, "val_f1": 0.6, "val_loss": 0.1},
        {"epoch": 1, "val_f1": 0.2, "val_loss": 0.3},
        {"epoch": 2, "val_f1": 0.6, "val_loss": 0.9},
        {"epoch": 4, "val_f1": None, "val_loss": 0.0},
    ]
    assert best_epoch(rows, "val_f1") is rows[2]
    assert best_epoch(rows, "val_loss") is rows[3]
    assert best_epoch([], "val_f1") is None


def test_the_best_repeat_is_chosen_by_validation_whatever_the_test_says() -> None:
    rows = [
        {"repeat": 0, "val_f1": 0.5, "val_loss": 1.0, "test_f1": 0.9},
        {"repeat": 1, "val_f1": 0.6, "val_loss": 1.0, "test_f1": 0.1},
        {"repeat": 2, "val_f1": 0.6, "val_loss": 1.0, "test_f1": 1.0},
    ]
    assert best_repeat(rows, "val_f1") is rows[1]
    assert best_repeat([], "val_f1") is None


def test_an_autoencoder_keeps_its_epoch_of_least_loss() -> None:
    epochs = [{"epoch": 1, "valid_loss": 0.9}, {"epoch": 2, "valid_loss": 0.2}]
    epochs.append({"epoch": 3, "valid_loss": 0.3})
    best = best_epoch(epochs, "valid_loss")
    assert best is not None
    assert best["epoch"] == 2
