"""Tests in noise: what is drawn, what is recorded, and what follows from it.

Numbers are computed a second way: the noise with NumPy from the generator's own draws, predictions
by the kept model, scores and clusters by scikit-learn, differences from the predictions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from records_example import write_run
from sklearn import metrics as sk
from sklearn.cluster import KMeans
from test_figures import _texts
from test_report_numbers import Numbers, holm, plain, shown_points

from analysis import load
from analysis.figures import robustness as figures_robustness
from analysis.latents import reduce
from analysis.load import Run
from analysis.report import write_report
from analysis.results import Results
from data.storage import InputError, Location
from study.cells import Cell
from study.classifiers_kept import load_classifier
from study.completeness import missing_or_damaged
from study.config import config_from
from study.encoders import EncoderPlan, plan_encoder, pretrain
from study.evaluation import Repeat, evaluate, in_noise, noise_levels, record, repeats_to_run
from study.features import all_rows, cluster_in_noise, clusters_file, encode, has_clusters
from study.fitting import use_device
from study.material import Material
from study.noisy import NoisyBatches
from study.records import Ledger, read_table
from study.seeds import seed_for
from study.trial import train_classifier

MakeMaterial = Callable[..., Material]
LEVELS = (0.1, 0.4)
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("no_png")


@pytest.fixture(scope="module", autouse=True)
def _on_the_cpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def material(_on_the_cpu: None, make_material: MakeMaterial) -> Material:
    """A study that tests in noise, its encoder pretrained."""
    cells = {"variants": ["A", "B0", "B1", "B2"]}
    made = make_material(cells=cells, evaluation={"repeats": 2, "noise": [0.4, 0, 0.1]})
    pretrain(made, _plan(made))
    return made


def _plan(material: Material) -> EncoderPlan:
    found = plan_encoder(material, Cell("B1", 100), None)
    assert found is not None
    return found


# --- The noise -----------------------------------------------------------------------------------


def by_hand(material: Material, row: int, share: float) -> np.ndarray:
    """An image with its noise, (H, W, 3) in [-1, 1], from the generator's own draws."""
    clean = material.images.pixels[row].astype(np.float64) / 127.5 - 1
    seed = seed_for(material.config.seed, "noise", share, material.images.files[row])
    drawn = torch.rand(16, 16, generator=torch.Generator().manual_seed(seed)).numpy()
    clean[drawn < share / 2] = 1.0
    clean[(drawn >= share / 2) & (drawn < share)] = -1.0
    return np.asarray(clean)


def noisy(material: Material, rows: Any, share: float) -> np.ndarray:
    batches = NoisyBatches(material, np.asarray(rows), share, CPU)
    return np.concatenate([inputs.permute(0, 2, 3, 1).numpy() for inputs, _ in batches])


def test_an_images_noise_is_its_own(material: Material) -> None:
    """Not that of its place in a batch, nor of who looks."""
    rows = all_rows(material)
    before = material.images.pixels[rows].copy()
    found = noisy(material, rows, 0.4)
    expected = np.stack([by_hand(material, row, 0.4) for row in rows])
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(noisy(material, rows[::-1].copy(), 0.4)[::-1], found)
    assert np.array_equal(noisy(material, rows[5:6], 0.4), found[5:6])
    assert np.array_equal(material.images.pixels[rows], before), "the map stays as it is"


def test_half_of_the_noise_is_white_and_half_black(material: Material) -> None:
    rows = all_rows(material)
    clean, found = noisy(material, rows, 0.0), noisy(material, rows, 0.4)
    changed = (found != clean).any(axis=-1)
    white, black = (found == 1).all(axis=-1) & changed, (found == -1).all(axis=-1) & changed
    assert (white | black)[changed].all()
    # 48 images of 256 pixels: a standard deviation of 0.4 %
    assert white.mean() == pytest.approx(0.2, abs=0.015)
    assert black.mean() == pytest.approx(0.2, abs=0.015)
    other = noisy(material, rows, 0.1) != clean
    assert 0.3 < changed[other.any(axis=-1)].mean() < 0.5, "levels draw anew"


@pytest.mark.parametrize("noise", [[1.1], [-0.1], ["much"], [float("nan")]])
def test_noise_that_is_no_share_is_named(noise: list[object]) -> None:
    with pytest.raises(InputError, match=r"evaluation\.noise") as caught:
        config_from({"evaluation": {"noise": noise}}, "mine.yaml")
    assert "\n" not in str(caught.value)


