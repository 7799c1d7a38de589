"""Which sampler and scheduler finds a good learning rate for the fewest epochs?

The searches are the project's own (`study.search.StudySearch`: Optuna, rungs, records); only their
training is replayed from `curves.py`'s table of real curves, so that a search costs milliseconds.
A trial has the curve of a seed drawn by its number, between the two recorded rates next to its own,
and ends by patience, as a study's does.

A learning rate is worth its best F1, at the mean over the table's seeds; a search's regret is what
the rate of its winner (by validation, its own noise included) is worth less than the best rate.
After each trial the winner so far is taken, which gives regret against epochs. A study has the
table's six cells and counts once, at their mean.

    python benchmarks/samplers.py     # 7 minutes, most of them the Gaussian process

"pruned unseen" shows the sampler a pruned trial as Optuna does: not at all. "population n" is
NSGA-II with generations of n.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import numpy as np
from curves import EPOCHS, LRS, Curves
from record import RESULTS, write_result

import study.samplers
from analysis.figures.drawing import BLUE, GREEN, GREY, ORANGE, RED, drawing, horizontal_grid
from data.storage import Location
from study.cells import Cell, trial_number
from study.choosing import winner
from study.config import Config, config_from
from study.records import Row
from study.samplers import SAMPLERS
from study.search import StudySearch, Trial
from study.seeds import seed_for
from study.simulation import MemoryLedger

PATIENCE = 5
METHODS = [(sampler, scheduler) for scheduler in ("asha", "none") for sampler in SAMPLERS]
METHODS += [
    (f"{name}, pruned unseen", "asha") for name, s in SAMPLERS.items() if not s.ranks_pruned
]
METHODS += [(f"nsga2, population {size}", "asha") for size in (3, 4, 6, 8, 12)]
COLOURS = {"tpe": BLUE, "gp": GREEN, "cmaes": ORANGE, "nsga2": RED, "random": GREY}
STYLES = {"tpe": "-", "gp": "--", "cmaes": "-.", "nsga2": ":", "random": (0, (5, 1, 1, 1, 1, 1))}


@lru_cache(maxsize=1)
def table() -> Curves:
    return Curves()


def until_patience(f1: np.ndarray) -> np.ndarray:
    """(epochs,) cut off where PATIENCE epochs have brought nothing better."""
    best = 0
    for epoch, value in enumerate(f1):
        if value > f1[best]:
            best = epoch
        if epoch - best >= PATIENCE:
            return f1[: epoch + 1]
    return f1


def worth(cell: str, lr: float) -> float:
    """F1 of a rate, at the mean over the table's seeds."""
    return float(np.mean([until_patience(curve).max() for curve in table().at(cell, lr)]))


@lru_cache
def best_worth(cell: str) -> float:
    return max(worth(cell, lr) for lr in np.geomspace(LRS[0], LRS[-1], 361))


@dataclass(frozen=True)
class Searched:
    """One cell's search: (T,) epochs spent after each trial, (T,) regret; NaN before a winner."""

    epochs: np.ndarray
    regret: np.ndarray


def configure(sampler: str, scheduler: str, trials: int, seed: int) -> Config:
    search = {"trials": trials, "lr": [LRS[0], LRS[-1]], "grace_period": 2, "reduction_factor": 3}
    search |= {"sampler": sampler, "scheduler": scheduler}
    cells = {"variants": ["A", "B1", "B2"], "label_ratios": [10, 50]}
    training = {"max_epochs": EPOCHS, "patience": PATIENCE}
    tree = {"seed": seed, "cells": cells, "training": training, "search": search}
    return config_from(tree, "benchmark")


def searched(method: tuple[str, str], trials: int, seed: int) -> tuple[list[Searched], float]:
    """One study: its cells' searches, and the driver's seconds of processor."""
    name, scheduler = method
    with changed(name) as sampler, tempfile.TemporaryDirectory() as folder:
        config = configure(sampler, scheduler, trials, seed)
        search = StudySearch(config, MemoryLedger(Location(folder)), lambda cell: True)
        began = time.process_time()
        run(search)
        took = time.process_time() - began
        return [told(search, cell) for cell in search.cells], took


@contextmanager
def changed(name: str) -> Iterator[str]:
    """The sampler of a method, while it is as the method's name says."""
    sampler, _, change = name.partition(", ")
    with ExitStack() as stack:
        if change == "pruned unseen":
            unlike = {sampler: replace(SAMPLERS[sampler], ranks_pruned=True)}
            stack.enter_context(patch.dict(SAMPLERS, unlike))
        elif change:
            size = int(change.removeprefix("population "))
            stack.enter_context(patch.object(study.samplers, "population", lambda trials: size))
        yield sampler


def run(search: StudySearch) -> None:
    """All trials, one after another."""
    while (trial := search.next_trial()) is not None:
        for row in rows_of(trial):
            if not search.report(trial, row):
                break
        search.end(trial)


def rows_of(trial: Trial) -> Iterator[Row]:
    curves = table().at(trial.cell.name, trial.lr)
    curve = curves[seed_for(trial.seed, "curve") % len(curves)]
    for epoch, f1 in enumerate(until_patience(curve), 1):
        value = float(f1)
        metrics = {"val_f1": value, "val_acc": value, "val_loss": 1 - value, "train_loss": 1.0}
        yield {"epoch": epoch, "seconds": 1.0, **metrics}


