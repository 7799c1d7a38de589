"""Two studies side by side: what is paired, what is not, and what a reader is told."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from records_example import write_run
from scipy import stats

from analysis import contrasts, load
from analysis.compare import (
    Comparison,
    changes,
    compare,
    difference_of_means,
    render,
    to_csv,
    to_json,
    why_unpaired,
)
from analysis.load import Run
from analysis.statistics import Spread
from analysis.tables import table_i
from study.cli import main

SHAPE: dict[str, Any] = {
    "ratios": (10, 100),
    "variants": ("B0", "B2"),
    "trials": 3,
    "repeats": 4,
    "encoders": 0,
}
SHAPE |= {"per_species": (10, 4, 10)}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("first") / "study", **SHAPE)


@pytest.fixture
def second(first: Path, tmp_path: Path) -> Path:
    """The first study again, to be changed."""
    folder = tmp_path / "second"
    folder.mkdir()
    for file in first.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def _change(folder: Path, name: str, **columns: object) -> pd.DataFrame:
    frame = pd.read_parquet(folder / f"{name}.parquet").assign(**columns)
    frame.to_parquet(folder / f"{name}.parquet", index=False)
    return frame


def _mend(folder: Path, share: float) -> None:
    """Make some wrong predictions of every cell right, the same images in each repeat."""
    frame = pd.read_parquet(folder / "predictions.parquet")
    chosen = frame["file"].isin(np.unique(frame["file"])[:: round(1 / share)])
    pred = frame["pred"].where(~chosen, frame["true"])
    frame.assign(pred=pred).to_parquet(folder / "predictions.parquet", index=False)


def _compare(first: Path, second: Path) -> Comparison:
    return compare(load(first), load(second))


def test_a_study_does_not_differ_from_itself(first: Path, second: Path) -> None:
    found = _compare(first, second)
    assert found.unpaired is None
    assert found.changed == {}
    assert (found.table["difference"] == 0).all()
    assert (found.table["p_holm"] == 1).all()
    assert render(found).count("0.000 [−0.019, +0.019]") == 4


def test_one_repeat_has_differences_without_p(first: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(first, tmp_path / "other"))
    for name in ("predictions", "evaluations"):
        frame = pd.read_parquet(other / f"{name}.parquet")
        frame[frame["repeat"] == 0].to_parquet(other / f"{name}.parquet", index=False)
    found = _compare(first, other)
    assert found.table["difference"].notna().all()
    assert found.table[["p", "p_holm"]].isna().all(axis=None)
    assert "No p: it takes two repeats in both." in render(found)


def test_scores_are_those_of_table_i_and_the_difference_is_theirs(
    first: Path, second: Path
) -> None:
    _mend(second, 0.1)
    found = _compare(first, second).table.set_index("cell")
    for side, folder in (("first", first), ("second", second)):
        for row in table_i(load(folder)).itertuples():
            cell = found.loc[f"{row.variant}@{row.label_ratio}"]
            assert cell[side] == pytest.approx(row.test_acc)
            assert cell[f"{side}_low"] == pytest.approx(row.test_acc_low, abs=1e-9)
            assert cell[f"{side}_lr"] == row.lr
    assert list(found["difference"]) == pytest.approx(list(found["second"] - found["first"]))
    assert ((found["low"] <= found["difference"]) & (found["difference"] <= found["high"])).all()
    assert found["paired"].all()
    assert list(found["repeats"]) == [4] * 4
    assert list(found["n"]) == [200] * 4


def test_the_recipes_that_were_chosen(first: Path, second: Path) -> None:
    trials = pd.read_parquet(second / "trials.parquet")
    searched = trials["cell"] == "B2@10"
    chosen = trials[searched & (trials["state"] == "COMPLETE")].nlargest(1, "val_f1").index
    recipe = pd.Series(None, trials.index, dtype=object)
    recipe[searched] = "plain"
    recipe[chosen] = "masked"
    _change(second, "trials", recipe=recipe)
    found = _compare(first, second)
    table = found.table.set_index("cell")
    assert table["second_recipe"].dropna().to_dict() == {"B2@10": "masked"}
    assert table["first_recipe"].isna().all()
    assert render(found).count(" (masked)") == 1


def test_pairing_makes_the_interval_narrower(first: Path, second: Path) -> None:
    _mend(second, 0.1)
    paired = _compare(first, second).table
    _change(second, "evaluations", seed=99)
    apart = _compare(first, second)
    assert apart.unpaired == "other seeds"
    assert not apart.table["paired"].any()
    assert list(apart.table["difference"]) == pytest.approx(list(paired["difference"]))
    width = apart.table["high"] - apart.table["low"]
    assert (width > 1.5 * (paired["high"] - paired["low"])).all()
    assert (apart.table["p"] >= paired["p"]).all()


def test_the_unpaired_interval_is_welchs() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(0.53, 0.05, 5), random.normal(0.5, 0.02, 8)
    spreads = []
    for values in (one, other):
        shape = random.normal(size=100_000)
        sd = float(values.std(ddof=1) / len(values) ** 0.5)
        spreads.append(Spread(float(values.mean()), shape, sd, len(values) - 1))
    welch = stats.ttest_ind(one, other, equal_var=False)
    found = difference_of_means(*spreads)
    assert found.interval() == pytest.approx(welch.confidence_interval(), abs=0.002)
    assert found.p_value() == pytest.approx(welch.pvalue, rel=0.1)


def test_many_cells_are_drawn_more_often(
    first: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or with more than 100 of them no difference could be decided after Holm."""
    _mend(second, 0.9)
    monkeypatch.setattr(contrasts, "MOST_ROWS", 1)
    assert _compare(first, second).table["p"].min() < 1 / 2001


