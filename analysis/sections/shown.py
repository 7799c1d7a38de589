"""What the sections of the page draw on: a run's results and its small images."""

from __future__ import annotations

from functools import cached_property

import pandas as pd

from analysis.answer import best_cell
from analysis.errors import most_confused
from analysis.load import CONTROLS
from analysis.pictures import Pictures
from analysis.results import Results
from analysis.sections.charts import shown_images
from analysis.sections.thumbnails import Thumbnails

PAIRS, IMAGES = 6, 4  # confused pairs on the page, and images of each kind


class Shown:
    """A run's results, and what several sections need of them; each computed once, on first use."""

    def __init__(self, results: Results):
        self.results, self.run = results, results.run

    @cached_property
    def cell(self) -> str | None:
        """The best variant at the highest ratio, by validation."""
        return best_cell(self.run)

    @cached_property
    def encoder(self) -> str:
        """The best encoder that has a map, or a control if there is no other."""
        mapped = list(pd.unique(self.results.latents.points["encoder"]))
        ranked = [e for e in self.results.encoders["encoder"] if e in mapped and e not in CONTROLS]
        return str((ranked or mapped)[0])

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The predictions of `cell`, all repeats."""
        return self.run.predictions[self.run.predictions["cell"] == self.cell]

    @cached_property
    def confused(self) -> pd.DataFrame:
        """The pairs most often confused by `cell`, as `most_confused`."""
        return most_confused(self.predictions, PAIRS, IMAGES)

    @cached_property
    def pictures(self) -> Pictures:
        return Pictures(self.run)

    @cached_property
    def thumbnails(self) -> Thumbnails:
        """Thumbnails of all images that the sections show."""
        together = self.results.together
        columns = [self.confused["files"], self.confused["like"]]
        columns += [together[name] for name in ("files", "other_files")]
        files = [str(file) for column in columns for row in column for file in row]
        files += shown_images(self.results.latents.points)["file"].tolist()
        return Thumbnails(self.pictures, files)
