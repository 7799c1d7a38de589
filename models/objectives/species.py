"""Name the species of drawn butterflies, whatever view of them is shown.

Images that a program draws come with their labels: Kataoka et al. 2020, "Pre-training without
Natural Images" (https://arxiv.org/abs/2101.08515). The encoder is kept, the names are thrown away.

Shapes: B images of 3 × H × W; S species, E images of each, drawn in order (`data.invented`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from models.augmentation import Augmentation, any_view
from models.objectives import Objective

VIEWS = Augmentation(
    flip=0.5,
    area=(0.4, 1.1),
    stretch=0.25,
    rotation=60,
    brightness=0.15,
    contrast=0.3,
    saturation=0.3,
    hue=5,
)


class Species(Objective):
    """Cross entropy of the species, by a single layer on the mean of the encoder's map.

    Args:
        encoder: see `Objective`.
        drawn: ``species``, S, and ``each``, E.
        view_size: pixels a side of the views; None: the images' own size.
    """

    def __init__(self, encoder: nn.Module, drawn: Mapping[str, int], view_size: int | None = None):
        super().__init__()
        self.encoder = encoder
        self.each, self.view_size = drawn["each"], view_size
        channels: int = encoder.channels  # type: ignore[assignment]
        self.names = nn.Linear(channels, drawn["species"])

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [-1, 1] -> logits ``(B, S)`` float32."""
        return self.names(self.encoder(images).mean((2, 3))).float()

    def loss(self, images: Tensor, rows: Tensor) -> Tensor:
        """See `Objective`; nats, log S at chance."""
        return self.valid_loss(any_view(VIEWS, images, self.view_size), rows)

    def valid_loss(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """The same of whole images."""
        assert rows is not None
        return F.cross_entropy(self(images), rows // self.each)
