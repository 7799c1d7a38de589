"""Labels saved: curves with a known crossing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.isotonic import isotonic_regression

from analysis.efficiency import labels_for, labels_saved, monotone
from analysis.statistics import CellScores, Draws

LABELS = {10: 100, 25: 250, 50: 500, 100: 1000}
DRAWS = Draws(np.repeat(np.arange(20), 25), 400)


def _cell(accuracy: float, seed: int) -> CellScores:
    random = np.random.default_rng(seed)
    value = accuracy + np.array([-0.01, 0.0, 0.01])
    drawn = value[:, None] + random.normal(0, 0.01, (3, DRAWS.count))
    scores = ({name: each for name in ("acc", "recall")} for each in (value, drawn))
    return CellScores((0, 1, 2), 500, *scores)


def _saved(b0: list[float], b2: list[float]) -> dict[int, dict[str, object]]:
    scores = {f"B0@{r}": _cell(a, i) for i, (r, a) in enumerate(zip(LABELS, b0, strict=True))}
    scores |= {f"B2@{r}": _cell(a, 9 + i) for i, (r, a) in enumerate(zip(LABELS, b2, strict=True))}
    frame = labels_saved(scores, DRAWS, LABELS)
    return {row["label_ratio"]: row for row in frame.to_dict("records")}


def test_a_curve_on_log_labels_gives_the_labels_by_hand() -> None:
    """B0 gains 0.1 from 250 to 500 labels: half of it takes 250 × √2."""
    rows = _saved([0.3, 0.4, 0.5, 0.6], [0.45, 0.5, 0.6, 0.7])
    assert rows[10]["needed"] == pytest.approx(250 * 2**0.5)
    assert rows[10]["saved"] == pytest.approx(250 * 2**0.5 - 100)
    assert rows[10]["bound"] == "exact"
    assert 250 < rows[10]["needed_low"] < rows[10]["needed"] < rows[10]["needed_high"] < 500  # type: ignore[operator]
    assert rows[25]["needed"] == pytest.approx(500)


def test_more_than_there_are_and_fewer_than_were_studied_are_answers() -> None:
    rows = _saved([0.3, 0.4, 0.5, 0.6], [0.2, 0.3, 0.5, 0.8])
    assert rows[100]["bound"] == "at least"
    assert rows[100]["needed"] == rows[100]["needed_high"] == np.inf
    assert rows[100]["most"] == 1000
    assert rows[10]["bound"] == "at most"
    assert rows[10]["needed"] == 100
    assert rows[10]["saved"] == 0


def test_what_did_not_learn_saves_no_labels() -> None:
    """Chance, 5 % of 20 species, is reached with any labels."""
    rows = _saved([0.3, 0.4, 0.5, 0.6], [0.05, 0.06, 0.5, 0.6])
    assert set(rows) == {50, 100}


def test_without_a_curve_there_is_no_row() -> None:
    scores = {"B0@10": _cell(0.3, 0), "B2@10": _cell(0.4, 1)}
    assert labels_saved(scores, DRAWS, LABELS).empty
    assert labels_saved({}, DRAWS, LABELS).empty


def test_monotone_is_scikit_learns_isotonic_regression() -> None:
    values = np.random.default_rng(0).random((6, 50))
    expected = np.stack([isotonic_regression(column) for column in values.T], axis=1)
    assert monotone(values) == pytest.approx(expected)


def test_a_curve_that_falls_is_made_flat_first() -> None:
    curve = np.array([[0.3], [0.5], [0.4], [0.6]])
    found = labels_for(np.array([0.45]), np.array([100, 250, 500, 1000]), curve)
    assert found == pytest.approx([250])
