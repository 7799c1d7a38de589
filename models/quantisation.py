"""Networks in int8: the convolutions and linear layers of a trained network, after training.

Weights are int8 with a scale an output channel. What comes into a layer is rounded to 128 levels
between bounds that were measured once, on calibration images (static quantisation); products are
summed in int32, and the layer gives float32. All else (normalisation, pooling, activations, the
softmax) stays float32.

Why like this, as of torch 2.14:

- ``torch.ao.quantization`` is deprecated for torchao, and so are the tensor types ``quint8`` and
  ``qint8`` and ``torch.quantize_per_tensor`` (pytorch issue 184982: integers of a plain type, and
  scales kept by the model's own code, as here).
- torchao 0.18's ``quantize_`` has int8 for linear layers only, and without a compiler it took
  0.92 to 1.09 times as long as float32 (A and B2 at 48 px, width 16, 64 images, one thread, four
  rounds in turns with the others). This module took 0.47 to 0.71 times as long.
- PT2E (torchao's ``X86InductorQuantizer``) has convolutions, but wants Inductor and with it a C++
  compiler on the user's machine, and then took 0.43 to 0.81 times as long as float32. Lowered
  without one (``lower_pt2e_quantized_to_x86``) it took 2.7 to 4.1 times as long.
- The operators that both end in, ``torch.ops.onednn.qconv_pointwise`` and ``qlinear_pointwise``
  of oneDNN, come with torch, take plain integers and need no compiler. They are called here
  directly, on x86. Elsewhere the same integers are multiplied in float32: the same answers up to
  rounding, and no faster than float32.

128 levels and not 256: a CPU without VNNI adds pairs of 8-bit products in 16 bits, and with 256
levels that sum overflows without a word (under ``ONEDNN_MAX_CPU_ISA=AVX2`` sums of the largest
values came out at half of what they are). With 128 one file is right on every x86 CPU.

Shapes: B images, C channels, O outputs of a layer, k its kernel's size.
"""

from __future__ import annotations

import copy
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 127  # inputs are 0 to 127
WEIGHT_LEVELS = 127  # weights are -127 to 127
# Share of a layer's inputs that each bound cuts off. On validation images the logits of six
# networks were off by 0.05 to 0.08 with it, by 0.06 to 0.13 with the extremes as bounds.
CUT = 1e-4
# They read the weights of the layers within by themselves, and want them in float32.
FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class Bounds:
    """What a layer's inputs are rounded between; 0 lies within, and is a level of its own."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """Of one level; positive."""
        return max(self.high - self.low, 1e-8) / LEVELS

    @property
    def zero_point(self) -> int:
        """The level that stands for 0."""
        return round(-self.low / self.scale)


class Rounding:
    """float32 -> levels 0 to 127 (uint8), in the same memory format."""

    def __init__(self, scale: float, zero_point: int):
        self.scale, self.zero_point = scale, zero_point
        self._offset = torch.tensor(zero_point + 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        levels = torch.add(self._offset, x, alpha=1 / self.scale).clamp_(0, LEVELS)
        return levels.to(torch.int8).view(torch.uint8)  # to uint8 would take twice as long

    def back(self, levels: Tensor) -> Tensor:
        """The float32 that levels stand for."""
        return levels.to(torch.float32).sub_(self.zero_point).mul_(self.scale)


@dataclass(frozen=True)
class Int8:
    """What a quantised layer keeps, under these names in its state dict.

    Attributes:
        weight: int8, (O, C), or (O, C / groups, k, k).
        weight_scale: float32, (O,).
        bias: float32, (O,), or None.
        input_scale: float32, (): of a level.
        input_zero_point: int64, (): the level of 0.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_scale: Tensor
    input_zero_point: Tensor


