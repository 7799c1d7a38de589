"""The samplers' contract, on one cell and a known objective: numbers alone, and with a choice."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

import study.samplers
from study.cells import Hyperparameter
from study.samplers import SAMPLERS, population
from study.search import CellSearch
from study.sections import Search

LR = Hyperparameter("lr", 1e-5, 1e-2, True, "Adam step", 1e-4, "a test")
DROPOUT = Hyperparameter("dropout", 0.0, 0.9, False, "of the units", 0.5, "a test")
RECIPE = Hyperparameter(
    "recipe", 0, 0, False, "encoder", "plain", "a test", ("plain", "denoising", "masked")
)
NUMBERS, MIXED = (LR, DROPOUT), (LR, RECIPE)
SPACES = {"lr": (LR,), "numbers": NUMBERS, "mixed": MIXED}
CASES = [
    (sampler, space)
    for sampler in SAMPLERS
    for space in SPACES
    if (sampler, space) != ("cmaes", "mixed")
]
TRIALS = {"gp": 14}  # up to a tenth of a second each


def begin(sampler: str, space: tuple[Hyperparameter, ...], seed: int = 0) -> CellSearch:
    trials = TRIALS.get(sampler, 30)
    return CellSearch("B2@10", space, Search(trials=trials, sampler=sampler), seed)


def objective(point: dict[str, Any]) -> float:
    """In [0, 1], 1 at lr 1e-3, dropout 0.3 and the recipe masked."""
    far = abs(math.log10(point["lr"]) + 3) / 3 + abs(point.get("dropout", 0.3) - 0.3) / 3
    return 1 - far - (0.3 if point.get("recipe", "masked") != "masked" else 0)


def go_on(search: CellSearch, rows: list[dict[str, Any]], trials: int) -> list[dict[str, Any]]:
    """One trial after another: the third fails, each fourth is pruned; their rows."""
    while search.started < trials:
        number, point = search.ask()
        state = "FAIL" if number == 2 else "PRUNED" if number % 4 == 3 else "COMPLETE"
        value = objective(point)
        search.report(number, 1, value / 2)
        search.report(number, 2, value)
        search.tell(number, state, value)
        rows.append({**point, "state": state, "val_f1": value})
    return rows


@pytest.mark.parametrize(("sampler", "space"), CASES)
def test_points_lie_in_the_space_and_begin_with_the_papers(sampler: str, space: str) -> None:
    search = begin(sampler, SPACES[space])
    rows = go_on(search, [], search.search.trials)
    assert all(h.has(row[h.name]) for row in rows for h in search.space)
    assert [rows[0][h.name] for h in search.space] == [h.first for h in search.space]
    assert len({row["lr"] for row in rows}) > len(rows) / 2


@pytest.mark.parametrize(("sampler", "space"), CASES)
def test_a_search_put_back_from_its_records_goes_on_with_the_same_points(
    sampler: str, space: str
) -> None:
    whole = begin(sampler, SPACES[space])
    rows = go_on(whole, [], whole.search.trials)
    for cut in (1, 7, len(rows) - 1):
        again = begin(sampler, SPACES[space])
        for row in rows[:cut]:
            again.replay(row, {1: row["val_f1"] / 2, 2: row["val_f1"]})
        running, _ = again.ask({h.name: rows[cut][h.name] for h in again.space})
        again.report(running, 1, rows[cut]["val_f1"] / 2)
        again.report(running, 2, rows[cut]["val_f1"])
        again.tell(running, rows[cut]["state"], rows[cut]["val_f1"])
        most = min(cut + 4, len(rows)) if sampler == "gp" else len(rows)
        assert go_on(again, rows[: cut + 1], most) == rows[:most]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_seed_or_cell_tries_other_points(sampler: str) -> None:
    first, second = begin(sampler, (LR,)), begin(sampler, (LR,), seed=1)
    third = CellSearch("A@10", (LR,), first.search, 0)
    tried = [{row["lr"] for row in go_on(search, [], 8)} for search in (first, second, third)]
    assert len(set.union(*tried)) == 3 * 7 + 1, "all but the paper's own"


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "random"])
def test_it_learns_where_the_best_points_are(sampler: str) -> None:
    """With one hyperparameter too, where Optuna's own NSGA-II is random search."""

    def distance(name: str, seed: int) -> float:
        search = begin(name, (LR,), seed)
        rows = go_on(search, [], search.search.trials)
        late = rows[-len(rows) // 3 :]
        return sum(abs(math.log10(row["lr"]) + 3) for row in late) / len(late)

    seeds = range(2) if sampler == "gp" else range(8)
    mean = sum(distance(sampler, seed) for seed in seeds) / len(seeds)
    at_random = sum(distance("random", seed) for seed in range(8)) / 8
    assert mean < 0.6 * at_random


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "cmaes"])
def test_it_finds_the_best_choice(sampler: str) -> None:
    search = begin(sampler, MIXED)
    rows = go_on(search, [], search.search.trials)
    assert max(rows, key=lambda row: row["val_f1"])["recipe"] == "masked"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_range_of_one_value(sampler: str) -> None:
    only = replace(LR, low=3e-4, high=3e-4)
    search = begin(sampler, (only,))
    assert {row["lr"] for row in go_on(search, [], 12)} == {3e-4}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_best_at_the_end_of_the_range(sampler: str) -> None:
    """exp(log(low)) may be less than low; Optuna refuses it where a trial is added again."""
    narrow = replace(LR, low=1e-3, high=1.2e-3)
    for end in (1, -1):
        search = begin(sampler, (narrow,))
        while search.started < search.search.trials:
            number, point = search.ask()
            assert 1e-3 <= point["lr"] <= 1.2e-3
            search.tell(number, "COMPLETE", end * point["lr"])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_kept_of_a_trial_is_how_it_ended(sampler: str) -> None:
    """Not what the sampler was shown, and without its notes: CMA-ES's are pickled."""
    search = begin(sampler, (LR,))
    rows = go_on(search, [], 12)
    trials = [trial for _, trial in search.finished]
    assert [trial.state.name for trial in trials] == [row["state"] for row in rows]
    assert [trial.params["lr"] for trial in trials] == [row["lr"] for row in rows]
    assert all(trial.system_attrs == {} for trial in trials)
    assert all(
        trial.value == (None if trial.state.name == "FAIL" else row["val_f1"])
        for trial, row in zip(trials, rows, strict=True)
    )


