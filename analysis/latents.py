"""Where each encoder puts the images: a map, clusters, and what frozen features are worth.

Features are standardised (each column to mean 0, variance 1) and reduced to their first 50
principal components; t-SNE and K-means start from those. Maps and clusters are over all images of
TRAIN, VALID and TEST together, without their labels; the scores of frozen features train on the
labels of TRAIN and are measured on VALID.

Shapes: N images, D features, k species.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.load import Run
from analysis.statistics import Estimate, interval_columns
from data.storage import Location
from data.tables import from_parquet, to_parquet

COMPONENTS, PERPLEXITY, SEED = 50, 30, 0
DRAWS = 1000
PENALTY = 0.01
"""scikit-learn's C of the linear probe in `Scores`."""
LATENTS = ["encoder", "file", "split", "species", "x", "y", "cluster", "cluster_tsne"]
CLUSTER_METRICS = ("nmi", "ami", "ari", "purity", "silhouette")
CLUSTERS = ["encoder", "space", "k", *interval_columns(CLUSTER_METRICS)]
_RECIPE = f"PCA {COMPONENTS}, t-SNE {PERPLEXITY} (500 at 0.7), seed {SEED}, draws {DRAWS}"


@dataclass(frozen=True)
class Scores:
    """Accuracy on VALID of simple classifiers of frozen features; NaN if not computable.

    Attributes:
        knn_acc: the 5 nearest neighbours by cosine.
        probe_acc: logistic regression on standardised features, C = 0.01.
    """

    knn_acc: float
    probe_acc: float


_Part = tuple[pd.DataFrame, pd.DataFrame, Scores]
"""One encoder's rows of ``latents.parquet`` and of ``clusters.csv``, and its scores."""


@dataclass(frozen=True)
class Latents:
    """What `explore` finds: ``latents.parquet``, ``clusters.csv`` and each encoder's scores."""

    points: pd.DataFrame
    clusters: pd.DataFrame
    scores: dict[str, Scores]


def explore(run: Run) -> Latents:
    """Map, cluster and score every encoder of a run, and write ``latents.parquet`` and
    ``clusters.csv``.

    An encoder whose features have not changed is read from those files instead.
    """
    known = _Known(run)
    hashes, features = {}, {}
    for encoder in run.encoders:
        values = np.nan_to_num(run.features(encoder).clip(-1e6, 1e6))  # if the encoder diverged
        hashes[encoder] = _hash(values, run.feature_files)
        if known.get(encoder, hashes[encoder]) is None:
            features[encoder] = values
    made = _explore_all(features, run.feature_files)
    parts = {e: made.get(e) or known.get(e, hashes[e]) for e in run.encoders}
    found = Latents(
        _concat([part[0] for part in parts.values() if part], LATENTS),
        _concat([part[1] for part in parts.values() if part], CLUSTERS),
        {encoder: part[2] for encoder, part in parts.items() if part},
    )
    if made:
        _write(run.location, found, hashes)
    return found


def _explore_all(features: Mapping[str, np.ndarray], files: pd.DataFrame) -> dict[str, _Part]:
    """Two encoders at a time, one thread each: t-SNE has so many barriers that two threads on one
    encoder are slower, and many times slower if the cores are wanted elsewhere.
    """
    # Imported before the limit is set: a BLAS or OpenMP that is loaded later would escape it.
    import sklearn.cluster
    import sklearn.decomposition
    import sklearn.linear_model
    import sklearn.manifold
    import sklearn.neighbors  # noqa: F401
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    def one(encoder: str) -> _Part:
        with threadpool_limits(1):  # here for OpenMP, which counts per thread; below for BLAS
            score = score_features(features[encoder], files)
            return (*map_encoder(encoder, features[encoder], files), score)

    with threadpool_limits(1), ThreadPoolExecutor(2) as pool:
        return dict(zip(features, pool.map(one, features), strict=True))


