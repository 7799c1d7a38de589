"""Differences between variants, what would decide them, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from records_example import write_run

from analysis import load
from analysis.contrasts import (
    CONTRASTS,
    Pairs,
    asked,
    change_with_labels,
    contrasts,
    pairs,
)
from analysis.hypotheses import hypotheses
from analysis.load import Run
from analysis.power import ONE_REPEAT, Deviations, power, power_of, smallest, what_would_decide
from analysis.results import Results
from analysis.statistics import NO_PRIOR, Draws, Paired, compare, holm, prior_of, score_cells
from analysis.verdicts import verdict

PRETRAINING = CONTRASTS[0]


def _compared(run: Run, rows: pd.DataFrame | None = None) -> Pairs:
    scored = score_cells(run.predictions if rows is None else rows, run.species)
    return pairs(*scored, run.label_ratios)


def test_contrasts_compare_shared_repeats_only(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", variants=("B0", "B2"), ratios=(10, 100), encoders=0))
    rows = run.predictions
    rows = rows[~((rows["cell"] == "B0@10") & (rows["repeat"] > 2))]
    table = contrasts(_compared(run, rows))
    assert list(table["contrast"]) == ["B2−B0", "B2−B0"]
    assert list(table["repeats"]) == [3, 5]
    assert (table["p_holm"] >= table["p"]).all()
    means = run.evaluations.set_index(["cell", "repeat"])["test_acc"]
    shared = [means["B2@10", r] - means["B0@10", r] for r in range(3)]
    assert table["difference"][0] == pytest.approx(np.mean(shared), abs=1e-6)


@pytest.mark.parametrize(
    ("difference", "low", "high", "p_holm", "said"),
    [
        (0.04, 0.01, 0.07, 0.02, "higher"),
        (-0.04, -0.07, -0.01, 0.02, "lower"),
        (0.004, -0.01, 0.018, 0.6, "under 2 points"),
        (0.004, -0.03, 0.05, 0.6, "not decided"),
        (0.001, 0.0005, 0.0015, 0.01, "higher"),
    ],
)
def test_a_verdict_follows_from_the_row(
    difference: float, low: float, high: float, p_holm: float, said: str
) -> None:
    row = {"difference": difference, "low": low, "high": high, "p_holm": p_holm, "repeats": 3}
    assert verdict(row) == said  # type: ignore[arg-type]
    unlearned = "at chance" if said == "under 2 points" else said
    assert verdict(row, learned=False) == unlearned  # type: ignore[arg-type]


def _simulated(
    effect: float, sizes: Deviations, repeats: int, draws: Draws, random: np.random.Generator
) -> Paired:
    images = len(draws.images)
    scores = effect + sizes.repeats * random.normal(size=(repeats, 1))
    scores = scores + sizes.images * random.normal(size=images)
    scores = scores + sizes.both * random.normal(size=(repeats, images))
    drawn = scores @ draws.images / images
    return Paired(scores.mean(axis=1), drawn, tuple(range(repeats)), images)


def test_the_power_is_the_share_of_studies_that_find_the_difference() -> None:
    """With as many repeats as are said to be needed, four studies in five find it."""
    sizes, images, effect = Deviations(0.03, 0.3, 0.6), 200, 0.06
    needed = smallest(lambda n: power_of(effect, sizes, n, images, 20) >= 0.8, 2, 1000)
    assert needed is not None
    random, draws = np.random.default_rng(0), Draws(np.arange(images) % 20, 500)
    studies = [_simulated(effect, sizes, needed, draws, random) for _ in range(200)]
    found = np.mean([compare(study, draws)[1] < 0.05 for study in studies])
    assert found == pytest.approx(power_of(effect, sizes, needed, images, 20), abs=0.07)
    none = [_simulated(0.0, sizes, needed, draws, random) for _ in range(200)]
    assert np.mean([compare(study, draws)[1] < 0.05 for study in none]) <= 0.09


def _null_study(repeats: int, draws: Draws, random: np.random.Generator) -> list[Paired]:
    """One variant less three others at five ratios, all alike, with seeds that matter."""
    images, species = len(draws.images), np.arange(len(draws.images)) % 20
    difficulty = np.linspace(-1, 1, 20)[species] + 1.5 * random.normal(size=images)
    rows = []
    for _ in range(5):
        logit = difficulty + 0.3 * random.normal(size=(4, repeats, 1))
        logit = logit + random.normal(size=(4, repeats, images))
        hit = (random.random(logit.shape) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        value, drawn = hit.mean(axis=2), hit @ draws.images / images
        of_repeats = tuple(range(repeats))
        rows += [
            Paired(value[0] - value[i], drawn[0] - drawn[i], of_repeats, images) for i in (1, 2, 3)
        ]
    return rows


@pytest.mark.parametrize("repeats", [2, 3])
def test_few_repeats_keep_holms_level(repeats: int) -> None:
    """At most 5 % of studies without an effect find one; each row on its own, many more would.
    benchmarks/coverage.py has more of it.
    """
    draws, random = Draws(np.arange(200) % 20, 600), np.random.default_rng(repeats)
    alone, together, studies = 0, 0, 200
    for _ in range(studies):
        rows = _null_study(repeats, draws, random)
        prior = prior_of(row.value for row in rows)
        alone += holm([compare(row, draws)[1] for row in rows]).min() < 0.05
        together += holm([compare(row, draws, prior)[1] for row in rows]).min() < 0.05
    assert alone / studies > 0.1
    assert together / studies <= 0.05


def test_a_prior_keeps_the_power_of_an_effect_that_is_there() -> None:
    draws, random = Draws(np.arange(200) % 20, 400), np.random.default_rng(0)
    sizes, found = Deviations(0.02, 0.2, 0.4), np.zeros(2)
    for _ in range(20):
        rows = [_simulated(0.15, sizes, 3, draws, random) for _ in range(15)]
        for place, prior in enumerate((NO_PRIOR, prior_of(row.value for row in rows))):
            p_values = [compare(row, draws, prior)[1] for row in rows]
            found[place] += (holm(p_values) < 0.05).mean() / 20
    assert found[1] > found[0] + 0.1


def test_few_images_are_a_ceiling_that_no_number_of_repeats_lifts() -> None:
    sizes = Deviations(0.01, 0.4, 0.5)
    assert power_of(0.03, sizes, 1000, 100, 20) < 0.5
    assert smallest(lambda n: power_of(0.03, sizes, n, 100, 20) >= 0.8, 2, 1000) is None
    assert smallest(lambda n: power_of(0.03, sizes, 5, n, 20) >= 0.8, 21, 10**6) is not None
    rising = [power_of(0.03, sizes, repeats, 2000, 20) for repeats in (2, 3, 5, 10, 100)]
    assert rising == sorted(rising)


def test_smallest_is_the_first_that_is_enough() -> None:
    assert smallest(lambda n: n >= 37, 2, 1000) == 37
    assert smallest(lambda n: True, 2, 1000) == 2
    assert smallest(lambda n: False, 2, 1000) is None


def test_every_undecided_difference_says_what_would_decide_it(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10, 100), repeats=3, encoders=0))
    compared = _compared(run)
    table = contrasts(compared)
    needed = power(compared, table)
    assert list(needed["contrast"]) == list(table["contrast"])
    assert (needed["target"] >= 0.02).all()
    assert needed["level"].iloc[0] == pytest.approx(0.05 / (table["p_holm"] >= 0.05).sum())
    known = needed.dropna(subset=["repeats_needed"]).iloc[0]
    spread = Deviations(known["sd_repeats"], known["sd_images"], known["sd_both"])
    for repeats, enough in ((known["repeats_needed"], True), (known["repeats_needed"] - 1, False)):
        if repeats >= 2:
            found = power_of(known["target"], spread, repeats, known["n"], 20, known["level"])
            assert (found >= 0.8) == enough


def test_one_repeat_leaves_the_seed_unknown(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10,), repeats=1, encoders=0))
    compared = _compared(run)
    table = contrasts(compared)
    assert len(table) == 3
    assert power(compared, table).empty


def _told(run: Run, compared: Pairs, **changes: object) -> pd.Series:
    table = contrasts(compared).assign(**changes)
    found = hypotheses(run, compared, table, power(compared, table)).set_index("name")["text"]
    assert not found.str.contains(r"\d (?:%|points)").any(), "a line may break there"
    return found.str.replace("\xa0", " ")


def test_hypotheses_say_what_the_differences_say(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10, 100), encoders=0))
    compared = _compared(run)
    table = contrasts(compared)
    rows = table[table["contrast"] == "B2−B0"].set_index("label_ratio")
    parts = [
        f"at {ratio} % labels by {100 * row['difference']:z.1f} points [95 % interval "
        f"{100 * row['low']:z.1f} to {100 * row['high']:z.1f}]"
        for ratio, row in rows.iterrows()
    ]
    text = _told(run, compared, verdict="higher")["B2−B0"]
    assert text == f"Yes: {', '.join(parts)}.".replace("-", "−")
    text = _told(run, compared, verdict="not decided")["B2−B0"]
    start = "Not decided by this data at 10 and 100 % labels; the largest difference is "
    assert text.startswith(start)
    assert "points" in text
    text = _told(run, compared, verdict="under 2 points")["B2−B1"]
    assert text == "At 10 and 100 % any effect is under 2 points."
    assert "It takes B2 and B0" not in _told(run, compared)["B2−B0: few"]


def test_what_was_not_studied_is_not_asked(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", variants=("A", "B1"), ratios=(10,), encoders=0))
    compared = _compared(run)
    table = contrasts(compared)
    found = hypotheses(run, compared, table, power(compared, table))
    assert set(found["verdict"]) == {"not asked"}
    assert found["text"].iloc[0] == "The study has no B2 and no B0."


def test_the_change_with_labels_is_the_difference_of_the_differences(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", variants=("B0", "B2"), ratios=(10, 100), encoders=0))
    compared = _compared(run)
    table = contrasts(compared).set_index("label_ratio")["difference"]
    found = change_with_labels(compared, "B2−B0")
    assert found is not None
    assert found[0].value == pytest.approx(table[10] - table[100])
    assert found[2:] == (10, 100)


@pytest.mark.parametrize(
    ("repeats", "images", "said"),
    [
        (
            7,
            900,
            "would take about 7 repeats (there are 5) or about 900 test images (there are 500), "
            "estimated from 5 repeats.",
        ),
        (pd.NA, 900, "would take about 900 test images (there are 500), estimated from 5 repeats."),
        (pd.NA, pd.NA, "Neither 100 repeats nor 100,000 test images alone would decide"),
        (4, 900, "This data would find a difference of 2.0 points about four times in five, "),
    ],
)
def test_what_would_decide_is_said_in_words(repeats: object, images: object, said: str) -> None:
    row = {"contrast": "B2−B0", "label_ratio": 10, "difference": 0.01, "repeats": 5, "n": 500}
    needed = {"target": 0.02, "repeats_needed": repeats, "images_needed": images}
    assert said in what_would_decide(pd.DataFrame([row | needed]), pd.Series(row))


def test_one_repeat_decides_nothing(tmp_path: Path) -> None:
    """Nothing is known of the spread between seeds, however large the difference, or small."""
    run = load(write_run(tmp_path / "run", repeats=1))
    compared = _compared(run)
    found = contrasts(compared)
    assert (found["low"] > 0).any()
    assert set(found["verdict"]) == {"not decided"}
    assert found[["p", "p_holm"]].isna().all(axis=None)
    needed = power(compared, found)
    assert needed.empty
    assert what_would_decide(needed, found.iloc[0]) == ONE_REPEAT
    assert change_with_labels(compared, "B2−B0") is None


RECIPES = [f"-{letter}" for letter in "abcdefgh"]


def test_many_recipes_do_not_hide_a_large_difference(tmp_path: Path) -> None:
    """With 2,000 draws and over 100 differences no adjusted p-value could be under 0.05."""
    variants = ("B0", *(base + r for base in ("B1", "B2") for r in ("", *RECIPES)))
    shape: dict[str, Any] = {"variants": variants, "ratios": (10, 25, 50, 75, 100), "encoders": 0}
    found = Results(load(write_run(tmp_path / "run", trials=3, **shape))).contrasts
    assert len(found) > 100
    assert found["p_holm"].min() < 0.05


def test_a_recipe_with_another_network_is_not_the_effect_of_pretraining_alone() -> None:
    found = {c.name: c for c in asked(["B2-vit@10", "B2-masked@10", "B2-best@10"], ["vit"])}
    assert found["B2-masked−B0"].effect == "pretraining (masked)"
    assert not found["B2-masked−B0"].descriptive
    for name in ("B2-vit−B0", "B2-best−B0"):
        assert found[name].descriptive
    assert not found["B2-vit−B0-vit"].descriptive


def test_what_holm_alone_leaves_open_says_so(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10, 100), encoders=0))
    far = {"difference": 0.3, "low": 0.2, "high": 0.4, "p": 0.007, "p_holm": 0.13}
    text = _told(run, _compared(run), verdict="not decided", **far)["B2−B0"]
    assert (
        "alone it would count (p = 0.007), among all differences it does not (p = 0.130 after Holm)"
    ) in text


def _spoilt(folder: Path, right: dict[str, float]) -> Run:
    """Of these cells so large a share of images is right, more or less with each repeat."""
    file, random = folder / "predictions.parquet", np.random.default_rng(0)
    frame = pd.read_parquet(file)
    for cell, share in right.items():
        own = frame["cell"] == cell
        hit = random.random(own.sum()) < share
        frame.loc[own, "pred"] = frame.loc[own, "true"].where(hit, "Map")
    frame.to_parquet(file, index=False)
    return load(folder)


@pytest.mark.parametrize(
    ("right", "verdict", "start"),
    [
        ({"B0@10": 0.4, "B2@10": 0.9, "B0@100": 0.9, "B2@100": 0.9}, "yes", "Yes."),
        ({"B0@10": 0.9, "B2@10": 0.8, "B0@100": 0.9, "B2@100": 0.4}, "no", "No, it only costs"),
        ({"B0@10": 0.9, "B2@10": 0.9, "B0@100": 0.4, "B2@100": 0.9}, "no", "No, less."),
    ],
)
def test_worth_more_with_few_labels_takes_a_gain_there(
    tmp_path: Path, right: dict[str, float], verdict: str, start: str
) -> None:
    folder = write_run(tmp_path / "run", variants=("B0", "B2"), ratios=(10, 100), encoders=0)
    run = _spoilt(folder, right)
    compared = _compared(run)
    table = contrasts(compared)
    found = hypotheses(run, compared, table, power(compared, table)).set_index("name")
    assert found.loc["B2−B0: few", "verdict"] == verdict
    assert found.loc["B2−B0: few", "text"].startswith(start)


def test_other_encoders_are_asked_about_beside_the_common_one(tmp_path: Path) -> None:
    variants = ("B0", "B1", "B1-masked", "B2", "B2-masked", "B2-plain")
    folder = write_run(tmp_path / "run", variants=variants, ratios=(10,), encoders=0)
    run = _spoilt(folder, {"B1@10": 0.6, "B1-masked@10": 0.62, "B2@10": 0.9, "B2-masked@10": 0.3})
    results = Results(run)
    told = results.hypotheses.set_index("name")
    assert (
        told.loc["encoder: masked", "question"]
        == "Is the encoder masked better than the common one?"
    )
    assert told.loc["encoder: masked", "verdict"] == "no"
    text = told.loc["encoder: masked", "text"].replace("\xa0", " ")
    assert "B2-masked − B2: no, it lowers accuracy: at 10 % labels by 5" in text
    assert "B1-masked − B1: not decided by this data at 10 % labels; the difference is" in text
    assert "encoder: plain" in told.index
    sentence = results.answer[2].replace("\xa0", " ")
    assert sentence.startswith(
        "Beside the common encoder: masked and plain lowered test accuracy, most B2-masked − B2"
    )
