"""A small residual network for small images, sized to be trained on CPUs.

After He et al. 2016 (https://arxiv.org/abs/1512.03385), with the average-pooled shortcuts of He
et al. 2019 (https://arxiv.org/abs/1812.01187), which drop no pixel. The first convolution halves
the image already: most of a residual network's time goes into its largest maps.

Shapes: B images of 3×H×W pixels, w = width. Maps are kept channels-last in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.normalisation import BatchNorm2d


class ResidualBlock(nn.Module):
    """Two conv3×3 with batch normalisation, added to a shortcut; ReLU after each.

    Args:
        before: channels of the input.
        after: channels of the output.
        stride: 1, or 2 to halve the map.
    """

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride),
                nn.Conv2d(before, after, 1, bias=False),
                BatchNorm2d(after),
            )

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, before, H, W)`` -> ``(B, after, H/stride, W/stride)``, at least 0."""
        inner = F.relu(self.first_norm(self.first(maps)), inplace=True)
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(maps), inplace=True)


class ResidualEncoder(nn.Module):
    """Conv3×3 of stride 2, then four residual blocks of w, 2w, 4w and 8w channels.

    1.2 million weights at width 32.

    Args:
        width: w, the channels of the first block.

    Attributes:
        channels: of the output, 8w.
        stride: height and width of an image must be multiples of it.
        pooled: a classifier averages the output over the image.

    Raises:
        ValueError: ``width`` < 1.
    """

    stride = 16
    pooled = True

    def __init__(self, width: int = 32):
        super().__init__()
        if width < 1:
            raise ValueError(f"width {width}: expected at least 1")
        self.channels = 8 * width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 4 * width, 2),
            ResidualBlock(4 * width, 8 * width, 2),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [-1, 1] -> ``(B, 8w, H/16, W/16)``, at least 0.

        Raises:
            ValueError: H or W is no multiple of 16.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"image size {height}×{width}: expected multiples of {self.stride}")
        return self.blocks(self.stem(images.contiguous(memory_format=torch.channels_last)))