class QuantisedLinear(nn.Module):
    """``x Wᵀ + b`` in int8: float32 ``(..., C)`` -> float32 ``(..., O)``."""

    def __init__(self, kept: Int8):
        super().__init__()
        _register(self, kept)
        self._round = Rounding(float(kept.input_scale), int(kept.input_zero_point))
        self._zeros = torch.zeros(len(kept.weight), dtype=torch.int64)
        onednn = torch.ops.onednn
        self._packed = onednn.qlinear_prepack(kept.weight, None) if has_int8_operators() else None

    def forward(self, x: Tensor) -> Tensor:
        levels = self._round(x.flatten(0, -2))
        product = self._by_hand(levels) if self._packed is None else self._by_onednn(levels)
        return product.unflatten(0, x.shape[:-1])

    def _by_onednn(self, levels: Tensor) -> Tensor:
        inputs = levels, self._round.scale, self._round.zero_point
        weights = self._packed, self.weight_scale, self._zeros, self.bias
        return torch.ops.onednn.qlinear_pointwise(*inputs, *weights, *_FLOAT_OUT)

    def _by_hand(self, levels: Tensor) -> Tensor:
        return F.linear(self._round.back(levels), float_weight(self), self._buffers["bias"])


class QuantisedConv2d(nn.Module):
    """A convolution in int8: float32 ``(B, C, H, W)`` -> float32 ``(B, O, h, w)``.

    Args:
        kept: its weights.
        like: has its stride, padding (with zeros), dilation and groups.
    """

    def __init__(self, kept: Int8, like: nn.Conv2d):
        super().__init__()
        _register(self, kept)
        self._round = Rounding(float(kept.input_scale), int(kept.input_zero_point))
        self._zeros = torch.zeros(len(kept.weight), dtype=torch.int64)
        sides = (list(like.stride), [int(side) for side in like.padding], list(like.dilation))
        self._geometry: tuple[Any, ...] = (*sides, like.groups)
        self._packed = self._prepack() if has_int8_operators() else None

    def _prepack(self) -> Tensor:
        inputs = self._round.scale, self._round.zero_point
        pack = torch.ops.onednn.qconv_prepack
        return pack(self.weight, self.weight_scale, *inputs, *self._geometry, None)

    def forward(self, x: Tensor) -> Tensor:
        levels = self._round(x)
        return self._by_hand(levels) if self._packed is None else self._by_onednn(levels)

    def _by_onednn(self, levels: Tensor) -> Tensor:
        inputs = levels, self._round.scale, self._round.zero_point
        weights = self._packed, self.weight_scale, self._zeros, self.bias
        convolve = torch.ops.onednn.qconv_pointwise
        return convolve(*inputs, *weights, *self._geometry, *_FLOAT_OUT)

    def _by_hand(self, levels: Tensor) -> Tensor:
        maps = self._round.back(levels)
        return F.conv2d(maps, float_weight(self), self._buffers["bias"], *self._geometry)


# Of the operators: no scale or zero point, float32, and no activation behind.
_FLOAT_OUT: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")


def _register(layer: nn.Module, kept: Int8) -> None:
    for field in fields(kept):
        layer.register_buffer(field.name, getattr(kept, field.name))


def has_int8_operators() -> bool:
    """Whether oneDNN's are there; they are only known to be right on x86."""
    known = platform.machine().lower() in ("x86_64", "amd64")
    return known and torch.backends.mkldnn.is_available()


def float_weight(layer: nn.Module) -> Tensor:
    """The float32 weights that a quantised layer's int8 stand for."""
    weight, scale = layer.get_buffer("weight"), layer.get_buffer("weight_scale")
    return weight.to(torch.float32) * _a_channel(scale, weight)


