"""A study's images with salt-and-pepper noise, as classifiers and encoders are tested on them.

An image's noise follows from (the study's seed, the share of noisy pixels, its file) alone: it is
the same for every variant, repeat, encoder, machine and device, so that all is paired.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from data.module import Batches
from models.noise import salt_and_pepper
from study.material import Material
from study.seeds import seed_for


class NoisyBatches:
    """Batches of images with noise, as often as it is iterated; always the same.

    Args:
        material: the study.
        rows: which of its images, (n,), in this order.
        share: of the pixels that become white or black, half of them each, in [0, 1].
        device: where batches are put.

    Yields:
        (inputs, targets): (B, 3, H, W) float32 in [-1, 1], channels last in memory; (B,) int64.
    """

    def __init__(self, material: Material, rows: np.ndarray, share: float, device: torch.device):
        images = material.images
        self._clean = Batches(images.pixels, images.labels, rows, 64)
        self._files = [images.files[row] for row in rows]
        self._seed, self._share, self._device = material.config.seed, share, device

    def __len__(self) -> int:
        return len(self._clean)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        files = iter(self._files)
        for inputs, targets in self._clean:
            for image in inputs.split(1):  # views of the batch
                image.copy_(self._with_noise(image, next(files)))
            yield inputs.to(self._device), targets.to(self._device)

    def _with_noise(self, image: Tensor, file: str) -> Tensor:
        random = torch.Generator().manual_seed(seed_for(self._seed, "noise", self._share, file))
        return salt_and_pepper(image, self._share / 2, self._share / 2, random)
