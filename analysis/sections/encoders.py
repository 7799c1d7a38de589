"""Sections about the encoders: what they are worth, and where they put the images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis import tables
from analysis.figures import results as figures_results
from analysis.latents import CLUSTER_METRICS
from analysis.load import CONTROLS
from analysis.page import Cell, Grid, Row, Section
from analysis.reconstructions import denoising_curves
from analysis.sections import charts
from analysis.sections.cells import encoder, grouped, ratio, value, with_interval, word
from analysis.sections.shown import Shown
from analysis.variants import cell_name

TOGETHER = 5  # pairs of species on the page


def encoders_section(shown: Shown) -> Section | None:
    """The pretrained encoders beside an untrained one and the pixels."""
    found = shown.results.encoders
    if found.empty:
        return None
    section = Section("encoders", "Encoders")
    if statement := shown.results.encoder_statement:
        section.text(statement, key="encoder_statement")
    section.table(_encoders_grid(found))
    section.table(_by_cell_grid(found))
    _add_probes(section, shown)
    curves = shown.run.encoder_epochs.drop(denoising_curves(shown.run).index)
    if len(curves):
        caption = "Loss of each encoder against epochs of pretraining (the paper’s Fig. 1)."
        if "instance" in set(shown.run.encoders_made["objective"]):
            caption += (
                " Of instance, the training loss is that of telling an image from all others, the "
                "validation loss from those of its batch: their distance means nothing."
            )
        figure = figures_results.autoencoder_loss(curves, shown.run.encoders_made)
        section.figure("fig1_autoencoder_loss", caption, figure, "26rem")
    return section


def _encoders_grid(found: pd.DataFrame) -> Grid:
    names = ["<Encoder", "<Architecture", "<Objective", "Images", "Epochs", "Loss", "Seconds"]
    names += ["Classifiers’ F1", "Linear probe", "k-NN"]
    shared = bool(found["repeat"].isna().all())
    rows = [Row(_encoder_cells(row, shared)) for row in found.to_dict("records")]
    caption = (
        "Classifiers’ F1: validation F1 of the classifiers that used it, mean over cells: the "
        "search’s, or a repeat’s where each has its own. Best first by how far that is above the "
        "mean of all encoders in cells of the same kind and ratio (above_mean in encoders.csv), as "
        "not every encoder has every cell. Loss: of the objective, on the validation "
        "images. Linear probe (logistic regression) and k-NN (k = 5, cosine): trained on frozen "
        "features of all training images with their labels, "
        "accuracy on the validation images."
    )
    return Grid("Encoders", names, rows, caption)


def _by_cell_grid(found: pd.DataFrame) -> Grid:
    columns = [str(name) for name in found if str(name).startswith("val_f1_")]
    rows = []
    for row in found[found[columns].notna().any(axis=1)].to_dict("records"):
        key = f"encoders {row['encoder']}"
        cells = [value(row, name, ".3f", key) for name in columns]
        rows.append(Row([encoder(row), *cells]))
    caption = (
        "Validation F1: mean over the repeats that used the encoder, of the search’s winner where "
        "no repeat did. In the control’s row those of B2 are B0, which is that network fine-tuned."
    )
    names = ["<Encoder", *(name.removeprefix("val_f1_") for name in columns)]
    return Grid("Classifiers’ F1, cell by cell", names, rows, caption, folded=True)


def _encoder_cells(row: dict[Any, Any], shared: bool) -> list[Cell]:
    key = f"encoders {row['encoder']}"
    cells = [replace(encoder(row), small="" if shared else _whose(row))]
    recipe = "" if pd.isna(row["recipe"]) else str(row["recipe"])
    cells += [word(row["architecture"]), replace(word(row["objective"]), small=recipe)]
    cells += [value(row, name, ",.0f", key) for name in ("images", "epochs")]
    cells += [value(row, "loss", ".4f", key), value(row, "seconds", ",.0f", key)]
    return cells + [value(row, name, ".3f", key) for name in ("val_f1", "probe_acc", "knn_acc")]


def _whose(row: dict[Any, Any]) -> str:
    """Whether the search's classifiers started from it, or those of one repeat."""
    if row["encoder"] in CONTROLS:
        return ""
    return "search" if pd.isna(row["repeat"]) else f"repeat {row['repeat']}"


