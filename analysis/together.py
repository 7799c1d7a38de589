"""Pairs of species that clusters cannot tell apart, with example images."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

MOST_PAIRS = 20  # per encoder and space
EXAMPLES = 3
COLUMNS = ["encoder", "space", "species", "other", "overlap", "cluster", "images"]
COLUMNS += ["other_images", "files", "other_files"]
_SPACES = {"latent": "cluster", "tsne": "cluster_tsne"}


def together(points: pd.DataFrame) -> pd.DataFrame:
    """Pairs of species by the overlap of their distributions over clusters, largest first.

    Args:
        points: as ``latents.parquet``.

    Returns:
        `COLUMNS`, see docs/RECORDS.md: at most 20 pairs per encoder and space, all with overlap.
    """
    rows = [
        (encoder, space, *row)
        for encoder, part in points.groupby("encoder", sort=False)
        for space, column in _SPACES.items()
        for row in _pairs(part, part[column].to_numpy())
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _pairs(points: pd.DataFrame, clusters: np.ndarray) -> list[tuple[object, ...]]:
    codes, names = pd.factorize(points["species"], sort=True)
    counts = np.zeros((len(names), clusters.max() + 1), dtype=int)
    np.add.at(counts, (codes, clusters), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    pairs = list(combinations(range(len(names)), 2))
    overlap = [float(np.minimum(shares[a], shares[b]).sum()) for a, b in pairs]
    order = np.argsort(-np.asarray(overlap), kind="stable")[:MOST_PAIRS]
    found = []
    for place in order:
        a, b = pairs[place]
        if overlap[place] > 0:
            cluster = int(np.minimum(shares[a], shares[b]).argmax())
            of_cluster = clusters == cluster
            files = [_examples(points, of_cluster, codes == each) for each in (a, b)]
            numbers = (cluster, int(counts[a, cluster]), int(counts[b, cluster]))
            found.append((names[a], names[b], overlap[place], *numbers, *files))
    return found


def _examples(points: pd.DataFrame, of_cluster: np.ndarray, own: np.ndarray) -> tuple[str, ...]:
    """The images of a species in a cluster that are nearest to its centre on the plane."""
    plane = points[["x", "y"]].to_numpy()
    middle = np.median(plane[of_cluster], axis=0)
    rows = np.flatnonzero(of_cluster & own)
    near = rows[np.argsort(((plane[rows] - middle) ** 2).sum(axis=1), kind="stable")]
    return tuple(str(file) for file in points["file"].to_numpy()[near[:EXAMPLES]])
