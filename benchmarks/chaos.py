"""A study under random deaths: what is lost, what is done twice, and what it costs in time.

The preset `smoke` on a Ray cluster of three machines (`tests/machines.py`: namespaces of this
one, a CPU each), submitted as a job; once undisturbed, then with kills at seeded random moments:

- process: SIGKILL for a process that trains (a trial, a repeat, or an encoder);
- machine: SIGKILL for all of a worker; a new one with an empty disk comes for it at once;
- driver: SIGKILL for the job's driver; the same job is submitted again at once.

    python benchmarks/chaos.py --rounds 3

takes about 2½ minutes a round on 2 idle cores. What was trained is counted by `tests/witness.py`,
beside the program's own records.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from record import spread, write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import witness
from machines import Cluster, Machine, cluster, namespaces_can_be_made

from data.storage import Location
from study.cells import cells_of
from study.choosing import score
from study.config import Config, load_config
from study.records import Row, read_table
from study.stopping import Rungs

PRESET = "smoke"
DRIVER = f"{sys.executable} -m study run"
TRAINING = ("ray::ImplicitFunc.train", "ray::evaluate", "ray::pretrain")
LONGEST_SECONDS = 900.0  # a run that takes longer has hung


@dataclass
class Run:
    """One run of the study, and the kills that are due in it.

    Args:
        due: moments in seconds after the first submission, and what dies then; in order.
        chance: chooses who of those that may die.
    """

    machines: Cluster
    log: Path
    due: list[tuple[float, str]]
    chance: random.Random
    done: list[str] = field(default_factory=list)
    _booting: dict[str, Future[None]] = field(default_factory=dict)

    def to_the_end(self) -> float:
        """Its seconds from the first submission until the job has succeeded."""
        with ThreadPoolExecutor(2) as boots:
            started = time.monotonic()
            job = self._submit()
            while job.poll() != 0:
                if job.returncode is not None:
                    if "driver" not in self.done:
                        raise RuntimeError(f"the job has failed\n{self.log.read_text()[-4000:]}")
                    job = self._submit()
                seconds = time.monotonic() - started
                if self.due and seconds > self.due[0][0] and self._kill(self.due[0][1], boots):
                    self.done.append(self.due.pop(0)[1])
                if seconds > LONGEST_SECONDS:
                    raise TimeoutError(f"still runs after {seconds:.0f} s")
                time.sleep(0.1)
            return time.monotonic() - started

    def _submit(self) -> subprocess.Popen[str]:
        out = str(self.machines.shared)
        return self.machines.submit("run", PRESET, "--out", out, log=self.log)

    def _kill(self, kind: str, boots: ThreadPoolExecutor) -> bool:
        """Whether there was one to kill."""
        if kind == "machine":
            return self._kill_machine(boots)
        places = [self.machines.head] if kind == "driver" else self._up()
        titles = (DRIVER,) if kind == "driver" else TRAINING
        found = [pid for place in places for title in titles for pid in place.find(title)]
        if found:
            os.kill(self.chance.choice(found), signal.SIGKILL)
        return bool(found)

    def _kill_machine(self, boots: ThreadPoolExecutor) -> bool:
        workers = [machine for machine in self._up() if machine is not self.machines.head]
        if not workers:
            return False
        victim = self.chance.choice(workers)
        victim.kill()
        self._booting[victim.name] = boots.submit(self.machines.up, victim.name)
        return True

    def _up(self) -> list[Machine]:
        boots = self._booting.items()
        down = {name for name, boot in boots if not boot.done() or boot.exception()}
        return [machine for machine in self.machines if machine.name not in down]


def measure(config: Config, kills: dict[str, int], seed: int) -> dict[str, dict[str, Any]]:
    """The study undisturbed and with kills, on new machines each."""
    chance = random.Random(seed)
    undisturbed = run_study(config, [], chance)
    kinds = [kind for kind, count in kills.items() for _ in range(count)]
    chance.shuffle(kinds)
    moments = sorted(chance.uniform(0.15, 0.8) * undisturbed["seconds"] for _ in kinds)
    disturbed = run_study(config, list(zip(moments, kinds, strict=True)), chance)
    disturbed["times_as_long"] = disturbed["seconds"] / undisturbed["seconds"]
    return {"undisturbed": undisturbed, "disturbed": disturbed}


def run_study(
    config: Config, due: list[tuple[float, str]], chance: random.Random
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        with cluster(folder / "disks", folder / "out") as machines:
            run = Run(machines, folder / "job.log", due, chance)
            seconds = run.to_the_end()
        notes = [note for disk in folder.glob("disks/*/") for note in witness.read(disk)]
        kills = Counter(run.done)
        return {"seconds": seconds, "kills": sum(kills.values())} | {
            "kills_of": dict(sorted(kills.items())),
            **outcome(config, Location(folder / "out" / config.name)),
            **epochs_trained(notes),
        }


def outcome(config: Config, run: Location) -> dict[str, Any]:
    """How the records differ from what they must be, and what they say of lost trials."""
    trials = pd.DataFrame(read_table(run / "trials.parquet"))
    rows = read_table(run / "epochs.parquet")
    cells, search = cells_of(config), config.search
    ids = {cell.trial_id(number) for cell in cells for number in range(search.trials)}
    ended = trials[trials["state"].isin(("COMPLETE", "PRUNED"))].set_index("trial_id")
    lost = trials[~trials["trial_id"].isin(ended.index)]
    counts = pd.DataFrame(rows).groupby("trial_id")["epoch"].agg(["size", "nunique", "max"])
    whole = counts.eq(ended["epochs"], axis=0).all(axis=1)
    table = pd.read_csv((run / "table_i.csv").local)
    return {
        "trials": len(ids),
        "trials_lost": len(ids - set(ended.index)),
        "why_lost": {row.trial_id: f"{row.state}: {row.error}" for row in lost.itertuples()},
        "trials_with_wrong_epochs": int((~whole).sum()),
        "decisions_not_implied": decisions_not_implied(config, trials, rows),
        "rows_of_table_i_missing": len(cells) - int(table["test_acc"].notna().sum()),
        "checkpoints_left": len((run / "checkpoints").children()),
    }


def decisions_not_implied(config: Config, trials: pd.DataFrame, epochs: list[Row]) -> int:
    """Trials that ASHA stopped, or did not, against the values in the order of their records."""
    search = config.search
    sizes = (search.grace_period, config.training.max_epochs, search.reduction_factor)
    rungs = {cell: Rungs(*sizes) for cell in trials["cell"].unique()}
    stopped = {
        row["trial_id"]
        for row in epochs
        if not rungs[row["cell"]].goes_on(row["trial_id"], row["epoch"], score(row, search.metric))
    }
    return len(stopped ^ set(trials[trials["state"] == "PRUNED"]["trial_id"]))


def epochs_trained(notes: list[dict[str, Any]]) -> dict[str, int]:
    """Epochs of trials and repeats, and how many of them were trained again."""
    trained = Counter(
        (note["name"], note["epoch"]) for note in notes if note["what"] == "epoch" and note["new"]
    )
    pretraining = [note for note in notes if note["what"] == "pretraining"]
    encoders = {note["encoder"] for note in pretraining}
    return {
        "epochs": len(trained),
        "epochs_repeated": sum(trained.values()) - len(trained),
        "pretrainings_repeated": len(pretraining) - len(encoders),
    }


def summary(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for kind in ("undisturbed", "disturbed"):
        runs = [one[kind] for one in rounds]
        numbers = [name for name, value in runs[0].items() if isinstance(value, int | float)]
        figures[kind] = {name: spread([run[name] for run in runs]) for name in numbers}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="with seeds SEED, SEED + 1, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=4, help="to kill")
    parser.add_argument("--machines", type=int, default=2, help="to kill")
    parser.add_argument("--drivers", type=int, default=1, help="to kill")
    options = parser.parse_args()
    kills = {"process": options.processes, "machine": options.machines, "driver": options.drivers}
    config = load_config(PRESET)
    rounds = []
    for seed in range(options.seed, options.seed + options.rounds):
        rounds.append(measure(config, kills, seed))
        print(json.dumps({"seed": seed} | rounds[-1], indent=1), flush=True)
    kind = "network namespaces" if namespaces_can_be_made() else "processes on one host"
    figures = {"machines": f"3, {kind}", "rounds": rounds, "summary": summary(rounds)}
    print(write_result("chaos", sys.argv[1:], figures))


if __name__ == "__main__":
    main()
