"""Writes the records of a study that never ran: made up, but consistent with one another.

Accuracy grows with labels, pretraining helps most where labels are few, and every metric, best
epoch and count follows from the rows that it is said to summarise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from sklearn.metrics import precision_recall_fscore_support

VARIANTS = ("A", "B0", "B1", "B2")
RATIOS = (10, 25, 50, 75, 100)
SPECIES = ["Adonis blue", "Brimstone", "Camberwell beauty", "Common swallowtail", "Dark knight"]
SPECIES += ["Eastern comma", "False apollo", "Grayling", "Holly blue", "Iphiclus sister"]
SPECIES += ["Jersey tiger", "Large copper", "Map", "Norse grayling", "Orange tip"]
SPECIES += [
    "Painted lady",
    "Red admiral",
    "Scarce swallowtail",
    "Two-tailed pasha",
    "Zebra longwing",
]
STARTED = 1_772_359_200.0  # seconds since 1970
EPOCH = ("epoch", "train_loss", "val_loss", "val_acc", "val_f1", "seconds", "ended")
Curve = dict[str, np.ndarray]
_GAIN = {"A": 0.0, "B0": -0.02, "B1": 0.03, "B2": 0.08, "C": 0.06}


def write_run(
    folder: Path,
    *,
    variants: Sequence[str] = VARIANTS,
    ratios: Sequence[int] = RATIOS,
    species: Sequence[str] = tuple(SPECIES),
    per_species: tuple[int, int, int] = (70, 10, 25),
    trials: int = 16,
    repeats: int = 5,
    failed: Sequence[str] = (),
    unevaluated: Sequence[str] = (),
    encoders: int = 1,
    features: int = 64,
    per_repeat: bool = True,
    state: str = "COMPLETE",
    metric: str = "val_f1",
    noise: Sequence[float] = (),
    seed: int = 0,
) -> Path:
    """A run folder.

    Args:
        per_species: images of train, valid and test.
        trials: a cell.
        failed: cells of which every trial failed.
        unevaluated: cells without a final evaluation.
        features: columns of each encoder's features.
        noise: shares of noisy pixels that the study tests with; costs B1-denoising and
            B2-denoising less than others.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = _files(species, per_species)
    config = _config(variants, ratios, trials, repeats, per_repeat, metric, noise, folder.name)
    study = _study(config, species, per_species, state)
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False, allow_unicode=True))
    _write(folder, "labels", _labels(files, ratios, repeats, random))
    made, curves = _trials(variants, ratios, trials, failed, metric, random)
    _write(folder, "trials", made)
    _write(folder, "epochs", curves)
    lrs = _lrs(made, metric)
    cells = [c for c in lrs if c not in unevaluated] if repeats else []
    _write_evaluations(folder, cells, lrs, files, list(species), repeats, random)
    _write_encoders(folder, encoders, files, features, random)
    if noise:
        _write_robustness(folder, [share for share in noise if share], list(species))
        _write_clusters(folder, [share for share in noise if share], files)
    if noise and encoders:
        write_reconstructions(folder, {"unet-0000": 0.02})
    return folder


def _files(species: Sequence[str], per_species: tuple[int, int, int]) -> pd.DataFrame:
    rows = [
        (f"{split}/{name}/{number:03d}.jpg", split, name)
        for split, count in zip(("train", "valid", "test"), per_species, strict=True)
        for name in species
        for number in range(count)
    ]
    return pd.DataFrame(rows, columns=["file", "split", "species"])


