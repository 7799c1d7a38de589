"""The configuration: what is wrong is said in one line, and a study's own comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from data.storage import InputError
from study.cells import cells_of
from study.config import PRESETS, Config, config_from, differences, load_config
from study.sections import PooledSplit


def problem(*overrides: str, source: str | Path = "quick") -> str:
    with pytest.raises(InputError) as caught:
        load_config(source, overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


WRONG = [
    ("search.trials=0", "search.trials", "found 0", "expected greater than or equal to 1"),
    ("search.trials=three", "search.trials", "found 'three'", "expected a valid integer"),
    ("search.trials='3'", "search.trials", "found '3'", "expected a valid integer"),
    ("search.trials=2.5", "search.trials", "found 2.5", "expected a valid integer"),
    ("search.trials=true", "search.trials", "found True", "expected a valid integer"),
    ("search.trials=null", "search.trials", "found None", "expected a valid integer"),
    ("search.lr=[0, 0.1]", "search.lr.0", "found 0", "expected greater than 0"),
    ("search.lr=[-1e-4, 0.1]", "search.lr.0", "found -0.0001", "expected greater than 0"),
    ("search.lr=[.nan, 0.1]", "search.lr.0", "found nan", "expected a finite number"),
    ("search.lr=[1e-2, 1e-4]", "search.lr", "found [0.01, 0.0001]", "expected [low, high]"),
    ("search.lr=[1e-4]", "search.lr", "found [0.0001]", "expected [low, high]"),
    ("search.lr=[1e-4, 1e-3, 1e-2]", "search.lr", "found [0.0001,", "expected [low, high]"),
    ("search.lr=1e-4", "search.lr", "found 0.0001", "expected [low, high]"),
    ("search.grace_period=99", "search.grace_period", "found 99", "training.max_epochs = "),
    ("search.metric=test_f1", "search.metric", "found 'test_f1'", "expected 'val_f1', 'val_acc'"),
    ("search.max_seconds=0", "search.max_seconds", "found 0", "expected greater than 0"),
    ("resources.gpus_per_trial=1.5", "resources.gpus_per_trial", "found 1.5", "whole number"),
    ("search.trials.x=3", "search.trials", "found {'x': 3}", "expected a valid integer"),
    ("search=3", "search", "found 3", "expected"),
    ("search=null", "search", "found None", "expected"),
    ("encoder.lr=0", "encoder.lr", "found 0", "expected greater than 0"),
    ("cells.variants=[A, D]", "cells.variants.1", "found 'D'", "'B2', 'C' or 'C2'"),
    (
        "cells.variants=[B2-x]",
        "cells.variants",
        "found 'B2-x'",
        "expected a recipe of encoders (none)",
    ),
    ("cells.variants=[A-x]", "cells.variants.0", "found 'A-x'", "expected 'A', 'B0'"),
    ("encoders.x.salt=1.5", "encoders.x.salt", "found 1.5", "less than or equal to 1"),
    ("encoder.pepper=0.95", "encoder.pepper", "found 0.95 with salt 0.1", "expected at most 1"),
    ("evaluation.noise=[0, 2]", "evaluation.noise.1", "found 2", "less than or equal to 1"),
    ("data.image_size=0", "data.image_size", "found 0", "greater than or equal to 16"),
    ("encoder.objective=x", "encoder.objective", "found 'x'", "expected 'reconstruction'"),
    ("encoder.objective={a: 1}", "encoder.objective", "found {'a': 1}", "expected 'reconstr"),
    ("encoder.architecture=[unet]", "encoder.architecture", "found ['unet']", "expected 'unet'"),
    ("cells.variants=[]", "cells.variants", "found []", "expected at least 1"),
    ("cells.variants=A", "cells.variants", "found 'A'", "expected a list"),
    ("cells.variants=[A, A]", "cells.variants", "found ['A', 'A']", "expected each value once"),
    ("cells.label_ratios=[0]", "cells.label_ratios.0", "found 0", "expected greater than or"),
    ("cells.label_ratios=[101]", "cells.label_ratios.0", "found 101", "expected less than or"),
    ("cells.label_ratios=[9.5]", "cells.label_ratios.0", "found 9.5", "expected a valid integer"),
    ("data.image_size=50", "data.image_size", "found 50", "expected a multiple of 8"),
    ("data.root=''", "data.root", "found ''", "expected at least 1 character"),
    ("data.split=poled", "data.split", "found 'poled'", "pooled"),
    ("data.split=3", "data.split", "found 3", "pooled"),
    ("data.split={pool: {}}", "data.split", "found {'pool': {}}", "pooled"),
    ("data.split={pooled: 3}", "data.split.pooled", "found 3", "expected"),
    (
        "data.split={pooled: {test_per_class: 0}}",
        "data.split.pooled.test_per_class",
        "found 0",
        "expected greater than or equal to 1",
    ),
    ("resources.gpus_per_trial=x", "resources.gpus_per_trial", "found 'x'", "'auto' or"),
    ("resources.gpus_per_trial=-1", "resources.gpus_per_trial", "found -1", "'auto' or"),
    ("resources.max_concurrent=0", "resources.max_concurrent", "found 0", "'auto' or"),
    ("tracking.wandb=on", "tracking.wandb", "found True", "expected 'online', 'offline'"),
    ("tracking.project=a/b", "tracking.project", "found 'a/b'", "expected match pattern"),
    ("tracking.project=null", "tracking.project", "found None", "expected a valid string"),
    ("tracking.entity=3", "tracking.entity", "found 3", "expected a valid string"),
    ("tracking.entity=''", "tracking.entity", "found ''", "expected match pattern"),
    ("name=a/b", "name", "found 'a/b'", "expected"),
    ("name=..", "name", "found '..'", "expected"),
    ("seed=-1", "seed", "found -1", "expected greater than or equal to 0"),
]


@pytest.mark.parametrize(("override", "key", "found", "expected"), WRONG, ids=lambda text: text)
def test_a_wrong_value_is_one_line_with_key_found_and_expected(
    override: str, key: str, found: str, expected: str
) -> None:
    line = problem(override)
    assert line.startswith(f"quick: {key}: {found}"), line
    assert expected in line


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.view_size=24"], "found 24, expected a multiple of 16 for residual"),
        (["training.view_size=96"], "found 96, expected at most data.image_size = 64"),
        (["training.augment=none"], "found 32 with training.augment none"),
        (["encoder.architecture=unet"], "found 32 with unet, which takes images of one size, 64"),
        (["cells.variants=[A, B0]"], "found 32 with A, which takes images of one size, 64"),
    ],
)
def test_views_smaller_than_the_images_fit_the_networks(overrides: list[str], said: str) -> None:
    fits = ["training.view_size=32", "training.augment=light", "data.image_size=64"]
    fits += ["cells.variants=[B0, C]", "encoder.architecture=residual"]
    assert load_config("quick", fits).training.view_size == 32
    assert problem(*fits, *overrides).startswith(f"quick: training.view_size: {said}")


def space(**training: object) -> list[str]:
    return [f"search.space.training={yaml.safe_dump(training, default_flow_style=True).strip()}"]


def test_a_space_is_read_written_and_drawn_from() -> None:
    drawn = {"weight_decay": {"loguniform": [1e-4, 0.1]}, "augment": {"choice": ["none", "light"]}}
    config = load_config("quick", space(**drawn))
    assert config_from(config.model_dump(mode="json"), "study.yaml") == config
    given = config.with_settings({"training.augment": "light", "training.weight_decay": 0.01})
    assert (given.training.augment, given.training.weight_decay) == ("light", 0.01)
    assert given.encoder == config.encoder
    assert config.values_of("training.augment") == ("none", "light")
    assert config.values_of("training.batch_size") == (config.training.batch_size,)
    semi = ["search.space.semi.threshold.uniform=[0.5, 0.9]", "cells.variants=[B0, C]"]
    found = load_config("quick", semi)
    assert [list(found.space_of(variant)) for variant in ("B0", "C")] == [[], ["semi.threshold"]]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (space(augment={"choice": ["none", "bold"]}), "training.augment: found 'bold', expected"),
        (space(agment={"choice": [1, 2]}), "training.agment: unknown key; did you mean"),
        (space(average={"uniform": [0.9, 0]}), "training.average.uniform: found [0.9, 0], expect"),
        (space(average={"uniform": [0, 1]}), "training.average: found 1.0, expected less than 1"),
        (space(average={}), "training.average: found nothing, expected one of uniform,"),
        (space(batch_size={"uniform": [8, 64]}), "training.batch_size.uniform: unknown key"),
        (space(augment={"choice": ["none", "none"]}), "training.augment.choice: found"),
        (space(max_epochs={"choice": [3, 9]}), "training.max_epochs: unknown key"),
        (["search.space.semi.weight.uniform=[0, 1]"], "semi: found with cells.variants A, B0,"),
    ],
)
def test_what_no_space_can_have_is_said(overrides: list[str], said: str) -> None:
    assert problem(*overrides).startswith(f"quick: search.space.{said}")


def test_values_of_a_space_that_do_not_go_together() -> None:
    fits = ["cells.variants=[B0]", "encoder.architecture=residual", "training.augment=light"]
    views = {"view_size": {"choice": [16, None]}, "augment": {"choice": ["none", "light"]}}
    line = problem(*fits, *space(**views))
    assert "with which training.view_size: found 16 with training.augment none" in line
    choice = [*space(augment={"choice": ["none", "light"]}), "search.sampler=cmaes"]
    assert "cmaes, which searches numbers only, with search.space" in problem(*choice)


def test_an_encoder_that_is_no_section() -> None:
    with pytest.raises(InputError, match="encoder: found 'unet', expected"):
        load_config("encoders", ["encoder=unet"])


def test_unlabelled_pretraining_needs_unlabelled_images() -> None:
    line = problem("encoder.pretrain_on=unlabelled")
    assert line.startswith("quick: encoder.pretrain_on: found unlabelled")
    assert load_config("quick", ["encoder.pretrain_on=unlabelled", "cells.label_ratios=[10]"])
    only_scratch = ["encoder.pretrain_on=unlabelled", "cells.variants=[A, B0]"]
    assert load_config("quick", only_scratch)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("search.trial", "search.trials"),
        ("trials", "search.trials"),
        ("training.epochs", "training.max_epochs"),
        ("serach.trials", "search"),
        ("image_size", "data.image_size"),
        ("data.split.pooled.test_per_clas", "data.split.pooled.test_per_class"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(key: str, nearest: str) -> None:
    line = problem(f"{key}=3")
    assert "unknown key" in line
    assert f"did you mean {nearest}" in line


def test_what_was_a_word_may_become_a_section() -> None:
    """The preset says `split: folders`; who sets one of a pooled split's counts wants that."""
    split = load_config("paper", ["data.split.pooled.test_per_class=3"]).data.split
    assert split == PooledSplit(test_per_class=3)