def _add_probes(section: Section, shown: Shown) -> None:
    probes = shown.results.probes
    if probes.empty:
        return
    rows = grouped(probes.to_dict("records"), "label_ratio", _probe_cells)
    caption = (
        "Linear classifiers of frozen features, trained on exactly the labelled images of each "
        "repeat, their penalty chosen on the validation images; 95 % intervals as in Table I. "
        "Where the linear probe above, with its fixed penalty, says otherwise, these count. All "
        "repeats of random have one untrained encoder, and are conditional on it; repeats with the "
        "same encoder and the same labels are one. " + tables.shared_encoder(shown.run)
    ).rstrip()
    section.heading("Frozen features, few labels")
    names = ["<Features", "Labels", "Validation accuracy", "Test accuracy", "n", "Repeats"]
    section.table(Grid("Frozen features, few labels", names, rows, caption))


def _probe_cells(row: dict[Any, Any]) -> list[Cell]:
    key = f"probes {cell_name(row['features'], row['label_ratio'])}"
    cells = [word(row["features"]), ratio(row, key, row["labels"])]
    cells += [value(row, "val_acc", ".3f", key), with_interval(row, "test_acc", ".3f", key)]
    return cells + [value(row, name, ",.0f", key) for name in ("n", "repeats")]


def latent_section(shown: Shown) -> Section | None:
    """The t-SNE map, how clusters agree with species, and which species fall together."""
    found = shown.results.latents
    if found.points.empty:
        return None
    section = Section("latent-map", "Latent map")
    section.text(
        "Every image of train, valid and test where an encoder puts it, without its label: "
        "features standardised, 50 principal components, t-SNE with perplexity 30 and seed 0. "
        "Near neighbours mean much in t-SNE, distances between groups little."
    )
    section.chart("latents", charts.latent_map(found.points, shown.thumbnails, shown.encoder))
    points = found.points[found.points["encoder"] == shown.encoder]
    _add_maps(section, points, shown.encoder)
    section.heading("Do clusters match species?")
    section.table(_clusters_grid(found.clusters))
    _add_together(section, shown)
    return section


def _add_maps(section: Section, points: pd.DataFrame, encoder: str) -> None:
    caption = f"The map of {encoder} by species (the paper’s Fig. 2)."
    figure = figures_results.latent_map(points, "species")
    section.figure("fig2_tsne_species", caption, figure, stands_in=True)
    caption = (
        f"The same map by cluster (the paper’s Fig. 5). K-means with k = "
        f"{points['species'].nunique()} on the latent components, not on the plane; "
        "colours have nothing to do with those above."
    )
    figure = figures_results.latent_map(points, "cluster")
    section.figure("fig5_kmeans", caption, figure, stands_in=True)


def _clusters_grid(clusters: pd.DataFrame) -> Grid:
    rows = grouped(clusters.to_dict("records"), "encoder", _cluster_cells)
    caption = (
        "How K-means clusters agree with species (NMI, AMI, ARI, purity by the best one-to-one "
        "assignment) and how separate they are (silhouette, in the space where they were found); "
        "95 % intervals over images, for the clusters as they are. NMI and purity are too high by "
        "chance, the more so the fewer images there are, and so are their intervals; AMI and ARI "
        "have 0 where chance has put them together. Clusters of the t-SNE plane are "
        "the paper’s; the plane distorts distances, so its silhouette is no evidence."
    )
    names = ["<Encoder", "<Space", "k", "NMI", "AMI", "ARI", "Purity", "Silhouette"]
    return Grid("Clusters", names, rows, caption)


def _cluster_cells(row: dict[Any, Any]) -> list[Cell]:
    key = f"clusters {row['encoder']} {row['space']}"
    space = "latent" if row["space"] == "latent" else "t-SNE plane"
    cells = [encoder(row), Cell(space, "t")]
    cells.append(value(row, "k", ".0f", key))
    return cells + [with_interval(row, name, ".3f", key) for name in CLUSTER_METRICS]


def _add_together(section: Section, shown: Shown) -> None:
    found = shown.results.together
    if len(found):
        found = found[(found["encoder"] == shown.encoder) & (found["space"] == "latent")]
    if found.empty:
        return
    section.heading("Species that fall together")
    section.note(
        f"Of {shown.encoder}, on the latent components. The overlap is the shared part of two "
        "species’ distributions over clusters: 1 where clusters cannot tell them apart."
    )
    section.album([_pair(row, shown) for row in found.head(TOGETHER).to_dict("records")])


def _pair(row: dict[Any, Any], shown: Shown) -> tuple[Markup, list[Markup]]:
    key = f"together {row['species']}|{row['other']} overlap"
    text = Markup('{} and {}: <span data-key="{}">{:.2f}</span>')
    images = shown.thumbnails.images(row["files"], row["species"])
    images += shown.thumbnails.images(row["other_files"], row["other"])
    return text.format(row["species"], row["other"], key, row["overlap"]), images
