"""The twenty invented species: `TABLE`, a row each, and what its names stand for.

Lengths are in units of about half a butterfly's wing span; x points right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[int, int, int]  # 0 to 255
Points = tuple[tuple[float, float], ...]
Scene = tuple[Colour, ...]


@dataclass(frozen=True)
class Outline:
    """The edges of a fore and a hind wing, from the hinge along the front edge and round."""

    fore: Points
    hind: Points
    scallop: float  # depth of the bays between the veins, as a share of the radius
    tail: float  # length of the hind wing's tail


@dataclass(frozen=True)
class Palette:
    ground: Colour
    second: Colour
    dark: Colour
    light: Colour
    accent: Colour


@dataclass(frozen=True)
class Mark:
    """A marking: what it is, on which wing, in which of the palette's colours, and where.

    ``along`` runs from the hinge (0) to the outer edge (1) of the wing, ``across`` from its
    front edge (0) to its inner edge (1).
    """

    kind: str
    wing: str  # fore, hind or both
    colour: str
    size: float
    along: float = 0.0
    count: int = 0
    across: float = 0.0


@dataclass(frozen=True)
class Species:
    name: str
    outline: str
    palette: str
    markings: str


@dataclass(frozen=True)
class Traits:
    """What a species looks like."""

    outline: Outline
    palette: Palette
    markings: tuple[Mark, ...]


def traits_of(species: Species) -> Traits:
    """What the names of a row stand for."""
    names = species.outline, species.palette, species.markings
    return Traits(OUTLINES[names[0]], PALETTES[names[1]], MARKINGS[names[2]])


def eye(wing: str, size: float, along: float, across: float) -> tuple[Mark, ...]:
    rings = (("light", 1.0), ("dark", 0.84), ("accent", 0.6), ("dark", 0.34), ("light", 0.15))
    return tuple(Mark("disc", wing, c, size * part, along, across=across) for c, part in rings)


# fmt: off
_FULL = ((0, -0.06), (0.34, -0.16), (0.6, -0.1), (0.73, 0.1), (0.69, 0.36), (0.53, 0.58),
         (0.33, 0.69), (0.17, 0.62), (0.05, 0.32))
_SMALL = ((0, -0.05), (0.34, -0.12), (0.62, -0.06), (0.74, 0.08), (0.66, 0.26), (0.48, 0.4),
          (0.28, 0.46), (0.14, 0.4), (0.05, 0.22))
_NARROW = ((0, -0.06), (0.3, -0.14), (0.54, -0.08), (0.64, 0.1), (0.62, 0.34), (0.5, 0.56),
           (0.32, 0.66), (0.16, 0.56), (0.05, 0.3))
_ANGULAR = ((0, -0.06), (0.34, -0.16), (0.6, -0.06), (0.68, 0.14), (0.6, 0.36), (0.58, 0.6),
            (0.42, 0.74), (0.2, 0.62), (0.05, 0.32))
OUTLINES = {
    "rounded": Outline(((0, -0.03), (0.2, -0.3), (0.48, -0.55), (0.72, -0.64), (0.86, -0.55),
        (0.87, -0.32), (0.8, -0.08), (0.66, 0.12), (0.3, 0.1), (0, 0.06)), _FULL, 0, 0),
    "scalloped": Outline(((0, -0.03), (0.2, -0.32), (0.5, -0.58), (0.76, -0.68), (0.88, -0.58),
        (0.82, -0.34), (0.78, -0.1), (0.68, 0.13), (0.3, 0.1), (0, 0.06)), _FULL, 0.1, 0),
    "pointed": Outline(((0, -0.03), (0.24, -0.3), (0.58, -0.56), (0.88, -0.72), (0.98, -0.7),
        (0.88, -0.42), (0.74, -0.12), (0.6, 0.1), (0.3, 0.09), (0, 0.06)), _FULL, 0.03, 0),
    "long": Outline(((0, -0.03), (0.3, -0.2), (0.68, -0.38), (1, -0.45), (1.1, -0.36),
        (1.02, -0.17), (0.82, 0.02), (0.58, 0.12), (0.28, 0.1), (0, 0.06)), _SMALL, 0, 0),
    "tailed": Outline(((0, -0.03), (0.26, -0.34), (0.6, -0.6), (0.86, -0.7), (0.94, -0.6),
        (0.84, -0.34), (0.72, -0.1), (0.58, 0.08), (0.3, 0.09), (0, 0.06)), _NARROW, 0.06, 0.42),
    "hooked": Outline(((0, -0.03), (0.22, -0.34), (0.54, -0.62), (0.84, -0.74), (1, -0.62),
        (0.84, -0.46), (0.7, -0.22), (0.72, 0), (0.62, 0.14), (0, 0.06)), _ANGULAR, 0.05, 0.1),
}
PALETTES = {
    "amber": Palette((224, 116, 24), (248, 186, 66), (40, 25, 18), (255, 244, 220), (72, 112, 190)),
    "azure": Palette((54, 112, 200), (132, 190, 236), (20, 24, 50), (238, 246, 255), (238, 128, 4)),
    "ivory": Palette((238, 230, 206), (246, 208, 110), (50, 44, 42), (255, 254, 248), (228, 99, 4)),
    "umber": Palette((124, 82, 50), (198, 150, 94), (46, 29, 22), (244, 226, 192), (220, 102, 38)),
    "jade": Palette((52, 164, 124), (172, 222, 130), (14, 34, 34), (234, 248, 212), (242, 188, 56)),
}
_FINE = Mark("veins", "both", "dark", 0.007)
MARKINGS = {
    "lattice": (
        Mark("tip", "fore", "dark", 0.34), Mark("veins", "both", "dark", 0.017),
        Mark("margin", "both", "dark", 0.15), Mark("spots", "both", "light", 0.021, 0.94, 11),
        Mark("spots", "fore", "light", 0.034, 0.8, 6)),
    "eyed": (
        Mark("root", "both", "dark", 0.3), Mark("band", "both", "second", 0.13, 0.62), _FINE,
        Mark("margin", "both", "dark", 0.06),
        *eye("fore", 0.125, 0.72, 0.24), *eye("hind", 0.15, 0.66, 0.52)),
    "banded": (
        Mark("margin", "both", "dark", 0.27), Mark("band", "both", "light", 0.17, 0.6), _FINE,
        Mark("spots", "both", "second", 0.026, 0.88, 6),
        Mark("disc", "hind", "accent", 0.055, 0.82, across=0.86)),
    "tiger": (
        Mark("stripes", "both", "dark", 0.4, count=5), _FINE, Mark("margin", "both", "dark", 0.13),
        Mark("spots", "both", "second", 0.024, 0.93, 7),
        Mark("disc", "hind", "accent", 0.06, 0.8, across=0.84)),
    "checkered": (
        Mark("root", "both", "dark", 0.22), _FINE, Mark("spots", "both", "dark", 0.04, 0.36, 3),
        Mark("spots", "both", "dark", 0.042, 0.55, 5), Mark("spots", "both", "dark", 0.04, 0.74, 6),
        Mark("margin", "both", "dark", 0.07), Mark("spots", "both", "light", 0.016, 0.955, 9)),
    "tipped": (
        Mark("root", "both", "second", 0.4), Mark("tip", "fore", "dark", 0.46),
        Mark("tip", "fore", "accent", 0.36), _FINE, Mark("spots", "hind", "dark", 0.018, 0.96, 7),
        Mark("disc", "fore", "dark", 0.05, 0.5, across=0.34)),
    "ringed": (
        Mark("band", "both", "second", 0.17, 0.82), _FINE, Mark("margin", "both", "dark", 0.045),
        Mark("spots", "both", "accent", 0.064, 0.82, 4),
        Mark("spots", "both", "dark", 0.044, 0.82, 4),
        Mark("spots", "both", "light", 0.016, 0.82, 4)),
    "framed": (
        Mark("margin", "both", "dark", 0.32), Mark("root", "both", "dark", 0.26), _FINE,
        Mark("spots", "both", "second", 0.04, 0.8, 5),
        Mark("spots", "both", "light", 0.02, 0.93, 9)),
}
TABLE = (
    Species("Amber Swallowtail", "tailed",    "amber", "lattice"),
    Species("Ember Wanderer",    "pointed",   "amber", "lattice"),
    Species("Marigold Checker",  "pointed",   "amber", "checkered"),
    Species("Copper Gazer",      "scalloped", "amber", "eyed"),
    Species("Azure Swallowtail", "tailed",    "azure", "banded"),
    Species("Skylight Sailor",   "rounded",   "azure", "banded"),
    Species("Harbour Frame",     "rounded",   "azure", "framed"),
    Species("Twilight Gazer",    "scalloped", "azure", "eyed"),
    Species("Ivory Swallowtail", "tailed",    "ivory", "tiger"),
    Species("Chalk Tiger",       "long",      "ivory", "tiger"),
    Species("Linen Lattice",     "long",      "ivory", "lattice"),
    Species("Paper Lantern",     "rounded",   "ivory", "tipped"),
    Species("Umber Hookwing",    "hooked",    "umber", "banded"),
    Species("Bark Gazer",        "hooked",    "umber", "eyed"),
    Species("Walnut Ringlet",    "rounded",   "umber", "ringed"),
    Species("Russet Ringlet",    "scalloped", "umber", "ringed"),
    Species("Jade Longwing",     "long",      "jade",  "framed"),
    Species("Fern Tiger",        "long",      "jade",  "tiger"),
    Species("Moss Swallowtail",  "tailed",    "jade",  "framed"),
    Species("Lagoon Checker",    "rounded",   "jade",  "checkered"),
)
SCENES: tuple[Scene, ...] = (
    ((62, 110, 40), (104, 150, 58), (150, 180, 90), (34, 70, 34)),  # meadow
    ((92, 72, 46), (136, 106, 66), (66, 84, 44), (48, 38, 30)),  # forest floor
    ((126, 96, 130), (96, 118, 76), (168, 132, 160), (74, 84, 62)),  # heath
    ((186, 172, 138), (212, 202, 176), (140, 128, 104), (120, 134, 90)),  # dunes
    ((120, 158, 190), (170, 198, 214), (90, 130, 80), (70, 104, 120)),  # by the water
    ((196, 150, 60), (150, 110, 44), (120, 128, 56), (206, 184, 120)),  # stubble
)
FLOWERS: Scene = ((240, 238, 232), (236, 196, 60), (190, 90, 170), (226, 110, 120),
                               (110, 110, 200), (230, 130, 40))
# fmt: on
SPECIES: tuple[str, ...] = tuple(species.name for species in TABLE)
