"""Linear probes: what frozen features are worth with few labels, against random ones and pixels.

A probe is multinomial logistic regression with an L2 penalty. It is trained on exactly the images
that are labelled in a repeat of the final evaluation, its penalty is chosen by the accuracy on the
validation images, and it is tested on the test images: the same labels, seeds and images as the
networks have, so that its differences are paired as theirs are. Features are standardised by the
training images, which takes no labels.

Shapes: N images, D features, K species.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import CONTROLS, Run
from analysis.statistics import CellScores, Draws, estimate, interval_columns
from analysis.variants import cell_name, kind_of, recipe_of
from data.storage import InputError
from data.tables import from_parquet, to_parquet

PENALTIES = (1e-2, 1e-1, 1.0, 10.0)
"""scikit-learn's C, the strongest penalty first: each fit starts from the one before."""
FITS = ["features", "encoder", "label_ratio", "repeat", "labels", "C", "val_acc", "test_acc"]
PREDICTIONS = ["cell", "features", "label_ratio", "repeat", "file", "true", "pred", "loss"]
PROBES = ["features", "label_ratio", "labels", "repeats", "n", "val_acc"]
PROBES += interval_columns(["test_acc"])
_FILE, _RECIPE = "probes.parquet", f"penalties {PENALTIES}, standardised by train"


@dataclass(frozen=True)
class Probes:
    """What `probe` finds.

    Attributes:
        fits: one row per probe, `FITS`.
        predictions: one row per probe and test image, `PREDICTIONS`; ``cell``: ``FEATURES@RATIO``.
    """

    fits: pd.DataFrame
    predictions: pd.DataFrame


@dataclass(frozen=True)
class Job:
    """The probes of one encoder for one kind of features: at each ratio and repeat."""

    features: str
    encoder: str
    cells: tuple[tuple[int, int], ...]


def probe(run: Run) -> Probes:
    """Probe the pretrained encoders and the controls, at every ratio and repeat.

    Kept in ``probes.parquet``, and made again only if features or labels have changed.
    """
    work = jobs(run)
    if not work:
        return Probes(pd.DataFrame(columns=FITS), pd.DataFrame(columns=PREDICTIONS))
    key = _key(run, work)
    known = _read(run, key)
    if known is None:
        known = _probe_all(run, work)
        _write(run, key, known)
    return known


def jobs(run: Run) -> list[Job]:
    """Which encoder is probed in which (ratio, repeat): the one that the repeat's B1 started from.

    None without a final evaluation, without features or without validation images.
    """
    files, labels = run.feature_files, run.labels
    splits = set(files["split"]) if len(run.encoders) else set()
    if not {"train", "valid", "test"} <= splits or run.evaluations.empty:
        return []
    done = {int(repeat) for repeat in run.evaluations["repeat"]}
    drawn = labels[labels["repeat"].isin(done)][["label_ratio", "repeat"]].drop_duplicates()
    cells = [(int(ratio), int(repeat)) for ratio, repeat in sorted(drawn.to_numpy().tolist())]
    owners: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for variant in _one_of_each_recipe(run):
        name = features_of(variant)
        for ratio, repeat in cells:
            encoder = encoder_of(run, variant, ratio, repeat)
            if encoder in run.encoders:
                owners.setdefault((name, str(encoder)), []).append((ratio, repeat))
    found = [Job(name, encoder, tuple(own)) for (name, encoder), own in owners.items()]
    controls = [each for each in CONTROLS if each in run.encoders]
    return found + [Job(control, control, tuple(cells)) for control in controls]


def features_of(variant: str) -> str:
    """The name of a pretrained variant's features: ``pretrained``, ``pretrained-NAME``."""
    return f"pretrained{variant.removeprefix(kind_of(variant))}"


def _one_of_each_recipe(run: Run) -> list[str]:
    return list({recipe_of(variant): variant for variant in run.pretrained_as}.values())


def encoder_of(run: Run, variant: str, ratio: int, repeat: int | None) -> str | None:
    """The encoder that a variant starts from in a repeat of the evaluation (None: the search).

    A repeat without its own encoder uses the shared one. If there is one per ratio
    (``encoder.pretrain_on: unlabelled``), they are told apart by their number of images.
    """
    made = run.encoders_of(variant)
    own = made[made["repeat"] == repeat] if repeat is not None else made.head(0)
    own = own if len(own) else made[made["repeat"].isna()]
    if len(own) > 1 and "train" in run.counts:
        labels = run.labels
        of_repeat = labels["repeat"].isna() if repeat is None else labels["repeat"] == repeat
        taken = int((of_repeat & (labels["label_ratio"] == ratio)).sum())
        own = own[own["images"] == run.counts["train"] - taken] if taken else own
    return str(own["encoder"].iloc[0]) if len(own) else None