def _config(
    variants: Sequence[str],
    ratios: Sequence[int],
    trials: int,
    repeats: int,
    per_repeat: bool,
    metric: str,
    noise: Sequence[float],
    name: str,
) -> dict[str, object]:
    recipes = sorted({variant.partition("-")[2] for variant in variants} - {""})
    return {
        "name": name,
        "seed": 0,
        "data": {"root": "images", "image_size": 64, "split": "folders"},
        "cells": {"variants": list(variants), "label_ratios": list(ratios)},
        "encoder": {
            "architecture": "unet",
            "width": 16,
            "pretrain_on": "all",
            "epochs": 12,
            "lr": 5e-4,
            "per_repeat": per_repeat,
        },
        "encoders": {
            recipe: {"architecture": "unet", "width": 16, "per_repeat": per_repeat}
            | {"objective": "denoising" if "denoising" in recipe else "reconstruction"}
            for recipe in recipes
        },
        "training": {"batch_size": 64, "max_epochs": 20, "patience": 5, "augment": "none"},
        "search": {
            "trials": trials,
            "lr": [1e-5, 1e-2],
            "sampler": "tpe",
            "scheduler": "asha",
            "grace_period": 3,
            "reduction_factor": 3,
            "metric": metric,
        },
        "evaluation": {"repeats": repeats, "noise": list(noise)},
        "resources": {"cpus_per_trial": 1, "gpus_per_trial": "auto", "max_concurrent": "auto"},
        "tracking": {"wandb": "offline"},
    }


def _study(
    config: dict[str, object],
    species: Sequence[str],
    per_species: tuple[int, int, int],
    state: str,
) -> dict[str, object]:
    counts = [count * len(species) for count in per_species]
    return {
        "config": config,
        "versions": {"python": "3.11.9", "torch": "2.14.1", "ray": "2.60.0", "optuna": "5.0.0"},
        "commit": "0123abc",
        "data": {
            "root": "images",
            "fingerprint": "5f0c9d1e",
            "image_size": 64,
            "species": list(species),
            "counts": dict(zip(("train", "valid", "test"), counts, strict=True)),
        },
        "state": state,
        "started": "2026-03-01T10:00:00+00:00",
        "seconds": 312.5,
        "machine": "2 cores, Intel Xeon",
    }


def _labels(
    files: pd.DataFrame, ratios: Sequence[int], repeats: int, random: np.random.Generator
) -> pd.DataFrame:
    train = files[files["split"] == "train"]
    rows = []
    for repeat in [None, *range(repeats)]:
        order = train.iloc[random.permutation(len(train))]
        for ratio in ratios:
            for _, group in order.groupby("species"):
                count = int(ratio / 100 * len(group) + 0.5)
                rows += [(ratio, repeat, file) for file in group["file"].head(count)]
    frame = pd.DataFrame(rows, columns=["label_ratio", "repeat", "file"])
    return frame.astype({"repeat": "Int64"})


def _accuracy(variant: str, ratio: int) -> float:
    gain = _GAIN[variant.partition("-")[0]] * (1 if variant == "A" else 1.6 - ratio / 100)
    return 0.25 + 0.2 * np.log10(ratio) + gain


