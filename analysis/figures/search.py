"""Figures of the search: learning curves, learning rates, rungs, importance, occupancy.

Each function takes a table and returns a matplotlib Figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.course import KINDS, busy
from analysis.figures.drawing import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    SKY,
    cell_grid,
    cell_grid_size,
    drawing,
    horizontal_grid,
    variant_styles,
)
from analysis.load import cut_short, stopped_by_rung
from analysis.variants import cell_name
from analysis.wording import metric_name, shorten

_MOST_CURVES = 60  # per cell; more are indistinguishable and make the page large
_MOST_POINTS = 100  # per cell and fate as vector shapes; more become an image


def learning_curves(
    epochs: pd.DataFrame,
    chosen: Mapping[str, str],
    metric: str,
    variants: Sequence[str],
    ratios: Sequence[int],
) -> Figure:
    """The metric against epochs, one small plot per cell: all trials thin, the chosen one bold.

    Args:
        epochs: as ``epochs.parquet``; at most the first 60 trials of a cell are drawn.
        chosen: cell to the trial_id of its winner.
    """
    with drawing(*cell_grid_size(variants, ratios)) as figure:
        grid, styles = cell_grid(figure, variants, ratios), variant_styles(variants)
        cells = dict(list(epochs.groupby(["variant", "label_ratio"])))
        for (variant, ratio), axes in grid.items():
            rows = cells.get((variant, ratio))
            if rows is not None:
                colour = styles[variant][0]
                _curves(axes, rows, metric, chosen.get(cell_name(variant, ratio)), colour)
                axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        figure.supxlabel("epoch")
        figure.supylabel(f"validation {metric_name(metric)}")
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
        style: Any = {"marker": "o" if len(best) == 1 else None, "ms": 4, "lw": 1.8, "zorder": 3}
        axes.plot(best["epoch"], best[metric], color=colour, **style)
    axes.autoscale_view()


def lr_search(
    trials: pd.DataFrame,
    chosen: Mapping[str, float],
    metric: str,
    variants: Sequence[str],
    ratios: Sequence[int],
    searched: Sequence[float],
    rungs: Sequence[int] = (),
) -> Figure:
    """The metric of each trial against its lr, one small plot per cell; a line marks the chosen lr.

    The size of a stopped trial's marker shows the rung. Failed trials have no score and are drawn
    at the lower edge.

    Args:
        trials: as ``trials.parquet``.
        chosen: cell to lr.
        searched: the least and the largest lr that could be tried: the range of the axis.
        rungs: what `analysis.course.rungs` gives.
    """
    width, height = cell_grid_size(variants, ratios)
    kinds, (low, high) = _fates(trials, rungs), searched
    beyond = max((high / low) ** 0.05, 1.05)
    with drawing(width, height + 0.3) as figure:
        grid = cell_grid(figure, variants, ratios)
        for (variant, ratio), axes in grid.items():
            cell = cell_name(variant, ratio)
            axes.set_xscale("log")
            axes.set_xlim(low / beyond, high * beyond)
            axes.set_xticks(_lr_ticks(low, high), minor=False)
            axes.xaxis.set_major_formatter(_short_power)
            axes.minorticks_off()
            if cell in chosen:
                axes.axvline(chosen[cell], color=INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
            for fate, rows in kinds:
                _points(axes, rows[rows["cell"] == cell], metric, fate)
        figure.supxlabel("learning rate")
        figure.supylabel(f"validation {metric_name(metric)}")
        handles = [fate.handle() for fate, rows in kinds if len(rows)]
        line = Line2D([], [], color=INK, lw=0.8, ls=(0, (4, 3)), label="chosen")
        columns = 3 if width < 6 else 6
        figure.legend(handles=[*handles, line], loc="outside upper right", ncols=columns)
    return figure


@dataclass(frozen=True)
class _Fate:
    """How a trial ended, and how that is drawn."""

    name: str
    marker: str
    colour: str
    size: float
    filled: bool

    @property
    def style(self) -> dict[str, Any]:
        face = self.colour if self.filled else "none"
        line = {"ls": "", "color": self.colour, "mfc": face, "mew": 0.9}
        return {"marker": self.marker, "ms": self.size, **line}

    def handle(self) -> Line2D:
        return Line2D([], [], label=self.name, **self.style)


_FATES = {
    "PRUNED": _Fate("stopped", "v", ORANGE, 3.6, False),
    "COMPLETE": _Fate("complete", "o", BLUE, 3.6, True),
    "FAIL": _Fate("failed", "x", RED, 4.0, True),
}


def _fates(trials: pd.DataFrame, rungs: Sequence[int]) -> list[tuple[_Fate, pd.DataFrame]]:
    """Trials by how they ended: at a rung, out of time, complete, or by an error."""
    stopped = trials[stopped_by_rung(trials)]
    at = np.searchsorted(np.asarray(rungs), stopped["epochs"], side="right")
    found = []
    for number in range(len(rungs) + 1):
        name = f"stopped at epoch {rungs[number - 1]}" if number else "stopped early"
        size = 2.6 + 2.4 * number / max(len(rungs), 1)
        found.append((_Fate(name, "v", ORANGE, size, False), stopped[at == number]))
    found.append((_Fate("out of time", "s", GREY, 3.4, False), trials[cut_short(trials)]))
    for state in ("COMPLETE", "FAIL"):
        found.append((_FATES[state], trials[trials["state"] == state]))
    return found


def _points(axes: Axes, trials: pd.DataFrame, metric: str, fate: _Fate) -> None:
    many = len(trials) > _MOST_POINTS
    if fate.name == "failed":
        heights = np.full(len(trials), 0.06)
        axes.plot(trials["lr"], heights, transform=axes.get_xaxis_transform(), **fate.style)
    else:
        axes.plot(trials["lr"], trials[metric], rasterized=many, **fate.style)


def _lr_ticks(low: float, high: float) -> list[float]:
    """The powers of ten in the range; the ends if there are fewer than two."""
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**power for power in powers] if len(powers) > 1 else [low, high]


def _short_power(value: float, _: object) -> str:
    """``1e-4``, ``2.5e-4``; mathtext is off."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def rungs_over_time(
    epochs: pd.DataFrame, trials: pd.DataFrame, rungs: Sequence[int], max_epochs: int
) -> Figure:
    """Above, each trial of the search from its start to its end; below, the epochs this took.

    Faint lines are ASHA's rungs. The area below is what they saved: the epochs that stopped
    trials had left, counted when they were stopped.

    Args:
        epochs: as ``epochs.parquet``; rows without ``ended`` are left out.
        trials: as ``trials.parquet``.
        rungs: what `analysis.course.rungs` gives.
        max_epochs: the most that a trial may train.
    """
    known = epochs[epochs["ended"].notna()].sort_values("ended", kind="stable")
    begun = known["ended"] - known["seconds"]
    unit, name = time_unit(float((known["ended"] - begun.min()).max()) if len(known) else 1.0)
    known = known.assign(begun=(begun - begun.min()) / unit)
    known["ended"] = (known["ended"] - begun.min()) / unit
    with drawing(6.8, 4.6) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _trial_lines(above, known, trials, rungs)
        _epochs_saved(below, known, trials, max_epochs)
        above.set(ylabel="epoch of the trial", xlim=(0, None), ylim=(0, None))
        below.set(xlabel=f"{name} since the search began", ylabel="epochs of all", ylim=(0, None))
        figure.legend(handles=_line_handles(trials, rungs), loc="outside upper left", ncols=4)
    return figure


