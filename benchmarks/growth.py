"""What the driver costs a trial, when there are 100, 1,000 and 10,000 of them.

Trials that do nothing (a made-up curve of 1 to 3 epochs, at once) go through the real search,
scheduler, rungs, ledger and optuna.db, saved as `study.stages` saves them, on 8 and on 64 slots
(virtual CPUs, an actor each; they import neither torch nor the project). 20 cells, so that 10,000
trials are 500 a cell. Every actor's first trial waits until all actors are there; counting begins
then.

- ``run``: driver seconds (processor time of the driver, all its threads) and wall seconds a
  trial, and the driver's memory;
- ``own``: the same trials driven by a loop without Ray: what is the project's own part;
- ``snapshot``: seconds of saving everything, the trials × 30 epochs on record and a few changed.

The command, about 20 minutes on a machine that does nothing else, and one part of it:

    python benchmarks/growth.py
    python benchmarks/growth.py --parts run --trials 1000 --slots 8
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from record import write_result

from data.storage import Location
from study import tuning
from study.capacity import Capacity
from study.cells import cells_of
from study.cluster import connected
from study.config import Config, config_from
from study.optuna_file import OptunaFile
from study.records import Ledger, Row
from study.search import StudySearch, Trial

CELLS = {"variants": ["A", "B0", "B1", "B2"], "label_ratios": [10, 25, 50, 75, 100]}
EPOCHS = 3
SNAPSHOT_EPOCHS = 30


def configure(trials: int, slots: int, max_epochs: int = EPOCHS) -> Config:
    """A study of at least so many trials over 20 cells."""
    search = {"trials": -(-trials // 20), "lr": [1e-5, 1e-2], "grace_period": 1}
    tree = {"cells": CELLS, "training": {"max_epochs": max_epochs}, "search": search}
    tree["resources"] = {"max_concurrent": slots, "gpus_per_trial": 0}
    return config_from(tree, "growth")


def row(lr: float, epoch: int) -> dict[str, float]:
    """A made-up epoch: its F1 rises, the higher the smaller lr is."""
    f1 = epoch / (epoch + 1) * (1 - lr)
    values = {"train_loss": 1 - f1, "val_loss": 1 - f1, "val_acc": f1, "val_f1": f1}
    return {"epoch": epoch, **values, "seconds": 0.001, "ended": time.time()}


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass
class Meter:
    """Counts trials as they end, from ``start`` on."""

    ledger: Ledger
    start: int
    marks: list[tuple[int, float, float, float]] = field(default_factory=list)
    ended: int = 0

    def trial_ended(self) -> None:
        self.ended += 1
        if self.ended >= self.start and (self.ended - self.start) % 50 == 0:
            now = (time.process_time(), time.perf_counter(), resident_mib())
            self.marks.append((self.ended, *now))

    def figures(self) -> dict[str, Any]:
        first, last = self.marks[0], self.marks[-1]
        count = last[0] - first[0]
        early = next(mark for mark in self.marks if mark[0] >= first[0] + min(100, count))
        late = next(mark for mark in self.marks if mark[0] >= last[0] - min(1000, count))
        return {
            "trials": count,
            "driver_ms_a_trial": _ms(first, last, 1),
            "driver_ms_a_trial_of_the_first_100": _ms(first, early, 1),
            "driver_ms_a_trial_of_the_last_1000": _ms(late, last, 1),
            "wall_ms_a_trial": _ms(first, last, 2),
            "driver_mib_at_start": round(first[3], 1),
            "driver_mib_at_end": round(last[3], 1),
        }


def _ms(first: tuple[float, ...], last: tuple[float, ...], which: int) -> float:
    return round(1000 * (last[which] - first[which]) / (last[0] - first[0]), 2)


class Saver:
    """Saves as `study.stages.Stages.tick` does, and keeps how long each took."""

    def __init__(self, ledger: Ledger, database: OptunaFile, search: StudySearch):
        self.ledger, self.database, self.search = ledger, database, search
        self.seconds: list[float] = []

    def __call__(self) -> None:
        started = time.perf_counter()
        if self.ledger.save_if_due():
            self.database.save(self.search.searches.values())
            self.seconds.append(time.perf_counter() - started)

    def figures(self) -> dict[str, Any]:
        longest = max(self.seconds, default=0.0)
        return {"saves": len(self.seconds), "longest_save_s": round(longest, 3)}


def actor(slots: int, folder: str) -> Callable[..., None]:
    """The trainable; it closes over plain values only, so actors import none of the project."""

    def trial(config: dict[str, Any], material: None) -> None:
        import os
        import time

        from ray import tune

        mine = os.path.join(folder, str(os.getpid()))
        if not os.path.exists(mine):
            open(mine, "w").close()
            while len(os.listdir(folder)) < slots:
                time.sleep(0.2)
        lr = config["trial"]["lr"]
        for epoch in (1, 2, 3):
            f1 = epoch / (epoch + 1) * (1 - lr)
            values = {"train_loss": 1 - f1, "val_loss": 1 - f1, "val_acc": f1, "val_f1": f1}
            times = {"seconds": 0.001, "ended": time.time()}
            tune.report({"epoch": epoch, **values, **times, "node": "here"})

    return trial


class Nothing(SimpleNamespace):
    """The study's material to the driver; None to the actors."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def measure_run(trials: int, slots: int) -> dict[str, Any]:
    """Through Ray Tune, on a Ray of its own."""
    config = configure(trials + slots, slots)
    with tempfile.TemporaryDirectory(prefix="growth-") as name, virtual_cpus(slots):
        run, actors = Location(name) / "run", Path(name) / "actors"
        actors.mkdir()
        ledger = Ledger(run)
        search = StudySearch(config, ledger, lambda cell: True)
        meter = Meter(ledger, slots)
        noted(search, meter)
        database = OptunaFile(run)
        saver = Saver(ledger, database, search)
        material: Any = Nothing(config=config, run=run)
        tuning.run_trial = actor(slots, str(actors))
        have = Capacity(config)
        tuning.run_search(material, search, have, have.slots, saver, print)
        return {"slots": slots, **meter.figures(), **saver.figures()}


