"""The section about how the study was run: configuration, data, cost, failures, versions."""

from __future__ import annotations

import yaml

from analysis import course, tables
from analysis.figures import search as figures_search
from analysis.leaderboard import first_line
from analysis.load import Run
from analysis.page import Cell, Grid, Row, Section
from analysis.sections.shown import Shown
from analysis.wording import NONE, metric_name, percents


def run_section(shown: Shown) -> Section:
    """Facts, cost, failures, configuration. Never empty: every study has a configuration."""
    run = shown.run
    section = Section("how", "How it was run")
    section.pairs(_facts(run))
    if len(run.trials):
        section.heading("Cost")
        section.table(_cost_grid(run))
    _add_occupancy(section, run)
    failed = run.trials[run.trials["state"] == "FAIL"]
    if len(failed):
        section.heading("Failures")
        section.table(_failures_grid(run))
    section.heading("Configuration")
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    section.code("The whole configuration", text)
    return section


def _facts(run: Run) -> list[tuple[str, str]]:
    data, config = run.study["data"], run.config
    search, metric = config.get("search", {}), metric_name(run.metric)
    counts = ", ".join(f"{count:,} {split}" for split, count in run.counts.items())
    seconds = run.study.get("seconds")
    versions = run.study.get("versions") or {}
    return [
        ("Data", f"{data.get('root') or 'drawn by Mariposa'}, {data.get('image_size', '?')} px"),
        ("Images", counts or NONE),
        ("Data fingerprint", str(data.get("fingerprint", NONE))),
        ("Labels", f"{percents(run.label_ratios)} of train, {tables.validation_note(run)}"),
        ("Search", f"{search.get('trials', '?')} trials a cell, by validation {metric}{_cut(run)}"),
        ("Repeats", str(tables.configured_repeats(run))),
        ("Seed", str(config.get("seed", NONE))),
        ("Started", str(run.study.get("started", NONE))),
        ("Wall time", NONE if seconds is None else duration(float(seconds))),
        ("Machine", str(run.study.get("machine", NONE))),
        ("Commit", str(run.study.get("commit") or NONE)),
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions.items()) or NONE),
    ]


def _cut(run: Run) -> str:
    if not run.out_of_time:
        return ""
    seconds = float(run.config["search"]["max_seconds"])
    return f"; ended by search.max_seconds after {duration(seconds)}: {len(run.trials):,} trials"


def duration(seconds: float) -> str:
    """``5 min 12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _cost_grid(run: Run) -> Grid:
    rows, before = [], None
    for cell, _, ratio in run.cells:
        rows.append(Row(_cost_cells(run, cell), group=before not in (None, ratio)))
        before = ratio
    names = ["<Cell", "Trials", "Complete", "Pruned", "Failed"]
    names += ["Search epochs", "Search s", "Test epochs", "Test s"]
    caption = "Seconds are of one trial’s own time, summed over trials that ran side by side."
    counts = run.trials["cell"].value_counts()
    if len({int(counts.get(cell, 0)) for cell, _, _ in run.cells}) == 1:
        caption = f"Cells have the same number of trials, not of epochs or seconds. {caption}"
    return Grid("Cost of each cell", names, rows, caption)


def _cost_cells(run: Run, cell: str) -> list[Cell]:
    trials = run.trials[run.trials["cell"] == cell]
    states, spent = trials["state"].value_counts(), tables.spent(run, cell)
    cells = [Cell(cell, "t"), Cell(f"{spent['trials']:,}", key=f"cost {cell} trials")]
    for state in ("COMPLETE", "PRUNED", "FAIL"):
        count = int(states.get(state, 0))
        cells.append(Cell(f"{count:,}", key=f"cost {cell} {state}"))
    for stage, name in (("search", "trials"), ("final", "evaluations")):
        for column, form in (("epochs", ",.0f"), ("seconds", ",.1f")):
            total = format(spent[f"{stage}_{column}"], form)
            cells.append(Cell(total, key=f"cost {cell} {name} {column}"))
    return cells


def _failures_grid(run: Run) -> Grid:
    failed = run.trials[run.trials["state"] == "FAIL"]
    reasons = failed.assign(reason=failed["error"].map(first_line))
    groups = reasons.groupby(["cell", "reason"], sort=True)["trial_id"]
    rows = []
    for (cell, reason), ids in groups:
        count = Cell(f"{len(ids):,}", key=f"failures {cell} {reason}")
        rows.append(Row([Cell(str(cell), "t"), count, Cell(str(reason) or NONE, "long")]))
    return Grid("Failed trials", ["<Cell", "Trials", "<Reason"], rows)


def _add_occupancy(section: Section, run: Run) -> None:
    work = course.work(run)
    if work.empty:
        return
    caption = "How many epochs each node trained at the same time, while the study ran."
    section.figure("occupancy", caption, figures_search.occupancy(work), "40rem")
