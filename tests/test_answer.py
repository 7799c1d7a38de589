"""The answer in a few sentences, and what would decide what is left open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records_example import write_run

from analysis import load
from analysis.answer import answer, best_variant
from analysis.hypotheses import hypotheses
from analysis.power import ONE_REPEAT
from analysis.results import Results
from analysis.sections.cells import points
from analysis.sentences import more_labels
from analysis.verdicts import AT_CHANCE, HIGHER, LOWER, NOT_DECIDED, UNDER_2_POINTS
from analysis.wording import in_points, minus, percents, unbroken


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("answer") / "run"
    return Results(load(write_run(folder, ratios=(10, 100), trials=4, encoders=0)))


def _answer(results: Results, differences: pd.DataFrame) -> list[str]:
    labels = (results.labels_needed, results.labels_gained)
    found = answer(results.run, results.table, differences, *labels, results.power)
    return [sentence.replace("\xa0", " ") for sentence in found]


def test_the_answer_is_four_parts_with_the_tables_figures(results: Results) -> None:
    assert len(results.answer) == 4
    row = results.table.set_index(["variant", "label_ratio"]).loc[("B2", 10)]
    shown = f"{100 * row['test_acc']:.1f}"
    assert shown in results.answer[2]
    assert "(140 images)" in results.answer[2].replace("\xa0", " ")


def test_the_answer_says_how_many_labels_are_needed(results: Results) -> None:
    said = results.answer[3].replace("\xa0", " ")
    best = best_variant(results.run, 100)
    needed = results.labels_needed.query("variant == @best and bound == 'exact'").iloc[-1]
    assert said.startswith(f"By its curve {best} reaches ")
    labels = f"{needed['needed']:,.0f} labels [{needed['needed_low']:,.0f} to "
    assert f"{100 * needed['acc']:.0f} % with {labels}" in said
    assert "]. More labels still help: from 140 to" in said


@pytest.mark.parametrize(
    ("verdict", "gain", "said"),
    [
        (HIGHER, 0.05, "More labels still help: from 600 to 1,200 B0 gains 5.0 points [95 % inter"),
        (LOWER, -0.05, "More labels do not help: from 600 to 1,200 B0 loses 5.0 points"),
        (UNDER_2_POINTS, 0.001, "More labels hardly help: from 600 to 1,200 B0 gains 0.1 points"),
        (NOT_DECIDED, 0.03, "Whether more labels still help is not decided by this data: from 600"),
        (AT_CHANCE, 0.0, "cannot be judged: B0 is not surely better than chance."),
    ],
)
def test_whether_more_labels_help_follows_from_the_verdict(
    verdict: str, gain: float, said: str
) -> None:
    row = {"variant": "B0", "labels": 600, "to_labels": 1200, "verdict": verdict}
    row |= {"difference": gain, "low": gain - 0.02, "high": gain + 0.02}
    row |= {"repeats": 3, "p": 0.2, "p_holm": 0.6}
    assert said in more_labels(pd.Series(row))


@pytest.mark.parametrize(
    ("repeats", "p_value", "p_holm", "end"),
    [
        (1, np.nan, np.nan, f"interval 2.0 to 6.0]. {ONE_REPEAT}"),
        (
            3,
            0.02,
            0.08,
            "2.0 to 6.0]: alone it would count (p = 0.020), among all variants it does not "
            "(p = 0.080 after Holm).",
        ),
        (3, 0.2, 0.6, "[95 % interval 2.0 to 6.0]."),
    ],
)
def test_what_leaves_a_large_gain_open_is_said(
    repeats: int, p_value: float, p_holm: float, end: str
) -> None:
    row = {"variant": "B0", "labels": 600, "to_labels": 1200, "verdict": NOT_DECIDED}
    row |= {"difference": 0.04, "low": 0.02, "high": 0.06}
    row |= {"repeats": repeats, "p": p_value, "p_holm": p_holm}
    assert more_labels(pd.Series(row)).endswith(end)


def test_what_is_not_decided_says_what_would_decide_it(results: Results) -> None:
    open_still = results.contrasts.assign(verdict="not decided")
    sentence = _answer(results, open_still)[0]
    assert "is not decided by this data at 10 and 100 % labels" in sentence
    rows = open_still[open_still["contrast"] == "B2−B0"]
    widest = rows.iloc[int(rows["difference"].abs().argmax())]
    key = (results.power["contrast"] == "B2−B0") & (
        results.power["label_ratio"] == widest["label_ratio"]
    )
    needed = results.power[key].iloc[0]
    for name in ("repeats_needed", "images_needed"):
        if not pd.isna(needed[name]) and needed["repeats_needed"] > needed["repeats"]:
            assert f"{needed[name]:,}" in sentence
    assert sentence.count(". ") == 0


def test_what_is_decided_says_by_how_much(results: Results) -> None:
    sure = results.contrasts.assign(verdict="higher", difference=0.05, low=0.03, high=0.07)
    sentence = _answer(results, sure)[0]
    assert "raised test accuracy at 10 and 100 % labels" in sentence
    assert "by 5.0 points [95 % interval 3.0 to 7.0]" in sentence


def test_the_answer_and_the_questions_have_the_same_verdicts(results: Results) -> None:
    small = results.contrasts.assign(verdict="under 2 points")
    found = hypotheses(results.run, results.pairs, small, results.power).set_index("name")
    assert found.loc["B2−B0", "verdict"] == "no"
    assert _answer(results, small)[0] == (
        "Pretraining (B2 − B0) changed test accuracy by less than 2 points, if at all, at 10 and "
        "100 % labels."
    )


def test_two_that_name_one_species_for_all_are_no_evidence_that_they_are_alike(
    tmp_path: Path,
) -> None:
    folder = write_run(tmp_path / "run", ratios=(10, 100), trials=2, encoders=0)
    predictions = pd.read_parquet(folder / "predictions.parquet")
    collapsed = predictions["cell"].isin(["B0@10", "B2@10"])
    predictions.loc[collapsed, "pred"] = "Map"
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    results = Results(load(folder))
    row = results.contrasts.set_index(["contrast", "label_ratio"]).loc[("B2−B0", 10)]
    assert row["difference"] == 0
    assert -0.02 < row["low"] < 0 < row["high"] < 0.02
    assert row["verdict"] == "at chance"
    told = results.hypotheses.set_index("name")
    assert "10\xa0% neither is surely better than chance" in told.loc["B2−B0", "text"]
    assert "under 2 points" not in told.loc["B2−B0", "text"]
    assert told.loc["B2−B0: few", "verdict"] == "not asked", "it takes two ratios"
    sentence = _answer(results, results.contrasts)[0]
    assert "cannot be judged at 10 % labels, where neither is surely better than chance" in sentence


def test_where_species_are_uneven_the_answer_says_what_naming_one_of_them_scores(
    tmp_path: Path,
) -> None:
    folder = write_run(tmp_path / "run", ratios=(10,), trials=2, encoders=0)
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert "always naming" not in Results(load(folder)).answer[-1]
    many = predictions["file"].isin(predictions["file"].unique()[::2])
    predictions.loc[many, "true"] = "Map"
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    share = predictions.drop_duplicates("file")["true"].eq("Map").mean()
    said = f"(always naming the most frequent of the 20 species: {100 * share:.1f} %)"
    assert said in Results(load(folder)).answer[-1].replace("\xa0", " ")


def test_numbers_in_words() -> None:
    assert minus("x is -0.0.") == "x is 0.0."
    assert minus("from -0.05 to +0.1") == "from −0.05 to +0.1"
    assert percents([25, 10, 50]) == "10, 25 and 50 %"
    assert percents([10]) == "10 %"
    assert unbroken("B2 − B0, 10 %, 2.0 points or one point") == (
        "B2\xa0−\xa0B0, 10\xa0%, 2.0\xa0points or one point"
    )
    assert minus("-0.5 to -.25, fine-tuning, 1e-4") == "−0.5 to −.25, fine-tuning, 1e−4"


def test_what_rounds_to_nothing_has_no_sign() -> None:
    row = {"difference": -0.0004, "low": -0.012, "high": 0.0003}
    assert minus(in_points(row)) == "0.0 points [95 % interval −1.2 to 0.0]"
    assert minus("+0.04 and -10 to -0.25") == "+0.04 and −10 to −0.25"
    shown = points(row, "key")
    assert (shown.text, shown.small) == ("0.0", "−1.2 to 0.0")


def test_pretraining_by_a_recipe_and_the_unlabelled_images_are_answered(
    tmp_path: Path,
) -> None:
    variants = ("B0", "B2-masked", "C")
    run = write_run(tmp_path / "run", ratios=(10,), trials=2, encoders=0, variants=variants)
    results = Results(load(run))
    first, *_, unlabelled, _ = [s.replace("\xa0", " ") for s in results.answer]
    assert first.startswith("Pretraining (masked: B2-masked − B0)")
    assert unlabelled.startswith("Learning from the unlabelled images besides (C − B0)")


def test_fine_tuning_of_a_recipe_is_answered(tmp_path: Path) -> None:
    variants = ("B0", "B1-masked", "B2-masked")
    run = write_run(tmp_path / "run", ratios=(10,), trials=2, encoders=0, variants=variants)
    results = Results(load(run))
    sentences = [s.replace("\xa0", " ") for s in results.answer]
    assert sentences[1].startswith("Fine-tuning (B2-masked − B1-masked)")
    questions = results.hypotheses.set_index("name")["question"]
    assert questions["B2-masked−B0"] == "Does pretraining help the fine-tuned network (masked)?"
    assert "B2-masked−B1-masked" in questions


def test_a_study_without_pretraining_is_answered_by_what_it_asks(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ratios=(10,), trials=2, encoders=0, variants=("B0", "C"))
    first, *others = [s.replace("\xa0", " ") for s in Results(load(run)).answer]
    assert first.startswith("Learning from the unlabelled images besides (C − B0)")
    assert others[0].startswith("Whether pretraining helps is not decided by this data")
