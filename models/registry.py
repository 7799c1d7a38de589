"""The encoders' architectures and their pretraining objectives, by the names they have in YAML.

A new one is a file and a line here (docs/EXTENDING.md). Nothing is imported until it is built, so
that a configuration can be checked without torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """Where an encoder's class is.

    Attributes:
        module, name: of the class; it is built with the settings that its constructor names.
        stride: height and width of an image must be multiples of it.
        any_size: its classifiers take images of several sizes, as they average its maps.
    """

    module: str
    name: str
    stride: int
    any_size: bool = False


ARCHITECTURES = {
    "unet": Architecture("models.autoencoders", "UNetEncoder", 8),
    "dense": Architecture("models.dense", "DenseEncoder", 1),
    "residual": Architecture("models.residual", "ResidualEncoder", 16, any_size=True),
    "transformer": Architecture("models.transformer", "TransformerEncoder", 8, any_size=True),
}

OBJECTIVES = {
    "reconstruction": "models.objectives.reconstruction:Reconstruction",
    "denoising": "models.objectives.denoising:Denoising",
    "variational": "models.objectives.variational:Variational",
    "denoising_variational": "models.objectives.variational:DenoisingVariational",
    "masked": "models.objectives.masked:Masked",
    "instance": "models.objectives.instance:Instance",
    "species": "models.objectives.species:Species",
}


def build_encoder(architecture: str, **settings: Any) -> Any:
    """A new encoder: images ``(B, 3, H, W)`` in [-1, 1] -> maps ``(B, channels, h, w)``.

    Args:
        architecture: one of `ARCHITECTURES`.
        settings: the encoder's section of a configuration, ``image_size`` and the like; what its
            constructor does not name is left out.

    Raises:
        ValueError: a setting out of its range.
    """
    where = ARCHITECTURES[architecture]
    return build(getattr(import_module(where.module), where.name), settings)


def build_objective(objective: str, encoder: Any, **settings: Any) -> Any:
    """What an encoder is pretrained by: see `models.objectives`.

    Args:
        objective: one of `OBJECTIVES`.
        encoder: is trained in place.
        settings: as for `build_encoder`; ``images`` is how many there are to learn from.
    """
    module, _, name = OBJECTIVES[objective].partition(":")
    return build(getattr(import_module(module), name), {"encoder": encoder, **settings})


def build(made: Any, settings: Mapping[str, Any]) -> Any:
    """Call a class with those of the settings that its constructor names."""
    named = inspect.signature(made).parameters
    return made(**{name: value for name, value in settings.items() if name in named})
