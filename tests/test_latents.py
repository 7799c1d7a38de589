"""Maps and clusters of features, and the scores of frozen features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records_example import write_run
from sklearn import metrics as sklearn_metrics

from analysis import latents, load
from analysis.latents import CLUSTERS, LATENTS, agreement, explore
from data.storage import InputError

SMALL = {"ratios": (10,), "variants": ("B2",), "species": ("a", "b", "c", "d"), "trials": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", per_species=(30, 8, 8), features=16, **SMALL)  # type: ignore[arg-type]


def test_files_have_a_row_an_image_and_a_row_a_space(folder: Path) -> None:
    explore(load(folder))
    points = pd.read_parquet(folder / "latents.parquet")
    clusters = pd.read_csv(folder / "clusters.csv")
    assert list(points) == LATENTS
    assert points.groupby("encoder").size().to_dict() == dict.fromkeys(
        ("unet-0000", "random", "pixels"), 4 * 46
    )
    assert points["cluster"].between(0, 3).all()
    assert not points[["x", "y"]].isna().any(axis=None)
    assert list(clusters) == CLUSTERS
    assert list(clusters["space"]) == ["latent", "tsne"] * 3
    for name in ("nmi", "ami", "ari", "purity", "silhouette"):
        assert (clusters[f"{name}_low"] <= clusters[name]).all()
        assert (clusters[f"{name}_high"] >= clusters[name]).all()


def test_agreement_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    species = random.integers(0, 5, 400)
    clusters = np.where(random.random(400) < 0.6, (species + 2) % 5, random.integers(0, 5, 400))
    points = np.eye(5)[clusters] + random.normal(0, 0.4, (400, 5))
    found = agreement(species, clusters, points)
    for name, score in (
        ("nmi", sklearn_metrics.normalized_mutual_info_score(species, clusters)),
        ("ami", sklearn_metrics.adjusted_mutual_info_score(species, clusters)),
        ("ari", sklearn_metrics.adjusted_rand_score(species, clusters)),
        ("purity", ((species + 2) % 5 == clusters).mean()),
        ("silhouette", sklearn_metrics.silhouette_score(points, clusters)),
    ):
        assert found[name] == pytest.approx(score)
        assert found[f"{name}_low"] < score < found[f"{name}_high"]


def test_intervals_end_where_scores_do() -> None:
    """Of clusters that have nothing to do with the species, and of those that are the species."""
    random = np.random.default_rng(0)
    species = np.repeat(np.arange(3), 20)
    for clusters in (random.integers(0, 3, 60), species):
        found = agreement(species, clusters, None)
        for name in ("nmi", "purity"):
            assert 0 <= found[f"{name}_low"] <= found[name] <= found[f"{name}_high"] <= 1
        for name in ("ami", "ari"):
            assert -1 <= found[f"{name}_low"] <= found[name] <= found[f"{name}_high"] <= 1


@pytest.mark.parametrize(("share", "off"), [(0.0, 0.01), (0.6, 0.07)])
def test_chance_raises_nmi_far_more_than_ami(share: float, off: float) -> None:
    """Of 300 images in 20 clusters that have so many of them from a species of their own."""
    random, kinds = np.random.default_rng(0), 20
    chances = np.full((kinds, kinds), (1 - share) / kinds**2) + share * np.eye(kinds) / kinds
    endless = latents.normalised_mutual_information(chances[None] * 1e9)[0]
    dealt = random.choice(kinds**2, (20, 300), p=chances.ravel())
    found = pd.DataFrame([agreement(one // kinds, one % kinds, None) for one in dealt])
    assert found["ami"].mean() == pytest.approx(endless, abs=off)
    assert (found["nmi_low"] > endless).all()
    if not share:
        assert ((found["ami_low"] <= 0) & (found["ami_high"] >= 0)).mean() >= 0.9


def test_a_better_encoder_scores_better(folder: Path) -> None:
    found = explore(load(folder))
    assert found.scores["unet-0000"].probe_acc > found.scores["pixels"].probe_acc
    latent = found.clusters[found.clusters["space"] == "latent"].set_index("encoder")
    assert latent.loc["unet-0000", "nmi_low"] > latent.loc["pixels", "nmi_high"]


def test_only_changed_features_are_mapped_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = explore(load(folder))
    mapped: list[str] = []
    real = latents.map_encoder

    def note(encoder: str, *rest: object) -> object:
        mapped.append(encoder)
        return real(encoder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(latents, "map_encoder", note)
    again = explore(load(folder))
    assert mapped == []
    pd.testing.assert_frame_equal(again.points, first.points)
    assert again.scores == first.scores
    file = folder / "features" / "random.npy"
    np.save(file, np.load(file) + 1e-3)
    explore(load(folder))
    assert mapped == ["random"]
    (folder / "latents.parquet").write_bytes(b"torn")
    explore(load(folder))
    assert sorted(mapped[1:]) == ["pixels", "random", "unet-0000"]


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("value", [1.0, np.nan, np.inf])
def test_an_encoder_that_collapsed_or_diverged_still_has_a_map(
    folder: Path, columns: int, value: float
) -> None:
    features = np.full((4 * 46, columns), value, np.float32)
    features[0, 0] = columns
    np.save(folder / "features" / "pixels.npy", features)
    points = explore(load(folder)).points
    assert np.isfinite(points.query("encoder == 'pixels'")[["x", "y"]]).all(axis=None)


def test_features_of_another_number_of_images_are_refused(folder: Path) -> None:
    np.save(folder / "features" / "random.npy", np.ones((7, 3), np.float32))
    with pytest.raises(InputError, match=r"random\.npy: found shape \(7, 3\), expected \(184, D\)"):
        explore(load(folder))


def test_a_run_without_features_writes_nothing(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", encoders=0, **SMALL))  # type: ignore[arg-type]
    assert explore(run).points.empty
    assert not (tmp_path / "run" / "latents.parquet").exists()
