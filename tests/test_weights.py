"""Weights and checkpoints survive as bytes, and damage never passes for content."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from models.autoencoders import UNetEncoder
from models.classifiers import build_classifier
from models.weights import checkpoint_from_bytes, checkpoint_to_bytes, from_bytes, to_bytes


def test_weights_and_metadata_come_back() -> None:
    encoder = UNetEncoder(4).to(memory_format=torch.channels_last)
    state, metadata = from_bytes(to_bytes(encoder, {"key": "über"}))
    assert metadata == {"key": "über"}
    classifier = build_classifier("B2", 5, 32, 4, state)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(classifier.encoder.state_dict()[name], tensor)


def test_weights_without_metadata() -> None:
    state, metadata = from_bytes(to_bytes({"a": torch.arange(3)}))
    assert state["a"].tolist() == [0, 1, 2]
    assert metadata == {}


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


def training_state() -> dict[str, object]:
    network = UNetEncoder(2)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    return {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": {"val_f1": 0.5, "epoch": None},
        "rng": torch.get_rng_state(),
    }


def test_training_goes_on_from_a_checkpoint_as_if_uninterrupted() -> None:
    state = training_state()
    restored = checkpoint_from_bytes(checkpoint_to_bytes(state))
    results = []
    for checkpoint in (state, restored):
        network = UNetEncoder(2)
        network.load_state_dict(checkpoint["model"])  # type: ignore[arg-type]
        optimizer = torch.optim.Adam(network.parameters(), fused=True)
        optimizer.load_state_dict(checkpoint["optimizer"])  # type: ignore[arg-type]
        torch.set_rng_state(checkpoint["rng"])  # type: ignore[arg-type]
        for _ in range(2):
            optimizer.zero_grad()
            network(torch.randn(2, 3, 16, 16)).square().sum().backward()
            optimizer.step()
        results.append(network.state_dict())
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name])
    assert restored["epoch"] == 3
    assert restored["best"] == {"val_f1": 0.5, "epoch": None}


def test_torn_checkpoint_is_refused_at_every_length() -> None:
    content = checkpoint_to_bytes({"a": torch.arange(4), "epoch": 1})
    for length in range(len(content)):
        with pytest.raises(ValueError, match="damaged checkpoint: ") as refusal:
            checkpoint_from_bytes(content[:length])
        assert "\n" not in str(refusal.value)


def test_changed_checkpoint_is_refused() -> None:
    content = bytearray(checkpoint_to_bytes({"a": torch.arange(4)}))
    content[-100] ^= 1
    with pytest.raises(ValueError, match="damaged checkpoint"):
        checkpoint_from_bytes(bytes(content))


def test_checkpoint_that_would_run_code_is_refused() -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("ran",))

    with pytest.raises(ValueError, match="damaged checkpoint: ") as refusal:
        checkpoint_from_bytes(checkpoint_to_bytes({"a": Payload()}))
    assert "\n" not in str(refusal.value)
