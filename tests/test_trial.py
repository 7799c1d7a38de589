"""One trial, without Ray: what it sees, and what it must not touch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import study.trial
from data.storage import Location
from models.residual import ResidualEncoder
from models.semisupervised import FixMatchModule
from models.weights import from_bytes
from study.cells import VARIANTS, Cell, Variant
from study.encoders import EncoderPlan, load_encoder, plan_encoder, pretrain, read_card
from study.evaluation import PARTS, Repeat, evaluate, forget_outdated, record, repeats_to_run
from study.fitting import Checkpoint
from study.material import Material
from study.records import LABELS, Ledger, Row, read_table, write_table
from study.trial import Fitted, train_classifier

MakeMaterial = Callable[..., Material]


@pytest.fixture(scope="module", autouse=True)
def _on_the_cpu() -> Iterator[None]:
    """Equal to the bit is promised for the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def material(_on_the_cpu: None, make_material: MakeMaterial) -> Material:
    """A study with its encoder pretrained."""
    made = make_material(cells={"variants": ["A", "B0", "B1", "B2"]})
    plan = plan_encoder(made, Cell("B1", 100), None)
    assert plan is not None
    pretrain(made, plan)
    return made


def train(
    material: Material, variant: str, ratio: int = 100, **options: Any
) -> tuple[Fitted, list[Row]]:
    rows: list[Row] = []
    defaults: dict[str, Any] = {"lr": 3e-3, "seed": 5, "report": rows.append}
    fitted = train_classifier(material, Cell(variant, ratio), **defaults | options)
    return fitted, [{k: v for k, v in row.items() if k not in ("seconds", "ended")} for row in rows]


def fingerprints(batches: Iterable[Any]) -> list[str]:
    """A hash of each image in some batches."""
    return [
        hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
        for inputs, _ in batches
        for image in inputs
    ]


def fingerprints_of(material: Material, rows: Any) -> list[str]:
    from data.module import Batches

    images = material.images
    return fingerprints(Batches(images.pixels, images.labels, np.asarray(rows), 64))


@pytest.fixture(scope="module")
def plan(material: Material) -> EncoderPlan:
    found = plan_encoder(material, Cell("B2", 50), None)
    assert found is not None
    return found


# --- What a trial sees ---------------------------------------------------------------------------


def test_a_trial_of_the_search_sees_its_labelled_images_and_no_test_image(
    material: Material,
) -> None:
    fitted, _ = train(material, "A", 50)
    labelled: dict[tuple[int, int | None], list[str]] = {}
    write_table(material.run / "labels.parquet", material.label_rows(), LABELS)
    for row in read_table(material.run / "labels.parquet"):
        labelled.setdefault((row["label_ratio"], row["repeat"]), []).append(row["file"])
    place = {file: i for i, file in enumerate(material.images.files)}
    expected = fingerprints_of(material, [place[file] for file in labelled[50, None]])
    seen = fingerprints(fitted.data.train_dataloader())
    assert sorted(seen) == sorted(expected)
    assert len(seen) == 12, "half of 8, of three species"
    tested = set(fingerprints_of(material, material.rows("test")))
    assert not tested & set(seen + fingerprints(fitted.data.val_dataloader()))
    with pytest.raises(ValueError, match="no test"):
        fitted.data.test_dataloader()


def test_a_trial_of_a_frozen_encoder_sees_no_test_image_either(material: Material) -> None:
    fitted, _ = train(material, "B1", 50)
    assert len(fitted.data._inputs) == len(material.rows("train")) + len(material.rows("valid"))
    with pytest.raises(ValueError, match="no test"):
        fitted.data.test_dataloader()
    fitted, _ = train(material, "B1", 50, final=True, repeat=0)
    assert sum(len(inputs) for inputs, _ in fitted.data.test_dataloader()) == 12


def test_what_was_drawn_of_the_space_is_as_if_the_study_had_it(material: Material) -> None:
    drawn = {"training.weight_decay": 0.5, "training.average": 0.5, "training.batch_size": 4}
    config = material.config.with_settings(drawn)
    for variant in ("A", "B1"):
        _, given = train(material, variant, settings=drawn)
        _, had = train(replace(material, config=config), variant)
        _, without = train(material, variant)
        assert given == had
        assert given != without


