"""Tell each training image from all others, whatever view of it is shown.

Parametric instance classification: Dosovitskiy et al. 2014 (arXiv:1406.6909), Cao et al. 2020
(arXiv:2006.14618). With about 1,250 images a prototype each is a small matrix, and each step
compares with all images, not with its batch alone. Own code rather than `lightly`'s, which asks
the network for its version when it is imported and brings pytorch-lightning 2 and hydra.

Shapes: B images of 3 × H × W, N training images, encoder's maps (B, C, h, w), D = 128.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import CutMix

from models.augmentation import Augmentation, any_view
from models.normalisation import BatchNorm1d
from models.objectives import Objective

VIEWS = Augmentation(
    flip=0.5,
    area=(0.15, 1.0),
    stretch=0.35,
    rotation=45,
    brightness=0.2,
    contrast=0.4,
    saturation=0.4,
    hue=11,
    grey=0.1,
)
HIDDEN, PROJECTED = 512, 128  # units of the projection's two layers
CUTMIX = 0.8  # both parameters of the Beta distribution that the box's area comes from
SMOOTHING = 0.1  # of the targets, evenly over all N


class Instance(Objective):
    """Cross entropy of which training image a strongly changed view was made of.

    The mean of the encoder's map goes through two layers, thrown away afterwards; what comes out
    is compared by its cosine with a learned prototype of each image. Each batch is cut and mixed
    (Yun et al. 2019, arXiv:1905.04899): a box of each view shows the neighbour's in the batch,
    and the target is shared between the two images by area.

    Args:
        encoder: see `Objective`.
        images: N, how many training images there are.
        temperature: what cosines are divided by, the paper's τ; over 0.
        view_size: pixels a side of the views; None: the images' own size.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        images: int,
        temperature: float = 0.1,
        view_size: int | None = None,
    ):
        super().__init__()
        if images < 1 or not temperature > 0.0:
            raise ValueError(f"images {images}, temperature {temperature}: expected more than 0")
        self.encoder = encoder
        self.count, self.temperature, self.view_size = images, temperature, view_size
        channels: int = encoder.channels  # type: ignore[assignment]
        self.hidden = nn.Linear(channels, HIDDEN, bias=False)
        self.norm = BatchNorm1d(HIDDEN)
        self.projected = nn.Linear(HIDDEN, PROJECTED)
        self.prototypes = nn.Linear(PROJECTED, images, bias=False)  # its weight, (N, D)
        self.cutmix = CutMix(alpha=CUTMIX, num_classes=images)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [-1, 1] -> ``(B, D)`` float32 of length 1."""
        hidden = self.norm(self.hidden(self.encoder(images).mean((2, 3))))
        return F.normalize(self.projected(hidden.relu()).float())

    def logits(self, images: Tensor) -> Tensor:
        """Of each training image: ``(B, 3, H, W)`` in [-1, 1] -> ``(B, N)`` float32."""
        prototypes = F.normalize(self.prototypes.weight)
        return F.linear(self(images), prototypes).float() / self.temperature

    def loss(self, images: Tensor, rows: Tensor) -> Tensor:
        """See `Objective`; nats, log N at chance.

        Raises:
            ValueError: rows out of 0 to N - 1.
        """
        low, high = torch.stack(rows.aminmax()).tolist()
        if low < 0 or high >= self.count:
            raise ValueError(f"rows {low} to {high}: expected 0 to {self.count - 1}")
        views, targets = self.cutmix(changed(images, self.view_size), rows)
        return F.cross_entropy(self.logits(views), targets, label_smoothing=SMOOTHING)

    def valid_loss(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """How well two views of an image find each other among those of the batch.

        Images that were not trained on have no prototype, so the training loss has no held-out
        counterpart. This one asks the same of them, to be told apart whatever view is shown, with
        the other view in place of the prototype (NT-Xent of Chen et al. 2020, arXiv:2002.05709,
        without the negatives of the same view): to know the training images by heart does not
        help. Nats, log B at chance: comparable between epochs, whose batches are the same, not
        between batch sizes. Of a single image it is 0.
        """
        first, second = self(changed(images.repeat(2, 1, 1, 1), self.view_size)).chunk(2)
        logits = (first @ second.T).float() / self.temperature
        own = torch.arange(len(images), device=images.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def changed(images: Tensor, size: int | None = None) -> Tensor:
    """A strongly changed view of each, ``(B, 3, H, W)``, by torch's own generator of the CPU."""
    return any_view(VIEWS, images, size)
