"""The report: tables, figures and one HTML page, from the records of a run alone.

records -> scores -> Table I, differences -> figures -> sections -> report.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis import page, tables
from analysis.caveats import caveats
from analysis.figures.drawing import to_png, to_svg
from analysis.figures.errors import confused_pairs
from analysis.load import Run, load
from analysis.results import Results
from analysis.sections import SECTIONS, headline
from analysis.sections.shown import Shown
from analysis.wording import counted
from data.storage import Location


def write_report(run: str | Path | Location) -> Location:
    """Write tables, figures, ``answer.txt`` and ``report.html`` of a run, finished or not.

    Returns:
        Where ``report.html`` lies.

    Raises:
        InputError: it is not the folder of a run, or a record is torn.
    """
    shown = Shown(Results(load(run)))
    found = content(shown)
    write_tables(shown.results)
    write_figures(shown, found)
    (shown.run.location / "answer.txt").write_text("\n".join(found["answer"]) + "\n")
    file = shown.run.location / "report.html"
    file.write_text(page.render(found))
    return file


def write_tables(results: Results) -> None:
    """Write Table I, if there is one, as ``table_i.csv``, ``.md`` and ``.tex``, and all others."""
    run = results.run
    if len(results.table):
        text = tables.caption(run)
        written = results.table.drop(columns=tables.TIMED)
        (run.location / "table_i.csv").write_text(tables.to_csv(written))
        (run.location / "table_i.md").write_text(tables.to_markdown(results.table, text))
        (run.location / "table_i.tex").write_text(tables.to_latex(results.table, text))
    (run.location / "encoders.csv").write_text(tables.to_csv(results.encoders))
    results.write()


def write_figures(shown: Shown, found: dict[str, Any]) -> None:
    """Write ``figures/``: those of the page and the confused pairs, as SVG and PNG."""
    made = {picture.name: (picture.figure, picture.svg) for picture in page.pictures(found)}
    if len(shown.confused) and shown.pictures:
        pairs = confused_pairs(shown.confused, lambda file: shown.pictures.thumbnail(file, 96))
        made["confused_pairs"] = (pairs, to_svg(pairs))
    folder = shown.run.location / "figures"
    for name, (figure, svg) in made.items():
        (folder / f"{name}.svg").write_text(svg)
        (folder / f"{name}.png").write_bytes(to_png(figure))
    for file in folder.children():  # left by an earlier report, from fewer records
        if file.name.rpartition(".")[0] not in made:
            file.delete()


def content(shown: Shown) -> dict[str, Any]:
    """What the page shows, for `page.render`. Writes nothing but the caches of maps and probes."""
    run, results = shown.run, shown.results
    return {
        "title": f"Mariposa: {run.name}",
        "name": run.name,
        "meta": _meta(run),
        "answer": results.answer,
        "warnings": caveats(run),
        "headline": headline(shown),
        "sections": [section for make in SECTIONS if (section := make(shown)) is not None],
        "thumbnails": shown.thumbnails.style(),
    }


def _meta(run: Run) -> list[str]:
    parts = [f"{counted(len(run.cells), 'cell')}, {counted(len(run.trials), 'trial')}"]
    parts.append(run.state.lower())
    parts.append(f"{len(run.species)} species")
    if run.counts:
        parts.append(", ".join(f"{count:,} {split}" for split, count in run.counts.items()))
    return [*parts, str(run.study.get("started") or "")[:16].replace("T", " ")]