def test_labels_are_the_same_for_every_variant_and_nested(material: Material) -> None:
    few, all_ = material.labelled(50), material.labelled(100)
    assert set(few) < set(all_) == set(material.rows("train"))
    assert np.array_equal(np.bincount(material.images.labels[few]), [4, 4, 4])
    by_repeat = {repeat: tuple(material.labelled(50, repeat)) for repeat in (None, 0, 1)}
    assert len(set(by_repeat.values())) == 3, "each repeat draws its own"
    assert tuple(material.labelled(50, 1)) == by_repeat[1]


def test_pretraining_never_sees_validation_or_test_images(
    make_material: MakeMaterial, material: Material, plan: EncoderPlan
) -> None:
    assert set(plan.rows) == set(material.rows("train"))
    unlabelled = make_material(
        encoder={"pretrain_on": "unlabelled"}, cells={"label_ratios": [25, 50]}
    )
    for ratio in (25, 50):
        own = plan_encoder(unlabelled, Cell("B1", ratio), None)
        assert own is not None
        assert set(own.rows) == set(unlabelled.rows("train")) - set(unlabelled.labelled(ratio))


def test_an_encoders_key_follows_from_all_its_weights_follow_from(
    make_material: MakeMaterial, material: Material, plan: EncoderPlan
) -> None:
    def key(made: Material, repeat: int | None = None, ratio: int = 50) -> str:
        found = plan_encoder(made, Cell("B1", ratio), repeat)
        assert found is not None
        return found.key

    assert key(material) == plan.key == key(material, ratio=100), "B1 and B2 share it"
    assert key(material, repeat=0) == plan.key, "per_repeat: false"
    own = make_material(encoder={"per_repeat": True})
    assert len({key(own, repeat) for repeat in (None, 0, 1)}) == 3
    unlabelled = {"pretrain_on": "unlabelled", "per_repeat": False}
    rest = make_material(encoder=unlabelled, cells={"label_ratios": [50]})
    assert len({key(rest, repeat) for repeat in (None, 0, 1)}) == 3, "each labels other images"
    changes = [{"width": 3}, {"epochs": 2}, {"lr": 1e-3}, {"pretrain_on": "unlabelled"}]
    cells = {"label_ratios": [50]}
    keys = {key(make_material(encoder=change, cells=cells)) for change in changes}
    assert len(keys | {plan.key}) == 5
    assert plan_encoder(material, Cell("A", 50), None) is None
    assert plan_encoder(material, Cell("B0", 50), None) is None


def test_a_torn_encoder_is_made_again(material: Material, plan: EncoderPlan) -> None:
    run = material.run
    weights, card = Path(str(plan.weights(run))), Path(str(plan.card(run)))
    assert read_card(plan, run) is not None
    for file in (weights, card):
        whole = file.read_bytes()
        file.write_bytes(whole[:-7])
        assert read_card(plan, run) is None
        file.unlink()
        assert read_card(plan, run) is None
        file.write_bytes(whole)
    assert read_card(plan, run) is not None


# --- Encoders ------------------------------------------------------------------------------------


def test_a_frozen_encoder_is_the_same_after_training(material: Material, plan: EncoderPlan) -> None:
    file = Path(str(plan.weights(material.run)))
    before = file.read_bytes()
    stored = from_bytes(before)
    for variant in ("B1", "B2"):
        fitted, _ = train(material, variant)
        encoder = {
            name.removeprefix("encoder."): value
            for name, value in fitted.network.state_dict().items()
            if name.startswith("encoder.")
        }
        assert encoder.keys() == stored.keys()
        same = [torch.equal(encoder[name].cpu(), stored[name]) for name in stored]
        assert all(same) if variant == "B1" else not any(same)
    assert file.read_bytes() == before
    one, two = load_encoder(material, plan), load_encoder(material, plan)
    assert all(one[name].data_ptr() != two[name].data_ptr() for name in one), "a copy each"