def time_unit(seconds: float) -> tuple[float, str]:
    """A unit for an axis of that many seconds: its length in seconds, and its name."""
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def _trial_lines(
    axes: Axes, epochs: pd.DataFrame, trials: pd.DataFrame, rungs: Sequence[int]
) -> None:
    for rung in rungs:
        axes.axhline(rung, color=FAINT, lw=0.8, ls=(0, (4, 3)), zorder=0)
    states = trials.set_index("trial_id")["state"]
    last = epochs.drop_duplicates("trial_id", keep="last").set_index("trial_id")
    lines = []
    for _, rows in epochs.groupby("trial_id", sort=False):
        start = (rows["begun"].iloc[0], rows["epoch"].iloc[0] - 1)
        lines.append(np.array([start, *zip(rows["ended"], rows["epoch"], strict=True)]))
    many = len(lines) > _MOST_LINES
    drawn = LineCollection(lines, colors=GREY, linewidths=0.8, alpha=0.7, rasterized=many)
    axes.add_collection(drawn)
    for state, fate in _FATES.items():
        ends = last[states.reindex(last.index) == state]
        axes.plot(ends["ended"], ends["epoch"], rasterized=many, **fate.style)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.autoscale_view()


_MOST_LINES = 2000  # of trials as vector shapes; more become an image
_MOST_STEPS = 1500  # of a curve; more are invisible


def _line_handles(trials: pd.DataFrame, rungs: Sequence[int]) -> list[Line2D]:
    states = set(trials["state"])
    handles = [fate.handle() for state, fate in _FATES.items() if state in states]
    if rungs:
        handles.append(Line2D([], [], color=GREY, lw=0.8, ls=(0, (4, 3)), label="rung"))
    return handles


