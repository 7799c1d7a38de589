"""A moving average of a network's weights: steadier than the weights of any one step."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """An exponential moving average, as the teacher of Tarvainen and Valpola 2017 is one.

    https://arxiv.org/abs/1703.01780. It has no state but the network's: a checkpoint that holds
    the network's weights holds it all.

    Args:
        network: becomes the average, in place: in evaluation mode, without gradients.
            (`torch.optim.swa_utils.AveragedModel` makes a copy of its own, under other names.)
        decay: how much of the average a step keeps, in [0, 1).

    Raises:
        ValueError: ``decay`` outside [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay {decay}: expected 0 <= decay < 1")
        self.network = network.eval().requires_grad_(False)
        self.decay = decay

    def update(self, trained: nn.Module, step: int) -> None:
        """Take in the weights after a step; statistics of batch norms are averaged as well.

        Args:
            trained: of the same architecture; is not changed.
            step: counted from 1. Early steps keep less, step / (9 + step) at most, or the
                random weights of the start would be with us for long.
        """
        keep = min(self.decay, step / (9 + step))
        pairs = zip(self.network.state_dict().values(), trained.state_dict().values(), strict=True)
        averaged, current = [], []
        for mean, value in pairs:
            if mean.is_floating_point():
                averaged.append(mean)
                current.append(value)
            else:  # a count of batches
                mean.copy_(value)
        get_ema_multi_avg_fn(keep)(averaged, current, step)
