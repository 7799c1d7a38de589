"""What encoders give back of noisy test images: the stage, from its arrays to a resumed study."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import World, environment, tiny_tree

from data.module import Batches
from data.sealing import unseal_end
from data.storage import Location
from study.cells import Cell
from study.completeness import missing_or_damaged
from study.encoders import EncoderPlan, load_objective, plan_encoder, pretrain
from study.material import Material
from study.reconstructions import (
    LOSSES,
    PICTURES,
    has_reconstructions,
    reconstruct,
    reconstructions_file,
    write_reconstructions,
)

Make = Callable[..., Material]
RECIPES: dict[str, dict[str, Any]] = {
    "denoising": {"objective": "denoising"},
    "more": {"objective": "denoising", "salt": 0.3, "pepper": 0.2},
    "variational": {"objective": "denoising_variational"},
    "masked": {"objective": "masked"},
    "rgb": {"objective": "denoising", "colour": "rgb"},
}


def study(make_material: Make, architecture: str = "dense") -> Material:
    encoder = {"architecture": architecture, "width": 64 if architecture == "dense" else 2}
    return make_material(
        encoder=encoder,
        encoders=RECIPES,
        cells={"variants": ["B1", *(f"B1-{name}" for name in RECIPES)], "label_ratios": [50]},
    )


def made(material: Material, recipe: str | None = None) -> EncoderPlan:
    plan = plan_encoder(material, Cell(f"B1-{recipe}" if recipe else "B1", 50), None)
    assert plan is not None
    pretrain(material, plan)
    assert reconstruct(material, plan) == plan.key
    return plan


def arrays(material: Material, plan: EncoderPlan) -> dict[str, np.ndarray]:
    content = reconstructions_file(material.run, plan.key).read_bytes()
    return dict(np.load(io.BytesIO(unseal_end(content)), allow_pickle=False))


def error(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    return ((some.astype(float) - others) ** 2).mean((1, 2, 3)) / 255**2


@pytest.mark.parametrize("architecture", ["dense", "unet"])
def test_errors_are_those_of_the_pictures(make_material: Make, architecture: str) -> None:
    material = study(make_material, architecture)
    found = arrays(material, made(material, "denoising"))
    files = [material.images.files[row] for row in material.rows("test")]
    assert found["files"].tolist() == files
    channels = 1 if architecture == "dense" else 3
    assert {found[name].shape for name in PICTURES} == {(8, 16, 16, channels)}
    assert {found[name].dtype for name in PICTURES} == {np.dtype(np.uint8)}
    places = [files.index(file) for file in found["shown"]]
    ways = ("reconstructed", "noisy", "median")
    for loss, way in zip(LOSSES, ways, strict=False):
        assert found[loss].shape == (12,)
        expected = error(found[way], found["original"])
        np.testing.assert_allclose(found[loss][places], expected, rtol=0.02, atol=2e-4)
    assert np.isnan(found["elbo"]).all()
    assert len(found["samples"]) == 0


def test_pictures_are_the_images_and_their_noise(make_material: Make) -> None:
    material = study(make_material, "unet")
    found = arrays(material, made(material, "more"))
    row = material.images.files.index(found["shown"][0])
    assert np.array_equal(found["original"][0], material.images.pixels[row])
    white, black = ((found["noisy"] == end).all(-1).mean() for end in (255, 0))
    assert white == pytest.approx(0.3, abs=0.04)
    assert black == pytest.approx(0.2, abs=0.04)
    pixel = found["noisy"][0, 4:7, 6:9, 1]
    assert found["median"][0, 5, 7, 1] == np.median(pixel)


def test_all_encoders_see_the_same_noise(make_material: Make) -> None:
    material = study(make_material)
    plain, denoising, more = (
        arrays(material, made(material, n)) for n in (None, "denoising", "more")
    )
    for name in ("original", "noisy", "median", "noisy_loss", "median_loss", "shown"):
        assert np.array_equal(plain[name], denoising[name]), name
    assert not np.array_equal(plain["loss"], denoising["loss"])
    assert np.array_equal(plain["original"], more["original"])
    assert more["noisy_loss"].mean() > 2 * plain["noisy_loss"].mean()


def test_clean_images_are_given_back_without_noise(make_material: Make) -> None:
    material = study(make_material)
    plan = made(material)
    objective, rows = load_objective(material, plan), material.rows("test")
    images = next(iter(Batches(material.images.pixels, material.images.labels, rows, 12)))[0]
    with torch.no_grad():
        each = (objective(images) - objective.target(images)).square().mean((1, 2, 3))
    np.testing.assert_allclose(arrays(material, plan)["clean_loss"], each.numpy(), rtol=1e-4)


def test_it_is_the_same_each_time(make_material: Make) -> None:
    material = study(make_material)
    plan = made(material, "variational")
    before = arrays(material, plan)
    torch.manual_seed(123)
    reconstruct(material, plan)
    after = arrays(material, plan)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_a_variational_one_has_nats_and_samples(make_material: Make) -> None:
    material = study(make_material)
    found = arrays(material, made(material, "variational"))
    assert (found["kl"] > 0).all()
    assert np.isfinite(found["elbo"]).all()
    assert found["samples"].shape == (16, 16, 16, 1)
    assert len(np.unique(found["samples"], axis=0)) == 16


def test_colours_are_given_back_in_colours(make_material: Make) -> None:
    material = study(make_material)
    found = arrays(material, made(material, "rgb"))
    assert {found[name].shape for name in PICTURES} == {(8, 16, 16, 3)}


def test_the_table_has_a_row_an_encoder_and_test_image(make_material: Make) -> None:
    material = study(make_material)
    plans = [made(material, name) for name in (None, "variational", "masked")]
    assert arrays(material, plans[2]) == {}, "it gives no whole images back"
    assert all(has_reconstructions(material.run, plan.key) for plan in plans)
    write_reconstructions(material.run, [plan.key for plan in plans])
    table = pd.read_parquet(io.BytesIO((material.run / "reconstructions.parquet").read_bytes()))
    assert table.groupby("encoder", sort=False).size().to_dict() == {p.key: 12 for p in plans[:2]}
    plain, variational = (table[table["encoder"] == plan.key] for plan in plans[:2])
    assert plain["elbo"].isna().all()
    assert variational["elbo"].notna().all()
    for name in LOSSES:
        assert plain[name].tolist() == arrays(material, plans[0])[name].tolist()


def test_a_damaged_file_is_not_there(make_material: Make) -> None:
    material = study(make_material)
    plan = made(material)
    file = reconstructions_file(material.run, plan.key)
    content = file.read_bytes()
    for place in (10, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert not has_reconstructions(material.run, plan.key)
    file.write_bytes(content[:-7])
    assert not has_reconstructions(material.run, plan.key)
    file.delete()
    assert not has_reconstructions(material.run, plan.key)


@pytest.mark.timeout(600)
def test_a_resume_makes_just_what_is_missing_and_the_same(
    tiny_images: Path, tmp_path: Path
) -> None:
    """A whole study by the program, on Ray, with tests in noise: finished, spoilt, resumed."""
    tree = tiny_tree(
        tiny_images,
        cells={"variants": ["B0", "B1", "B1-denoising", "B1-dvae"], "label_ratios": [100]},
        encoder={"architecture": "dense", "width": 64, "epochs": 2},
        encoders={"denoising": {"objective": "denoising"}, "dvae": RECIPES["variational"]},
        training={"max_epochs": 2},
        search={"trials": 1},
        evaluation={"repeats": 1, "noise": [0, 0.3], "quantise": True},
        resources={"max_concurrent": 1},
    )
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    world, run = World(tmp_path, environment()), tmp_path / "out" / "tiny"
    code, _, err = world.run("run", "tiny.yaml", "--out", "out")
    assert code == 0, err
    pictures = sorted((run / "reconstructions").iterdir())
    assert [file.name.rsplit("-", 1)[0] for file in pictures] == [
        "dense",
        "dense-denoising",
        "dense-denoising_variational",
    ]
    clusters = sorted(run.glob("features/*.noise.*"))
    assert len(clusters) == 5, "of the encoders and two controls"
    robustness, table = run / "robustness.parquet", run / "reconstructions.parquet"
    whole = {file: sorted_rows(file) for file in (robustness, table, *clusters)}
    assert set(whole[robustness]["noise"]) == {0.3}
    assert len(whole[table]) == 36
    assert len(pd.read_parquet(run / "quantised.parquet")) == 4
    assert amiss_in(run) == []
    for name in ("denoising", "fig3_denoising_loss", "fig4_reconstructions", "samples", "noise"):
        assert f'id="{name}"' in page(run) or (run / "figures" / f"{name}.svg").is_file(), name

    kept = [pictures[0], *run.glob("features/*.np*")]
    times, content = [file.stat().st_mtime_ns for file in kept], pictures[1].read_bytes()
    pictures[1].unlink()
    table.unlink()
    clusters[0].write_bytes(clusters[0].read_bytes()[:-7])
    names = [str(file.relative_to(run)) for file in (pictures[1], clusters[0], table)]
    assert sorted(amiss_in(run)) == sorted(names)
    robustness.unlink()
    (run / "quantised.parquet").unlink()
    assert amiss_in(run) == ["robustness.parquet", "quantised.parquet"]
    code, out, err = world.run("resume", "out/tiny")
    assert code == 0, err
    assert amiss_in(run) == []
    assert "reconstructions" in out
    assert [file.stat().st_mtime_ns for file in kept] == times, "not made again"
    assert pictures[1].read_bytes() == content
    for file, frame in whole.items():
        pd.testing.assert_frame_equal(sorted_rows(file), frame)
    assert 'id="noise"' in page(run)


def sorted_rows(file: Path) -> pd.DataFrame:
    """Repeats of the final evaluation may end in another order."""
    frame = pd.read_parquet(file)
    return frame.sort_values([*frame], ignore_index=True)


def amiss_in(run: Path) -> list[str]:
    return missing_or_damaged(Location(run), 1, noise=True, int8=True)


def page(run: Path) -> str:
    return (run / "report.html").read_text()
