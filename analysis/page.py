"""The report's page: sections of text, figures, tables and charts, and the template around them.

The page is one file that contains styles, scripts and data; its own policy (CSP) forbids the
browser to load anything else. The ``data-key`` of a number says where it comes from, such as
``table_i B1@25 test_acc``; the second line in its cell has the same key with `` small``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis.figures.drawing import FAINT, INK, to_png, to_svg

SCRIPTS = (
    "echarts.min.js",
    "tabulator.min.js",
    "page.js",
    "efficiency.js",
    "trials.js",
    "latents.js",
    "live.js",
)
MOST_SHAPES = 300_000  # characters of SVG
STYLES = ("tabulator_simple.min.css", "report.css")


@dataclass(frozen=True)
class Picture:
    """A figure on the page: at most ``widest`` wide, and at least ``least``: phones scroll it.

    ``stands_in``: a chart takes its place if scripts run, but not in print.
    """

    name: str
    figure: Figure
    svg: str
    caption: str
    least: str
    stands_in: bool = False

    @property
    def inline(self) -> Markup:
        """As SVG; as PNG if it is for print alone and has too many shapes."""
        if self.stands_in and len(self.svg) > MOST_SHAPES:
            content = base64.b64encode(to_png(self.figure)).decode()
            return Markup('<img alt="" src="data:image/png;base64,{}">').format(content)
        return inline_svg(self.name, self.svg)

    @property
    def alt(self) -> str:
        return self.caption.split(". ")[0]

    @property
    def widest(self) -> str:
        return f"{self.figure.get_figwidth() * 110:.0f}px"


@dataclass(frozen=True)
class Cell:
    """A cell of a table: ``key`` is its ``data-key``, ``small`` a second line."""

    text: str
    style: str = ""
    key: str = ""
    small: str = ""
    span: int = 1


@dataclass(frozen=True)
class Row:
    cells: list[Cell]
    group: bool = False  # a line above it


@dataclass(frozen=True)
class Grid:
    """A table on the page. A column whose name starts with ``<`` is text, left-aligned.

    ``groups``: headings above the names, each with the number of columns that it spans.
    ``folded``: closed at first, but shown in print. ``stands_in``: as for `Picture`.
    """

    label: str
    names: list[str]
    rows: list[Row]
    caption: str = ""
    groups: Sequence[tuple[str, int]] = ()
    folded: bool = False
    stands_in: bool = False

    @property
    def columns(self) -> list[dict[str, Any]]:
        return [{"name": name.lstrip("<"), "text": name.startswith("<")} for name in self.names]


@dataclass
class Section:
    """A part of the page: blocks of text, figures, tables and charts in order."""

    id: str
    title: str
    blocks: list[dict[str, Any]] = field(default_factory=list)

    def text(self, text: str, style: str = "", key: str = "") -> None:
        """A paragraph; ``key`` if all its numbers come from one place."""
        self.blocks.append({"kind": "text", "text": text, "style": style, "key": key})

    def note(self, text: str) -> None:
        self.text(text, "note")

    def heading(self, text: str) -> None:
        self.blocks.append({"kind": "heading", "text": text})

    def figure(
        self,
        name: str,
        caption: str,
        figure: Figure,
        least: str = "34rem",
        stands_in: bool = False,
    ) -> None:
        """A figure with its caption; ``least`` and ``stands_in`` as for `Picture`."""
        picture = draw(name, caption, figure, least, stands_in)
        self.blocks.append({"kind": "figure", "figure": picture})

    def table(self, table: Grid) -> None:
        self.blocks.append({"kind": "table", "table": table})

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.blocks.append({"kind": "pairs", "pairs": pairs})

    def answers(self, rows: Sequence[Mapping[Any, Any]]) -> None:
        """Questions: ``name question verdict text``."""
        self.blocks.append({"kind": "answers", "rows": rows})

    def code(self, title: str, text: str) -> None:
        self.blocks.append({"kind": "code", "title": title, "text": text})

    def chart(self, name: str, data: Mapping[str, Any]) -> None:
        """One of the charts in ``static``, with its data."""
        self.blocks.append({"kind": "chart", "name": name, "data": data})

    def album(self, rows: Sequence[tuple[str, Sequence[Markup]]]) -> None:
        """Rows of images, each with its caption."""
        self.blocks.append({"kind": "album", "rows": rows})


def keyed(text: str, key: str) -> Markup:
    """A number in running text, with its ``data-key``."""
    return Markup('<span data-key="{}">{}</span>').format(key, text)


def draw(name: str, caption: str, figure: Figure, least: str, stands_in: bool = False) -> Picture:
    """A figure for the page."""
    return Picture(name, figure, to_svg(figure), caption, least, stands_in)


def pictures(content: Mapping[str, Any]) -> Iterator[Picture]:
    """Every figure of a page."""
    if content["headline"]:
        yield content["headline"]
    for section in content["sections"]:
        yield from (block["figure"] for block in section.blocks if block["kind"] == "figure")


def render(content: Mapping[str, Any]) -> str:
    """The page. The template escapes all text except figures."""
    charts = [b for s in content["sections"] for b in s.blocks if b["kind"] == "chart"]
    scripts = [script(name) for name in SCRIPTS]
    extra = {
        "data": {block["name"]: to_json(block["data"]) for block in charts},
        "scripts": [Markup(text) for text in scripts],
        "styles": [Markup(static(name)) for name in STYLES],
        "policy": policy(scripts),
    }
    return _template().render(content, **extra)


@cache
def _template() -> Any:
    source = files("analysis").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


@cache
def static(name: str) -> str:
    """A file of ``analysis/static``, without its reference to a source map, which is not there."""
    text = files("analysis").joinpath("static", name).read_text(encoding="utf-8")
    return re.sub(r"(//|/\*)# sourceMappingURL=.*", "", text).strip()


def script(name: str) -> str:
    """A script, escaped for use inside a page."""
    return static(name).replace("</script", r"<\/script").replace("<!--", r"<\!--")


def policy(scripts: Sequence[str]) -> str:
    """Only these scripts run, and nothing is loaded (https://www.w3.org/TR/CSP3/)."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{text}'" for text in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def to_json(data: Mapping[str, Any]) -> Markup:
    """Data as JSON, escaped for use inside a script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def inline_svg(name: str, svg: str) -> Markup:
    """A figure's SVG for use inside a page: with the page's colours and with unique ids."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = body.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    return Markup(body)  # matplotlib has escaped the texts
