"""Test metrics and their intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records_example import write_run
from scipy import stats
from sklearn import metrics as sklearn_metrics

from analysis import load
from analysis.statistics import (
    NO_PRIOR,
    CellScores,
    Draws,
    above_chance,
    components,
    difference,
    estimate,
    holm,
    least_variance,
    metrics,
    pair,
    prior_of,
    score_cells,
)
from data.storage import InputError

SPECIES = [f"species {number}" for number in range(20)]


def _predictions(
    right: np.ndarray, repeats: int, seed: int = 0, cell: str = "A@10"
) -> pd.DataFrame:
    """A row a repeat and image, right with the probability of each image (N,)."""
    random = np.random.default_rng(seed)
    true = np.arange(len(right)) % len(SPECIES)
    parts = []
    for repeat in range(repeats):
        hit = random.random(len(right)) < right
        pred = np.where(hit, true, (true + random.integers(1, 20, len(true))) % 20)
        names = np.asarray(SPECIES)
        row = {"cell": cell, "repeat": repeat, "file": [f"{i}.jpg" for i in range(len(true))]}
        row |= {"true": names[true], "pred": names[pred], "loss": random.exponential(1, len(true))}
        parts.append(pd.DataFrame(row))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_are_scikit_learns(weighted: bool) -> None:
    """Over the whole set, macro over the species; some lack images, predictions, or both."""
    random = np.random.default_rng(1)
    true, pred = random.integers(0, 6, 90), random.integers(1, 7, (2, 90))
    loss = random.exponential(size=(2, 90))
    weights = random.integers(0, 4, (90, 3)).astype(float) if weighted else np.ones((90, 1))
    found = metrics(true, pred, loss, 8, weights if weighted else None)
    for repeat in range(2):
        for draw in range(weights.shape[1]):
            w = weights[:, draw]
            labels = np.union1d(true[w > 0], pred[repeat][w > 0])
            rest = {"labels": labels, "average": "macro", "zero_division": 0, "sample_weight": w}
            scores = sklearn_metrics.precision_recall_fscore_support(true, pred[repeat], **rest)
            expected = [np.average(loss[repeat], weights=w)]
            expected += [np.average(true == pred[repeat], weights=w), scores[2], *scores[:2]]
            assert [v[repeat, draw] for v in found.values()] == pytest.approx(expected, abs=1e-9)


def test_predictions_give_the_evaluations_to_six_digits(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10, 100), encoders=0))
    scores, _ = score_cells(run.predictions, run.species, draws=2)
    for row in run.evaluations.itertuples():
        found = scores[row.cell]
        at = found.repeats.index(row.repeat)
        for name in ("loss", "acc", "f1", "precision", "recall"):
            assert found.value[name][at] == pytest.approx(getattr(row, f"test_{name}"), abs=1e-6)


@pytest.mark.parametrize(("images", "share"), [(30, 1.0), (30, 0.0), (300, 1.0)])
def test_all_right_or_all_wrong_has_the_score_interval(images: int, share: float) -> None:
    """Wilson's, but for Student's t; a difference of none is no proof of none either."""
    true = np.arange(images) % 3
    draws = Draws(true)
    value, drawn = np.full(2, share), np.full((2, draws.count), share)
    cell = CellScores((0, 1), images, {"acc": value}, {"acc": drawn})
    found = estimate(cell, "acc", draws)
    expected = stats.binomtest(round(share * images), images).proportion_ci(method="wilson")
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=0.007)
    none, p_value = difference(cell, cell, "acc", draws)
    width = 1.96**2 / (images + 1.96**2)  # Tango's, of no pair that differs
    assert [none.low, none.high] == pytest.approx([-width, width], rel=0.06)
    assert p_value == 1


def test_macro_scores_are_as_sure_as_their_rarest_species() -> None:
    """Ten images of one species and a thousand of the other, all right."""
    draws = Draws(np.repeat([0, 1], [10, 1000]))
    assert draws.least["recall"] == pytest.approx(least_variance(4 / (1 / 10 + 1 / 1000)))
    assert draws.least["recall"] > 100 * draws.least["acc"]


@pytest.mark.parametrize("repeats", [1, 5])
@pytest.mark.parametrize("counts", [[50] * 9 + [2], [100] * 5 + [4] * 5])
def test_macro_recall_is_as_unsure_as_its_rare_species(counts: list[int], repeats: int) -> None:
    """Every species is right 60 % of the time, the same images mostly in every repeat. Without
    moderation the first holds that 72 % of the time: two images often agree.
    """
    random, true = np.random.default_rng(0), np.repeat(np.arange(len(counts)), counts)
    draws, held, studies = Draws(true, 300), 0, 150
    of_species = (true == np.arange(len(counts))[:, None]).astype(np.float32)
    drawn_sizes = of_species @ draws.images
    for _ in range(studies):
        usual = random.random(len(true)) < 0.6
        other = random.random((repeats, len(true)))
        right = np.where(random.random(other.shape) < 0.9, usual, other < 0.6).astype(np.float32)
        recall = np.stack(
            [(of_species * one @ draws.images / drawn_sizes).mean(0) for one in right]
        )
        value = {"recall": right @ (of_species.T / counts).mean(axis=1)}
        of_repeats = tuple(range(repeats))
        cell = CellScores(of_repeats, len(true), value, {"recall": recall}, right=right)
        found = estimate(cell, "recall", draws)
        held += found.low <= 0.6 <= found.high
    assert held / studies >= 0.9  # 0.95 less 2.8 standard errors of 150 studies


def test_macro_scores_of_even_species_are_as_their_draws_have_them() -> None:
    scores, draws = score_cells(_predictions(np.full(500, 0.7), 3), SPECIES)
    cell = scores["A@10"]
    assert cell.right is not None
    more, freedom = draws.moderated(cell.right.mean(axis=0))
    assert more == pytest.approx(1)
    assert freedom >= draws.freedom
    assert draws.moderated(np.ones(500)) == (1.0, draws.freedom)


def test_one_image_of_each_species_still_varies() -> None:
    """Those species are one stratum, and the interval is Student's over their images."""
    predictions = _predictions(np.full(20, 0.6), 1)
    scores, draws = score_cells(predictions, SPECIES, draws=4000)
    hit = (predictions["true"] == predictions["pred"]).to_numpy(dtype=float)
    found = estimate(scores["A@10"], "acc", draws)
    low, high = stats.t.interval(0.95, 19, hit.mean(), hit.std(ddof=1) / 20**0.5)
    assert found.high - found.low == pytest.approx(high - low, rel=0.1)


