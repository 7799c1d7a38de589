"""Each encoder's outputs for all images, for the analysis of the latent space.

Two controls stand beside the encoders: ``random``, the same network untrained, and ``pixels``,
the images themselves. Maps are pooled to at most 4×4.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa

from data.sealing import seal_end, unseal_end
from data.storage import Location
from study.encoders import EncoderPlan, encoder_settings, load_encoder
from study.material import Material
from study.records import TEXT, write_table
from study.seeds import seed_for

CONTROLS = ("random", "pixels")
GRID = 4
FILES = pa.schema({"file": TEXT, "split": TEXT, "species": TEXT})


def features_file(run: Location, encoder: str) -> Location:
    return run / "features" / f"{encoder}.npy"


def has_features(run: Location, encoder: str) -> bool:
    """Whether they are there, and whole."""
    try:
        unseal_end(features_file(run, encoder).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


def extract_features(material: Material, encoder: str, plan: EncoderPlan | None) -> str:
    """Write ``features/ENCODER.npy`` (N, D) float32; runs in a worker.

    Args:
        material: the study's images.
        encoder: the encoder's key, or a control's name.
        plan: of the encoder; None for a control.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    from data.module import Batches
    from models.registry import build_encoder
    from study.fitting import use_device

    device = use_device(material.config)
    images = material.images
    torch.manual_seed(seed_for(material.config.seed, "control"))
    recipe = plan.recipe if plan is not None else material.config.encoder
    network: Any = build_encoder(**encoder_settings(recipe, images.image_size))
    if plan is not None:
        network.load_state_dict(load_encoder(material, plan))
    network = torch.nn.Identity() if encoder == "pixels" else network.to(device)
    network.eval()
    parts = []
    with torch.inference_mode():
        rows = all_rows(material)
        for inputs, _ in Batches(images.pixels, images.labels, rows, 64, device=device):
            maps = network(inputs)
            grid = min(GRID, maps.shape[-1])
            parts.append(adaptive_avg_pool2d(maps.float(), grid).flatten(1).cpu().numpy())
    content = io.BytesIO()
    np.save(content, np.concatenate(parts).astype(np.float32))
    features_file(material.run, encoder).write_bytes(seal_end(content.getvalue()))
    return encoder


def write_feature_files(material: Material) -> None:
    """Write ``features/files.parquet``: which image each row of the features is."""
    images = material.images
    splits = np.full(len(images.files), "", dtype=object)
    for split in ("train", "valid", "test"):
        splits[material.rows(split)] = split
    rows = [
        {
            "file": images.files[i],
            "split": splits[i],
            "species": images.species[images.labels[i]],
        }
        for i in all_rows(material)
    ]
    write_table(material.run / "features" / "files.parquet", rows, FILES)


def all_rows(material: Material) -> np.ndarray:
    """Indices (N,) of all images of the study."""
    return np.sort(np.concatenate([material.rows(s) for s in ("train", "valid", "test")]))
