"""Weights as bytes, so that any storage can hold them.

They are safetensors: plain arrays by name, read without running code.
"""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn


def to_bytes(
    weights: nn.Module | Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> bytes:
    """A module's or state dict's tensors as a safetensors file.

    Args:
        weights: no two names may share memory.
        metadata: any text to keep beside them.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return safetensors.torch.save(tensors, metadata)


def from_bytes(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: it is torn or no safetensors file: ``damaged weights: ...``, one line.
    """
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise ValueError(f"damaged weights: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
