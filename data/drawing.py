"""How a butterfly is drawn: its wings, its body, where it sits, and the photograph of it.

A wing is a field, not a polygon: every pixel is carried back to the wing's own polar
coordinates about its hinge. There a marking is a short formula, and follows the outline.

Shapes: S is the side of the canvas (twice the image's, for smooth edges), N the pixels on a
wing. Lengths on a butterfly are in units of about half its wing span; x points right, y down.
No matrix product is used, so that no BLAS threads start.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from data.species import FLOWERS, SCENES, Colour, Mark, Outline, Palette, Points, Scene, Traits

Array = NDArray[Any]
Rng = np.random.Generator


# --- Markings: formulas in a wing's own coordinates --------------------------------------------

_CELLS = 7  # between the veins of a wing


@dataclass(frozen=True)
class Wing:
    """The pixels of one pair of wings, left and right at once; arrays of shape (N,)."""

    r: Array
    angle: Array
    edge: Array  # r of the outer edge in this direction, without bays and tail
    along: Array  # 0 at the hinge, 1 at that edge, more on a tail
    across: Array  # 0 at the front edge, 1 at the inner edge
    start: float  # angle of the front edge
    spread: float  # angle from there to the inner edge
    soft: float  # length of a pixel
    individual: Array  # (16,), about 1: the sizes of this animal's spots

    def cover(self, inside: Array) -> Array:
        """1 inside, 0 outside, over one pixel a ramp; of a signed distance from an edge."""
        return np.clip(inside / self.soft + 0.5, 0, 1)

    def waves(self) -> Array:
        return np.cos(2 * np.pi * _CELLS * self.across)


def _margin(wing: Wing, mark: Mark) -> Array:
    return wing.cover((wing.along - 1 + mark.size * (1 + 0.16 * wing.waves())) * wing.edge)


def _band(wing: Wing, mark: Mark) -> Array:
    distance = np.abs(wing.along - mark.along + 0.012 * wing.waves())
    return wing.cover((mark.size / 2 - distance) * wing.edge)


def _stripes(wing: Wing, mark: Mark) -> Array:
    phase = wing.along * mark.count + 0.5 * np.sin(3 * wing.across)
    distance = np.abs(phase % 1 - 0.5) * (0.9 + 0.5 * wing.across)
    return wing.cover((mark.size / 2 - distance) / mark.count)


def _spots(wing: Wing, mark: Mark) -> Array:
    place = wing.across / 0.9 * mark.count  # none along the inner edge
    cell = np.minimum(place.astype(np.intp), mark.count - 1)
    sideways = (place - cell - 0.5) * 0.9 / mark.count * wing.spread * wing.r
    distance = np.hypot(wing.r - mark.along * wing.edge, sideways)
    return wing.cover(mark.size * wing.individual[cell] - distance)


def _disc(wing: Wing, mark: Mark) -> Array:
    reach = mark.along * wing.edge[np.argmin(np.abs(wing.across - mark.across))]
    turn = wing.angle - wing.start - mark.across * wing.spread
    distance = np.hypot(wing.r * np.cos(turn) - reach, wing.r * np.sin(turn))
    return wing.cover(mark.size * wing.individual[0] - distance)


def _tip(wing: Wing, mark: Mark) -> Array:
    height = wing.r * np.cos(wing.angle + 0.76)  # towards the apex
    return wing.cover(height - height.max() * (1 - mark.size) + 0.02 * wing.waves())


def _root(wing: Wing, mark: Mark) -> Array:
    return np.clip(1.3 - wing.along / mark.size, 0, 1) * 0.85


def _veins(wing: Wing, mark: Mark) -> Array:
    bent = wing.across * _CELLS + 0.35 * (1 - wing.along)
    branch = np.abs(bent - np.round(bent)) / _CELLS * wing.spread * wing.r
    cell = np.hypot((wing.along - 0.3) / 0.24, (wing.across - 0.42) / 0.26)  # the discal cell
    distance = np.minimum(np.where(cell > 1, branch, 1), np.abs(cell - 1) * 0.18)
    return wing.cover(mark.size - distance) * 0.85


PAINTERS: dict[str, Callable[[Wing, Mark], Array]] = {
    "margin": _margin, "band": _band, "stripes": _stripes, "spots": _spots,
    "disc": _disc, "tip": _tip, "root": _root, "veins": _veins,
}  # fmt: skip


# --- One animal: its pose, wings and body ------------------------------------------------------

_DIRECTIONS = 8192  # in which an outline's radius is tabulated, over [-pi, pi)


@dataclass(frozen=True)
class Stance:
    """How freely a butterfly lies in the image.

    Attributes:
        turn: draws the angle of its body from upright, in radians.
        scale: half its wing span over the side of the image, least and most.
        off: how far from the middle its body lies, at most, as a share of the side.
        tilt: the least of its length that is seen; 1 is all.
        shear, away: standard deviations of shear and of perspective.
        fold: draws how far right and left wings are seen: 1 spread flat, near 0 edge on.
    """

    turn: Callable[[Rng], float]
    scale: tuple[float, float]
    off: float
    tilt: float
    shear: float
    away: float
    fold: Callable[[Rng], tuple[float, float]]


@dataclass(frozen=True)
class Animal:
    """How this butterfly differs from others of its species, and how it lies in the image."""

    forward: Array  # (3, 3), butterfly's plane to pixels
    x: Array  # (S, S), every pixel in the butterfly's plane
    y: Array
    soft: float  # length of a pixel there
    fold: tuple[float, float]  # right and left wings: 1 spread flat, less where raised
    sweep: float  # how far the fore wings are pulled forward, in radians
    wear: float  # 0 fresh to 1 worn
    bold: float  # size of its markings, about 1
    palette: dict[str, Array]  # (3,), 0 to 1


def _pose(stance: Stance, rng: Rng, side: int) -> tuple[Array, Array, Array, float]:
    """A homography from the butterfly's plane to pixels, its inverse at every pixel, 1/scale."""
    turn = stance.turn(rng)
    scale, off = side * rng.uniform(*stance.scale), stance.off
    centre = side * (0.5 + rng.uniform(-off, off, 2))
    tilt, shear = rng.uniform(stance.tilt, 1.0), rng.normal(0, stance.shear)
    away = rng.normal(0, stance.away, 2)
    c, s = np.cos(turn), np.sin(turn)
    rows = np.empty((3, 3))
    rows[:2, :2] = scale * np.array([[c, shear * c - tilt * s], [s, shear * s + tilt * c]])
    rows[:2, :2] += centre[:, None] * away
    rows[:2, 2], rows[2] = centre, (*away, 1)
    columns = np.stack([np.cross(rows[i - 2], rows[i - 1]) for i in range(3)]).astype(np.float32)
    right, down, constant = columns[:, :, None, None]  # of the inverse, up to a factor
    grid = (np.arange(side) + 0.5).astype(np.float32)
    x, y, w = right * grid + down * grid[:, None] + constant
    return rows, x / w, y / w, 1 / scale


