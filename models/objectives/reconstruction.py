"""Give back the image. Paper, section III-A."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoders import autoencoder_of
from models.objectives import Objective


class Reconstruction(Objective):
    """Mean squared error between an autoencoder's output and its input.

    Args:
        encoder: see `Objective`.
        skips: of a U-Net's decoder.
    """

    gives_back = True

    def __init__(self, encoder: nn.Module, skips: str = "added"):
        super().__init__()
        self.autoencoder = autoencoder_of(encoder, skips)

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        return self.autoencoder.encoder

    def forward(self, images: Tensor) -> Tensor:
        """The images given back, ``(B, ...)`` as `target` has them."""
        return self.autoencoder(images)

    def target(self, images: Tensor) -> Tensor:
        """What the output is compared with."""
        return self.autoencoder.target(images)

    def loss(self, images: Tensor, rows: Tensor) -> Tensor:
        return self.error(images, images)

    def valid_loss(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.error(images, images)

    def error(self, shown: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared error of what is given back for one image, against another."""
        return F.mse_loss(self(shown).float(), self.target(wanted))