def _probe_all(run: Run, work: Sequence[Job]) -> Probes:
    import scipy.optimize  # noqa: F401  here: a BLAS loaded later would not be limited
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    known = _Images(run)
    with threadpool_limits(1), ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda job: _probe_one(run, known, job), work))
    rows = [row for part in parts for row in part]
    fits = pd.DataFrame([fit for fit, _ in rows], columns=FITS)
    predictions = pd.concat([each for _, each in rows], ignore_index=True)[PREDICTIONS]
    return Probes(fits, predictions)


class _Images:
    """The rows of the features by file and split, and each image's species."""

    def __init__(self, run: Run):
        files = run.feature_files
        self.files = files["file"].to_numpy(dtype=object)
        self.names = np.asarray(run.species, dtype=object)
        self.species = pd.Index(self.names).get_indexer(pd.Index(files["species"]))
        self.train, self.valid, self.test = (
            np.flatnonzero(files["split"] == split) for split in ("train", "valid", "test")
        )
        row = pd.Index(self.files)
        labels = run.labels.dropna(subset=["repeat"])
        self.labelled: dict[Any, np.ndarray] = {  # by (ratio, repeat)
            key: row.get_indexer(pd.Index(part["file"]))
            for key, part in labels.groupby(["label_ratio", "repeat"])
        }


def _probe_one(run: Run, known: _Images, job: Job) -> list[tuple[dict[str, object], pd.DataFrame]]:
    features = rotate(run.features(job.encoder), known.train)
    done: dict[bytes, _Fit] = {}  # with all labels, all repeats of an encoder are the same
    found = []
    for ratio, repeat in job.cells:
        rows = known.labelled[ratio, repeat]
        _check_known(rows, ratio, repeat)
        key = np.sort(rows).tobytes()
        if key not in done:
            done[key] = _fit_best(features, known, np.sort(rows))
        found.append(_rows(done[key], known, job, ratio, repeat))
    return found


def _check_known(rows: np.ndarray, ratio: int, repeat: int) -> None:
    if (rows < 0).any():
        raise InputError(
            f"labels.parquet: {int((rows < 0).sum())} images at {ratio} % in repeat {repeat} are "
            f"not in features/files.parquet, expected all"
        )


@dataclass(frozen=True)
class _Fit:
    labels: int
    penalty: float
    val_acc: float
    logits: np.ndarray  # of the test images


def _fit_best(features: np.ndarray, known: _Images, rows: np.ndarray) -> _Fit:
    path = fit_path(features[rows], known.species[rows], len(known.names))
    valid, answers = features[known.valid], known.species[known.valid]
    accuracy = [float((logits(valid, each).argmax(axis=1) == answers).mean()) for each in path]
    best = int(np.argmax(accuracy))  # the first if several are equal: the strongest penalty
    tested = logits(features[known.test], path[best])
    return _Fit(len(rows), PENALTIES[best], accuracy[best], tested)


def _rows(
    fit: _Fit, known: _Images, job: Job, ratio: int, repeat: int
) -> tuple[dict[str, object], pd.DataFrame]:
    true, pred = known.species[known.test], fit.logits.argmax(axis=1)
    key = {"features": job.features, "label_ratio": ratio, "repeat": repeat}
    row = key | {"encoder": job.encoder, "labels": fit.labels, "C": fit.penalty}
    row |= {"val_acc": fit.val_acc, "test_acc": float((pred == true).mean())}
    tested = {"file": known.files[known.test], "true": known.names[true]}
    tested |= {"pred": known.names[pred], "loss": cross_entropy(fit.logits, true)}
    return row, pd.DataFrame({"cell": cell_name(job.features, ratio), **key, **tested})