def _tint(palette: Palette, rng: Rng, wear: float) -> dict[str, Array]:
    """The palette in this animal's own shade: another hue, paler where worn."""
    turn, rich, bright = rng.normal(0, 0.022), rng.uniform(0.75, 1.1), rng.uniform(0.8, 1.1)
    tinted = {}
    for name, colour in vars(palette).items():
        h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
        s, v = min(s * rich * (1 - 0.35 * wear), 1), min(v * bright, 1)
        rgb = np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v), np.float32)
        tinted[name] = rgb + np.float32(0.16 * wear) * (np.float32(0.6) - rgb)
    return tinted


def _animal(traits: Traits, stance: Stance, rng: Rng, side: int) -> Animal:
    pose, wear = _pose(stance, rng, side), float(rng.beta(1.3, 2.5))
    fold = stance.fold(rng)
    palette = _tint(traits.palette, rng, wear)
    return Animal(*pose, fold, rng.normal(0, 0.07), wear, np.exp(rng.normal(0, 0.12)), palette)


@functools.cache
def _radius(points: Points) -> tuple[Array, float, float]:
    """Radius by direction, 0 outside the wing, and the directions of its two edges."""
    knots = np.array([points[-1], (0, 0), *points, (0, 0), points[0]])
    t = np.linspace(0, 1, 24, endpoint=False)[:, None, None]
    a, b, c, d = (knots[i : len(knots) - 3 + i] for i in range(4))
    curve: Array = b + (c - a) * t / 2 + (a - 2.5 * b + 2 * c - d / 2) * t**2
    curve = curve + (3 * b - a - 3 * c + d) * t**3 / 2  # Catmull–Rom, (24, knots, 2)
    x, y = curve.transpose(1, 0, 2).reshape(-1, 2)[24:-24].T
    angle = np.maximum.accumulate(np.arctan2(y, x))
    grid = np.linspace(-np.pi, np.pi, _DIRECTIONS, endpoint=False)
    radius = np.interp(grid, angle, np.hypot(x, y), left=0, right=0).astype(np.float32)
    return radius, float(angle[0]), float(angle[-1])


