"""int8: the arithmetic, the files, the comparison, and what a user sees of them."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY, World, environment
from records_example import write_run
from torch import Tensor, nn

import study.quantisation
from analysis import load
from analysis.quantised import COLUMNS, KINDS, paired_interval, read, slower
from analysis.report import write_report
from data.module import Batches
from data.sealing import seal_json, unseal_json
from data.storage import InputError, Location
from models.classifiers import build_classifier
from models.quantisation import (
    CUT,
    LEVELS,
    QuantisedConv2d,
    QuantisedLinear,
    has_int8_operators,
    int8_share,
    measure_bounds,
    quantise,
    restore,
)
from models.registry import ARCHITECTURES
from models.weights import from_bytes, to_bytes
from study.cells import Cell
from study.classifiers_kept import card_file as float_card_file
from study.classifiers_kept import load_classifier, model_file
from study.evaluation import Repeat, evaluate, record
from study.material import Material
from study.quantisation import (
    SCHEMA,
    card_file,
    has_quantised,
    load_quantised,
    quantise_run,
    weights_file,
)
from study.records import Ledger, Row, write_table
from study.study_file import write_study

MakeMaterial = Callable[..., Material]
pytestmark = pytest.mark.usefixtures("no_png")


def layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Each kind of layer, and the shape of its input."""
    torch.manual_seed(0)
    return {
        "linear": (nn.Linear(40, 7), (5, 40)),
        "rows of rows": (nn.Linear(40, 7, bias=False), (5, 3, 40)),
        "3x3": (nn.Conv2d(6, 8, 3, padding=1), (4, 6, 9, 11)),
        "strided": (nn.Conv2d(6, 8, 3, stride=2, bias=False), (4, 6, 9, 11)),
        "groups": (nn.Conv2d(6, 12, 3, padding=2, dilation=2, groups=6), (4, 6, 9, 11)),
        "patches": (nn.Conv2d(3, 16, 4, stride=4), (2, 3, 16, 16)),
    }


