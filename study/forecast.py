"""How long a study would take on so many GPUs or CPUs, by simulation over a run's epochs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from data.storage import InputError
from study.cells import all_trained_cells, cells_of
from study.config import Config, differences, grown
from study.measured import Measured
from study.planning import count_images, encoder_key, gpu_share
from study.progress import clock
from study.simulation import Curves, Outcome, simulate, studies_of, trials_of

SIZES = (1, 2, 4, 8, 16)
HARDLY = 0.1  # of the time: a larger size that saves less is said to help hardly


@dataclass(frozen=True)
class Size:
    """So many GPUs or CPUs, and the trials that run on them at once."""

    count: int
    slots: int


def sizes(config: Config, unit: str, counts: tuple[int, ...]) -> list[Size]:
    """How many trials run at once on so many GPUs or CPUs.

    Args:
        unit: ``GPUs`` or ``CPUs``.

    Raises:
        InputError: a trial needs more than the largest of them, or no GPU.
    """
    found = [Size(n, slots) for n in counts if (slots := _slots(config, unit, n))]
    if not found:
        key = "cpus_per_trial" if unit == "CPUs" else "gpus_per_trial"
        each = getattr(config.resources, key)
        expected = f"at least {each:g} {unit} for a trial" if each else "a number above 0"
        raise InputError(
            f"resources.{key}: found {each:g} with {max(counts)} {unit}, expected {expected}"
        )
    return found


def _slots(config: Config, unit: str, count: int) -> int:
    limit = config.resources.max_concurrent
    most = 10**9 if limit == "auto" else limit
    if unit == "CPUs":
        return min(most, count // config.resources.cpus_per_trial)
    share = _share(config)
    fit = count * int(1 / share + 1e-9) if 0 < share <= 1 else int(count / share) if share else 0
    return min(most, fit)


def _share(config: Config) -> float:
    gpus = config.resources.gpus_per_trial
    return gpu_share(config) if gpus == "auto" else gpus


def forecast(
    config: Config, measured: Measured, unit: str = "CPUs", counts: tuple[int, ...] = SIZES
) -> list[str]:
    """Lines that say how long the study would take on each size.

    Args:
        config: the study.
        measured: a run's records.
        unit: ``GPUs`` or ``CPUs``.
        counts: how many of them.

    Raises:
        InputError: ``data.root`` is no image folder, or no trial fits.
    """
    curves = Curves(config, count_images(config), measured)
    asked = sizes(config, unit, counts)
    outcomes = {size: simulate(curves, size.slots) for size in asked}
    lines = [_source(curves), _start_up(measured), "", *_table(unit, outcomes), ""]
    lines += _where_it_ends(unit, outcomes) + _at_least(curves)
    return lines + _beside(curves) + _notes(curves, unit)


def _source(curves: Curves) -> str:
    measured = curves.measured
    return (
        f"forecast    {studies_of(curves.config)} simulated studies a row, over "
        f"{measured.epochs:,} epochs of "
        f"{measured.run} ({measured.machine}; {measured.side_by_side} trials side by side)"
    )


def _start_up(measured: Measured) -> str:
    overhead = measured.overhead
    whose = "as in that run" if overhead.measured else "the usual ones"
    return (
        f"start-up    {overhead.fixed:.0f} s for Ray and the features, {overhead.worker:.0f} s for "
        f"each new process ({whose}); without decoding the images, and the report"
    )


def _table(unit: str, outcomes: dict[Size, list[Outcome]]) -> list[str]:
    head = ("wall time", "range", "search", "evaluation", "busy", f"{unit[:-1]} hours")
    lines = [f"{unit:>5} {'at once':>8}" + "".join(f"{name:>{_WIDTH[name]}}" for name in head[:5])]
    lines[0] += f"{head[5]:>11}"
    for size, ran in outcomes.items():
        walls = [one.wall for one in ran]
        busy = fmean(one.busy / (one.wall * size.slots) for one in ran)
        cells = {
            "wall time": clock(fmean(walls)),
            "range": f"{clock(min(walls))} to {clock(max(walls))}",
            "search": clock(fmean(one.search for one in ran)),
            "evaluation": clock(fmean(one.evaluation for one in ran)),
            "busy": f"{busy:.0%}",
        }
        line = f"{size.count:>5} {size.slots:>8}"
        line += "".join(f"{text:>{_WIDTH[name]}}" for name, text in cells.items())
        lines.append(line + f"{_hours(size.count * fmean(walls)):>11}")
    return lines


_WIDTH = {"wall time": 11, "range": 20, "search": 10, "evaluation": 12, "busy": 6}


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g}"


def _where_it_ends(unit: str, outcomes: dict[Size, list[Outcome]]) -> list[str]:
    """The size after which more of them hardly help."""
    means = [(size, fmean(one.wall for one in ran)) for size, ran in outcomes.items()]
    for (size, wall), (larger, shorter) in pairwise(means):
        if shorter > (1 - HARDLY) * wall:
            saved = max(0.0, 1 - shorter / wall)
            return [
                f"more than {size.count} {unit} hardly help: {larger.count} would save "
                f"{saved:.0%} of the time"
            ]
    if len(means) > 1:
        return [f"each step up to {means[-1][0].count} {unit} saves over {HARDLY:.0%} of the time"]
    return []


def _at_least(curves: Curves) -> list[str]:
    wall = simulate(curves, trials_of(curves.config), studies=1)[0].wall
    return [f"at best, with all trials at once: {clock(wall)}"]


def _beside(curves: Curves) -> list[str]:
    """What the run itself took, where it is the same study."""
    measured, config = curves.measured, curves.config
    took = measured.took
    if took is None or not same_study(measured.config, config):
        return []
    parts = ""
    if took.search is not None and took.evaluation is not None:
        rest = took.seconds - took.search - took.evaluation
        parts = f" (search {clock(took.search)}, evaluation {clock(took.evaluation)}"
        parts += f", start-up and features {clock(rest)})"
    walls = [one.wall for one in simulate(curves, measured.side_by_side)]
    return [
        f"that run took {clock(took.seconds)}{parts} with {measured.side_by_side} at once; "
        f"forecast for as many: {clock(fmean(walls))} ({clock(min(walls))} to {clock(max(walls))})"
    ]


def same_study(run: Config, config: Config) -> bool:
    """Whether a run did what the configuration says, apart from its name and resources."""
    return not (differences(run, config) or grown(run, config))


def _notes(curves: Curves, unit: str) -> list[str]:
    """Where the forecast goes beyond what was measured."""
    measured, config = curves.measured, curves.config
    notes = []
    others = [(cell, curves.source(cell)) for cell in cells_of(config)]
    stand_in = [f"{cell.name} by {other.name}" for cell, other in others if cell != other]
    if stand_in:
        notes.append(f"not in that run, scaled by images: {', '.join(stand_in)}")
    if curves.size != 1:
        notes.append(f"an image costs {curves.size:.3g} times as much (pixels × width): a guess")
    longer, then = config.training.max_epochs, measured.config.training.max_epochs
    if longer > then:
        notes.append(
            f"epochs after {then} were not measured: trials are taken to go on to {longer}"
        )
    needs = any(encoder_key(config, cell, None) for cell in all_trained_cells(config))
    if needs and not measured.encoders:
        notes.append("no encoder was finished there: its time is a guess from the classifiers'")
    if config.evaluation.repeats and not measured.repeats:
        notes.append("no repeat was evaluated there: repeats are taken to cost what trials do")
    if unit == "GPUs":
        notes.append(
            "epochs take what they took there: for GPUs, measure on one of them, with as many "
            "trials on it"
        )
    return [f"note: {note}" for note in notes]
