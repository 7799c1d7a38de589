"""What the report says of denoising: means, intervals, paired differences, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from records_example import write_reconstructions, write_run
from test_report_numbers import Numbers

from analysis import load
from analysis.reconstructions import PAPER_LOSS, names_of, reconstruction_table, statements
from analysis.report import write_report
from analysis.sections.reconstructions import picture_rows

SPECIES = ("Atala", "Brown argus", "Great jay", "Map")
PLAIN, DENOISING, VARIATIONAL = ENCODERS = ("unet-0000", "unet-0001", "unet-0002")
RECIPES = (None, "denoising", "dvae")
OBJECTIVES = ("reconstruction", "denoising", "denoising_variational")
LOSSES = dict(zip(ENCODERS, (0.022, 0.021, 0.03), strict=True))
pytestmark = pytest.mark.usefixtures("no_png")
Frame = pd.DataFrame


def write_denoising(folder: Path, image_size: int = 28, **encoder: Any) -> Path:
    """A run of the paper's dense network with three recipes."""
    sizes: dict[str, Any] = {"per_species": (12, 4, 20), "trials": 2, "repeats": 2}
    write_run(folder, species=SPECIES, ratios=(100,), variants=("B0", "B1", "B2"), **sizes)
    study = yaml.safe_load((folder / "study.yaml").read_text())
    common = {"architecture": "dense", "width": 128, "colour": "grey", "salt": 0.1, "pepper": 0.1}
    common |= {"pretrain_on": "all", **encoder}
    study["config"]["data"]["image_size"] = image_size
    study["config"]["encoder"] = common | {"objective": OBJECTIVES[0]}
    recipes = zip(RECIPES[1:], OBJECTIVES[1:], strict=True)
    study["config"]["encoders"] = {name: common | {"objective": what} for name, what in recipes}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    one = pd.read_parquet(folder / "encoders_made.parquet").iloc[[0]]
    rows = [
        one.assign(encoder=name, recipe=recipe, objective=objective)
        for name, recipe, objective in zip(ENCODERS, RECIPES, OBJECTIVES, strict=True)
    ]
    pd.concat(rows).to_parquet(folder / "encoders_made.parquet", index=False)
    curve = pd.read_parquet(folder / "encoder_epochs.parquet")
    curves = [curve.assign(encoder=name) for name in ENCODERS]
    curves[2][["train_loss", "valid_loss"]] *= -4000
    pd.concat(curves).to_parquet(folder / "encoder_epochs.parquet", index=False)
    write_reconstructions(folder, LOSSES, nats=[VARIATIONAL])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_denoising(tmp_path_factory.mktemp("denoising") / "run")


@pytest.fixture(scope="module")
def table(folder: Path) -> Frame:
    return reconstruction_table(load(folder))


@pytest.fixture(scope="module")
def page(folder: Path) -> Numbers:
    write_report(folder)
    return Numbers((folder / "report.html").read_text())


def columns_of(folder: Path, encoder: str) -> Frame:
    frame = pd.read_parquet(folder / "reconstructions.parquet")
    return frame[frame["encoder"] == encoder].reset_index(drop=True)


def stratified_error(values: np.ndarray, species: np.ndarray) -> float:
    """Standard error of a mean with as many images of each species in every sample."""
    groups = [values[species == name] for name in np.unique(species)]
    return float(np.sqrt(sum(g.var(ddof=1) * len(g) for g in groups)) / len(values))


def test_the_best_comes_first(table: Frame) -> None:
    assert table["encoder"].tolist() == [DENOISING, PLAIN, VARIATIONAL]
    assert table["n"].tolist() == [80, 80, 80]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_means_and_intervals_are_over_images(folder: Path, table: Frame, encoder: str) -> None:
    row = table.set_index("encoder").loc[encoder]
    own, plain = columns_of(folder, encoder), columns_of(folder, PLAIN)
    species = own["file"].str.split("/").str[1].to_numpy()
    expected = {name: own[name] for name in ("loss", "noisy_loss", "median_loss", "clean_loss")}
    expected |= {f"minus_{x}": own["loss"] - own[f"{x}_loss"] for x in ("noisy", "median")}
    expected |= {"minus_plain": own["loss"] - plain["loss"]} if encoder != PLAIN else {}
    expected |= {"elbo": own["elbo"], "kl": own["kl"]} if encoder == VARIATIONAL else {}
    for name, values in expected.items():
        half = 1.99 * stratified_error(values.to_numpy(), species)
        assert row[name] == pytest.approx(values.mean()), name
        assert row[f"{name}_low"] == pytest.approx(values.mean() - half, abs=0.15 * half), name
        assert row[f"{name}_high"] == pytest.approx(values.mean() + half, abs=0.15 * half), name
    missing = {"minus_plain"} if encoder == PLAIN else set()
    missing |= {"elbo", "kl"} if encoder != VARIATIONAL else set()
    assert row[sorted(missing)].isna().all()


