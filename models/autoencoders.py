"""The U-Net autoencoder that learns from unlabelled images, and the encoder kept from it.

Shapes: B images, 3 channels, H×W pixels, w = width (the channels of the first block).
Maps are kept channels-last in memory; their shape stays (B, C, H, W).
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENCODER_STRIDE = 8  # three blocks, each halves the image


def pool_and_rectify(maps: Tensor) -> Tensor:
    """2×2 max pooling, then ReLU: ``(B, C, H, W)`` -> ``(B, C, H/2, W/2)``, H and W even.

    The same function as ReLU, then pooling (the maximum commutes with ReLU), on a quarter of the
    values.
    """
    if maps.requires_grad or not maps.is_cpu:
        return F.relu(F.max_pool2d(maps, 2))
    rows = torch.maximum(maps[:, :, ::2], maps[:, :, 1::2])  # no indices to keep: 3 times faster
    return torch.maximum(rows[..., ::2], rows[..., 1::2]).relu_()


def dropout(maps: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout of single values, ``(B, C, H, W)``, by PyTorch's global random generator.

    On a CPU each value is kept or dropped by 16 random bits, four values a draw: PyTorch's own
    Bernoulli sampler costs as much as a convolution. The rate is rounded to 1/65536 and the
    kept values are scaled by exactly that, so the expectation is unchanged.
    """
    if not training or rate == 0.0:
        return maps
    if not maps.is_cpu:
        return F.dropout(maps, rate)
    B, C, H, W = maps.shape
    bits = torch.empty(math.ceil(maps.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
    dropped = min(round(rate * 2**16), 2**16 - 1)
    keep = bits.view(torch.int16)[: maps.numel()] >= dropped - 2**15
    scale = keep.to(maps.dtype).mul_(2**16 / (2**16 - dropped))
    return maps * scale.view(B, H, W, C).permute(0, 3, 1, 2)


class UNetEncoder(nn.Module):
    """Three blocks of conv3×3, ReLU, maxpool2 and dropout: 3 -> w -> 2w -> 4w channels.

    Args:
        width: w, the channels of the first block; 64 in the paper.
        dropout: the share of values dropped after each block in training, in [0, 1).

    Raises:
        ValueError: ``width`` < 1 or ``dropout`` outside [0, 1).
    """

    def __init__(self, width: int = 64, dropout: float = 0.3):
        super().__init__()
        if width < 1 or not 0.0 <= dropout < 1.0:
            raise ValueError(
                f"width {width}, dropout {dropout}: expected width >= 1, 0 <= dropout < 1"
            )
        self.width = width
        self.dropout = dropout
        channels = (3, width, 2 * width, 4 * width)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(channels)
        )

    def block_outputs(self, x: Tensor) -> list[Tensor]:
        """Every block's output, for skip connections.

        Args:
            x: images ``(B, 3, H, W)`` in [-1, 1], H and W multiples of 8.

        Returns:
            Maps ``(B, w, H/2, W/2)``, ``(B, 2w, H/4, W/4)`` and ``(B, 4w, H/8, W/8)``.

        Raises:
            ValueError: H or W is no multiple of 8.
        """
        if x.shape[-2] % ENCODER_STRIDE or x.shape[-1] % ENCODER_STRIDE:
            height, width = x.shape[-2:]
            raise ValueError(f"image size {height}×{width}: expected multiples of {ENCODER_STRIDE}")
        outputs = []
        maps = x.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            maps = dropout(pool_and_rectify(conv(maps)), self.dropout, self.training)
            outputs.append(maps)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """The last block's output: ``(B, 3, H, W)`` -> ``(B, 4w, H/8, W/8)``."""
        return self.block_outputs(x)[-1]


class UNetAutoencoder(nn.Module):
    """`UNetEncoder` and a decoder of three 2×2 transposed convolutions, skips added.

    The decoder goes 4w -> 2w -> w -> 3 channels, with ReLU between; the second block's output is
    added to its first, the first block's to its second. The output is tanh's: it covers the
    input's [-1, 1], where the published sigmoid left the lower half out of reach.

    Args:
        width: w, the channels of the encoder's first block.
        dropout: the encoder's.
    """

    def __init__(self, width: int = 64, dropout: float = 0.3):
        super().__init__()
        self.encoder = UNetEncoder(width, dropout)
        channels = (4 * width, 2 * width, width, 3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 2, stride=2)
            for before, after in itertools.pairwise(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructs images ``(B, 3, H, W)`` in [-1, 1], H and W multiples of 8.

        Raises:
            ValueError: H or W is no multiple of 8.
        """
        first, second, latent = self.encoder.block_outputs(x)
        maps = F.relu(self.ups[0](latent)) + second  # (B, 2w, H/4, W/4)
        maps = F.relu(self.ups[1](maps)) + first  # (B, w, H/2, W/2)
        return torch.tanh(self.ups[2](maps))
