"""Salt-and-pepper noise. Paper, experiment 2."""

from __future__ import annotations

import torch
from torch import Tensor

WHITE, BLACK = 1.0, -1.0


def require_shares(salt: float, pepper: float) -> None:
    """Raises ValueError where they are no shares of the pixels."""
    if not (0.0 <= salt <= 1.0 and 0.0 <= pepper <= 1.0 and salt + pepper <= 1.0):
        raise ValueError(f"salt {salt}, pepper {pepper}: expected shares in [0, 1], in all <= 1")


def salt_and_pepper(
    images: Tensor, salt: float, pepper: float, random: torch.Generator | None = None
) -> Tensor:
    """Make some pixels white and some black, each by itself and in all channels at once.

    Args:
        images: ``(B, C, H, W)`` in [-1, 1]; not changed.
        salt, pepper: chance of a pixel to become white, and black.
        random: on the images' device; None: the global generator.

    Returns:
        ``(B, C, H, W)`` in the images' memory format.
    """
    B, _, H, W = images.shape
    drawn = torch.rand(B, 1, H, W, device=images.device, generator=random)
    salted = images.masked_fill(drawn < salt, WHITE)
    return salted.masked_fill_((drawn >= salt) & (drawn < salt + pepper), BLACK)
