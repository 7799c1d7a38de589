"""A study's images: found or drawn, decoded once, split, and the run begun on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.wording import counted
from data.checking import leaked
from data.demo import write_demo
from data.folders import SPLITS, ImageFolder, find_images
from data.packing import file_lock, node_cache, pack_images
from data.species import SPECIES
from data.storage import InputError, Location, reason_of
from study.config import Config
from study.material import Material
from study.planning import require_unlabelled
from study.records import LABELS, Row, write_table
from study.sections import Demo, PooledSplit
from study.study_file import write_study


def images_of(config: Config, study: dict[str, Any]) -> ImageFolder | None:
    """The images; None where they are gone but were packed before."""
    root = Location(config.data.root) if config.data.root else _demo(config)
    split = "pooled" if isinstance(config.data.split, PooledSplit) else "folders"
    try:
        return find_images(root, split)
    except InputError:
        if study["data"] and not root.is_dir():
            return None
        raise


def _demo(config: Config) -> Location:
    """The drawn data set, on this node's disk; drawn once."""
    sizes = config.data.demo.model_dump()
    name = "-".join(str(value) for value in sizes.values())
    folder = node_cache() / f"demo-{name}"
    with file_lock(folder.with_name(f"{folder.name}.lock")):
        if not _is_whole(folder, config.data.demo):
            shutil.rmtree(folder, ignore_errors=True)
            print(f"drawing butterflies into {folder}", flush=True)
            write_demo(folder, **sizes)
    return Location(folder)


def _is_whole(folder: Path, demo: Demo) -> bool:
    """Whether all of its images are there: what cleans /tmp takes files, and leaves folders."""
    counts = (demo.train_per_species, demo.valid_per_species, demo.test_per_species)
    return sum(1 for _ in folder.rglob("*.jpg")) == sum(counts) * len(SPECIES)


def prepare(
    config: Config, out: Location, run: Location, study: dict[str, Any], folder: ImageFolder | None
) -> tuple[Material, list[Row]]:
    """Decode the images if need be, and complete ``study``; writes nothing of the run.

    Returns:
        The material, and the rows of ``labels.parquet``.

    Raises:
        InputError: an image is bad, the images have changed since the run began, the splits or
            labels cannot be drawn, none is left unlabelled where an encoder learns from those, or
            OUT cannot be written.
    """
    packed = out / "packed"
    layout = folder.layout if folder is not None else study["data"]["layout"]
    if layout == "pooled" and config.data.split == "folders":
        root = config.data.root
        print(f"{root}: has no train/, so its images are pooled and split anew", flush=True)
        config = with_pooled_split(config)
    key = study["data"].get("key")
    if folder is not None:
        key, _ = pack_images(folder, config.data.image_size, packed, os.cpu_count() or 1)
    if study["data"] and key != study["data"]["key"]:
        raise InputError(
            f"{config.data.root}: its images are not those that {run} began with, "
            f"expected the same or another --name"
        )
    study_id = study.get("id") or study.get("started", "")  # an earlier version gave it none
    material = Material(config, run, packed, key, study_id)
    labels = list(material.label_rows())
    require_unlabelled(
        config, len(material.rows("train")), lambda ratio: len(material.labelled(ratio))
    )
    study["config"] = config.model_dump(mode="json")
    leaks = study["data"].get("leaks")
    if leaks is None:
        of_splits = {split: material.rows(split) for split in SPLITS}
        twins = leaked(material.images.pixels, of_splits)
        leaks = {split: len(found) for split, found in twins.items()}
        _warn(config, folder, material.images.files, twins)
    study["data"] = describe_data(material) | {"layout": layout, "leaks": leaks}
    return material, labels


def _warn(
    config: Config,
    folder: ImageFolder | None,
    files: Sequence[str],
    twins: dict[str, list[tuple[int, int]]],
) -> None:
    """Of a new study's images: what is passed over, and what is in two splits."""
    strays = folder.strays if folder is not None else ()
    if strays:
        print(
            f"{config.data.root}: passed over, as in no species' folder: "
            f"{counted(len(strays), 'image')}, "
            f"{strays[0]} for one",
            flush=True,
        )
    for split, found in twins.items():
        if found:
            image, twin = (files[i] for i in found[0])
            print(
                f"warning: of {split}, {counted(len(found), 'image')} "
                f"{'is' if len(found) == 1 else 'are'} in an earlier split as well, "
                f"which flatters every score: {image} is {twin}, for one",
                flush=True,
            )


def begin(run: Location, study: dict[str, Any], labels: list[Row]) -> None:
    """Begin the run on disk, or go on with it.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_study(run, study)
        write_table(run / "labels.parquet", labels, LABELS)
    except OSError as error:
        raise InputError(f"{run}: cannot be written ({reason_of(error)})") from None


def with_pooled_split(config: Config) -> Config:
    """The configuration with the default pooled split where it asks for the folders' own."""
    if isinstance(config.data.split, PooledSplit):
        return config
    data = config.data.model_copy(update={"split": PooledSplit()})
    return config.model_copy(update={"data": data})


def describe_data(material: Material) -> dict[str, Any]:
    images = material.images
    return {
        "root": material.config.data.root,
        "key": material.key,
        "fingerprint": images.fingerprint,
        "image_size": images.image_size,
        "species": list(images.species),
        "counts": {name: len(material.rows(name)) for name in ("train", "valid", "test")},
    }