def test_training_on_features_is_training_on_images(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen encoder's outputs are computed once; without that shortcut, the same comes out."""
    quick, fast_rows = train(material, "B1")
    assert quick.data._inputs.ndim == 2
    slow_b1 = Variant("B1", frozen=False)
    monkeypatch.setattr(study.cells, "VARIANTS", VARIANTS | {"B1": slow_b1})
    slow, slow_rows = train(material, "B1")
    assert slow.data._inputs.ndim == 4
    assert len(fast_rows) == len(slow_rows) == 4
    for fast, direct in zip(fast_rows, slow_rows, strict=True):
        assert fast == pytest.approx(direct, abs=1e-4)


def test_features_are_of_the_studys_own_validation_images(
    make_material: MakeMaterial, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where another study on this machine has the same training images and encoder."""

    def rows(valid: int) -> list[Row]:
        split = {"pooled": {"test_per_class": 10 - valid, "valid_per_class": valid}}
        made = make_material(data={"split": split})
        plan = plan_encoder(made, Cell("B1", 100), None)
        assert plan is not None
        pretrain(made, plan)
        return train(made, "B1")[1]

    other, own = rows(4), rows(6)
    monkeypatch.setenv("MARIPOSA_CACHE", str(tmp_path))
    assert rows(6) == own
    assert own != other


def test_a_whole_encoder_is_not_pretrained_again(material: Material) -> None:
    """By a task that Ray runs again, as its machine died when all was written."""
    plan = plan_encoder(material, Cell("B1", 100), None)
    assert plan is not None
    card = pretrain(material, plan)
    assert pretrain(material, plan) == card, "with the times of its epochs"
    plan.weights(material.run).write_bytes(b"torn")
    again = pretrain(material, plan)
    assert again["epochs"] != card["epochs"]
    assert again["checksums"] == card["checksums"]


def test_b0_starts_from_other_weights_than_b2(material: Material) -> None:
    _, scratch = train(material, "B0")
    _, tuned = train(material, "B2")
    assert scratch != tuned
    assert train(material, "B0")[1] == scratch, "the same seed, the same rows"


# --- The final evaluation ------------------------------------------------------------------------


def test_the_final_evaluation_tests_the_best_epochs_weights(material: Material) -> None:
    """What it says of the test set is what its kept weights say."""
    ledger = Ledger(material.run)
    repeat = Repeat(Cell("B1", 50), 0, 3e-3)
    result = evaluate(material, repeat)
    rows, row = result["evaluation_epochs"], result["row"]
    assert row["val_f1"] == max(epoch["val_f1"] for epoch in rows)
    assert rows[row["best_epoch"] - 1]["val_f1"] == row["val_f1"]
    right = [one["true"] == one["pred"] for one in result["predictions"]]
    assert row["test_acc"] == pytest.approx(np.mean(right), abs=1e-6)
    files = {one["file"] for one in result["predictions"]}
    assert files == {material.images.files[i] for i in material.rows("test")}
    assert {one["true"] for one in result["predictions"]} == set(material.species)
    record(material, ledger, repeat, result)
    assert {f.name for f in (material.run / "models").children()} == {
        "B1@50.safetensors",
        "B1@50.json",
    }
    assert len(ledger.rows("predictions")) == 12


def test_a_repeat_evaluated_anew_leaves_nothing_of_the_old_one(make_material: MakeMaterial) -> None:
    """A study that has grown chose another learning rate, and its fits are shorter."""
    made = make_material(training={"max_epochs": 3})
    cell, ledger = Cell("A", 100), Ledger(made.run)
    for lr in (3e-3, 1e-12):
        result = evaluate(made, Repeat(cell, 0, lr))
        if lr == 1e-12:
            result["evaluation_epochs"] = result["evaluation_epochs"][:1]
            result["row"]["epochs"] = 1
        record(made, ledger, Repeat(cell, 0, lr), result)
    for known in (ledger, Ledger(made.run)):
        assert [row["epoch"] for row in known.rows("evaluation_epochs")] == [1]
        assert [row["lr"] for row in known.rows("evaluations")] == [1e-12]
        assert len(known.rows("predictions")) == 12
    card = (made.run / "models" / "A@100.json").read_text()
    assert '"lr": 1e-12' in card, "the kept model is of the new choice, though it is worse"


def test_only_what_is_not_yet_evaluated_is_run(material: Material, tmp_path: Path) -> None:
    ledger = Ledger(Location(tmp_path))
    trial = {"variant": "A", "state": "COMPLETE", "lr": 1e-3, "val_f1": 0.5, "val_loss": 1.0}
    for cell in ("A@50", "A@100"):
        for number, (f1, lr) in enumerate([(0.2, 2e-3), (0.7, 7e-3)]):
            more = {"trial_id": f"{cell}-{number}", "cell": cell, "val_f1": f1, "lr": lr}
            ledger.put("trials", trial | more)
    waiting = list(repeats_to_run(material.config, ledger))
    assert [(one.cell.name, one.lr) for one in waiting] == [("A@100", 0.007), ("A@50", 0.007)]
    for cell in ("A@50", "A@100"):  # each has its model
        for kind in ("json", "safetensors"):
            (tmp_path / "models").mkdir(exist_ok=True)
            (tmp_path / "models" / f"{cell}.{kind}").touch()
    for ratio, lr in [(100, 7e-3), (50, 2e-3)]:
        cell = {"cell": f"A@{ratio}", "variant": "A", "label_ratio": ratio}
        ledger.put("evaluations", cell | {"repeat": 0, "lr": lr})
    again = [one.cell.name for one in repeats_to_run(material.config, ledger)]
    assert again == ["A@50"], "another learning rate has won since"


def test_a_cell_never_has_repeats_of_two_learning_rates(
    make_material: MakeMaterial, tmp_path: Path
) -> None:
    """The study has grown and chosen another; it is interrupted, or the new repeats fail."""
    made, ledger = make_material(), Ledger(Location(tmp_path))
    image = {"file": "a.jpg", "true": "a", "pred": "a"}
    for name, lr in [("A@100", 7e-3), ("A@50", 2e-3)]:
        variant, ratio = name.split("@")
        cell = {"cell": name, "variant": variant, "label_ratio": int(ratio)}
        trial = {"trial_id": f"{name}-000", "state": "COMPLETE", "lr": 7e-3, "val_f1": 0.5}
        ledger.put("trials", cell | trial)
        for repeat in range(2):
            row = cell | {"repeat": repeat, "lr": lr, "epochs": 1, "test_acc": 1.0}
            ledger.put("evaluations", row)
            ledger.put("evaluation_epochs", row | {"epoch": 1})
            ledger.put("predictions", row | image)
            ledger.put("robustness", row | image | {"noise": 0.1})
    forget_outdated(made.config, ledger)
    for known in (ledger, Ledger(Location(tmp_path))):
        for table in (*PARTS, "evaluations"):
            assert [row["cell"] for row in known.rows(table)] == ["A@100"] * 2, table


# --- Interrupted, failed -------------------------------------------------------------------------


def test_a_trial_goes_on_from_its_checkpoint(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import study.fitting

    monkeypatch.setattr(study.fitting, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(study.fitting, "CHECKPOINT_COST", 1e9)
    whole, expected = train(material, "B2")
    checkpoint = Checkpoint(Location(tmp_path), "t")

    def killed(row: Row) -> None:
        if row["epoch"] == 3:
            raise SystemExit  # as Ray ends an actor

    with pytest.raises(SystemExit):
        train(material, "B2", report=killed, checkpoint=checkpoint)
    again, rows = train(material, "B2", checkpoint=checkpoint)
    assert rows == expected
    ours, theirs = again.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_trial_whose_loss_is_no_number_raises(material: Material) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at epoch \d"):
        train(material, "A", lr=1e38)


# --- What else training may be ---------------------------------------------------------------


def test_c_trains_on_unlabelled_images_and_never_sees_their_labels(
    make_material: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"batch_size": 4, "max_epochs": 3, "augment": "light", "average": 0.9}
    training |= {"schedule": "cosine", "weight_decay": 0.01}
    made = make_material(cells={"variants": ["B0", "C"]}, training=training)
    batches: list[Any] = []
    step = FixMatchModule.training_step

    def noted(module: FixMatchModule, batch: Any, batch_idx: int) -> Any:
        batches.append({name: part[0].shape for name, part in batch.items()})
        batch["unlabelled"][1].fill_(-1)  # their labels
        return step(module, batch, batch_idx)

    _, first = train(made, "C", 50)
    monkeypatch.setattr(FixMatchModule, "training_step", noted)
    _, again = train(made, "C", 50)
    assert again == first
    assert len(batches) == 3 * 3, "as many steps as B0 has: 12 labelled images in batches of 4"
    assert batches[0] == {"labelled": (4, 3, 16, 16), "unlabelled": (24, 3, 16, 16)}
    _, control = train(made, "B0", 50)
    assert [row["train_loss"] for row in control] != [row["train_loss"] for row in first]


def test_training_views_may_have_another_size_than_the_images(
    make_material: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Larger here, as the packed images have 16 pixels, the least that the network takes."""
    made = make_material(
        cells={"variants": ["B0"]},
        data={"image_size": 32},
        encoder={"architecture": "residual", "width": 2},
        training={"max_epochs": 1, "augment": "light", "view_size": 32},
    )
    seen: set[tuple[bool, int]] = set()
    forward = ResidualEncoder.forward

    def noted(encoder: ResidualEncoder, images: torch.Tensor) -> torch.Tensor:
        seen.add((encoder.training, images.shape[-1]))
        return forward(encoder, images)

    monkeypatch.setattr(ResidualEncoder, "forward", noted)
    train(made, "B0", 50)
    assert seen == {(True, 32), (False, 16)}
