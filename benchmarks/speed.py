"""Mariposa, the tutorial's script and the floor on the same trials, side by side.

Each round runs, one after another and each in processes of its own:

1. ``mariposa run`` with one cell, into an empty folder with an empty cache: start-up, decoding,
   search, records, features and report are all in its time. What comes after the search, and
   the tutorial has not, is also shown alone;
2. `benchmarks/tutorial.py` with exactly the learning rates and numbers of epochs of those trials;
3. `benchmarks/floor.py` with the same numbers of epochs.

For B1 the encoder's pretraining is in nobody's time: the encoder is made beforehand, and Mariposa
goes on with a run that has it already, as after an interruption (its images still have to be
decoded).

    python benchmarks/speed.py --data DIR --rounds 3

takes about 4 minutes a round for A and 3 for B1 on 2 idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import spread, write_result

HERE = Path(__file__).parent


def configuration(options: argparse.Namespace, variant: str) -> dict[str, Any]:
    return {
        "name": "speed",
        "seed": options.seed,
        "data": {"image_size": options.image_size, "root": str(Path(options.data).resolve())},
        "cells": {"variants": [variant], "label_ratios": [100]},
        "encoder": {"width": options.width, "epochs": 10},
        "training": {"batch_size": 64, "max_epochs": options.max_epochs, "patience": 10},
        "search": {"trials": options.trials, "lr": [1e-4, 1e-2], "grace_period": 2},
        "evaluation": {"repeats": 0},
        "tracking": {"wandb": "disabled"},
    }


def make_encoder(config_tree: dict[str, Any], folder: Path) -> Path:
    """A run that was interrupted when its encoder was ready and its search had not begun.

    Returns:
        The run's folder: ``study.yaml`` and ``encoders/``, without packed images.
    """
    from data.storage import Location
    from study.cells import cells_of
    from study.config import config_from
    from study.encoders import plan_encoder, pretrain
    from study.images import begin, images_of, prepare
    from study.pipeline import open_study

    config = config_from(config_tree, "speed.py")
    out = Location(folder)
    run = out / config.name
    study = open_study(config, run, None)
    material, labels = prepare(config, out, run, study, images_of(config, study))
    begin(run, study, labels)
    plan = plan_encoder(material, cells_of(config)[0], None)
    assert plan is not None
    pretrain(material, plan)
    return run.local


def timed(command: list[str], **environment: str) -> tuple[float, str]:
    """Wall seconds of a process from start to end, and what it printed."""
    started = time.monotonic()
    done = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return round(time.monotonic() - started, 2), done.stdout


def run_mariposa(tree: dict[str, Any], template: Path | None) -> dict[str, Any]:
    """Seconds of ``mariposa run`` and its trials."""
    import pandas as pd
    import yaml

    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        folder = Path(name)
        run = folder / "out" / tree["name"]
        if template is not None:
            shutil.copytree(template / "encoders", run / "encoders")
            shutil.copy(template / "study.yaml", run)
        (folder / "speed.yaml").write_text(yaml.safe_dump(tree))
        command = [sys.executable, "-m", "study", "run", str(folder / "speed.yaml")]
        command += ["--out", str(folder / "out")]
        seconds, _ = timed(command, MARIPOSA_CACHE=str(folder / "cache"))
        # The search ends with its records.
        after_search = time.time() - (run / "trials.parquet").stat().st_mtime
        trials = pd.read_parquet(run / "trials.parquet")
    return {
        "seconds": seconds,
        "after_search": round(after_search, 2),
        "lrs": trials.lr.tolist(),
        "epochs": trials.epochs.tolist(),
        "trial_seconds": round(float(trials.seconds.sum()), 2),
    }


def run_tutorial(
    options: argparse.Namespace, variant: str, encoder: list[str], trials: dict[str, Any]
) -> float:
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        command = [sys.executable, str(HERE / "tutorial.py"), "--variant", variant, *encoder]
        command += [*_sizes(options), "--max-epochs", str(options.max_epochs)]
        command += ["--storage", folder, "--lrs", *map(repr, trials["lrs"])]
        command += ["--epochs-per-trial", *map(str, trials["epochs"])]
        seconds, said = timed(command)
    epochs = json.loads(_last_json(said))["epochs"]
    if epochs != sum(trials["epochs"]):
        raise SystemExit(f"the tutorial ran {epochs} epochs, expected {sum(trials['epochs'])}")
    return seconds


def run_floor(
    options: argparse.Namespace, variant: str, encoder: list[str], trials: dict[str, Any]
) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "floor.py"), "--variant", variant, *encoder]
    command += [*_sizes(options), "--epochs-per-trial", *map(str, trials["epochs"])]
    if options.one_process:
        command.append("--one-process")
    _, said = timed(command)
    found: dict[str, Any] = json.loads(_last_json(said))
    return found


def _sizes(options: argparse.Namespace) -> list[str]:
    sizes = ["--data", options.data, "--image-size", str(options.image_size)]
    return [*sizes, "--width", str(options.width)]


def _last_json(text: str) -> str:
    return [line for line in text.splitlines() if line.startswith("{")][-1]


def one_round(options: argparse.Namespace, variant: str, template: Path | None) -> dict[str, Any]:
    tree = configuration(options, variant)
    files = (template / "encoders").glob("*.safetensors") if template else []
    weights = [file for file in files if not file.name.endswith(".objective.safetensors")]
    encoder = ["--encoder", str(weights[0])] if weights else []
    ours = run_mariposa(tree, template)
    tutorial = run_tutorial(options, variant, encoder, ours)
    floor = run_floor(options, variant, encoder, ours)
    best = floor["a_process_a_core"]
    if "one_process" in floor:
        best = min(best, floor["one_process"], key=lambda way: way["training"])
    found = {
        "epochs": sum(ours["epochs"]),
        "mariposa": ours["seconds"],
        "mariposa_after_search": ours["after_search"],
        "mariposa_epochs_per_core": round(ours["trial_seconds"] / (os.cpu_count() or 1), 2),
        "tutorial": tutorial,
        "floor": best["training"],
        "floor_with_start": best["with_start"],
        "tutorial_over_mariposa": round(tutorial / ours["seconds"], 2),
        "tutorial_over_mariposa_to_end_of_search": round(
            tutorial / (ours["seconds"] - ours["after_search"]), 2
        ),
        "floor_over_mariposa": round(best["training"] / ours["seconds"], 3),
        "floor_with_start_over_mariposa": round(best["with_start"] / ours["seconds"], 3),
    }
    print(variant, json.dumps(found), flush=True)
    return found | {"load": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder with train/ and valid/")
    parser.add_argument("--variants", nargs="+", choices=("A", "B1"), default=["A", "B1"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--max-epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one-process", action="store_true", help="floor: also all threads in one")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="speed-encoder-") as folder:
        templates: dict[str, Path | None] = {"A": None}
        if "B1" in options.variants:
            templates["B1"] = make_encoder(configuration(options, "B1"), Path(folder))
        rounds: dict[str, list[dict[str, Any]]] = {v: [] for v in options.variants}
        for _ in range(options.rounds):
            for variant in options.variants:
                rounds[variant].append(one_round(options, variant, templates[variant]))
    for variant, ones in rounds.items():
        summary = {key: spread([one[key] for one in ones]) for key in ones[0]}
        figures[variant] = {"summary": summary, "rounds": ones}
        for key, value in summary.items():
            print(f"{variant:3} {key:32} {value['mean']:8.2f} ± {value['sd']:.2f}")
    print(write_result("speed", sys.argv[1:], figures))


if __name__ == "__main__":
    main()
