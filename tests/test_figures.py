"""Each figure says what its table says, and survives odd tables."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from matplotlib.figure import Figure
from records_example import write_run

from analysis import figures, load, tables
from analysis.leaderboard import winners
from analysis.load import Run

ODD = (
    "<script>alert(1)</script>",
    "$x^2$ & co",
    "_hidden",
    "A very long name of a butterfly species",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    return load(write_run(folder, species=ODD, ratios=(10, 100), trials=6, failed=("A@10",)))


def _texts(figure: Figure) -> list[str]:
    """What the SVG shows, which must be well-formed."""
    tree = ElementTree.fromstring(figures.to_svg(figure))
    return ["".join(each.itertext()).strip() for each in tree.iter() if each.tag.endswith("}text")]


def test_label_efficiency_has_a_line_a_variant_through_table_i(run: Run) -> None:
    table = tables.table_i(run)
    axes = figures.label_efficiency(table).axes[0]
    lines = {str(line.get_label())[:2].rstrip(":"): line.get_ydata() for line in axes.lines}
    assert set(lines) == {"A", "B0", "B1", "B2"}
    rows = table[table["variant"] == "B2"]
    assert list(lines["B2"]) == pytest.approx(list(rows["test_acc"]))
    assert len(lines["A"]) == 1  # A@10 failed


def test_learning_curves_draw_every_trial_and_embolden_the_chosen(run: Run) -> None:
    chosen = winners(run.trials, run.metric)["trial_id"].to_dict()
    figure = figures.learning_curves(run.epochs, chosen, run.metric, run.variants, [10, 100])
    axes = {each.get_title(loc="left"): each for each in figure.axes}
    assert len(axes) == 8
    rows = run.epochs[run.epochs["cell"] == "B2@100"]
    assert len(axes["B2 @ 100 %"].collections[0].get_paths()) == rows["trial_id"].nunique() - 1
    best = rows[rows["trial_id"] == chosen["B2@100"]]
    assert list(axes["B2 @ 100 %"].lines[-1].get_ydata()) == list(best[run.metric])
    assert not axes["A @ 10 %"].lines


def test_lr_search_shows_states_and_the_chosen_lr(run: Run) -> None:
    lrs = tables.chosen_lrs(run)
    figure = figures.lr_search(run.trials, lrs, run.metric, run.variants, [10, 100])
    assert {"complete", "stopped early", "failed", "chosen"} <= set(_texts(figure))
    cell = next(each for each in figure.axes if each.get_title(loc="left") == "B1 @ 10 %")
    assert cell.lines[0].get_xdata()[0] == lrs["B1@10"]
    failed = next(each for each in figure.axes if each.get_title(loc="left") == "A @ 10 %")
    assert len(failed.lines[-1].get_xdata()) == 6


def test_names_are_shown_as_text(run: Run) -> None:
    """A species may be called like markup, mathematics, or what matplotlib hides."""
    rows = run.predictions[run.predictions["cell"] == "B2@100"]
    shown = _texts(figures.confusion(rows, run.species))
    points = run.feature_files.assign(x=range(len(run.feature_files)), y=0.0)
    for texts in (shown, _texts(figures.latent_map(points, "species"))):
        assert set(ODD[:3]) <= set(texts)
        assert "A very long name of a but…" in texts


def test_confusion_rows_are_shares_of_the_true_species(run: Run) -> None:
    rows = run.predictions[run.predictions["cell"] == "B2@100"]
    mesh = figures.confusion(rows, run.species).axes[0].collections[0]
    shares = mesh.get_array().filled(0).reshape(4, 4)
    assert shares.sum(axis=1) == pytest.approx([1, 1, 1, 1])
    hit = rows[rows["true"] == rows["pred"]].groupby("true").size() / rows.groupby("true").size()
    assert list(shares.diagonal()) == pytest.approx(list(hit[run.species]))


def test_texts_do_not_overlap(run: Run) -> None:
    table = tables.table_i(run)
    rows = run.predictions[run.predictions["cell"] == "B2@100"]
    for figure in (
        figures.label_efficiency(table),
        figures.confusion(rows, run.species),
        figures.autoencoder_loss(run.encoder_epochs),
        figures.lr_search(run.trials, {}, run.metric, run.variants, [10, 100]),
    ):
        figure.draw_without_rendering()
        for axes in figure.axes:
            for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
                boxes = [t.get_window_extent() for t in ticks if t.get_text() and t.get_visible()]
                for first, second in pairwise(boxes):
                    assert not first.overlaps(second)


def test_svg_is_the_same_each_time_and_png_is_opaque(run: Run, tmp_path: Path) -> None:
    from PIL import Image

    svgs = [figures.to_svg(figures.autoencoder_loss(run.encoder_epochs)) for _ in range(2)]
    assert svgs[0] == svgs[1]
    (tmp_path / "a.png").write_bytes(figures.to_png(figures.autoencoder_loss(run.encoder_epochs)))
    assert Image.open(tmp_path / "a.png").convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_empty_tables_give_empty_axes(run: Run) -> None:
    none = run.trials.head(0)
    figures.to_svg(figures.lr_search(none, {}, run.metric, ["A"], [10]))
    figures.to_svg(figures.learning_curves(run.epochs.head(0), {}, run.metric, ["A"], [10]))
    figures.to_svg(figures.label_efficiency(pd.DataFrame(tables.table_i(run).head(0))))
