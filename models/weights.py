"""Weights as bytes, so that any storage can hold them.

They are safetensors: plain arrays by name, read without running code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

HEADER_LENGTH_BYTES = 8  # of safetensors: the JSON header's length, little-endian


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


def from_bytes(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the metadata of a safetensors file.

    Raises:
        ValueError: it is torn or no safetensors file: ``damaged weights: ...``, one line.
    """
    try:
        return safetensors.torch.load(content), _metadata(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"damaged weights: {_one_line(error)}") from error


def _metadata(content: bytes) -> dict[str, str]:
    end = HEADER_LENGTH_BYTES + int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
    return json.loads(content[HEADER_LENGTH_BYTES:end]).get("__metadata__") or {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