def _study(folder: Path, change: dict[str, object]) -> None:
    study = yaml.safe_load((folder / "study.yaml").read_text())
    (folder / "study.yaml").write_text(yaml.safe_dump(study | change))


def test_what_cannot_be_paired_says_why(first: Path, second: Path) -> None:
    def reason() -> str | None:
        return why_unpaired(load(first), load(second))

    assert reason() is None
    predictions = pd.read_parquet(second / "predictions.parquet")
    last = predictions["file"] != predictions["file"].max()
    predictions[last].to_parquet(second / "predictions.parquet", index=False)
    assert reason() == "other test images"
    _study(second, {"data": load(second).study["data"] | {"fingerprint": "another"}})
    assert reason() == "other images"
    assert len(_compare(first, second).table) == 4


def test_cells_and_repeats_that_one_study_lacks(first: Path, second: Path) -> None:
    for name in ("evaluations", "predictions"):
        frame = pd.read_parquet(second / f"{name}.parquet")
        kept = (frame["cell"] != "B2@10") & (frame["repeat"] > 0)
        frame[kept].to_parquet(second / f"{name}.parquet", index=False)
    config = load(second).config
    config["cells"] = {"variants": ["B0", "B2"], "label_ratios": [10, 50, 100]}
    _study(second, {"config": config})
    table = _compare(first, second).table.set_index("cell")
    assert list(table.index) == ["B0@10", "B2@10", "B0@50", "B2@50", "B0@100", "B2@100"]
    assert table.loc["B0@10", "repeats"] == 3  # that both have
    own = table.loc[["B0@10", "B0@100"]]
    assert (own["second"] - own["first"]).tolist() == pytest.approx(own["difference"].tolist())
    assert table.loc["B2@10", ["second", "difference", "p_holm"]].isna().all()
    assert table.loc["B0@50", ["first", "second", "first_lr"]].isna().all()
    assert table.loc["B2@10", "first"] > 0


def test_search_only(tmp_path: Path) -> None:
    shape = SHAPE | {"repeats": 0}
    runs = [load(write_run(tmp_path / name, **shape)) for name in "ab"]
    found = compare(*runs)
    assert found.table["difference"].isna().all()
    assert (found.table["first_val"] == found.table["second_val"]).all()
    assert "–" in render(found)


def test_what_the_studies_differ_in(first: Path, second: Path) -> None:
    config = load(second).config | {"name": "other", "resources": {"cpus_per_trial": 4}}
    config["encoder"] = config["encoder"] | {"epochs": 30, "normalise": True}
    _study(second, {"config": config, "commit": "fedcba9"})
    runs: tuple[Run, Run] = load(first), load(second)
    expected = {"encoder.epochs": (12, 30), "encoder.normalise": (None, True)}
    assert changes(*runs) == expected | {"commit": ("0123abc", "fedcba9")}
    shown = render(compare(*runs))
    assert "encoder.epochs: 12 → 30" in shown
    assert str(first) in shown
    assert "paired by test image and seed" in shown


def test_csv_and_json_hold_the_same(
    first: Path, second: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _mend(second, 0.2)
    found = _compare(first, second)
    assert main(["compare", str(first), str(second), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(to_json(found))
    assert told["cells"][0]["paired"] is True
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    for row, same in zip(rows, told["cells"], strict=True):
        assert list(row) == list(same)
        assert float(row["difference"]) == pytest.approx(same["difference"])
    assert main(["compare", str(first), str(second), "--metric", "loss"]) == 0
    assert "Test loss, 95 % intervals" in capsys.readouterr().out
    assert main(["compare", str(first), str(second.parent)]) == 2
    assert "no study.yaml" in capsys.readouterr().err
