"""What is searched beside lr: B2-best tries each recipe, all cells what `search.space` has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml
from conftest import World, environment, tiny_tree

from data.storage import InputError, Location
from study.cells import Cell, cells_of, searched, trained_cells
from study.choosing import winner
from study.config import config_from
from study.records import Ledger
from study.search import StudySearch

RECIPES = ("encoder", "masked", "instance", "broken")
ENCODERS: dict[str, dict[str, object]] = {
    "masked": {"objective": "masked"},
    "instance": {"objective": "instance"},
    "broken": {"lr": 1e30},  # its loss is not finite, so it fails
}
SPACE = {"weight_decay": {"loguniform": [1e-4, 1e-1]}, "average": {"choice": [0.0, 0.9]}}
pytestmark = pytest.mark.timeout(400)


def tree(root: Path | None = None, trials: int = 5) -> dict[str, object]:
    cells = {"variants": ["B0", "B1-best", "B2-best"], "label_ratios": [50]}
    one = {"max_concurrent": 1}  # so that each run of it tries the same
    search = {"trials": trials, "space": {"training": SPACE}}
    return tiny_tree(root, cells=cells, encoders=ENCODERS, search=search, resources=one)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_images: Path) -> Iterator[World]:
    """With a finished study of `tree` in ``out/tiny``."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree(tiny_images)))
    world = World(folder, environment(MARIPOSA_CACHE=str(folder / "cache")))
    code, _, err = world.run("run", "tiny.yaml", "--out", "out")
    assert code == 0, err
    yield world
    shutil.rmtree(folder)


def tables(world: World) -> dict[str, pd.DataFrame]:
    run = world.folder / "out" / "tiny"
    names = ("trials", "evaluations", "encoders_made")
    return {name: pd.read_parquet(run / f"{name}.parquet") for name in names}


def test_each_recipe_is_tried_and_the_best_trials_own_is_evaluated(world: World) -> None:
    found = tables(world)
    for cell, trials in found["trials"].groupby("cell"):
        if cell == "B0@50":
            assert trials["recipe"].isna().all()
            continue
        assert set(trials["recipe"]) <= set(RECIPES)
        assert trials["recipe"].nunique() > 1
        best = winner(trials.to_dict("records"), "val_f1")
        own = found["evaluations"][found["evaluations"]["cell"] == cell]
        assert best is not None
        assert set(own["recipe"]) == {best["recipe"]}
        assert set(own["lr"]) == {best["lr"]}
        card = json.loads((world.folder / f"out/tiny/models/{cell}.json").read_text())
        objective = {"encoder": "reconstruction"}.get(best["recipe"], best["recipe"])
        assert card["recipe"]["objective"] == objective
    assert set(found["encoders_made"]["objective"]) == {"reconstruction", "masked", "instance"}


def test_what_else_is_searched_is_drawn_recorded_and_evaluated(world: World) -> None:
    found = tables(world)
    drawn = found["trials"]["settings"].map(json.loads)
    decays = drawn.map(lambda one: one["training.weight_decay"])
    assert decays.between(1e-4, 1e-1).all()
    assert decays.nunique() == len(decays)
    assert set(drawn.map(lambda one: one["training.average"])) == {0.0, 0.9}
    for cell, trials in found["trials"].groupby("cell"):
        best = winner(trials.to_dict("records"), "val_f1")
        own = found["evaluations"][found["evaluations"]["cell"] == cell]
        assert best is not None
        assert set(own["settings"]) == {best["settings"]}
    storage = f"sqlite:///{world.folder / 'out/tiny/optuna.db'}"
    trials = found["trials"].set_index("trial_id")
    for trial in optuna.load_study(study_name="B0@50", storage=storage).trials:
        known = json.loads(trials.at[f"B0@50-{trial.number:03d}", "settings"])
        assert {k: v for k, v in trial.params.items() if k != "lr"} == known
    code, out, _ = world.run("leaderboard", "out/tiny", "--cell", "B0@50")
    assert code == 0
    assert f"weight_decay {min(decays[found['trials']['cell'] == 'B0@50']):.2g}" in out
    table = pd.read_csv(world.folder / "out/tiny/table_i.csv").set_index("variant")
    evaluated = found["evaluations"].set_index("variant")["settings"]
    assert table.at["B0", "settings"] == evaluated["B0"]
    assert "and what else was searched" in (world.folder / "out/tiny/report.html").read_text()


