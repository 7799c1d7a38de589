"""Butterflies drawn by the program itself, so that a study can be run without any images.

Twenty invented species, each a row of `TABLE`: an outline, a palette, markings. They come in
confusable groups: four species share a palette, several share markings or an outline, so that
neither colour nor shape alone tells them apart. Within a species pose, perspective, scale,
hue, wear, background, light, sharpness and what lies in front all vary (`data.drawing`).
"""

from __future__ import annotations

import os
import shutil
import uuid
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from data.drawing import Stance, draw
from data.species import SPECIES, TABLE, traits_of
from data.storage import InputError, reason_of

SPREAD = Stance(
    turn=lambda rng: float(np.clip(rng.normal(0, 0.19), -1.5, 1.5)),
    scale=(0.42, 0.5),
    off=0.035,
    tilt=0.8,
    shear=0.06,
    away=0.08,
    fold=lambda rng: (float(rng.uniform(0.78, 1)), float(rng.uniform(0.78, 1))),
)


def draw_butterfly(species: str, seed: int, size: int = 96) -> Image.Image:
    """One butterfly in its surroundings, an RGB image of size × size pixels.

    The same arguments give the same pixels; another size, the same butterfly.

    Raises:
        ValueError: the species is not one of `SPECIES`.
    """
    rng = np.random.default_rng([zlib.crc32(species.encode()), seed])
    return draw(traits_of(TABLE[SPECIES.index(species)]), SPREAD, rng, size)


Job = tuple[Path, str, int, int]  # file, species, seed, size


def _save(job: Job) -> None:
    path, species, seed, size = job
    draw_butterfly(species, seed, size).save(path, quality=92)


def _jobs(folder: Path, counts: dict[str, int], size: int, seed: int) -> list[Job]:
    """Makes the folders; what to draw, with a seed of its own for every image."""
    jobs = []
    for number, (split, count) in enumerate(counts.items()):
        for species in SPECIES:
            (folder / split / species).mkdir(parents=True)
            for i in range(count):
                key = np.random.SeedSequence([seed, number, i]).generate_state(1, np.uint64)
                jobs.append((folder / split / species / f"{i:03d}.jpg", species, int(key[0]), size))
    return jobs


def write_demo(
    destination: Path,
    *,
    train_per_species: int = 60,
    valid_per_species: int = 10,
    test_per_species: int = 25,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
) -> int:
    """Write the data set as ``train/SPECIES/NNN.jpg``, ``valid/…`` and ``test/…``.

    It is drawn beside the destination by ``workers`` processes (None: one a CPU) and renamed
    when it is whole. The images do not depend on the number of processes.

    Returns:
        How many images were written.

    Raises:
        InputError: the destination is not a new or an empty folder, or cannot be written; or
            ``size`` is under 16.
    """
    if size < 16:
        raise InputError(f"size: found {size}, expected at least 16 pixels")
    destination = Path(os.path.abspath(destination))
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        found = "a folder with files in it" if destination.is_dir() else "a file"
        raise InputError(f"{destination}: found {found}, expected a new or an empty folder")
    counts = {"train": train_per_species, "valid": valid_per_species, "test": test_per_species}
    temporary = destination.with_name(f".part-{uuid.uuid4().hex[:8]}-{destination.name}")
    try:
        jobs = _jobs(temporary, counts, size, seed)
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(_save, jobs, chunksize=16))
        os.replace(temporary, destination)
    except OSError as error:
        raise InputError(
            f"{destination}: {reason_of(error)}, expected a folder that can be written"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(jobs)
