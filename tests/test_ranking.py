"""The encoders, best first, and which species fall together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records_example import write_run

from analysis import load
from analysis.latents import Scores
from analysis.ranking import _above_mean, encoder_statement, encoders_table
from analysis.together import together

MADE = "encoder architecture objective images epochs loss seconds"


def test_encoders_are_ranked_by_what_they_are_for(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10, 100), repeats=2, encoders=3, trials=4))
    scores = {name: Scores(0.4, 0.6) for name in ("unet-0000", "unet-0001", "unet-0002")}
    scores |= {"random": Scores(0.3, 0.5), "pixels": Scores(0.2, 0.7)}
    table = encoders_table(run, scores)
    assert list(table)[:7] == MADE.split()
    assert list(table["encoder"][3:]) == ["pixels", "random"]
    assert list(table["val_f1"][:3]) == sorted(table["val_f1"][:3], reverse=True)
    by_name = table.set_index("encoder")
    used = run.evaluations.set_index(["cell", "repeat"])["val_f1"]
    assert by_name.loc["unet-0002", "val_f1_B1@10"] == used["B1@10", 1]
    assert by_name["repeat"].fillna(-1).to_dict() == {
        "unet-0000": -1, "unet-0001": 0, "unet-0002": 1, "random": -1, "pixels": -1,
    }  # fmt: skip
    best = run.trials[(run.trials["cell"] == "B2@100") & (run.trials["state"] == "COMPLETE")]
    assert by_name.loc["unet-0000", "val_f1_B2@100"] == best["val_f1"].max()
    assert by_name.loc["random", "val_f1_B2@10"] == pytest.approx(used["B0@10"].mean())
    assert np.isnan(by_name.loc["random", "val_f1_B1@10"])
    assert by_name.loc["random", ["architecture", "images", "loss"]].isna().all()
    assert by_name.loc["unet-0000", "beats_random"]
    assert not by_name.loc["unet-0000", "beats_pixels"]


def test_encoders_with_other_cells_are_ranked_by_what_they_share() -> None:
    """The first is better wherever both were used, though easy cells make the second's mean higher;
    cells of a recipe count beside those of the same kind and ratio.
    """
    values = pd.DataFrame(
        {"B2@10": [0.5, 0.4, np.nan], "B2@100": [np.nan, 0.9, np.nan], "B2-vit@10": [np.nan] * 3}
    )
    values.loc[2, "B2-vit@10"] = 0.6
    found = _above_mean(values, ["B2@10", "B2@100", "B2@10"])
    assert list(found) == pytest.approx([0.0, -0.05, 0.1])
    assert _above_mean(values * np.nan, ["B2@10", "B2@100", "B2@10"]).isna().all()


def test_an_encoder_that_does_not_beat_the_controls_is_named_so(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10,)))
    controls = {"random": Scores(0.3, 0.65), "pixels": Scores(0.2, 0.36)}
    table = encoders_table(run, {"unet-0000": Scores(0.4, 0.505), **controls})
    assert encoder_statement(table) == (
        "By linear probe on frozen features (one fixed penalty, C = 0.01; validation images, no "
        "interval) the encoder reaches 0.505: not above the same network untrained (0.650) and "
        "above the raw pixels (0.360)."
    )
    assert encoder_statement(encoders_table(run, {"unet-0000": Scores(0.4, 0.5)})) == ""
    assert encoder_statement(encoders_table(run, {})) == ""


def test_a_study_without_encoders_has_an_empty_table(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", variants=("A",), ratios=(10,), encoders=0))
    assert encoders_table(run, {}).empty


def test_species_that_share_clusters_fall_together() -> None:
    """a and b in one cluster, c alone, and one image of d beside c."""
    rows = [("e", f"{name}{i}.jpg", "train", name) for name in "abcd" for i in range(4)]
    points = pd.DataFrame(rows, columns=["encoder", "file", "split", "species"])
    points["cluster"] = [0] * 8 + [1] * 4 + [1, 2, 2, 2]
    points["cluster_tsne"] = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    points["x"], points["y"] = np.arange(16.0), 0.0
    found = together(points)
    assert list(zip(found["species"], found["other"], strict=True)) == [("a", "b"), ("c", "d")]
    assert list(found["overlap"]) == [1.0, 0.25]
    assert list(found["space"]) == ["latent", "latent"]
    assert found["images"][0] == found["other_images"][0] == 4
    assert found["files"][0] == ("a3.jpg", "a2.jpg", "a1.jpg")  # nearest to the middle first
    assert found["other_files"][1] == ("d0.jpg",)
