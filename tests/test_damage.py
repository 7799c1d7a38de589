"""Files of a run that were cut or changed on disk: repaired from what is left, or named.

One small study is run through the command line, and copies of what it left are spoilt at a random
byte. A resume then ends with the table that it had, or says in a line which file is damaged and
what to do; and what it says is done, too.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from conftest import draw_folder, environment, tiny_tree

from data.folders import find_images
from data.packing import open_packed, pack_images
from data.storage import InputError, Location
from study.cells import cells_of
from study.completeness import missing_or_damaged
from study.config import Config, config_from
from study.encoders import plan_encoder, read_card
from study.evaluation import repeats_to_run
from study.fitting import Checkpoint
from study.material import Material
from study.prediction import predict
from study.records import Ledger
from study.search import StudySearch
from study.study_file import read_study

pytestmark = pytest.mark.timeout(600)
CLOCKS = ("ended", "node")
TRIALS = {"A@100-000", "A@100-001", "B1@100-000", "B1@100-001"}


def mariposa(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "study", *arguments],
        cwd=folder,
        env=environment(MARIPOSA_CACHE=str(folder / "cache")),
        capture_output=True,
        text=True,
        timeout=500,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a finished study of four trials and two repeats."""
    folder = tmp_path_factory.mktemp("finished")
    images = draw_folder(folder / "images")
    tree = tiny_tree(
        images,
        resources={"max_concurrent": 1},
        cells={"label_ratios": [100]},
        training={"max_epochs": 2},
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    code, err = mariposa(folder, "run", "tiny.yaml", "--out", "out")
    assert code == 0, err
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path / "out" / "tiny"


def material(run: Path) -> Material:
    study = read_study(Location(run))
    config = config_from(study["config"], "its study.yaml")
    return Material(config, Location(run), Location(run.parent / "packed"), study["data"]["key"])


def config_of(run: Path) -> Config:
    return material(run).config


Spoil = Callable[[Path], None]


def cut(file: Path) -> None:
    """Truncate it at a random byte."""
    content = file.read_bytes()
    file.write_bytes(content[: random.Random(file.name).randrange(len(content))])


def flip(file: Path) -> None:
    """Change a bit of a random byte."""
    content = bytearray(file.read_bytes())
    content[random.Random(file.name).randrange(len(content))] ^= 4
    file.write_bytes(content)


both = pytest.mark.parametrize("spoil", [cut, flip])


def results(run: Path) -> list[str]:
    """What must not differ: Table I and the records, but for what depends on clocks."""
    frames = [pd.read_csv(run / "table_i.csv")]
    frames += [pd.read_parquet(run / f"{name}.parquet") for name in ("trials", "epochs")]
    frames.append(pd.read_parquet(run / "predictions.parquet"))
    plain = [f[[c for c in map(str, f) if c not in CLOCKS and "seconds" not in c]] for f in frames]
    return [f.sort_values([*map(str, f)][:5]).to_csv(index=False) for f in plain]


# --- Run again when asked ---------------------------------------------------------------------


def test_failed_trials_are_run_again_when_asked(finished: Path, run: Path) -> None:
    """As after a machine with a full disk; the same trial at the same point, and as it had been."""
    ledger = Ledger(Location(run))
    (row,) = (row for row in ledger.rows("trials") if row["trial_id"] == "B1@100-001")
    values = dict.fromkeys(("best_epoch", "val_loss", "val_acc", "val_f1"))
    failed = row | values | {"state": "FAIL", "error": "OSError: No space left", "epochs": 1}
    ledger.put("trials", failed)
    ledger.drop("epochs", trial_id=row["trial_id"], epoch=2)
    ledger.save()
    assert mariposa(finished, "resume", str(run))[0] == 0
    assert yaml.safe_load((run / "study.yaml").read_text())["state"] == "COMPLETE"
    assert "FAIL" in set(pd.read_parquet(run / "trials.parquet")["state"])
    code, err = mariposa(finished, "resume", str(run), "--restart-errored")
    assert code == 0, err
    assert results(run) == results(finished / "out" / "tiny")
    assert yaml.safe_load((run / "study.yaml").read_text())["state"] == "COMPLETE"


# --- Repaired by a resume ------------------------------------------------------------------------


def test_a_resume_repairs_all_that_can_be_made_again(finished: Path, run: Path) -> None:
    encoder = next((run / "encoders").glob("*.safetensors"))
    packed = next((run.parent / "packed").glob("*.npy"))
    for file in (encoder, packed, run / "study.yaml", run / "encoder_epochs.parquet"):
        flip(file)
    for file in (run / "optuna.db", run / "labels.parquet", run / "encoders_made.parquet"):
        cut(file)
    (run / "journal").mkdir(exist_ok=True)
    (run / "journal" / "000001.jsonl").write_text('["trials", {"trial_id": "A@100-000"')
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "A@100-000.ckpt").write_bytes(b"no checkpoint")
    cut(run / "features" / "random.npy")
    flip(run / "features" / "pixels.npy")
    (run / "models" / "A@100.json").unlink()
    code, err = mariposa(finished, "resume", str(run))
    assert code == 0, err
    assert results(run) == results(finished / "out" / "tiny")
    for name in ("labels", "encoders_made", "encoder_epochs"):
        original = pd.read_parquet(finished / "out" / "tiny" / f"{name}.parquet")
        found = pd.read_parquet(run / f"{name}.parquet")
        assert found.shape == original.shape
    assert encoder.read_bytes() == (finished / "out/tiny/encoders" / encoder.name).read_bytes()
    assert packed.read_bytes() == (finished / "out/packed" / packed.name).read_bytes()
    for name in ("features/random.npy", "features/pixels.npy", "models/A@100.safetensors"):
        assert (run / name).read_bytes() == (finished / "out/tiny" / name).read_bytes()
    trials = optuna.load_study(study_name="A@100", storage=f"sqlite:///{run / 'optuna.db'}").trials
    assert len(trials) == 2
    assert not list((run / "journal").iterdir())
    assert yaml.safe_load((run / "study.yaml").read_text())["state"] == "COMPLETE"


