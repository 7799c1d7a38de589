"""The section about reconstructions: of noisy images, and samples made without an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.figures import reconstructions as figures_reconstructions
from analysis.figures.results import autoencoder_loss
from analysis.load import Run
from analysis.page import Cell, Grid, Row, Section
from analysis.reconstructions import (
    best_denoiser,
    denoising_curves,
    names_of,
    statements,
)
from analysis.sections.cells import with_interval, word
from analysis.sections.shown import Shown

WAYS = {"original": "original", "noisy": "with noise", "median": "median filter"}
"""The pictures that every encoder has besides its own, and their names."""


def reconstruction_section(shown: Shown) -> Section | None:
    """Encoders beside leaving the noise in and a median filter; None before there are any."""
    table, curves = shown.results.reconstructions, denoising_curves(shown.run)
    if table.empty and curves.empty:
        return None
    section = Section("denoising", "Denoising" if _denoises(table, curves) else "Reconstructions")
    if len(table):
        names = names_of(shown.run, list(table["encoder"]))
        _add_statements(section, table, names)
        section.table(_grid(table, names))
        _add_pictures(section, shown.run, names)
    if len(curves):
        _add_curves(section, shown.run, curves)
    if len(table):
        _add_samples(section, shown.run, names)
        _add_maps(section, shown, names)
    return section


def _denoises(table: pd.DataFrame, curves: pd.DataFrame) -> bool:
    return len(curves) > 0 or best_denoiser(table) is not None


def _add_statements(section: Section, table: pd.DataFrame, names: dict[str, str]) -> None:
    best = best_denoiser(table)
    if best is None:
        return
    for number, text in enumerate(statements(table, names[best["encoder"]])):
        section.text(text, key=f"reconstructions {best['encoder']} statement {number + 1}")


def _grid(table: pd.DataFrame, names: dict[str, str]) -> Grid:
    header = ["<Encoder", "Noisy image", "Clean image", "− noise left in", "− median filter"]
    groups = [("", 1), ("What comes back of a", 2), ("Difference, of a noisy image", 3)]
    groups += [("Nats per image", 2)]
    caption = (
        "Mean squared error against the clean image, pixel values from 0 to 1, with 95 % intervals "
        "over test images, for the encoders as they are; differences are paired image by image, "
        "and below 0 the encoder is better. All encoders see the same noise. ELBO: the evidence "
        "lower bound of a variational autoencoder, higher is better; KL: how much of it the "
        "latent costs. Plain: the same network, trained on images without noise."
    )
    rows = [Row(_cells(row, names[row["encoder"]])) for row in table.to_dict("records")]
    return Grid(
        "What comes back",
        [*header, "− plain", "ELBO", "KL"],
        [*rows, *_baselines(table)],
        caption,
        groups,
    )


def _cells(row: dict[Any, Any], name: str) -> list[Cell]:
    key = f"reconstructions {row['encoder']}"
    objective = "" if row["objective"] == name else str(row["objective"]).replace("_", " ")
    cells = [Cell(name, "t", small=objective)]
    cells += [with_interval(row, each, ".4f", key) for each in ("loss", "clean_loss")]
    differences = ("minus_noisy", "minus_median", "minus_plain")
    cells += [with_interval(row, each, "+.4f", key) for each in differences]
    return cells + [with_interval(row, each, ".1f", key) for each in ("elbo", "kl")]


def _baselines(table: pd.DataFrame) -> list[Row]:
    """Rows without training, once for each kind of noise and colour that encoders have."""
    found = []
    for row in table.drop_duplicates(["noisy_loss", "median_loss"]).to_dict("records"):
        key = f"reconstructions {row['encoder']}"
        for name, column in (("noise left in", "noisy_loss"), ("3×3 median filter", "median_loss")):
            cells = [word(name), with_interval(row, column, ".4f", key)]
            found.append(Row([*cells, *[word(None, "")] * 6], group=column == "noisy_loss"))
    return found


def _add_pictures(section: Section, run: Run, names: dict[str, str]) -> None:
    rows = picture_rows(run, names)
    if not rows:
        return
    figure = figures_reconstructions.picture_rows(rows)
    caption = (
        "Test images chosen by the seed, with noise, and what comes back of it (the paper’s "
        "Fig. 4): by a 3×3 median filter, and by each encoder’s decoder, best first."
    )
    section.figure("fig4_reconstructions", caption, figure)


def picture_rows(run: Run, names: dict[str, str]) -> list[tuple[str, np.ndarray]]:
    """Rows of the figure: the encoders that were shown the same images stand below them."""
    blocks: dict[bytes, list[tuple[str, np.ndarray]]] = {}
    for encoder, name in names.items():
        found = run.pictures_given_back(encoder)
        if not found:
            continue
        same = found["original"].tobytes() + found["noisy"].tobytes()
        first = [(title, found[way]) for way, title in WAYS.items()]
        blocks.setdefault(same, first).append((name, found["reconstructed"]))
    return [row for block in blocks.values() for row in block]


def _add_curves(section: Section, run: Run, curves: pd.DataFrame) -> None:
    figure = autoencoder_loss(curves, run.encoders_made)
    caption = (
        "Loss of the encoders that are trained on noise, against epochs of pretraining (the "
        "paper’s Fig. 3). The epoch with the best validation loss is kept."
    )
    section.figure("fig3_denoising_loss", caption, figure, "26rem")


def _add_samples(section: Section, run: Run, names: dict[str, str]) -> None:
    found = {name: run.pictures_given_back(encoder) for encoder, name in names.items()}
    drawn = {name: each["samples"] for name, each in found.items() if len(each.get("samples", ()))}
    if not drawn:
        return
    caption = (
        "Samples: what variational decoders make of latents drawn from the prior, a standard "
        "normal. No image went in."
    )
    section.figure("samples", caption, figures_reconstructions.samples(drawn))


def _add_maps(section: Section, shown: Shown, names: dict[str, str]) -> None:
    points, clusters = shown.results.latents.points, shown.results.latents.clusters
    found = {n: points[points["encoder"] == e] for e, n in names.items()}
    found = {name: rows for name, rows in found.items() if len(rows)}
    if len(found) < 2:
        return
    nmi = clusters[clusters["space"] == "latent"].set_index("encoder")["nmi"].to_dict()
    notes = {name: f"NMI {float(nmi[e]):.3f}" for e, name in names.items() if name in found}
    caption = (
        "Latent spaces side by side: every image on the t-SNE plane, above by species (the "
        "paper’s Fig. 2), below by K-means cluster (its Fig. 5), with as many clusters as species. "
        "NMI: how far clusters of the latent components match species. Names are in the map above."
    )
    figure = figures_reconstructions.maps(found, notes)
    section.figure("latent_spaces", caption, figure)
