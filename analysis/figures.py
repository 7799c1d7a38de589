"""The figures of the report. Each function takes a table and returns a matplotlib Figure."""

from __future__ import annotations

from analysis.drawing import shorten, to_png, to_svg
from analysis.figures_errors import confused_pairs, confusion, reliability
from analysis.figures_results import autoencoder_loss, label_efficiency, latent_map
from analysis.figures_search import (
    importance,
    learning_curves,
    lr_search,
    occupancy,
    rungs_over_time,
)

__all__ = [
    "autoencoder_loss",
    "confused_pairs",
    "confusion",
    "importance",
    "label_efficiency",
    "latent_map",
    "learning_curves",
    "lr_search",
    "occupancy",
    "reliability",
    "rungs_over_time",
    "shorten",
    "to_png",
    "to_svg",
]