def _rims(outline: Outline, hind: bool, wear: float, rng: Rng) -> Array:
    """Radius by direction with bays, tail and torn notches, right and left: (2, 8192)."""
    radius, start, end = _radius(outline.hind if hind else outline.fore)
    angle = np.linspace(-np.pi, np.pi, _DIRECTIONS, endpoint=False)
    across = np.clip((angle - start) / (end - start), 0, 1)
    depth = outline.scallop if hind else outline.scallop / 2
    rim = radius * (1 - depth * np.abs(np.sin(np.pi * _CELLS * across)) ** 1.5)
    if hind:
        rim += outline.tail * np.exp(-(np.abs((angle - 1.02) / 0.07) ** 1.4)) * (radius > 0)
    rims = np.stack([rim, rim])
    for _ in range(rng.poisson(4 * wear)):
        at, width = rng.uniform(start, end), rng.uniform(0.03, 0.09)
        notch = np.clip(1 - np.abs(angle - at) / width, 0, 1)
        rims[rng.integers(2)] *= 1 - rng.uniform(0.06, 0.3) * notch
    return rims.astype(np.float32)


def _wings(animal: Animal, outline: Outline, hind: bool, rng: Rng) -> tuple[Wing, Array, Array]:
    """A pair of wings, the flat indices of its N pixels, and r / rim of every pixel, (S, S)."""
    left = (animal.x < 0).astype(np.intp)
    x = np.abs(animal.x) / np.array(animal.fold, np.float32)[left] - np.float32(0.03)
    y = animal.y - np.float32(0.08 if hind else -0.06)
    r, angle = np.hypot(x, y), np.arctan2(y, x) + np.float32(0 if hind else animal.sweep)
    index = ((angle + np.pi) * (_DIRECTIONS / (2 * np.pi))).astype(np.intp) % _DIRECTIONS
    out = r / np.maximum(_rims(outline, hind, animal.wear, rng)[left, index], np.float32(1e-3))
    pixels = np.flatnonzero(out < 1)
    radius, start, end = _radius(outline.hind if hind else outline.fore)
    r, angle, edge = r.flat[pixels], angle.flat[pixels], radius[index.flat[pixels]]
    shift = np.float32(np.exp(rng.normal(0, 0.1)))  # of the markings, to the root or to the edge
    along = (r / np.maximum(edge, np.float32(1e-3))) ** shift
    across = np.clip((angle - np.float32(start)) / np.float32(end - start), 0, 1)
    individual = np.exp(rng.normal(0, 0.13, 16)).astype(np.float32)
    wing = Wing(r, angle, edge, along, across, start, end - start, animal.soft, individual)
    return wing, pixels, out


def _wing_colours(animal: Animal, wing: Wing, markings: Iterable[Mark], which: str) -> Array:
    """(N, 3): the ground colour, paler outwards, the markings on it, pleats between the veins."""
    palette = animal.palette
    paler = 0.18 * np.clip(wing.along, 0, 1)[:, None] ** 2
    colours = palette["ground"] + paler * (palette["second"] - palette["ground"])
    for mark in markings:
        if mark.wing in (which, "both"):
            cover = PAINTERS[mark.kind](wing, replace(mark, size=mark.size * animal.bold))
            colours += cover[:, None] * (palette[mark.colour] - colours)
    return colours * (0.94 + 0.06 * wing.waves() * np.clip(wing.along, 0, 1))[:, None]


