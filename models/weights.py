"""Weights and checkpoints as bytes, so that any storage can hold them.

Weights are safetensors: plain arrays by name, read without running code. A training checkpoint
also holds the optimiser's and the random generators' state; it is PyTorch's format behind a
checksum.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

HEADER_LENGTH_BYTES = 8  # of safetensors: the JSON header's length, little-endian
MAGIC = b"mariposa-checkpoint-1\n"
DIGEST_BYTES = hashlib.sha256().digest_size


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


def checkpoint_to_bytes(state: dict[str, Any]) -> bytes:
    """A training checkpoint, with the SHA-256 of its content in front.

    Args:
        state: tensors, numbers, text, None, and lists, tuples and dicts of them.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    return MAGIC + hashlib.sha256(content).digest() + content


def checkpoint_from_bytes(content: bytes) -> dict[str, Any]:
    """The state that `checkpoint_to_bytes` was given, on the CPU. Runs no code of the file's.

    Raises:
        ValueError: a byte is missing or another: ``damaged checkpoint: ...``, one line.
    """
    start = len(MAGIC) + DIGEST_BYTES
    if not content.startswith(MAGIC):
        raise ValueError("damaged checkpoint: it does not start as a checkpoint of Mariposa")
    if hashlib.sha256(content[start:]).digest() != content[len(MAGIC) : start]:
        raise ValueError(f"damaged checkpoint: {len(content)} bytes, and their checksum differs")
    try:
        return torch.load(io.BytesIO(content[start:]), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"damaged checkpoint: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
