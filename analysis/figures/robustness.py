"""Figures of what noise in the images costs. Each function takes a table of `analysis.robustness`
and returns a matplotlib Figure.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    drawing,
    horizontal_grid,
    panel_shape,
    panels,
    variant_styles,
)
from analysis.load import CONTROLS
from analysis.variants import title
from analysis.wording import shorten

_ENCODER_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY)
_ENCODER_MARKERS = ("o", "^", "D", "s", "v", "P")


def accuracy_in_noise(table: pd.DataFrame) -> Figure:
    """Test accuracy against noise, one line per variant with its 95 % band, one panel per ratio.

    Args:
        table: what `robustness_table` gives.
    """
    ratios = sorted(table["label_ratio"].unique())
    down, across = panel_shape(len(ratios))
    styles = variant_styles(sorted(table["variant"].unique()))
    with drawing(max(5.0, 1.0 + 2.3 * across), 1.5 + 2.2 * down) as figure:
        many = panels(figure, len(ratios), shared=True)
        for axes, ratio in zip(many, ratios, strict=True):
            axes.set_title(f"{ratio:g} % labels")
            _lines(axes, table[table["label_ratio"] == ratio], "variant", "test_acc", styles)
        many[0].set_ylim(bottom=0)  # only now, as it ends autoscaling
        figure.supxlabel("noisy pixels (%)")
        figure.supylabel("test accuracy")
        lines = {line.get_label(): line for axes in many for line in axes.get_lines()}
        names = [title(str(label)) for label in lines]
        figure.legend(lines.values(), names, loc="outside upper left", ncols=2)
    return figure


def clusters_in_noise(table: pd.DataFrame) -> Figure:
    """How well K-means clusters match species in noise, one line per encoder.

    Args:
        table: what `clusters_table` gives.
    """
    own = [str(name) for name in pd.unique(table["encoder"]) if name not in CONTROLS]
    styles = {
        name: (_ENCODER_COLOURS[i % 6], _ENCODER_MARKERS[(i + i // 6) % 6])
        for i, name in enumerate(own)
    }
    styles |= {"random": (GREY, "X"), "pixels": (GREY, "*")}
    dashes: dict[str, Any] = {"random": (0, (4, 2)), "pixels": (0, (1, 1.5))}
    with drawing(5.8, 3.6) as figure:
        axes = figure.add_subplot()
        _lines(axes, table, "encoder", "nmi", styles)
        for line in axes.get_lines():
            name = str(line.get_label())
            line.set_linestyle(dashes.get(name, "-"))
            line.set_label(shorten(name, 40))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("noisy pixels (%)")
        axes.set_ylabel("NMI of clusters and species")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def _lines(
    axes: Axes, table: pd.DataFrame, by: str, value: str, styles: dict[str, tuple[str, str]]
) -> None:
    """One line with its band for each name in a column, against noise."""
    for name in pd.unique(table[by]):
        rows = table[table[by] == name].sort_values("noise")
        colour, marker = styles[str(name)]
        noise = 100 * rows["noise"].to_numpy(dtype=float)
        low, high = rows[f"{value}_low"], rows[f"{value}_high"]
        axes.fill_between(noise, low, high, color=colour, alpha=0.11, linewidth=0)
        axes.plot(noise, rows[value], marker, ls="-", ms=4.5, color=colour, label=str(name))
    axes.set_xticks(sorted(100 * table["noise"].unique()))
    horizontal_grid(axes)
