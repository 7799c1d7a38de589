"""`mariposa plan --from RUN`: the simulated scheduler, and what a user reads of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_tree
from records_example import write_run

from data.storage import Location
from study.cells import Cell, cells_of
from study.cli import main
from study.config import Config, config_from
from study.forecast import forecast, same_study
from study.measured import Curve, Measured, Overhead, Took, read_measured
from study.planning import Counts, encoder_key
from study.records import EPOCHS, TRIALS, read_table, write_table
from study.simulation import Curves, Simulation, simulate
from study.study_file import read_study, write_study

COUNTS = Counts((6,) * 20, 20, 20)  # of the drawn images of `config_of`
SECOND = 1.0


def config_of(**changes: dict[str, Any]) -> Config:
    """Four cells of four trials; no early stopping, no evaluation."""
    sections: dict[str, dict[str, Any]] = {
        "data": {"demo": {"train_per_species": 6, "valid_per_species": 1, "test_per_species": 1}},
        "cells": {"variants": ["A", "B0"], "label_ratios": [50, 100]},
        "search": {"trials": 4, "scheduler": "none"},
        "evaluation": {"repeats": 0},
    }
    for name, values in changes.items():
        sections[name] = sections.get(name, {}) | values
    return config_from(tiny_tree(**sections), "a test")


def curve(lr: float = 1e-3, epochs: int = 4, gain: float = 0.1, stopped: bool = False) -> Curve:
    """Epochs of a second each, of which each is better by ``gain``."""
    rows = [
        {"epoch": epoch, "train_loss": 1.0, "val_loss": 1.0, "val_acc": 0.5, "seconds": SECOND}
        | {"val_f1": lr + gain * epoch}
        for epoch in range(1, epochs + 1)
    ]
    return Curve(lr, tuple(rows), stopped, beside=2.0)


def measured_with(config: Config, *curves: Curve, **changes: Any) -> Measured:
    cells = cells_of(config)
    defaults: dict[str, Any] = {
        "run": Location("runs/before"),
        "config": config,
        "machine": "a machine",
        "images": {"train": 120, "valid": 20},
        "labelled": {50: 60, 100: 120},
        "trials": {cell: list(curves or [curve()]) for cell in cells},
        "repeats": {cell: list(curves or [curve()]) for cell in cells},
        "encoders": ((120, 1, 10.0),),
        "overhead": Overhead(fixed=0.0, worker=0.0, between=0.0),
    }
    return Measured(**defaults | changes)


def curves_of(config: Config, *curves: Curve, **changes: Any) -> Curves:
    return Curves(config, COUNTS, measured_with(config, *curves, **changes))


def walls(curves: Curves, *slots: int) -> list[float]:
    return [simulate(curves, n, studies=1)[0].wall for n in slots]


# --- The scheduler, against arithmetic -----------------------------------------------------------


def test_trials_share_the_slots() -> None:
    curves = curves_of(config_of())  # 16 trials of 4 epochs of a second
    assert walls(curves, 1, 2, 4, 16, 64) == pytest.approx([64, 32, 16, 4, 4])
    assert simulate(curves, 4, studies=1)[0].busy == pytest.approx(64)


def test_start_up_is_paid_once_a_study_and_once_a_process() -> None:
    overhead = Overhead(fixed=7.0, worker=5.0, between=1.0)
    curves = curves_of(config_of(), overhead=overhead)
    once = simulate(curves, 2, studies=1)[0]
    assert once.wall == pytest.approx(7 + 5 + 8 * (4 + 1))
    assert once.search == pytest.approx(8 * (4 + 1))


def test_encoders_come_first_and_leave_a_slot_to_trials_that_need_none() -> None:
    cells = {"variants": ["A", "B1"], "label_ratios": [100]}
    curves = curves_of(config_of(cells=cells))  # 4 trials of A, 4 of B1, an encoder of 10 s
    assert walls(curves, 1) == pytest.approx([10 + 32])
    # On two: A on one slot for 10 s beside the encoder, then what is left on both.
    assert walls(curves, 2)[0] == pytest.approx((10 + 32) / 2, abs=4)
    # However many: the encoder, and then B1.
    assert walls(curves, 64) == pytest.approx([10 + 4])


def test_repeats_wait_for_their_own_encoder() -> None:
    cells = {"variants": ["B1"], "label_ratios": [100]}
    config = config_of(
        cells=cells, evaluation={"repeats": 3}, encoder={"per_repeat": True, "epochs": 1}
    )
    outcome = simulate(curves_of(config), 64, studies=1)[0]
    assert outcome.search == pytest.approx(10 + 4)
    assert outcome.evaluation == pytest.approx(10 + 4 + 2)  # and 2 s beside the epochs
    assert encoder_key(config, Cell("A", 100), 0) is None
    shared = config_of(cells=cells, evaluation={"repeats": 3})
    assert simulate(curves_of(shared), 64, studies=1)[0].evaluation == pytest.approx(4 + 2)


def test_rungs_stop_trials() -> None:
    curves = [curve(lr, gain=gain) for lr, gain in ((1e-4, 0.01), (1e-3, 0.1), (1e-2, 0.001))]
    asha = config_of(search={"trials": 20, "scheduler": "asha", "grace_period": 1})
    outcome = simulate(curves_of(asha, *curves), 1, studies=1)[0]
    assert 80 < outcome.busy < 0.7 * 80 * 4  # each of 80 trials has one epoch, few have four


def test_patience_stops_trials_and_a_larger_one_stops_them_later() -> None:
    flat = curve(gain=0.0, epochs=3, stopped=True)  # best in its first epoch
    for patience, epochs in ((1, 2), (2, 3), (3, 4)):
        config = config_of(training={"patience": patience, "max_epochs": 10})
        assert walls(curves_of(config, flat), 1) == pytest.approx([16 * epochs])


def test_a_trial_that_was_cut_off_goes_on_as_the_nearest_longer_one() -> None:
    short, long = curve(1e-3, epochs=1), curve(2e-3, epochs=4)
    assert walls(curves_of(config_of(), short, long), 1) == pytest.approx([64])
    # With none longer it is taken to go on to the end.
    assert walls(curves_of(config_of(), short), 1) == pytest.approx([64])


def test_a_time_cap_ends_the_search() -> None:
    config = config_of(search={"scheduler": "none", "max_seconds": 10})
    outcome = simulate(curves_of(config), 1, studies=1)[0]
    assert outcome.search == pytest.approx(12, abs=1)


def test_a_seed_gives_the_same_forecast() -> None:
    config = config_of(evaluation={"repeats": 2})
    curves = curves_of(config, curve(1e-4), curve(1e-3, 2, stopped=True), curve(1e-2, 3))
    first, second = (Simulation(curves, 3, 5).run() for _ in range(2))
    assert first == second
    assert simulate(curves, 2) == simulate(curves, 2)


def test_epochs_are_scaled_by_what_they_go_through() -> None:
    config = config_of()
    run = measured_with(config)
    larger = config_of(data={"image_size": 32}, encoder={"width": 4})
    assert Curves(larger, COUNTS, run).scale(Cell("A", 100)) == pytest.approx(8)
    more = Curves(config, Counts((12,) * 20, 40, 40), run)
    assert more.scale(Cell("A", 100)) == pytest.approx(2)
    # 25 % was not measured: the nearest ratio, 50 %, by the images of train and a third of valid's.
    other = config_of(cells={"variants": ["A"], "label_ratios": [25]})
    curves = Curves(other, COUNTS, run)
    assert curves.source(Cell("A", 25)) == Cell("A", 50)
    assert curves.scale(Cell("A", 25)) == pytest.approx((40 + 20 / 3) / (60 + 20 / 3))
    assert curves.source(Cell("B2", 100)).variant in ("A", "B0")


# --- From records --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(
        tmp_path_factory.mktemp("runs") / "before",
        ratios=(10, 100),
        trials=4,
        repeats=2,
        features=4,
        per_repeat=False,
    )
    with (run / "study.yaml").open("a") as stream:
        stream.write("failures: []\n")
    return run


def own_copy(run: Path, folder: Path) -> Path:
    """The run's records, to be changed."""
    folder.mkdir(parents=True)
    for file in [*run.glob("*.parquet"), run / "study.yaml"]:
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_run_is_read_whole(finished: Path) -> None:
    measured = read_measured(Location(finished))
    trials = read_table(Location(finished) / "trials.parquet")
    trained = [row for row in trials if row["state"] != "FAIL"]
    assert sum(len(curves) for curves in measured.trials.values()) == len(trained)
    repeats = [len(curves) for curves in measured.repeats.values()]
    assert repeats == [2] * 8
    assert measured.took is not None
    assert measured.side_by_side >= 1


