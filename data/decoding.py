"""Decode one image file, whatever it holds, or say why it cannot be."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.storage import InputError, Location, reason_of

# No other decoder sees the bytes: PostScript named .jpg must not reach Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb: half a gigabyte of RGB


class BadImageError(InputError):
    """Bytes that are no whole image. The message names no file; whoever knows it puts it first."""

    def __init__(self, reason: str):
        super().__init__(f"cannot be read as an image ({reason}); expected a whole image")
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadImageError], tuple[str]]:
        return BadImageError, (self.reason,)


def read_image(content: bytes, at_least: int | None = None) -> Image.Image:
    """Decode one image file to RGB, upright, transparency on white, the first frame only.

    Args:
        content: the bytes of a JPEG, PNG, BMP, GIF, TIFF or WebP file.
        at_least: a side in pixels; a larger JPEG may be decoded at 1/2, 1/4 or 1/8 of its size,
            never below this one, which is several times faster.

    Raises:
        BadImageError: it is empty, truncated, no image, or too large to be one.
    """
    if not content:
        raise BadImageError("an empty file")
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImageError(f"{image.width}×{image.height} pixels")
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        _turn_upright(image)
        return _to_rgb(image)
    except BadImageError:
        raise
    except Exception as error:  # a decoder may raise anything on bytes that are not its own
        raise BadImageError(_reason(error)) from None


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # the pixels are whole: broken metadata is no broken image
        return


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits; or of 32 bits or floats, where the values show what white is."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    whites = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(image.mode, (65535.0,))
    white = next((w for w in whites if values.max() <= w), 65535.0)
    return Image.fromarray((values.clip(0, white) * (255 / white) + 0.5).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    text = " ".join(str(error).split()) or type(error).__name__
    return "truncated" if "truncated" in text.lower() else text


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep Pillow's remarks on odd metadata off the terminal, for all threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def read_file(where: Location) -> bytes:
    """The bytes of an image file.

    Raises:
        BadImageError: it is gone, or may not be read.
    """
    try:
        return where.read_bytes()
    except FileNotFoundError:
        raise BadImageError("no such file") from None
    except OSError as error:
        raise BadImageError(reason_of(error).lower()) from None
