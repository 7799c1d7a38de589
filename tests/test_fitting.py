"""A fit that is interrupted goes on from its checkpoint as if nothing had happened."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.module import ButterflyDataModule
from data.storage import Location
from models.classifiers import build_classifier
from models.training import ClassifierModule
from study import fitting
from study.fitting import Checkpoint, EpochEnd, fit
from study.material import Material
from study.trial import METRICS

CPU = torch.device("cpu")
Row = dict[str, Any]


class KilledError(Exception):
    """What ends a fit in the middle."""


@pytest.fixture(scope="module")
def material(make_material: Callable[..., Material]) -> Material:
    return make_material()


@pytest.fixture(autouse=True)
def _checkpoint_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "CHECKPOINT_COST", math.inf)


class Fit:
    """One fit of a tiny classifier: B0, so that there is dropout, and random numbers with it."""

    def __init__(
        self,
        material: Material,
        *,
        checkpoint: Checkpoint | None = None,
        kill_after: int | None = None,
        epochs: int = 4,
        **options: Any,
    ):
        torch.manual_seed(1)
        network = build_classifier("B0", num_classes=3, image_size=16, width=4)
        module = ClassifierModule(network, 3, lr=options.get("lr", 3e-3))
        data = ButterflyDataModule(
            material.images.pixels,
            material.images.labels,
            train=material.rows("train"),
            valid=material.rows("valid"),
            batch_size=4,
            seed=2,
        )
        self.reported: list[Row] = []

        def report(row: Row) -> None:
            self.reported.append(row)
            if kill_after is not None and row["epoch"] > kill_after:
                raise KilledError

        self.ends = EpochEnd("val_f1", METRICS, report, keep=True, checkpoint=checkpoint)
        self.network = network
        patience = options.get("patience", 9)
        self.trainer = fit(
            module, data, self.ends, max_epochs=epochs, patience=patience, device=CPU
        )


def values(rows: list[Row]) -> list[Row]:
    """Rows without their times."""
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "ended")}
        for row in rows
    ]


def weights(one: Fit) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in one.network.state_dict().items()}


@pytest.fixture(scope="module")
def undisturbed(material: Material) -> Fit:
    torch.set_num_threads(1)
    return Fit(material)


def test_a_fit_reports_every_epoch_once(undisturbed: Fit) -> None:
    assert [row["epoch"] for row in undisturbed.reported] == [1, 2, 3, 4]
    assert all(set(row) == {"epoch", "seconds", "ended", *METRICS} for row in undisturbed.reported)
    assert all(row["seconds"] > 0 for row in undisturbed.reported)


def test_the_same_seed_gives_the_same_fit(material: Material, undisturbed: Fit) -> None:
    again = Fit(material)
    assert values(again.reported) == values(undisturbed.reported)
    assert weights(again) == weights(undisturbed)


@pytest.mark.parametrize("kill_after", [1, 2, 3])
def test_an_interrupted_fit_goes_on_bit_for_bit(
    material: Material, undisturbed: Fit, tmp_path: Path, kill_after: int
) -> None:
    checkpoint = Checkpoint(Location(tmp_path), "x")
    with pytest.raises(KilledError):
        Fit(material, checkpoint=checkpoint, kill_after=kill_after)
    again = Fit(material, checkpoint=checkpoint)
    assert values(again.reported) == values(undisturbed.reported), "the old rows again, then new"
    assert values(again.ends.rows) == values(undisturbed.ends.rows)
    assert weights(again) == weights(undisturbed)
    assert again.ends.best_state is not None
    assert undisturbed.ends.best_state is not None
    for name, best in undisturbed.ends.best_state.items():
        assert torch.equal(again.ends.best_state[name], best), "also where it came before"


def test_storage_that_takes_no_checkpoint_stops_no_fit(
    material: Material, undisturbed: Fit, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints" / "x.ckpt").mkdir(parents=True)  # no file can take its place
    checkpoint = Checkpoint(Location(tmp_path, patience=99), "x")
    checkpoint.fetch = lambda folder: None  # type: ignore[method-assign]
    going_on = Fit(material, checkpoint=checkpoint)
    assert values(going_on.reported) == values(undisturbed.reported)


def test_a_fit_that_dies_after_its_last_epoch_reports_all_of_them_again(
    material: Material, undisturbed: Fit, tmp_path: Path
) -> None:
    """Its checkpoint is whole, but whoever counts the epochs may have died with it."""
    checkpoint = Checkpoint(Location(tmp_path), "x")
    Fit(material, checkpoint=checkpoint)
    again = Fit(material, checkpoint=checkpoint)
    assert values(again.reported) == values(undisturbed.reported)
    assert again.trainer.global_step == undisturbed.trainer.global_step
    assert again.ends.best_state is not None


def test_interrupted_twice(material: Material, undisturbed: Fit, tmp_path: Path) -> None:
    checkpoint = Checkpoint(Location(tmp_path), "x")
    for kill_after in (1, 3):
        with pytest.raises(KilledError):
            Fit(material, checkpoint=checkpoint, kill_after=kill_after)
    again = Fit(material, checkpoint=checkpoint)
    assert values(again.reported) == values(undisturbed.reported)
    assert weights(again) == weights(undisturbed)


@pytest.mark.parametrize(
    "spoil",
    [lambda c: c[:-100], lambda c: c[:-1] + bytes([c[-1] ^ 1]), lambda _: b"", lambda _: b"x"],
)
def test_a_damaged_checkpoint_is_ignored(
    material: Material, undisturbed: Fit, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    checkpoint = Checkpoint(Location(tmp_path), "x")
    with pytest.raises(KilledError):
        Fit(material, checkpoint=checkpoint, kill_after=2)
    checkpoint.file.write_bytes(spoil(checkpoint.file.read_bytes()))
    again = Fit(material, checkpoint=checkpoint)
    assert values(again.reported) == values(undisturbed.reported)
    assert weights(again) == weights(undisturbed)


def test_checkpoints_are_rare(material: Material, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 15.0)
    Fit(material, checkpoint=Checkpoint(Location(tmp_path), "x"))
    assert list(tmp_path.iterdir()) == [], "a fit of a second needs none"


def test_patience_ends_a_fit_and_the_best_epoch_is_kept(material: Material, tmp_path: Path) -> None:
    still = Fit(material, epochs=9, patience=2, lr=1e-12)  # nothing ever gets better
    assert [row["epoch"] for row in still.reported] == [1, 2, 3]
    assert still.ends.best is not None
    assert still.ends.best["epoch"] == 1, "the first of equals"
    moving = Fit(material, epochs=6, lr=3e-3)
    best = max(row["val_f1"] for row in moving.reported)
    assert moving.ends.best is not None
    assert moving.ends.best["val_f1"] == best
    assert moving.ends.best_state is not None
    assert moving.ends.best_state.keys() == moving.network.state_dict().keys()


def test_patience_counts_on_over_an_interruption(material: Material, tmp_path: Path) -> None:
    checkpoint = Checkpoint(Location(tmp_path), "x")
    options: dict[str, Any] = {"epochs": 9, "patience": 3, "lr": 1e-12}
    with pytest.raises(KilledError):
        Fit(material, checkpoint=checkpoint, kill_after=2, **options)
    again = Fit(material, checkpoint=checkpoint, **options)
    assert [row["epoch"] for row in again.reported] == [1, 2, 3, 4]


def test_a_loss_that_is_no_number_raises(material: Material, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at epoch \d"):
        Fit(material, lr=1e38, epochs=9)