def test_failed_and_unfinished_trials_do_no_harm(finished: Path, tmp_path: Path) -> None:
    run = Location(own_copy(finished, tmp_path / "run"))
    rows = read_table(run / "trials.parquet")
    trained = [row for row in rows if row["state"] != "FAIL"]
    trained[0]["state"], trained[1]["state"] = "FAIL", "RUNNING"
    write_table(run / "trials.parquet", rows, TRIALS)
    epochs = read_table(run / "epochs.parquet")
    epochs[-1]["val_f1"] = None
    write_table(run / "epochs.parquet", epochs, EPOCHS)
    measured = read_measured(run)
    assert sum(len(curves) for curves in measured.trials.values()) == len(trained) - 1
    assert all(row["val_f1"] is not None for c in measured.trials.values() for row in c[0].rows)


def test_a_finished_run_stands_beside_its_forecast(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--from", str(finished), *DRAWN, "--cpus", "1,4"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^ +1 +1 +\d+:\d\d", text, re.M)
    assert re.search(r"^ +4 +4 +\d+:\d\d", text, re.M)
    assert "that run took" not in text, "the drawn images are another study"
    assert "CPU hours" in text


DRAWN = ["--set", "data.root=null"]


def test_without_config_it_is_the_runs_own_and_may_be_changed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = [*DRAWN, "--set", "search.trials=5", "--cpus", "2"]
    assert main(["plan", "--from", str(finished), *changed]) == 0
    text = capsys.readouterr().out
    assert "study       before in" in text
    assert "trials      40, 5 a cell" in text
    assert main(["plan", "--from", str(finished), "--set", "search.trails=5"]) == 2
    assert "search.trails: unknown key; did you mean search.trials?" in capsys.readouterr().err