def map_encoder(
    encoder: str, features: np.ndarray, files: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One encoder's rows of ``latents.parquet`` and ``clusters.csv``.

    Args:
        features: (N, D).
        files: ``file split species`` of the same N images.

    Returns:
        The points, with their place on the t-SNE plane and cluster among k in [0, k), where k is
        the number of species; and for each space (the ``latent`` components, and the ``tsne``
        plane as the paper has it) NMI, ARI, purity by the best assignment of clusters to species,
        and silhouette, with 95 % intervals.
    """
    codes, species = pd.factorize(files["species"], sort=True)
    components = reduce(features)
    plane = tsne(components)
    spaces = {"latent": components, "tsne": plane}
    found = {space: cluster(points, len(species)) for space, points in spaces.items()}
    points = files[["file", "split", "species"]].copy()
    points.insert(0, "encoder", encoder)
    points["x"], points["y"] = plane[:, 0], plane[:, 1]
    points["cluster"], points["cluster_tsne"] = found["latent"], found["tsne"]
    rows = [
        {"encoder": encoder, "space": space, "k": len(species)}
        | agreement(codes, found[space], spaces[space])
        for space in spaces
    ]
    return points, pd.DataFrame(rows, columns=CLUSTERS)


def reduce(features: np.ndarray) -> np.ndarray:
    """Standardised features on their first principal components, (N, at most 50)."""
    from sklearn.decomposition import PCA

    scaled = _standardise(features, features)
    if not scaled.any():  # every image has the same features
        return np.zeros((len(scaled), 1))
    components = min(COMPONENTS, *scaled.shape)
    solver = "full" if components == scaled.shape[1] else "auto"
    return np.asarray(PCA(components, svd_solver=solver, random_state=SEED).fit_transform(scaled))


def _standardise(features: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Each column less the mean, and divided by the deviation, of the same column of ``by``."""
    spread = by.std(axis=0)
    return np.asarray((features - by.mean(axis=0)) / np.where(spread > 0, spread, 1))


def tsne(components: np.ndarray) -> np.ndarray:
    """The t-SNE plane (van der Maaten & Hinton, JMLR 9, 2008), (N, 2): perplexity 30, seed 0,
    started from the first two principal components.
    """
    from sklearn.manifold import TSNE

    images = len(components)
    if images < 4 or not components[:, 0].std() > 0:  # scikit-learn crashes if all are the same
        return np.zeros((images, 2))
    if components.shape[1] == 1:
        components = np.pad(components, ((0, 0), (0, 1)))
    perplexity = min(PERPLEXITY, (images - 1) / 3)
    # 500 rounds at angle 0.7 keep neighbours as well as the default 1,000 at 0.5, in a third.
    model = TSNE(2, perplexity=perplexity, init="pca", max_iter=500, angle=0.7, random_state=SEED)
    return np.asarray(model.fit_transform(components), dtype=np.float64)


def cluster(points: np.ndarray, k: int) -> np.ndarray:
    """K-means: the best of 10 starts, (N,) in [0, k)."""
    from sklearn.cluster import KMeans

    k = min(k, len(np.unique(points, axis=0)))
    return np.asarray(KMeans(k, n_init=10, random_state=SEED).fit_predict(points))


def agreement(
    species: np.ndarray, clusters: np.ndarray, points: np.ndarray | None
) -> dict[str, float]:
    """How well clusters match species, and how separate they are, with 95 % intervals.

    The intervals resample images and keep the clusters. Resampling raises NMI, ARI and purity a
    little even if clusters and species are unrelated, so the draws are centred on the value. NMI
    and purity themselves are too high by chance, the more so the fewer images there are, and their
    intervals with them. AMI and ARI are 0 by chance; AMI is still somewhat high between 0 and 1.

    Args:
        species, clusters: codes from 0, (N,).
        points: in which the clusters were found, (N, dimensions); None: no silhouette.
    """
    random = np.random.default_rng(SEED)
    table = np.zeros((species.max() + 1, clusters.max() + 1))
    np.add.at(table, (species, clusters), 1)
    images = len(species)
    drawn = random.multinomial(images, table.ravel() / images, size=DRAWS)
    tables = np.concatenate([table[None], drawn.reshape(DRAWS, *table.shape)])
    found = {
        "nmi": normalised_mutual_information(tables),
        "ami": adjusted_mutual_information(tables),
        "ari": adjusted_rand(tables),
        "purity": purity(tables),
    }
    if points is not None:
        found["silhouette"] = _silhouettes(points, clusters, random)
    result: dict[str, float] = {}
    for name, values in found.items():
        low, high = np.quantile(values[1:], [0.025, 0.975]) - values[1:].mean() + values[0]
        least = 0.0 if name in ("nmi", "purity") else -1.0  # of what is adjusted, and silhouette
        kept = Estimate(float(values[0]), float(low), float(high))
        result |= kept.clipped(least, 1.0).columns(name)
    return result


def normalised_mutual_information(tables: np.ndarray) -> np.ndarray:
    """NMI, arithmetic mean, of contingency tables (B, species, clusters), in [0, 1]."""
    shared, mean = _information(tables)
    return np.divide(shared, mean, out=np.ones_like(mean), where=mean > 0)


def adjusted_mutual_information(tables: np.ndarray) -> np.ndarray:
    """AMI, arithmetic mean (N. X. Vinh, J. Epps & J. Bailey, JMLR 11, 2010), of contingency tables
    (B, species, clusters): 0 by chance, at most 1. What chance gives is that of the first table,
    of which the others are draws.
    """
    shared, mean = _information(tables)
    by_chance = expected_information(tables[0])
    room = mean - by_chance
    return np.divide(shared - by_chance, room, out=np.ones_like(room), where=room > 1e-12)


def expected_information(table: np.ndarray) -> float:
    """Mutual information in nats of species and clusters of these sizes, if images are dealt to
    them at random (Vinh et al., eq. 24a).
    """
    from scipy.stats import hypergeom

    images, found = table.sum(), 0.0
    for of_species in table.sum(axis=1):
        for of_cluster in table.sum(axis=0):
            both = np.arange(1, min(of_species, of_cluster) + 1)
            chance = hypergeom.pmf(both, images, of_species, of_cluster)
            parts = both / images * np.log(images * both / (of_species * of_cluster))
            found += float((chance * parts).sum())
    return found


def _information(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mutual information of species and clusters, and the mean of their entropies, in nats."""
    images = tables.sum(axis=(1, 2))
    rows, columns = (_entropy(tables.sum(axis=axis), images) for axis in (2, 1))
    joint = _entropy(tables.reshape(len(tables), -1), images)
    return rows + columns - joint, (rows + columns) / 2


def _entropy(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    from scipy.special import xlogy

    return np.asarray(np.log(total) - xlogy(counts, counts).sum(axis=1) / total)


def adjusted_rand(tables: np.ndarray) -> np.ndarray:
    """ARI (Hubert & Arabie, J. Classif. 2, 1985) of contingency tables, at most 1."""
    pairs = [(t * (t - 1) / 2).sum(axis=-1) for t in (tables.sum(axis=2), tables.sum(axis=1))]
    both = (tables * (tables - 1) / 2).sum(axis=(1, 2))
    images = tables.sum(axis=(1, 2))
    expected = pairs[0] * pairs[1] / (images * (images - 1) / 2)
    room = (pairs[0] + pairs[1]) / 2 - expected
    return np.divide(both - expected, room, out=np.ones_like(room), where=room != 0)


def purity(tables: np.ndarray) -> np.ndarray:
    """Share of images in the cluster that the best one-to-one assignment gives to their species."""
    from scipy.optimize import linear_sum_assignment

    matched = [table[linear_sum_assignment(-table)].sum() for table in tables]
    return np.asarray(matched) / tables.sum(axis=(1, 2))


def _silhouettes(
    points: np.ndarray, clusters: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """The mean silhouette (Rousseeuw 1987), then of each draw of images, (1 + draws,)."""
    from sklearn.metrics import silhouette_samples

    if not 2 <= len(np.unique(clusters)) < len(clusters):
        return np.full(1 + DRAWS, np.nan)
    values = silhouette_samples(points, clusters)
    images = len(values)
    drawn = values[random.integers(images, size=(DRAWS, images))].mean(axis=1)
    return np.concatenate([[values.mean()], drawn])


def score_features(features: np.ndarray, files: pd.DataFrame) -> Scores:
    """Train on TRAIN's features, measure on VALID's."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    train, valid = (np.flatnonzero(files["split"] == split) for split in ("train", "valid"))
    species = files["species"].to_numpy(dtype=str)
    if len(valid) == 0 or len(np.unique(species[train])) < 2:
        return Scores(np.nan, np.nan)
    scaled = _standardise(features, features[train])
    neighbours = KNeighborsClassifier(min(5, len(train)), metric="cosine")
    neighbours.fit(features[train], species[train])
    probe = LogisticRegression(C=PENALTY, max_iter=2000).fit(scaled[train], species[train])
    return Scores(
        float((neighbours.predict(features[valid]) == species[valid]).mean()),
        float((probe.predict(scaled[valid]) == species[valid]).mean()),
    )


class _Known:
    """What an earlier report left in ``latents.parquet`` and ``clusters.csv``."""

    def __init__(self, run: Run):
        self._hashes: dict[str, str] = {}
        self._scores: dict[str, Scores] = {}
        try:
            self._read(run.location)
        except (OSError, ValueError, KeyError, TypeError):
            self._hashes = {}  # absent or damaged: both files are made anew from the features

    def get(self, encoder: str, digest: str) -> _Part | None:
        if self._hashes.get(encoder) != digest:
            return None
        points = self._points[self._points["encoder"] == encoder]
        clusters = self._clusters[self._clusters["encoder"] == encoder]
        return (points, clusters, self._scores[encoder]) if len(clusters) == 2 else None

    def _read(self, location: Location) -> None:
        table = from_parquet((location / "latents.parquet").read_bytes())
        notes = json.loads(table.schema.metadata[b"mariposa"])
        self._points = table.to_pandas()[LATENTS]
        csv = io.BytesIO((location / "clusters.csv").read_bytes())
        self._clusters = pd.read_csv(csv, dtype={"encoder": str})[CLUSTERS]
        self._scores = {name: Scores(**each) for name, each in notes["scores"].items()}
        self._hashes = notes["hashes"]


def _hash(features: np.ndarray, files: pd.DataFrame) -> str:
    digest = hashlib.sha256(_RECIPE.encode())
    digest.update(repr(features.shape).encode())
    digest.update(np.ascontiguousarray(features).tobytes())
    digest.update(files[["file", "split", "species"]].to_csv(index=False).encode())
    return digest.hexdigest()


def _concat(frames: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    if not frames:
        return pd.DataFrame(columns=columns)
    return pd.concat(frames, ignore_index=True)[columns]


def _write(location: Location, found: Latents, hashes: Mapping[str, str]) -> None:
    import pyarrow as pa

    scores = {name: vars(each) for name, each in found.scores.items()}
    notes = json.dumps({"recipe": _RECIPE, "hashes": dict(hashes), "scores": scores})
    table = pa.Table.from_pandas(found.points, preserve_index=False)
    table = table.replace_schema_metadata({b"mariposa": notes.encode()})
    (location / "clusters.csv").write_text(found.clusters.to_csv(index=False))
    (location / "latents.parquet").write_bytes(to_parquet(table))
