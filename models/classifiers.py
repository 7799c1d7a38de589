"""The classifiers of the study: A, a small network of its own; the others on an encoder.

Shapes: B images, H×W pixels, w = width, K classes, D features of an image. Maps are flattened in
the order rows, columns, channels, which is their order in memory: no copy before the largest
layer. Its columns in the state dict are in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.autoencoders import pool_and_rectify
from models.normalisation import BatchNorm1d
from models.registry import ARCHITECTURES, build_encoder

VARIANTS = ("A", "B0", "B1", "B2", "C", "C2")
PRETRAINED = ("B1", "B2", "C2")
CONV_STRIDE = 4  # A has two blocks
HIDDEN_PER_CHANNEL = 2  # 512 hidden units on 256 channels, and for A on its width of 64


def flatten_maps(maps: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, H·W·C)``; the same values whatever the memory format."""
    return maps.permute(0, 2, 3, 1).flatten(1)


class _OneDnnLinear(torch.autograd.Function):
    """``x Wᵀ + b`` by oneDNN: `F.linear` takes MKL, which uses half of an AMD CPU's vectors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x = _onednn_product(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
        return grad_x, _onednn_product(grad.t(), x.t(), None), grad.sum(0)


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _has_onednn_linear() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class WideLinear(nn.Linear):
    """`nn.Linear` for the largest layer, ``(B, D)`` -> ``(B, hidden)``.

    The same function and the same weights. On a CPU in float32 it is 2.4 times faster where
    oneDNN is faster than MKL.
    """

    def forward(self, x: Tensor) -> Tensor:
        fast = x.is_cpu and x.dtype == self.weight.dtype == torch.float32 and _has_onednn_linear()
        if not fast or torch.is_autocast_enabled("cpu"):
            return F.linear(x, self.weight, self.bias)
        return _OneDnnLinear.apply(x, self.weight, self.bias)


class FeatureNorm(BatchNorm1d):
    """Each feature with mean 0 and variance 1 over the batch, ``(B, D)`` -> ``(B, D)``.

    Features after a ReLU have a common mean far above their differences, on which Adam makes
    little headway: B1 at 48 px with all labels had 19 % validation accuracy after ten epochs
    without it and 60 % with it (docs/LOG.md).
    """

    def __init__(self, features: int):
        super().__init__(features, affine=False)


def _head(features: int, hidden: int, num_classes: int, normalise: bool = False) -> nn.Sequential:
    layers = [WideLinear(features, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
    return nn.Sequential(*([FeatureNorm(features)] if normalise else []), *layers)


def _require_multiple(image_size: int, stride: int) -> None:
    if image_size < stride or image_size % stride:
        raise ValueError(f"image size {image_size}: expected a positive multiple of {stride}")


class ConvClassifier(nn.Module):
    """Variant A: two blocks of conv3×3, ReLU and maxpool2 (3 -> w -> 2w), hidden layer, classes.

    Args:
        num_classes: K.
        image_size: H = W in pixels, a multiple of 4; 128 in the paper.
        width: w; 64 in the paper. The hidden layer has 8w units.

    Raises:
        ValueError: ``image_size`` is no multiple of 4.
    """

    def __init__(self, num_classes: int, image_size: int = 128, width: int = 64):
        super().__init__()
        _require_multiple(image_size, CONV_STRIDE)
        self.convs = nn.ModuleList(
            [nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)]
        )
        features = 2 * width * (image_size // CONV_STRIDE) ** 2
        self.head = _head(features, 4 * HIDDEN_PER_CHANNEL * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, K)`` of images ``(B, 3, H, W)`` in [-1, 1]."""
        maps = x.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            maps = pool_and_rectify(conv(maps))
        return self.head(flatten_maps(maps))


