"""The page's small images: one JPEG with all of them, parts of which are shown."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from analysis.pictures import Pictures

SIZE = 48  # pixels of a side
MOST = 3000  # images on a page
MOST_BYTES = 2_000_000  # of the JPEG, to keep the page small enough for an email


class Thumbnails:
    """The small images of some files; empty if the run's images are gone.

    Args:
        files: as in ``predictions.parquet``; only the first 3,000 are kept.
    """

    def __init__(self, pictures: Pictures, files: Sequence[str]):
        known = list(dict.fromkeys(files))[:MOST] if pictures else []
        self.place = {file: number for number, file in enumerate(known)}
        self.columns = 1
        self._sheet = b""
        for quality in (70, 45, 25) if known else ():
            self._sheet, self.columns = pictures.sprite(known, SIZE, quality)
            if len(self._sheet) <= MOST_BYTES:
                break

    def __bool__(self) -> bool:
        return bool(self.place)

    def images(self, files: Iterable[str], species: str) -> list[Markup]:
        """Images of a species as elements of the page, without those that are gone."""
        return [self._image(file, f"{species}, {file}") for file in files if file in self.place]

    def _image(self, file: str, title: str) -> Markup:
        row, column = divmod(self.place[file], self.columns)
        place = f"--x:-{column * SIZE}px;--y:-{row * SIZE}px"
        element = Markup('<span class="thumb" role="img" aria-label="{0}" title="{0}" style="{1}">')
        return element.format(title, place) + Markup("</span>")

    def style(self) -> Markup:
        """The style of the class ``thumb``: the JPEG as background."""
        if not self:
            return Markup("")
        content = base64.b64encode(self._sheet).decode()
        return Markup(f".thumb{{background-image:url(data:image/jpeg;base64,{content})}}")
