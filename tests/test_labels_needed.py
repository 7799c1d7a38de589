"""Labels needed for an accuracy, and what more of them bring: curves with known values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.labels_needed import gains, labels_needed, round_accuracies
from analysis.statistics import CellScores, Draws

LABELS = {10: 100, 25: 250, 50: 500, 100: 1000}
DRAWS = Draws(np.repeat(np.arange(20), 25), 400)


def _cell(accuracy: float, seed: int, repeats: int = 3) -> CellScores:
    random = np.random.default_rng(seed)
    value = accuracy + np.linspace(-0.01, 0.01, repeats)
    drawn = value[:, None] + random.normal(0, 0.01, (repeats, DRAWS.count))
    scores = ({name: each for name in ("acc", "recall")} for each in (value, drawn))
    return CellScores(tuple(range(repeats)), 500, *scores)


def _scores(repeats: int = 3, **curves: list[float]) -> dict[str, CellScores]:
    return {
        f"{variant}@{ratio}": _cell(accuracy, 10 * number + place, repeats)
        for number, (variant, curve) in enumerate(curves.items())
        for place, (ratio, accuracy) in enumerate(zip(LABELS, curve, strict=True))
    }


def test_a_curve_on_log_labels_gives_the_labels_by_hand() -> None:
    """A passes 0.4 halfway between 250 and 500 labels, which is 250 × √2."""
    scores = _scores(A=[0.25, 0.35, 0.45, 0.55], B0=[0.42, 0.45, 0.46, 0.47])
    found = labels_needed(scores, DRAWS, LABELS).set_index(["variant", "acc"])
    assert list(found.loc["A"].index) == [0.3, 0.4, 0.5]
    row = found.loc[("A", 0.4)]
    assert row["needed"] == pytest.approx(250 * 2**0.5)
    assert 250 < row["needed_low"] < row["needed"] < row["needed_high"] < 500
    assert (found.loc[("B0", 0.4)]["bound"], found.loc[("B0", 0.4)]["needed"]) == ("at most", 100)
    assert (found.loc[("B0", 0.5)]["bound"], found.loc[("B0", 0.5)]["most"]) == ("at least", 1000)


def test_one_repeat_gives_no_interval() -> None:
    found = labels_needed(_scores(1, A=[0.25, 0.35, 0.45, 0.55]), DRAWS, LABELS)
    assert found["needed"].notna().all()
    assert found[["needed_low", "needed_high"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (0.3, 0.67, [0.4, 0.5, 0.6]),
        (0.3, 0.7, [0.4, 0.5, 0.6, 0.7]),
        (0.86, 0.97, [0.9, 0.95]),
        (0.91, 0.96, [0.92, 0.94, 0.96]),
        (0.01, 0.21, [0.1, 0.2]),
        (0.955, 0.96, []),
    ],
)
def test_accuracies_are_as_round_as_the_curves_allow(
    least: float, most: float, expected: list[float]
) -> None:
    assert round_accuracies([np.array([least, most])], above=0.05) == expected


def test_what_did_not_learn_needs_no_number_of_labels() -> None:
    found = labels_needed(_scores(A=[0.05] * 4, B0=[0.2, 0.3, 0.4, 0.5]), DRAWS, LABELS)
    assert set(found["variant"]) == {"B0"}
    assert labels_needed({}, DRAWS, {}).empty
    assert round_accuracies([], above=0.05) == []


def _gains(scores: dict[str, CellScores]) -> pd.DataFrame:
    return gains(scores, DRAWS, LABELS).set_index("variant")


def test_a_curve_that_still_rises_is_told_from_one_that_does_not() -> None:
    found = _gains(_scores(A=[0.2, 0.3, 0.4, 0.6], B0=[0.2, 0.3, 0.5, 0.5], B1=[0.05] * 4))
    assert found.loc["A", "difference"] == pytest.approx(0.2)
    assert (found["label_ratio"] == 50).all()
    assert (found["labels"].to_list(), found["to_labels"].to_list()) == ([500] * 3, [1000] * 3)
    assert found["verdict"].to_dict() == {
        "A": "higher",
        "B0": "under 2 points",
        "B1": "at chance",
    }


def test_one_repeat_decides_nothing_and_one_ratio_has_no_gain() -> None:
    assert _gains(_scores(1, A=[0.2, 0.3, 0.4, 0.6]))["verdict"].to_list() == ["not decided"]
    assert _gains({"A@100": _cell(0.6, 0)}).empty
    assert _gains({"A@10": _cell(0.2, 0), "A@100": _cell(0.6, 1)})["label_ratio"].to_list() == [10]