def test_damaged_trials_are_named_and_without_them_the_search_is_made_again(
    finished: Path, run: Path
) -> None:
    """The one that costs most. The new search has the old one's values, none of its rows."""
    file = run / "trials.parquet"
    flip(file)
    code, err = mariposa(finished, "resume", str(run))
    assert code == 2
    assert err.startswith(f"mariposa: {file}: is damaged (")
    assert err.count("\n") == 1
    assert "delete it and resume" in err
    file.unlink()
    code, err = mariposa(finished, "resume", str(run))
    assert code == 0, err
    assert results(run) == results(finished / "out" / "tiny")


# --- Named, and what to do works ----------------------------------------------------------------


def refused(run: Path, file: Path) -> None:
    with pytest.raises(InputError) as caught:
        Ledger(Location(run))
    line = str(caught.value)
    assert line.startswith(f"{file}: is damaged (")
    assert "delete it and resume" in line
    assert "\n" not in line
    file.unlink()


@both
def test_damaged_epochs(run: Path, spoil: Spoil) -> None:
    """Their trials are run again, each with its own configuration."""
    before = {row["trial_id"]: row["lr"] for row in Ledger(Location(run)).rows("trials")}
    spoil(run / "epochs.parquet")
    refused(run, run / "epochs.parquet")
    search = StudySearch(config_of(run), Ledger(Location(run)), lambda cell: True)
    again = [search.next_trial() for _ in range(5)]
    assert {trial.trial_id: trial.lr for trial in again if trial} == before


@both
@pytest.mark.parametrize("name", ["evaluations", "evaluation_epochs", "predictions"])
def test_damaged_evaluations(run: Path, name: str, spoil: Spoil) -> None:
    """Every repeat is run again, the search is not."""
    spoil(run / f"{name}.parquet")
    refused(run, run / f"{name}.parquet")
    ledger = Ledger(Location(run))
    again = {(one.cell.name, one.repeat) for one in repeats_to_run(config_of(run), ledger)}
    assert again == {("A@100", 0), ("B1@100", 0)}
    assert {row["trial_id"] for row in ledger.rows("trials")} == TRIALS
    assert StudySearch(config_of(run), ledger, lambda cell: True).finished


