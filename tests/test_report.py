"""The report as a reader gets it: complete, self-contained, and true to the records."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from records_example import write_run

from analysis import load
from analysis import page as page_module
from analysis.answer import answer
from analysis.page import SCRIPTS
from analysis.report import write_report
from analysis.results import Results
from analysis.verdicts import verdict
from data.storage import InputError, Location

HOSTILE = ("<script>alert(1)</script>", "../..", "$a_b$", '" onload="alert(2)')
SMALL = {"species": HOSTILE, "per_species": (12, 4, 10), "features": 12, "trials": 6}
FILES = ("report.html", "table_i.csv", "table_i.md", "table_i.tex", "encoders.csv")
FILES += ("latents.parquet", "clusters.csv", "differences.csv", "labels_saved.csv", "answer.txt")
FILES += ("labels_needed.csv", "labels_gained.csv")
FIGURES = ("label_efficiency", "learning_curves", "lr_search", "confusion", "reliability")
FIGURES += ("fig1_autoencoder_loss", "fig2_tsne_species", "fig5_kmeans", "rungs_over_time")
FIGURES += ("occupancy",)


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
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "of_an_earlier_report.svg").touch()
    assert write_report(str(folder)) == Location(folder / "report.html")
    return folder


@pytest.fixture
def no_png(monkeypatch: pytest.MonkeyPatch) -> None:
    """As conftest's, for a test: those of the module's own report are drawn."""
    monkeypatch.setattr("analysis.report.to_png", lambda figure: b"")


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
    assert not (folder / "figures" / "of_an_earlier_report.svg").exists()


def test_what_the_study_did_not_do_has_no_section(folder: Path, page: Page) -> None:
    """No tests in noise, nothing that encoders gave back, no int8."""
    assert Results(load(folder)).reconstructions.empty
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert "leaderboard" in ids
    assert not {"noise", "denoising", "quantised"} & ids
    assert not [
        name for name in ("robustness", "reconstructions") if (folder / f"{name}.csv").exists()
    ]


def test_nothing_is_loaded_from_elsewhere(folder: Path, page: Page) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    html = (folder / "report.html").read_text()
    own = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)  # the policy holds scripts
    assert not re.search(r"@import|url\((?!#|data:)", own)
    assert len(html) < 8e6


def test_names_from_the_data_are_text(page: Page) -> None:
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert sum("type" not in attributes for attributes in scripts) == len(SCRIPTS)
    assert {attributes.get("type") for attributes in scripts} == {None, "application/json"}
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    for name in HOSTILE:
        assert name in page.text


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    links.append("#main")
    assert len(links) == 10
    assert {str(link)[1:] for link in links} <= set(ids)


def test_numbers_are_those_of_the_table(folder: Path, page: Page) -> None:
    table = pd.read_csv(folder / "table_i.csv")
    for row in table.dropna(subset=["test_acc"]).itertuples():
        for name in ("loss", "acc", "f1", "precision", "recall"):
            assert f"{getattr(row, f'test_{name}'):.3f}" in page.text
    failed = table.set_index(["variant", "label_ratio"]).loc[("A", 10)]
    assert failed["reason"] == "all 6 trials failed: RuntimeError: loss is NaN at epoch 1"
    assert failed["reason"] in page.text
    assert pd.isna(failed["test_acc"])
    assert "plus 16 validation labels used for choosing" in page.text
    assert "conditional on the chosen learning rate" in page.text


def test_a_run_moved_elsewhere_gives_the_same_page(no_png: None, folder: Path) -> None:
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
        (
            {"per_repeat": False, "ratios": (10,)},
            "pretrained variants is conditional on that encoder",
        ),
        ({"state": "RUNNING", "ratios": (10,), "unevaluated": ("B2@10",)}, "This study is RUNNING"),
        ({"variants": ("A",), "ratios": (10,), "failed": ("A@10",)}, "No trial has been completed"),
        ({"metric": "val_loss", "ratios": (10,)}, "Validation loss of each trial"),
    ],
)
def test_odd_studies_have_a_report_too(
    no_png: None, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    text = _report(tmp_path / "run", **changes).text
    assert said in text
    assert (
        "nan" not in re.sub(r"[a-z]+nan|nan[a-z]+|is NaN", "", text.replace("NaN at", "")).lower()
    )


def test_table_i_goes_by_the_repeats_that_are_done(no_png: None, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ratios=(10,), repeats=3, state="RUNNING", encoders=0)
    for name in ("evaluations", "predictions"):
        frame = pd.read_parquet(folder / f"{name}.parquet")
        kept = frame[(frame["cell"] != "B2@10") | (frame["repeat"] == 0)]
        kept.to_parquet(folder / f"{name}.parquet", index=False)
    write_report(Location(folder))
    text = (folder / "report.html").read_text()
    assert "With one repeat (in 1 cell) they are over test images alone" in text
    assert "With two or three repeats they rest on few" in text


def test_a_study_that_has_only_begun_has_a_report(no_png: None, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ratios=(10,), state="RUNNING", encoders=0)
    for file in folder.glob("*.parquet"):
        file.unlink()
    text = Page(write_report(folder).read_text()).text
    assert "No trial has been completed" in text
    assert "search not finished: 0 of 16 trials" in text


def test_tables_of_what_is_gone_go(no_png: None, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ratios=(10,), **SMALL)  # type: ignore[arg-type]
    write_report(run)
    assert (run / "probes.csv").is_file()
    shutil.rmtree(run / "features")
    write_report(run)
    assert not (run / "probes.csv").exists()


def test_a_torn_record_leaves_the_last_report_as_it_was(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = (copy / "report.html").read_bytes()
    (copy / "trials.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"trials\.parquet"):
        write_report(copy)
    assert (copy / "report.html").read_bytes() == before


def _differences(rows: list[tuple[int, float, float]]) -> pd.DataFrame:
    columns = ["label_ratio", "difference", "p_holm"]
    frame = pd.DataFrame(rows, columns=columns).assign(contrast="B2−B0", repeats=3)
    ends = {"low": frame["difference"] - 0.02, "high": frame["difference"] + 0.02}
    frame = frame.assign(**ends, p=frame["p_holm"])
    return frame.assign(verdict=[verdict(row) for row in frame.to_dict("records")])


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
            "+2.0 points [95 % interval 0.0 to +4.0], at 25 %.",
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
    labels = (results.labels_needed, results.labels_gained)
    sentence = answer(results.run, results.table, _differences(rows), *labels)[0]
    assert said in sentence.replace("\xa0", " ")


def test_configuration_and_versions_are_on_the_page(folder: Path, page: Page) -> None:
    config = yaml.safe_load((folder / "study.yaml").read_text())["config"]
    assert yaml.safe_dump(config, sort_keys=False, allow_unicode=True).strip() in page.text
    for text in ("torch 2.14.1", "5f0c9d1e", "0123abc", "5 min 12 s"):
        assert text in page.text


def test_the_policy_names_the_scripts_that_are_there(folder: Path) -> None:
    """A browser runs no other script, should a text of the data ever become one."""
    html = (folder / "report.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', html)
    assert policy is not None
    found = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
    assert re.findall(r"sha256-([^&]*)&#39;", policy.group(1)) == hashes
    assert "default-src &#39;none&#39;" in policy.group(1)


def test_vendored_files_are_those_that_the_readme_names() -> None:
    """And unchanged: their sums are those of the packages on npm."""
    folder = Path(page_module.__file__).parent / "static"
    readme = (folder / "README.md").read_text()
    for file in folder.glob("*.min.*"):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert f"`{file.name}`" in readme
        assert f"{digest[:8]}…{digest[-8:]}" in readme


def test_without_scripts_there_are_tables_and_figures(folder: Path, page: Page) -> None:
    """What stands in for a chart is hidden only where scripts run."""
    assert "Validation F1" in page.text
    assert [a for _, a in page.tags if a.get("class") == "stands-in"]
    style = "\n".join(
        re.findall(r"<style>(.*?)</style>", (folder / "report.html").read_text(), re.S)
    )
    assert ".js .stands-in { display: none; }" in style
    assert not re.search(r"(?<!js )\.stands-in { display: none", style)
