"""Networks: the paper's sizes, and fast paths that compute what the textbook form computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoders import UNetAutoencoder, UNetEncoder, dropout, pool_and_rectify
from models.classifiers import (
    EncoderClassifier,
    FeatureNorm,
    WideLinear,
    build_classifier,
    encode_batches,
    flatten_maps,
)

torch.set_num_threads(1)  # small tensors: two threads would wait for each other
CLASSES = 20


def images(count: int = 4, size: int = 32) -> Tensor:
    """Images ``(count, 3, size, size)`` in [-1, 1]."""
    return torch.rand(count, 3, size, size) * 2 - 1


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


def textbook_block(maps: Tensor, conv: nn.Module) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(maps, conv.weight, conv.bias, padding=1)), 2)


def textbook_head(maps: Tensor, head: nn.Module) -> Tensor:
    hidden = F.relu(F.linear(maps.permute(0, 2, 3, 1).flatten(1), head[0].weight, head[0].bias))
    return F.linear(hidden, head[2].weight, head[2].bias)


def textbook_classifier(classifier: nn.Module, x: Tensor) -> Tensor:
    """A or B in evaluation mode, as written in a textbook: conv, ReLU, pooling."""
    convs = classifier.encoder.convs if hasattr(classifier, "encoder") else classifier.convs
    for conv in convs:
        x = textbook_block(x, conv)
    return textbook_head(x, classifier.head)


def textbook_autoencoder(network: UNetAutoencoder, x: Tensor) -> Tensor:
    first = textbook_block(x, network.encoder.convs[0])
    second = textbook_block(first, network.encoder.convs[1])
    latent = textbook_block(second, network.encoder.convs[2])
    maps = [latent]
    for up, skip in zip(network.ups, (second, first, None), strict=True):
        y = F.conv_transpose2d(maps[-1], up.weight, up.bias, stride=2)
        maps.append(torch.tanh(y) if skip is None else F.relu(y) + skip)
    return maps[-1]


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, weights = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def assert_same_step(network: nn.Module, fast: Tensor, reference: Tensor, goal: Tensor) -> None:
    """Outputs and all weights' gradients of two ways to compute a network agree."""
    torch.testing.assert_close(fast, reference, rtol=1e-4, atol=1e-5)
    ours = gradients(network, F.mse_loss(fast, goal))
    theirs = gradients(network, F.mse_loss(reference, goal))
    for name, gradient in theirs.items():
        difference = (ours[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-4, (name, difference)


def test_classifier_a_has_the_papers_sizes() -> None:
    assert shapes(build_classifier("A", CLASSES, 128, 64)) == {
        "convs.0.weight": (64, 3, 3, 3),
        "convs.0.bias": (64,),
        "convs.1.weight": (128, 64, 3, 3),
        "convs.1.bias": (128,),
        "head.0.weight": (512, 131072),
        "head.0.bias": (512,),
        "head.2.weight": (20, 512),
        "head.2.bias": (20,),
    }


def test_encoder_classifier_has_the_papers_sizes() -> None:
    assert shapes(build_classifier("B0", CLASSES, 128, 64)) == {
        "encoder.convs.0.weight": (64, 3, 3, 3),
        "encoder.convs.0.bias": (64,),
        "encoder.convs.1.weight": (128, 64, 3, 3),
        "encoder.convs.1.bias": (128,),
        "encoder.convs.2.weight": (256, 128, 3, 3),
        "encoder.convs.2.bias": (256,),
        "head.0.weight": (512, 65536),
        "head.0.bias": (512,),
        "head.2.weight": (20, 512),
        "head.2.bias": (20,),
    }


def test_autoencoder_has_the_papers_sizes() -> None:
    network = UNetAutoencoder(UNetEncoder()).eval()
    found = shapes(network)
    assert [found[f"ups.{i}.weight"] for i in range(3)] == [
        (256, 128, 2, 2),
        (128, 64, 2, 2),
        (64, 3, 2, 2),
    ]
    assert network.encoder.dropout == 0.3
    with torch.no_grad():
        x = images(1, 128)
        assert network.encoder(x).shape == (1, 256, 16, 16)
        assert network(x).shape == x.shape


def test_width_and_image_size_scale_the_sizes() -> None:
    found = shapes(build_classifier("A", 5, 64, 16))
    assert found["head.0.weight"] == (128, 32 * 16 * 16)
    found = shapes(build_classifier("B0", 5, 64, 16))
    assert found["head.0.weight"] == (128, 64 * 8 * 8)
    assert found["head.2.weight"] == (5, 128)


@pytest.mark.parametrize("variant", ["A", "B0"])
def test_classifier_and_its_gradients_equal_the_textbook_form(variant: str) -> None:
    torch.manual_seed(0)
    network = build_classifier(variant, CLASSES, 32, 8).eval()  # without dropout, with gradients
    x, goal = images(6), torch.randn(6, CLASSES)
    assert_same_step(network, network(x), textbook_classifier(network, x), goal)


def test_autoencoder_and_its_gradients_equal_the_textbook_form() -> None:
    torch.manual_seed(0)
    network = UNetAutoencoder(UNetEncoder(8)).eval()
    x = images(6)
    assert_same_step(network, network(x), textbook_autoencoder(network, x), x)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_logits_do_not_depend_on_memory_format_or_gradients(
    memory_format: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    for variant in ("A", "B0"):
        network = build_classifier(variant, CLASSES, 32, 8).eval()
        x = images()
        expected = network(x)
        with torch.no_grad():  # pools by another route
            found = network(x.contiguous(memory_format=memory_format))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_pooling_first_equals_pooling_last() -> None:
    maps = torch.randn(2, 5, 8, 12).contiguous(memory_format=torch.channels_last)
    expected = F.max_pool2d(F.relu(maps), 2)
    assert torch.equal(pool_and_rectify(maps), expected)
    assert torch.equal(pool_and_rectify(maps.clone().requires_grad_()), expected)
    maps[0, 0, 0, 0] = float("nan")
    assert pool_and_rectify(maps)[0, 0, 0, 0].isnan()


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_wide_linear_equals_linear(batch: int) -> None:
    torch.manual_seed(0)
    layer = WideLinear(96, 24)
    x = torch.randn(batch, 96, requires_grad=True)
    inputs = (x, layer.weight, layer.bias)
    reference = F.linear(*inputs)
    goal = torch.randn_like(reference)
    torch.testing.assert_close(layer(x), reference, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(layer(x), inputs, goal)
    theirs = torch.autograd.grad(reference, inputs, goal)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_wide_linear_takes_other_types() -> None:
    layer = WideLinear(12, 4).double()
    assert layer(torch.randn(2, 12).double()).dtype == torch.float64


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    ones = torch.ones(64, 8, 32, 32).contiguous(memory_format=torch.channels_last)
    dropped = dropout(ones, 0.3, training=True)
    kept = dropped > 0
    n = ones.numel()
    assert abs(1 - kept.float().mean().item() - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5
    assert dropped[kept].unique().tolist() == pytest.approx([1 / 0.7], rel=1e-4)
    for axis in range(4):  # neighbours are dropped independently
        both = (kept & kept.roll(1, axis)).float().mean().item()
        assert abs(both - 0.49) < 0.003
    assert dropout(ones, 0.3, training=False) is ones


def test_dropout_repeats_with_its_seed_and_passes_gradients() -> None:
    maps = torch.ones(2, 3, 5, 7, requires_grad=True)  # 210 values: no multiple of four
    torch.manual_seed(1)
    first = dropout(maps, 0.5, training=True)
    second = dropout(maps, 0.5, training=True)
    torch.manual_seed(1)
    again = dropout(maps.contiguous(memory_format=torch.channels_last), 0.5, training=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    (gradient,) = torch.autograd.grad(first.sum(), maps)
    assert torch.equal(gradient, first.detach())


def test_autoencoder_output_covers_the_inputs_range() -> None:
    network = UNetAutoencoder(UNetEncoder(4)).eval()
    with torch.no_grad():
        for goal in (-0.99, 0.99):
            network.ups[2].weight.zero_()
            network.ups[2].bias.fill_(torch.atanh(torch.tensor(goal)))
            torch.testing.assert_close(network(images()), torch.full((4, 3, 32, 32), goal))


@pytest.mark.parametrize("variant", ["A", "B0"])
def test_image_size_must_fit_the_blocks(variant: str) -> None:
    with pytest.raises(ValueError, match="image size 30: expected a positive multiple of"):
        build_classifier(variant, CLASSES, 30, 4)


def test_autoencoder_refuses_an_image_size_it_cannot_give_back() -> None:
    with pytest.raises(ValueError, match="image size 36×36: expected multiples of 8"):
        UNetAutoencoder(UNetEncoder(4))(images(size=36))


@pytest.mark.parametrize(
    ("variant", "width", "message"),
    [
        ("A", 4, "variant A: expected no encoder weights"),
        ("B0", 4, "variant B0: expected no encoder weights"),
        ("B2", 8, "encoder weights: found"),
        ("D", 4, "variant 'D': expected one of A, B0, B1, B2, C"),
    ],
)
def test_classifier_refuses_weights_that_do_not_fit(variant: str, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        build_classifier(variant, CLASSES, 32, width, UNetEncoder(4).state_dict())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("variant", ["B1", "B2"])
def test_pretrained_classifier_needs_weights(variant: str) -> None:
    with pytest.raises(ValueError, match=f"variant {variant}: expected encoder weights"):
        build_classifier(variant, CLASSES, 32, 4)


def test_every_classifier_has_its_own_copy_of_the_encoder() -> None:
    state = UNetEncoder(4).state_dict()
    built = [build_classifier(v, CLASSES, 32, 4, state) for v in ("B1", "B2", "B2")]
    encoders = [classifier.encoder for classifier in built]
    storages = [t.data_ptr() for e in encoders for t in e.state_dict().values()]
    storages += [tensor.data_ptr() for tensor in state.values()]
    assert len(set(storages)) == len(storages)
    for encoder in encoders:
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, state[name])


def test_frozen_encoder_stays_frozen_and_in_evaluation_mode() -> None:
    classifier = build_classifier("B1", CLASSES, 32, 4, UNetEncoder(4).state_dict())
    for _ in range(2):
        assert not classifier.encoder.training
        assert classifier.head.training
        assert not any(weight.requires_grad for weight in classifier.encoder.parameters())
        assert all(weight.requires_grad for weight in classifier.head.parameters())
        classifier.eval()
        classifier.train()
    x = images()
    assert torch.equal(classifier(x), classifier(x))  # no dropout


def test_fine_tuned_encoder_is_trained_with_dropout() -> None:
    classifier = build_classifier("B2", CLASSES, 32, 4, UNetEncoder(4).state_dict()).train()
    assert all(weight.requires_grad for weight in classifier.parameters())
    x = images()
    assert not torch.equal(classifier(x), classifier(x))


def test_head_on_cached_features_gives_the_classifiers_logits() -> None:
    classifier = build_classifier("B1", CLASSES, 32, 4, UNetEncoder(4).state_dict())
    x = images(10)
    features = encode_batches(classifier, x.split(4))
    assert features.shape == (10, 16 * 4 * 4)
    assert not features.requires_grad
    torch.testing.assert_close(classifier.head(features), classifier(x), rtol=1e-4, atol=1e-6)


def test_encoding_keeps_the_encoders_mode() -> None:
    classifier = build_classifier("B0", CLASSES, 32, 4).train()
    x = images()
    assert torch.equal(encode_batches(classifier, [x]), encode_batches(classifier, [x]))
    assert classifier.encoder.training
    expected = flatten_maps(classifier.encoder.eval()(x))
    assert torch.equal(encode_batches(classifier, [x]), expected)


def test_frozen_encoder_with_buffers_keeps_them() -> None:
    encoder: Any = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.BatchNorm2d(4))
    encoder.channels, encoder.stride, encoder.pooled = 4, 8, False
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    classifier = EncoderClassifier(encoder, CLASSES, 32, frozen=True).train()
    optimizer = torch.optim.Adam(w for w in classifier.parameters() if w.requires_grad)
    classifier(images()).sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())


def test_normalised_features_have_no_common_mean_and_one_image_is_no_error() -> None:
    norm = FeatureNorm(5).train()
    found = norm(torch.rand(64, 5) * 3 + 10)
    assert torch.allclose(found.mean(0), torch.zeros(5), atol=1e-4)
    assert torch.allclose(found.std(0), torch.ones(5), atol=0.05)
    before = norm.running_mean.clone()
    assert torch.isfinite(norm(torch.rand(1, 5))).all()
    assert torch.equal(before, norm.running_mean)
    built = build_classifier("B0", CLASSES, 32, 4, normalise=True)
    assert isinstance(built.head[0], FeatureNorm)
