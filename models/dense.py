"""The dense autoencoder of the paper's experiment 2: 128-64-32 units, on images of 28×28.

Shapes: B images of 3 × H × W, C channels that are looked at (1: grey, 3: colours), w = width.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from models.autoencoders import Autoencoder

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow makes grey images


class DenseEncoder(nn.Module):
    """Three dense layers with ReLU: C·H·W -> w -> w/2 -> w/4 units.

    Args:
        width: w, the units of the first layer; 128 in the paper.
        image_size: H = W in pixels; 28 in the paper.
        colour: ``grey``, or ``rgb``. The paper does not say; its output of 28×28 is grey.

    Raises:
        ValueError: ``width`` is no multiple of 4, or an unknown colour.
    """

    pooled = False

    def __init__(self, width: int = 128, image_size: int = 28, colour: str = "grey"):
        super().__init__()
        if width < 4 or width % 4 or colour not in ("grey", "rgb"):
            raise ValueError(
                f"width {width}, colour {colour!r}: expected 4, 8, ... and grey or rgb"
            )
        self.image_size, self.colour = image_size, colour
        self.stride = image_size  # its output is a map of one cell
        self.channels = width // 4
        self.inputs = (1 if colour == "grey" else 3) * image_size**2
        units = (self.inputs, width, width // 2, width // 4)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(units))

    def seen(self, images: Tensor) -> Tensor:
        """What it sees of images ``(B, 3, H, W)`` in [-1, 1]: ``(B, C, H, W)`` in [0, 1].

        Raises:
            ValueError: images of another size.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            height, width = images.shape[-2:]
            size = self.image_size
            raise ValueError(f"image size {height}×{width}: expected {size}×{size}")
        images = images.add(1).div_(2)
        if self.colour == "rgb":
            return images
        weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
        return torch.einsum("bchw,c->bhw", images, weights).unsqueeze(1)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [-1, 1] -> ``(B, w/4, 1, 1)``, at least 0."""
        units = self.seen(images).flatten(1)
        for layer in self.layers:
            units = layer(units).relu()
        return units[:, :, None, None]

    def autoencoder(self) -> DenseAutoencoder:
        return DenseAutoencoder(self)


class DenseAutoencoder(Autoencoder):
    """`DenseEncoder` and its mirror image, w/4 -> w/2 -> w -> C·H·W: ReLU, a sigmoid at the end.

    Args:
        encoder: is kept, not copied.
    """

    def __init__(self, encoder: DenseEncoder):
        super().__init__()
        self.encoder: DenseEncoder = encoder
        width = 4 * encoder.channels
        units = (width // 4, width // 2, width, encoder.inputs)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(units))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [-1, 1] given back as ``(B, C, H, W)`` in [0, 1]."""
        return self.decode(self.encoder(images))

    def decode(self, maps: Tensor) -> Tensor:
        """``(B, w/4, 1, 1)`` -> ``(B, C, H, W)`` in [0, 1]."""
        units = maps.flatten(1)
        for layer in self.layers[:-1]:
            units = layer(units).relu()
        size = self.encoder.image_size
        return self.layers[-1](units).sigmoid().view(len(maps), -1, size, size)

    def target(self, images: Tensor) -> Tensor:
        """What it is to give back, ``(B, C, H, W)`` in [0, 1]."""
        return self.encoder.seen(images)

    def pictures(self, outputs: Tensor) -> Tensor:
        """Outputs or targets as pixel values in [0, 1], ``(B, C, H, W)``: as they are."""
        return outputs