def virtual_cpus(count: int) -> Any:
    """A local Ray that believes in that many CPUs."""
    init = ray.init

    def with_cpus(**options: Any) -> Any:
        return init(**options, num_cpus=count)

    ray.init = with_cpus
    return connected(None)


def noted(search: StudySearch, meter: Meter) -> None:
    """Have the meter told of each trial that ends."""
    end = search.end

    def ended(*arguments: Any) -> Any:
        result = end(*arguments)
        meter.trial_ended()
        return result

    search.end = ended  # type: ignore[method-assign,assignment]


def measure_own(trials: int, slots: int) -> dict[str, Any]:
    """The same without Ray: ``slots`` trials take turns, an epoch each."""
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        run = Location(name)
        ledger = Ledger(run)
        search = StudySearch(configure(trials + slots, slots), ledger, lambda cell: True)
        meter = Meter(ledger, slots)
        noted(search, meter)
        saver = Saver(ledger, OptunaFile(run), search)
        drive(search, slots, saver)
        opened = time.perf_counter()
        StudySearch(search.config, Ledger(run), lambda cell: True)
        opened = time.perf_counter() - opened
        return {"slots": slots, **meter.figures(), **saver.figures(), "open_s": round(opened, 2)}


def drive(search: StudySearch, slots: int, tick: Callable[[], None]) -> None:
    live: list[tuple[Trial, int]] = []
    while True:
        while len(live) < slots and (trial := search.next_trial()):
            live.append((trial, 1))
        if not live:
            return
        going = []
        for trial, epoch in live:
            if search.report(trial, row(trial.lr, epoch)) and epoch < EPOCHS:
                going.append((trial, epoch + 1))
            else:
                search.end(trial, "here")
            tick()
        live = going


def measure_snapshot(trials: int, slots: int) -> dict[str, Any]:
    """Save a study with that many trials of 30 epochs, then again with ``slots`` changed ones."""
    config = configure(trials, slots, SNAPSHOT_EPOCHS)
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        run = Location(name)
        ledger = Ledger(run)
        fill(ledger, config, trials)
        full = timed(ledger.save)
        for number in range(slots):
            put_epoch(ledger, cells_of(config)[0], number, SNAPSHOT_EPOCHS + 1)
        again = timed(ledger.save)
        search = StudySearch(config, ledger, lambda cell: True)
        database = OptunaFile(run)
        first = timed(lambda: database.save(search.searches.values()))
        idle = timed(lambda: database.save(search.searches.values()))
        sizes = {name: (run / name).local.stat().st_size for name in FILES}
        return {
            "trials": trials,
            "epochs": trials * SNAPSHOT_EPOCHS,
            "first_ledger_save_s": full,
            "ledger_save_s": again,
            "optuna_from_nothing_s": first,
            "optuna_save_s": idle,
            "bytes": sizes,
            "driver_mib": round(resident_mib(), 1),
        }


FILES = ("trials.parquet", "epochs.parquet", "optuna.db")


def fill(ledger: Ledger, config: Config, trials: int) -> None:
    cells = cells_of(config)
    for i in range(trials):
        cell, number = cells[i % len(cells)], i // len(cells)
        for epoch in range(1, SNAPSHOT_EPOCHS + 1):
            put_epoch(ledger, cell, number, epoch)
        columns: Row = {"trial_id": cell.trial_id(number), "cell": cell.name}
        columns |= {"variant": cell.variant}
        columns |= {"label_ratio": cell.label_ratio, "lr": 1e-3, "seed": i, "state": "COMPLETE"}
        columns |= {"epochs": SNAPSHOT_EPOCHS, "best_epoch": SNAPSHOT_EPOCHS}
        ledger.put("trials", row(1e-3, SNAPSHOT_EPOCHS) | columns)


def put_epoch(ledger: Ledger, cell: Any, number: int, epoch: int) -> None:
    columns = {"trial_id": cell.trial_id(number), "cell": cell.name, "variant": cell.variant}
    lr = 1e-5 + 1e-7 * number + 1e-9 * epoch
    ledger.put("epochs", row(lr, epoch) | columns | {"label_ratio": cell.label_ratio})


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 3)


PARTS = {"run": measure_run, "own": measure_own, "snapshot": measure_snapshot}


def in_a_process(part: str, trials: int, slots: int) -> dict[str, Any]:
    """Each measurement in a fresh process, whose memory is its own."""
    command = [sys.executable, __file__, "--one", part, str(trials), str(slots)]
    load = os.getloadavg()[0]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    figures: dict[str, Any] = json.loads(line) | {"load_before": round(load, 1)}
    print(part, figures, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--trials", nargs="+", type=int, default=[100, 1000, 10_000])
    parser.add_argument("--slots", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        part, trials, slots = options.one
        print(json.dumps(PARTS[part](int(trials), int(slots))))
        return
    figures: dict[str, Any] = {}
    for part in options.parts:
        slots = options.slots if part != "snapshot" else options.slots[-1:]
        figures[part] = [in_a_process(part, t, s) for s in slots for t in options.trials]
    print(write_result("growth", sys.argv[1:], figures))


if __name__ == "__main__":
    main()