def test_only_the_papers_network_stands_beside_the_papers_figure(
    table: Frame, tmp_path: Path
) -> None:
    found = table.set_index("encoder")["paper_loss"]
    assert found[DENOISING] == PAPER_LOSS == 0.0315
    assert found[[PLAIN, VARIATIONAL]].isna().all()
    others: dict[str, dict[str, Any]] = {"size": {"image_size": 32}, "colour": {"colour": "rgb"}}
    others |= {"noise": {"salt": 0.2}, "width": {"width": 64}}
    for name, change in others.items():
        other = reconstruction_table(load(write_denoising(tmp_path / name, **change)))
        assert other["paper_loss"].isna().all(), name


def test_sentences_follow_from_the_row(table: Frame) -> None:
    text = " ".join(statements(table, "denoising")).replace("\xa0", " ")
    row = table.iloc[0]
    assert f"error of {row['loss']:.4f} [{row['loss_low']:.4f}, {row['loss_high']:.4f}]" in text
    assert "20 % noisy pixels, the autoencoder denoising" in text
    assert f"{-row['minus_noisy']:.4f} [{-row['minus_noisy_high']:.4f}" in text
    assert "less than with the noise left in" in text
    assert f"{row['minus_median']:.4f} [{row['minus_median_low']:.4f}" in text
    assert "more than with a 3×3 median filter" in text
    assert "less than with the network that saw no noise" in text
    assert "The paper reports 0.0315" in text
    open_question = table.assign(minus_noisy_low=-0.1, minus_noisy_high=0.1)
    text = " ".join(statements(open_question, "denoising"))
    assert "not surely more or less (−0.0" in text
    assert statements(table[table["encoder"] == PLAIN], "plain") == []


def test_every_number_of_the_section_is_the_tables(page: Numbers, table: Frame) -> None:
    for row in table.to_dict("records"):
        for name in ("loss", "clean_loss", "minus_noisy", "minus_median", "minus_plain", "elbo"):
            key = f"reconstructions {row['encoder']} {name}"
            if pd.isna(row[name]):
                assert key not in page.keyed
                continue
            form = {"elbo": ".1f"}.get(name, "+.4f" if name.startswith("minus") else ".4f")
            assert page.keyed[key] == format(row[name], form)
            ends = f"{row[f'{name}_low']:{form}} to {row[f'{name}_high']:{form}}"
            assert page.keyed[f"{key} small"] == ends
    baselines = [key for key in page.keyed if key.endswith(("noisy_loss", "median_loss"))]
    assert len(baselines) == 2, "once, as all have the same noise"


def test_the_figures_are_there(folder: Path, page: Numbers) -> None:
    html = (folder / "report.html").read_text()
    figures = ("fig3_denoising_loss", "fig4_reconstructions", "samples", "latent_spaces")
    names = {file.stem for file in (folder / "figures").glob("*.svg")}
    assert names >= {"fig1_autoencoder_loss", *figures[:3]}
    assert '<section id="denoising">' in html
    assert "<h2>Denoising</h2>" in html
    svg = (folder / "figures" / "fig4_reconstructions.svg").read_text()
    assert svg.count("<image") == 6 * 4, "original, noisy, median and three encoders"
    for name in ("original", "with noise", "median filter", "plain", "denoising", "dvae"):
        assert f">{name}</text>" in svg
    svg = (folder / "figures" / "fig3_denoising_loss.svg").read_text()
    assert "nats per image" in svg
    assert "mean squared error" in svg
    assert (folder / "figures" / "samples.svg").read_text().count("<image") == 10


def test_the_table_is_written(folder: Path, page: Numbers, table: Frame) -> None:
    written = pd.read_csv(folder / "reconstructions.csv")
    assert list(written) == list(table)
    assert written["loss"].tolist() == pytest.approx(table["loss"].tolist())


def test_encoders_shown_other_pictures_stand_below_their_own(tmp_path: Path) -> None:
    folder = write_denoising(tmp_path / "run")
    write_reconstructions(folder, LOSSES, other=[DENOISING])
    run = load(folder)
    rows = [name for name, _ in picture_rows(run, names_of(run, ENCODERS))]
    first = ["original", "with noise", "median filter"]
    assert rows == [*first, "plain", "dvae", *first, "denoising"]


def test_without_noise_in_training_it_is_no_denoising(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder, species=SPECIES, ratios=(100,), trials=2, repeats=2, per_species=(9, 4, 8))
    write_reconstructions(folder, {PLAIN: 0.02})
    write_report(folder)
    html = (folder / "report.html").read_text()
    assert "<h2>Reconstructions</h2>" in html
    assert "the autoencoder" not in html


def test_before_the_end_only_the_loss_is_shown(tmp_path: Path) -> None:
    folder = write_denoising(tmp_path / "run")
    (folder / "reconstructions.parquet").unlink()
    write_report(folder)
    names = {file.stem for file in (folder / "figures").glob("*.svg")}
    assert "fig3_denoising_loss" in names
    assert "fig4_reconstructions" not in names


def test_encoders_of_one_recipe_are_told_apart(folder: Path) -> None:
    run = load(folder)
    made = run.encoders_made.assign(recipe=None, objective="denoising", images=[9, 30, 1200])
    run.__dict__["encoders_made"] = made
    assert list(names_of(run, ENCODERS).values()) == [
        "denoising (9 images)",
        "denoising (30 images)",
        "denoising (1,200 images)",
    ]
