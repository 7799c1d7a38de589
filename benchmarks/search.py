"""Does a search per cell find each cell's best learning rate, and one search over all cells not?

An analytic objective stands in for training, so that the truth is known: 20 cells (4 variants × 5
label ratios), each with a best lr of its own; curves that cross (a larger lr rises sooner and ends
lower); more labels score higher, as they do with images. Compared at the same number of trials,
and once more at the same number of epochs:

- ``per cell``: `study.search.StudySearch`, an Optuna study and ASHA rungs a cell;
- ``one study``: Ray Tune's OptunaSearch and ASHAScheduler over variant × ratio × lr, as its guides
  show; also with Optuna's multivariate TPE.

Four trials run at a time and take turns, an epoch each. The command, about 2 minutes:

    python benchmarks/search.py --seeds 20
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from record import spread, write_result

from data.storage import Location
from study.cells import Cell, cells_of
from study.config import Config, config_from
from study.records import Ledger
from study.search import StudySearch
from study.search import Trial as StudyTrial

AT_ONCE = 4
CHANCE = 0.05  # of 20 species
ENDS_AT = {10: 0.35, 25: 0.45, 50: 0.55, 75: 0.60, 100: 0.63}  # F1 at the best lr, by label ratio
ADDS = {"A": 0.0, "B0": -0.02, "B1": 0.01, "B2": 0.03}
WIDTH = 0.6  # decades of lr from the best to where 1/e of the F1 above chance is left
NOISE = 0.01  # of an epoch's F1


class Objective:
    """F1 by cell, lr and epoch, with each cell's best lr drawn from the middle of the range.

    Args:
        cells: the study's.
        config: gives the range of lr and the epochs.
        seed: of the best lrs and the noise.
    """

    def __init__(self, cells: tuple[Cell, ...], config: Config, seed: int):
        self.epochs = config.training.max_epochs
        low, high = np.log10(config.search.lr)
        random = np.random.default_rng([seed, 1])
        self.best = {c: float(random.uniform(low + 0.5, high - 0.5)) for c in cells}
        self._noise = np.random.default_rng([seed, 2])

    def score(self, cell: Cell, lr: float, epoch: int) -> float:
        """Without noise."""
        off = math.log10(lr) - self.best[cell]
        above = ENDS_AT[cell.label_ratio] + ADDS[cell.variant] - CHANCE
        epochs_to_rise = min(30.0, max(0.5, 4.0 * 10**-off))  # what a larger lr gains at first
        risen = (1 - math.exp(-epoch / epochs_to_rise)) / (1 - math.exp(-self.epochs / 4.0))
        return CHANCE + above * math.exp(-((off / WIDTH) ** 2)) * min(1.0, risen)

    def measured(self, cell: Cell, lr: float, epoch: int) -> float:
        return self.score(cell, lr, epoch) + float(self._noise.normal(0, NOISE))

    def regret(self, cell: Cell, lr: float | None) -> float:
        """F1 lost at the last epoch; without an lr the cell is left at chance."""
        lrs = 10.0 ** np.linspace(self.best[cell] - 0.5, self.best[cell] + 0.5, 101)
        top = max(self.score(cell, float(x), self.epochs) for x in lrs)
        return top - (CHANCE if lr is None else self.score(cell, lr, self.epochs))

    def best_lr(self, cell: Cell) -> float:
        """The lr with the highest score at the last epoch, in log10."""
        xs = np.linspace(self.best[cell] - 0.5, self.best[cell] + 0.5, 101)
        return float(max(xs, key=lambda x: self.score(cell, float(10**x), self.epochs)))


@dataclass
class Run:
    """One trial of either method."""

    cell: Cell
    lr: float
    epochs: int = 0
    best: float = -math.inf
    handle: Any = field(default=None, repr=False)


Step = Callable[[Run, float], bool]  # tells an epoch's F1; whether the trial goes on


def drive(
    objective: Objective, new: Callable[[], Run | None], step: Step, end: Callable[[Run], None]
) -> list[Run]:
    """Trials side by side, an epoch of each in turn, until no new one is handed out."""
    running: list[Run] = []
    ended: list[Run] = []
    while True:
        while len(running) < AT_ONCE and (fresh := new()) is not None:
            running.append(fresh)
        if not running:
            return ended
        for run in list(running):
            run.epochs += 1
            value = objective.measured(run.cell, run.lr, run.epochs)
            run.best = max(run.best, value)
            if not step(run, value) or run.epochs == objective.epochs:
                running.remove(run)
                end(run)
                ended.append(run)


def per_cell(objective: Objective, config: Config) -> list[Run]:
    """The project's own search."""
    with tempfile.TemporaryDirectory() as folder:
        search = StudySearch(config, Ledger(Location(folder)), lambda cell: True)

        def new() -> Run | None:
            trial = search.next_trial()
            return None if trial is None else Run(trial.cell, trial.lr, handle=trial)

        def step(run: Run, value: float) -> bool:
            trial: StudyTrial = run.handle
            row = {"epoch": run.epochs, "train_loss": 1.0, "val_loss": 1.0 - value}
            row |= {"val_acc": value, "val_f1": value, "seconds": 1.0}
            return search.report(trial, row)

        def end(run: Run) -> None:
            search.end(run.handle)

        return drive(objective, new, step, end)


