"""Weights survive as bytes, and damage never passes for content."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from models.autoencoders import UNetEncoder
from models.classifiers import build_classifier
from models.weights import from_bytes, to_bytes


def test_weights_and_metadata_come_back() -> None:
    encoder = UNetEncoder(4).to(memory_format=torch.channels_last)
    state = from_bytes(to_bytes(encoder, {"key": "über"}))
    classifier = build_classifier("B2", 5, 32, 4, state)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(classifier.encoder.state_dict()[name], tensor)


def test_weights_without_metadata() -> None:
    state = from_bytes(to_bytes({"a": torch.arange(3)}))
    assert state["a"].tolist() == [0, 1, 2]


def test_other_programs_read_the_weights(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(to_bytes(UNetEncoder(4), {"width": "4"}))
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"width": "4"}
        assert file.get_tensor("convs.2.weight").shape == (16, 8, 3, 3)


def test_torn_weights_are_refused_at_every_length() -> None:
    content = to_bytes({"a": torch.arange(6.0), "b": torch.zeros(2)}, {"k": "v"})
    for length in range(len(content)):
        with pytest.raises(ValueError, match="damaged weights: ") as refusal:
            from_bytes(content[:length])
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="damaged weights"):
        from_bytes(content + b"x")
    with pytest.raises(ValueError, match="damaged weights"):
        from_bytes(b"not weights at all, but long enough to have a header")
