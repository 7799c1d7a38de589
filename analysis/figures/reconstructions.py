"""Figures of reconstructions: what decoders make of images. Each function returns a Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from analysis.figures.drawing import drawing
from analysis.figures.results import draw_plane

INCHES = 0.72  # of a picture's side
MOST_PIXELS = 64  # of a picture's side; keeps the page small enough for an email
GAP = 0.04  # between pictures, of their side
ACROSS = 8  # samples in a row


def picture_rows(rows: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Rows of pictures, each row with its name; columns show the same image (Fig. 4).

    Args:
        rows: name, and uint8 (n, H, W, 1 or 3).
    """
    columns = max(len(pictures) for _, pictures in rows)
    with drawing(1.6 + INCHES * columns, 0.1 + INCHES * len(rows)) as figure:
        axes = _picture_axes(figure, columns, len(rows))
        for row, (_, pictures) in enumerate(rows):
            for column, picture in enumerate(pictures):
                _put(axes, picture, column, row)
        axes.set_yticks(np.arange(len(rows)) + 0.5, [name for name, _ in rows])
    return figure


def samples(named: Mapping[str, np.ndarray]) -> Figure:
    """Pictures that decoders make of samples from the prior, 8 in a row.

    Args:
        named: name to uint8 (n, H, W, 1 or 3).
    """
    rows = [
        (name if start == 0 else "", pictures[start : start + ACROSS])
        for name, pictures in named.items()
        for start in range(0, len(pictures), ACROSS)
    ]
    return picture_rows(rows)


def _picture_axes(figure: Figure, columns: int, rows: int) -> Axes:
    axes = figure.add_subplot()
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", xticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return axes


def _put(axes: Axes, picture: np.ndarray, column: int, row: int) -> None:
    """Draw a picture (H, W, 1 or 3) without smoothing its pixels."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    if max(image.size) > MOST_PIXELS:
        image = image.resize((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
    shown = np.asarray(image.convert("RGB"))
    sides = (column + GAP, column + 1 - GAP, row + 1 - GAP, row + GAP)
    axes.imshow(shown, extent=sides, interpolation="none", aspect="equal")


def maps(points: Mapping[str, pd.DataFrame], notes: Mapping[str, str]) -> Figure:
    """t-SNE planes side by side, above by species (Fig. 2), below by cluster (Fig. 5).

    Args:
        points: name to one encoder's rows of ``latents.parquet``.
        notes: name to the line below it.
    """
    with drawing(0.3 + 2.4 * len(points), 5.0) as figure:
        many = figure.subplots(2, len(points), squeeze=False)
        for column, (name, rows) in enumerate(points.items()):
            many[0, column].set_title(f"{name}\n{notes[name]}")
            for axes, by in zip(many[:, column], ("species", "cluster"), strict=True):
                draw_plane(axes, rows, by, 2.2, rasterized=True)
                axes.set_aspect("equal", adjustable="datalim")
        for axes, by in zip(many[:, 0], ("by species", "by cluster"), strict=True):
            axes.set_ylabel(by)
    return figure
