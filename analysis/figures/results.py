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

from analysis.figures.drawing import (
    BLUE,
    RED,
    drawing,
    horizontal_grid,
    panel_shape,
    panels,
    species_style,
    variant_styles,
)
from analysis.tables import with_results
from analysis.variants import title
from analysis.wording import shorten

_MOST_POINTS = 6000  # of a map as vector shapes; more become an image


def label_efficiency(table: pd.DataFrame) -> Figure:
    """Test accuracy against labelled training images, one line per variant with 95 % bars.

    Variants are set a little apart at each ratio, so that their bars do not hide each other.

    Args:
        table: Table I.
    """
    known = with_results(table)
    with drawing(5.8, 3.8) as figure:
        axes = figure.add_subplot()
        styles = variant_styles(known["variant"].unique())
        several = known["label_ratio"].nunique() > 1
        apart = (known["labels"].max() / known["labels"].min()) ** 0.009 if several else 1.03
        for place, (variant, rows) in enumerate(known.groupby("variant")):
            colour, marker = styles[str(variant)]
            aside = apart ** (place - (len(styles) - 1) / 2)
            labels = rows["labels"].to_numpy(dtype=float) * aside
            axes.vlines(labels, rows["test_acc_low"], rows["test_acc_high"], color=colour, lw=1.3)
            name = title(str(variant))
            axes.plot(labels, rows["test_acc"], marker, ls="-", ms=5, color=colour, label=name)
        axes.set_xscale("log")
        _label_ticks(axes, known)
        if len(known) and not several:  # so that the points are not at the ends of the axis
            axes.set_xlim(known["labels"].iloc[0] / 1.6, known["labels"].iloc[0] * 1.6)
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


def autoencoder_loss(curves: pd.DataFrame, made: pd.DataFrame | None = None) -> Figure:
    """Loss against epochs of pretraining (the paper's Figs. 1 and 3), two lines per encoder and
    one panel per recipe.

    Args:
        curves: as ``encoder_epochs.parquet``.
        made: as ``encoders_made.parquet``; without it, all count as autoencoders.
    """
    recipes = _recipes(curves, made)
    down, across = panel_shape(len(recipes))
    width = 6.4 if across == 1 else 0.6 + 2.9 * across
    with drawing(width, 0.5 + 2.6 * down) as figure:
        many = panels(figure, len(recipes))
        for axes, (name, unit, rows) in zip(many, recipes, strict=True):
            _loss_lines(axes, rows)
            axes.set_ylabel(unit)
            axes.set_title(name if len(recipes) > 1 else "")
        for colour, style, name in _LOSS_LINES:
            many[0].plot([], [], color=colour, ls=style, label=name)
        figure.legend(loc="outside upper right", ncols=2)
    return figure


_LOSS_LINES: Any = ((BLUE, "-", "training images"), (RED, (0, (4, 2)), "validation images"))
_NATS = "−ELBO, nats per image"
_UNITS = {"variational": _NATS, "denoising_variational": _NATS}
_UNITS["instance"] = "cross entropy (nats)"
_UNITS |= dict.fromkeys(("reconstruction", "denoising", "masked"), "mean squared error")


def _recipes(
    curves: pd.DataFrame, made: pd.DataFrame | None
) -> list[tuple[str, str, pd.DataFrame]]:
    """Name, unit and curves of each recipe: losses compare only within one."""
    if made is None or made.empty:
        return [("", "mean squared error", curves)]
    known = made.drop_duplicates("encoder").assign(recipe=made["recipe"].fillna(made["objective"]))
    joined = curves.merge(known[["encoder", "recipe", "objective"]], on="encoder")
    return [
        (str(recipe), _UNITS.get(str(objective), "loss"), rows)
        for (recipe, objective), rows in joined.groupby(["recipe", "objective"], sort=False)
    ] or [("", "loss", curves)]


def _loss_lines(axes: Axes, curves: pd.DataFrame) -> None:
    if curves["epoch"].max() == 1:
        axes.set_xlim(0, 2)
    for encoder in pd.unique(curves["encoder"]):
        rows = curves[curves["encoder"] == encoder].sort_values("epoch")
        single = len(rows) == 1  # a line needs two
        point: Any = {"marker": "o" if single else None, "ms": 4, "clip_on": not single}
        for column, (colour, style, _) in zip(
            ("train_loss", "valid_loss"), _LOSS_LINES, strict=True
        ):
            axes.plot(rows["epoch"], rows[column], color=colour, lw=1.2, ls=style, **point)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not (curves[["train_loss", "valid_loss"]] < 0).any(axis=None):
        axes.set_ylim(bottom=0)
    horizontal_grid(axes)


def latent_map(points: pd.DataFrame, by: str) -> Figure:
    """The t-SNE plane of one encoder, coloured by species (Fig. 2) or by cluster (Fig. 5).

    Args:
        points: one encoder's rows of ``latents.parquet``.
        by: species, cluster or cluster_tsne.
    """
    names = sorted(pd.unique(points[by]))
    labels = [shorten(str(n)) if by == "species" else f"cluster {n + 1}" for n in names]
    many = len(points) > _MOST_POINTS
    with drawing(7.2, max(4.2, 0.6 + 0.19 * len(names))) as figure:
        axes = figure.add_subplot()
        handles = draw_plane(axes, points, by, 3.2, rasterized=many)
        axes.set_aspect("equal")
        columns = 1 + (len(names) - 1) // 26
        place: Any = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "ncols": columns}
        spacing: Any = {"markerscale": 1.7, "handletextpad": 0.2, "labelspacing": 0.35}
        axes.legend(handles, labels, **place, **spacing)
    return figure


def draw_plane(
    axes: Axes, points: pd.DataFrame, by: str, size: float, rasterized: bool
) -> list[Line2D]:
    """Draw the points of each species or cluster, in sorted order.

    Args:
        points, by: as for `latent_map`.
        size: of the markers.
        rasterized: as an image, for points that are too many as vector shapes.
    """
    lines = []
    for number, (_, rows) in enumerate(points.groupby(by, sort=True)):
        colour, marker = species_style(number)
        style: Any = {"ms": size, "mew": 0, "alpha": 0.8, "color": colour}
        lines += axes.plot(rows["x"], rows["y"], marker, rasterized=rasterized, **style)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return lines