# --- The final evaluation ------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["A", "B1", "B2"])
def test_without_noise_the_predictions_are_those_on_record(
    material: Material, variant: str
) -> None:
    """Also of B1, whose clean features were computed once."""
    cell = Cell(variant, 100)
    result = evaluate(material, Repeat(cell, 0, 3e-3))
    fitted = train_classifier(
        material,
        cell,
        lr=3e-3,
        seed=seed_for(material.config.seed, "repeat", 0),
        report=lambda row: None,
        repeat=0,
        final=True,
    )
    assert fitted.ends.best_state is not None
    fitted.trained.network.load_state_dict(fitted.ends.best_state)
    for clean, again in zip(result["predictions"], in_noise(material, fitted, 0.0), strict=True):
        assert [clean[k] for k in again if k not in ("probability", "loss")] == [
            again[k] for k in again if k not in ("probability", "loss")
        ]
        assert again["probability"] == pytest.approx(clean["probability"], abs=1e-5)
        assert again["loss"] == pytest.approx(clean["loss"], abs=1e-4)


@pytest.fixture(scope="module")
def evaluated(material: Material) -> Ledger:
    """Two repeats of B1, on record."""
    ledger = Ledger(material.run)
    trial = {"trial_id": "B1@100-000", "cell": "B1@100", "variant": "B1", "label_ratio": 100}
    scores = {"state": "COMPLETE", "lr": 3e-3, "val_f1": 0.5, "val_loss": 1.0, "epochs": 0}
    ledger.put("trials", trial | scores)
    for number in (0, 1):
        repeat = Repeat(Cell("B1", 100), number, 3e-3)
        record(material, ledger, repeat, evaluate(material, repeat))
    ledger.save()
    return ledger


def test_what_is_recorded_is_what_the_kept_model_says_of_the_noisy_images(
    material: Material, evaluated: Ledger
) -> None:
    network, card = load_classifier(material.run, "B1@100")
    rows = material.rows("test")
    for share in LEVELS:
        images = np.stack([by_hand(material, row, share) for row in rows]).astype(np.float32)
        with torch.no_grad():
            logits = network(torch.from_numpy(images).permute(0, 3, 1, 2))
        true = torch.from_numpy(material.images.labels[rows].astype(np.int64))
        losses = torch.nn.functional.cross_entropy(logits, true, reduction="none")
        found = {
            row["file"]: row
            for row in evaluated.rows("robustness")
            if (row["repeat"], row["noise"]) == (card["repeat"], share)
        }
        assert set(found) == {material.images.files[row] for row in rows}
        for row, scores, loss in zip(rows, logits.softmax(1), losses, strict=True):
            one = found[material.images.files[row]]
            assert one["pred"] == material.species[int(scores.argmax())]
            assert one["true"] == material.species[material.images.labels[row]]
            assert one["probability"] == pytest.approx(float(scores.max()), abs=1e-5)
            assert one["loss"] == pytest.approx(float(loss), abs=1e-4)


def test_every_level_but_none_is_tested_once(material: Material, evaluated: Ledger) -> None:
    assert noise_levels(material.config) == LEVELS
    rows = evaluated.rows("robustness")
    assert {(row["repeat"], row["noise"]) for row in rows} == {
        (r, s) for r in (0, 1) for s in LEVELS
    }
    assert len(rows) == 2 * len(LEVELS) * len(material.rows("test"))
    assert read_table(material.run / "robustness.parquet") == rows


def test_a_study_without_noise_has_no_such_record(make_material: MakeMaterial) -> None:
    made = make_material(training={"max_epochs": 1})
    ledger, repeat = Ledger(made.run), Repeat(Cell("A", 100), 0, 3e-3)
    record(made, ledger, repeat, evaluate(made, repeat))
    ledger.save()
    assert len(read_table(made.run / "predictions.parquet")) == 12
    assert not (made.run / "robustness.parquet").is_file()
    searches_only = make_material(evaluation={"repeats": 0, "noise": [0.1]})
    assert noise_levels(searches_only.config) == ()


# --- Resumed, damaged ----------------------------------------------------------------------------


def copy(run: Location, folder: Path) -> Location:
    for file in Path(str(run)).rglob("*"):
        if file.is_file() and "wandb" not in file.parts:
            target = folder / file.relative_to(str(run))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return Location(folder)


