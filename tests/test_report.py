"""The report as a reader gets it: complete, self-contained, and true to the records."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from records_example import write_run

from analysis import load
from analysis.answer import answer
from analysis.report import write_report
from analysis.results import Results
from data.storage import InputError, Location

HOSTILE = ("<script>alert(1)</script>", "../..", "$a_b$", '" onload="alert(2)')
SMALL = {"species": HOSTILE, "per_species": (12, 4, 10), "features": 12, "trials": 6}
FILES = ("report.html", "table_i.csv", "table_i.md", "table_i.tex", "encoders.csv")
FILES += ("latents.parquet", "clusters.csv")
FIGURES = ("label_efficiency", "learning_curves", "lr_search", "confusion")
FIGURES += ("fig1_autoencoder_loss", "fig2_tsne_species", "fig5_kmeans")


class Page(HTMLParser):
    """The tags, ids and visible text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def _report(folder: Path, **changes: object) -> Page:
    file = write_report(write_run(folder, **(SMALL | changes)))  # type: ignore[arg-type]
    return Page(file.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"), ratios=(10, 100), failed=("A@10",), **SMALL)  # type: ignore[arg-type]
    assert write_report(str(folder)) == Location(folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def test_everything_is_written(folder: Path) -> None:
    for name in FILES:
        assert (folder / name).stat().st_size > 100
    for name in FIGURES:
        assert (folder / "figures" / f"{name}.svg").is_file()
        assert (folder / "figures" / f"{name}.png").is_file()
    assert not list(folder.rglob(".part-*"))


def test_nothing_is_loaded_from_elsewhere(folder: Path, page: Page) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    html = (folder / "report.html").read_text()
    assert not re.search(r"@import|url\((?!#)", html)
    assert len(html) < 8e6


def test_names_from_the_data_are_text(page: Page) -> None:
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    for name in HOSTILE:
        assert name in page.text


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert len(links) == 9
    assert {str(link)[1:] for link in links} <= set(ids)


def test_numbers_are_those_of_the_table(folder: Path, page: Page) -> None:
    table = pd.read_csv(folder / "table_i.csv")
    for row in table.dropna(subset=["test_acc"]).itertuples():
        for name in ("loss", "acc", "f1", "precision", "recall"):
            assert f"{getattr(row, f'test_{name}'):.3f}" in page.text
    assert "all 6 trials failed: RuntimeError: loss is NaN at epoch 1" in page.text
    assert "plus 16 validation labels used for choosing" in page.text
    assert "conditional on the chosen learning rate" in page.text


def test_a_run_moved_elsewhere_gives_the_same_page(folder: Path) -> None:
    other = folder.parent / "moved" / folder.name
    shutil.copytree(folder, other)
    write_report(Location(other))
    assert (other / "report.html").read_text() == (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"repeats": 0, "ratios": (10,)}, "this study only searches (evaluation.repeats is 0)"),
        ({"repeats": 1, "ratios": (10,)}, "With one repeat they are over test images alone"),
        ({"variants": ("A",), "ratios": (10,), "encoders": 0}, "the study has no B2 and no B0"),
        ({"variants": ("B1", "B2"), "ratios": (10,)}, "not decided by this data"),
        ({"per_repeat": False, "ratios": (10,)}, "conditional on that encoder as well"),
        ({"state": "RUNNING", "ratios": (10,), "unevaluated": ("B2@10",)}, "This study is RUNNING"),
        ({"variants": ("A",), "ratios": (10,), "failed": ("A@10",)}, "No trial has been completed"),
        ({"metric": "val_loss", "ratios": (10,)}, "Validation loss of each trial"),
    ],
)
def test_odd_studies_have_a_report_too(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    text = _report(tmp_path / "run", **changes).text
    assert said in text
    assert (
        "nan" not in re.sub(r"[a-z]+nan|nan[a-z]+|is NaN", "", text.replace("NaN at", "")).lower()
    )


def test_a_study_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ratios=(10,), state="RUNNING", encoders=0)
    for file in folder.glob("*.parquet"):
        file.unlink()
    text = Page(write_report(folder).read_text()).text
    assert "No trial has been completed" in text
    assert "search not finished: 0 of 16 trials" in text


def test_a_torn_record_leaves_the_last_report_as_it_was(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = (copy / "report.html").read_bytes()
    (copy / "trials.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"trials\.parquet"):
        write_report(copy)
    assert (copy / "report.html").read_bytes() == before


def _differences(rows: list[tuple[int, float, float]]) -> pd.DataFrame:
    columns = ["label_ratio", "difference", "p_holm"]
    frame = pd.DataFrame(rows, columns=columns).assign(contrast="B2−B0")
    return frame.assign(low=frame["difference"] - 0.02, high=frame["difference"] + 0.02)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [(10, 0.081, 0.001), (100, 0.01, 0.4)],
            "raised test accuracy at 10 % labels, by 8.1 points [95 % interval 6.1 to 10.1]; "
            "it is not decided by this data at 100 %.",
        ),
        ([(10, -0.05, 0.01)], "lowered test accuracy at 10 % labels, by 5.0 points"),
        (
            [(10, -0.01, 0.9), (25, 0.02, 0.3)],
            "is not decided by this data at 10 and 25 % labels; the largest difference is "
            "+2.0 points [95 % interval 0.0 to 4.0], at 25 %.",
        ),
        (
            [(10, 0.06, 0.01), (25, 0.09, 0.01), (50, -0.06, 0.02)],
            "raised test accuracy at 10 and 25 % labels, most at 25 %, by 9.0 points [95 % "
            "interval 7.0 to 11.0]; it lowered test accuracy at 50 % labels, by 6.0 points",
        ),
    ],
)
def test_the_answer_follows_from_the_differences(
    folder: Path, rows: list[tuple[int, float, float]], said: str
) -> None:
    results = Results(load(folder))
    sentence = answer(results.run, results.table, _differences(rows))[0]
    assert said in sentence.replace("\xa0", " ")


def test_configuration_and_versions_are_on_the_page(folder: Path, page: Page) -> None:
    config = yaml.safe_load((folder / "study.yaml").read_text())["config"]
    assert yaml.safe_dump(config, sort_keys=False, allow_unicode=True).strip() in page.text
    for text in ("torch 2.14.1", "5f0c9d1e", "0123abc", "5 min 12 s"):
        assert text in page.text


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_sorts_the_leaderboard_without_errors(folder: Path, tmp_path: Path) -> None:
    """A script appended to the page clicks on a heading and writes down the order."""
    script = """<script>
    const table = document.querySelector("table.sortable");
    const heads = [...table.tHead.rows[0].cells];
    const column = heads.findIndex(head => head.textContent === "Loss");
    heads[column].querySelector("button").click();
    document.title = [...table.tBodies[0].rows].map(row => row.cells[column].textContent).join(" ");
    </script>"""
    copy = tmp_path / "page.html"
    copy.write_text((folder / "report.html").read_text().replace("</body>", script + "</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    command.append(copy.as_uri())
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    losses = [float(text) for text in title.group(1).split()]
    assert len(losses) > 10
    assert losses == sorted(losses)
    assert "Uncaught" not in done.stderr