def test_one_repeat_gives_the_stratified_bootstrap_of_scipy() -> None:
    """With one repeat only images vary: SciPy's bootstrap of the species' means."""
    predictions = _predictions(np.repeat([0.9, 0.4], 250), 1)
    scores, draws = score_cells(predictions, SPECIES, draws=4000)
    found = estimate(scores["A@10"], "acc", draws)
    hit = (predictions["true"] == predictions["pred"]).to_numpy(dtype=float)
    of_species = [hit[predictions["true"] == name] for name in SPECIES]  # 25 images each

    def mean(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    rest = {"method": "percentile", "n_resamples": 4000, "rng": np.random.default_rng(0)}
    expected = stats.bootstrap(of_species, mean, vectorized=True, **rest)
    low, high = expected.confidence_interval
    wider = np.sqrt(25 / 24)  # SciPy's draws of n images vary by (n - 1) / n too little
    assert found.value == pytest.approx(hit.mean())
    assert found.high - found.low == pytest.approx(wider * (high - low), rel=0.05)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.004)


def test_identical_images_leave_students_interval_of_the_repeats() -> None:
    """Each repeat all right or all wrong in the same images: n seeds, and nothing else varies."""
    repeats, value = (0, 1, 2, 3, 4), np.array([0.2, 0.5, 0.4, 0.9, 0.6])
    draws = Draws(np.repeat(np.arange(20), 25), 4000)
    same = np.repeat(value[:, None], draws.count, axis=1)
    found = estimate(CellScores(repeats, 500, {"acc": value}, {"acc": same}), "acc", draws)
    expected = stats.t.interval(0.95, 4, value.mean(), stats.sem(value))
    assert [found.low, found.high] == pytest.approx(expected, abs=0.02)


