"""Variational autoencoders, plain and denoising: the latent is a Gaussian instead of a point.

Kingma & Welling, "Auto-encoding variational Bayes", ICLR 2014; with noise on the input, Im et
al., "Denoising criterion for variational auto-encoding framework", AAAI 2017.

Shapes: B images of 3 × H × W, encoder's maps and latent (B, C, h, w). Sizes in nats per image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.autoencoders import autoencoder_of
from models.noise import require_shares, salt_and_pepper
from models.normalisation import BatchNorm2d
from models.objectives import Objective

BOUND = 10.0  # of log variances: they come near it, and keep a gradient
GAIN = 0.1  # standard deviation of the latent's means before any training
MOMENTUM = 0.5  # of what is known of the means: few images make few steps
SCALE_SPEED = 10.0  # a step of Adam moves the log of the scale so many times its own length


class Variational(Objective):
    """The negative evidence lower bound (ELBO).

    From the encoder's maps two 1×1 convolutions give mean and log variance of the latent, whose
    prior is a standard normal; both are thrown away with the decoder, so that the encoder that is
    kept is the same network as every other objective's. The means are normalised over the batch,
    without a shift (after Zhu et al., "A batch normalized inference network keeps the KL vanishing
    away", ACL 2020): in a short training they lie far from the prior otherwise, and what is drawn
    from it looks like no image. The decoder gives the mean of a normal
    distribution of every target value, with one learned scale for all (Rybkin et al., "Simple and
    effective VAE training with calibrated decoders", ICML 2021).

    The KL divergence counts in full in `valid_loss`; in `loss` its weight rises from 0 to 1 over
    the first epochs (Bowman et al. 2016), so that the latent is used before it is priced.

    Args:
        encoder: see `Objective`. A U-Net gets a decoder without skips: they would carry the image
            past the latent.
        kl_warmup: share of the epochs in which the weight rises, in [0, 1]; 0: it is always 1.

    Raises:
        ValueError: ``kl_warmup`` out of its range.
    """

    gives_back = True

    def __init__(self, encoder: nn.Module, kl_warmup: float = 0.2):
        super().__init__()
        if not 0.0 <= kl_warmup <= 1.0:
            raise ValueError(f"kl_warmup {kl_warmup}: expected a share in [0, 1]")
        self.kl_warmup = kl_warmup
        self.autoencoder = autoencoder_of(encoder, "none")
        channels: int = encoder.channels  # type: ignore[assignment]
        self.mean = nn.Conv2d(channels, channels, 1, bias=False)
        self.centre = BatchNorm2d(channels, momentum=MOMENTUM, affine=False)
        self.gain = nn.Parameter(torch.full((channels, 1, 1), GAIN))
        self.log_variance = nn.Conv2d(channels, channels, 1)
        self.slow_log_scale = nn.Parameter(torch.tensor(-1.0 / SCALE_SPEED))

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        return self.autoencoder.encoder

    @property
    def kl_weight(self) -> float:
        """Of the epoch that runs, in [0, 1]."""
        return min(1.0, self.progress / self.kl_warmup) if self.kl_warmup else 1.0

    @property
    def log_scale(self) -> Tensor:
        """The log of the likelihood's standard deviation, a scalar."""
        return SCALE_SPEED * self.slow_log_scale

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent, both ``(B, C, h, w)`` float32."""
        maps = self.encoder(images)
        log_variance = self.log_variance(maps).float()
        mean = self.gain * self.centre(self.mean(maps).float())
        return mean, BOUND * torch.tanh(log_variance / BOUND)

    def forward(self, images: Tensor) -> Tensor:
        """The images given back from the mean of the latent, ``(B, ...)`` as `target` has them."""
        return self.autoencoder.decode(self.posterior(images)[0])

    def target(self, images: Tensor) -> Tensor:
        """What the output is compared with."""
        return self.autoencoder.target(images)

    def shown(self, images: Tensor) -> Tensor:
        """What the encoder sees of the images in training and validation."""
        return images

    def loss(self, images: Tensor, rows: Tensor) -> Tensor:
        likelihood, divergence = self.evidence(self.shown(images), images)
        return (self.kl_weight * divergence - likelihood).mean()

    def valid_loss(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        likelihood, divergence = self.evidence(self.shown(images), images)
        return (divergence - likelihood).mean()

    def evidence(self, shown: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of the ELBO: the first less the second. Draws one latent of each image.

        Args:
            shown: what the encoder sees, ``(B, 3, H, W)`` in [-1, 1].
            wanted: what is to be given back, likewise.

        Returns:
            The log likelihood of the wanted images, and the KL divergence of the latent from its
            prior: both ``(B,)``, nats per image.
        """
        mean, log_variance = self.posterior(shown)
        output = self.autoencoder.decode(draw(mean, log_variance))
        likelihood = log_likelihood(self.target(wanted), output, self.log_scale)
        return likelihood, kl_divergence(mean, log_variance)

    def sample(self, count: int, image_size: int, random: torch.Generator | None = None) -> Tensor:
        """New images from the prior: means of the likelihood, ``(count, ...)`` as `target`.

        Args:
            image_size: H = W in pixels, a multiple of the encoder's stride.
            random: on the weights' device; None: the global generator.
        """
        side = image_size // int(self.encoder.stride)  # type: ignore[arg-type]
        weights = self.mean.weight
        size = (count, weights.shape[0], side, side)
        return self.autoencoder.decode(torch.randn(size, device=weights.device, generator=random))


class DenoisingVariational(Variational):
    """The same of a clean image whose latent comes from a noisy one.

    Args:
        encoder, kl_warmup: as `Variational`.
        salt, pepper: shares of the pixels that become white and black, in [0, 1], together at
            most 1; fresh in every step.

    Raises:
        ValueError: shares out of their range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        salt: float = 0.1,
        pepper: float = 0.1,
        kl_warmup: float = 0.2,
    ):
        super().__init__(encoder, kl_warmup)
        require_shares(salt, pepper)
        self.salt, self.pepper = salt, pepper

    def shown(self, images: Tensor) -> Tensor:
        return salt_and_pepper(images, self.salt, self.pepper)


def draw(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A value of each normal distribution that gradients pass through (reparameterisation)."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of diagonal normals from standard ones: ``(B, ...)`` -> ``(B,)``, nats per image."""
    each = mean.square() + log_variance.exp() - 1 - log_variance
    return 0.5 * each.flatten(1).sum(1)


def log_likelihood(values: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Of values under normals of one scale: ``(B, ...)`` -> ``(B,)``, nats per image."""
    errors = (values.float() - mean.float()) / log_scale.exp()
    each = -0.5 * errors.square() - log_scale - 0.5 * math.log(2 * math.pi)
    return each.flatten(1).sum(1)