def rotate(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Features standardised by the training images, on those images' principal axes, (N, D).

    A rotation changes neither the probe nor its penalty; on these axes the loss is nearly
    separable, which makes the fit many times faster.
    """
    values = np.nan_to_num(features.clip(-1e6, 1e6))  # if the encoder diverged
    centre, spread = values[train].mean(axis=0), values[train].std(axis=0)
    constant = spread <= 1e-6 * np.abs(values[train]).max(axis=0, initial=1e-6)
    scaled = (values - centre) / np.where(constant, 1, spread)
    scaled[:, constant] = 0
    of_train = scaled[train].astype(np.float64)
    _, axes = np.linalg.eigh(of_train.T @ of_train)
    return np.asarray(scaled @ axes[:, ::-1][:, : len(train)].astype(np.float32), np.float32)


def fit_path(features: np.ndarray, species: np.ndarray, classes: int) -> list[np.ndarray]:
    """Probes with each of `PENALTIES`.

    Args:
        features: of the labelled images, (N, D), float32.
        species: (N,) in [0, K).
        classes: K.

    Returns:
        Weights (D + 1, K) each, the intercepts last.
    """
    weights, path = np.zeros((features.shape[1] + 1, classes), np.float32), []
    for penalty in PENALTIES:
        weights = _fit(features, species, 1 / (penalty * len(features)), weights)
        path.append(weights)
    return path


def _fit(features: np.ndarray, species: np.ndarray, decay: float, start: np.ndarray) -> np.ndarray:
    """The mean cross entropy plus decay / 2 · |weights|², by L-BFGS.

    Each axis is scaled by its curvature, bounded by variance / 4 + decay (Böhning, Ann. Inst.
    Stat. Math. 44, 1992, with 1/2 for 1/4).
    """
    from scipy.optimize import minimize

    images, classes = len(features), start.shape[1]
    curvature = 0.25 * (features**2).mean(axis=0) + decay
    scale = np.append(1 / np.sqrt(curvature), 2.0).astype(np.float32)[:, None]
    inputs = np.hstack([features, np.ones((images, 1), np.float32)]) * scale.T
    decays = np.float32(decay) * scale**2
    decays[-1] = 0  # the intercepts are free
    wanted = np.zeros((images, classes), np.float32)
    wanted[np.arange(images), species] = 1

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = flat.reshape(start.shape).astype(np.float32)
        out = inputs @ scaled
        out -= out.max(axis=1, keepdims=True)
        exponents = np.exp(out)
        total = exponents.sum(axis=1, keepdims=True)
        value = float((np.log(total[:, 0]) - (out * wanted).sum(axis=1)).mean())
        value += 0.5 * float((decays * scaled**2).sum())
        slope = inputs.T @ ((exponents / total - wanted) / images) + decays * scaled
        return value, slope.astype(np.float64).ravel()

    options: Any = {"maxiter": 100, "gtol": 1e-4, "ftol": 1e-6}
    first = (start / scale).ravel()
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x.reshape(start.shape) * scale, np.float32)


def logits(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N, K) of features (N, D) and weights (D + 1, K)."""
    return np.asarray(features @ weights[:-1] + weights[-1])


def cross_entropy(values: np.ndarray, species: np.ndarray) -> np.ndarray:
    """The cross entropy of each image in nats, (N,), from logits (N, K)."""
    from scipy.special import log_softmax

    return np.asarray(-log_softmax(values.astype(np.float64), axis=1)[range(len(values)), species])


def probe_table(fits: pd.DataFrame, scores: Mapping[str, CellScores], draws: Draws) -> pd.DataFrame:
    """Test accuracy of the probes with 95 % intervals, one row per kind of features and ratio.

    Args:
        fits: of `Probes`.
        scores: what `score_cells` gives for the probes' predictions.
    """
    rows: list[dict[Any, Any]] = []
    for _, part in fits.groupby(["features", "label_ratio"], sort=False):
        row: dict[Any, Any] = part[["features", "label_ratio", "labels"]].iloc[0].to_dict()
        cell = scores[cell_name(row["features"], row["label_ratio"])]
        row |= {"repeats": len(cell.distinct), "n": cell.images, "val_acc": part["val_acc"].mean()}
        rows.append(row | estimate(cell, "acc", draws).columns("test_acc"))
    frame = pd.DataFrame(rows, columns=PROBES)
    return frame.sort_values("label_ratio", kind="stable", ignore_index=True)


def _key(run: Run, work: Sequence[Job]) -> str:
    digest = hashlib.sha256(f"{_RECIPE} {work}".encode())
    for name in sorted({job.encoder for job in work}):
        digest.update(run.features(name).tobytes())
    for frame in (run.feature_files, run.labels):
        digest.update(frame.to_csv(index=False).encode())
    return digest.hexdigest()


def _read(run: Run, key: str) -> Probes | None:
    try:
        table = from_parquet((run.location / _FILE).read_bytes())
        notes = table.schema.metadata or {}
        if notes.get(b"key") != key.encode():
            return None
        fits = pd.read_json(io.BytesIO(notes[b"fits"]), orient="split", precise_float=True)
        fits = fits.astype({"features": str, "encoder": str})
        return Probes(fits[FITS], table.to_pandas()[PREDICTIONS])
    except (OSError, ValueError, KeyError):
        return None  # absent or damaged: made again from the features


def _write(run: Run, key: str, found: Probes) -> None:
    import pyarrow as pa

    table = pa.Table.from_pandas(found.predictions, preserve_index=False)
    fits = found.fits.to_json(orient="split", double_precision=15)
    table = table.replace_schema_metadata({b"key": key.encode(), b"fits": fits.encode()})
    (run.location / _FILE).write_bytes(to_parquet(table))
