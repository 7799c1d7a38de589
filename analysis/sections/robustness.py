"""The section about noise: what it costs classifiers, and clusters of the encoders' features."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis import tables
from analysis.figures import robustness as figures_robustness
from analysis.page import Cell, Grid, Section
from analysis.robustness import AGREEMENT
from analysis.sections.cells import (
    encoder,
    grouped,
    p_value,
    percent,
    points,
    ratio,
    value,
    verdict,
    with_interval,
    word,
)
from analysis.sections.shown import Shown
from analysis.variants import cell_name


def robustness_section(shown: Shown) -> Section | None:
    """Tests in noise; None if the study has none."""
    table, clusters = shown.results.robustness, shown.results.noise_clusters
    if table.empty and clusters.empty:
        return None
    section = Section("noise", "Noise")
    section.text(
        "The test images with salt-and-pepper noise: a share of the pixels, half of them white "
        "and half black. An image’s noise is the same for every variant and repeat. Beside the "
        "pretraining of denoising encoders, nothing was trained or chosen on noisy images. "
        + tables.shared_encoder(shown.run)
    )
    asked = shown.results.noise_questions
    section.answers(asked[asked["verdict"] != "not asked"].to_dict("records"))
    if len(table):
        _add_accuracy(section, table)
        _add_differences(section, shown.results.noise_differences)
    if len(clusters):
        _add_clusters(section, clusters)
    return section


def _add_accuracy(section: Section, table: pd.DataFrame) -> None:
    caption = (
        "Test accuracy against the share of noisy pixels, by label ratio. Bands: 95 % intervals "
        "as in Table I; those of two variants may overlap and yet the difference be decided."
    )
    figure = figures_robustness.accuracy_in_noise(table)
    section.figure("noise_accuracy", caption, figure)
    section.table(_accuracy_grid(table))


def _accuracy_grid(table: pd.DataFrame) -> Grid:
    levels = sorted(table["noise"].unique())
    rows = [
        {"label_ratio": rows["label_ratio"].iloc[0], "levels": levels}
        | {"of": {row["noise"]: row for row in rows.to_dict("records")}}
        for _, rows in table.groupby(["label_ratio", "variant"])
    ]
    caption = (
        "Change: accuracy in noise less that without, in points, on the same images and repeats. A "
        "classifier near chance has little to lose. F1 is in robustness.csv."
    )
    percents = [f"{100 * level:g}\xa0%" for level in levels]
    names = ["<Variant", "Labels", *percents, *percents[1:], "n", "Repeats"]
    groups = [("", 2), ("Accuracy, by noisy pixels", len(levels))]
    groups += [("Change, points", len(levels) - 1), ("", 2)]
    return Grid("In noise", names, grouped(rows, "label_ratio", _accuracy_cells), caption, groups)


def _accuracy_cells(row: dict[Any, Any]) -> list[Cell]:
    first, levels = next(iter(row["of"].values())), row["levels"]
    key = f"robustness {cell_name(first['variant'], first['label_ratio'])}"
    cells = [word(first["variant"]), ratio(first, key)]
    for name, form, scale, shown in (
        ("test_acc", ".3f", 1, levels),
        ("change", "+.1f", 100, levels[1:]),
    ):
        for level in shown:
            at = row["of"].get(level, {})
            cells.append(with_interval(at, name, form, f"{key} {level:g}", scale))
    return cells + [value(first, name, ",.0f", key) for name in ("n", "repeats")]


def _noise(row: dict[Any, Any], key: str) -> Cell:
    return percent(value(row, "noise", "g", key, 100))


def _add_differences(section: Section, found: pd.DataFrame) -> None:
    changes = found[found["of"] == "change"]
    if changes.empty:
        return
    same, accuracies = ["contrast", "label_ratio", "noise"], found[found["of"] == "acc"]
    rows = changes.merge(accuracies, on=same, suffixes=("", "_acc")).to_dict("records")
    caption = (
        "In points, the first variant less the second, each with its 95 % interval. In noise: of "
        "their accuracies at that level. Of what noise costs: of their changes by noise, so that "
        "above 0 the first loses less. Holm: each kind over all of its rows. “At chance”: what "
        "loses less, or both, is not surely better than guessing in noise: it had no more to lose."
    )
    names = ["<Contrast", "Labels", "Noise", "Points", "p (Holm)", "<Verdict"]
    names += ["Points", "p (Holm)", "<Verdict"]
    groups = [("", 3), ("In noise", 3), ("Of what noise costs", 3)]
    grid = grouped(rows, "contrast", _difference_cells)
    section.table(Grid("Differences in noise", names, grid, caption, groups, folded=len(rows) > 12))


def _difference_cells(row: dict[Any, Any]) -> list[Cell]:
    cell = cell_name(row["contrast"], row["label_ratio"])
    key = f"noise_differences {cell} {row['noise']:g}"
    cells = [word(row["contrast"]), ratio(row, key), _noise(row, key)]
    acc, change = f"{key} acc", f"{key} change"
    in_noise = {name: row[f"{name}_acc"] for name in ("difference", "low", "high", "p_holm")}
    cells += [points(in_noise, acc), p_value(in_noise, "p_holm", acc)]
    cells.append(verdict(row["verdict_acc"]))
    cells += [points(row, change), p_value(row, "p_holm", change)]
    return [*cells, verdict(row["verdict"], "loses less", "loses more")]


def _add_clusters(section: Section, clusters: pd.DataFrame) -> None:
    section.heading("Do clusters still match species?")
    caption = (
        "How well K-means clusters match species (NMI) against the share of noisy pixels. Bands: "
        "95 % intervals over images, for the clusters as they are."
    )
    figure = figures_robustness.clusters_in_noise(clusters)
    section.figure("noise_clusters", caption, figure, "26rem")
    names = ["<Encoder", "Noise", "k", "NMI", "AMI", "ARI", "Purity"]
    caption = (
        "Of all images, without their labels: features of the search’s encoders, of the same "
        "network untrained, and the pixels, as for the map, clustered anew at each level."
    )
    rows = grouped(clusters.to_dict("records"), "encoder", _cluster_cells)
    section.table(Grid("Clusters in noise", names, rows, caption, folded=True))


def _cluster_cells(row: dict[Any, Any]) -> list[Cell]:
    key = f"noise_clusters {row['encoder']} {row['noise']:g}"
    cells = [encoder(row), _noise(row, key)]
    cells.append(value(row, "k", ".0f", key))
    return cells + [with_interval(row, name, ".3f", key) for name in AGREEMENT]