def _paint_wings(canvas: Array, animal: Animal, traits: Traits, rng: Rng) -> None:
    outline, flat = traits.outline, canvas.reshape(-1, 3)
    hind, hind_pixels, _ = _wings(animal, outline, True, rng)
    fore, fore_pixels, out = _wings(animal, outline, False, rng)
    light: Array = rng.uniform(0.75, 1.05, 2).astype(np.float32)[(animal.x < 0).astype(np.intp)]
    light = (light * (1 + animal.wear * 0.3 * _clouds(rng, 9, len(canvas)))).reshape(-1, 1)
    shadow = np.clip(0.62 + 3 * (out.flat[hind_pixels] - 1), 0.62, 1)[:, None]  # the fore wings'
    colours = _wing_colours(animal, hind, traits.markings, "hind") * shadow
    flat[hind_pixels] = colours * light[hind_pixels]
    flat[fore_pixels] = _wing_colours(animal, fore, traits.markings, "fore") * light[fore_pixels]


_BODY = ((0.22, 0.3, 0.05, 9), (-0.05, 0.16, 0.075, 0), (-0.23, 0.06, 0.055, 0))


def _paint_body(canvas: Array, animal: Animal, rng: Rng) -> None:
    """Abdomen, thorax and head: furry ellipses, lit along the back."""
    bend, fur = rng.normal(0, 0.12), 0.25 * _clouds(rng, 48, len(canvas))
    colour = 0.7 * animal.palette["dark"] + 0.3 * animal.palette["ground"]
    middle = animal.x - np.float32(bend) * np.maximum(animal.y, 0) ** 2
    for at, length, width, rings in _BODY:
        across, along = middle / width, (animal.y - at) / length
        inside = np.flatnonzero(across**2 + along**2 + fur < 1)
        shade = 1.25 - 0.7 * np.abs(across.flat[inside] + 0.25) + fur.flat[inside]
        shade = shade * (1 - 0.2 * np.cos(rings * 2 * along.flat[inside]) * (rings > 0))
        canvas.reshape(-1, 3)[inside] = colour * shade[:, None]


def _feelers(image: Image.Image, animal: Animal, rng: Rng) -> None:
    draw, colour = ImageDraw.Draw(image), _rgb(animal.palette["dark"] * 0.8)
    t = np.linspace(0, 1, 9)
    for direction in (-1, 1):
        x = direction * (0.02 + rng.uniform(0.2, 0.34) * t**1.4)
        y = -0.26 - rng.uniform(0.36, 0.46) * t
        px, py, w = (row[0] * x + row[1] * y + row[2] for row in animal.forward)
        points = list(zip(px / w, py / w, strict=True))
        draw.line(points, fill=colour, width=max(1, round(0.013 / animal.soft)), joint="curve")
        _dot(draw, np.array(points[-1]), 0.024 / animal.soft, colour)


# --- The scene: background, perch, what lies in front, light, camera ---------------------------


def _rgb(colour: Array) -> Colour:
    """From 0..1 to 0..255."""
    r, g, b = (int(c) for c in np.clip(colour * 255, 0, 255))
    return r, g, b


def _vary(rng: Rng, colour: Colour, spread: float = 0.18) -> Colour:
    factor = np.exp(rng.normal(0, spread) + rng.normal(0, spread / 3, 3))
    return _rgb(np.array(colour) / 255 * factor)


def _any_of(rng: Rng, colours: Scene, spread: float = 0.18) -> Colour:
    return _vary(rng, colours[rng.integers(len(colours))], spread)


def _dot(draw: ImageDraw.ImageDraw, at: Array, radius: float, colour: Colour) -> None:
    draw.ellipse([at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius], fill=colour)


