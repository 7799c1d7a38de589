"""Give back the clean image of a noisy one. Paper, experiment 2; Vincent et al. 2008."""

from __future__ import annotations

from torch import Tensor, nn

from models.noise import require_shares, salt_and_pepper
from models.objectives.reconstruction import Reconstruction


class Denoising(Reconstruction):
    """Mean squared error against the clean image, with fresh noise in every step.

    Args:
        encoder: see `Objective`.
        salt, pepper: shares of the pixels that become white and black, in [0, 1], together at
            most 1; 0.1 and 0.1 in the paper.
        skips: of a U-Net's decoder.

    Raises:
        ValueError: shares out of their range.
    """

    def __init__(
        self, encoder: nn.Module, salt: float = 0.1, pepper: float = 0.1, skips: str = "added"
    ):
        super().__init__(encoder, skips)
        require_shares(salt, pepper)
        self.salt, self.pepper = salt, pepper

    def loss(self, images: Tensor, rows: Tensor) -> Tensor:
        return self.valid_loss(images)

    def valid_loss(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.error(salt_and_pepper(images, self.salt, self.pepper), images)