@pytest.mark.parametrize("sampler", [name for name, s in SAMPLERS.items() if s.memory])
def test_it_sees_a_bounded_number_of_trials(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(SAMPLERS[sampler], memory=8)
    monkeypatch.setitem(study.samplers.SAMPLERS, sampler, short)
    monkeypatch.setattr(study.search, "GOOD", 2)
    search = begin(sampler, (LR,))
    go_on(search, [], search.search.trials)
    assert len(search.study.trials) <= 8
    assert len(search.finished) == search.search.trials


@pytest.mark.parametrize("trials", [1, 2, 6, 16, 24, 10_000])
def test_a_population_fits_the_budget(trials: int) -> None:
    assert 4 <= population(trials) <= 50
    assert trials < 12 or trials / population(trials) >= 2.5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pytorch_is_imported_for_the_gaussian_process_alone(sampler: str) -> None:
    code = f"""
import sys
from study.cells import Hyperparameter
from study.sections import Search
from study.search import CellSearch
space = (Hyperparameter("lr", 1e-5, 1e-2, True, "", 1e-4, ""),)
search = CellSearch("A@10", space, Search(trials=6, sampler={sampler!r}), 0)
for value in range(6):
    number, _ = search.ask()
    search.tell(number, "COMPLETE", float(value))
print("torch" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(sampler == "gp")
    assert ran.stderr == "", "no warning of Optuna's"
