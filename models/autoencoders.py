"""Autoencoders of images: the paper's U-Net, and a plain decoder for any other encoder.

Shapes: B images, 3 channels, H×W pixels, w = width (the channels of the first block).
Maps are kept channels-last in memory; their shape stays (B, C, H, W).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENCODER_STRIDE = 8  # three blocks, each halves the image
SKIPS = ("added", "dropped", "narrow", "none")
Skips = tuple[Tensor | None, Tensor | None]


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

    stride = ENCODER_STRIDE
    pooled = False

    def __init__(self, width: int = 64, dropout: float = 0.3):
        super().__init__()
        if width < 1 or not 0.0 <= dropout < 1.0:
            raise ValueError(
                f"width {width}, dropout {dropout}: expected width >= 1, 0 <= dropout < 1"
            )
        self.width = width
        self.dropout = dropout
        self.channels = 4 * width
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


class Autoencoder(nn.Module):
    """An encoder and a decoder; what most of them give back are the images as they came in."""

    encoder: nn.Module

    def target(self, images: Tensor) -> Tensor:
        """What is to be given back of images ``(B, 3, H, W)`` in [-1, 1]."""
        return images

    def pictures(self, outputs: Tensor) -> Tensor:
        """Outputs or targets as pixel values in [0, 1], ``(B, C, H, W)``."""
        return outputs.add(1).div(2).clamp(0, 1)

    def decode(self, maps: Tensor) -> Tensor:
        """What is given back of the encoder's maps alone."""
        raise NotImplementedError


class UNetAutoencoder(Autoencoder):
    """`UNetEncoder` and a decoder of three 2×2 transposed convolutions, skips added.

    The decoder goes 4w -> 2w -> w -> 3 channels, with ReLU between; the second block's output is
    added to its first, the first block's to its second. The output is tanh's: it covers the
    input's [-1, 1], where the published sigmoid left the lower half out of reach.

    The paper's skips lead past the bottleneck: the first block alone can give back most of an
    image, and the last, which the classifiers use, has little to learn. Three remedies:

    - ``dropped``: in training, each image loses each skip in half of the steps (and has it at
      double strength otherwise), so that the decoder must be able to do without;
    - ``narrow``: a skip passes through an eighth of its channels (two 1×1 convolutions);
    - ``none``: no skips.

    Args:
        encoder: is kept, not copied; w is its width.
        skips: ``added`` as in the paper, or a remedy.

    Raises:
        ValueError: unknown skips.
    """

    def __init__(self, encoder: UNetEncoder, skips: str = "added"):
        super().__init__()
        if skips not in SKIPS:
            raise ValueError(f"skips {skips!r}: expected one of {', '.join(SKIPS)}")
        self.encoder: UNetEncoder = encoder
        self.skips = skips
        width = encoder.width
        channels = (4 * width, 2 * width, width, 3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 2, stride=2)
            for before, after in itertools.pairwise(channels)
        )
        narrow = (2 * width, width) if skips == "narrow" else ()
        self.narrows = nn.ModuleList(_narrow(channels) for channels in narrow)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructs images ``(B, 3, H, W)`` in [-1, 1], H and W multiples of 8.

        Raises:
            ValueError: H or W is no multiple of 8.
        """
        first, second, latent = self.encoder.block_outputs(x)
        return self.decode(latent, (self._skip(0, second), self._skip(1, first)))

    def _skip(self, step: int, maps: Tensor) -> Tensor | None:
        if self.skips == "none":
            return None
        if self.skips == "narrow":
            return self.narrows[step](maps)
        if self.skips == "dropped" and self.training:
            return maps * _kept_half_of_the_time(maps)
        return maps

    def decode(self, maps: Tensor, skips: Skips = (None, None)) -> Tensor:
        """``(B, 4w, H/8, W/8)`` -> images ``(B, 3, H, W)`` in [-1, 1].

        Args:
            maps: the encoder's output.
            skips: what is added after the first two steps, ``(B, 2w, H/4, W/4)`` and
                ``(B, w, H/2, W/2)``; None: nothing.
        """
        for up, skip in zip(self.ups, skips, strict=False):
            maps = F.relu(up(maps))
            maps = maps if skip is None else maps + skip
        return torch.tanh(self.ups[2](maps))


def _narrow(channels: int) -> nn.Sequential:
    fewer = max(1, channels // 8)
    return nn.Sequential(nn.Conv2d(channels, fewer, 1), nn.Conv2d(fewer, channels, 1))


def _kept_half_of_the_time(maps: Tensor) -> Tensor:
    """2 or 0 for each image, ``(B, 1, 1, 1)``: the mean stays."""
    return 2.0 * torch.randint(0, 2, (len(maps), 1, 1, 1), device=maps.device)


class MapAutoencoder(Autoencoder):
    """Any encoder, and a decoder that doubles its maps until they have the image's size.

    Each step is a 2×2 transposed convolution to half the channels (at least 16) with ReLU; the
    last one gives 3 channels and tanh. There are no skips.

    Args:
        encoder: has `channels` and `stride`, a power of 2. It is kept, not copied.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        channels: int = encoder.channels  # type: ignore[assignment]
        stride: int = encoder.stride  # type: ignore[assignment]
        steps = stride.bit_length() - 1
        widths = [channels, *(max(16, channels >> step) for step in range(1, steps))]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 2, stride=2)
            for before, after in itertools.pairwise([*widths, 3])
        )

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructs images ``(B, 3, H, W)`` in [-1, 1]."""
        return self.decode(self.encoder(images))

    def decode(self, maps: Tensor) -> Tensor:
        """``(B, channels, h, w)`` -> images ``(B, 3, H, W)`` in [-1, 1]."""
        for up in self.ups[:-1]:
            maps = F.relu(up(maps))
        return torch.tanh(self.ups[-1](maps))


def autoencoder_of(encoder: Any, skips: str = "added") -> Any:
    """An encoder with a decoder of its own kind, or else a plain one.

    Args:
        encoder: is kept, not copied.
        skips: of a U-Net; the others have none.
    """
    if isinstance(encoder, UNetEncoder):
        return UNetAutoencoder(encoder, skips)
    own = getattr(encoder, "autoencoder", None)
    return MapAutoencoder(encoder) if own is None else own()
