"""Figures of what the study found: label efficiency, encoders, the latent map.

Each function takes a table and returns a matplotlib Figure.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    drawing,
    horizontal_grid,
    plain_axes,
    shorten,
    variant_name,
    variant_styles,
)

_SPECIES_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY)
_SPECIES_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "<", ">")
_MOST_POINTS = 6000  # of a map as shapes; more are an image


def label_efficiency(table: pd.DataFrame) -> Figure:
    """Test accuracy against labelled training images, a line a variant with its 95 % band.

    Args:
        table: Table I.
    """
    known = table[table["test_acc"].notna() & table["labels"].notna()]
    with drawing(5.8, 3.8) as figure:
        axes = plain_axes(figure)
        styles = variant_styles(known["variant"].unique())
        for variant, rows in known.groupby("variant"):
            colour, marker = styles[str(variant)]
            labels = rows["labels"].to_numpy(dtype=float)
            low, high = rows["test_acc_low"], rows["test_acc_high"]
            axes.fill_between(labels, low, high, color=colour, alpha=0.13, linewidth=0)
            name = variant_name(str(variant))
            axes.plot(labels, rows["test_acc"], marker, ls="-", ms=5, color=colour, label=name)
        axes.set_xscale("log")
        _label_ticks(axes, known)
        axes.set_xlabel("labelled training images")
        axes.set_ylabel("test accuracy")
        horizontal_grid(axes)
        if len(known):
            figure.legend(loc="outside upper left", ncols=2)
    return figure


def _label_ticks(axes: Axes, known: pd.DataFrame) -> None:
    ticks = known.drop_duplicates("label_ratio").sort_values("labels")
    names = [f"{row.labels:,}\n{row.label_ratio:g} %" for row in ticks.itertuples()]
    axes.set_xticks(ticks["labels"].to_numpy(dtype=float), names)
    axes.minorticks_off()
    axes.margins(x=0.06)


def autoencoder_loss(curves: pd.DataFrame) -> Figure:
    """Reconstruction loss against epochs (the paper's Fig. 1), a pair of lines an encoder.

    Args:
        curves: as ``encoder_epochs.parquet``.
    """
    with drawing(6.4, 3.1) as figure:
        axes = plain_axes(figure)
        for encoder in pd.unique(curves["encoder"]):
            rows = curves[curves["encoder"] == encoder].sort_values("epoch")
            axes.plot(rows["epoch"], rows["train_loss"], color=BLUE, lw=1.2)
            axes.plot(rows["epoch"], rows["valid_loss"], color=RED, lw=1.2, ls=(0, (4, 2)))
        axes.plot([], [], color=BLUE, label="training images")
        axes.plot([], [], color=RED, ls=(0, (4, 2)), label="validation images")
        axes.set_xlabel("epoch")
        axes.set_ylabel("reconstruction loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        horizontal_grid(axes)
        axes.legend(loc="upper right")
    return figure


def latent_map(points: pd.DataFrame, by: str) -> Figure:
    """The t-SNE plane of one encoder, coloured by species (Fig. 2) or by cluster (Fig. 5).

    Args:
        points: one encoder's rows of ``latents.parquet``.
        by: species, cluster or cluster_tsne.
    """
    names = sorted(pd.unique(points[by]))
    handles: list[Line2D] = []
    labels: list[str] = []
    many = len(points) > _MOST_POINTS
    with drawing(7.2, max(4.2, 0.6 + 0.19 * len(names))) as figure:
        axes = plain_axes(figure)
        for number, name in enumerate(names):
            rows = points[points[by] == name]
            colour = _SPECIES_COLOURS[number % len(_SPECIES_COLOURS)]
            marker = _SPECIES_MARKERS[number // len(_SPECIES_COLOURS) % len(_SPECIES_MARKERS)]
            style: Any = {"ms": 3.2, "mew": 0, "alpha": 0.8, "color": colour}
            handles += axes.plot(rows["x"], rows["y"], marker, rasterized=many, **style)
            labels.append(shorten(str(name)) if by == "species" else f"cluster {name + 1}")
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_visible(False)
        columns = 1 + (len(names) - 1) // 26
        place: Any = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "ncols": columns}
        spacing: Any = {"markerscale": 1.7, "handletextpad": 0.2, "labelspacing": 0.35}
        axes.legend(handles, labels, **place, **spacing)
    return figure
