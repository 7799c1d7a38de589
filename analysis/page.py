"""What the report's page is made of: sections of text, figures and tables, and its template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis.figures import FAINT, INK, to_png, to_svg
from analysis.load import Run


@dataclass(frozen=True)
class Picture:
    """A figure on the page: at most ``widest``, and on a phone ``least``, where it scrolls."""

    name: str
    svg: Markup
    alt: str
    caption: str
    least: str
    widest: str


@dataclass(frozen=True)
class Cell:
    """A table's cell; ``key`` is what it sorts by, ``small`` a second line, ``span`` columns."""

    text: str
    style: str = ""
    key: str | None = None
    small: str = ""
    span: int = 1


@dataclass(frozen=True)
class Row:
    cells: list[Cell]
    group: bool = False  # a line above it


@dataclass(frozen=True)
class Grid:
    """A table on the page. A column whose name starts with ``<`` is text, set to the left."""

    label: str
    names: list[str]
    rows: list[Row]
    caption: str = ""
    sortable: bool = False

    @property
    def columns(self) -> list[dict[str, Any]]:
        return [{"name": name.lstrip("<"), "text": name.startswith("<")} for name in self.names]


@dataclass
class Section:
    """A part of the page: blocks of text, figures and tables in order."""

    id: str
    title: str
    blocks: list[dict[str, Any]] = field(default_factory=list)

    def text(self, text: str, style: str = "") -> None:
        self.blocks.append({"kind": "text", "text": text, "style": style})

    def note(self, text: str) -> None:
        self.text(text, "note")

    def heading(self, text: str) -> None:
        self.blocks.append({"kind": "heading", "text": text})

    def figure(self, picture: Picture) -> None:
        self.blocks.append({"kind": "figure", "figure": picture})

    def table(self, table: Grid) -> None:
        self.blocks.append({"kind": "table", "table": table})

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.blocks.append({"kind": "pairs", "pairs": pairs})

    def code(self, title: str, text: str) -> None:
        self.blocks.append({"kind": "code", "title": title, "text": text})


def draw(run: Run, name: str, caption: str, figure: Figure, least: str = "34rem") -> Picture:
    """Write a figure to ``figures/`` of a run, and return it for the page."""
    svg = to_svg(figure)
    folder = run.location / "figures"
    (folder / f"{name}.svg").write_text(svg)
    (folder / f"{name}.png").write_bytes(to_png(figure))
    widest = f"{figure.get_figwidth() * 120:.0f}px"
    return Picture(name, inline_svg(name, svg), caption.split(". ")[0], caption, least, widest)


def render(content: Mapping[str, Any]) -> str:
    """The page. The template escapes every text; figures alone are taken as they are."""
    template = files("analysis").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(content)


def inline_svg(name: str, svg: str) -> Markup:
    """A figure's SVG as part of a page: it takes the page's ink, and ids of its own."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = body.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    return Markup(body)  # matplotlib has escaped the texts
