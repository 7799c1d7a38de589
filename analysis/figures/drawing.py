"""How every figure looks, and how it is written as SVG and PNG.

Colours are Okabe & Ito's (jfly.uni-koeln.de/color), which the colour-blind can tell apart; no
figure relies on colour alone. Figures have no background, and ink of one known colour, so
that a page can show the same SVG in light and in dark.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from analysis.variants import kind_of, recipe_of

INK, FAINT = "#1b2733", "#b9c2cb"
ORANGE, SKY, GREEN, BLUE = "#e69f00", "#56b4e9", "#009e73", "#0072b2"
RED, PINK, GREY = "#d55e00", "#cc79a7", "#8a949e"
VARIANT_STYLE = {
    "A": (PINK, "s"),
    "B0": ("#c77c02", "^"),  # a darker orange: theirs has a contrast of only 2.2 : 1 on white
    "B1": (GREEN, "D"),
    "B2": (BLUE, "o"),
    "C": (RED, "v"),
    "C2": ("#7b5fa8", "*"),
}
# For the recipes of encoders, near a variant's own colour. All have a contrast of 3 : 1 on the
# page, in light and in dark (WCAG 2.2, 1.4.11), which leaves little room for lighter and darker.
RECIPE_COLOURS = {
    "B0": ("#ac6300", "#636906", "#8b8806", "#8b592c", "#aa7b54", "#91985e", "#80753b"),
    "B1": ("#197502", "#779f13", "#1f857c", "#339122", "#708037", "#437048", "#869760"),
    "B2": ("#a07ff5", "#4087ee", "#a353ba", "#5799b6", "#6556c8", "#7a5b89", "#a17dac"),
    "C": ("#cf5291", "#b13e06", "#ee656e", "#8c556e", "#a66d59", "#b7325b", "#bc819a"),
    "C2": ("#8f58c0", "#8462d8", "#9a6a9c", "#73659f", "#b05ad0", "#8a6ab8", "#7d68c4"),
}
RECIPE_MARKERS = ("P", "X", "v", "<", ">", "*")
SPECIES_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY)
SPECIES_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "<", ">")

# Fonts for other scripts, if installed. In SVG, text stays text and the browser finds a font.
OTHER_FONTS = ["Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans"]
OTHER_FONTS += ["Microsoft YaHei", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Devanagari"]

_STYLE: Any = {
    "font.family": ["DejaVu Sans", *(name for name in OTHER_FONTS if name in get_font_names())],
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a species may be named $x$
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.labelsize": 8.5,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "hatch.color": "white",
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "mariposa",
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A new figure of that size in inches, drawn in the project's style inside the context."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def horizontal_grid(axes: Axes) -> None:
    """Faint lines behind the data."""
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def panel_shape(count: int) -> tuple[int, int]:
    """Rows and columns for that many panels, at most three in a row."""
    across = min(3, count)
    return -(-count // across), across


def panels(figure: Figure, count: int, shared: bool = False) -> list[Axes]:
    """That many axes, row by row.

    Args:
        shared: whether they have the same scales.
    """
    shape = panel_shape(count)
    many = figure.subplots(*shape, sharex=shared, sharey=shared, squeeze=False).ravel()
    for axes in many[count:]:
        axes.remove()
    return list(many[:count])


def cell_grid(
    figure: Figure, variants: Sequence[str], ratios: Sequence[int]
) -> dict[tuple[str, int], Axes]:
    """One pair of axes per cell, variants down and ratios across, with shared scales."""
    many = figure.subplots(len(variants), len(ratios), sharex=True, sharey=True, squeeze=False)
    cells = {}
    for row, variant in enumerate(variants):
        for column, ratio in enumerate(ratios):
            axes = many[row, column]
            horizontal_grid(axes)
            axes.tick_params(length=2)
            axes.set_title(f"{variant} @ {ratio:g} %")
            cells[variant, ratio] = axes
    return cells


def cell_grid_size(variants: Sequence[str], ratios: Sequence[int]) -> tuple[float, float]:
    """Inches that `cell_grid` needs."""
    return max(4.5, 1.1 + 1.7 * len(ratios)), 1.0 + 1.4 * len(variants)


def variant_styles(variants: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The colour and marker of each variant; those with a recipe resemble the plain one."""
    names = sorted({recipe_of(variant) for variant in variants} - {""})
    found = {}
    for variant in variants:
        kind, recipe = kind_of(variant), recipe_of(variant)
        colour, marker = VARIANT_STYLE[kind]
        if recipe:
            place = names.index(recipe)
            colour = RECIPE_COLOURS[kind][place % len(RECIPE_COLOURS[kind])]
            marker = RECIPE_MARKERS[place % len(RECIPE_MARKERS)]
        found[variant] = (colour, marker)
    return found


def species_style(number: int) -> tuple[str, str]:
    """The colour and marker of a species, or of a cluster, by its place in their order."""
    place, number = divmod(number, len(SPECIES_COLOURS))
    return SPECIES_COLOURS[number], SPECIES_MARKERS[place % len(SPECIES_MARKERS)]


@contextmanager
def _any_script() -> Iterator[None]:
    """Without warnings about names in a script that no font here has: they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        yield


def to_svg(figure: Figure) -> str:
    """The figure as SVG, its text as text."""
    sink = io.StringIO()
    with mpl.rc_context(_STYLE), _any_script():
        figure.savefig(sink, format="svg", facecolor="none", metadata={"Date": None})
    figure.set_layout_engine("none")  # a PNG of it need not lay it out again
    return sink.getvalue()


def to_png(figure: Figure) -> bytes:
    """The figure as PNG on white, 160 dots an inch."""
    sink = io.BytesIO()
    with mpl.rc_context(_STYLE), _any_script():
        figure.savefig(sink, format="png", dpi=160, facecolor="white")
    return sink.getvalue()
