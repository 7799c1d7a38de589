"""Labels saved: curves with a known crossing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.isotonic import isotonic_regression

from analysis.efficiency import labels_for, labels_saved, monotone
from analysis.statistics import CellScores, Draws
from analysis.wording import label_interval

LABELS = {10: 100, 25: 250, 50: 500, 100: 1000}
DRAWS = Draws(np.repeat(np.arange(20), 25), 400)


def _cell(accuracy: float, seed: int, repeats: int = 3) -> CellScores:
    random = np.random.default_rng(seed)
    value = accuracy + np.linspace(-0.01, 0.01, repeats)
    drawn = value[:, None] + random.normal(0, 0.01, (repeats, DRAWS.count))
    scores = ({name: each for name in ("acc", "recall")} for each in (value, drawn))
    return CellScores(tuple(range(repeats)), 500, *scores)


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


def test_an_end_below_the_fewest_labels_is_not_a_number() -> None:
    """B2 reaches with 100 labels about what B0 does with 100: with how few B0 would, none knows."""
    row = _saved([0.3, 0.4, 0.5, 0.6], [0.31, 0.4, 0.5, 0.6])[10]
    assert (row["needed_low"], row["saved_low"]) == (-np.inf, -np.inf)
    assert (row["least"], row["most"]) == (100, 1000)
    assert label_interval(row, "needed").startswith("100 or fewer to 1")
    assert label_interval(row, "saved", 100).startswith("0 or fewer to ")
    assert label_interval(row | {"needed_high": 100.0}, "needed") == "100 or fewer"
    assert label_interval(row | {"needed_high": np.inf}, "needed") == "any number"


def test_one_repeat_of_a_cell_leaves_no_ends() -> None:
    """Of the curve: in every row; of the variant: in its own."""
    scores = {f"B0@{r}": _cell(0.3 + r / 400, r) for r in LABELS}
    scores |= {f"B2@{r}": _cell(0.35 + r / 400, r, 1 if r == 25 else 3) for r in LABELS}
    found = labels_saved(scores, DRAWS, LABELS).set_index("label_ratio")
    ends = ["needed_low", "needed_high", "saved_low", "saved_high"]
    assert found[["needed", "saved"]].notna().all(axis=None)
    assert found.loc[25, ends].isna().all()
    assert found.drop(25)[ends].notna().all(axis=None)
    found = labels_saved(scores | {"B0@50": _cell(0.425, 50, 1)}, DRAWS, LABELS)
    assert found[ends].isna().all(axis=None)
    assert label_interval(found.iloc[0], "needed") == ""


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
