"""The best classifier of each variant in int8: what it saves, and what it costs.

``quantised/CELL.safetensors`` holds the network, ``quantised/CELL.json`` its checksum and that of
the float32 weights it was made of, ``quantised.parquet`` the comparison (docs/RECORDS.md).

Training images alone set the bounds of the layers' inputs. The test images are read to compare
the two networks and decide nothing.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from analysis.quantised import BATCHES, COLUMNS, FILE, KINDS, paired_interval
from data.module import Batches
from data.packing import pack_images
from data.sealing import digest, seal_json, unseal_json
from data.storage import InputError, Location
from models.quantisation import has_int8_operators, int8_share, quantise, restore
from models.weights import from_bytes, to_bytes
from study.choosing import best_repeat
from study.classifiers_kept import load_classifier, model_file
from study.config import config_from
from study.images import images_of
from study.material import Material
from study.records import INT, REAL, TEXT, Row, read_table, write_table
from study.study_file import read_study

SCHEMA = pa.schema(
    {name: {"str": TEXT, "int64": INT, "float64": REAL}[kind] for name, kind in COLUMNS.items()}
)
CALIBRATION_IMAGES = 256
BATCH = 64
WARM_UP, LEAST, MOST = 10, 20, 1000  # calls of each network that the time is taken of
SECONDS = 3.0  # at most, for one size of batch, if there are LEAST calls by then


def quantise_run(
    run: Location,
    material: Material | None = None,
    say: Callable[[str], None] = lambda line: None,
    seconds: float = SECONDS,
) -> list[Row]:
    """Compare each variant's best classifier with its int8 form; needs no Ray and no GPU.

    Args:
        run: has evaluated at least one repeat.
        material: of the run; None: from its study.yaml.
        say: is told what is being done.
        seconds: spent on each measurement of time, about.

    Returns:
        The rows of ``quantised.parquet``, which is written, a variant each.

    Raises:
        InputError: the run has no evaluated classifier, one is damaged, or the images are gone.
    """
    if material is None:
        read_study(run)  # before all else: is it a run?
    rows = read_table(run / "evaluations.parquet")
    if not rows:
        raise InputError(
            f"{run}: has no evaluated classifier, expected a run after its final evaluation, "
            f"with evaluation.repeats >= 1"
        )
    material = material or material_of(run)
    found = []
    for best in _best_of_each(rows, material.config.search.metric):
        say(f"quantising {best['cell']}")
        found.append(_compare(run, material, best, seconds))
    write_table(run / FILE, found, SCHEMA)
    _delete_all_but(run, {row["cell"] for row in found})
    return found


def has_quantised(run: Location, metric: str) -> bool:
    """Whether `quantise_run` has nothing to do: the record and the files are of the classifiers
    that are the best by now.
    """
    chosen = ("cell", "repeat", "lr")
    try:
        found = read_table(run / FILE)
        best = list(_best_of_each(read_table(run / "evaluations.parquet"), metric))
        for row in found:
            load_quantised(run, row["cell"])
    except InputError:
        return False
    rows = [[tuple(row[name] for name in chosen) for row in each] for each in (found, best)]
    return bool(found) and rows[0] == rows[1]


def _best_of_each(rows: list[Row], metric: str) -> Iterator[Row]:
    for variant in sorted({row["variant"] for row in rows}):
        best = best_repeat([row for row in rows if row["variant"] == variant], metric)
        assert best is not None
        yield dict(best)


def material_of(run: Location) -> Material:
    """The images of a run, decoded again where they no longer lie beside it.

    Raises:
        InputError: they are gone, or are others.
    """
    study = read_study(run)
    config = config_from(study["config"], str(run / "study.yaml"))
    packed, key = run.parent / "packed", study["data"].get("key")
    if not (packed / f"{key}.json").is_file():
        folder = images_of(config, {"data": {}})
        assert folder is not None
        found, _ = pack_images(folder, config.data.image_size, packed, os.cpu_count() or 1)
        if found != key:
            raise InputError(
                f"{folder.root}: its images are not those that {run} had, expected the same"
            )
    return Material(config, run, packed, str(key))


def weights_file(run: Location, cell: str) -> Location:
    return run / "quantised" / f"{cell}.safetensors"


def card_file(run: Location, cell: str) -> Location:
    return run / "quantised" / f"{cell}.json"


def load_quantised(run: Location, cell: str) -> nn.Module:
    """A cell's classifier in int8, on the CPU and in evaluation mode.

    It takes images (B, 3, H, W) in [-1, 1] and gives logits (B, K), as `load_classifier`'s.

    Raises:
        InputError: it is missing or damaged, or the cell's float32 weights are others by now.
    """
    network, kept = load_classifier(run, cell)
    file, again = weights_file(run, cell), f"expected {cell} in int8: run `mariposa quantise` again"
    try:
        card = unseal_json(card_file(run, cell).read_text())
        content = file.read_bytes()
        if digest(content) != card["checksum"]:
            raise ValueError("its checksum is wrong")
        if card["of"] != kept["checksum"]:
            raise ValueError("was made of other weights than models/ has")
        return restore(network, from_bytes(content))
    except FileNotFoundError:
        raise InputError(f"{file}: is missing, {again}") from None
    except ValueError as error:
        raise InputError(f"{file}: is damaged ({error}), {again}") from None


def _save(run: Location, best: Row, network: nn.Module, of: str) -> None:
    """The card comes last: without one the weights count for nothing."""
    content = to_bytes(network)
    weights_file(run, best["cell"]).write_bytes(content)
    card = {"cell": best["cell"], "repeat": best["repeat"], "checksum": digest(content), "of": of}
    card_file(run, best["cell"]).write_text(seal_json(card))


def _delete_all_but(run: Location, cells: set[str]) -> None:
    for file in (run / "quantised").children():
        if file.name.rpartition(".")[0] not in cells:
            file.delete()


def _compare(run: Location, material: Material, best: Row, seconds: float) -> Row:
    cell = best["cell"]
    network, card = load_classifier(run, cell)
    with _one_thread():
        _save(run, best, quantise(network, _calibration(material)), card["checksum"])
        networks = [network, load_quantised(run, cell)]  # what is measured is what lies on disk
        row = {name: best[name] for name in ("variant", "cell", "label_ratio", "lr")}
        row |= {"repeat": card["repeat"], "int8_share": int8_share(networks[1])}
        row |= {"calibrated": len(_calibration_rows(material))}
        files = (model_file(run, cell), weights_file(run, cell))
        for kind, file in zip(KINDS, files, strict=True):
            row[f"weights_bytes_{kind}"] = len(file.read_bytes())
        row |= _accuracies(material, networks)
        for batch in BATCHES:
            row |= _times(networks, _images(material, batch), seconds)
    operators = "oneDNN" if has_int8_operators() else "none"
    return row | {"operators": operators, "machine": _machine()}


def _calibration_rows(material: Material) -> np.ndarray:
    """Training images, spread over all species."""
    train = material.rows("train")
    places = np.linspace(0, len(train) - 1, min(len(train), CALIBRATION_IMAGES))
    return train[places.astype(np.int64)]


def _calibration(material: Material) -> Iterator[Tensor]:
    return (inputs for inputs, _ in _batches(material, _calibration_rows(material)))


def _batches(material: Material, rows: np.ndarray) -> Batches:
    return Batches(material.images.pixels, material.images.labels, rows, BATCH)


def _accuracies(material: Material, networks: Sequence[nn.Module]) -> dict[str, Any]:
    test = material.rows("test")
    preds = [_predicted(network, _batches(material, test)) for network in networks]
    true = material.images.labels[test]
    right = [pred == true for pred in preds]
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    low, high = paired_interval(gained, lost, len(test))
    found = {f"test_acc_{k}": float(r.mean()) for k, r in zip(KINDS, right, strict=True)}
    found |= {"difference": (gained - lost) / len(test), "low": low, "high": high}
    found |= {"agreement": float((preds[0] == preds[1]).mean())}
    return found | {"gained": gained, "lost": lost, "images": len(test)}


def _predicted(network: nn.Module, batches: Batches) -> np.ndarray:
    with torch.inference_mode():
        return np.concatenate([network(inputs).argmax(1).numpy() for inputs, _ in batches])


def _images(material: Material, count: int) -> Tensor:
    rows = np.resize(material.rows("test"), count)
    return next(iter(Batches(material.images.pixels, material.images.labels, rows, count)))[0]


def _times(networks: Sequence[nn.Module], images: Tensor, seconds: float) -> dict[str, float]:
    """Median and 95 % quantile of a call, in ms. The networks take turns, so that whatever else
    the machine does falls on both.
    """
    taken: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for _ in range(WARM_UP):
            for network in networks:
                network(images)
        end = time.perf_counter() + seconds
        while len(taken[0]) < LEAST or (len(taken[0]) < MOST and time.perf_counter() < end):
            for network, own in zip(networks, taken, strict=True):
                start = time.perf_counter()
                network(images)
                own.append(1000 * (time.perf_counter() - start))
    found: dict[str, float] = {}
    for kind, own in zip(KINDS, taken, strict=True):
        name = f"ms_{len(images)}_{kind}"
        found |= {name: float(np.median(own)), f"{name}_p95": float(np.quantile(own, 0.95))}
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _machine() -> str:
    return f"{platform.node()}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