def test_variance_components_are_those_that_made_the_scores() -> None:
    """Two-way random effects of known size; the estimates' mean over many studies."""
    random = np.random.default_rng(0)
    repeats, images, sizes = 5, 200, np.array([0.03, 0.3, 0.5])
    draws = Draws(np.arange(images) % 20, 500)
    found = []
    for _ in range(200):
        scores = sizes[0] * random.normal(size=(repeats, 1)) + sizes[1] * random.normal(size=images)
        scores = scores + sizes[2] * random.normal(size=(repeats, images))
        one = components(scores.mean(axis=1), scores @ draws.images / images, images, draws)
        found.append([one.repeats, one.images, one.both, one.total])
    own, common, crossed = sizes**2 / [repeats, images, repeats * images]
    expected = [own + crossed, common + crossed, crossed, own + common + crossed]
    assert np.mean(found, axis=0) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("repeats", "difficulty", "luck", "noise"),
    [
        pytest.param(5, 1.5, 0.15, 1.0, id="as seen in real studies"),
        pytest.param(5, 0.5, 0.6, 0.5, id="seeds are most of it"),
        pytest.param(3, 2.0, 0.05, 0.3, id="images are most of it"),
    ],
)
def test_intervals_hold_95_percent_of_the_time(
    repeats: int, difficulty: float, luck: float, noise: float
) -> None:
    """Image difficulty, seeds and their interaction; benchmarks/coverage.py has more of it."""
    random = np.random.default_rng(5)
    images, held, trials = 200, 0, 150
    many = random.normal(size=200_000) * np.sqrt(difficulty**2 + luck**2 + noise**2)
    truth = (1 / (1 + np.exp(-many))).mean()
    draws = Draws(np.arange(images) % 20, 400)
    for _ in range(trials):
        logit = difficulty * random.normal(size=images) + luck * random.normal(size=(repeats, 1))
        logit = logit + noise * random.normal(size=(repeats, images))
        hit = random.random(logit.shape) < 1 / (1 + np.exp(-logit))
        drawn = hit.astype(np.float32) @ draws.images / images
        scores = CellScores(
            tuple(range(repeats)), images, {"acc": hit.mean(axis=1)}, {"acc": drawn}
        )
        found = estimate(scores, "acc", draws)
        held += found.low <= truth <= found.high
    assert 0.9 <= held / trials <= 0.995  # 0.95 ± 2.5 standard errors of 150 trials, or a bit over


def test_pairing_on_images_and_seeds_makes_a_difference_surer() -> None:
    """Two cells that agree on most images differ more surely than their own intervals say."""
    right = np.random.default_rng(2).choice([0.02, 0.98], 400)
    better = np.clip(right + 0.08, 0, 1)
    both = [_predictions(right, 5, 1, "B0@10"), _predictions(better, 5, 2, "B2@10")]
    scores, draws = score_cells(pd.concat(both, ignore_index=True), SPECIES)
    found, p_value = difference(scores["B2@10"], scores["B0@10"], "acc", draws)
    alone = [estimate(scores[cell], "acc", draws) for cell in ("B0@10", "B2@10")]
    assert found.value == pytest.approx(alone[1].value - alone[0].value)
    assert found.high - found.low < 0.8 * (alone[0].high - alone[0].low)
    assert found.low > 0
    assert p_value < 0.01


def test_copies_of_a_repeat_count_once() -> None:
    """They have one value between them, whatever the number of copies; two that are only both
    right everywhere are no copies.
    """
    one = _predictions(np.full(200, 0.6), 1)
    many = pd.concat([one.assign(repeat=repeat) for repeat in range(3)], ignore_index=True)
    other = _predictions(np.full(200, 0.5), 3, 7, "B0@10")
    scores, draws = score_cells(pd.concat([many, other], ignore_index=True), SPECIES, 400)
    alone = score_cells(one, SPECIES, 400)[0]
    assert scores["A@10"].distinct == (0,)
    assert estimate(scores["A@10"], "acc", draws) == estimate(alone["A@10"], "acc", draws)
    assert np.isnan(difference(scores["A@10"], scores["A@10"], "acc", draws)[1])
    assert pair(scores["A@10"], scores["B0@10"], "acc").repeats == (0, 1, 2)
    perfect = _predictions(np.ones(200), 2)
    assert score_cells(perfect, SPECIES, 10)[0]["A@10"].distinct == (0, 1)


