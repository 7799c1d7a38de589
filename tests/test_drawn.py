"""Encoders that are pretrained on species invented and drawn by the program."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from data.invented import draw_species, invent
from study.cells import Cell
from study.encoders import encoder_digest, plan_encoder, pretrain
from study.trial import train_classifier

DRAWN = {"species": 5, "each": 6}
RECIPE = {"objective": "species", "pretrain_on": "drawn", "drawn": DRAWN, "epochs": 3}
RECIPE |= {"schedule": "cosine", "lr": 1e-2}
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MARIPOSA_CACHE", str(folder))
        yield folder


def test_a_seed_draws_the_same_species_and_fewer_of_them_first() -> None:
    images = draw_species(3, 2, 32, seed=1)
    assert images.shape == (6, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(draw_species(2, 2, 32, seed=1), images[:4])
    assert np.array_equal(draw_species(3, 1, 32, seed=1), images[::2])
    assert not np.array_equal(draw_species(3, 2, 32, seed=2), images)


def test_species_are_alike_within_and_differ_between() -> None:
    """Colours of the middle, where the butterfly is; by their mean over two images."""
    count, each = 30, 8
    images = draw_species(count, each, 32, seed=0)[:, 10:22, 10:22] / 255
    colours = np.median(images, axis=(1, 2)).reshape(count, each, 3)
    within = colours.std(axis=1).mean()
    between = colours.mean(axis=1).std(axis=0).mean()
    assert between > within / np.sqrt(each) * 1.5
    assert len({invent(np.random.default_rng(i)).palette for i in range(50)}) == 50


def test_an_encoder_learns_from_drawn_images_alone(make_material: Make, cache: Any) -> None:
    material = make_material(
        cells={"variants": ["B0", "B2-drawn", "C2-drawn"], "label_ratios": [50]},
        encoders={"drawn": RECIPE},
    )
    plan = plan_encoder(material, Cell("B2-drawn", 50), None)
    assert plan is not None
    assert plan.rows == ()
    assert plan == plan_encoder(material, Cell("C2-drawn", 50), None), "one encoder for both"
    made = pretrain(material, plan)
    assert made["row"]["objective"] == "species"
    assert made["row"]["images"] == 25, "of each species one of six is for validation"
    losses = [epoch["valid_loss"] for epoch in made["epochs"]]
    assert len(losses) == 3
    assert all(np.isfinite(losses))
    assert [file.name.split("-")[0] for file in (cache / "features").glob("*.npy")] == ["drawn"]
    first = encoder_digest(material, plan)
    plan.card(material.run).delete()
    pretrain(material, plan)
    assert encoder_digest(material, plan) == first, "the same seed, the same weights"


def test_both_kinds_start_from_it_and_learn(make_material: Make, cache: Any) -> None:
    material = make_material(
        cells={"variants": ["B2-drawn", "C2-drawn"], "label_ratios": [50]},
        encoders={"drawn": RECIPE},
        training={"max_epochs": 2},
    )
    plan = plan_encoder(material, Cell("B2-drawn", 50), None)
    assert plan is not None
    pretrain(material, plan)
    for variant in ("B2-drawn", "C2-drawn"):
        rows: list[Any] = []
        started = torch.random.get_rng_state()
        train_classifier(material, Cell(variant, 50), lr=1e-3, seed=1, report=rows.append)
        torch.random.set_rng_state(started)
        assert len(rows) == 2
        assert all(np.isfinite(row["val_loss"]) for row in rows)


def test_its_key_follows_from_what_is_drawn_and_not_from_the_photographs(
    make_material: Make,
) -> None:
    def key(repeat: int | None = None, recipe: Any = RECIPE, **changes: Any) -> str:
        cells = {"variants": ["B2-drawn"], "label_ratios": [50, 100]}
        material = make_material(cells=cells, encoders={"drawn": recipe}, **changes)
        plan = plan_encoder(material, Cell("B2-drawn", 50), repeat)
        assert plan is not None
        return plan.key

    plain = key()
    assert key(data={"split": {"pooled": {"test_per_class": 2, "valid_per_class": 1}}}) == plain
    assert key(repeat=1) == plain, "shared"
    assert key(repeat=1, recipe=RECIPE | {"per_repeat": True}) != plain
    assert key(recipe=RECIPE | {"drawn": DRAWN | {"each": 7}}) != plain


def test_encoders_of_older_studies_keep_their_keys(make_material: Make) -> None:
    """Settings that came later change no key where they are as they were."""
    material = make_material(encoder={"objective": "reconstruction"})
    plan = plan_encoder(material, Cell("B1", 100), None)
    assert plan is not None
    images = material.images
    described = {
        name: value
        for name, value in plan.recipe.model_dump().items()
        if name not in ("per_repeat", "normalise", "drawn", "schedule", "view_size")
    }
    described |= {"image_size": 16, "seed": plan.seed, "fingerprint": images.fingerprint}
    described["files"] = [images.files[row] for row in plan.rows]
    text = json.dumps(described, sort_keys=True)
    assert plan.key == f"unet-{hashlib.blake2b(text.encode(), digest_size=5).hexdigest()}"