def _epochs_saved(axes: Axes, epochs: pd.DataFrame, trials: pd.DataFrame, max_epochs: int) -> None:
    ended = epochs["ended"].to_numpy()
    trained = np.arange(1, len(ended) + 1)
    stopped = trials.loc[stopped_by_rung(trials), "trial_id"]
    last = epochs.drop_duplicates("trial_id", keep="last")
    left = (max_epochs - last["epoch"]).where(last["trial_id"].isin(stopped), 0).clip(lower=0)
    saved = left.reindex(epochs.index, fill_value=0).to_numpy().cumsum()
    drawn = np.arange(len(ended))[:: -(1 + len(ended) // _MOST_STEPS)][::-1]  # and the last
    ended, trained, saved = ended[drawn], trained[drawn], saved[drawn]
    axes.fill_between(ended, trained, trained + saved, color=ORANGE, alpha=0.18, lw=0, step="post")
    axes.step(ended, trained + saved, where="post", color=ORANGE, lw=1.2, ls=(0, (4, 2)))
    axes.step(ended, trained, where="post", color=BLUE)
    horizontal_grid(axes)
    if len(ended):
        ends = [
            (trained[-1], "trained", "top"),
            (trained[-1] + saved[-1], "at most", "bottom"),
        ]
        for height, name, side in ends if saved[-1] else ends[:1]:
            place: Any = {"va": side, "xytext": (4, 0), "textcoords": "offset points"}
            axes.annotate(f"{height:,}\n{name}", (ended[-1], height), **place)


def importance(shares: pd.DataFrame) -> Figure:
    """How much of the score's variation is due to each factor and each interaction: bars.

    Args:
        shares: `analysis.importance.Importance.shares`.
    """
    with drawing(5.6, 0.8 + 0.3 * max(len(shares), 1)) as figure:
        axes = figure.add_subplot()
        colours = [SKY if "×" in name else BLUE for name in shares["factors"]]
        bars = axes.barh(shares["factors"], 100 * shares["share"].astype(float), color=colours)
        axes.bar_label(bars, [_percent(share) for share in shares["share"]], padding=3)
        axes.invert_yaxis()
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("percent of the variance")
        axes.margins(x=0.08)
    return figure


def _percent(share: float) -> str:
    return "< 1" if share < 0.005 else f"{100 * share:.0f}"


_KIND_STYLE = {"encoders": (GREEN, "///"), "search": (BLUE, ""), "evaluation": (ORANGE, "\\\\\\")}
_TIME_BINS = 240
_MOST_NODES = 12


def occupancy(work: pd.DataFrame) -> Figure:
    """How many epochs each node trained at the same time, while the study ran.

    More than 12 nodes are shown as one.

    Args:
        work: what `analysis.course.work` gives.
    """
    if work["node"].nunique() > _MOST_NODES:
        work = work.assign(node=f"all {work['node'].nunique()} nodes")
    nodes = sorted(pd.unique(work["node"]))
    begun = float(work["start"].min()) if len(work) else 0.0
    ended = float(work["end"].max()) if len(work) else 1.0
    unit, name = time_unit(ended - begun)
    edges = np.linspace(begun, ended, _TIME_BINS + 1)
    with drawing(6.8, 1.1 + 1.15 * max(len(nodes), 1)) as figure:
        many = figure.subplots(max(len(nodes), 1), 1, sharex=True, sharey=True, squeeze=False)
        for node, axes in zip(nodes, many[:, 0], strict=False):
            parts = busy(work[work["node"] == node], edges)
            _stack(axes, (edges - begun) / unit, parts)
            mean = sum(part.mean() for part in parts.values())
            axes.set_title(f"{shorten(node, 60)}: {mean:.2f} on average")
        for axes in many[:, 0]:
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        figure.supylabel("epochs at the same time")
        many[-1, 0].set_xlabel(f"{name} since the study began")
        figure.legend(handles=_kind_handles(work), loc="outside upper left", ncols=3)
    return figure


def _stack(axes: Axes, edges: np.ndarray, parts: Mapping[str, np.ndarray]) -> None:
    floor = np.zeros(len(edges) - 1)
    for kind in KINDS:
        colour, hatch = _KIND_STYLE[kind]
        style: Any = {"facecolor": colour, "alpha": 0.75, "hatch": hatch, "edgecolor": "none"}
        axes.stairs(floor + parts[kind], edges, baseline=floor, fill=True, **style)
        floor = floor + parts[kind]
    axes.set_xlim(edges[0], edges[-1])
    horizontal_grid(axes)


def _kind_handles(work: pd.DataFrame) -> list[Patch]:
    shown = set(work["kind"])
    style = [(kind, *_KIND_STYLE[kind]) for kind in KINDS if kind in shown]
    return [
        Patch(facecolor=colour, edgecolor="none", alpha=0.75, hatch=hatch, label=kind)
        for kind, colour, hatch in style
    ]