def waiting(material: Material, ledger: Ledger) -> set[int]:
    found = repeats_to_run(material.config, ledger)
    return {one.repeat for one in found if one.cell.name == "B1@100"}


def test_whole_records_leave_nothing_to_do(material: Material, evaluated: Ledger) -> None:
    assert waiting(material, evaluated) == set()
    assert Ledger(material.run).repaired == []


def test_deleted_tests_in_noise_are_run_again(
    material: Material, evaluated: Ledger, tmp_path: Path
) -> None:
    run = copy(material.run, tmp_path)
    (run / "robustness.parquet").delete()
    ledger = Ledger(run)
    assert waiting(material, ledger) == {0, 1}
    assert len(ledger.rows("evaluations")) == 2, "what is there stays until it is replaced"
    again = evaluate(material, Repeat(Cell("B1", 100), 1, 3e-3))
    for row in again["robustness"]:
        ledger.put("robustness", row)
    assert waiting(material, ledger) == {0}
    expected = [row for row in evaluated.rows("robustness") if row["repeat"] == 1]
    assert again["robustness"] == expected, "the same to the digit"


def test_a_level_that_lacks_an_image_takes_its_repeat_with_it(
    material: Material, evaluated: Ledger, tmp_path: Path
) -> None:
    ledger = Ledger(copy(material.run, tmp_path))
    file = ledger.rows("predictions")[0]["file"]
    ledger.drop("robustness", repeat=0, noise=0.4, file=file)
    ledger.save()
    again = Ledger(Location(tmp_path))
    assert waiting(material, again) == {0}
    assert len(again.repaired) == 1
    for name in ("evaluations", "predictions", "robustness"):
        assert {row["repeat"] for row in again.rows(name)} == {1}
    again.drop("evaluations", repeat=1)
    again.save()
    assert Ledger(Location(tmp_path)).rows("robustness") == [], "nor does it outlive its repeat"


def test_a_level_that_is_not_there_at_all_is_seen(
    material: Material, evaluated: Ledger, tmp_path: Path
) -> None:
    ledger = Ledger(copy(material.run, tmp_path))
    ledger.drop("robustness", repeat=1, noise=0.1)
    ledger.save()
    assert waiting(material, Ledger(Location(tmp_path))) == {1}


def test_a_damaged_record_is_named(material: Material, evaluated: Ledger, tmp_path: Path) -> None:
    file = copy(material.run, tmp_path) / "robustness.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="delete it and resume, which runs its repeats") as caught:
        Ledger(Location(tmp_path))
    assert str(caught.value).startswith(f"{file}: is damaged (")
    assert "robustness.parquet" in missing_or_damaged(Location(tmp_path), 2, noise=True)
    assert "robustness.parquet" not in missing_or_damaged(Location(tmp_path), 2)


def test_a_repeat_evaluated_anew_leaves_nothing_of_the_old_one(
    material: Material, evaluated: Ledger, tmp_path: Path
) -> None:
    """A study that has grown chose another learning rate."""
    own = Material(material.config, copy(material.run, tmp_path), material.packed, material.key)
    ledger = Ledger(own.run)
    repeat = Repeat(Cell("B1", 100), 0, 1e-12)
    result = evaluate(own, repeat)
    result["robustness"] = [row for row in result["robustness"] if row["noise"] == 0.1]
    record(own, ledger, repeat, result)
    for known in (ledger, Ledger(own.run)):
        rows = [row for row in known.rows("robustness") if row["repeat"] == 0]
        assert rows == result["robustness"]


# --- Clusters in noise ---------------------------------------------------------------------------


def test_clusters_are_k_means_of_the_features_of_noisy_images(material: Material) -> None:
    plan = _plan(material)
    cluster_in_noise(material, plan.key, plan)
    found = pd.DataFrame(read_table(clusters_file(material.run, plan.key)))
    rows = all_rows(material)
    files = [material.images.files[row] for row in rows]
    use_device(material.config)
    for share in LEVELS:
        part = found[found["noise"] == share]
        assert part["file"].tolist() == files
        points = reduce(encode(material, plan.key, plan, share))
        expected = KMeans(3, n_init=10, random_state=0).fit_predict(points)
        assert sk.adjusted_rand_score(expected, part["cluster"]) == pytest.approx(1.0)
    clean, noise = (encode(material, plan.key, plan, share) for share in (0.0, 0.4))
    assert clean.shape == noise.shape == (len(rows), clean.shape[1])
    assert not np.allclose(clean, noise)