def _clouds(rng: Rng, cells: int, side: int) -> Array:
    """Smooth noise, (side, side), about -1 to 1."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def _toward(angle: float) -> Array:
    return np.array([np.cos(angle), np.sin(angle)])


def _leaf(draw: ImageDraw.ImageDraw, rng: Rng, at: Array, angle: float,
          length: float, width: float, colour: Colour) -> None:  # fmt: skip
    """A leaf from ``at`` on, with midrib and side veins; where it is narrow, a blade or petal."""
    t = np.linspace(0, 1, 14)[:, None]
    ahead, aside = _toward(angle), _toward(angle + np.pi / 2)
    rib = at + length * (t * ahead + rng.normal(0, 0.12) * t**2 * aside)
    half = width * np.sin(np.pi * t**0.8) * (1 - 0.25 * t) * aside
    dark, light = (_rgb(np.array(colour) / 255 * factor) for factor in (0.8, 1.25))
    for edge, fill in ((rib + half, colour), (rib - half, dark)):
        draw.polygon([*map(tuple, edge), *map(tuple, rib[::-1])], fill=fill)
        for i in range(2, 11, 2) if width > 0.12 * length else ():
            draw.line([tuple(rib[i]), tuple(0.15 * rib[i] + 0.85 * edge[i + 2])], fill=light)
    draw.line([*map(tuple, rib)], fill=light, width=max(1, round(length / 90)))


def _flower(draw: ImageDraw.ImageDraw, rng: Rng, at: Array, size: float) -> None:
    colour, count, turn = _any_of(rng, FLOWERS), int(rng.integers(6, 15)), rng.uniform(0, 7)
    for k in range(count):
        petal = _vary(rng, colour, 0.06)
        _leaf(draw, rng, at, turn + 2 * np.pi * k / count, size, size * 1.7 / count, petal)
    _dot(draw, at, size * 0.28, _vary(rng, (196, 140, 30)))


def _plants(image: Image.Image, rng: Rng, scene: Scene, count: int) -> None:
    """Leaves, flowers, and in half of the images grass, strewn over the image."""
    draw, side, grassy = ImageDraw.Draw(image), image.width, rng.random() < 0.5
    for _ in range(count):
        at, length = side * rng.uniform(-0.1, 1.1, 2), side * rng.uniform(0.2, 0.5)
        kind, colour = rng.random(), _any_of(rng, scene)
        if kind < 0.2:
            _flower(draw, rng, at, length / 3)
        elif kind < 0.6 and grassy:
            at[1] = side * rng.uniform(0.8, 1.2)
            _leaf(draw, rng, at, rng.normal(-1.57, 0.3), 2 * length, side * 0.016, colour)
        else:
            width = length * rng.uniform(0.1, 0.22)
            _leaf(draw, rng, at, rng.uniform(0, 6.3), length, width, colour)


def _perch(image: Image.Image, rng: Rng, scene: Scene) -> None:
    """A flower or a large leaf under the butterfly."""
    draw, side, angle = ImageDraw.Draw(image), image.width, rng.uniform(0, 6.3)
    at = side * rng.uniform(0.4, 0.6, 2)
    if rng.random() < 0.5:
        _flower(draw, rng, at, side * rng.uniform(0.2, 0.4))
        return
    length = side * rng.uniform(0.6, 1.0)
    start = at - 0.5 * length * _toward(angle)
    _leaf(draw, rng, start, angle, length, length * rng.uniform(0.14, 0.24), _any_of(rng, scene))


def _backdrop(rng: Rng, side: int, scene: Scene) -> Image.Image:
    """A blurred distance with discs of light, plants before it, and a perch nearly in focus."""
    small = side // 4
    patches = np.array([_any_of(rng, scene, 0.3) for _ in range(25)], np.uint8).reshape(5, 5, 3)
    distance = Image.fromarray(patches).resize((small, small), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(distance)
    for _ in range(rng.integers(0, 14)):
        at = small * rng.uniform(0, 1, 2)
        _dot(draw, at, small * rng.uniform(0.02, 0.1), _any_of(rng, scene, 0.5))
    distance = distance.filter(ImageFilter.GaussianBlur(side / 160))
    image = distance.resize((side, side), Image.Resampling.BICUBIC)
    _plants(image, rng, scene, int(rng.integers(0, 16)))
    image = image.filter(ImageFilter.GaussianBlur(side * rng.uniform(0.01, 0.03)))
    _plants(image, rng, scene, int(rng.integers(0, 4)))
    if rng.random() < 0.75:
        _perch(image, rng, scene)
    return image.filter(ImageFilter.GaussianBlur(side * rng.uniform(0.002, 0.009)))


def _shade(image: Image.Image, animal: Animal, rng: Rng) -> Array:
    """The backdrop as (S, S, 3) in 0..1, with the butterfly's soft shadow on it."""
    side, shift = image.width, rng.uniform(-0.08, 0.08, 2)
    wings = np.hypot(np.abs(animal.x) - 0.42, animal.y * 0.8) < 0.42
    shadow = Image.fromarray((wings * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(side / 20))
    dark = np.roll(np.asarray(shadow), (side * shift).astype(int), (0, 1))[:, :, None]
    light = 1 - dark * np.float32(rng.uniform(0.2, 0.6) / 255)
    return np.asarray(image) * light / np.float32(255)


def _occlude(image: Image.Image, rng: Rng, scene: Scene) -> Image.Image:
    """Blades and leaves between the camera and the butterfly, out of focus."""
    side, front = image.width, image.copy()
    for _ in range(rng.choice(4, p=(0.4, 0.3, 0.2, 0.1))):
        angle, length = rng.uniform(0, 6.3), side * rng.uniform(0.4, 0.9)
        at = side * (rng.uniform(0, 1, 2) - _toward(angle) * rng.uniform(0.3, 0.7))
        width = length * (rng.uniform(0.01, 0.04) * rng.choice((1, 4)))
        _leaf(ImageDraw.Draw(front), rng, at, angle, length, width, _any_of(rng, scene, 0.3))
    covered = (np.asarray(front) != np.asarray(image)).any(-1)
    blur = ImageFilter.GaussianBlur(side * rng.uniform(0.002, 0.012))
    mask = Image.fromarray((covered * 255).astype(np.uint8))
    return Image.composite(front.filter(blur), image, mask.filter(blur))


def _photograph(image: Image.Image, rng: Rng, size: int) -> Image.Image:
    """Focus, light and sensor: blur, gradient, dapples, exposure, white balance, noise."""
    image = image.filter(ImageFilter.GaussianBlur(size * rng.gamma(0.8, 0.007)))
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX)) / np.float32(255)
    across, slope = np.linspace(-1, 1, size), rng.normal(0, 0.12, 2)
    clouds = _clouds(rng, int(rng.integers(3, 8)), size)
    dapples = rng.uniform(0, 0.3) * np.clip(4 * clouds + rng.uniform(-2, 2), -1, 1)
    light = (1 + slope[0] * across + slope[1] * across[:, None]) * (1 + dapples)
    exposure = rng.uniform(0.8, 1.3) * np.exp(rng.normal(0, 0.04, 3))
    pixels = (pixels * light[:, :, None] * exposure).clip(0, 1.5) ** np.exp(rng.normal(-0.05, 0.12))
    pixels = pixels + rng.normal(0, rng.uniform(0.005, 0.025), pixels.shape)
    return Image.fromarray((pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def draw(traits: Traits, stance: Stance, rng: Rng, size: int) -> Image.Image:
    """One butterfly of a species in its surroundings, an RGB image of size × size pixels."""
    scene = SCENES[rng.integers(len(SCENES))]
    backdrop = _backdrop(rng, 2 * size, scene)
    animal = _animal(traits, stance, rng, 2 * size)
    canvas = _shade(backdrop, animal, rng)
    _paint_wings(canvas, animal, traits, rng)
    _paint_body(canvas, animal, rng)
    image = Image.fromarray((canvas.clip(0, 1) * 255).astype(np.uint8))
    _feelers(image, animal, rng)
    return _photograph(_occlude(image, rng, scene), rng, size)
