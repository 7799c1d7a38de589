"""Shares of variance are right on functions whose shares are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records_example import write_run

from analysis.importance import LEAST_TRIALS, importance, shares
from analysis.report import write_report

VARIANT = {"A": -1.34, "B0": -0.45, "B1": 0.45, "B2": 1.34}  # variance 1, mean 0
RATIO = {10: -1.414, 25: -0.707, 50: 0.0, 75: 0.707, 100: 1.414}
pytestmark = pytest.mark.usefixtures("no_png")


def _trials(count: int, weights: tuple[float, float, float, float], noise: float) -> pd.DataFrame:
    """Scores that are a sum of variant, ratio, log lr and variant × log lr, of known weights."""
    random = np.random.default_rng(0)
    variant = random.choice(list(VARIANT), count)
    ratio = random.choice(list(RATIO), count)
    place = random.uniform(0, 1, count)
    of_variant, of_ratio = (
        np.vectorize(VARIANT.get)(variant),
        np.vectorize(RATIO.get)(ratio),
    )
    of_lr = np.cos(2 * np.pi * place) * np.sqrt(2)
    parts = (of_variant, of_ratio, of_lr, of_variant * of_lr)
    score = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    score = 0.5 + 0.05 * (score + noise * random.normal(size=count))
    columns = {"variant": variant, "label_ratio": ratio, "lr": 10 ** (3 * place - 5)}
    return pd.DataFrame(
        {**columns, "val_f1": score, "state": "COMPLETE", "recipe": None, "settings": None}
    )


CASES = [(0.7, 0.5, 0.5, 0.0), (0.3, 1.0, 0.5, 0.5), (0.0, 0.0, 0.0, 1.0)]


@pytest.mark.parametrize("weights", CASES)
@pytest.mark.parametrize(("count", "noise", "most"), [(2000, 0.0, 0.03), (320, 0.3, 0.12)])
def test_known_shares_are_found(
    weights: tuple[float, float, float, float], count: int, noise: float, most: float
) -> None:
    found = importance(_trials(count, weights, noise), "val_f1")
    known = dict(zip(found.shares["factors"], found.shares["share"], strict=True))
    parts = ("variant", "label ratio", "learning rate", "variant × learning rate")
    total = sum(weight**2 for weight in weights)
    for name, weight in zip(parts, weights, strict=True):
        assert known.pop(name) == pytest.approx(weight**2 / total, abs=most)
    assert sum(known.values()) < most  # the interactions that there are not
    assert found.explained > 0.7
    assert found.shares["share"].sum() == pytest.approx(1)


def test_a_grid_is_split_as_arithmetic_says() -> None:
    x, y = np.array([-1.0, 1.0]), np.array([-1.0, 0.0, 1.0])
    surface = (3 * x[:, None] + y + 2 * np.multiply.outer(x, y))[:, :, None]
    found = shares(surface, ("x", "y", "constant")).set_index("factors")["share"]
    whole = 9 + 2 / 3 + 4 * 2 / 3
    assert found.to_dict() == pytest.approx(
        {"x": 9 / whole, "x × y": 8 / 3 / whole, "y": 2 / 3 / whole}
    )


def test_a_searched_recipe_is_a_factor() -> None:
    """All of what the variant is worth is the recipe's here."""
    trials = _trials(320, (1.0, 0.0, 0.0, 0.0), 0.1)
    trials["recipe"] = trials["variant"].map({"A": "plain", "B0": "masked", "B1": "x", "B2": "y"})
    trials["variant"] = "B2-best"
    found = importance(trials, "val_f1").shares.set_index("factors")["share"]
    assert found["variant, recipe"] > 0.8


def test_noise_is_said_to_be_unexplained() -> None:
    assert importance(_trials(320, (0, 0, 0, 0), 1.0), "val_f1").explained < 0.1


def test_shares_that_mean_little_are_not_on_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ratios=(10, 100), trials=8, repeats=0, encoders=0)
    assert "percent of the variance" in write_report(folder).read_text()
    trials = pd.read_parquet(folder / "trials.parquet")
    trials["val_f1"] = np.random.default_rng(0).permutation(trials["val_f1"])
    trials.to_parquet(folder / "trials.parquet", index=False)
    page = write_report(folder).read_text()
    assert "too little to say what the score depends on" in page
    assert "percent of the variance" not in page


def test_failed_trials_do_not_count_and_stopped_ones_do() -> None:
    trials = _trials(60, CASES[0], 0.0)
    trials.loc[:9, ["state", "val_f1"]] = ("FAIL", np.nan)
    trials.loc[10:29, "state"] = "PRUNED"
    assert importance(trials, "val_f1").trials == 50


def test_without_enough_to_go_by_there_are_no_shares() -> None:
    few, same = _trials(LEAST_TRIALS - 1, CASES[0], 0.0), _trials(50, CASES[0], 0.0)
    for trials in (few, few.head(0), same.assign(val_f1=0.5)):
        assert importance(trials, "val_f1").shares.empty


def test_what_never_changed_has_no_share() -> None:
    trials = _trials(50, CASES[0], 0.0).assign(variant="A", label_ratio=10)
    assert importance(trials, "val_f1").shares["factors"].tolist() == ["learning rate"]