def inputs_of(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.3


def by_integers(layer: nn.Module, original: nn.Module, x: Tensor) -> Tensor:
    """What the layer must give, in integers that are exact in float64."""
    state = layer.state_dict()
    scale, zero = state["input_scale"].double(), state["input_zero_point"]
    levels = torch.floor(x.double() / scale + zero + 0.5).clamp(0, 127) - zero
    weight = state["weight"].double()
    if isinstance(original, nn.Linear):
        out = F.linear(levels, weight) * state["weight_scale"]
    else:
        assert isinstance(original, nn.Conv2d)
        geometry = original.stride, original.padding, original.dilation, original.groups
        out = F.conv2d(levels, weight, None, *geometry) * state["weight_scale"].view(-1, 1, 1)  # type: ignore[arg-type]
    out = out * scale
    bias = state.get("bias")
    if bias is None:
        return out
    return out + (bias if isinstance(original, nn.Linear) else bias.view(-1, 1, 1))


@pytest.mark.parametrize("operators", [True, False], ids=["oneDNN", "by hand"])
@pytest.mark.parametrize("kind", layers())
def test_a_layer_is_its_integers(
    kind: str, operators: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not operators:
        monkeypatch.setattr("models.quantisation.has_int8_operators", lambda: False)
    original, shape = layers()[kind]
    x = inputs_of(shape)
    layer = quantise(nn.Sequential(original), [x])[0]  # type: ignore[index]
    assert isinstance(layer, QuantisedLinear | QuantisedConv2d)
    assert layer.get_buffer("weight").dtype == torch.int8
    beyond = 3 * inputs_of(shape, seed=2)  # most of it outside of what was measured
    maps = [x.contiguous(memory_format=torch.channels_last)] if x.ndim == 4 else []
    for images in (x, beyond, x[:1], *maps):
        expected = by_integers(layer, original, images)
        # A value on the border between two levels may fall to either side in float32.
        off = (layer(images).double() - expected).abs() > 1e-4 * expected.abs().max()
        assert off.float().mean() < 0.02


def test_a_layer_is_close_to_float32() -> None:
    for original, shape in layers().values():
        x = inputs_of(shape)
        found = quantise(nn.Sequential(original), [x])(x)
        exact = original(x)
        assert (found - exact).std() < 0.03 * exact.std()


def test_zero_stays_zero() -> None:
    """A border of zeros, and what a ReLU has cut, must not become something else."""
    layer = quantise(nn.Sequential(nn.Linear(30, 4, bias=False)), [inputs_of((50, 30)) + 5])
    assert torch.equal(layer(torch.zeros(2, 30)), torch.zeros(2, 4))


def test_bounds_leave_out_the_most_extreme() -> None:
    x = torch.linspace(-1, 3, 100_001).view(1, -1)
    x[0, :3] = 1e6  # fewer than CUT of them
    network = nn.Sequential(nn.Linear(100_001, 1))
    found = measure_bounds(network, [x, x])["0"]
    assert (found.low, found.high) == pytest.approx((-1, 3), abs=8 * CUT)
    assert found.scale == pytest.approx(4 / LEVELS, rel=1e-3)


def test_calibration_needs_images() -> None:
    with pytest.raises(ValueError, match="no calibration images"):
        quantise(nn.Sequential(nn.Linear(3, 2)), [])


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {"A": ("A", {})} | {
    name: ("B0", {"architecture": name}) for name in ARCHITECTURES
}


def network_of(name: str) -> nn.Module:
    variant, options = NETWORKS[name]
    torch.manual_seed(3)
    network: nn.Module = build_classifier(variant, 4, 32, 8, normalise=variant == "B0", **options)
    for _ in range(5):  # running statistics of normalisations
        network(pictures(seed=9))
    return network.eval()


def pictures(count: int = 32, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=random)
    return F.interpolate(coarse, size=(32, 32)) * 2 - 1


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_in_int8(name: str) -> None:
    network, x = network_of(name), pictures(seed=2)
    before = to_bytes(network)
    quantised = quantise(network, [pictures(seed=1)])
    with torch.inference_mode():
        exact, found = network(x), quantised(x)
        assert (found - exact).std() < 0.1 * exact.std()
        alone = torch.cat([quantised(image[None]) for image in x])
    torch.testing.assert_close(alone, found, atol=0.02 * float(exact.std()), rtol=0)
    assert int8_share(quantised) > 0.9
    assert to_bytes(network) == before
    assert len(to_bytes(quantised)) < 0.5 * len(before)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_gives_the_same_network(name: str) -> None:
    network, x = network_of(name), pictures(seed=2)
    quantised = quantise(network, [pictures(seed=1)])
    state = from_bytes(to_bytes(quantised))
    torch.manual_seed(8)
    restored = restore(network, state)
    with torch.inference_mode():
        assert torch.equal(restored(x), quantised(x))


def test_weights_of_another_network_are_refused() -> None:
    state = quantise(network_of("A"), [pictures()]).state_dict()
    wider = build_classifier("A", 4, 32, 16)
    for other in (wider, network_of("unet")):
        with pytest.raises(ValueError, match="another network") as error:
            restore(other, state)
        assert "\n" not in str(error.value)


def test_what_cannot_be_int8_stays_as_it_is() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Flatten(2),
        nn.TransformerEncoderLayer(64, 2, 16, batch_first=True),
        nn.Linear(64, 4),
    ).eval()
    x = torch.randn(5, 3, 8, 8)
    quantised = quantise(network, [x])
    names = [n for n, m in quantised.named_modules() if isinstance(m, QuantisedLinear)]
    assert names == ["4"]
    assert not any(isinstance(m, QuantisedConv2d) for m in quantised.modules())
    with torch.inference_mode():
        assert (quantised(x) - network(x)).abs().max() < 0.1


OLD_CPU = """
import torch
import models.quantisation as ours
from models.classifiers import build_classifier
torch.manual_seed(0)
network = build_classifier("A", 4, 32, 8)
images = torch.rand(16, 3, 32, 32) * 2 - 1
by_onednn = ours.quantise(network, [images])
ours.has_int8_operators = lambda: False
by_hand = ours.quantise(network, [images])
with torch.inference_mode():
    found, expected = by_onednn(images), by_hand(images)
print(float((found - expected).abs().max() / expected.std()))
"""


@pytest.mark.skipif(not has_int8_operators(), reason="of x86 CPUs only")
def test_a_cpu_without_vnni_gives_the_same() -> None:
    """It adds products of 8 bits in 16, which must not overflow."""
    command = [sys.executable, "-c", OLD_CPU]
    variables = environment(ONEDNN_MAX_CPU_ISA="AVX2")
    done = subprocess.run(
        command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.05


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # M. Fagerland, S. Lydersen & P. Laake, Stat. Med. 33, 2014: airways, n = 21
        ((1, 7, 21), (-0.517, -0.026)),
        ((7, 1, 21), (0.026, 0.517)),
        ((0, 0, 500), (-0.0076, 0.0076)),  # z² / (n + z²): a bootstrap would say 0 to 0
        ((21, 0, 21), (0.6907, 1.0)),
        ((0, 21, 21), (-1.0, -0.6907)),
    ],
)
def test_the_paired_interval(counts: tuple[int, int, int], expected: tuple[float, float]) -> None:
    assert paired_interval(*counts) == pytest.approx(expected, abs=5e-4)


