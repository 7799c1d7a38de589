"""How far `mariposa plan --from RUN` is from what studies took.

    python benchmarks/forecast.py RUN RUN ... [--busy RUN ...]

Each finished RUN is forecast from the records of every RUN, its own among them, for as many
trials at once as it had, and compared with the seconds that its ``study.yaml`` states. Seeds are
others than the runs' own (but one of five), and curves are drawn from the three nearest, so that
even a run's own records are not simply played back. A run that shared the machine with other work
has epochs of its own length: ``--busy`` forecasts it from its own records only.

For more trials at once than this machine has CPUs, ``--asleep N`` runs the real search, Ray Tune
and all, with trials that sleep for as long as the first RUN's epochs took, and compares its time
from the first epoch to the last with the simulated one. Encoders take no time in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from record import spread, write_result

import study.tuning
from data.storage import Location
from study.capacity import Capacity
from study.cells import Cell
from study.material import Material
from study.measured import Measured, Overhead, read_measured
from study.planning import count_images
from study.records import Ledger
from study.search import StudySearch
from study.simulation import Curves, simulate, size_factor


def compare(source: Measured, run: Measured) -> dict[str, Any]:
    """The run as forecast from the source's records, beside what it took."""
    assert run.took is not None, f"{run.run}: is not complete"
    curves = Curves(run.config, count_images(run.config), source)
    started = time.process_time()
    outcomes = simulate(curves, run.side_by_side)
    cost = (time.process_time() - started) / len(outcomes)
    walls = spread([one.wall for one in outcomes])
    return {
        "from": source.run.name,
        "of": run.run.name,
        "trials": sum(map(len, run.trials.values())),
        "kind": kind(source, run),
        "at_once": run.side_by_side,
        "took": run.took.seconds,
        "took_search": run.took.search,
        "took_evaluation": run.took.evaluation,
        "forecast": walls,
        "forecast_search": spread([one.search for one in outcomes]),
        "forecast_evaluation": spread([one.evaluation for one in outcomes]),
        "error": round(walls["mean"] / run.took.seconds - 1, 4),
        "cpu_seconds_a_simulated_study": round(cost, 3),
    }


def kind(source: Measured, run: Measured) -> str:
    """How much of the forecast is measured: all, all but the run itself, or a guess."""
    if source is run:
        return "its own records"
    same = size_factor(run.config, source.config) == 1
    return "another run of that size" if same else "a run of another size"


def asleep(measured: Measured, slots: int) -> dict[str, Any]:
    """Seconds of a real search whose trials sleep, and of simulated ones."""
    quick = dataclasses.replace(
        measured, encoders=((1, 1, 0.0),), overhead=Overhead(worker=0.0, between=0.1)
    )
    curves = Curves(measured.config, count_images(measured.config), quick)
    simulated = [one.search for one in simulate(curves, slots)]
    ray.init(address="local", num_cpus=slots, include_dashboard=False, log_to_driver=False)
    original = study.tuning.run_trial
    study.tuning.run_trial = sleeper(curves)
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Location(folder)
            ledger = Ledger(place / "run")
            search = StudySearch(measured.config, ledger, lambda cell: True)
            material = Material(measured.config, place / "run", place, "")
            capacity = Capacity(measured.config)
            study.tuning.run_search(material, search, capacity, capacity.slots, lambda: None, print)
            epochs = ledger.rows("epochs")
    finally:
        study.tuning.run_trial = original
        ray.shutdown()
    took = max(e["ended"] for e in epochs) - min(e["ended"] - e["seconds"] for e in epochs)
    return {
        "at_once": slots,
        "took_search": round(took, 1),
        "epochs": len(epochs),
        "forecast_search": spread(simulated),
        "error": round(statistics.fmean(simulated) / took - 1, 4),
    }


def sleeper(curves: Curves) -> Callable[..., None]:
    """What stands in for `study.tuning.run_trial`."""

    def sleep(config: dict[str, Any], material: Material) -> None:
        trial = config["trial"]
        cell, random = Cell(**trial["cell"]), np.random.default_rng(trial["seed"])
        for row in curves.trial(cell, trial["lr"], random):
            time.sleep(row["seconds"])
            tune.report({**row, "ended": time.time(), "node": ""})

    return sleep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--busy", metavar="RUN", nargs="+", type=Path, default=[])
    parser.add_argument("--asleep", metavar="N", nargs="+", type=int, default=[])
    options = parser.parse_args()
    runs = [read_measured(Location(folder)) for folder in options.runs]
    busy = [read_measured(Location(folder)) for folder in options.busy]
    pairs = [compare(source, run) for source, run in product(runs, runs)]
    pairs += [compare(run, run) for run in busy]
    for one in pairs:
        low, high = one["forecast"]["low"], one["forecast"]["high"]
        print(
            f"{one['of']:>10} took {one['took']:6.1f} s; from {one['from']:>10}: "
            f"{one['forecast']['mean']:6.1f} s ({low:.1f} to {high:.1f}), {one['error']:+.1%}"
        )
    slept = [asleep(runs[0], slots) for slots in options.asleep]
    for one in slept:
        print(f"asleep: {one}")
    figures = {
        "busy": [run.run.name for run in busy],
        "error_by_kind": {
            name: spread([abs(one["error"]) for one in pairs if one["kind"] == name])
            for name in sorted({one["kind"] for one in pairs})
        },
        "asleep": slept,
        "pairs": pairs,
    }
    command = [*map(str, options.runs), *(["--busy", *map(str, options.busy)] if busy else [])]
    command += ["--asleep", *map(str, options.asleep)] if slept else []
    print(write_result("forecast", command, figures))


if __name__ == "__main__":
    main()