def test_no_difference_is_seldom_called_one() -> None:
    random = np.random.default_rng(3)
    p_values = []
    for trial in range(40):
        right = random.choice([0.2, 0.9], 200)
        cells = [_predictions(right, 4, 2 * trial + i, cell) for i, cell in enumerate("AB")]
        scores, draws = score_cells(pd.concat(cells, ignore_index=True), SPECIES, draws=300)
        p_values.append(difference(scores["A"], scores["B"], "acc", draws)[1])
    assert np.mean(np.asarray(p_values) < 0.05) <= 0.1


@pytest.mark.parametrize(("freedom", "variance"), [(2.0, 0.5), (4.0, 2.0)])
def test_the_prior_is_the_one_that_made_the_variances(freedom: float, variance: float) -> None:
    """Variances from a scaled inverse chi-squared, as of Smyth's model; six repeats of each."""
    random = np.random.default_rng(0)
    of_rows = variance * freedom / random.chisquare(freedom, 20_000)
    found = prior_of(random.normal(size=(20_000, 6)) * of_rows[:, None] ** 0.5)
    assert found.freedom == pytest.approx(freedom, rel=0.2)
    assert found.variance == pytest.approx(variance, rel=0.1)


def test_equal_variances_are_pooled_and_a_single_row_is_left_alone() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3))
    rows *= 0.1 / rows.std(axis=1, ddof=1, keepdims=True)
    found = prior_of(rows)
    assert (found.variance, found.freedom) == (pytest.approx(0.01), 50)
    assert found.moderated(0.04, 2) == (pytest.approx((8 * 0.01 + 2 * 0.04) / 10), 10)
    for few in (rows[:1], [], [np.array([0.3])] * 9, np.full((9, 3), 0.5)):
        assert prior_of(few) == NO_PRIOR
    assert NO_PRIOR.moderated(0.04, 2) == (pytest.approx(0.04), 2)


def test_always_the_most_frequent_species_is_no_better_than_chance() -> None:
    """Though it is right for 60 of 100 images of two species."""
    true = np.repeat(["a", "b"], [60, 40])
    rows = pd.DataFrame({"cell": "A@10", "repeat": 0, "true": true, "pred": "a", "loss": 1.0})
    rows["file"] = [f"{i}.jpg" for i in range(100)]
    scores, draws = score_cells(rows, ["a", "b"])
    assert estimate(scores["A@10"], "acc", draws).low > 0.55
    assert not above_chance(scores["A@10"], draws)
    scores, draws = score_cells(rows.assign(pred=true), ["a", "b"])
    assert above_chance(scores["A@10"], draws)


def test_holm_as_by_hand() -> None:
    """Smallest first: 4 × 0.005, 3 × 0.01, 2 × 0.03, then never less than the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert list(holm([])) == []


def test_holm_rejects_what_its_procedure_rejects() -> None:
    """Step by step as Holm wrote it: reject the smallest while it is under level / those left."""
    random = np.random.default_rng(0)
    for count in range(1, 30):
        p_values = random.random(count) ** 3
        for level in (0.01, 0.05, 0.3):
            left, rejected = sorted(p_values), set()
            while left and left[0] <= level / len(left):
                rejected.add(left.pop(0))
            found = {p for p, q in zip(p_values, holm(list(p_values)), strict=True) if q <= level}
            assert found == rejected


def test_same_seed_gives_the_same_digits(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", variants=("A",), ratios=(10,), encoders=0))
    found = [score_cells(run.predictions, run.species, 100, seed) for seed in (0, 0, 1)]
    intervals = [estimate(scores["A@10"], "f1", draws) for scores, draws in found]
    assert intervals[0] == intervals[1]
    assert intervals[0] != intervals[2]


def test_a_repeat_that_lacks_images_is_refused(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", variants=("A",), ratios=(10,), encoders=0))
    with pytest.raises(InputError, match=r"A@10 repeat 4 has 499 images"):
        score_cells(run.predictions.iloc[:-1], run.species)
    with pytest.raises(InputError, match="no species of the study"):
        score_cells(run.predictions, run.species[:-1])