def test_the_paired_interval_holds_the_truth() -> None:
    random = np.random.default_rng(0)
    for images, gain, loss in ((500, 0.004, 0.006), (100, 0.02, 0.02), (200, 0.1, 0.05)):
        draws = random.multinomial(images, [gain, loss, 1 - gain - loss], size=2000)
        ends = {(g, m): paired_interval(g, m, images) for g, m, _ in map(tuple, draws.tolist())}
        held = [ends[g, m][0] <= gain - loss <= ends[g, m][1] for g, m, _ in draws.tolist()]
        assert 0.93 < np.mean(held) < 0.985


@pytest.fixture(scope="module")
def finished(make_material: MakeMaterial) -> Material:
    """A study of A and B0 after its final evaluation, without Ray."""
    cells = {"variants": ["A", "B0"], "label_ratios": [50, 100]}
    material = make_material(cells=cells, evaluation={"repeats": 2})
    ledger = Ledger(material.run)
    for cell in (Cell(v, r) for v in ("A", "B0") for r in (50, 100)):
        for repeat in range(2):
            one = Repeat(cell, repeat, lr=3e-3)
            record(material, ledger, one, evaluate(material, one))
    ledger.save(closing=True)
    data = {"key": material.key, "species": list(material.species)}
    study = {"config": material.config.model_dump(mode="json"), "data": data}
    write_study(material.run, study | {"state": "COMPLETE", "failures": []})
    return material


@pytest.fixture(scope="module")
def rows(finished: Material) -> list[Row]:
    return quantise_run(finished.run, material=finished, seconds=0.05)


def test_each_variant_has_its_best_by_validation(finished: Material, rows: list[Row]) -> None:
    run = load(str(finished.run))
    assert [row["variant"] for row in rows] == ["A", "B0"]
    for row in rows:
        own = run.evaluations[run.evaluations["variant"] == row["variant"]]
        assert own.set_index(["cell", "repeat"])["val_f1"][row["cell"], row["repeat"]] == (
            own["val_f1"].max()
        )


def test_the_record_says_what_the_files_do(finished: Material, rows: list[Row]) -> None:
    test = finished.rows("test")
    images = finished.images
    for row in rows:
        networks = [load_classifier(finished.run, row["cell"])[0]]
        networks.append(load_quantised(finished.run, row["cell"]))
        x, true = next(iter(Batches(images.pixels, images.labels, test, len(test))))
        with torch.inference_mode():
            right = [network(x).argmax(1) == true for network in networks]
            same = networks[0](x).argmax(1) == networks[1](x).argmax(1)
        accuracies = [float(each.double().mean()) for each in right]
        assert [row[f"test_acc_{kind}"] for kind in KINDS] == pytest.approx(accuracies)
        assert row["difference"] == pytest.approx(accuracies[1] - accuracies[0])
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["agreement"] == pytest.approx(float(same.double().mean()))
        assert row["images"] == len(test) == 12
        for kind, file in zip(KINDS, (model_file, weights_file), strict=True):
            size = len(file(finished.run, row["cell"]).read_bytes())
            assert row[f"weights_bytes_{kind}"] == size
        assert all(row[name] > 0 for name in COLUMNS if name.startswith("ms_"))


def test_float32_scores_as_in_the_evaluation(finished: Material, rows: list[Row]) -> None:
    found = load(str(finished.run)).evaluations.set_index(["cell", "repeat"])["test_acc"]
    for row in rows:
        assert row["test_acc_float32"] == pytest.approx(found[row["cell"], row["repeat"]])


