"""What `mariposa plan` says, held against what a study then does."""

from __future__ import annotations

import numpy as np
import pytest

from data.module import ButterflyDataModule
from data.storage import Location
from study.cells import Cell
from study.config import load_config
from study.planning import Counts, images_an_epoch, plan

pytestmark = pytest.mark.timeout(60)


def line(name: str, *overrides: str) -> str:
    lines = plan(load_config("quick", overrides), Location("runs"))
    return next(one for one in lines if one.startswith(name))


@pytest.mark.parametrize("labelled", [7, 63, 70, 140, 700])
@pytest.mark.parametrize("least", [0, 1, 3, 7])
@pytest.mark.parametrize("variant", ["A", "C"])
def test_the_images_of_an_epoch_are_those_that_its_batches_hold(
    labelled: int, least: int, variant: str
) -> None:
    ratio = labelled // 7  # percent of 700
    config = load_config("quick", [f"training.min_steps_per_epoch={least}"])
    data = ButterflyDataModule(
        np.zeros((700, 2), np.float32),
        np.zeros(700, np.int64),
        train=np.arange(labelled),
        valid=np.arange(1),
        batch_size=config.training.batch_size,
        min_steps_per_epoch=least,
        unlabelled=np.arange(700) if variant == "C" else None,
        unlabelled_batch_size=config.semi.unlabelled_per_step,
    )
    seen = 0
    for batch in data.train_dataloader():
        parts = batch[0].values() if variant == "C" else [batch]
        seen += sum(len(inputs) for inputs, _ in parts)
    assert images_an_epoch(config, Counts((700,), 1, 1), Cell(variant, ratio)) == seen


def test_encoders_of_unlabelled_images_are_each_repeats_own() -> None:
    ratios = "cells.label_ratios=[10, 50]"
    assert "1 (shared by all repeats) for B1, B2" in line("encoders", ratios)
    own = line("encoders", ratios, "encoder.pretrain_on=unlabelled", "evaluation.repeats=3")
    assert own.split()[1] == "8", "of two ratios, in the search and in each repeat"
    assert "shared" not in own