def test_an_unknown_key_that_is_near_to_none_suggests_none() -> None:
    assert problem("zebra=3") == "quick: zebra: unknown key"


def test_the_unknown_key_is_named_before_what_follows_from_it() -> None:
    assert "search.trial:" in problem("search.trial=3", "search.grace_period=x")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.trials", "found no '=', expected key=value"),
        ("search.trials={", "is not YAML"),
        ("search.trials=!!python/object:os.system 3", "is not YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, said: str) -> None:
    line = problem(override)
    assert line.startswith(f"--set {override.split('=')[0]}: ")
    assert said in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1, 2\nb: }", "is not YAML"),
        (b"- a\n- b\n", "found a list, expected a YAML mapping"),
        (b"", "found nothing, expected a YAML mapping"),
        (b"just text", "found a str, expected a YAML mapping"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"1: 2\n", "1"),
        (b"search: {trial: 3}\n", "search.trial: unknown key; did you mean search.trials?"),
        (b"search: {trials: 0}\n", "search.trials: found 0"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    line = problem(source=file)
    assert line.startswith(f"{file}: ")
    assert said in line


@pytest.mark.parametrize("name", ["quik", "no/such/file.yaml", "/", "x" * 300])
def test_an_unknown_preset_or_file_is_named(name: str) -> None:
    line = problem(source=name)
    assert line.startswith(f"{name}: found no preset or file of that name")
    assert "smoke, quick, paper, full" in line
    assert ("did you mean quick?" in line) == (name == "quik")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "1_0e-5", ".0001"])
