"""Figures of errors: which species are confused, and whether classifiers are overconfident.

Each function takes a table and returns a matplotlib Figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from analysis.errors import calibration_error
from analysis.figures.drawing import (
    BLUE,
    GREY,
    INK,
    RED,
    drawing,
    horizontal_grid,
)
from analysis.wording import shorten


def confusion(predictions: pd.DataFrame, species: Sequence[str]) -> Figure:
    """The confusion matrix: what share of each species' test images was called each species.

    Args:
        predictions: one cell's rows of ``predictions.parquet``.
    """
    index = pd.Index(list(species))
    true, pred = (index.get_indexer(pd.Index(predictions[name])) for name in ("true", "pred"))
    counts = np.zeros((len(species), len(species)))
    np.add.at(counts, (true, pred), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 1.9 + 0.23 * len(species))
    with drawing(side + 0.7, side) as figure:
        axes = figure.add_subplot()
        blues = LinearSegmentedColormap.from_list("blues", [(BLUE, 0.12), (BLUE, 1.0)])
        image = np.ma.masked_equal(share, 0)
        mesh = axes.pcolormesh(image, cmap=blues, vmin=0, vmax=1, edgecolor="none")
        _write_shares(axes, share)
        ticks = np.arange(len(species)) + 0.5
        names = [shorten(name) for name in species]
        axes.set_xticks(ticks, names, rotation=90, fontsize=7)
        axes.set_yticks(ticks, names, fontsize=7)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set(xlabel="called", ylabel="true species")
        axes.spines[:].set_visible(True)
        figure.colorbar(mesh, ax=axes, shrink=0.5, label="share of the species' images")
    return figure


def _write_shares(axes: Axes, share: np.ndarray) -> None:
    if len(share) > 30:
        return
    for row, column in zip(*np.nonzero(share >= 0.095), strict=True):
        value = share[row, column]
        ink = "white" if value > 0.5 else INK
        place: Any = {"ha": "center", "va": "center", "fontsize": 6, "color": ink}
        axes.text(column + 0.5, row + 0.5, f"{100 * value:.0f}", **place)


def confused_pairs(pairs: pd.DataFrame, picture: Callable[[str], np.ndarray | None]) -> Figure:
    """The most confused pairs of species: images that were wrong, and images of the other species.

    Args:
        pairs: what `analysis.errors.most_confused` gives.
        picture: gives the pixels of a ``file``, uint8 (H, W, 3), or None if it is gone, as
            `analysis.pictures.Pictures.thumbnail` does for a size.
    """
    wide = max([1, *(len(files) for name in ("files", "like") for files in pairs[name])])
    many = max(len(pairs), 1)
    with drawing(1.0 + 1.15 * 2 * wide, 1.5 * many) as figure:
        ratios = [*[1.0] * wide, 0.28, *[1.0] * wide]
        grid = figure.subplots(many, len(ratios), squeeze=False, width_ratios=ratios)
        for each in grid.flat:
            each.set_axis_off()
        for axes, row in zip(grid, pairs.to_dict("records"), strict=False):
            _pair(axes, row, wide, picture)
    return figure


def _pair(
    axes: np.ndarray, row: dict[Any, Any], wide: int, picture: Callable[[str], np.ndarray | None]
) -> None:
    share = f"{row['times']:,} of {row['of']:,} ({100 * row['share']:.0f} %)"
    texts = {0: f"{shorten(row['true'])}, taken {share} for", wide + 1: shorten(row["pred"])}
    for column, text in texts.items():  # they may be wider than their image
        axes[column].set_title(" ")
        place: Any = {"transform": axes[column].transAxes, "va": "bottom"}
        axes[column].text(0, 1.05, text, **place).set_in_layout(False)
    axes[wide].text(0.5, 0.5, "→", ha="center", va="center", fontsize=13)
    axes[wide].set(xlim=(0, 1), ylim=(0, 1))
    for files, first in ((row["files"], 0), (row["like"], wide + 1)):
        for file, each in zip(files, axes[first : first + wide], strict=False):
            pixels = picture(file)
            if pixels is None:
                each.text(0.5, 0.5, "image\nis gone", ha="center", va="center", color=GREY)
            else:
                each.imshow(pixels, interpolation="lanczos")


def reliability(table: pd.DataFrame) -> Figure:
    """Accuracy against confidence, with the ECE; below, how many predictions there are.

    Args:
        table: what `analysis.errors.calibration` gives.
    """
    sizes = table["predictions"] / max(float(table["predictions"].max() or 1), 1)
    with drawing(4.2, 4.9) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        above.plot([0, 1], [0, 1], color=GREY, lw=0.9, ls=(0, (4, 3)))
        above.vlines(table["confidence"], table["accuracy"], table["confidence"], color=RED, lw=1.2)
        above.plot(table["confidence"], table["accuracy"], color=BLUE, lw=1.0, alpha=0.6)
        above.scatter(table["confidence"], table["accuracy"], 8 + 70 * sizes, color=BLUE, zorder=3)
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that was right")
        error = calibration_error(table)
        text = "no predictions" if np.isnan(error) else f"ECE {error:.3f}"
        above.text(0.03, 0.97, text, va="top", fontsize=9.5)
        below.bar(
            table["low"],
            table["predictions"],
            table["high"] - table["low"],
            align="edge",
            color=BLUE,
        )
        for axes in (above, below):
            horizontal_grid(axes)
        below.set(xlabel="probability of what was said", ylabel="predictions")
    return figure
