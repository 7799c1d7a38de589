"""Species invented at random, to pretrain an encoder on without a single photograph.

What tells photographs of species apart (outlines, colours, markings, in any pose, light and
surroundings) can be learned on drawings before the first label. Learning from images that a program
makes is Kataoka et al. 2020, "Pre-training without Natural Images"
(https://arxiv.org/abs/2101.08515); theirs are fractals.

The species are drawn as `data.demo` draws its own, but in freer poses: as photographs have them,
with wings half open or closed and the body at any angle.

Shapes: S species, E images of each, H pixels a side.
"""

from __future__ import annotations

import colorsys

import numpy as np

from data.drawing import Array, Rng, Stance, draw
from data.species import OUTLINES, Colour, Mark, Outline, Palette, Points, Traits, eye

VERSION = 1  # of what is drawn; another one where a pixel may differ
_KINDS = ("margin", "band", "stripes", "spots", "disc", "tip", "root", "veins")
_SIZES = {
    "margin": (0.04, 0.33), "band": (0.08, 0.3), "stripes": (0.2, 0.6), "spots": (0.015, 0.06),
    "disc": (0.04, 0.15), "tip": (0.25, 0.5), "root": (0.2, 0.5), "veins": (0.006, 0.02),
}  # fmt: skip


def _turn(rng: Rng) -> float:
    """Upright more or less, or at any angle as on a stem."""
    return float(rng.uniform(-1.6, 1.6) if rng.random() < 0.4 else rng.normal(0, 0.5))


def _fold(rng: Rng) -> tuple[float, float]:
    """Both wings flat, one of them raised, or closed so that one side is seen alone."""
    kind = rng.random()
    if kind < 0.4:
        return (1.0, 0.02) if rng.random() < 0.5 else (0.02, 1.0)
    if kind < 0.6:
        return 1.0, float(rng.uniform(0.2, 0.8))
    return float(rng.uniform(0.78, 1)), float(rng.uniform(0.78, 1))


FREE = Stance(_turn, scale=(0.36, 0.72), off=0.08, tilt=0.5, shear=0.12, away=0.12, fold=_fold)


def draw_species(species: int, each: int, size: int, seed: int) -> Array:
    """Images ``(S·E, H, H, 3)`` uint8 of invented species: image i shows species i // E.

    The same arguments give the same pixels, and fewer species or images the same first ones.
    About 11 ms an image of 64 pixels.

    Args:
        species, each: S and E.
        size: H.
        seed: at least 0.
    """
    images = np.empty((species * each, size, size, 3), np.uint8)
    for number in range(species):
        traits = invent(np.random.default_rng([seed, number]))
        for i in range(each):
            rng = np.random.default_rng([seed, number, i])
            images[number * each + i] = np.asarray(draw(traits, FREE, rng, size))
    return images


def invent(rng: Rng) -> Traits:
    """A species: an outline like one of the known ones, any palette, two to six markings."""
    outline = _outline(OUTLINES[list(OUTLINES)[rng.integers(len(OUTLINES))]], rng)
    palette = Palette(
        ground=_colour(rng),
        second=_colour(rng),
        dark=_colour(rng, (0.05, 0.25)),
        light=_colour(rng, (0.85, 1.0)),
        accent=_colour(rng),
    )
    markings = [mark for _ in range(rng.integers(2, 7)) for mark in _marking(rng)]
    return Traits(outline, palette, tuple(markings))


def _outline(like: Outline, rng: Rng) -> Outline:
    wide, high = np.exp(rng.normal(0, 0.1, 2))

    def bent(points: Points) -> Points:
        by = np.exp(rng.normal(0, 0.03, (len(points), 2))) * (wide, high)
        return tuple(
            (x * float(a), y * float(b)) for (x, y), (a, b) in zip(points, by, strict=True)
        )

    scallop, tail = abs(rng.normal(0, 0.05)), rng.choice([0, 0, 0.1, 0.2, 0.42])
    return Outline(bent(like.fore), bent(like.hind), float(scallop), float(tail))


def _colour(rng: Rng, bright: tuple[float, float] | None = None) -> Colour:
    """Warm more often than not, some nearly grey; as bright as is asked for, or as it comes."""
    hue, rich = rng.random(), rng.beta(2, 1.5)
    value = rng.beta(2.5, 1) if bright is None else rng.uniform(*bright)
    if rng.random() < 0.6:
        hue = rng.normal(0.08, 0.04) % 1
    if rng.random() < 0.2:
        rich *= 0.2
    r, g, b = (int(255 * c) for c in colorsys.hsv_to_rgb(hue, rich, value))
    return r, g, b


def _marking(rng: Rng) -> tuple[Mark, ...]:
    """A marking; half of the discs are eyes, which are several."""
    kind = _KINDS[rng.integers(len(_KINDS))]
    wing = ("fore", "hind", "both")[rng.choice(3, p=(0.3, 0.3, 0.4))]
    colour = ("second", "dark", "light", "accent")[rng.choice(4, p=(0.25, 0.35, 0.25, 0.15))]
    size, along = float(rng.uniform(*_SIZES[kind])), float(rng.uniform(0.3, 0.95))
    count, across = int(rng.integers(2, 10)), float(rng.uniform(0.15, 0.85))
    if kind == "disc" and rng.random() < 0.5:
        return eye(wing, size, along, across)
    return (Mark(kind, wing, colour, size, along, count, across),)
