"""Give back the hidden parts of an image. Xie et al. 2022, SimMIM (arXiv:2111.09886)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.objectives.reconstruction import Reconstruction

GREY = 0.0  # what a hidden pixel shows, in [-1, 1]


class Masked(Reconstruction):
    """Mean squared error over the pixels of square patches that were hidden from the encoder.

    Args:
        encoder: see `Objective`; a patch has the size of its stride, or an eighth of the image
            where the encoder has no grid.
        hidden: the share of the patches, in (0, 1).
        skips: of a U-Net's decoder.

    Raises:
        ValueError: a share out of its range.
    """

    gives_back = False  # of what was not hidden it gives anything

    def __init__(self, encoder: nn.Module, hidden: float = 0.6, skips: str = "added"):
        super().__init__(encoder, skips)
        if not 0.0 < hidden < 1.0:
            raise ValueError(f"hidden {hidden}: expected a share in (0, 1)")
        self.hidden = hidden

    def loss(self, images: Tensor, rows: Tensor) -> Tensor:
        return self.valid_loss(images)

    def valid_loss(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        mask = self.draw_mask(images)
        given = self(images.masked_fill(mask, GREY)).float()
        hidden = mask.expand_as(given)
        return (given - self.target(images)).square().mul(hidden).sum() / hidden.sum()

    def draw_mask(self, images: Tensor) -> Tensor:
        """Which pixels are hidden: ``(B, 1, H, W)``, the same number of patches of each image."""
        B, _, H, W = images.shape
        patch = self.patch_size(H)
        rows, columns = -(-H // patch), -(-W // patch)
        order = torch.rand(B, rows * columns, device=images.device).argsort(1)
        count = min(max(1, round(self.hidden * rows * columns)), rows * columns - 1)
        mask = (order < count).view(B, 1, rows, columns)
        mask = mask.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        return mask[:, :, :H, :W]

    def patch_size(self, image_size: int) -> int:
        """Pixels of a patch's side."""
        stride: int = self.encoder.stride  # type: ignore[assignment]
        return stride if stride < image_size else max(1, image_size // 8)
