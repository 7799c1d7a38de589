"""What the report's page is made of: sections of text, figures, tables and charts, in a template.

The page is one file: styles, scripts and data are in it, and its own policy (CSP) forbids the
browser to load anything else. Each number carries in ``data-key`` where it comes from, such as
``table_i B1@25 test_acc``; a number's second line has the same key and `` small``.
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

from analysis.drawing import FAINT, INK, to_png, to_svg

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
    """A figure on the page: at most ``widest``, and on a phone ``least``, where it scrolls.

    ``stands_in``: a chart replaces it where scripts run; it stays for print.
    """

    name: str
    figure: Figure
    svg: str
    caption: str
    least: str
    stands_in: bool = False

    @property
    def inline(self) -> Markup:
        """SVG, or PNG where that is for print alone and has too many shapes."""
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
    """A table's cell: ``key`` says which number it is, ``small`` is a second line."""

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
    """A table on the page. A column whose name starts with ``<`` is text, set to the left.

    ``groups``: a row above the names, each with the number of columns that it spans.
    ``folded``: shown when asked for, and in print. ``stands_in``: as `Picture`.
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
        """A paragraph; ``key`` where all its numbers are from one place."""
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
        """A figure with its caption; ``least`` and ``stands_in`` as `Picture` has them."""
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
        """One of the charts of ``static``, and what it shows."""
        self.blocks.append({"kind": "chart", "name": name, "data": data})

    def album(self, rows: Sequence[tuple[str, Sequence[Markup]]]) -> None:
        """Images in rows, each with its caption."""
        self.blocks.append({"kind": "album", "rows": rows})


def keyed(text: str, key: str) -> Markup:
    """A number in running text, with where it comes from."""
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
    """The page. The template escapes every text; figures alone are taken as they are."""
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
    """A file of ``analysis/static``, without the address of a map that does not come with it."""
    text = files("analysis").joinpath("static", name).read_text(encoding="utf-8")
    return re.sub(r"(//|/\*)# sourceMappingURL=.*", "", text).strip()


def script(name: str) -> str:
    """A script as it may stand within a page."""
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
    """Data as JSON that may stand within a script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


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
