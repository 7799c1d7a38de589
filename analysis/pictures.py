"""A run's images in small, for pages and figures that show what a number is about.

They come from the decoded images beside the run, ``OUT/packed/KEY.npy``. A run that was moved
without them has none, which is no error: its records do not need them.

Shapes: H × W pixels, RGB, uint8.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from analysis.load import Run
from data.storage import Location

EMPTY = 225  # the grey of an image that is gone


class Pictures:
    """Thumbnails of a run's images, by ``file`` as in ``predictions.parquet``."""

    def __init__(self, run: Run):
        self._key = str(run.study["data"].get("key") or "")
        self._folder = run.location.parent / "packed"

    def __bool__(self) -> bool:
        """Whether the run's images are there."""
        return len(self._rows) > 0

    def thumbnail(self, file: str, size: int) -> np.ndarray | None:
        """An image of size × size pixels, uint8 (H, W, 3); None if it is gone."""
        row = self._rows.get(file)
        if row is None or self._pixels is None:
            return None
        pixels = np.asarray(self._pixels[row])
        if len(pixels) == size:
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))

    def sprite(self, files: Sequence[str], size: int, quality: int = 70) -> tuple[bytes, int]:
        """All of them in one JPEG, row by row, and how many there are in a row.

        The upper left corner of image n is at ``(n % columns * size, n // columns * size)``; an
        image that is gone is grey.
        """
        columns = max(1, math.ceil(math.sqrt(len(files))))
        rows = max(1, math.ceil(len(files) / columns))
        sheet = np.full((rows * size, columns * size, 3), EMPTY, dtype=np.uint8)
        for number, file in enumerate(files):
            picture = self.thumbnail(file, size)
            if picture is not None:
                y, x = number // columns * size, number % columns * size
                sheet[y : y + size, x : x + size] = picture
        sink = io.BytesIO()
        Image.fromarray(sheet).save(sink, "JPEG", quality=quality, optimize=True)
        return sink.getvalue(), columns

    @cached_property
    def _rows(self) -> dict[str, int]:
        try:
            files = json.loads((self._folder / f"{self._key}.json").read_text())["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        found = self._pixels
        whole = found is not None and len(found) == len(files)
        return {str(file): row for row, file in enumerate(files)} if whole else {}

    @cached_property
    def _pixels(self) -> np.ndarray | None:
        try:
            found = np.load(self._local(self._folder / f"{self._key}.npy"), "r", allow_pickle=False)
        except (OSError, ValueError):
            return None
        return found if found.ndim == 4 and found.dtype == np.uint8 else None

    def _local(self, file: Location) -> Path:
        if file.is_local:
            return file.local
        self._copy = tempfile.TemporaryDirectory(prefix="mariposa-pictures-")
        copy = Path(self._copy.name) / file.name
        file.download(copy)
        return copy
