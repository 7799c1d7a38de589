"""Confusions and calibration, on predictions that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.errors import calibration, calibration_error, most_confused

ROWS = [  # repeat, file, true, pred, probability
    (0, "ant/1", "ant", "bee", 0.9),
    (1, "ant/1", "ant", "bee", 0.5),
    (0, "ant/2", "ant", "bee", 0.95),
    (1, "ant/2", "ant", "ant", 0.6),
    (0, "ant/3", "ant", "cat", 0.4),
    (1, "ant/3", "ant", "ant", 0.7),
    (0, "bee/1", "bee", "bee", 0.8),
    (1, "bee/1", "bee", "ant", 0.3),
    (0, "bee/2", "bee", "bee", 0.6),
    (1, "bee/2", "bee", "bee", 0.6),
    (0, "cat/1", "cat", "ant", 0.3),
    (1, "cat/1", "cat", "ant", 0.3),
]
PREDICTIONS = pd.DataFrame(ROWS, columns=["repeat", "file", "true", "pred", "probability"])


def test_pairs_are_counted_over_repeats_and_shown_by_the_clearest_images() -> None:
    pairs = most_confused(PREDICTIONS, top=3, images=2)
    named = list(zip(pairs["true"], pairs["pred"], pairs["times"], pairs["of"], strict=True))
    assert named == [("ant", "bee", 3, 6), ("cat", "ant", 2, 2), ("ant", "cat", 1, 6)]
    assert list(pairs["share"]) == [0.5, 1.0, 1 / 6]
    assert pairs["files"][0] == ["ant/1", "ant/2"]  # twice, then once
    assert pairs["like"][0] == ["bee/2", "bee/1"]
    assert pairs["like"][1] == ["ant/3", "ant/2"]  # right as often, but surer
    assert pairs["like"][2] == ["cat/1"]  # never recognised, and still a cat


def test_no_errors_and_no_predictions_have_no_pairs() -> None:
    right = PREDICTIONS[PREDICTIONS["true"] == PREDICTIONS["pred"]]
    assert most_confused(right).empty
    assert most_confused(PREDICTIONS.head(0)).empty
    assert np.isnan(calibration_error(calibration(PREDICTIONS.head(0))))


def test_bins_and_error_by_hand() -> None:
    table = calibration(PREDICTIONS, bins=2)
    assert list(table["predictions"]) == [5, 7]  # 0.5 lies in the lower one
    assert list(table["confidence"]) == pytest.approx([0.36, 5.15 / 7])
    assert list(table["accuracy"]) == pytest.approx([0, 5 / 7])
    expected = (5 * 0.36 + 7 * abs(5.15 - 5) / 7) / 12
    assert calibration_error(table) == pytest.approx(expected)


def test_a_classifier_that_is_as_right_as_it_is_sure_has_no_error() -> None:
    random = np.random.default_rng(0)
    sure = random.uniform(0, 1, 200_000)
    right = random.random(200_000) < sure
    frame = pd.DataFrame({"true": "a", "pred": np.where(right, "a", "b"), "probability": sure})
    assert calibration_error(calibration(frame)) < 0.01
    frame["probability"] = 1.0  # as right as before, and always sure
    assert calibration_error(calibration(frame)) == pytest.approx(1 - right.mean())
