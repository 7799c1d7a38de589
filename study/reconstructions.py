"""What the search's encoders give back of noisy test images, beside two ways without any training.

``reconstructions/ENCODER.npz`` holds an encoder's errors of every test image and a few pictures,
``reconstructions.parquet`` the errors of all encoders (docs/RECORDS.md). An encoder whose objective
gives no images back has an empty file, so that a finished study has one of each.

Shapes: N test images; of those that are shown, n pictures of H × W pixels and C channels.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from data.sealing import seal_end, unseal_end
from data.storage import Location
from study.encoders import EncoderPlan, load_objective
from study.material import Material
from study.records import REAL, TEXT, is_whole, write_table
from study.seeds import seed_for

LOSSES = ("loss", "noisy_loss", "median_loss", "clean_loss")
NATS = ("elbo", "kl")
PICTURES = ("original", "noisy", "median", "reconstructed")
SCHEMA = pa.schema({"encoder": TEXT, "file": TEXT} | dict.fromkeys((*LOSSES, *NATS), REAL))
SHOWN, SAMPLES = 8, 16  # pictures of test images, and of the prior
BATCH = 64
MEDIAN = 3  # pixels, the side of the filter's window

Arrays = dict[str, np.ndarray]


def reconstructions_file(run: Location, encoder: str) -> Location:
    return run / "reconstructions" / f"{encoder}.npz"


def has_reconstructions(run: Location, encoder: str) -> bool:
    """Whether they are there, and whole."""
    return is_whole(reconstructions_file(run, encoder), unseal_end)


def reconstruct(material: Material, plan: EncoderPlan) -> str:
    """Write ``reconstructions/ENCODER.npz``; runs in a worker, after the final evaluation.

    Returns:
        The encoder's key.
    """
    from study.fitting import use_device

    device = use_device(material.config)
    objective = load_objective(material, plan).to(device)
    found = _measured(material, plan, objective, device) if objective.gives_back else {}
    content = io.BytesIO()
    np.savez_compressed(content, **found)  # type: ignore[arg-type]
    file = reconstructions_file(material.run, plan.key)
    file.write_bytes(seal_end(content.getvalue()))
    return plan.key


def _measured(material: Material, plan: EncoderPlan, objective: Any, device: Any) -> Arrays:
    """By name: ``files``, `LOSSES` and `NATS` (N,); ``shown`` files, and `PICTURES` (n, H, W, C)
    and ``samples`` (m, H, W, C) uint8.

    The noise has the recipe's shares, and is the same for all encoders that have the same.
    """
    import torch

    from data.module import Batches
    from models.noise import salt_and_pepper

    seed, images, rows = material.config.seed, material.images, material.rows("test")
    shares = plan.recipe.salt, plan.recipe.pepper
    random = torch.Generator().manual_seed(seed_for(seed, "test noise"))
    torch.manual_seed(seed_for(seed, "latent draws"))
    parts: list[Arrays] = []
    with torch.inference_mode():
        for clean, _ in Batches(images.pixels, images.labels, rows, BATCH, device=device):
            noisy = salt_and_pepper(clean.cpu(), *shares, random).to(device)
            parts.append(_of_batch(objective, clean, noisy))
        samples = _samples(objective, images.image_size)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    chosen = _chosen(seed, len(rows))
    shown = {name: _bytes(whole.pop(name))[chosen] for name in PICTURES}
    files = np.array([images.files[row] for row in rows])
    return {"files": files, "shown": files[chosen], **whole, **shown, "samples": samples}


def _of_batch(objective: Any, clean: Any, noisy: Any) -> Arrays:
    """The errors of a batch, mean squared over pixel values in [0, 1], and its pictures."""
    from scipy.ndimage import median_filter

    def seen(images: Any) -> np.ndarray:
        return _pixels(objective, objective.target(images))

    def given_back(images: Any) -> np.ndarray:
        return _pixels(objective, objective(images))

    original, spoilt = seen(clean), seen(noisy)
    smoothed = median_filter(spoilt, (1, 1, MEDIAN, MEDIAN))
    pictures = dict(zip(PICTURES, (original, spoilt, smoothed, given_back(noisy)), strict=True))
    ways = (pictures["reconstructed"], spoilt, smoothed, given_back(clean))
    losses = {name: _error(way, original) for name, way in zip(LOSSES, ways, strict=True)}
    return pictures | losses | _nats(objective, clean)


def _pixels(objective: Any, outputs: Any) -> np.ndarray:
    return np.asarray(objective.autoencoder.pictures(outputs).float().cpu().numpy())


def _error(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.square(found.astype(float) - wanted).mean((1, 2, 3))


def _nats(objective: Any, clean: Any) -> Arrays:
    """The evidence lower bound and its divergence, each image's; NaN where there is none."""
    if not hasattr(objective, "evidence"):
        return dict.fromkeys(NATS, np.full(len(clean), np.nan))
    likelihood, divergence = objective.evidence(objective.shown(clean), clean)
    found = (likelihood - divergence, divergence)
    return {name: x.double().cpu().numpy() for name, x in zip(NATS, found, strict=True)}


def _samples(objective: Any, image_size: int) -> np.ndarray:
    """Pictures from a variational objective's prior; none of another."""
    if not hasattr(objective, "sample"):
        return np.zeros((0, image_size, image_size, 1), np.uint8)
    return _bytes(_pixels(objective, objective.sample(SAMPLES, image_size)))


def _bytes(pictures: np.ndarray) -> np.ndarray:
    """``(n, C, H, W)`` in [0, 1] -> ``(n, H, W, C)`` uint8."""
    return np.rint(pictures.transpose(0, 2, 3, 1) * 255).astype(np.uint8)


def _chosen(seed: int, images: int) -> np.ndarray:
    """Which of the test images are shown, in their order."""
    random = np.random.default_rng(seed_for(seed, "shown pictures"))
    return np.sort(random.permutation(images)[:SHOWN])


def write_reconstructions(run: Location, encoders: Iterable[str]) -> None:
    """Write ``reconstructions.parquet`` from the encoders' own files."""
    rows = []
    for encoder in encoders:
        content = unseal_end(reconstructions_file(run, encoder).read_bytes())
        found: Arrays = dict(np.load(io.BytesIO(content), allow_pickle=False))
        for place, file in enumerate(found.get("files", ())):
            values = {name: float(found[name][place]) for name in (*LOSSES, *NATS)}
            nulls = {name: None if np.isnan(value) else value for name, value in values.items()}
            rows.append({"encoder": encoder, "file": str(file), **nulls})
    write_table(run / "reconstructions.parquet", rows, SCHEMA)
