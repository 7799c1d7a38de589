"""The report: tables, figures, and one HTML page, from the records of a run alone.

records -> scores -> Table I, differences -> figures -> sections -> report.html
"""

from __future__ import annotations

from pathlib import Path

from analysis import page, tables
from analysis.answer import answer
from analysis.load import Run, load
from analysis.results import Results
from analysis.sections import SECTIONS, headline
from data.storage import Location


def write_report(run: str | Path | Location) -> Location:
    """Write tables, figures, ``answer.txt`` and ``report.html`` of a run, finished or not.

    Returns:
        Where ``report.html`` lies.

    Raises:
        InputError: it is not the folder of a run, or a record is torn.
    """
    results = Results(load(run))
    write_tables(results)
    sentences = answer(results.run, results.table, results.contrasts)
    (results.run.location / "answer.txt").write_text("\n".join(sentences) + "\n")
    file = results.run.location / "report.html"
    file.write_text(render_report(results))
    return file


def write_tables(results: Results) -> None:
    """``table_i.csv``, ``.md``, ``.tex`` and ``encoders.csv``; no Table I without evaluation."""
    run = results.run
    if len(results.table):
        text = tables.caption(run)
        (run.location / "table_i.csv").write_text(tables.to_csv(results.table))
        (run.location / "table_i.md").write_text(tables.to_markdown(results.table, text))
        (run.location / "table_i.tex").write_text(tables.to_latex(results.table, text))
    (run.location / "encoders.csv").write_text(tables.to_csv(results.encoders))


def render_report(results: Results) -> str:
    """``report.html``, as text; its figures are written to ``figures/``."""
    run = results.run
    found = [section for make in SECTIONS if (section := make(results)) is not None]
    content = {
        "title": f"Mariposa: {run.name}",
        "name": run.name,
        "meta": _meta(run),
        "answer": answer(run, results.table, results.contrasts),
        "warnings": _warnings(run),
        "headline": headline(results),
        "sections": found,
    }
    return page.render(content)


def _meta(run: Run) -> list[str]:
    parts = [f"{len(run.cells)} cells, {len(run.trials):,} trials", run.state.lower()]
    parts.append(f"{len(run.species)} species")
    if run.counts:
        parts.append(", ".join(f"{count:,} {split}" for split, count in run.counts.items()))
    return [*parts, str(run.study.get("started") or "")[:16].replace("T", " ")]


def _warnings(run: Run) -> list[str]:
    found = []
    if run.state != "COMPLETE":
        found.append(f"This study is {run.state}: the page shows what its records hold so far.")
    failed = int((run.trials["state"] == "FAIL").sum())
    if failed:
        found.append(f"{failed:,} of {len(run.trials):,} trials failed; the reasons are below.")
    return found