def test_a_number_is_read_as_people_write_it(text: str) -> None:
    config = load_config("quick", [f"encoder.lr={text}", f"search.lr=[{text}, 1]"])
    assert config.encoder.lr == pytest.approx(1e-4)
    assert config.search.lr == pytest.approx((1e-4, 1))


SPECIAL = ("denoising", "rubric", "encoders")


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert load_config(name) == config
    every = ("A", "B1", "B2") if name == "paper" else ("A", "B0", "B1", "B2")
    if name in SPECIAL:  # which have encoders of their own besides
        bases = {variant.partition("-")[0] for variant in config.cells.variants}
        assert {"B0", "B1", "B2"} <= bases
        assert config.encoders
        return
    assert config.cells.variants == every
    if name != "smoke":
        assert config.cells.label_ratios == (10, 25, 50, 75, 100)
        assert len(cells_of(config)) == 5 * len(every)


def test_the_papers_own_numbers() -> None:
    paper = load_config("paper")
    assert (paper.data.image_size, paper.encoder.width, paper.training.batch_size) == (128, 64, 64)
    assert (paper.training.max_epochs, paper.training.patience) == (30, 5)
    assert paper.training.min_steps_per_epoch == 0
    assert paper.encoder.per_repeat, "a repeat has its own encoder"
    assert load_config().name == "quick", "the default"


