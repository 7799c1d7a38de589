"""docs/EXTENDING.md: its encoder and its objective work as they stand there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models import registry
from models.registry import Architecture, build_encoder, build_objective
from study.cells import Cell
from study.config import config_from
from study.encoders import plan_encoder, pretrain, read_card
from study.material import Material

PAGE = Path(__file__).parents[1] / "docs" / "EXTENDING.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture
def extended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's two modules and its two lines."""
    encoder, line, objective, other_line = blocks("python")
    for name, code in (("models.patches", encoder), ("models.objectives.rotation", objective)):
        module = types.ModuleType(name)
        exec(code, module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
    known: dict[str, Any] = {"Architecture": Architecture}
    for name in ("ARCHITECTURES", "OBJECTIVES"):
        known[name] = dict(getattr(registry, name))
    exec(line + other_line, known)
    for name in ("ARCHITECTURES", "OBJECTIVES"):
        for key in set(known[name]) - set(getattr(registry, name)):
            monkeypatch.setitem(getattr(registry, name), key, known[name][key])


@pytest.mark.usefixtures("extended")
def test_the_encoder_keeps_its_promises() -> None:
    encoder = build_encoder("patches", width=8, image_size=32)
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, encoder.channels, 4, 4)
    with pytest.raises(ValueError, match="expected a multiple of 8"):
        encoder(torch.zeros(2, 3, 30, 30))
    objective = build_objective("rotation", encoder, images=2)
    objective.loss(torch.rand(2, 3, 32, 32), torch.arange(2)).backward()
    assert encoder.layers[0].weight.grad.abs().sum() > 0


@pytest.mark.usefixtures("extended")
def test_the_study_of_the_page_is_a_configuration_and_its_encoders_can_be_made(
    make_material: Any,
) -> None:
    (page,) = blocks("yaml")
    tree = yaml.safe_load(page)
    config = config_from(tree, "the page")
    assert config.recipe("B2-turned").objective == "rotation"
    small = {"encoder": tree["encoder"] | {"epochs": 1, "width": 4}, "encoders": tree["encoders"]}
    material: Material = make_material(cells={"variants": ["B1", "B1-turned"]}, **small)
    for variant, objective in (("B1", "reconstruction"), ("B1-turned", "rotation")):
        plan = plan_encoder(material, Cell(variant, 100), None)
        assert plan is not None
        assert pretrain(material, plan)["row"]["objective"] == objective
        assert read_card(plan, material.run) is not None
