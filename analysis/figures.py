"""The figures of the report. Each function takes a table and returns a matplotlib Figure.

Colours are Okabe & Ito's (jfly.uni-koeln.de/color), which differ to the colour-blind; no figure
tells things apart by colour alone. Figures have no background, and ink of one known colour, so
that a page can show the same SVG in light and in dark.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.leaderboard import METRIC_NAMES

INK, FAINT = "#1b2733", "#b9c2cb"
ORANGE, SKY, GREEN, BLUE = "#e69f00", "#56b4e9", "#009e73", "#0072b2"
RED, PINK, GREY = "#d55e00", "#cc79a7", "#8a949e"
VARIANT_STYLE = {"A": (PINK, "s"), "B0": (ORANGE, "^"), "B1": (GREEN, "D"), "B2": (BLUE, "o")}
VARIANT_NAMES = {
    "A": "A: from scratch",
    "B0": "B0: B2's network, random weights",
    "B1": "B1: pretrained, frozen",
    "B2": "B2: pretrained, fine-tuned",
}
_SPECIES_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY)
_SPECIES_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "<", ">")
_MOST_POINTS = 6000  # of a map as shapes; more are an image
_MOST_CURVES = 60  # a cell; more cannot be told apart, and make a page heavy

_STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a species may be named $x$
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
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "mariposa",
}


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Figure]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _axes(figure: Figure) -> Axes:
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return axes


def label_efficiency(table: pd.DataFrame) -> Figure:
    """Test accuracy against labelled training images, a line a variant with its 95 % band.

    Args:
        table: Table I.
    """
    known = table[table["test_acc"].notna() & table["labels"].notna()]
    with _drawing(5.8, 3.8) as figure:
        axes = _axes(figure)
        for variant, rows in known.groupby("variant"):
            colour, marker = _variant_style(str(variant))
            labels = rows["labels"].to_numpy(dtype=float)
            low, high = rows["test_acc_low"], rows["test_acc_high"]
            axes.fill_between(labels, low, high, color=colour, alpha=0.13, linewidth=0)
            name = VARIANT_NAMES.get(str(variant), str(variant))
            axes.plot(labels, rows["test_acc"], marker, ls="-", ms=5, color=colour, label=name)
        axes.set_xscale("log")
        _label_ticks(axes, known)
        axes.set_xlabel("labelled training images")
        axes.set_ylabel("test accuracy")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        if len(known):
            figure.legend(loc="outside upper left", ncols=2)
    return figure


def _variant_style(variant: str) -> tuple[str, str]:
    return VARIANT_STYLE.get(variant, (RED, "v"))


def _label_ticks(axes: Axes, known: pd.DataFrame) -> None:
    ticks = known.drop_duplicates("label_ratio").sort_values("labels")
    names = [f"{row.labels:,}\n{row.label_ratio:g} %" for row in ticks.itertuples()]
    axes.set_xticks(ticks["labels"].to_numpy(dtype=float), names)
    axes.minorticks_off()
    axes.margins(x=0.06)


def _grid(
    figure: Figure, variants: Sequence[str], ratios: Sequence[int]
) -> dict[tuple[str, int], Axes]:
    """An axes a cell, variants down and ratios across, with shared scales."""
    many = figure.subplots(len(variants), len(ratios), sharex=True, sharey=True, squeeze=False)
    cells = {}
    for row, variant in enumerate(variants):
        for column, ratio in enumerate(ratios):
            axes = many[row, column]
            axes.patch.set_alpha(0)
            axes.grid(axis="y")
            axes.set_axisbelow(True)
            axes.tick_params(length=2)
            axes.set_title(f"{variant} @ {ratio:g} %")
            cells[variant, ratio] = axes
    return cells


def _grid_size(variants: Sequence[str], ratios: Sequence[int]) -> tuple[float, float]:
    return max(4.5, 1.1 + 1.7 * len(ratios)), 1.0 + 1.4 * len(variants)


def learning_curves(
    epochs: pd.DataFrame,
    chosen: Mapping[str, str],
    metric: str,
    variants: Sequence[str],
    ratios: Sequence[int],
) -> Figure:
    """The metric against epochs, a small plot a cell: every trial thin, the chosen one bold.

    Args:
        epochs: as ``epochs.parquet``; of a cell, at most the first 60 trials are drawn.
        chosen: cell to the trial_id of its winner.
    """
    with _drawing(*_grid_size(variants, ratios)) as figure:
        grid = _grid(figure, variants, ratios)
        cells = dict(list(epochs.groupby(["variant", "label_ratio"])))
        for (variant, ratio), axes in grid.items():
            rows = cells.get((variant, ratio))
            if rows is not None:
                colour = _variant_style(variant)[0]
                _curves(axes, rows, metric, chosen.get(f"{variant}@{ratio:g}"), colour)
                axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        figure.supxlabel("epoch", fontsize=8.5)
        figure.supylabel(f"validation {METRIC_NAMES[metric]}", fontsize=8.5)
    return figure


def _curves(axes: Axes, rows: pd.DataFrame, metric: str, chosen: str | None, colour: str) -> None:
    trials = dict(list(rows.sort_values("epoch").groupby("trial_id")[["epoch", metric]]))
    others = [trials[name] for name in list(trials)[:_MOST_CURVES] if name != chosen]
    lines = LineCollection([each.to_numpy() for each in others], colors=GREY)
    lines.set(linewidth=0.7, alpha=0.55)
    axes.add_collection(lines)
    single = [each for each in others if len(each) == 1]
    for each in single:
        axes.plot(each["epoch"], each[metric], ".", ms=2.5, color=GREY)
    if chosen is not None and chosen in trials:
        best = trials[chosen]
        axes.plot(best["epoch"], best[metric], color=colour, lw=1.8, zorder=3)
    axes.autoscale_view()


_STATES = {"COMPLETE": ("o", BLUE), "PRUNED": ("v", ORANGE), "FAIL": ("x", RED)}


def lr_search(
    trials: pd.DataFrame,
    chosen: Mapping[str, float],
    metric: str,
    variants: Sequence[str],
    ratios: Sequence[int],
) -> Figure:
    """The metric of each trial against its lr, a small plot a cell; a line marks the chosen lr.

    Failed trials have no score and lie on the lower edge.

    Args:
        trials: as ``trials.parquet``.
        chosen: cell to lr.
    """
    width, height = _grid_size(variants, ratios)
    with _drawing(width, height + 0.3) as figure:
        grid = _grid(figure, variants, ratios)
        for (variant, ratio), axes in grid.items():
            cell = f"{variant}@{ratio:g}"
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(_power_of_ten)
            axes.minorticks_off()
            if cell in chosen:
                axes.axvline(chosen[cell], color=INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
            _trial_points(axes, trials[trials["cell"] == cell], metric)
        figure.supxlabel("learning rate", fontsize=8.5)
        figure.supylabel(f"validation {METRIC_NAMES[metric]}", fontsize=8.5)
        figure.legend(handles=_state_handles(trials), loc="outside upper right", ncols=4)
    return figure


def _power_of_ten(value: float, _: object) -> str:
    return f"1e{round(np.log10(value))}"  # mathtext is off


def _trial_points(axes: Axes, trials: pd.DataFrame, metric: str) -> None:
    for state, (marker, colour) in _STATES.items():
        rows = trials[trials["state"] == state]
        if state == "FAIL":
            across = axes.get_xaxis_transform()
            heights = np.full(len(rows), 0.06)
            axes.plot(rows["lr"], heights, marker, ms=4, color=colour, mew=1.1, transform=across)
        else:
            filled = colour if state == "COMPLETE" else "none"
            axes.plot(rows["lr"], rows[metric], marker, ms=3.6, color=colour, mfc=filled, mew=0.8)


def _state_handles(trials: pd.DataFrame) -> list[Line2D]:
    names = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed"}
    handles = []
    for state, (marker, colour) in _STATES.items():
        if (trials["state"] == state).any():
            filled = colour if state == "COMPLETE" else "none"
            line = Line2D([], [], marker=marker, ls="", color=colour, mfc=filled, ms=4.5)
            line.set_label(names[state])
            handles.append(line)
    handles.append(Line2D([], [], color=INK, lw=0.8, ls=(0, (4, 3)), label="chosen"))
    return handles


def autoencoder_loss(curves: pd.DataFrame) -> Figure:
    """Reconstruction loss against epochs (the paper's Fig. 1), a pair of lines an encoder.

    Args:
        curves: as ``encoder_epochs.parquet``.
    """
    with _drawing(6.4, 3.1) as figure:
        axes = _axes(figure)
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
        axes.grid(axis="y")
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
    with _drawing(7.2, max(4.2, 0.6 + 0.19 * len(names))) as figure:
        axes = _axes(figure)
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


def confusion(predictions: pd.DataFrame, species: Sequence[str]) -> Figure:
    """Share of each species' test images, over all repeats, that were called each species.

    Args:
        predictions: one cell's rows of ``predictions.parquet``.
    """
    index = pd.Index(list(species))
    true, pred = (index.get_indexer(pd.Index(predictions[name])) for name in ("true", "pred"))
    counts = np.zeros((len(species), len(species)))
    np.add.at(counts, (true, pred), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 1.9 + 0.23 * len(species))
    with _drawing(side + 0.7, side) as figure:
        axes = _axes(figure)
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


def shorten(name: str, length: int = 26) -> str:
    """A name that fits beside a plot."""
    return name if len(name) <= length else name[: length - 1] + "…"


def to_svg(figure: Figure) -> str:
    """The figure as SVG, its text as text."""
    sink = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(sink, format="svg", facecolor="none", metadata={"Date": None})
    return sink.getvalue()


def to_png(figure: Figure) -> bytes:
    """The figure as PNG on white, 160 dots an inch."""
    sink = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(sink, format="png", dpi=160, facecolor="white")
    return sink.getvalue()
