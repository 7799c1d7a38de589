"""What encoders are pretrained by, one file each.

An objective is a module that holds the `encoder` and whatever it trains beside it, which is
thrown away. `loss` is what a training step minimises, `valid_loss` what the best epoch is chosen
by; both are means over a batch. `progress` is the share of the epochs that have passed, in [0, 1].
"""

from __future__ import annotations

from torch import Tensor, nn


class Objective(nn.Module):
    """What all of them have.

    Args:
        encoder: images ``(B, 3, H, W)`` in [-1, 1] -> maps ``(B, C, h, w)``. It is trained, not
            copied.
    """

    encoder: nn.Module
    progress: float = 0.0
    gives_back: bool = False
    """Whether it is trained to give whole images back. Then calling it does so, and it has an
    `autoencoder`, whose `pictures` are pixel values, and a `target`."""

    def loss(self, images: Tensor, rows: Tensor) -> Tensor:
        """The loss of a training step.

        Args:
            images: ``(B, 3, H, W)`` in [-1, 1].
            rows: ``(B,)`` int64, which of the training images they are, from 0; of drawn ones,
                which of all that were drawn.
        """
        raise NotImplementedError

    def valid_loss(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """The loss of images that were not trained on, in evaluation mode.

        Args:
            images: as of `loss`.
            rows: of drawn images, which of all that were drawn; else without meaning.
        """
        raise NotImplementedError