def test_no_test_image_sets_a_bound(
    finished: Material, monkeypatch: pytest.MonkeyPatch, rows: list[Row]
) -> None:
    seen: set[str] = set()

    def spy(network: nn.Module, batches: Any) -> nn.Module:
        kept = list(batches)
        seen.update(hashes(torch.cat(kept)))
        return quantise(network, kept)

    monkeypatch.setattr(study.quantisation, "quantise", spy)
    quantise_run(finished.run, material=finished, seconds=0.0)
    images = finished.images
    of = {
        split: set(
            hashes(next(iter(Batches(images.pixels, images.labels, chosen, len(chosen))))[0])
        )
        for split in ("train", "valid", "test")
        for chosen in [finished.rows(split)]
    }
    assert seen == of["train"]  # all 24 of them, there being fewer than are asked for
    assert not seen & (of["valid"] | of["test"])
    assert rows[0]["calibrated"] == 24


def hashes(images: Tensor) -> list[str]:
    return [hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in images]


def test_again_is_the_same_but_for_times(finished: Material, rows: list[Row]) -> None:
    before = {file.name: file.read_bytes() for file in (finished.run / "quantised").children()}
    (finished.run / "quantised" / "A@7.json").write_text("of a study that has grown")
    again = quantise_run(finished.run, material=finished, seconds=0.0)
    after = {file.name: file.read_bytes() for file in (finished.run / "quantised").children()}
    assert after == before

    def bare(row: Row) -> Row:
        return {name: value for name, value in row.items() if not name.startswith("ms_")}

    assert [bare(row) for row in again] == [bare(row) for row in rows]
    frame = read(load(str(finished.run)))
    assert frame.to_dict("records") == [{name: row[name] for name in COLUMNS} for row in again]


def test_what_is_done_need_not_be_done_again(finished: Material, rows: list[Row]) -> None:
    """Unless a file is gone, or the study keeps another classifier by now."""
    run = finished.run
    assert has_quantised(run, "val_f1")
    content = weights_file(run, rows[1]["cell"]).read_bytes()
    weights_file(run, rows[1]["cell"]).delete()
    assert not has_quantised(run, "val_f1")
    weights_file(run, rows[1]["cell"]).write_bytes(content)
    mend = spoil(run / "quantised.parquet", lambda content: b"")
    assert not has_quantised(run, "val_f1")
    write_table(run / "quantised.parquet", [row | {"lr": 1.0} for row in rows], SCHEMA)
    assert not has_quantised(run, "val_f1")
    mend()
    assert has_quantised(run, "val_f1")


def spoil(file: Location, change: Callable[[bytes], bytes]) -> Callable[[], None]:
    content = file.read_bytes()
    file.write_bytes(change(content))
    return lambda: file.write_bytes(content)


def test_damage_is_named(finished: Material, rows: list[Row]) -> None:
    run, cell = finished.run, rows[0]["cell"]
    flip = lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]  # noqa: E731
    for file in (weights_file(run, cell), card_file(run, cell)):
        mend = spoil(file, flip)
        with pytest.raises(InputError, match=r"quantised/A@.*is damaged.*mariposa quantise"):
            load_quantised(run, cell)
        mend()
    load_quantised(run, cell)


def test_int8_of_other_weights_is_refused(finished: Material, rows: list[Row]) -> None:
    """The study has grown, and keeps another repeat by now."""
    run, cell = finished.run, rows[0]["cell"]
    card = unseal_json(card_file(run, cell).read_text())
    other = seal_json(card | {"of": "0" * 32}).encode()
    mend = spoil(card_file(run, cell), lambda content: other)
    with pytest.raises(InputError, match="made of other weights"):
        load_quantised(run, cell)
    mend()
    assert float_card_file(run, cell).is_file()


def test_the_command(finished: Material, rows: list[Row], tmp_path: Path) -> None:
    """The packed images do not lie beside the run, and are decoded again."""
    world = World(tmp_path, environment())
    code, out, err = world.run("quantise", str(finished.run))
    assert code == 0, err
    lines = out.splitlines()
    assert re.match(r"cell +MB +ms, 1 image \(p95\) +ms, 64 images \(p95\) +accuracy", lines[0])
    for line, row in zip(lines[1:], rows, strict=False):
        assert line.startswith(row["cell"])
        accuracy = " → ".join(f"{row[f'test_acc_{kind}']:.3f}" for kind in KINDS)
        assert f"  {accuracy}  " in line
    assert "on 12 test images" in out
    assert f"mariposa report {finished.run}" in lines[-1]
    assert max(map(len, lines)) < 130


