"""Batch normalisation that takes a single image, as the last batch of an epoch may be one.

It has no variance over images, so it is normalised by what was seen before, and adds nothing to
that. PyTorch's own raises an error where such an image has one value a channel.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm1d(nn.BatchNorm1d):
    """Of features ``(B, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        return _by_what_was_seen(self, x) if self.training and len(x) == 1 else super().forward(x)


class BatchNorm2d(nn.BatchNorm2d):
    """Of maps ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return _by_what_was_seen(self, x) if self.training and len(x) == 1 else super().forward(x)


def _by_what_was_seen(norm: Any, x: Tensor) -> Tensor:
    seen = norm.running_mean, norm.running_var
    return F.batch_norm(x, *seen, norm.weight, norm.bias, eps=norm.eps)