class EncoderClassifier(nn.Module):
    """Variants B0, B1, B2, C and C2: an encoder, flatten, a hidden layer with ReLU, classes.

    An encoder that says that it is `pooled` has its maps averaged over the image instead, and a
    single layer on them. `head` may be trained alone on features computed once by
    `encode_batches`: ``(B, D)`` in, the same logits out.

    Args:
        encoder: images -> maps ``(B, C, h, w)``. It is kept, not copied.
        num_classes: K.
        image_size: H = W in pixels, a multiple of the encoder's stride.
        frozen: the encoder gets no gradient and stays in evaluation mode, even after ``train()``,
            so that neither its weights nor its buffers change and its dropout is off.
        normalise: put a `FeatureNorm` before the hidden layer; the paper has none.
    """

    def __init__(
        self,
        encoder: Any,
        num_classes: int,
        image_size: int,
        frozen: bool,
        normalise: bool = False,
    ):
        super().__init__()
        self.encoder = encoder
        self.pooled = bool(encoder.pooled)
        self.head = _head_on(encoder, num_classes, image_size, normalise)
        self.frozen = frozen
        self.encoder.requires_grad_(not frozen)
        self.train()

    def train(self, mode: bool = True) -> EncoderClassifier:
        """As `nn.Module.train`, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """What the head sees of images ``(B, 3, H, W)``: ``(B, D)``."""
        maps = self.encoder(x)
        return maps.mean((2, 3)) if self.pooled else flatten_maps(maps)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, K)`` of images ``(B, 3, H, W)`` in [-1, 1]."""
        return self.head(self.features(x))


def _head_on(encoder: Any, num_classes: int, image_size: int, normalise: bool) -> nn.Sequential:
    channels, cells = encoder.channels, (image_size // encoder.stride) ** 2
    if encoder.pooled:
        norm = [FeatureNorm(channels)] if normalise else []
        return nn.Sequential(*norm, nn.Linear(channels, num_classes))
    return _head(channels * cells, HIDDEN_PER_CHANNEL * channels, num_classes, normalise)


def build_classifier(
    variant: str,
    num_classes: int,
    image_size: int,
    width: int,
    encoder_state: Mapping[str, Tensor] | None = None,
    normalise: bool = False,
    architecture: str = "unet",
    **settings: Any,
) -> Any:
    """A new classifier; its weights are its own, also where they are copied from an encoder.

    Args:
        variant: ``A`` from scratch; ``B0`` the encoder's network from random weights; ``B1``
            pretrained and frozen; ``B2`` pretrained and fine-tuned; ``C`` and ``C2`` the same as
            B0 and B2, as they differ in their training.
        num_classes: K.
        image_size: H = W in pixels, a multiple of the encoder's stride (of 4 for A).
        width: channels of the first block.
        encoder_state: the state dict of a pretrained encoder, for B1, B2 and C2 only.
        normalise: whether B0, B1 and B2 normalise the encoder's features.
        architecture: the encoder's, one of `models.registry.ARCHITECTURES`.
        settings: other settings of the encoder; see `build_encoder`.

    Raises:
        ValueError: an unknown variant, weights where there must be none, none where there must be
            some, or weights of another width.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    if (encoder_state is not None) != (variant in PRETRAINED):
        expected = "encoder weights" if variant in PRETRAINED else "no encoder weights"
        raise ValueError(f"variant {variant}: expected {expected}")
    if variant == "A":
        return ConvClassifier(num_classes, image_size, width)
    _require_multiple(image_size, ARCHITECTURES[architecture].stride)
    encoder = build_encoder(architecture, width=width, image_size=image_size, **settings)
    if encoder_state is not None:
        _load_encoder(encoder, encoder_state)
    return EncoderClassifier(encoder, num_classes, image_size, variant == "B1", normalise)


def _load_encoder(encoder: nn.Module, state: Mapping[str, Tensor]) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    if found != expected:
        raise ValueError(f"encoder weights: found {found}, expected {expected}")
    encoder.load_state_dict(state)


def encode_batches(classifier: EncoderClassifier, batches: Iterable[Tensor]) -> Tensor:
    """A frozen encoder's features, computed once, in evaluation mode and without gradients.

    Args:
        classifier: its mode is restored.
        batches: images ``(B, 3, H, W)`` in [-1, 1], at least one batch.

    Returns:
        Features ``(N, D)`` in the order of the images, as `EncoderClassifier.features` has them.
    """
    training = classifier.training
    classifier.eval()
    try:
        with torch.no_grad():
            return torch.cat([classifier.features(batch) for batch in batches])
    finally:
        classifier.train(training)