def _trials(
    variants: Sequence[str],
    ratios: Sequence[int],
    trials: int,
    failed: Sequence[str],
    metric: str,
    random: np.random.Generator,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, keys, curves = [], [], []
    for variant in variants:
        for ratio in ratios:
            cell = f"{variant}@{ratio}"
            for number in range(trials):
                key = {"cell": cell, "variant": variant, "label_ratio": ratio}
                lr = 1e-4 if number == 0 else 10 ** random.uniform(-5, -2)
                row = {"trial_id": f"{cell}-{number:03d}", **key, "lr": lr, "seed": 1000 + number}
                if cell in failed or (number == 3 and variant == "A"):
                    rows.append(row | {"state": "FAIL", "epochs": 0, "error": _ERROR})
                    continue
                curve = _curve(row["lr"], _accuracy(variant, ratio), number, random)
                pruned = number % 3 == 2
                curve = {k: values[:3] if pruned else values for k, values in curve.items()}
                row |= {"state": "PRUNED" if pruned else "COMPLETE", "epochs": len(curve["epoch"])}
                row |= _best(curve, metric)
                row |= {"seconds": curve["seconds"].sum(), "node": "10.0.0.1"}
                rows.append(row)
                keys.append({"trial_id": row["trial_id"], **key})
                curves.append(curve)
    columns = ["trial_id", "cell", "variant", "label_ratio", "lr", "seed", "state", "epochs"]
    columns += ["best_epoch", "val_loss", "val_acc", "val_f1", "seconds", "node", "error"]
    frame = pd.DataFrame(rows, columns=columns)
    frame[["epochs", "best_epoch"]] = frame[["epochs", "best_epoch"]].astype("Int64")
    return frame, _epochs(keys, curves)


_ERROR = "RuntimeError: loss is NaN at epoch 1\n  File trial.py, line 81"


def _curve(lr: float, top: float, number: int, random: np.random.Generator) -> Curve:
    epoch = np.arange(1, 10 + number % 9)
    off = abs(np.log10(lr) + 3.3)
    level = max(0.06, top - 0.11 * off**1.6)
    score = level * (1 - np.exp(-epoch / (2 + off))) + random.normal(0, 0.012, len(epoch))
    seconds = random.uniform(0.2, 0.4, len(epoch))
    return {
        "epoch": epoch,
        "train_loss": 3 - 2.9 * score,
        "val_loss": 3 - 2.4 * score + 0.01 * epoch,
        "val_acc": score.clip(0.05, 1),
        "val_f1": (score - 0.02).clip(0.01, 1),
        "seconds": seconds,
        "ended": STARTED + 3 * number + seconds.cumsum(),
    }


def _best(curve: Curve, metric: str) -> dict[str, object]:
    """The best epoch and its values."""
    place = curve[metric].argmin() if metric == "val_loss" else curve[metric].argmax()
    values = {name: curve[name][place] for name in ("val_loss", "val_acc", "val_f1")}
    return {"best_epoch": curve["epoch"][place], **values}


def _epochs(keys: Sequence[dict[str, object]], curves: Sequence[Curve]) -> pd.DataFrame:
    """A row an epoch, with the key of its curve. One frame a curve would be ten times as slow."""
    if not curves:
        return pd.DataFrame(columns=["trial_id", "cell", "variant", "label_ratio", *EPOCH])
    lengths = [len(curve["epoch"]) for curve in curves]
    columns = {name: np.repeat([key[name] for key in keys], lengths) for name in keys[0]}
    return pd.DataFrame(
        columns | {name: np.concatenate([curve[name] for curve in curves]) for name in EPOCH}
    )


def _lrs(trials: pd.DataFrame, metric: str) -> dict[str, float]:
    complete = trials[trials["state"] == "COMPLETE"]
    best = complete.sort_values(
        [metric, "val_loss"], ascending=[metric == "val_loss", True]
    ).drop_duplicates("cell")
    return {
        str(row.cell): float(row.lr)
        for row in complete[complete.index.isin(best.index)].itertuples()
    }


def _write_evaluations(
    folder: Path,
    cells: Sequence[str],
    lrs: dict[str, float],
    files: pd.DataFrame,
    species: list[str],
    repeats: int,
    random: np.random.Generator,
) -> None:
    test = files[files["split"] == "test"]
    true = test["species"].map(species.index).to_numpy()
    hardness = random.normal(0, 1.2, len(test))
    luck = random.normal(0, 0.15, max(repeats, 1))
    evaluations, predictions, keys, curves = [], [], [], []
    for cell in cells:
        variant, ratio = cell.split("@")
        key = {"cell": cell, "variant": variant, "label_ratio": int(ratio)}
        for repeat in range(repeats):
            top = _accuracy(variant, int(ratio))
            logit = np.log(top / (1 - top)) * 1.3 + luck[repeat] - hardness
            logit += random.normal(0, 0.5, len(test)) + random.normal(0, 0.1)
            right = random.random(len(test)) < 1 / (1 + np.exp(-logit))
            near = (true + random.choice([1, 1, 1, 2, 7], len(test))) % len(species)
            pred = np.where(right, true, near)
            chance = random.uniform(0.3, 0.99, len(test))
            loss = np.where(right, -np.log(chance), -np.log((1 - chance) / 3))
            row = _evaluation(key, repeat, lrs[cell], true, pred, loss, species)
            curve = _curve(lrs[cell], top, 4, random)
            row |= _best(curve, "val_f1") | {"epochs": len(curve["epoch"])}
            evaluations.append(row | {"seconds": curve["seconds"].sum()})
            keys.append({**key, "repeat": repeat})
            curves.append(curve)
            names = np.asarray(species, dtype=object)
            predictions.append(
                pd.DataFrame(
                    {**key, "repeat": repeat, "file": test["file"].to_numpy()}
                    | {"true": names[true], "pred": names[pred]}
                    | {"probability": chance, "loss": loss}
                )
            )
    if evaluations:
        order = ["cell", "variant", "label_ratio", "repeat", "seed", "lr", "epochs", "best_epoch"]
        order += ["val_loss", "val_acc", "val_f1", "test_loss", "test_acc", "test_f1"]
        order += ["test_precision", "test_recall", "seconds"]
        _write(folder, "evaluations", pd.DataFrame(evaluations)[order])
        _write(folder, "predictions", pd.concat(predictions, ignore_index=True))
        _write(folder, "evaluation_epochs", _epochs(keys, curves))


def _evaluation(
    key: dict[str, object],
    repeat: int,
    lr: float,
    true: np.ndarray,
    pred: np.ndarray,
    loss: np.ndarray,
    species: list[str],
) -> dict[str, object]:
    scores = precision_recall_fscore_support(
        true, pred, labels=range(len(species)), average="macro", zero_division=0
    )
    row = {**key, "repeat": repeat, "seed": 7000 + repeat, "lr": lr}
    row |= {"test_loss": loss.mean(), "test_acc": (true == pred).mean()}
    return row | dict(zip(("test_precision", "test_recall", "test_f1"), scores[:3], strict=True))


def _write_encoders(
    folder: Path, encoders: int, files: pd.DataFrame, columns: int, random: np.random.Generator
) -> None:
    if not encoders:
        return
    (folder / "features").mkdir(exist_ok=True)
    files.to_parquet(folder / "features" / "files.parquet", index=False)
    codes = pd.factorize(files["species"])[0]
    centres = random.normal(size=(codes.max() + 1, columns))
    names = [f"unet-{number:04x}" for number in range(encoders)]
    for name, signal in zip(
        [*names, "random", "pixels"],
        [0.7 - 0.1 * i for i in range(encoders)] + [0.35, 0.25],
        strict=True,
    ):
        features = signal * 8 / columns**0.5 * centres[codes] + random.normal(
            size=(len(files), columns)
        )
        np.save(folder / "features" / f"{name}.npy", features.astype(np.float32))
    rows, curves = [], []
    for number, name in enumerate(names):
        epoch = np.arange(1, 13)
        train = 0.02 + 0.08 * np.exp(-epoch / 3) + 0.002 * number
        curve = {"encoder": name, "epoch": epoch, "train_loss": train, "valid_loss": train * 1.06}
        curves.append(pd.DataFrame({**curve, "seconds": 1.5, "ended": STARTED + 1.5 * epoch}))
        row = {
            "encoder": name,
            "recipe": None,
            "architecture": "unet",
            "objective": "reconstruction",
        }
        row |= {"images": int((files["split"] == "train").sum()), "epochs": 12, "best_epoch": 12}
        row |= {
            "loss": train[-1] * 1.06,
            "seconds": 18.0,
            "repeat": None if number == 0 else number - 1,
        }
        rows.append(row)
    made = pd.DataFrame(rows).astype({"repeat": "Int64"})
    _write(folder, "encoders_made", made)
    _write(folder, "encoder_epochs", pd.concat(curves, ignore_index=True))


def _write_robustness(folder: Path, noise: Sequence[float], species: list[str]) -> None:
    """Noise turns right predictions wrong: the same images first, whatever the cell."""
    random = np.random.default_rng(1)
    predictions = pd.read_parquet(folder / "predictions.parquet")
    files = sorted(predictions["file"].unique())
    tender = dict(zip(files, random.random(len(files)), strict=True))
    parts = []
    for share in noise:
        cost = np.where(predictions["variant"].str.contains("denoising"), 0.5, 1.5) * share
        found = predictions.assign(noise=share)
        hit = predictions["file"].map(tender) + random.normal(0, 0.05, len(found)) < cost
        other = predictions["true"].map(lambda name: species[species.index(name) - 1])
        found["pred"] = np.where(hit, other, predictions["pred"])
        found["loss"] = predictions["loss"] + np.where(hit, 1.0, 0.0)
        parts.append(found)
    order = ["cell", "variant", "label_ratio", "repeat", "noise", "file", "true", "pred"]
    order += ["probability", "loss"]
    _write(folder, "robustness", pd.concat(parts, ignore_index=True)[order])


def _write_clusters(folder: Path, noise: Sequence[float], files: pd.DataFrame) -> None:
    random = np.random.default_rng(2)
    codes = pd.factorize(files["species"])[0]
    for features in sorted((folder / "features").glob("*.npy")):
        parts = []
        for share in noise:
            kept = random.random(len(files)) > 0.3 + share
            cluster = np.where(kept, codes, random.integers(0, codes.max() + 1, len(files)))
            parts.append(pd.DataFrame({"noise": share, "file": files["file"], "cluster": cluster}))
        _write(folder, f"features/{features.stem}.noise", pd.concat(parts, ignore_index=True))


def write_reconstructions(
    folder: Path, losses: dict[str, float], nats: Sequence[str] = (), other: Sequence[str] = ()
) -> None:
    """What encoders give back of the run's test images.

    Args:
        losses: encoder to its mean error.
        nats: encoders that are variational.
        other: encoders that were shown other pictures than the rest.
    """
    random = np.random.default_rng(3)
    files = pd.read_parquet(folder / "features" / "files.parquet")
    test = files.loc[files["split"] == "test", "file"].to_numpy()
    hard = random.uniform(0.5, 1.5, len(test))
    noisy, median = random.uniform(0.05, 0.07, len(test)), random.uniform(0.004, 0.006, len(test))
    (folder / "reconstructions").mkdir(exist_ok=True)
    parts = []
    for encoder, loss in losses.items():
        columns = {"loss": loss * hard, "noisy_loss": noisy, "median_loss": median}
        columns |= {"clean_loss": 0.9 * loss * hard}
        missing = np.full(len(test), np.nan)
        columns |= {"elbo": 300 * hard, "kl": 20 * hard} if encoder in nats else {}
        parts.append(
            pd.DataFrame(
                {"encoder": encoder, "file": test, "elbo": missing, "kl": missing} | columns
            )
        )
        pictures = np.random.default_rng(encoder in other)
        ways = ("original", "noisy", "median", "reconstructed")
        found = {way: pictures.integers(0, 255, (4, 8, 8, 1), np.uint8) for way in ways}
        found["samples"] = pictures.integers(0, 255, (10 * (encoder in nats), 8, 8, 1), np.uint8)
        np.savez(folder / "reconstructions" / f"{encoder}.npz", shown=test[:4].astype(str), **found)
    order = ["encoder", "file", "loss", "noisy_loss", "median_loss", "clean_loss", "elbo", "kl"]
    _write(folder, "reconstructions", pd.concat(parts, ignore_index=True)[order])


def _write(folder: Path, name: str, frame: pd.DataFrame) -> None:
    frame.to_parquet(folder / f"{name}.parquet", index=False)