def told(search: StudySearch, cell: Cell) -> Searched:
    rows = [row for row in search.ledger.rows("trials") if row["cell"] == cell.name]
    rows = sorted(rows, key=lambda row: trial_number(row["trial_id"]))
    chosen = [winner(rows[: n + 1], "val_f1") for n in range(len(rows))]
    regret = [
        math.nan if w is None else best_worth(cell.name) - worth(cell.name, w["lr"]) for w in chosen
    ]
    return Searched(np.cumsum([row["epochs"] for row in rows]), np.array(regret))


# --- Over many studies ---------------------------------------------------------------------------


def at(search: Searched, epochs: np.ndarray) -> np.ndarray:
    """Regret of a search that is cut off after so many epochs (E,); its end beyond its end."""
    place = np.searchsorted(search.epochs, epochs, side="right") - 1
    return np.where(place < 0, math.nan, search.regret[np.maximum(place, 0)])


def mean_and_half_width(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the first axis, studies: the mean and half of its 95 % interval."""
    return values.mean(axis=0), 1.96 * values.std(axis=0, ddof=1) / math.sqrt(len(values))


@dataclass(frozen=True)
class Compared:
    """One method over all studies: (S,) of each, and (S, E) regret by epochs."""

    method: tuple[str, str]
    epochs: np.ndarray
    final: np.ndarray
    by_epochs: np.ndarray
    ms: float  # of the driver's processor, a trial


def grid(trials: int) -> np.ndarray:
    """Epochs a cell at which regret is told; by EPOCHS the first trial has ended."""
    return np.arange(EPOCHS, EPOCHS * trials + 1)


def compare(
    method: tuple[str, str], trials: int, seeds: int, pool: ProcessPoolExecutor
) -> Compared:
    studies = list(pool.map(partial(searched, method, trials), range(seeds), chunksize=5))
    curves = [np.mean([at(cell, grid(trials)) for cell in cells], axis=0) for cells, _ in studies]
    mean = [
        [np.mean([c.epochs[-1] for c in cells]), np.mean([c.regret[-1] for c in cells])]
        for cells, _ in studies
    ]
    epochs, final = np.array(mean).T
    cells = len(studies[0][0])
    ms = 1e3 * float(np.median([took for _, took in studies])) / (trials * cells)
    return Compared(method, epochs, final, np.array(curves), ms)


def figures(one: Compared, random: Compared, trials: int) -> dict[str, Any]:
    """What is told of a method; the difference to random search is paired by study."""
    told: dict[str, Any] = {"sampler": one.method[0], "scheduler": one.method[1]}
    told |= {"trials": trials, "n": len(one.final), "epochs": round(float(one.epochs.mean()), 1)}
    told["regret"] = with_half(one.final)
    told["less than random"] = with_half(random.final - one.final)
    for epochs in (24, 48, 96):
        if epochs <= grid(trials)[-1]:
            told[f"regret after {epochs} epochs"] = with_half(one.by_epochs[:, epochs - EPOCHS])
    return told | {"driver ms a trial": round(one.ms, 2)}


def with_half(values: np.ndarray) -> list[float]:
    mean, half = mean_and_half_width(values)
    return [round(float(mean), 4), round(float(half), 4)]


def draw(compared: list[Compared], trials: int) -> None:
    """Mean regret against epochs, a panel a scheduler, with the mean's 95 % band."""
    with drawing(7.2, 3.0) as figure:
        for place, scheduler in ((121, "asha"), (122, "none")):
            axes = figure.add_subplot(place)
            horizontal_grid(axes)
            for one in compared:
                if one.method[1] == scheduler and one.method[0] in COLOURS:
                    draw_line(axes, one, trials)
            axes.set_title(f"scheduler: {scheduler}")
            axes.set_xlabel("epochs spent in a cell")
            axes.set_ylabel("regret (macro F1)")
            axes.set_ylim(0, 0.06)
            axes.legend()
        figure.patch.set_facecolor("white")
        figure.savefig(RESULTS / "samplers.png", dpi=130)


def draw_line(axes: Any, one: Compared, trials: int) -> None:
    sampler = one.method[0]
    epochs = grid(trials)
    shown = epochs <= one.epochs.mean()
    mean, half = mean_and_half_width(one.by_epochs[:, shown])
    axes.plot(epochs[shown], mean, color=COLOURS[sampler], linestyle=STYLES[sampler], label=sampler)
    band = (mean - half, mean + half)
    axes.fill_between(epochs[shown], *band, color=COLOURS[sampler], alpha=0.15, linewidth=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=120)
    parser.add_argument("--trials", type=int, nargs="+", default=[6, 16], help="a cell")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for trials in options.trials:
            compared = []
            for method in METHODS:
                compared.append(compare(method, trials, options.seeds, pool))
                print(trials, *method, with_half(compared[-1].final), flush=True)
            random = {one.method[1]: one for one in compared if one.method[0] == "random"}
            rows += [figures(one, random[one.method[1]], trials) for one in compared]
    draw(compared, trials)
    print(write_result("samplers", sys.argv[1:], {"methods": rows}))


if __name__ == "__main__":
    main()