def test_more_trials_take_longer(finished: Path) -> None:
    measured = read_measured(Location(finished))
    config = measured.config.model_copy(
        update={"data": measured.config.data.model_copy(update={"root": None})}
    )
    more = config.model_copy(update={"search": config.search.model_copy(update={"trials": 8})})
    first, second = (
        simulate(Curves(each, COUNTS, measured), 2, studies=1)[0] for each in (config, more)
    )
    assert second.search > 1.5 * first.search
    assert second.evaluation == pytest.approx(first.evaluation, rel=0.3)


def test_the_same_study_is_known_by_its_configuration() -> None:
    config = config_of()
    assert same_study(config, config.model_copy(update={"name": "other"}))
    assert not same_study(config, config_of(search={"trials": 5}))
    assert not same_study(config, config.model_copy(update={"seed": 1}))
    assert not same_study(config, config_of(evaluation={"repeats": 9}))


def test_lines_say_what_was_not_measured() -> None:
    run = measured_with(config_of(), encoders=(), repeats={}, took=Took(100.0))
    changes = {"data": {"image_size": 32}, "training": {"max_epochs": 8}}
    config = config_of(
        cells={"variants": ["B1"], "label_ratios": [75]}, evaluation={"repeats": 1}, **changes
    )
    text = "\n".join(forecast(config, run, "GPUs", (1, 2)))
    assert re.search(r"not in that run, scaled by images: B1@75 by (A|B0)@(50|100)", text)
    assert "an image costs 4 times as much (pixels × width): a guess" in text
    assert "epochs after 4 were not measured" in text
    assert "no encoder was finished there" in text
    assert "no repeat was evaluated there" in text
    assert "for GPUs, measure on one of them" in text
    assert "GPU hours" in text
    assert "that run took" not in text


def test_lines_say_where_more_stop_helping() -> None:
    run = measured_with(config_of(), took=Took(35.0), side_by_side=2)
    text = "\n".join(forecast(config_of(), run, "CPUs", (1, 2, 16, 32)))
    assert "more than 16 CPUs hardly help: 32 would save 0% of the time" in text
    assert "that run took 0:35 with 2 at once; forecast for as many: 0:32 (0:32 to 0:32)" in text
    assert "note:" not in text


def test_gpus_hold_as_many_trials_as_fit() -> None:
    config = config_of(resources={"gpus_per_trial": 0.25})
    text = "\n".join(forecast(config, measured_with(config), "GPUs", (1, 2)))
    assert re.search(r"^ +1 +4 +0:16 ", text, re.M)
    assert re.search(r"^ +2 +8 +0:08 ", text, re.M)


# --- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "{run}", "--cpus", "0"], "found '0', expected a number from 1"),
        (["--from", "{run}", "--gpus", "two"], "found 'two', expected a number from 1"),
        (["--from", "{run}", "--gpus", "1", "--cpus", "1"], "not allowed with"),
        (["--gpus", "4"], "found no --from RUN"),
        (["--from", "{run}", *DRAWN, "--gpus", "4", "--set", "resources.gpus_per_trial=0"],
         "resources.gpus_per_trial: found 0 with 4 GPUs, expected a number above 0"),
        (["--from", "{run}", *DRAWN, "--cpus", "2", "--set", "resources.cpus_per_trial=4"],
         "resources.cpus_per_trial: found 4 with 2 CPUs, expected at least 4 CPUs for a trial"),
        (["--from", "nowhere"], "nowhere: found no study.yaml"),
        (["--from", "{new}"], "found no epoch of a trial"),
        (["--from", "{torn}"], "epochs.parquet: is damaged"),
    ],
)  # fmt: skip
def test_bad_input_is_said_in_a_line(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    new, torn = own_copy(finished, tmp_path / "new"), own_copy(finished, tmp_path / "torn")
    (new / "epochs.parquet").unlink()
    content = (torn / "epochs.parquet").read_bytes()
    (torn / "epochs.parquet").write_bytes(content[: len(content) // 2])
    places = {"run": finished, "new": new, "torn": torn}
    assert main(["plan", *[each.format(**places) for each in arguments]]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_interrupted_run_lends_no_start_up(finished: Path, tmp_path: Path) -> None:
    run = Location(own_copy(finished, tmp_path / "run"))
    write_study(run, read_study(run) | {"state": "INTERRUPTED"})
    measured = read_measured(run)
    assert measured.took is None
    assert not measured.overhead.measured


def test_a_forecast_starts_no_ray(finished: Path) -> None:
    program = (
        "import sys, study.cli\n"
        f"code = study.cli.main(['plan', '--from', {str(finished)!r}, *{DRAWN!r}, '--cpus', '2'])\n"
        "print(code, [m for m in ('ray', 'torch') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("0 []\n"), done.stdout + done.stderr
