"""How well encoders remove noise from test images, beside leaving it in and a median filter.

Errors are mean squared, on pixel values in [0, 1], so that all networks compare.
All see the same noise, and differences are paired image by image. Intervals resample test
images, as those of Table I do; each encoder is one, so they say nothing of other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import Run
from analysis.statistics import Draws, interval_columns, spread
from analysis.wording import interval, unbroken, unsigned, with_interval

DENOISING = ("denoising", "denoising_variational")
"""The objectives with noise on their input: their encoders learn to remove it."""
PAPER_LOSS = 0.0315
"""The paper's mean reconstruction loss, on its own images."""
LOSSES = ("loss", "noisy_loss", "median_loss", "clean_loss")
DIFFERENCES = {"minus_noisy": "noisy_loss", "minus_median": "median_loss", "minus_plain": "plain"}
MEANS = (*LOSSES, *DIFFERENCES, "elbo", "kl")
COLUMNS = ["encoder", "recipe", "objective", "salt", "pepper", "n"]
COLUMNS += [*interval_columns(MEANS), "paper_loss"]


def reconstruction_table(run: Run) -> pd.DataFrame:
    """`COLUMNS`, see docs/RECORDS.md: one row per encoder with a decoder, best first."""
    found = run.reconstructions
    if found.empty:
        return pd.DataFrame(columns=COLUMNS)
    species = run.feature_files.set_index("file")["species"]
    files = sorted(found["file"].unique())
    draws = Draws(pd.factorize(species.reindex(files))[0])
    values = {
        str(encoder): rows.set_index("file").loc[files]
        for encoder, rows in found.groupby("encoder")
    }
    made = _made(run, values)
    rows = [_row(run, one, values, made, draws) for one in made]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("loss", ignore_index=True)


def _made(run: Run, values: Mapping[str, pd.DataFrame]) -> list[dict[Any, Any]]:
    made = run.encoders_made.drop_duplicates("encoder")
    return made[made["encoder"].isin(list(values))].to_dict("records")


def _row(
    run: Run,
    one: Mapping[Any, Any],
    values: Mapping[str, pd.DataFrame],
    made: Sequence[Mapping[Any, Any]],
    draws: Draws,
) -> dict[str, object]:
    own, settings = values[one["encoder"]], run.recipe_named(one["recipe"])
    plain = _plain(run, one, made)
    columns = {name: own[name] for name in (*LOSSES, "elbo", "kl")}
    for name, other in DIFFERENCES.items():
        if other in own:
            columns[name] = own["loss"] - own[other]
        elif plain is not None:
            columns[name] = own["loss"] - values[plain]["loss"]
    row = {"encoder": one["encoder"], "recipe": one["recipe"], "objective": one["objective"]}
    row |= {name: settings.get(name, 0.1) for name in ("salt", "pepper")} | {"n": len(own)}
    for name, column in columns.items():
        row |= mean_with_interval(name, column.to_numpy(dtype=float), draws)
    return row | {"paper_loss": PAPER_LOSS if is_the_papers(run, one) else np.nan}


def mean_with_interval(name: str, values: np.ndarray, draws: Draws) -> dict[str, float]:
    """The mean over test images (N,) as `interval_columns`; NaN if a value is missing."""
    if np.isnan(values).any():
        return dict.fromkeys(interval_columns([name]), np.nan)
    drawn = values @ draws.images / len(values)
    found = spread(np.array([values.mean()]), drawn[None], len(values), draws, (0,))
    return found.estimate().columns(name)


def _plain(run: Run, one: Mapping[Any, Any], made: Sequence[Mapping[Any, Any]]) -> str | None:
    """The encoder that differs only in being trained to reproduce its own input."""
    if one["objective"] == "reconstruction":
        return None
    settings = run.recipe_named(one["recipe"])
    same = ("architecture", "width", "colour", "salt", "pepper", "pretrain_on")
    for other in made:
        others = run.recipe_named(other["recipe"])
        alike = all(settings.get(name) == others.get(name) for name in same)
        if other["objective"] == "reconstruction" and alike and other["images"] == one["images"]:
            return str(other["encoder"])
    return None


def is_the_papers(run: Run, made: Mapping[Any, Any]) -> bool:
    """Whether it is the denoising autoencoder of the paper's experiment 2."""
    paper = {"architecture": "dense", "objective": "denoising", "width": 128, "colour": "grey"}
    paper |= {"salt": 0.1, "pepper": 0.1}
    found = run.recipe_named(made["recipe"])
    return run.config["data"].get("image_size") == 28 and paper.items() <= found.items()


def denoising_curves(run: Run) -> pd.DataFrame:
    """The rows of ``encoder_epochs`` of encoders trained on noise (Fig. 3)."""
    made = run.encoders_made
    chosen = made.loc[made["objective"].isin(DENOISING), "encoder"]
    return run.encoder_epochs[run.encoder_epochs["encoder"].isin(chosen)]


def names_of(run: Run, encoders: Sequence[str]) -> dict[str, str]:
    """A short name for each encoder: its recipe's, or else its objective's."""
    made = run.encoders_made.drop_duplicates("encoder").set_index("encoder")
    images, found = made["images"].to_dict(), {}
    for encoder in encoders:
        recipe, objective = made.at[encoder, "recipe"], str(made.at[encoder, "objective"])
        name = recipe if isinstance(recipe, str) else objective
        found[encoder] = "plain" if name == "reconstruction" else name
    shared = {name for name in found.values() if list(found.values()).count(name) > 1}
    return {
        encoder: f"{name} ({int(images[encoder]):,} images)" if name in shared else name
        for encoder, name in found.items()
    }


def best_denoiser(table: pd.DataFrame) -> dict[Any, Any] | None:
    """The row of the encoder trained on noise that restores the clean image best."""
    rows = table[table["objective"].isin(DENOISING)]
    return rows.iloc[0].to_dict() if len(rows) else None


def statements(table: pd.DataFrame, name: str) -> list[str]:
    """How well the best denoiser does, in sentences that follow from its row.

    Args:
        table: what `reconstruction_table` gives.
        name: of the best denoiser.
    """
    row = best_denoiser(table)
    if row is None:
        return []
    share = f"{100 * (row['salt'] + row['pepper']):g}"
    loss = with_interval(row, "loss", ".4f")
    found = [
        f"From {row['n']:,} test images with {share} % noisy pixels, the autoencoder {name} gives "
        f"the clean image back with a mean squared error of {loss}, on pixel values from 0 to 1.",
        f"That is {_against(row, 'minus_noisy')} with the noise left in ({row['noisy_loss']:.4f}), "
        f"and {_against(row, 'minus_median')} with a 3×3 median filter ({row['median_loss']:.4f}), "
        f"which has learned nothing.",
    ]
    if pd.notna(row["minus_plain"]):
        found.append(f"It is {_against(row, 'minus_plain')} with the network that saw no noise.")
    if pd.notna(row["paper_loss"]):
        found.append(f"The paper reports {row['paper_loss']} for this network, on its own images.")
    return [unbroken(text) for text in found]


def _against(row: Mapping[Any, Any], name: str) -> str:
    """``0.0366 [0.0350, 0.0380] less than``, with the 95 % interval."""
    value, low, high = interval(row, name)
    if low <= 0 <= high:
        return f"not surely more or less ({with_interval(row, name, '+.4f')}) than"
    size, least, most = unsigned(value, low, high)
    return f"{size:.4f} [{least:.4f}, {most:.4f}] {'less' if value < 0 else 'more'} than"
