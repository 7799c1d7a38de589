"""Whole studies through the command line, on a real Ray: what they leave, and what they survive.

The images are a few of the drawn ones. Two studies are run once for all tests: one undisturbed,
and one whose driver is killed and that is then resumed.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from conftest import World, ended_trials, environment
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from data.demo import SPECIES, write_demo

# One worker, so that two runs of the same study give the same table, to the digit.
TINY = """
name: tiny
seed: 3
data: {image_size: 32}
cells: {variants: [A, B0, B1, B2], label_ratios: [50, 100]}
encoder: {width: 4, epochs: 2, per_repeat: false}
training: {batch_size: 32, max_epochs: 3, patience: 3, min_steps_per_epoch: 4}
search: {trials: 3, lr: [1.0e-4, 1.0e-2], grace_period: 1}
evaluation: {repeats: 2}
resources: {max_concurrent: 1}
"""
TRIAL_COLUMNS = [
    "trial_id",
    "cell",
    "variant",
    "label_ratio",
    "lr",
    "seed",
    "state",
    "epochs",
    "best_epoch",
    "val_loss",
    "val_acc",
    "val_f1",
    "seconds",
    "node",
    "error",
    "recipe",
    "settings",
]
CELLS = {f"{v}@{r}" for v in ("A", "B0", "B1", "B2") for r in (50, 100)}
pytestmark = pytest.mark.timeout(600)


class PipelineWorld(World):
    """With images and the tiny configuration in its folder."""

    def study(self, out: str, *more: str) -> tuple[str, ...]:
        return ("run", "tiny.yaml", "--data", "images", "--out", out, *more)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PipelineWorld:
    folder = tmp_path_factory.mktemp("world")
    write_demo(
        folder / "images", train_per_species=6, valid_per_species=2, test_per_species=3, size=48
    )
    (folder / "tiny.yaml").write_text(TINY)
    return PipelineWorld(folder, environment(MARIPOSA_CACHE=str(folder / "cache")))


@pytest.fixture(scope="module")
def undisturbed(world: PipelineWorld) -> Path:
    code, out, err = world.run(*world.study("undisturbed"))
    assert code == 0, err
    assert out.splitlines()[-1] == "undisturbed/tiny/report.html"
    return world.folder / "undisturbed" / "tiny"


@pytest.fixture(scope="module")
def killed_and_resumed(world: PipelineWorld) -> Path:
    """A study whose driver gets SIGKILL in the middle of its search, and Ctrl-C after that."""
    run = world.folder / "killed" / "tiny"
    driver = world.start(*world.study("killed"))
    _wait_for_ended_trials(run, 2)
    driver.send_signal(signal.SIGSTOP)  # it runs, and its search does not end meanwhile
    before = (run / "study.yaml").read_text()
    code, _, err = world.run(*world.study("killed", "--set", "search.trials=99"))
    assert code == 2
    assert "another process is running this study" in err
    assert (run / "study.yaml").read_text() == before
    assert yaml.safe_load(before)["state"] == "RUNNING"
    driver.kill()
    driver.communicate()
    ended = len(_ended(run))
    driver = world.start("resume", "killed/tiny")
    _wait_for_ended_trials(run, ended + 2)  # so it is running, not still starting
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "mariposa resume killed/tiny" in err
    assert "RUNNING" not in set(pd.read_parquet(run / "trials.parquet")["state"])
    code, _, err = world.run("resume", "killed/tiny")
    assert code == 0, err
    return run


def _ended(run: Path) -> set[str]:
    """As `ended_trials`, and those of the journal: a quick search ends between two savings."""
    found = ended_trials(run)
    for segment in (run / "journal").glob("*.jsonl"):
        with suppress(OSError):  # saved meanwhile
            rows = [line for line in segment.read_text().splitlines() if line[:9] == '["trials"']
            ended = [line for line in rows if '"state": "RUNNING"' not in line]
            found |= {json.loads(line)[1]["trial_id"] for line in ended}
    return found


def _wait_for_ended_trials(run: Path, count: int) -> None:
    limit = time.monotonic() + 200
    while time.monotonic() < limit:
        if len(_ended(run)) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {count} trials after 200 s")


def test_every_record_of_the_contract_is_there(undisturbed: Path) -> None:
    wanted = [
        "study.yaml",
        "labels.parquet",
        "trials.parquet",
        "epochs.parquet",
        "evaluations.parquet",
        "predictions.parquet",
        "table_i.csv",
        "table_i.md",
        "table_i.tex",
        "encoders.csv",
        "latents.parquet",
        "clusters.csv",
        "report.html",
        "optuna.db",
    ]
    assert [name for name in wanted if not (undisturbed / name).is_file()] == []
    assert {p.stem for p in (undisturbed / "models").glob("*.safetensors")} == CELLS
    assert {p.stem for p in (undisturbed / "features").glob("*.npy")} >= {"random", "pixels"}
    assert list((undisturbed / "figures").glob("*.svg"))
    assert not list(undisturbed.rglob(".part-*"))
    assert not list(undisturbed.glob("checkpoints/*"))


def test_trials_and_epochs(undisturbed: Path) -> None:
    trials = pd.read_parquet(undisturbed / "trials.parquet")
    epochs = pd.read_parquet(undisturbed / "epochs.parquet")
    assert list(trials.columns) == TRIAL_COLUMNS
    assert trials.groupby("cell").size().to_dict() == dict.fromkeys(CELLS, 3)
    assert set(trials["state"]) <= {"COMPLETE", "PRUNED"}
    assert (trials[trials["trial_id"].str.endswith("-000")]["lr"] == 1e-4).all()
    assert epochs.groupby("trial_id").size().to_dict() == dict(
        zip(trials["trial_id"], trials["epochs"], strict=True)
    )
    best = epochs.loc[epochs.groupby("trial_id")["val_f1"].idxmax()].set_index("trial_id")
    assert np.allclose(best["val_f1"].loc[trials["trial_id"]], trials["val_f1"])


def test_the_evaluation_takes_the_winner_of_each_cell(undisturbed: Path) -> None:
    trials = pd.read_parquet(undisturbed / "trials.parquet")
    evaluations = pd.read_parquet(undisturbed / "evaluations.parquet")
    complete = trials[trials["state"] == "COMPLETE"].sort_values(
        ["val_f1", "val_loss"], ascending=[False, True]
    )
    winners = complete.groupby("cell").first()["lr"]
    assert evaluations.groupby("cell").size().to_dict() == dict.fromkeys(CELLS, 2)
    assert (evaluations["lr"] == evaluations["cell"].map(winners)).all()
    assert evaluations.groupby("repeat")["seed"].nunique().eq(1).all()


def test_metrics_equal_those_of_scikit_learn(undisturbed: Path) -> None:
    evaluations = pd.read_parquet(undisturbed / "evaluations.parquet")
    predictions = pd.read_parquet(undisturbed / "predictions.parquet")
    assert len(predictions) == len(evaluations) * 20 * 3
    groups = predictions.groupby(["cell", "repeat"])
    for row in evaluations.itertuples():
        one = groups.get_group((row.cell, row.repeat))
        true, pred = one["true"], one["pred"]
        macro = {"average": "macro", "zero_division": 0}
        assert row.test_acc == pytest.approx(accuracy_score(true, pred), abs=1e-6)
        assert row.test_f1 == pytest.approx(f1_score(true, pred, **macro), abs=1e-6)
        assert row.test_precision == pytest.approx(precision_score(true, pred, **macro), abs=1e-6)
        assert row.test_recall == pytest.approx(recall_score(true, pred, **macro), abs=1e-6)
        assert row.test_loss == pytest.approx(one["loss"].mean(), abs=1e-5)


def test_an_encoder_is_that_of_its_best_epoch(undisturbed: Path) -> None:
    made = pd.read_parquet(undisturbed / "encoders_made.parquet").set_index("encoder")
    epochs = pd.read_parquet(undisturbed / "encoder_epochs.parquet")
    least = epochs.groupby("encoder")["valid_loss"].min()
    pd.testing.assert_series_equal(made["loss"], least, check_names=False)


def test_table_i_has_a_full_row_a_cell(undisturbed: Path) -> None:
    table = pd.read_csv(undisturbed / "table_i.csv")
    assert {
        f"{v}@{r}" for v, r in zip(table["variant"], table["label_ratio"], strict=True)
    } == CELLS
    numbers = table.drop(columns=["reason", "recipe", "settings"])
    assert not numbers.isna().any().any()
    assert (table["test_acc_low"] <= table["test_acc"] + 1e-9).all()
    assert (table["test_acc"] <= table["test_acc_high"] + 1e-9).all()
    assert set(table["n"]) == {60}
    assert set(table["labels"]) == {60, 120}


def test_labels_are_nested_and_never_of_valid_or_test(undisturbed: Path) -> None:
    labels = pd.read_parquet(undisturbed / "labels.parquet")
    assert labels["file"].str.startswith("train/").all()
    for _, drawn in labels.groupby("repeat", dropna=False):
        half, all_of_them = (set(drawn[drawn["label_ratio"] == r]["file"]) for r in (50, 100))
        assert half < all_of_them
        assert (len(half), len(all_of_them)) == (60, 120)


def test_optuna_has_a_study_a_cell_and_nothing_running(undisturbed: Path) -> None:
    storage = f"sqlite:///{undisturbed / 'optuna.db'}"
    trials = pd.read_parquet(undisturbed / "trials.parquet")
    assert {s.study_name for s in optuna.get_all_study_summaries(storage)} == CELLS
    for cell in CELLS:
        study = optuna.load_study(study_name=cell, storage=storage)
        ours = trials[trials["cell"] == cell].sort_values("trial_id")
        assert [t.state.name for t in study.trials] == list(ours["state"])
        for trial, row in zip(study.trials, ours.itertuples(), strict=True):
            assert trial.params["lr"] == row.lr
            assert len(trial.intermediate_values) == row.epochs
            if row.state == "COMPLETE":
                assert trial.value == row.val_f1


def test_a_killed_study_ends_as_an_undisturbed_one(
    undisturbed: Path, killed_and_resumed: Path
) -> None:
    for table in ("trials", "epochs", "evaluations"):
        whole, resumed = (
            pd.read_parquet(run / f"{table}.parquet").drop(
                columns=["seconds", "ended", "node"], errors="ignore"
            )
            for run in (undisturbed, killed_and_resumed)
        )
        keys = [k for k in ("trial_id", "cell", "repeat", "epoch") if k in whole]
        pd.testing.assert_frame_equal(
            whole.sort_values(keys, ignore_index=True), resumed.sort_values(keys, ignore_index=True)
        )
    for name in ("table_i.csv", "table_i.md"):
        assert (undisturbed / name).read_text() == (killed_and_resumed / name).read_text()


def test_a_finished_study_is_only_reported_again(world: PipelineWorld, undisturbed: Path) -> None:
    report = undisturbed / "report.html"
    report.unlink()
    before = (undisturbed / "trials.parquet").stat().st_mtime_ns
    started = time.monotonic()
    code, _, err = world.run(*world.study("undisturbed", "--set", "resources.max_concurrent=2"))
    assert code == 0, err
    assert report.is_file()
    assert (undisturbed / "trials.parquet").stat().st_mtime_ns == before
    assert time.monotonic() - started < 60
    code, _, err = world.run(*world.study("undisturbed", "--set", "training.max_epochs=5"))
    assert code == 2
    assert "training.max_epochs" in err


def test_a_finished_study_can_have_more_repeats(world: PipelineWorld, undisturbed: Path) -> None:
    """Nothing else is trained again, and what was there stays as it was."""
    run = world.folder / "more" / "tiny"
    shutil.copytree(undisturbed.parent, run.parent)
    code, _, err = world.run(*world.study("more", "--set", "evaluation.repeats=3"))
    assert code == 0, err
    before, after = (pd.read_parquet(each / "evaluations.parquet") for each in (undisturbed, run))
    kept = after[after["repeat"] < 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before)
    assert after.groupby("cell")["repeat"].apply(list).map(sorted).tolist() == [[0, 1, 2]] * 8
    trials = [pd.read_parquet(each / "trials.parquet") for each in (undisturbed, run)]
    pd.testing.assert_frame_equal(*trials)
    assert set(pd.read_csv(run / "table_i.csv")["repeats"]) == {3}
    code, _, err = world.run(*world.study("more", "--set", "evaluation.repeats=2"))
    assert code == 2
    assert "evaluation.repeats: 3 there, 2 here" in err


def test_a_time_cap_before_any_result(world: PipelineWorld) -> None:
    cap = ("--set", "search.max_seconds=0.001", "--set", "cells.variants=[A]")
    code, out, err = world.run(*world.study("capped", *cap))
    reason = "no trial was completed: 0 failed, 0 pruned, before search.max_seconds was over"
    assert code == 1
    assert f"A@50: {reason}" in err
    assert "search.max_seconds (0.001 s) is over" in out
    run = world.folder / "capped" / "tiny"
    assert yaml.safe_load((run / "study.yaml").read_text())["state"] == "FAILED"
    told = (run / "report.html").read_text()
    assert "ended by search.max_seconds (0.001 s): 0 of 6 trials began" in told


def test_leaderboard_and_predict_read_a_finished_study(
    world: PipelineWorld, undisturbed: Path
) -> None:
    code, out, _ = world.run(
        "leaderboard", "undisturbed/tiny", "--cell", "B1@50", "--top", "2", "--json"
    )
    rows = json.loads(out)
    assert code == 0
    assert [row["rank"] for row in rows] == [1, 2]
    assert {row["cell"] for row in rows} == {"B1@50"}
    image = next((world.folder / "images" / "test").rglob("*.jpg"))
    code, out, err = world.run(
        "predict", "undisturbed/tiny", str(image), "--cell", "B1@50", "--json"
    )
    assert code == 0, err
    (answer,) = json.loads(out)
    assert answer["cell"] == "B1@50"
    assert answer["species"] in SPECIES
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["probability"] == max(answer["probabilities"].values())


def test_failing_trials_do_not_stop_a_study(world: PipelineWorld) -> None:
    """A learning rate of 1e30 gives a loss that is not finite: every trial but the first fails.

    The study is also one of images without splits, and only searches.
    """
    pool = world.folder / "images" / "train"
    changes = ["data.split={pooled: {test_per_class: 2, valid_per_class: 1}}"]
    changes += ["cells.variants=[A]", "cells.label_ratios=[100]", "evaluation.repeats=0"]
    changes += ["search.trials=2", "search.lr=[1e-4, 1e30]"]
    more = [word for change in changes for word in ("--set", change)]
    code, out, err = world.run("run", "tiny.yaml", "--data", str(pool), "--out", "failing", *more)
    run = world.folder / "failing" / "tiny"
    trials = pd.read_parquet(run / "trials.parquet")
    assert code == 0, err
    assert sorted(trials["state"]) == ["COMPLETE", "FAIL"]
    failed = trials[trials["state"] == "FAIL"].iloc[0]
    assert "FloatingPointError" in failed["error"]
    assert pd.isna(failed["val_f1"]) or failed["epochs"] > 0
    assert f"{failed['trial_id']} failed: {failed['error']}" in out  # when it does,
    assert "1 of 2 trials failed" in out  # and once more at the end
    study = yaml.safe_load((run / "study.yaml").read_text())
    assert study["data"]["counts"] == {"train": 60, "valid": 20, "test": 40}
    assert study["state"] == "COMPLETE"