@pytest.mark.parametrize(
    "name",
    ["trials.parquet", "predictions.parquet", "features/random.npy", "encoders_made.parquet"],
)
def test_a_finished_study_is_not_finished_while_a_record_is_damaged(run: Path, name: str) -> None:
    assert missing_or_damaged(Location(run), 1) == []
    flip(run / name)
    assert missing_or_damaged(Location(run), 1) == [name]
    (run / name).unlink()
    assert missing_or_damaged(Location(run), 1) == (
        [name] if name != "encoders_made.parquet" else []
    )


def test_whole_records_leave_nothing_to_do(run: Path) -> None:
    ledger = Ledger(Location(run))
    assert ledger.repaired == []
    assert not list(repeats_to_run(config_of(run), ledger))
    assert StudySearch(config_of(run), ledger, lambda cell: True).finished


def test_a_damaged_journal_segment_costs_what_it_recorded(run: Path) -> None:
    """A study that is interrupted keeps its unfinished trial in the journal alone."""
    ledger = Ledger(Location(run))
    (row,) = (row for row in ledger.rows("trials") if row["trial_id"] == "A@100-001")
    ledger.put("trials", row | {"state": "RUNNING"})
    ledger.save(closing=True)
    (segment,) = (run / "journal").iterdir()
    cut(segment)
    ledger = Ledger(Location(run))
    assert any(line.startswith(f"{segment}: is damaged") for line in ledger.repaired)
    search = StudySearch(config_of(run), ledger, lambda cell: True)
    trial = search.next_trial()
    assert trial is not None
    assert (trial.trial_id, trial.seed) == ("A@100-001", row["seed"])
    assert not [e for e in ledger.rows("epochs") if e["trial_id"] == "A@100-001"]


@both
@pytest.mark.parametrize("suffix", ["npy", "json"])
def test_damaged_packed_images(finished: Path, run: Path, suffix: str, spoil: Spoil) -> None:
    file = next((run.parent / "packed").glob(f"*.{suffix}"))
    spoil(file)
    packed, key = Location(run.parent / "packed"), file.stem
    with pytest.raises(InputError, match="delete it and start again") as caught:
        open_packed(packed, key, run / "cache")
    assert str(file) in str(caught.value)
    folder = find_images(Location(finished / "images"))
    assert pack_images(folder, 16, packed, 1) == (key, True), "decoded again"
    assert np.array_equal(
        open_packed(packed, key, run / "cache").pixels,
        material(finished / "out/tiny").images.pixels,
    )


@both
@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_damaged_encoder_is_pretrained_again(run: Path, suffix: str, spoil: Spoil) -> None:
    study = material(run)
    plan = plan_encoder(study, cells_of(study.config)[-1], None)
    assert plan is not None
    assert read_card(plan, study.run) is not None
    spoil(run / "encoders" / f"{plan.key}.{suffix}")
    assert read_card(plan, study.run) is None


@both
def test_a_damaged_checkpoint_is_none(run: Path, tmp_path: Path, spoil: Spoil) -> None:
    class Trainer:
        def save_checkpoint(self, file: Path) -> None:
            file.write_bytes(b"a checkpoint" * 99)

    checkpoint = Checkpoint(Location(run), "x")
    checkpoint.save(Trainer())  # type: ignore[arg-type]
    assert checkpoint.fetch(tmp_path) is not None
    spoil(run / "checkpoints" / "x.ckpt")
    assert checkpoint.fetch(tmp_path) is None


@both
@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_damaged_model_is_named(finished: Path, run: Path, suffix: str, spoil: Spoil) -> None:
    image = Location(next((finished / "images" / "test").rglob("*.png")))
    (answer,) = predict(Location(run), "val_f1", [image])
    file = run / "models" / f"{answer['cell']}.{suffix}"
    spoil(file)
    with pytest.raises(InputError) as caught:
        predict(Location(run), "val_f1", [image])
    assert f"models/{answer['cell']}" in str(caught.value)
    assert "\n" not in str(caught.value)
