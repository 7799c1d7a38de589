"""The moving average: its recurrence, its batch norms, and that nothing trains it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models.averaging import MovingAverage

torch.set_num_threads(1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_the_average_follows_its_recurrence() -> None:
    trained = network()
    average = MovingAverage(copy.deepcopy(trained), decay=0.6)
    expected = {name: value.clone() for name, value in trained.state_dict().items()}
    for step in range(1, 30):
        for weight in trained.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
        trained(torch.randn(8, 3))  # moves the batch norm's statistics
        before = {name: value.clone() for name, value in trained.state_dict().items()}
        average.update(trained, step)
        keep = min(0.6, step / (9 + step))  # 0.1, 0.18, 0.25 ... and 0.6 from step 14
        for name, value in trained.state_dict().items():
            assert torch.equal(value, before[name]), "what is trained is left alone"
            if value.is_floating_point():
                expected[name] = keep * expected[name] + (1 - keep) * value
            else:
                expected[name] = value.clone()
    for name, value in average.network.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert average.network[1].num_batches_tracked == 29


def test_the_given_network_becomes_the_average_and_trains_no_more() -> None:
    given = network()
    average = MovingAverage(given, decay=0.9)
    assert average.network is given
    assert not given.training
    assert not any(weight.requires_grad for weight in given.parameters())


def test_it_outlives_its_object_with_the_networks_weights_alone() -> None:
    trained = network()

    def averages(network_: nn.Module, steps: range) -> dict[str, Tensor]:
        average = MovingAverage(network_, decay=0.99)
        for step in steps:
            torch.manual_seed(step)
            trained[0].weight.data.normal_()
            average.update(trained, step)
        return {name: value.clone() for name, value in network_.state_dict().items()}

    whole = averages(network(), range(1, 9))
    resumed = network()
    resumed.load_state_dict(averages(network(), range(1, 5)))
    assert all(
        torch.equal(value, whole[name]) for name, value in averages(resumed, range(5, 9)).items()
    )


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_makes_no_average_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= decay < 1"):
        MovingAverage(network(), decay)
