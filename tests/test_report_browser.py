"""The report in a browser: Debian's chromium without a window, driven as a reader would."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from records_example import write_run

from analysis.report import write_report

HOSTILE = ("<script>alert(1)</script>", "../..", "$a_b$", '" onload="alert(2)')
PHONE = {"width": 360, "height": 740}
pytestmark = pytest.mark.usefixtures("no_png")
Open = Callable[..., Any]


def pack_pictures(folder: Path) -> dict[str, np.ndarray]:
    """Lay images beside a run, each of one colour; their colours."""
    files = pd.read_parquet(folder / "features" / "files.parquet")["file"].tolist()
    colours = np.random.default_rng(0).integers(0, 255, (len(files), 3)).astype(np.uint8)
    packed = folder.parent / "packed"
    packed.mkdir()
    np.save(packed / "abc.npy", np.tile(colours[:, None, None], (1, 16, 16, 1)))
    (packed / "abc.json").write_text(json.dumps({"files": files}))
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["data"]["key"] = "abc"
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return dict(zip(files, colours, strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("run") / "hostile"
    sizes: dict[str, Any] = {"per_species": (12, 4, 10), "features": 12, "trials": 6}
    write_run(folder, species=HOSTILE, ratios=(10, 100), **sizes)
    colours = pack_pictures(folder)
    write_report(folder)
    return folder, colours


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, run: tuple[Path, dict[str, np.ndarray]]) -> Iterator[Open]:
    """Opens a report in a context of its own. At the end of the test nothing may have gone wrong:
    no error, no dialog, and no request but for the page itself."""
    contexts, wrong = [], []

    def open_page(folder: Path = run[0], **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        address = (folder / "report.html").as_uri()
        page.route("**/*", lambda route: route.continue_())
        page.on("request", lambda r: r.url.split("#")[0] != address and wrong.append(r.url))
        page.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in wrong if not text.startswith("data:")] == []


def chart(page: Any, name: str) -> Any:
    """A chart that has been drawn, scrolled into the window."""
    found = page.locator(f"[data-chart={name}]")
    page.evaluate(
        "element => element.scrollIntoView({behavior: 'instant'})", found.element_handle()
    )
    page.wait_for_selector(f"[data-chart={name}][data-drawn]")
    return found


def column(page: Any, field: str) -> list[str]:
    return list(page.locator(f".tabulator-row [tabulator-field={field}]").all_inner_texts())


def point_at(page: Any, image: int) -> None:
    """Move the mouse onto an image of the latent map."""
    plot = chart(page, "latents").locator(".plot")
    x, y = page.evaluate(f"page.drawn.get('latents').where({image})")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + x - 3, box["y"] + y)
    page.mouse.move(box["x"] + x, box["y"] + y)


def test_a_click_on_a_heading_sorts_all_trials(open_page: Open, run: Any) -> None:
    page = open_page()
    chart(page, "trials")
    losses = pd.read_parquet(run[0] / "trials.parquet")["val_loss"].dropna().sort_values()
    heading = page.get_by_role("button", name="Loss", exact=True).last
    heading.click()
    assert column(page, "val_loss")[:5] == [f"{loss:.4f}" for loss in losses[:5]]
    heading.click()
    assert column(page, "val_loss")[:5] == [f"{loss:.4f}" for loss in losses[:-6:-1]]


def test_the_keyboard_sorts_as_well(open_page: Open) -> None:
    page = open_page()
    chart(page, "trials")
    page.get_by_label("Search trials").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "lr":
            break
    page.keyboard.press("Enter")
    rates = [float(text.replace("−", "-")) for text in column(page, "lr")]
    assert len(rates) > 5
    assert rates == sorted(rates)
    sorted_by = page.locator(".tabulator-col[aria-sort=ascending]")
    assert sorted_by.get_attribute("tabulator-field") == "lr"


def test_a_cell_a_state_and_a_search_filter_table_and_chart(open_page: Open) -> None:
    page = open_page()
    section = chart(page, "trials")
    section.get_by_label("Cell").select_option("B1@100")
    assert set(column(page, "cell")) == {"B1@100"}
    assert section.locator("output").inner_text() == "6 of 48 trials"
    drawn = "echarts.getInstanceByDom(document.querySelector('[data-chart=trials] .plot'))"
    points = page.evaluate(f"{drawn}.getOption().series.flatMap(s => s.data.map(d => d.row.cell))")
    assert set(points) == {"B1@100"}
    section.get_by_label("State").select_option("chosen")
    assert column(page, "state") == ["★ chosen"]
    section.get_by_label("State").select_option("")
    section.get_by_label("Cell").select_option("")
    section.get_by_label("Search trials").fill("nan at epoch")
    assert set(column(page, "state")) == {"fail"}
    assert column(page, "id") == ["A@10-003", "A@100-003"]
    section.get_by_role("button", name="A", exact=True).click()
    assert section.locator("output").inner_text() == "0 of 48 trials"
    assert "No trial is like that." in section.inner_text()


def test_long_names_are_whole_and_no_two_labels_of_an_axis_the_same(
    open_page: Open, tmp_path: Path
) -> None:
    shape: dict[str, Any] = {"ratios": (10,), "trials": 4, "repeats": 0, "encoders": 0}
    folder = write_run(tmp_path / "run", variants=("B1-dropped_skips", "B2-dropped_skips"), **shape)
    trials = pd.read_parquet(folder / "trials.parquet")
    trials["val_f1"] = 0.6 + 0.001 * np.arange(len(trials))
    trials.to_parquet(folder / "trials.parquet", index=False)
    write_report(folder)
    page = open_page(folder, viewport={"width": 1300, "height": 900})
    section = chart(page, "trials")
    for field in ("id", "cell"):
        found = section.locator(f".tabulator-cell[tabulator-field={field}]").evaluate_all(
            "cells => cells.map(each => each.scrollWidth <= each.clientWidth)"
        )
        assert found
        assert all(found), field
    plot = "echarts.getInstanceByDom(document.querySelector('[data-chart=trials] .plot'))"
    labels = page.evaluate(
        f"{plot}.getModel().getComponent('yAxis').axis.getViewLabels().map(l => l.formattedLabel)"
    )
    assert len(set(labels)) == len(labels) > 3


def test_what_else_is_searched_has_columns_and_axes(open_page: Open, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"ratios": (10,), "trials": 3, "repeats": 0, "encoders": 0}
    folder = write_run(tmp_path / "run", variants=("B0",), **shape)
    trials = pd.read_parquet(folder / "trials.parquet")
    drawn = [{"training.augment": ("light", "strong")[i % 2]} for i in range(len(trials))]
    for i, one in enumerate(drawn):
        one["training.weight_decay"] = 10.0 ** -(i + 1)
    trials["settings"] = [json.dumps(one) for one in drawn]
    trials.to_parquet(folder / "trials.parquet", index=False)
    study = yaml.safe_load((folder / "study.yaml").read_text())
    space = {"augment": {"choice": ["light", "strong"]}, "weight_decay": {"loguniform": [1e-9, 1]}}
    study["config"]["search"]["space"] = {"training": space, "semi": {}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    write_report(folder)
    page = open_page(folder)
    section = chart(page, "trials")
    assert set(column(page, "'training.augment'")) == {"light", "strong"}
    section.get_by_role("button", name="Weight decay").click()
    assert section.locator(".tabulator-row").first.inner_text().startswith("3")
    section.get_by_role("button", name="Parallel").click()
    plot = "echarts.getInstanceByDom(document.querySelector('[data-chart=trials] .plot'))"
    axes = page.evaluate(f"{plot}.getOption().parallelAxis.map(each => [each.name, each.type])")
    assert ["augment", "category"] in axes
    assert ["weight decay", "log"] in axes


def test_pointing_at_the_map_shows_the_image_and_its_species(open_page: Open, run: Any) -> None:
    page = open_page()
    chart(page, "latents")
    data = page.evaluate("page.data('latents')")
    caption = page.locator("#figure-fig2_tsne_species figcaption").text_content() or ""
    assert f"The map of {data['maps'][0]['encoder']} by species" in caption, "the best one first"
    for image in (0, 57):
        point_at(page, image)
        tip = page.locator(".tip:visible")
        tip.wait_for()
        shown = page.evaluate("document.querySelector('.tip .soft:last-child').textContent")
        seen = data["files"].index(shown)  # two images may lie on one another
        assert tip.locator("b").inner_text() == data["species"][data["of"][seen]]
        pixels = np.asarray(Image.open(io.BytesIO(tip.locator(".thumb").screenshot())))
        middle = pixels[30:-30, 30:-30, :3].mean(axis=(0, 1))
        assert np.abs(middle - run[1][shown]).max() < 16  # the JPEG's


def test_a_click_shows_a_cluster_and_its_images(open_page: Open) -> None:
    page = open_page()
    section = chart(page, "latents")
    section.get_by_role("button", name="Cluster", exact=True).click()
    data = page.evaluate("page.data('latents')")
    cluster = data["maps"][0]["cluster"]
    point_at(page, 3)
    page.mouse.down()
    page.mouse.up()
    name = section.locator(".picked strong").inner_text()
    members = [i for i, c in enumerate(cluster) if f"cluster {c + 1}" == name]
    assert f"{len(members)} images" in section.locator(".picked p").inner_text()
    assert section.locator(".gallery .thumb").count() == min(60, len(members))
    section.locator(".legend button[aria-pressed=true]").click()
    assert section.locator(".picked strong").count() == 0


def test_the_map_can_be_walked_with_the_arrow_keys(open_page: Open) -> None:
    page = open_page()
    section = chart(page, "latents")
    section.locator(".plot").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    species = page.evaluate("page.data('latents').species[0]")
    assert page.locator(".tip:visible b").inner_text() == species
    assert section.locator("[aria-live]").first.text_content() is not None
    page.keyboard.press("Enter")
    assert section.locator(".picked strong").inner_text() == species
    page.keyboard.press("Escape")
    assert section.locator(".picked strong").count() == 0


def test_label_efficiency_says_what_a_point_is(open_page: Open, run: Any) -> None:
    page = open_page()
    section = chart(page, "efficiency")
    section.get_by_role("button", name="Macro F1").click()
    box = section.locator(".plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 100)
    page.mouse.move(box["x"] + box["width"] * 0.94, box["y"] + 120)
    tip = page.locator(".tip:visible").inner_text()
    table = pd.read_csv(run[0] / "table_i.csv").query("label_ratio == 100")
    assert "48 labels (100 %)" in tip
    for value in table["test_f1"]:
        assert f"{value:.3f}" in tip


def test_names_from_the_data_are_text_everywhere(open_page: Open) -> None:
    page = open_page()
    section = chart(page, "latents")
    legend = section.locator(".legend button span").all_inner_texts()
    assert sorted(legend) == sorted(HOSTILE)
    for name in HOSTILE:
        section.locator(".legend button", has_text=name).first.click()
        assert section.locator(".picked strong").inner_text() == name
        assert page.locator("#errors").get_by_text(name).count() > 0
    assert page.locator("[onload]").count() == 0


def test_dark_and_light(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    chart(page, "efficiency")
    colour = "getComputedStyle(document.body)"
    assert sum(rgb(page.evaluate(f"{colour}.backgroundColor"))) < 120
    assert sum(rgb(page.evaluate(f"{colour}.color"))) > 600
    label = page.locator("[data-chart=efficiency] svg text").first.get_attribute("fill")
    assert sum(rgb(label)) > 400
    page.get_by_role("button", name="Light").click()
    assert sum(rgb(page.evaluate(f"{colour}.backgroundColor"))) > 700
    label = page.locator("[data-chart=efficiency] svg text").first.get_attribute("fill")
    assert sum(rgb(label)) < 400


def rgb(text: str) -> list[int]:
    if text.startswith("#"):
        return [int(text[i : i + 2], 16) for i in (1, 3, 5)]
    return [int(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]


def test_a_phone_needs_no_sideways_scrolling(open_page: Open) -> None:
    page = open_page(viewport=PHONE, is_mobile=True, has_touch=True)
    for name in ("efficiency", "trials", "latents"):
        chart(page, name)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.evaluate("visualViewport.scale") == 1
    page.locator("[data-chart=latents] .legend button").first.tap()
    assert page.locator(".picked strong").is_visible()


def test_print_has_tables_and_figures_in_place_of_charts(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    chart(page, "trials")
    assert page.pdf(format="A4").count(b"/Type /Page\n") > 3
    page.emulate_media(media="print")
    assert page.locator("#figure-lr_search").is_visible()
    assert page.get_by_role("region", name="Leaderboard").is_visible()
    assert not page.locator("[data-chart=trials]").is_visible()
    assert sum(rgb(page.evaluate("getComputedStyle(document.body).color"))) < 200


def test_without_scripts_everything_can_be_read(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("#figure-fig2_tsne_species").is_visible()
    assert page.get_by_role("region", name="Leaderboard").is_visible()
    assert not page.locator("[data-chart=trials]").is_visible()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten thousand trials with its report."""
    sizes: dict[str, Any] = {"per_species": (12, 4, 10), "features": 4, "trials": 500, "repeats": 1}
    folder = write_run(tmp_path_factory.mktemp("run") / "large", species=HOSTILE, **sizes)
    write_report(folder)
    return folder


def test_ten_thousand_trials_are_a_report(large: Path) -> None:
    html = (large / "report.html").read_text()
    found = re.search(r'id="data-trials">(.*?)</script>', html)
    assert found is not None
    assert len(json.loads(found.group(1))["columns"]["trial_id"]) == 10_000
    assert len(html) < 8e6


def test_ten_thousand_trials_sort_with_few_rows_on_the_page(open_page: Open, large: Path) -> None:
    page = open_page(large)
    section = chart(page, "trials")
    assert section.locator("output").inner_text() == "10,000 of 10,000 trials"
    page.get_by_role("button", name="Accuracy", exact=True).last.click()
    best = pd.read_parquet(large / "trials.parquet")["val_acc"].min()
    assert column(page, "val_acc")[0] == f"{best:.4f}"
    assert page.locator(".tabulator-row").count() < 200