@pytest.mark.parametrize("kind", ["search only", "no run"])
def test_without_models_there_is_nothing_to_quantise(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], make_material: MakeMaterial
) -> None:
    from study.cli import main

    folder = tmp_path / "run"
    if kind == "search only":
        config = make_material(evaluation={"repeats": 0}).config.model_dump(mode="json")
        write_study(Location(folder), {"config": config, "data": {}, "failures": []})
    assert main(["quantise", str(folder)]) == 2
    printed = capsys.readouterr()
    expected = {
        "search only": "has no evaluated classifier, expected a run after its final evaluation, "
        "with evaluation.repeats >= 1",
        "no run": "found no study.yaml, expected the folder of a run",
    }
    assert printed.err == f"mariposa: {folder}: {expected[kind]}\n"
    assert not (folder / "quantised").exists()


def test_missing_weights_are_named(finished: Material) -> None:
    file = model_file(finished.run, "A@50")
    others = [model_file(finished.run, cell) for cell in ("A@100", "B0@50", "B0@100")]
    mends = [spoil(each, lambda content: b"") for each in (file, *others)]
    with pytest.raises(InputError, match=r"models/A@\d+.safetensors: is damaged"):
        quantise_run(finished.run, material=finished, seconds=0.0)
    for mend in mends:
        mend()


def made_up(run: Path, **changes: Any) -> list[Row]:
    evaluations = load(str(run)).evaluations
    rows = []
    for cell in ("A@100", "B2@100"):
        row: Row = dict.fromkeys(SCHEMA.names, 0.25)
        row |= {"cell": cell, "variant": cell[:-4], "label_ratio": 100, "repeat": 1}
        row |= {"lr": evaluations.query("cell == @cell and repeat == 1")["lr"].iloc[0]}
        row |= {"weights_bytes_float32": 2_391_234, "weights_bytes_int8": 600_552}
        row |= {"int8_share": 0.9992, "ms_64_float32": 4.355, "ms_64_float32_p95": 4.85}
        row |= {"ms_1_int8": 0.301, "difference": -0.004, "low": -0.0141, "high": 0.0042}
        row |= {"agreement": 0.988, "gained": 1, "lost": 3, "images": 500, "calibrated": 256}
        rows.append(row | {"operators": "oneDNN", "machine": "<b>vm</b>"} | changes)
    write_table(Location(run) / "quantised.parquet", rows, SCHEMA)
    return rows


@pytest.fixture(scope="module")
def made_up_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made up") / "run"
    sizes: dict[str, Any] = {"per_species": (8, 4, 6), "features": 4, "trials": 3, "repeats": 2}
    return write_run(folder, species=("a", "b"), ratios=(100,), **sizes)


def keyed(html: str) -> dict[str, str]:
    found = re.findall(r'data-key="quantised ([^"]*)"[^>]*>([^<]*)<', html)
    return {key: text.replace("−", "-").replace("\xa0", " ") for key, text in found}


def test_the_report_shows_the_record(made_up_run: Path) -> None:
    made_up(made_up_run)
    html = write_report(Location(made_up_run)).read_text()
    numbers = keyed(html)
    expected = {"weights_bytes_float32": "2.39", "weights_bytes_int8": "0.60"}
    expected |= {"int8_share": "99.9 %", "ms_64_float32": "4.36", "ms_1_int8": "0.30"}
    expected |= {"test_acc_int8": "0.250", "difference": "-0.4", "agreement": "98.8 %"}
    for cell in ("A@100", "B2@100"):
        assert {name: numbers[f"{cell} {name}"] for name in expected} == expected
        assert numbers[f"{cell} difference small"] == "-1.4 to +0.4"
        assert numbers[f"{cell} ms_64_float32 small"] == "4.85"
    assert "With 1 image, int8 is slower for A@100, B2@100." in html
    assert "&lt;b&gt;vm&lt;/b&gt;" in html
    assert "evaluated anew" not in html


def test_the_report_says_that_the_record_is_old(made_up_run: Path) -> None:
    made_up(made_up_run, lr=1.0)
    assert "has been evaluated anew since" in write_report(Location(made_up_run)).read_text()


def test_no_operators_are_said(made_up_run: Path) -> None:
    said = slower(made_up(made_up_run, operators="none", ms_1_int8=0.1))
    assert said == ["The machine has no operators for int8: it was computed in float32."]


def test_every_column_is_documented() -> None:
    document = (REPOSITORY / "docs" / "RECORDS.md").read_text("utf-8")
    named = set(re.findall(r"[A-Za-z]\w*", " ".join(re.findall(r"`([^`]*)`", document))))
    assert [column for column in COLUMNS if column not in named] == []