def test_overrides_and_changes_come_in_order() -> None:
    config = load_config(
        "quick", ["search.trials=3", "search.trials=4", "data.split=pooled"], {"name": "mine"}
    )
    assert (config.search.trials, config.name) == (4, "mine")
    assert config.data.split == PooledSplit(test_per_class=25, valid_per_class=10)
    partly = load_config("quick", ["data.split={pooled: {test_per_class: 3}}"])
    assert partly.data.split == PooledSplit(test_per_class=3, valid_per_class=10)


def test_a_configuration_is_frozen() -> None:
    config = load_config("quick")
    with pytest.raises(ValidationError):
        config.search.trials = 3  # type: ignore[misc]
    assert hash(config) == hash(load_config("quick"))


def test_the_mode_follows_from_the_metric() -> None:
    assert load_config("quick").search.mode == "max"
    assert load_config("quick", ["search.metric=val_acc"]).search.mode == "max"
    assert load_config("quick", ["search.metric=val_loss"]).search.mode == "min"


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("overrides", [[], ["data.split=pooled", "resources.gpus_per_trial=0.25"]])
def test_study_yaml_gives_the_configuration_back(name: str, overrides: list[str]) -> None:
    config = load_config(name, overrides)
    text = yaml.safe_dump(config.model_dump(mode="json"))
    again = config_from(yaml.safe_load(text), "study.yaml")
    assert again == config
    assert differences(config, again) == []


def changed(**sections: dict[str, Any]) -> Config:
    tree = Config().model_dump(mode="json")  # 16 trials
    for name, values in sections.items():
        tree[name] |= values
    return config_from(tree, "a test")


def test_what_may_differ_between_two_studies_of_one_name() -> None:
    old = changed()
    assert (
        differences(old, changed(resources={"max_concurrent": 3}, tracking={"wandb": "online"}))
        == []
    )
    assert differences(old, changed(tracking={"project": "moths", "entity": "lab"})) == []
    assert differences(old, changed(search={"trials": 17})) == []
    assert differences(old, changed(search={"trials": 15})) == ["search.trials"]
    assert differences(old, changed(evaluation={"repeats": 6})) == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("search", "lr", [1e-4, 1e-1]),
        ("search", "metric", "val_loss"),
        ("search", "max_seconds", 60),
        ("training", "patience", 9),
        ("encoder", "width", 8),
        ("evaluation", "repeats", 4),
        ("cells", "label_ratios", [10]),
        ("data", "root", "/elsewhere"),
    ],
)
def test_what_must_not_differ(section: str, key: str, value: Any) -> None:
    new = changed(**{section: {key: value}}, tracking={"wandb": "disabled"})
    assert differences(changed(), new) == [f"{section}.{key}"]


def test_every_key_that_differs_is_named() -> None:
    new = changed(search={"trials": 1, "sampler": "random"}, data={"split": "pooled"})
    keys = differences(changed(), new)
    assert {"search.trials", "search.sampler"} < set(keys)
    assert any(key.startswith("data.split") for key in keys)


def test_a_dense_encoder_has_a_width_that_it_can_have() -> None:
    few = ["cells.variants=[B0]", "encoder.architecture=dense", "encoder.width=30"]
    assert problem(*few) == "quick: encoder.width: found 30, expected a multiple of 4 for dense"


def test_the_untrained_control_must_fit_the_images_as_well() -> None:
    """It is the section's network, also where every variant has a recipe."""
    dense = {"encoders": {"flat": {"architecture": "dense", "width": 32}}}
    own = {"data": {"image_size": 28}, "cells": {"variants": ["B1-flat"], "label_ratios": [50]}}
    with pytest.raises(InputError, match=r"data\.image_size: found 28"):
        load_config(own | dense)
    assert load_config(own | dense | {"encoder": {"architecture": "dense", "width": 32}})
    scratch = own | dense | {"cells": {"variants": ["B0-flat"], "label_ratios": [50]}}
    assert load_config(scratch), "without a pretrained encoder there is no control"
