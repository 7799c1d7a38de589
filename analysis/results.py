"""All that the report shows, each part computed once from the records of a run."""

from __future__ import annotations

from functools import cached_property

import pandas as pd

from analysis import tables
from analysis.latents import Latents, explore
from analysis.leaderboard import winners
from analysis.load import Run
from analysis.statistics import CellScores, Draws, contrasts, score_cells


class Results:
    """Scores, tables and maps of a run; each is computed when it is first asked for."""

    def __init__(self, run: Run):
        self.run = run

    @cached_property
    def scored(self) -> tuple[dict[str, CellScores], Draws]:
        return score_cells(self.run.predictions, self.run.species)

    @cached_property
    def table(self) -> pd.DataFrame:
        return tables.table_i(self.run, self.scored)

    @cached_property
    def contrasts(self) -> pd.DataFrame:
        return contrasts(*self.scored, self.run.cells)

    @cached_property
    def winners(self) -> pd.DataFrame:
        return winners(self.run.trials, self.run.metric)

    @cached_property
    def latents(self) -> Latents:
        return explore(self.run)

    @cached_property
    def encoders(self) -> pd.DataFrame:
        return tables.encoders_table(self.run, self.latents.scores)
