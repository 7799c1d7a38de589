"""What a study spends beside its training: start-up, turns between trials, and the end.

``mariposa run`` with one small cell, in a process of its own whose main steps note the time: from
the command to the first trial handed out, to its first epoch's beginning and end; seconds a trial
that are not training (slots × the search's wall time, less all epochs' seconds, by trial); features
and report at the end. Also ``mariposa --help``, the median of 10.

    python benchmarks/startup.py --data DIR --rounds 3

takes about a minute a round on 2 idle cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from record import spread, write_result

STEPS = {  # module -> name -> event: noted when it begins, and with "_end" when it ends
    "study.pipeline": {"prepare": "prepare", "_report": "report"},
    "study.stages": {"run_search": "search", "Stages.extract_features": "features"},
    "study.search": {"StudySearch.next_trial": "trial", "StudySearch.report": "epoch"},
}
Note = Callable[..., None]


def child(events: str, arguments: list[str]) -> int:
    """Be ``mariposa ARGUMENTS`` and note the steps' times in a file."""
    stream = open(events, "a", buffering=1)  # noqa: SIM115  (until the process ends)

    def note(event: str, seconds: float | None = None) -> None:
        moment = {"event": event, "at": time.monotonic(), "cpu": time.process_time()}
        stream.write(json.dumps(moment | {"seconds": seconds}) + "\n")

    note("python")
    sys.meta_path.insert(0, Finder(note))
    from study.cli import main

    code = main(arguments)
    note("done")
    return code


class Finder(MetaPathFinder):
    """Makes the steps note their times as soon as the program imports them, and not before."""

    def __init__(self, note: Note):
        self.note = note

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in STEPS:
            return None
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        run_code = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run_code(module)
            for step, event in STEPS[name].items():
                *classes, last = step.split(".")
                owner = functools.reduce(getattr, classes, module)
                setattr(owner, last, _noted(getattr(owner, last), event, self.note))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _noted(function: Callable[..., Any], event: str, note: Note) -> Any:
    @functools.wraps(function)
    def noted(*arguments: Any, **options: Any) -> Any:
        row = arguments[2] if event == "epoch" else {}
        note(event, row.get("seconds"))
        result = function(*arguments, **options)
        note(f"{event}_end")
        return result

    return noted


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one run."""
    import yaml

    tree = {
        "name": "startup",
        "data": {"image_size": options.image_size, "root": str(Path(options.data).resolve())},
        "cells": {"variants": ["A"], "label_ratios": [100]},
        "encoder": {"width": options.width},
        "training": {"max_epochs": options.epochs},
        "search": {"trials": options.trials, "scheduler": "none", "grace_period": 1},
        "evaluation": {"repeats": 0},
        "tracking": {"wandb": options.wandb},
    }
    with tempfile.TemporaryDirectory(prefix="startup-") as name:
        folder = Path(name)
        (folder / "startup.yaml").write_text(yaml.safe_dump(tree))
        command = [sys.executable, __file__, "--child", str(folder / "events.jsonl")]
        command += ["run", str(folder / "startup.yaml"), "--out", str(folder / "out")]
        started = time.monotonic()
        environment = os.environ | {"MARIPOSA_CACHE": str(folder / "cache")}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        ended = time.monotonic()
        lines = (folder / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    if options.timeline:
        show_timeline(events, started)
    return figures(events, started, ended, options)


def figures(
    events: list[dict[str, Any]], started: float, ended: float, options: argparse.Namespace
) -> dict[str, float]:
    def first(event: str) -> float:
        return float(next(e["at"] for e in events if e["event"] == event)) - started

    epochs = [e for e in events if e["event"] == "epoch"]
    training = sum(e["seconds"] for e in epochs)
    slots = os.cpu_count() or 1
    search = first("search_end") - first("search")
    begun = epochs[0]["at"] - started - epochs[0]["seconds"]
    last = epochs[-1]["at"] - started
    turning = slots * (last - begun) - training
    return {
        "images_prepared": first("prepare_end"),
        "ray_connected": first("search"),
        "first_trial_handed_out": first("trial_end"),
        "first_epoch_begins": begun,
        "first_epoch_ends": epochs[0]["at"] - started,
        "search": search,
        "training_of_all_trials": training,
        "not_training_per_trial": (slots * search - training) / options.trials,
        "not_training_per_trial_after_first_epoch": turning / options.trials,
        "after_search": first("report") - first("search_end"),
        "features": first("features_end") - first("features"),
        "report": first("report_end") - first("report"),
        "exit": ended - started - first("done"),
        "total": ended - started,
    }


def show_timeline(events: list[dict[str, Any]], started: float) -> None:
    """Every event with the wall time and the driver's own CPU time until then."""
    shown = 0
    for e in events:
        if e["event"].startswith(("trial", "epoch_end")) and shown > 200:
            continue
        shown += 1
        print(f"{e['at'] - started:8.2f} s  cpu {e['cpu']:6.2f} s  {e['event']}", flush=True)


def seconds_of_help(times: int) -> list[float]:
    program = Path(sys.executable).parent / "mariposa"
    found = []
    for _ in range(times):
        started = time.monotonic()
        subprocess.run([str(program), "--help"], check=True, stdout=subprocess.DEVNULL)
        found.append(time.monotonic() - started)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder with train/ and valid/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--wandb", choices=("disabled", "offline"), default="disabled")
    parser.add_argument("--timeline", action="store_true", help="print every event")
    options = parser.parse_args()
    helped = seconds_of_help(10)
    print(f"mariposa --help: median {statistics.median(helped):.3f} s")
    rounds = [measure(options) for _ in range(options.rounds)]
    summary = {key: spread([one[key] for one in rounds]) for key in rounds[0]}
    for key, value in summary.items():
        print(f"{key:42} {value['mean']:8.2f} ± {value['sd']:.2f}")
    help_summary = spread(helped) | {"median": round(statistics.median(helped), 3)}
    print(write_result("startup", sys.argv[1:], {"help": help_summary, "run": summary}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], sys.argv[3:]))
    main()
