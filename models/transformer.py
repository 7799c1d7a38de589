"""A small Vision Transformer, and the part of it that masked autoencoders need.

After Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929) with the fixed positions of He et
al. 2022 (https://arxiv.org/abs/2111.06377), so that images of any size can be read; without a
class token, as a classifier takes the mean of all patches (https://arxiv.org/abs/2205.01580).

Shapes: B images of 3×H×W pixels, w = width, C = 4w channels. An image is h×w' = H/8 × W/8 patches,
N of them, in the order of rows; n of them are visible. The layers work on B·N rows of C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifiers import WideLinear

PATCH = 8  # pixels a side
HEADS = 4
WAVELENGTHS = 10_000.0  # the longest over the shortest, of "Attention is all you need"


def split_patches(images: Tensor) -> Tensor:
    """``(B, 3, H, W)`` -> ``(B, N, 3·8·8)``: row by row; in a patch pixels before channels.

    Raises:
        ValueError: H or W is no multiple of 8.
    """
    height, width = images.shape[-2:]
    if height % PATCH or width % PATCH:
        raise ValueError(f"image size {height}×{width}: expected multiples of {PATCH}")
    grid = images.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # (B, 3, h, 8, w', 8)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def positions(rows: int, columns: int, channels: int, device: torch.device) -> Tensor:
    """Sines and cosines of each patch's place, ``(rows·columns, channels)`` in [-1, 1].

    A quarter of the channels each: sine and cosine of the column, sine and cosine of the row.

    Args:
        channels: a multiple of 4.
    """
    steps = torch.arange(channels // 4, device=device) / (channels // 4)
    rates = WAVELENGTHS**-steps  # radians a patch
    across = torch.arange(columns, device=device)[:, None] * rates
    down = torch.arange(rows, device=device)[:, None] * rates
    across = torch.cat([across.sin(), across.cos()], 1).expand(rows, -1, -1)
    down = torch.cat([down.sin(), down.cos()], 1)[:, None].expand(-1, columns, -1)
    return torch.cat([across, down], 2).flatten(0, 1)


class TransformerBlock(nn.Module):
    """Attention between the patches of an image, then two layers on each; both are added.

    Each is normalised before (https://arxiv.org/abs/2002.04745).

    Args:
        channels: C, a multiple of ``heads``.
        heads: of the attention.
    """

    def __init__(self, channels: int, heads: int = HEADS):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(channels)
        self.queries_keys_values = WideLinear(channels, 3 * channels)
        self.gathered = WideLinear(channels, channels)
        self.layers_norm = nn.LayerNorm(channels)
        self.widened = WideLinear(channels, 4 * channels)
        self.narrowed = WideLinear(4 * channels, channels)

    def forward(self, rows: Tensor, count: int) -> Tensor:
        """``(B·n, C)`` -> ``(B·n, C)``, with n = ``count`` patches of each image."""
        rows = rows + self.gathered(self._attend(self.attention_norm(rows), count))
        return rows + self.narrowed(F.gelu(self.widened(self.layers_norm(rows))))

    def _attend(self, rows: Tensor, count: int) -> Tensor:
        split = self.queries_keys_values(rows).view(
            -1, count, 3, self.heads, rows.shape[1] // self.heads
        )
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (B, heads, n, C/heads)
        found = F.scaled_dot_product_attention(query, key, value)
        return found.transpose(1, 2).reshape(rows.shape)


class TransformerEncoder(nn.Module):
    """8×8 patches as rows of 4w channels, fixed positions, four blocks of four heads.

    0.8 million weights at width 32, and about the arithmetic of a `ResidualEncoder` of that
    width. Its output has the shape of a `UNetEncoder`'s.

    Args:
        width: w, the channels of a head.
        depth: blocks.

    Attributes:
        channels: of the output, C = 4w.
        stride: height and width of an image must be multiples of it.
        pooled: a classifier averages the output over the image.

    Raises:
        ValueError: ``width`` or ``depth`` < 1.
    """

    stride = PATCH
    pooled = True

    def __init__(self, width: int = 32, depth: int = 4):
        super().__init__()
        if width < 1 or depth < 1:
            raise ValueError(f"width {width}, depth {depth}: expected both at least 1")
        self.channels = HEADS * width
        self.embedding = nn.Linear(3 * PATCH**2, self.channels)
        self.blocks = nn.ModuleList(TransformerBlock(self.channels) for _ in range(depth))
        self.norm = nn.LayerNorm(self.channels)
        self.apply(_draw_weights)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [-1, 1] -> ``(B, C, H/8, W/8)``, channels last in memory.

        Raises:
            ValueError: H or W is no multiple of 8.
        """
        rows = self._encode(self._embed(images))
        grid = rows.unflatten(1, (-1, images.shape[-1] // PATCH))
        return grid.permute(0, 3, 1, 2)

    def _embed(self, images: Tensor) -> Tensor:
        """Patches with their positions, ``(B, N, C)``."""
        height, width = images.shape[-2:]
        rows = self.embedding(split_patches(images))
        return rows + positions(height // PATCH, width // PATCH, self.channels, images.device)

    def _encode(self, patches: Tensor) -> Tensor:
        """``(B, n, C)`` -> ``(B, n, C)``."""
        rows = patches.flatten(0, 1)
        for block in self.blocks:
            rows = block(rows, patches.shape[1])
        return self.norm(rows).view_as(patches)


def _draw_weights(layer: nn.Module) -> None:
    """Weights as the Vision Transformer draws them: narrow, so that blocks start as identities."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