def one_study(
    objective: Objective, config: Config, *, multivariate: bool = False, epochs: int | None = None
) -> list[Run]:
    """OptunaSearch and ASHAScheduler over variant, ratio and lr.

    Args:
        objective: what the trials measure.
        config: the study.
        multivariate: Optuna's TPE models the three together.
        epochs: hand out trials until so many epochs are spent, not ``trials`` × cells of them.
    """
    search, asha = _tune_parts(config, multivariate)
    budget = len(cells_of(config)) * config.search.trials
    started: list[Run] = []

    def new() -> Run | None:
        spent = sum(run.epochs for run in started)
        if len(started) == budget if epochs is None else spent >= epochs:
            return None
        name = f"t{len(started)}"
        point = search.suggest(name)
        run = Run(Cell(point["variant"], point["label_ratio"]), point["lr"])
        run.handle = SimpleNamespace(trial_id=name)
        asha.on_trial_add(None, run.handle)
        started.append(run)
        return run

    def step(run: Run, value: float) -> bool:
        result = {"epoch": run.epochs, "val_f1": value}
        goes_on = asha.on_trial_result(None, run.handle, result) == ASHAScheduler.CONTINUE
        if goes_on:  # Tune tells its searcher of every result but a trial's last
            search.on_trial_result(run.handle.trial_id, _for_optuna(result))
        run.handle.last = result
        return goes_on

    def end(run: Run) -> None:
        search.on_trial_complete(run.handle.trial_id, _for_optuna(run.handle.last))

    return drive(objective, new, step, end)


def _tune_parts(config: Config, multivariate: bool) -> tuple[Any, Any]:
    space = {
        "variant": tune.choice(list(config.cells.variants)),
        "label_ratio": tune.choice(list(config.cells.label_ratios)),
        "lr": tune.loguniform(*config.search.lr),
    }
    sampler = optuna.samplers.TPESampler(seed=config.seed, multivariate=multivariate)
    search = OptunaSearch(
        OptunaSearch.convert_search_space(space), metric="val_f1", mode="max", sampler=sampler
    )
    asha = ASHAScheduler(
        time_attr="epoch",
        metric="val_f1",
        mode="max",
        max_t=config.training.max_epochs,
        grace_period=config.search.grace_period,
        reduction_factor=config.search.reduction_factor,
    )
    return search, asha


def _for_optuna(result: dict[str, Any]) -> dict[str, Any]:
    return result | {"training_iteration": result["epoch"]}


def judge(objective: Objective, config: Config, runs: list[Run]) -> dict[str, float]:
    """A method's figures on one objective.

    A cell's lr is that of its best trial that ran to the end, as Table I demands. ``lenient``
    takes its best trial however early that was stopped. Errors are over the cells that have an
    lr; regret, the F1 lost by it, is over all cells.
    """
    by_cell = {cell: [run for run in runs if run.cell == cell] for cell in cells_of(config)}
    whole = {
        cell: [run for run in own if run.epochs == objective.epochs]
        for cell, own in by_cell.items()
    }
    few_labels = [run for run in runs if run.cell.label_ratio == min(ENDS_AT)]
    first_rung = [run for run in few_labels if run.epochs == config.search.grace_period]
    return {
        "trials": len(runs),
        "trials_at_100_percent": sum(run.cell.label_ratio == 100 for run in runs),
        "share_stopped_first_at_10_percent": len(first_rung) / max(1, len(few_labels)),
        "epochs": sum(run.epochs for run in runs),
        "cells_under_3_trials": sum(len(own) < 3 for own in by_cell.values()),
        "cells_without_complete": sum(not own for own in whole.values()),
        **_errors(objective, whole),
        **{f"lenient_{key}": value for key, value in _errors(objective, by_cell).items()},
    }


def _errors(objective: Objective, by_cell: dict[Cell, list[Run]]) -> dict[str, float]:
    found = {
        cell: max(own, key=lambda run: run.best).lr if own else None
        for cell, own in by_cell.items()
    }
    errors = [
        abs(math.log10(lr) - objective.best_lr(cell))
        for cell, lr in found.items()
        if lr is not None
    ]
    regrets = [objective.regret(cell, lr) for cell, lr in found.items()]
    return {
        "median_log10_error": float(np.median(errors)) if errors else math.nan,
        "worst_log10_error": max(errors, default=math.nan),
        "mean_regret": float(np.mean(regrets)),
        "worst_regret": max(regrets),
    }


def methods(objective_of: Callable[[], Objective], config: Config) -> Iterator[tuple[str, Any]]:
    """Each method's name and figures, all on the same objective."""
    runs = per_cell(objective_of(), config)
    epochs = sum(run.epochs for run in runs)
    yield "per cell", judge(objective_of(), config, runs)
    for name, options in (
        ("one study", {}),
        ("one study, multivariate TPE", {"multivariate": True}),
        ("one study, as many epochs", {"epochs": epochs}),
    ):
        runs = one_study(objective_of(), config, **options)
        yield name, judge(objective_of(), config, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="how many objectives")
    parser.add_argument("--trials", type=int, default=16, help="per cell")
    parser.add_argument("--max-epochs", type=int, default=30)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    figures: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        tree = {"seed": seed, "training": {"max_epochs": options.max_epochs}}
        config = config_from(tree | {"search": {"trials": options.trials}}, "search.py")
        cells = cells_of(config)
        for name, one in methods(lambda: Objective(cells, config, seed), config):  # noqa: B023
            figures.setdefault(name, []).append(one)
    summary = {
        name: {key: spread([one[key] for one in ones]) for key in ones[0]}
        for name, ones in figures.items()
    }
    show(summary)
    print(write_result("search", sys.argv[1:], {"cells": len(cells), "methods": summary}))


def show(summary: dict[str, Any]) -> None:
    print("mean ± sd over objectives".ljust(30), *(f"{name:>28}" for name in summary))
    for figure in next(iter(summary.values())):
        cells = [row[figure] for row in summary.values()]
        print(figure.ljust(30), *(f"{c['mean']:>18.3g} ± {c['sd']:<7.2g}" for c in cells))


if __name__ == "__main__":
    main()