def test_torn_clusters_are_made_again(material: Material) -> None:
    assert not has_clusters(material.run, "pixels")
    cluster_in_noise(material, "pixels", None)
    assert has_clusters(material.run, "pixels")
    file = clusters_file(material.run, "pixels")
    file.write_bytes(file.read_bytes()[:-5])
    assert not has_clusters(material.run, "pixels")


# --- Tables --------------------------------------------------------------------------------------

SPECIES = ("Atala", "Brown argus", "Great jay", "Map")
VARIANTS = ("B0", "B1", "B2", "B1-denoising", "B2-denoising")
SIZES: dict[str, Any] = {"species": SPECIES, "ratios": (10, 100), "per_species": (20, 6, 30)}
SIZES |= {"trials": 4, "repeats": 4, "features": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "noisy"
    write_run(folder, variants=VARIANTS, noise=(0, 0.1, 0.3), **SIZES)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return Results(load(folder))


def right_ones(folder: Path, variant: str, ratio: int, noise: float) -> np.ndarray:
    """(repeats, images) of 0 and 1, images by file."""
    name = "robustness" if noise else "predictions"
    rows = pd.read_parquet(folder / f"{name}.parquet")
    rows = rows[
        (rows["cell"] == f"{variant}@{ratio}") & (rows["noise"] == noise if noise else True)
    ]
    found = rows.assign(right=(rows["true"] == rows["pred"]).astype(float))
    return found.pivot(index="repeat", columns="file", values="right").to_numpy()


def accuracy(folder: Path, variant: str, ratio: int, noise: float) -> np.ndarray:
    """Of each repeat."""
    return np.asarray(right_ones(folder, variant, ratio, noise).mean(axis=1))


def test_the_table_is_scikit_learns(folder: Path, results: Results) -> None:
    table = results.robustness
    assert len(table) == len(VARIANTS) * 2 * 3
    for row in table.to_dict("records"):
        variant, ratio, noise = row["variant"], row["label_ratio"], row["noise"]
        found = accuracy(folder, variant, ratio, noise)
        assert row["test_acc"] == pytest.approx(found.mean())
        assert row["test_acc_low"] < row["test_acc"] < row["test_acc_high"]
        assert (row["n"], row["repeats"]) == (120, 4)
        if noise == 0:
            assert np.isnan(row["change"])
            continue
        change = (found - accuracy(folder, variant, ratio, 0)).mean()
        assert row["change"] == pytest.approx(change)
        assert row["change_low"] < change < row["change_high"]
        rows = pd.read_parquet(folder / "robustness.parquet").query("noise == @noise")
        rows = rows[rows["cell"] == f"{variant}@{ratio}"]
        scores = [
            sk.f1_score(part["true"], part["pred"], average="macro")
            for _, part in rows.groupby("repeat")
        ]
        assert row["test_f1"] == pytest.approx(np.mean(scores))


def test_without_noise_it_is_table_i(results: Results) -> None:
    same = ["variant", "label_ratio", *(f"test_acc{end}" for end in ("", "_low", "_high"))]
    clean = results.robustness.query("noise == 0")[same]
    order = ["label_ratio", "variant"]
    expected = results.table[same].sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(
        clean.sort_values(order, ignore_index=True), expected, check_dtype=False
    )


def test_differences_and_differences_of_differences(folder: Path, results: Results) -> None:
    found = results.noise_differences
    names = {"B2−B0", "B2−B1", "B1-denoising−B1", "B2-denoising−B2", "B2-denoising−B0"}
    assert set(found["contrast"]) == names
    assert len(found) == len(names) * 2 * 2 * 2
    for row in found.to_dict("records"):
        one, other = row["contrast"].split("−")
        ratio, noise = row["label_ratio"], row["noise"]
        value = accuracy(folder, one, ratio, noise) - accuracy(folder, other, ratio, noise)
        if row["of"] == "change":
            value = value - accuracy(folder, one, ratio, 0) + accuracy(folder, other, ratio, 0)
        assert row["difference"] == pytest.approx(value.mean())
        assert row["low"] <= row["difference"] <= row["high"]
        assert (row["repeats"], row["n"]) == (4, 120)
    for kind in ("acc", "change"):
        rows = found[found["of"] == kind]
        assert rows["p_holm"].tolist() == pytest.approx(holm(rows["p"].tolist()))
        assert set(rows["verdict"]) & {"higher", "lower"}, "the example decides some"


def test_many_comparisons_do_not_hide_a_large_difference(tmp_path: Path) -> None:
    """125 of them: with 2,000 draws no adjusted p-value could be under 0.06."""
    levels = (0.1, 0.2, 0.3, 0.4, 0.5)
    more: dict[str, Any] = {"ratios": (10, 25, 50, 75, 100), "encoders": 0}
    write_run(tmp_path / "run", variants=VARIANTS, noise=levels, **SIZES | more)
    found = Results(load(tmp_path / "run")).noise_differences.query("of == 'change'")
    assert len(found) == 125
    assert found["p_holm"].min() < 0.05
    assert "higher" in set(found["verdict"])


def test_a_difference_of_differences_is_as_sure_as_its_images_and_repeats(
    folder: Path, results: Results
) -> None:
    """Its interval has the width of a plain crossed bootstrap of the four cells' predictions."""
    random = np.random.default_rng(3)
    cells = [(v, n) for n in (0.3, 0.0) for v in ("B2-denoising", "B2")]
    one, other, one_clean, other_clean = (right_ones(folder, v, 10, n) for v, n in cells)
    each = (one - other) - (one_clean - other_clean)
    drawn = []
    for _ in range(1000):
        repeats, images = (random.integers(size, size=size) for size in each.shape)
        drawn.append(each[np.ix_(repeats, images)].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    (row,) = results.noise_differences.query(
        "contrast == 'B2-denoising−B2' and label_ratio == 10 and noise == 0.3 and of == 'change'"
    ).to_dict("records")
    assert 0.6 < (row["high"] - row["low"]) / (high - low) < 2.0
    assert row["difference"] == pytest.approx(each.mean())


def test_clusters_in_noise_are_scikit_learns(folder: Path, results: Results) -> None:
    files = pd.read_parquet(folder / "features" / "files.parquet").set_index("file")["species"]
    table = results.noise_clusters
    assert list(table["noise"].unique()) == [0, 0.1, 0.3]
    assert set(table["encoder"]) == {"unet-0000", "random", "pixels"}
    for row in table.query("noise > 0").to_dict("records"):
        found = pd.read_parquet(folder / "features" / f"{row['encoder']}.noise.parquet")
        found = found[found["noise"] == row["noise"]]
        species = files[found["file"]]
        nmi = sk.normalized_mutual_info_score(species, found["cluster"])
        assert row["nmi"] == pytest.approx(nmi)
        assert row["ari"] == pytest.approx(sk.adjusted_rand_score(species, found["cluster"]))
        assert row["nmi_low"] < row["nmi"] < row["nmi_high"]
        assert row["k"] == len(SPECIES)
    clean = results.latents.clusters.query("space == 'latent'")
    same = ["encoder", "nmi", "nmi_low", "nmi_high", "purity"]
    pd.testing.assert_frame_equal(
        table.query("noise == 0")[same].reset_index(drop=True), clean[same].reset_index(drop=True)
    )


# --- Hypothesis 2 in words -----------------------------------------------------------------------


def told(folder: Path) -> pd.DataFrame:
    return Results(load(folder)).noise_questions.set_index("name")


def test_denoising_encoders_that_keep_more_are_called_more_robust(results: Results) -> None:
    found = results.noise_questions.set_index("name").loc["noise: denoising−plain"]
    assert found["verdict"] == "yes"
    changes = results.noise_differences.query("of == 'change'")
    own = changes[changes["contrast"] == "B2-denoising−B2"]
    sure = own[own["verdict"] == "higher"]
    most = sure.loc[sure["difference"].idxmax()]
    assert (
        f"B2-denoising loses less accuracy than B2 in {len(sure)} of 4 comparisons, most at "
        f"{most['label_ratio']} % labels with {100 * most['noise']:g} % noisy pixels: "
        f"+{100 * most['difference']:.1f} points [95 % interval"
    ) in plain(found["text"])
    assert re.search(
        r"In noise itself: .*B2-denoising is right more often than B2 in", found["text"]
    )
    assert "noise: denoising−none" in set(results.noise_questions["name"])


def test_what_is_at_chance_in_noise_does_not_tell_whether_denoising_helps(tmp_path: Path) -> None:
    """B2-denoising has more to lose, and all of them lose all of it: it is not the less robust."""
    folder = tmp_path / "run"
    write_run(folder, variants=("B2", "B2-denoising"), noise=(0.3,), encoders=0, **SIZES)
    clean = pd.read_parquet(folder / "predictions.parquet")
    best = clean["variant"] == "B2-denoising"
    clean["pred"] = clean["pred"].where(~best, clean["true"])
    clean.to_parquet(folder / "predictions.parquet", index=False)
    noisy = pd.read_parquet(folder / "robustness.parquet").assign(pred="Map")
    noisy.to_parquet(folder / "robustness.parquet", index=False)
    changes = Results(load(folder)).noise_differences.query("of == 'change'")
    assert (changes["p_holm"] < 0.05).all()
    assert set(changes["verdict"]) == {"at chance"}
    found = told(folder).loc["noise: denoising−plain"]
    assert found["verdict"] == "not decided"
    assert found["text"].startswith("In 2 of 2 comparisons it cannot be judged")


def test_the_answer_is_the_same_where_the_plain_encoder_is_the_recipe(
    folder: Path, tmp_path: Path, results: Results
) -> None:
    """Names exchanged: B2 is the denoising one, B2-plain the other."""
    own = Path(str(copy(Location(folder), tmp_path / "turned")))
    text = re.sub(r"\b(B[12])\b(?!-)", r"\1-plain", (own / "study.yaml").read_text())
    text = text.replace("-denoising", "").replace("    denoising:", "    plain:")
    text = text.replace("objective: denoising", "objective: reconstruction")
    text = text.replace("  encoder:\n", "  encoder:\n    objective: denoising\n")
    (own / "study.yaml").write_text(text)
    names = {f"B{i}": f"B{i}-plain" for i in "12"} | {f"B{i}-denoising": f"B{i}" for i in "12"}
    for table in (
        "trials",
        "epochs",
        "evaluations",
        "evaluation_epochs",
        "predictions",
        "robustness",
    ):
        frame = pd.read_parquet(own / f"{table}.parquet")
        frame["variant"] = frame["variant"].replace(names)
        frame["cell"] = frame["variant"] + "@" + frame["label_ratio"].astype(str)
        frame.to_parquet(own / f"{table}.parquet", index=False)
    found = told(own).loc["noise: denoising−plain"]
    assert found["verdict"] == "yes"
    (sentence,) = re.findall(r"B2 loses less accuracy than B2-plain.*?\]", found["text"])
    expected = results.noise_questions.set_index("name").loc["noise: denoising−plain", "text"]
    (other,) = re.findall(r"B2-denoising loses less accuracy than B2 .*?\]", expected)
    points = r"most at \d+ % labels with \d+ % noisy pixels: \S+ points"
    assert re.findall(points, sentence) == re.findall(points, other)


@pytest.mark.parametrize(
    ("variants", "noise", "said"),
    [
        (("B0", "B2"), (0.1,), "The study has no denoising encoder."),
        (("B2", "B2-denoising"), (), "The study does not test in noise (evaluation.noise)."),
        (("B0-denoising", "B1-denoising"), (0.1,), "The study has no result for it: both sides"),
    ],
)
def test_what_was_not_studied_is_not_asked(
    tmp_path: Path, variants: tuple[str, ...], noise: tuple[float, ...], said: str
) -> None:
    write_run(tmp_path / "run", variants=variants, noise=noise, encoders=0, **SIZES)
    found = told(tmp_path / "run").loc["noise: denoising−plain"]
    assert found["verdict"] == "not asked"
    assert found["text"].startswith(said)


def test_each_objective_that_takes_noise_away_has_an_answer_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    variants = ("B1", "B2", "B2-denoising", "B2-variational")
    write_run(folder, variants=variants, noise=(0.3,), encoders=0, **SIZES)
    text = (folder / "study.yaml").read_text()
    before, after = text.split("    variational:\n")
    after = after.replace("objective: reconstruction", "objective: denoising_variational", 1)
    (folder / "study.yaml").write_text(f"{before}    variational:\n{after}")
    found = told(folder)
    assert found.loc["noise: denoising−plain", "verdict"] == "yes"
    other = found.loc["noise: denoising_variational−plain"]
    assert other["question"].startswith("Are denoising variational encoders more robust to noise")
    assert other["verdict"] == "not decided", "it is as B2 in this example"
    assert "B2-denoising" not in other["text"]


# --- The page, and records that do not fit -------------------------------------------------------


def test_every_number_of_the_section_is_one_of_the_frames(folder: Path, results: Results) -> None:
    page = Numbers((folder / "report.html").read_text()).keyed
    for row in results.robustness.to_dict("records"):
        key = f"robustness {row['variant']}@{row['label_ratio']} {row['noise']:g}"
        assert page[f"{key} test_acc"] == f"{row['test_acc']:.3f}"
        ends = f"{row['test_acc_low']:.3f} to {row['test_acc_high']:.3f}"
        assert page[f"{key} test_acc small"] == ends
        if row["noise"]:
            assert page[f"{key} change"] == shown_points(row["change"])
    for row in results.noise_differences.to_dict("records"):
        key = (
            f"noise_differences {row['contrast']}@{row['label_ratio']} {row['noise']:g} {row['of']}"
        )
        assert page[f"{key} difference"] == shown_points(row["difference"])
        shown = "< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"
        assert page[f"{key} p_holm"] == shown
    for row in results.noise_clusters.to_dict("records"):
        key = f"noise_clusters {row['encoder']} {row['noise']:g}"
        for name in ("nmi", "ami", "ari", "purity"):
            assert page[f"{key} {name}"] == f"{row[name]:.3f}"
    for name in ("noise_accuracy", "noise_clusters"):
        assert (folder / "figures" / f"{name}.svg").is_file()
    for name in ("robustness", "noise_differences", "noise_clusters"):
        assert len(pd.read_csv(folder / f"{name}.csv")) == len(getattr(results, name))


def test_figures_show_the_tables(results: Results) -> None:
    table = results.robustness
    figure = figures_robustness.accuracy_in_noise(table)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert set(panels) == {"10 % labels", "100 % labels"}
    for ratio in (10, 100):
        lines = {str(line.get_label()): line for line in panels[f"{ratio} % labels"].get_lines()}
        assert set(lines) == set(VARIANTS)
        for variant, line in lines.items():
            rows = table[(table["variant"] == variant) & (table["label_ratio"] == ratio)]
            assert np.asarray(line.get_xdata()) == pytest.approx(100 * rows["noise"].to_numpy())
            assert np.asarray(line.get_ydata()) == pytest.approx(rows["test_acc"].to_numpy())
        low, high = panels[f"{ratio} % labels"].get_ylim()
        assert low == 0
        assert high > table["test_acc_high"].max(), "no panel cuts a band off"
    assert "noisy pixels (%)" in _texts(figure)
    figure = figures_robustness.clusters_in_noise(results.noise_clusters)
    assert {"unet-0000", "random", "pixels"} <= set(_texts(figure))


def _spoilt(folder: Path, tmp_path: Path, file: str, wrong: pd.DataFrame) -> Run:
    own = Path(str(copy(Location(folder), tmp_path / "spoilt")))
    wrong.to_parquet(own / file, index=False)
    return load(own)


def test_images_that_are_not_those_of_the_study_are_named(folder: Path, tmp_path: Path) -> None:
    file = "robustness.parquet"
    frame = pd.read_parquet(folder / file)
    other = frame.assign(file=frame["file"].str.replace("test/Map/000", "test/Map/999"))
    message = r"robustness\.parquet has other test images at noise 0\.1 than predictions\.parquet"
    with pytest.raises(InputError, match=message):
        _ = Results(_spoilt(folder, tmp_path, file, other)).robustness
    twice = pd.concat([frame, frame.head(1)])
    with pytest.raises(InputError, match=r"robustness\.parquet: \S+ repeat 0 has 120 images"):
        _ = Results(_spoilt(folder, tmp_path, file, twice)).robustness


def test_clusters_of_other_images_are_named(folder: Path, tmp_path: Path) -> None:
    file = "features/random.noise.parquet"
    frame = pd.read_parquet(folder / file).iloc[1:]
    message = r"random\.noise\.parquet: has other images at noise 0\.1 than files\.parquet"
    with pytest.raises(InputError, match=message):
        _ = Results(_spoilt(folder, tmp_path, file, frame)).noise_clusters
