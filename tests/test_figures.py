"""Each figure says what its table says, and survives odd tables."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from records_example import write_run

from analysis import course, errors, load, page, tables
from analysis.figures import drawing
from analysis.figures import errors as figures_errors
from analysis.figures import results as figures_results
from analysis.figures import search as figures_search
from analysis.figures.search import _fates
from analysis.importance import importance
from analysis.leaderboard import winners
from analysis.load import Run
from analysis.wording import shorten

ODD = (
    "<script>alert(1)</script>",
    "$x^2$ & co",
    "_hidden",
    "A very long name of a butterfly species",
)


LRS = (1e-5, 1e-2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    return load(write_run(folder, species=ODD, ratios=(10, 100), trials=6, failed=("A@10",)))


def _texts(figure: Figure) -> list[str]:
    """What the SVG shows, which must be well-formed."""
    tree = ElementTree.fromstring(drawing.to_svg(figure))
    return ["".join(each.itertext()).strip() for each in tree.iter() if each.tag.endswith("}text")]


def test_label_efficiency_has_a_line_a_variant_through_table_i(run: Run) -> None:
    table = tables.table_i(run)
    axes = figures_results.label_efficiency(table).axes[0]
    lines = {str(line.get_label())[:2].rstrip(":"): line.get_ydata() for line in axes.lines}
    assert set(lines) == {"A", "B0", "B1", "B2"}
    rows = table[table["variant"] == "B2"]
    assert list(lines["B2"]) == pytest.approx(list(rows["test_acc"]))
    assert len(lines["A"]) == 1  # A@10 failed


def _luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_variant_is_seen_in_light_and_in_dark() -> None:
    css = (Path(page.__file__).parent / "static" / "report.css").read_text()
    found = re.search(r"--paper: light-dark\((#\w+), (#\w+)\)", css)
    assert found is not None
    papers = [_luminance("#ffffff" if each == "#fff" else each) for each in found.groups()]
    for base in drawing.VARIANT_STYLE:
        recipes = [f"{base}-{name}" for name in "abcdefg"] if base in drawing.RECIPE_COLOURS else []
        styles = drawing.variant_styles([base, *recipes])
        colours = [colour for colour, _ in styles.values()]
        assert len(set(colours)) == len(colours) in (1, 8)
        for colour in colours:
            for paper in papers:
                dark, light = sorted((_luminance(colour), paper))
                assert (light + 0.05) / (dark + 0.05) >= 3, colour


def test_learning_curves_draw_every_trial_and_embolden_the_chosen(run: Run) -> None:
    chosen = winners(run.trials, run.metric)["trial_id"].to_dict()
    figure = figures_search.learning_curves(run.epochs, chosen, run.metric, run.variants, [10, 100])
    axes = {each.get_title(loc="left"): each for each in figure.axes}
    assert len(axes) == 8
    rows = run.epochs[run.epochs["cell"] == "B2@100"]
    assert len(axes["B2 @ 100 %"].collections[0].get_paths()) == rows["trial_id"].nunique() - 1
    best = rows[rows["trial_id"] == chosen["B2@100"]]
    assert list(axes["B2 @ 100 %"].lines[-1].get_ydata()) == list(best[run.metric])
    assert not axes["A @ 10 %"].lines


def test_what_has_a_single_epoch_is_drawn_as_a_point(run: Run) -> None:
    first = run.encoder_epochs[run.encoder_epochs["epoch"] == 1]
    lines = figures_results.autoencoder_loss(first).axes[0].lines[:2]
    assert [line.get_marker() for line in lines] == ["o", "o"]
    lines = figures_results.autoencoder_loss(run.encoder_epochs).axes[0].lines[:2]
    assert [line.get_marker() for line in lines] == ["None", "None"]
    epochs, chosen = run.epochs[run.epochs["epoch"] == 1], {"B2@100": "B2@100-000"}
    figure = figures_search.learning_curves(epochs, chosen, run.metric, ["B2"], [100])
    assert figure.axes[0].lines[-1].get_marker() == "o"


def test_lr_search_shows_states_and_the_chosen_lr(run: Run) -> None:
    lrs = tables.chosen_lrs(run)
    figure = figures_search.lr_search(run.trials, lrs, run.metric, run.variants, [10, 100], LRS)
    assert {"complete", "stopped early", "failed", "chosen"} <= set(_texts(figure))
    cell = next(each for each in figure.axes if each.get_title(loc="left") == "B1 @ 10 %")
    assert cell.lines[0].get_xdata()[0] == lrs["B1@10"]
    failed = next(each for each in figure.axes if each.get_title(loc="left") == "A @ 10 %")
    assert len(failed.lines[-1].get_xdata()) == 6


def test_lr_search_tells_at_which_rung_a_trial_was_stopped(run: Run) -> None:
    shape = (run.metric, run.variants, [10, 100])
    figure = figures_search.lr_search(run.trials, {}, *shape, LRS, course.rungs(run))
    assert "stopped at epoch 3" in _texts(figure)
    assert "stopped at epoch 9" not in _texts(figure)  # none was
    late = run.trials.assign(epochs=run.trials["epochs"] + 6)
    assert "stopped at epoch 9" in _texts(
        figures_search.lr_search(late, {}, *shape, LRS, course.rungs(run))
    )


@pytest.mark.parametrize(
    ("searched", "ticks"),
    [
        ((1e-4, 3e-3), ["1e-4", "1e-3"]),
        ((2e-4, 8e-4), ["2e-4", "8e-4"]),
        ((2e-4, 2e-3), ["2e-4", "2e-3"]),
    ],
)
def test_the_axis_of_learning_rates_is_what_was_searched(
    run: Run, searched: tuple[float, float], ticks: list[str]
) -> None:
    figure = figures_search.lr_search(run.trials, {}, run.metric, run.variants, [10, 100], searched)
    assert set(ticks) <= set(_texts(figure))
    low, high = figure.axes[0].get_xlim()
    assert low < searched[0] < searched[1] < high
    assert high / low < 2 * searched[1] / searched[0]


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_single_learning_rate_has_an_axis_too(run: Run) -> None:
    searched = (1e-3, 1e-3)
    figure = figures_search.lr_search(run.trials, {}, run.metric, run.variants, [10, 100], searched)
    low, high = figure.axes[0].get_xlim()
    assert low < 1e-3 < high


def test_what_ran_out_of_time_was_stopped_by_no_rung(run: Run) -> None:
    pruned = run.trials[run.trials["state"] == "PRUNED"]
    late = run.trials.assign(error=run.trials["error"].where(run.trials["state"] != "PRUNED", "x"))
    assert len(pruned)
    for trials, name in ((run.trials, "stopped"), (late, "out of time")):
        found = [fate.name for fate, rows in _fates(trials, [3, 9]) if len(rows)]
        assert any(each.startswith(name) for each in found)
        other = {"stopped": "out of time", "out of time": "stopped"}[name]
        assert not any(each.startswith(other) for each in found)


def test_rungs_over_time_has_a_line_a_trial_and_what_was_saved(run: Run) -> None:
    figure = figures_search.rungs_over_time(run.epochs, run.trials, [3, 9], 20)
    above, below = figure.axes
    assert len(above.collections[0].get_paths()) == run.epochs["trial_id"].nunique()
    ends = {line.get_marker(): len(line.get_xdata()) for line in above.lines if line.get_marker()}
    states = run.trials["state"].value_counts()
    assert (ends["v"], ends["o"], ends["x"]) == (states["PRUNED"], states["COMPLETE"], 0)
    saved = course.savings(run.trials, 20)
    without, trained = (line.get_ydata()[-1] for line in below.lines)
    assert (trained, without) == (len(run.epochs), len(run.epochs) + saved.saved)


def test_large_studies_give_small_figures() -> None:
    """Ten thousand trials are an image, not ten thousand shapes."""
    ids, epoch = np.repeat(np.arange(10_000).astype(str), 5), np.tile(np.arange(1, 6), 10_000)
    ended = 1.7e9 + np.repeat(np.arange(10_000), 5) + epoch
    epochs = pd.DataFrame({"trial_id": ids, "epoch": epoch, "ended": ended, "seconds": 1.0})
    trials = pd.DataFrame(
        {"trial_id": np.arange(10_000).astype(str), "state": "PRUNED", "error": None}
    )
    assert len(drawing.to_svg(figures_search.rungs_over_time(epochs, trials, [3], 20))) < 1_000_000


def test_importance_has_a_bar_a_share() -> None:
    shares = pd.DataFrame({"factors": ["learning rate", "a × b"], "share": [0.998, 0.002]})
    figure = figures_search.importance(shares)
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([99.8, 0.2])
    assert {"learning rate", "a × b", "100", "< 1"} <= set(_texts(figure))


def test_occupancy_has_a_lane_a_node(run: Run) -> None:
    done = course.work(run)
    half = done.assign(node=["a", "<b>"] * (len(done) // 2) + ["a"] * (len(done) % 2))
    texts = _texts(figures_search.occupancy(half))
    assert [text.split(":")[0] for text in texts if "on average" in text] == ["<b>", "a"]
    assert {"encoders", "search", "evaluation"} <= set(texts)
    many = done.assign(node=[f"n{number % 40}" for number in range(len(done))])
    assert sum("all 40 nodes" in text for text in _texts(figures_search.occupancy(many))) == 1
    lane = figures_search.occupancy(done.head(1).assign(start=0.0, end=10.0)).axes[0]
    assert lane.get_title(loc="left") == "10.0.0.1: 1.00 on average"


def test_confused_pairs_show_both_species_images(run: Run) -> None:
    pairs = errors.most_confused(run.predictions[run.predictions["cell"] == "B2@100"], top=2)
    asked: list[str] = []

    def picture(file: str) -> np.ndarray | None:
        asked.append(file)
        return None if len(asked) == 1 else np.full((4, 4, 3), 90, dtype=np.uint8)

    figure = figures_errors.confused_pairs(pairs, picture)
    assert asked == [file for row in pairs.itertuples() for file in (*row.files, *row.like)]
    assert sum(len(axes.images) for axes in figure.axes) == len(asked) - 1
    texts = _texts(figure)
    assert "is gone" in " ".join(texts)
    first = pairs.iloc[0]
    start = f"{shorten(first['true'])}, taken {first['times']:,} of {first['of']:,}"
    assert any(text.startswith(start) for text in texts)
    drawing.to_svg(figures_errors.confused_pairs(pairs.head(0), picture))


def test_reliability_shows_the_bins_and_the_error(run: Run) -> None:
    table = errors.calibration(run.predictions)
    figure = figures_errors.reliability(table)
    assert list(figure.axes[0].lines[-1].get_ydata()) == list(table["accuracy"])
    assert [bar.get_height() for bar in figure.axes[1].patches] == list(table["predictions"])
    assert f"ECE {errors.calibration_error(table):.3f}" in _texts(figure)
    assert "no predictions" in _texts(figures_errors.reliability(table.head(0)))


def test_names_are_shown_as_text(run: Run) -> None:
    """A species may be called like markup, mathematics, or what matplotlib hides."""
    rows = run.predictions[run.predictions["cell"] == "B2@100"]
    shown = _texts(figures_errors.confusion(rows, run.species))
    points = run.feature_files.assign(x=range(len(run.feature_files)), y=0.0)
    for texts in (shown, _texts(figures_results.latent_map(points, "species"))):
        assert set(ODD[:3]) <= set(texts)
        assert "A very long name of a but…" in texts


def test_confusion_rows_are_shares_of_the_true_species(run: Run) -> None:
    rows = run.predictions[run.predictions["cell"] == "B2@100"]
    mesh = figures_errors.confusion(rows, run.species).axes[0].collections[0]
    shares = mesh.get_array().filled(0).reshape(4, 4)
    assert shares.sum(axis=1) == pytest.approx([1, 1, 1, 1])
    hit = rows[rows["true"] == rows["pred"]].groupby("true").size() / rows.groupby("true").size()
    assert list(shares.diagonal()) == pytest.approx(list(hit[run.species]))


def test_texts_do_not_overlap(run: Run) -> None:
    table = tables.table_i(run)
    rows = run.predictions[run.predictions["cell"] == "B2@100"]
    for figure in (
        figures_results.label_efficiency(table),
        figures_errors.confusion(rows, run.species),
        figures_results.autoencoder_loss(run.encoder_epochs),
        figures_search.lr_search(run.trials, {}, run.metric, run.variants, [10, 100], LRS),
        figures_search.rungs_over_time(run.epochs, run.trials, [3, 9], 20),
        figures_search.occupancy(course.work(run)),
        figures_errors.reliability(errors.calibration(run.predictions)),
    ):
        figure.draw_without_rendering()
        for axes in figure.axes:
            for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
                boxes = [t.get_window_extent() for t in ticks if t.get_text() and t.get_visible()]
                for first, second in pairwise(boxes):
                    assert not first.overlaps(second)


def test_svg_is_the_same_each_time_and_png_is_opaque(run: Run, tmp_path: Path) -> None:
    from PIL import Image

    svgs = [drawing.to_svg(figures_results.autoencoder_loss(run.encoder_epochs)) for _ in range(2)]
    assert svgs[0] == svgs[1]
    (tmp_path / "a.png").write_bytes(
        drawing.to_png(figures_results.autoencoder_loss(run.encoder_epochs))
    )
    assert Image.open(tmp_path / "a.png").convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_empty_tables_give_empty_axes(run: Run) -> None:
    none = run.trials.head(0)
    drawing.to_svg(figures_search.lr_search(none, {}, run.metric, ["A"], [10], LRS))
    drawing.to_svg(figures_search.learning_curves(run.epochs.head(0), {}, run.metric, ["A"], [10]))
    drawing.to_svg(figures_search.rungs_over_time(run.epochs.head(0), none, [3], 20))
    drawing.to_svg(figures_search.occupancy(course.work(run).head(0)))
    drawing.to_svg(figures_search.importance(importance(none, run.metric).shares))
    drawing.to_svg(figures_results.label_efficiency(pd.DataFrame(tables.table_i(run).head(0))))
