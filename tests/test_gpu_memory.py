"""Which networks are tried on a GPU before the search: those of the study, and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from models.classifiers import ConvClassifier, EncoderClassifier
from models.objectives import Objective
from study.gpu_memory import networks

pytestmark = pytest.mark.timeout(60)

MakeMaterial = Callable[..., Any]


def tried(make_material: MakeMaterial, **changes: Any) -> list[tuple[type, int, bool]]:
    """The kind of each network, its images a step, and whether it has a moving average."""
    found = []
    for network, images, loss, averaged in networks(make_material(**changes)):
        assert loss(network, images).requires_grad
        found.append((type(network), len(images), averaged))
    return found


def test_each_network_of_the_study_once(make_material: MakeMaterial) -> None:
    a, on_encoder, *objectives = tried(
        make_material, cells={"variants": ["A", "B0", "B1", "B2"]}, encoder={"batch_size": 8}
    )
    assert a == (ConvClassifier, 4, False)
    assert on_encoder == (EncoderClassifier, 4, False), "B0, B1 and B2 are the same network"
    ((objective, images, _),) = objectives
    assert issubclass(objective, Objective)
    assert images == 8


def test_what_the_study_does_not_train_is_not_tried(make_material: MakeMaterial) -> None:
    assert tried(make_material, cells={"variants": ["A"]}) == [(ConvClassifier, 4, False)]
    assert tried(make_material, cells={"variants": ["B0"]}) == [(EncoderClassifier, 4, False)]


def test_an_average_and_unlabelled_images_take_memory_too(make_material: MakeMaterial) -> None:
    found = tried(make_material, cells={"variants": ["C"]}, semi={"unlabelled_per_step": 6})
    assert found == [(EncoderClassifier, 10, True)]
    averaged = tried(make_material, cells={"variants": ["A"]}, training={"average": 0.9})
    assert averaged == [(ConvClassifier, 4, True)]


def test_every_recipe_is_tried(make_material: MakeMaterial) -> None:
    found = tried(
        make_material,
        cells={"variants": ["B0", "B2-wide"]},
        encoders={"wide": {"width": 8, "architecture": "residual", "objective": "instance"}},
    )
    assert [kind for kind, _, _ in found[:2]] == [EncoderClassifier] * 2
    assert len(found) == 3, "only B2-wide is pretrained"
