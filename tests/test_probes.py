"""Linear probes with few labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records_example import write_run
from sklearn.linear_model import LogisticRegression

from analysis import contrasts, load, probes
from analysis.probes import PENALTIES, cross_entropy, encoder_of, fit_path, logits, probe, rotate
from analysis.results import Results
from data.storage import InputError

SMALL = {"ratios": (10, 100), "variants": ("B0", "B1", "B2"), "trials": 3, "repeats": 2}
SMALL |= {"species": ("a", "b", "c", "d"), "per_species": (30, 8, 20), "features": 12}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", **SMALL)  # type: ignore[arg-type]


def test_a_probe_is_scikit_learns_logistic_regression() -> None:
    random = np.random.default_rng(0)
    species = random.integers(0, 4, 200)
    features = (random.normal(size=(4, 15))[species] + 2 * random.normal(size=(200, 15))) * 3
    features = features.astype(np.float32)
    rotated = rotate(features, np.arange(150))
    for weights, penalty in zip(fit_path(rotated[:150], species[:150], 4), PENALTIES, strict=True):
        centre, spread = features[:150].mean(axis=0), features[:150].std(axis=0)
        scaled = (features - centre) / spread
        model = LogisticRegression(C=penalty, tol=1e-8, max_iter=2000)
        expected = model.fit(scaled[:150], species[:150])
        chance = expected.predict_log_proba(scaled[150:])
        loss = cross_entropy(logits(rotated[150:], weights), species[150:])
        assert loss == pytest.approx(-chance[range(50), species[150:]], abs=0.02)


def test_each_repeat_is_probed_on_its_own_labels(folder: Path) -> None:
    run = load(folder)
    found = probe(run)
    assert len(found.fits) == 3 * 2 * 2
    assert set(found.fits["features"]) == {"pretrained", "random", "pixels"}
    counts = run.labels.dropna().groupby(["label_ratio", "repeat"]).size()
    for row in found.fits.to_dict("records"):
        assert row["labels"] == counts[row["label_ratio"], row["repeat"]]
        assert row["C"] in PENALTIES
    means = found.predictions.assign(hit=found.predictions["true"] == found.predictions["pred"])
    means = means.groupby(["features", "label_ratio", "repeat"])["hit"].mean()
    for row in found.fits.to_dict("records"):
        key = (row["features"], row["label_ratio"], row["repeat"])
        assert row["test_acc"] == pytest.approx(means[key])


def test_the_contrast_is_of_the_same_images_as_the_networks(folder: Path) -> None:
    results = Results(load(folder))
    table = results.contrasts.set_index(["contrast", "label_ratio"])
    row = table.loc[("probe: pretrained−random", 10)]
    both = results.probes.set_index(["features", "label_ratio"])["test_acc"]
    expected = both["pretrained", 10] - both["random", 10]
    assert row["difference"] == pytest.approx(expected)
    assert row["low"] < row["difference"] < row["high"]
    assert row["n"] == 80
    assert table.loc[("probe: pretrained−random", 100), "difference"] > 0  # as it was made
    assert set(results.hypotheses["name"]) >= {"probe: pretrained−random"}


def test_repeats_with_the_same_encoder_and_labels_are_one(folder: Path) -> None:
    """With all labels and a shared encoder the repeats of a probe are copies of one another."""
    results = Results(load(folder))
    assert results.probes.set_index(["features", "label_ratio"])["repeats"].to_dict() == {
        (name, ratio): 2 if ratio == 10 else 1
        for name in ("pretrained", "random", "pixels")
        for ratio in (10, 100)
    }
    table = results.contrasts[results.contrasts["contrast"].str.startswith("probe")]
    assert list(table["repeats"]) == [2, 1, 2, 1]
    assert table.loc[table["label_ratio"] == 100, "p"].isna().all()
    assert table.loc[table["label_ratio"] == 10, "p"].notna().all()


def test_repeats_with_encoders_of_their_own_are_not_copies(tmp_path: Path) -> None:
    """Though those of random are, of which there is one."""
    results = Results(load(write_run(tmp_path / "run", encoders=3, **SMALL)))  # type: ignore[arg-type]
    table = results.contrasts.set_index(["contrast", "label_ratio"])["repeats"]
    assert table["probe: pretrained−random", 100] == 2
    assert results.probes.set_index(["features", "label_ratio"])["repeats"]["random", 100] == 1


def test_a_study_of_many_differences_draws_more_for_networks_and_probes_alike(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrasts, "MOST_ROWS", 4)
    results = Results(load(folder))
    assert results.scored[1].count > 2000
    found = results.contrasts.set_index(["contrast", "label_ratio"])["difference"]
    monkeypatch.undo()
    expected = Results(load(folder)).contrasts.set_index(["contrast", "label_ratio"])["difference"]
    pd.testing.assert_series_equal(found, expected)


def test_probes_are_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe(load(folder))
    calls: list[int] = []
    real = probes.fit_path
    monkeypatch.setattr(probes, "fit_path", lambda *a: calls.append(1) or real(*a))
    again = probe(load(folder))
    assert calls == []
    pd.testing.assert_frame_equal(again.fits, first.fits)
    pd.testing.assert_frame_equal(again.predictions, first.predictions)
    (folder / "probes.parquet").write_bytes(b"torn")
    pd.testing.assert_frame_equal(probe(load(folder)).predictions, first.predictions)
    assert calls
    file = folder / "features" / "random.npy"
    np.save(file, np.load(file) + np.float32(1e-3))
    calls.clear()
    probe(load(folder))
    assert calls


def test_without_test_or_features_nothing_is_probed(tmp_path: Path) -> None:
    for name, changes in (("a", {"repeats": 0}), ("b", {"encoders": 0})):
        run = load(write_run(tmp_path / name, **(SMALL | changes)))  # type: ignore[arg-type]
        assert probe(run).fits.empty
        assert not (tmp_path / name / "probes.parquet").exists()
        assert Results(run).probes.empty


def test_an_encoder_that_collapsed_or_diverged_is_probed_too(folder: Path) -> None:
    for value in (1.0, np.inf, np.nan):
        features = np.full((4 * 58, 12), value, np.float32)
        features[0, 0] = 2
        np.save(folder / "features" / "random.npy", features)
        fits = probe(load(folder)).fits
        assert fits.query("features == 'random'")["test_acc"].between(0, 0.5).all()


def test_a_label_that_is_no_image_of_the_study_is_refused(folder: Path) -> None:
    labels = pd.read_parquet(folder / "labels.parquet")
    labels["file"] = labels["file"].str.replace("train/a/", "train/z/")
    labels.to_parquet(folder / "labels.parquet")
    with pytest.raises(InputError, match=r"labels\.parquet: \d+ images at 10 % in repeat 0 are"):
        probe(load(folder))


def test_a_repeat_has_its_own_encoder_where_there_is_one(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", encoders=3, **SMALL))  # type: ignore[arg-type]
    assert encoder_of(run, "B2", 10, None) == "unet-0000"
    assert [encoder_of(run, "B2", 10, repeat) for repeat in (0, 1)] == ["unet-0001", "unet-0002"]
    fits = probe(run).fits.query("features == 'pretrained'")
    assert dict(zip(fits["repeat"], fits["encoder"], strict=True)) == {
        0: "unet-0001",
        1: "unet-0002",
    }
