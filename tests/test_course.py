"""What stopping saved and who was busy when, on rows that can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from records_example import write_run

from analysis import load
from analysis.caveats import caveats
from analysis.course import UNKNOWN, busy, max_epochs, rungs, savings, work
from analysis.load import CAPPED
from study.search import CUT_SHORT
from study.stopping import Rungs


def test_what_stopping_saved() -> None:
    states = ["COMPLETE", "PRUNED", "PRUNED", "FAIL", "RUNNING", "COMPLETE", "PRUNED"]
    trials = pd.DataFrame({"state": states, "epochs": [10, 2, 6, 1, 4, 8, 3]})
    trials["error"] = [None, None, None, "OSError", None, None, "search.max_seconds"]
    found = savings(trials, 10)
    assert (found.trials, found.stopped, found.trained, found.saved) == (4, 2, 26, 8 + 4)
    assert found.share == pytest.approx(12 / 38)
    assert np.isnan(savings(trials.head(0), 10).share)


def test_a_search_that_ran_out_of_time_says_so(tmp_path: Path) -> None:
    """What the clock cut short, no rung saved; whoever reads the answer is told."""
    folder = write_run(tmp_path / "run", ratios=(10,), trials=4, repeats=2, encoders=0)
    assert not load(folder).out_of_time
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["config"]["search"]["max_seconds"] = 90
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    assert not load(folder).out_of_time, "it was through before"
    (folder / CAPPED).write_text("3")
    assert not load(folder).out_of_time, "that was before it grew"
    (folder / CAPPED).write_text("4")
    trials = pd.read_parquet(folder / "trials.parquet")
    last = trials.index[-1]
    trials.loc[last, ["state", "error"]] = ["PRUNED", CUT_SHORT]
    trials.iloc[1:].to_parquet(folder / "trials.parquet", index=False)
    run = load(folder)
    assert run.out_of_time
    count = len(trials)
    said = f"(90 s): {count - 1} of {count} trials began, and the clock cut 1 of those short"
    assert said in " ".join(caveats(run))


def test_images_of_two_splits_are_a_caveat(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10,), trials=2, repeats=0, encoders=0))
    before = caveats(run)
    run.study["data"]["leaks"] = {"valid": 0, "test": 1}
    said = "1 test image is in an earlier split as well, which flatters every score."
    assert caveats(run) == [*before, said]
    run.study["data"]["leaks"] = {"valid": 1200, "test": 0}
    assert caveats(run)[-1].startswith("1,200 valid images are in an earlier split")


def test_rungs_are_those_that_the_study_judges_by(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ratios=(10,), trials=3, repeats=0, encoders=0)
    run = load(folder)
    assert rungs(run) == list(Rungs(3, 20, 3).values) == [3, 9]
    assert max_epochs(run) == 20
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["config"]["search"]["scheduler"] = "none"
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    assert rungs(load(folder)) == []


def test_work_has_every_epoch_that_was_trained_and_its_node(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ratios=(10,), trials=4, repeats=2, encoders=2)
    run = load(folder)
    found = work(run)
    counts = found["kind"].value_counts().to_dict()
    expected = {"search": run.epochs, "evaluation": run.evaluation_epochs}
    expected |= {"encoders": run.encoder_epochs}
    assert counts == {kind: len(frame) for kind, frame in expected.items()}
    assert set(found["node"]) == {"10.0.0.1"}  # the only one that the records name
    seconds = (found["end"] - found["start"]).sum()
    assert seconds == pytest.approx(sum(frame["seconds"].sum() for frame in expected.values()))
    trials = run.trials.assign(node=["10.0.0.1", "10.0.0.2"] * (len(run.trials) // 2))
    trials.to_parquet(folder / "trials.parquet")
    by_kind = work(load(folder)).groupby("kind")["node"].unique().map(sorted).to_dict()
    assert by_kind["search"] == ["10.0.0.1", "10.0.0.2"]
    assert by_kind["evaluation"] == by_kind["encoders"] == [UNKNOWN]


def test_epochs_of_unknown_end_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ratios=(10,), trials=4, repeats=0, encoders=0)
    epochs = load(folder).epochs.assign(ended=np.nan)
    epochs.to_parquet(folder / "epochs.parquet")
    assert work(load(folder)).empty


def test_busy_is_the_share_of_each_bin_that_was_worked() -> None:
    rows = [
        ("search", 0.0, 2.0),
        ("search", 1.0, 2.0),
        ("search", 3.5, 4.0),
        ("encoders", 0.5, 4.0),
    ]
    table = pd.DataFrame(rows, columns=["kind", "start", "end"]).assign(node="n")
    found = busy(table, np.arange(5.0))
    assert list(found["search"]) == [1.0, 2.0, 0.0, 0.5]
    assert list(found["encoders"]) == [0.5, 1.0, 1.0, 1.0]
    assert list(found["evaluation"]) == [0.0] * 4


def test_busy_adds_up_to_all_the_work() -> None:
    random = np.random.default_rng(0)
    start = 1.7e9 + random.uniform(0, 1000, 500)
    table = pd.DataFrame(
        {"kind": "search", "start": start, "end": start + random.uniform(0, 9, 500)}
    )
    edges = np.linspace(start.min(), table["end"].max(), 38)
    total = (busy(table, edges)["search"] * np.diff(edges)).sum()
    assert total == pytest.approx((table["end"] - table["start"]).sum(), rel=1e-6)


def test_drawn_images_flatter_an_encoder_of_drawn_images(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", trials=1, ratios=(100,)))
    before = caveats(run)
    run.config["encoder"]["pretrain_on"] = "drawn"
    run.config["data"]["root"] = "/photographs"
    assert caveats(run) == before
    run.config["data"]["root"] = None
    assert "drawn by the program that drew those of the pretraining" in caveats(run)[-1]
