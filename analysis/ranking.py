"""The encoders, best first by what they are for, and whether they beat an untrained one.

An encoder is for classifiers with few labels: it is ranked by the validation F1 of the B1 and B2
that started from it, each less the mean of all encoders' classifiers of the same kind and ratio:
not every encoder has every cell, and one that was used at high ratios alone is not better for it.
What its frozen features alone are worth (linear probe, nearest neighbours)
is also known for the controls: the same network untrained, and the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.latents import PENALTY, Scores
from analysis.load import CONTROLS, Run
from analysis.probes import encoder_of
from analysis.variants import cell_name, kind_of, with_recipe

MADE = ["encoder", "architecture", "objective", "images", "epochs", "loss", "seconds"]
MADE += ["recipe", "repeat"]
FROZEN = ["probe_acc", "knn_acc", "beats_random", "beats_pixels"]


def encoders_table(run: Run, scores: Mapping[str, Scores]) -> pd.DataFrame:
    """The encoders, best first by how far the validation F1 of their cells is above the mean
    (`_above_mean`), then by linear probe, k-NN and the loss of their objective; the controls last.

    Args:
        scores: what frozen features give, for each encoder of ``features/`` (`score_features`).

    Returns:
        The columns of ``encoders.csv``, docs/RECORDS.md.
    """
    made = run.encoders_made.drop_duplicates("encoder")[MADE]
    controls = [each for each in CONTROLS if each in scores and each not in set(made["encoder"])]
    rows = pd.DataFrame({"encoder": controls}).reindex(columns=MADE)
    table = pd.concat([made, rows], ignore_index=True) if len(rows) else made.copy()
    counts = ["images", "epochs", "repeat"]
    table[counts] = table[counts].astype("Int64")
    used = _used_by(run)
    cells = [(c, f"{kind_of(v)}@{ratio}") for c, v, ratio in run.cells if v in run.pretrained]
    found = [[used.get((e, cell), np.nan) for cell, _ in cells] for e in table["encoder"]]
    names = [f"val_f1_{cell}" for cell, _ in cells]
    values = pd.DataFrame(found, table.index, names, dtype=float)
    control = table["encoder"].isin(CONTROLS)
    values.insert(0, "val_f1", values.mean(axis=1).where(~control))
    above = _above_mean(values[names].where(~control, axis=0), [alike for _, alike in cells])
    values.insert(1, "above_mean", above)
    table = pd.concat([table, values, _frozen(table["encoder"], scores)], axis=1)
    table["control"] = control
    order = {"control": True, "above_mean": False, "probe_acc": False, "knn_acc": False}
    order |= {"loss": True}
    table = table.sort_values(list(order), ascending=list(order.values()), ignore_index=True)
    return table.drop(columns="control")


def _above_mean(values: pd.DataFrame, alike: Sequence[str]) -> pd.Series:
    """Of each encoder the mean over its cells of F1 less the mean of all encoders in the cells that
    are alike; NaN without cells.

    Args:
        values: F1 by encoder and cell, NaN where the encoder was not used.
        alike: kind and ratio of each cell, the same with every recipe.
    """
    less = values.to_numpy(dtype=float, copy=True)
    for kind in dict.fromkeys(alike):
        own = np.asarray(alike) == kind
        if np.isfinite(less[:, own]).any():
            less[:, own] -= np.nanmean(less[:, own])
    return pd.DataFrame(less, values.index).mean(axis=1).round(12)  # so that equal ones tie


def _used_by(run: Run) -> dict[tuple[str, str], float]:
    """(encoder, cell) to validation F1, of the final evaluation or else of the search's winner."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in run.evaluations.to_dict("records"):
        variant = with_recipe(row["variant"], row["recipe"])
        owner = _owner(run, variant, row["label_ratio"], row["repeat"])
        found.setdefault((owner, str(row["cell"])), []).append(row["val_f1"])
    for row in run.winners.to_dict("records"):
        variant = with_recipe(row["variant"], row["recipe"])
        owner = _owner(run, variant, row["label_ratio"], None)
        found.setdefault((owner, str(row["cell"])), [row["val_f1"]])
    means = {key: float(np.mean(many)) for key, many in found.items()}
    fresh = {
        cell_name("B2", r): means.get(("random", cell_name("B0", r))) for r in run.label_ratios
    }
    return means | {("random", cell): f1 for cell, f1 in fresh.items() if f1 is not None}


def _owner(run: Run, variant: str, ratio: int, repeat: int | None) -> str:
    """The encoder that a classifier started from; B0 starts from an untrained one."""
    if variant == "B0":
        return "random"
    return (encoder_of(run, variant, ratio, repeat) if variant in run.pretrained_as else None) or ""


def _frozen(encoders: pd.Series, scores: Mapping[str, Scores]) -> pd.DataFrame:
    frame = pd.DataFrame(index=encoders.index)
    for name in ("probe_acc", "knn_acc"):
        found = [getattr(scores[e], name) if e in scores else np.nan for e in encoders]
        frame[name] = np.asarray(found, dtype=float)
    for control in CONTROLS:
        bar = scores[control].probe_acc if control in scores else np.nan
        known = frame["probe_acc"].notna() & ~np.isnan(bar) & ~encoders.isin(CONTROLS)
        frame[f"beats_{control}"] = (frame["probe_acc"] > bar).astype("boolean").where(known)
    return frame[FROZEN]


def encoder_statement(table: pd.DataFrame) -> str:
    """How many encoders beat the controls, in a sentence; empty if nothing is known.

    The sentence says how its numbers were made, as `analysis.probes`, which choose their penalty
    and have intervals, may find another order.
    """
    made = table[~table["encoder"].isin(CONTROLS) & table["probe_acc"].notna()]
    parts = []
    same = made["architecture"].nunique() == 1
    untrained = "the same network untrained" if same else "an untrained network of the common kind"
    for control, name in (("random", untrained), ("pixels", "the raw pixels")):
        bar = table.loc[table["encoder"] == control, "probe_acc"]
        known = made[f"beats_{control}"].dropna()
        if len(bar) and len(known):
            parts.append(f"{_beat(int(known.sum()), len(known))} {name} ({bar.iloc[0]:.3f})")
    if not parts:
        return ""
    best = made.iloc[int(made["probe_acc"].argmax())]
    which = "the encoder" if len(made) == 1 else f"the best encoder, {best['encoder']},"
    how = f"one fixed penalty, C = {PENALTY:g}; validation images, no interval"
    start = f"By linear probe on frozen features ({how}) {which} reaches {best['probe_acc']:.3f}: "
    return start + " and ".join(parts) + "."


def _beat(over: int, total: int) -> str:
    if total == 1:
        return "above" if over else "not above"
    return f"{over or 'none'} of {total} encoders {'is' if over < 2 else 'are'} above"