def test_optuna_has_the_recipe_as_a_choice(world: World) -> None:
    storage = f"sqlite:///{world.folder / 'out/tiny/optuna.db'}"
    study = optuna.load_study(study_name="B2-best@50", storage=storage)
    trials = tables(world)["trials"].set_index("trial_id")
    for trial in study.trials:
        assert trial.params["recipe"] == trials.at[f"B2-best@50-{trial.number:03d}", "recipe"]


def test_table_leaderboard_answer_and_prediction_say_which(world: World) -> None:
    run = world.folder / "out" / "tiny"
    table = pd.read_csv(run / "table_i.csv").set_index("variant")
    chosen = tables(world)["evaluations"].set_index("variant")["recipe"]
    assert table.at["B2-best", "recipe"] == chosen["B2-best"]
    assert pd.isna(table.at["B0", "recipe"])
    code, out, _ = world.run("leaderboard", "out/tiny", "--cell", "B2-best@50")
    assert code == 0
    assert chosen["B2-best"] in out
    page = (run / "report.html").read_text()
    name = {"encoder": "the common one (encoder)"}.get(chosen["B2-best"], chosen["B2-best"])
    assert f"the search chose for B2-best at 50\xa0%: {name}" in page
    image = next((run / "models").glob("B2-best*.safetensors"))
    assert image.is_file()


def test_its_time_is_forecast(world: World) -> None:
    code, out, err = world.run("plan", "--from", "out/tiny")
    assert code == 0, err
    assert "forecast" in out


def test_an_encoder_that_fails_costs_only_the_trials_that_take_it(world: World) -> None:
    trials = tables(world)["trials"]
    broken = trials["recipe"] == "broken"
    assert set(trials.loc[broken, "state"]) == {"FAIL"}
    assert "FAIL" not in set(trials.loc[~broken, "state"])


def test_a_study_that_grows_goes_on_with_the_same_points(world: World) -> None:
    before = tables(world)["trials"].set_index("trial_id")
    code, _, err = world.run("run", "tiny.yaml", "--out", "out", "--set", "search.trials=6")
    assert code == 0, err
    after = tables(world)["trials"].set_index("trial_id")
    assert len(after) == len(before) + 3
    same = after.loc[before.index, ["lr", "recipe", "settings", "seed", "state", "val_f1"]]
    pd.testing.assert_frame_equal(same, before[same.columns])


def test_a_resumed_search_tries_what_it_would_have_tried(tmp_path: Path) -> None:
    config = config_from(tree(), "a test")

    def points(ledger: Ledger, count: int) -> list[tuple[str, float, str | None, str | None]]:
        search, found = StudySearch(config, ledger, lambda cell: True), []
        for _ in range(count):
            trial = search.next_trial()
            assert trial is not None
            found.append((trial.trial_id, trial.lr, trial.recipe, trial.settings))
            epoch = {"epoch": 4, "train_loss": 1.0, "val_loss": trial.lr, "val_acc": trial.lr}
            search.report(trial, epoch | {"val_f1": trial.lr, "seconds": 1.0, "ended": 0.0})
            search.end(trial)
        return found

    whole = points(Ledger(Location(tmp_path / "whole")), 12)
    ledger = Ledger(Location(tmp_path / "parts"))
    parts = [one for count in (5, 4, 3) for one in points(ledger, count)]
    assert parts == whole
    assert {recipe for trial, _, recipe, _ in whole if trial.startswith("B2")} <= set(RECIPES)


def test_what_a_cell_may_be_trained_as() -> None:
    config = config_from(tree(), "a test")
    best = Cell("B2-best", 50)
    assert best in cells_of(config)
    names = [cell.variant for cell in trained_cells(config, best)]
    assert names == ["B2", "B2-masked", "B2-instance", "B2-broken"]
    others = ["training.average", "training.weight_decay"]
    assert [h.name for h in searched(config, "B2-best")] == ["lr", "recipe", *others]
    assert [h.name for h in searched(config, "B0")] == ["lr", *others]
    assert trained_cells(config, Cell("B0", 50)) == (Cell("B0", 50),)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoders": {"best": {}}}, "encoders: found 'best', expected another name"),
        ({"encoders": {"encoder": {}}}, "encoders: found 'encoder', expected another name"),
        (
            {"cells": {"variants": ["B2-best"], "label_ratios": [50]}},
            "cells.variants: found 'B2-best', expected recipes in encoders",
        ),
    ],
)
def test_what_cannot_be_searched_is_said(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        config_from(tiny_tree(None) | changes, "a test")


def test_a_sampler_of_numbers_alone_is_refused() -> None:
    wanted = tree()
    wanted["search"] = {"trials": 4, "sampler": "cmaes"}
    with pytest.raises(InputError, match="cmaes, which searches numbers only, with B1-best"):
        config_from(wanted, "a test")
