"""Each encoder's outputs for all images, for the analysis of the latent space.

Two controls stand beside the encoders: ``random``, the same network untrained, and ``pixels``,
the images themselves. Maps are pooled to at most 4×4. Of images in noise only the clusters are
kept.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa

from data.sealing import seal_end, unseal_end
from data.storage import InputError, Location
from study.encoders import EncoderPlan, encoder_settings, load_encoder
from study.evaluation import noise_levels
from study.material import Material
from study.records import INT, REAL, TEXT, Row, is_whole, read_table, write_table
from study.seeds import seed_for

CONTROLS = ("random", "pixels")
GRID = 4
FILES = pa.schema({"file": TEXT, "split": TEXT, "species": TEXT})
CLUSTERS = pa.schema({"noise": REAL, "file": TEXT, "cluster": INT})


def features_file(run: Location, encoder: str) -> Location:
    return run / "features" / f"{encoder}.npy"


def has_features(run: Location, encoder: str) -> bool:
    """Whether they are there, and whole."""
    return is_whole(features_file(run, encoder), unseal_end)


def extract_features(material: Material, encoder: str, plan: EncoderPlan | None) -> str:
    """Write ``features/ENCODER.npy`` (N, D) float32; runs in a worker.

    Args:
        material: the study's images.
        encoder: the encoder's key, or a control's name.
        plan: of the encoder; None for a control.
    """
    content = io.BytesIO()
    np.save(content, encode(material, encoder, plan))
    features_file(material.run, encoder).write_bytes(seal_end(content.getvalue()))
    return encoder


def encode(
    material: Material, encoder: str, plan: EncoderPlan | None, noise: float = 0.0
) -> np.ndarray:
    """An encoder's outputs for all images, (N, D) float32. Arguments as `extract_features`.

    Args:
        noise: share of the images' pixels that become white or black (`study.noisy`).
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    from data.module import Batches
    from study.fitting import use_device
    from study.noisy import NoisyBatches

    device, images, rows = use_device(material.config), material.images, all_rows(material)
    network = _network(material, encoder, plan).to(device).eval()
    batches: Any = Batches(images.pixels, images.labels, rows, 64, device=device)
    if noise:
        batches = NoisyBatches(material, rows, noise, device)
    parts = []
    with torch.inference_mode():
        for inputs, _ in batches:
            maps = network(inputs)
            grid = min(GRID, maps.shape[-1])
            parts.append(adaptive_avg_pool2d(maps.float(), grid).flatten(1).cpu().numpy())
    return np.concatenate(parts).astype(np.float32)


def _network(material: Material, encoder: str, plan: EncoderPlan | None) -> Any:
    import torch

    from models.registry import build_encoder

    torch.manual_seed(seed_for(material.config.seed, "control"))
    recipe = plan.recipe if plan is not None else material.config.encoder
    network = build_encoder(**encoder_settings(recipe, material.images.image_size))
    if plan is not None:
        network.load_state_dict(load_encoder(material, plan))
    return torch.nn.Identity() if encoder == "pixels" else network


def clusters_file(run: Location, encoder: str) -> Location:
    return run / "features" / f"{encoder}.noise.parquet"


def has_clusters(run: Location, encoder: str) -> bool:
    """Whether they are there, and whole."""
    try:
        return bool(read_table(clusters_file(run, encoder)))
    except InputError:
        return False


def cluster_in_noise(material: Material, encoder: str, plan: EncoderPlan | None) -> str:
    """Write ``features/ENCODER.noise.parquet``: in which cluster each image is, at each level of
    the study's noise; runs in a worker. Arguments as `extract_features`.

    Clusters are those of ``clusters.csv``, of images in noise: K-means with as many clusters as
    species. They are made here, as the features are too large to be kept for each level.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    from analysis.latents import cluster, reduce

    files = [material.images.files[row] for row in all_rows(material)]
    rows: list[Row] = []
    for noise in noise_levels(material.config):
        features = np.nan_to_num(encode(material, encoder, plan, noise).clip(-1e6, 1e6))
        with threadpool_limits(material.config.resources.cpus_per_trial):
            found = cluster(reduce(features), len(material.species))
        for file, place in zip(files, found, strict=True):
            rows.append({"noise": noise, "file": file, "cluster": int(place)})
    write_table(clusters_file(material.run, encoder), rows, CLUSTERS)
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