def quantise(network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy of a network with its convolutions and linear layers in int8, in evaluation mode.

    Args:
        network: float32, on the CPU.
        batches: calibration images ``(B, 3, H, W)`` in [-1, 1], at least one batch. Layers that
            these do not pass through stay float32, and so do those that `can_be_int8` refuses.

    Raises:
        ValueError: no batches.
    """
    bounds = measure_bounds(network, batches)
    result = copy.deepcopy(network).eval()
    for name, found in bounds.items():
        _replace(result, name, _quantised(result.get_submodule(name), found))
    return result


def restore(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A quantised network from its state dict.

    Args:
        network: float32, of the same kind as it was quantised from; left as it is.
        state: of what `quantise` made.

    Raises:
        ValueError: the state is of another network.
    """
    result = copy.deepcopy(network).eval()
    try:
        for name in [key.removesuffix(".weight_scale") for key in state if _is_scale(key)]:
            _replace(result, name, _restored(result.get_submodule(name), name, state))
        result.load_state_dict(dict(state))
    except (RuntimeError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights of another network: {reason}") from None
    return result


def int8_share(network: nn.Module) -> float:
    """The share of a quantised network's weights that are int8, in [0, 1]."""
    state = network.state_dict()
    sizes = {name: value.numel() for name, value in state.items() if _is_weight(name)}
    int8 = sum(size for name, size in sizes.items() if state[name].dtype == torch.int8)
    return int8 / max(sum(sizes.values()), 1)


def can_be_int8(layer: nn.Module) -> bool:
    """Whether a layer is a linear one, or a convolution with an ordinary border of zeros."""
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def measure_bounds(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, Bounds]:
    """Bounds of what comes into each layer that can be int8, by its name: the mean of each
    batch's. Arguments as `quantise`.

    Raises:
        ValueError: no batches.
    """
    seen: dict[str, list[tuple[float, float]]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: _note(seen, name, x[0]))
        for name, layer in _candidates(network)
    ]
    try:
        with torch.inference_mode():
            for batch in batches:
                network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ValueError("no calibration images went through a layer, expected at least a batch")
    return {name: _mean(found) for name, found in seen.items()}


def _candidates(network: nn.Module) -> list[tuple[str, nn.Module]]:
    fused = [name for name, module in network.named_modules() if isinstance(module, FUSED)]
    return [
        (name, layer)
        for name, layer in network.named_modules()
        if can_be_int8(layer) and not any(name.startswith(f"{each}.") for each in fused)
    ]


def _note(seen: dict[str, list[tuple[float, float]]], name: str, inputs: Tensor) -> None:
    values = inputs.flatten()
    cut = 1 + math.floor(CUT * len(values))
    low = torch.kthvalue(values, cut).values
    high = torch.kthvalue(values, len(values) + 1 - cut).values
    seen.setdefault(name, []).append((float(low), float(high)))


def _mean(found: list[tuple[float, float]]) -> Bounds:
    lows, highs = zip(*found, strict=True)
    return Bounds(min(sum(lows) / len(lows), 0.0), max(sum(highs) / len(highs), 0.0))


def _quantised(layer: nn.Module, bounds: Bounds) -> nn.Module:
    weight, scale = round_weight(layer.get_parameter("weight").detach())
    added = layer._parameters["bias"]
    bias = None if added is None else added.detach().clone()
    inputs = torch.tensor(bounds.scale), torch.tensor(bounds.zero_point)
    return _layer(layer, Int8(weight, scale, bias, *inputs))


def _restored(layer: nn.Module, name: str, state: Mapping[str, Tensor]) -> nn.Module:
    found = {field.name: state.get(f"{name}.{field.name}") for field in fields(Int8)}
    if found["weight"] is None or found["weight"].shape != layer.get_parameter("weight").shape:
        raise KeyError(f"{name}.weight has another shape")
    return _layer(layer, Int8(**found))  # type: ignore[arg-type]


def _layer(like: nn.Module, kept: Int8) -> nn.Module:
    return QuantisedConv2d(kept, like) if isinstance(like, nn.Conv2d) else QuantisedLinear(kept)


def round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as int8 and a float32 scale an output: ``(O, ...)`` -> ``(O, ...)``, ``(O,)``."""
    scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / WEIGHT_LEVELS
    return (weight / _a_channel(scale, weight)).round().to(torch.int8), scale


def _a_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.ndim - 1))


def _is_scale(name: str) -> bool:
    return name.endswith(".weight_scale")


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] in ("weight", "bias")


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    network.get_submodule(parent).register_module(own, layer)
