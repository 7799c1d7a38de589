"""All results that the report shows, computed from the records of a run.

The columns of each frame are in docs/RECORDS.md.
"""

from __future__ import annotations

from functools import cached_property

import pandas as pd

from analysis import ranking, tables
from analysis.answer import answer
from analysis.contrasts import Pairs, asked, contrasts, draws_needed, pairs
from analysis.efficiency import labels_saved
from analysis.hypotheses import hypotheses
from analysis.labels_needed import gains, labels_needed
from analysis.latents import Latents, explore
from analysis.load import Run
from analysis.noise_questions import noise_questions
from analysis.paper import paper_table
from analysis.power import power
from analysis.probes import Probes, features_of, probe, probe_table
from analysis.reconstructions import reconstruction_table
from analysis.robustness import (
    InNoise,
    clusters_table,
    differences_in_noise,
    robustness_table,
    score_in_noise,
)
from analysis.statistics import CellScores, Draws, score_cells
from analysis.together import together
from data.storage import InputError

FILES = {
    "costs.csv": "costs",
    "differences.csv": "contrasts",
    "power.csv": "power",
    "labels_needed.csv": "labels_needed",
    "labels_gained.csv": "labels_gained",
    "labels_saved.csv": "labels_saved",
    "probes.csv": "probes",
    "paper_table.csv": "paper",
    "together.csv": "together",
    "reconstructions.csv": "reconstructions",
    "robustness.csv": "robustness",
    "noise_differences.csv": "noise_differences",
    "noise_clusters.csv": "noise_clusters",
}
"""What `Results.write` writes: file name to attribute."""


class Results:
    """Scores, tables and maps of a run, each computed on first use and kept."""

    def __init__(self, run: Run):
        self.run = run

    @cached_property
    def scored(self) -> tuple[dict[str, CellScores], Draws]:
        """The scores of every cell, and the draws that all of them share."""
        return score_cells(self.run.predictions, self.run.species, self._draws)

    @property
    def _draws(self) -> int:
        """How many draws: enough for the largest family of differences."""
        run = self.run
        cells = {cell for cell, _, _ in run.cells}
        probed = set(map(features_of, run.pretrained_as))
        levels = run.robustness["noise"].nunique()
        in_noise = levels * sum(not contrast.probe for contrast in asked(cells))
        return draws_needed(len(run.label_ratios) * max(len(asked(cells | probed)), in_noise))

    @cached_property
    def table(self) -> pd.DataFrame:
        """Table I."""
        return tables.table_i(self.run, self.scored)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """What each cell cost."""
        return tables.costs(self.table)

    @cached_property
    def _probed(self) -> Probes:
        return probe(self.run)

    @property
    def probe_fits(self) -> pd.DataFrame:
        """One row per linear probe."""
        return self._probed.fits

    @cached_property
    def _probe_scores(self) -> dict[str, CellScores]:
        found, networks = self._probed.predictions, self.run.predictions
        if found.empty:
            return {}
        if set(found["file"]) != set(networks["file"]):
            raise InputError(
                f"{self.run.location}: features/files.parquet has other test images than "
                f"predictions.parquet, expected the same"
            )
        return score_cells(found, self.run.species, self._draws)[0]

    @cached_property
    def probes(self) -> pd.DataFrame:
        """Linear probes with few labels, by features and ratio."""
        return probe_table(self.probe_fits, self._probe_scores, self.scored[1])

    @cached_property
    def pairs(self) -> Pairs:
        """Everything that is compared, on the same draws."""
        scores, draws = self.scored
        scores, others = scores | self._probe_scores, self.run.other_networks
        return pairs(scores, draws, self.run.label_ratios, other_networks=others)

    @cached_property
    def contrasts(self) -> pd.DataFrame:
        """Paired differences."""
        return contrasts(self.pairs)

    @cached_property
    def power(self) -> pd.DataFrame:
        """What would decide each difference."""
        return power(self.pairs, self.contrasts)

    @cached_property
    def labels_needed(self) -> pd.DataFrame:
        """How many labels each variant needs for a round accuracy."""
        return labels_needed(*self.scored, tables.labelled(self.run))

    @cached_property
    def labels_gained(self) -> pd.DataFrame:
        """What each variant gains from about half of its labels to all of them."""
        return gains(*self.scored, tables.labelled(self.run))

    @cached_property
    def labels_saved(self) -> pd.DataFrame:
        """How many labels B0 needs to match B2 and B1."""
        return labels_saved(*self.scored, tables.labelled(self.run))

    @cached_property
    def hypotheses(self) -> pd.DataFrame:
        """The questions and their answers; those on noise are `noise_questions`."""
        return hypotheses(self.run, self.pairs, self.contrasts, self.power)

    @cached_property
    def reconstructions(self) -> pd.DataFrame:
        """How well encoders remove noise from test images."""
        return reconstruction_table(self.run)

    @cached_property
    def _in_noise(self) -> InNoise:
        return score_in_noise(self.run, self.scored)

    @cached_property
    def robustness(self) -> pd.DataFrame:
        """The test scores of every cell in noise."""
        return robustness_table(self.run, self._in_noise)

    @cached_property
    def noise_differences(self) -> pd.DataFrame:
        """Paired differences of accuracy in noise, and of what noise costs."""
        return differences_in_noise(self.run, self._in_noise)

    @cached_property
    def noise_questions(self) -> pd.DataFrame:
        """The questions on noise and their answers."""
        return noise_questions(self.run, self.noise_differences)

    @cached_property
    def noise_clusters(self) -> pd.DataFrame:
        """How well clusters match species in noise."""
        return clusters_table(self.run, self.latents.clusters)

    @cached_property
    def answer(self) -> list[str]:
        """The answer in a few sentences."""
        return answer(
            self.run,
            self.table,
            self.contrasts,
            self.labels_needed,
            self.labels_gained,
            self.power,
        )

    @cached_property
    def paper(self) -> pd.DataFrame:
        """The paper's Table I beside ours."""
        return paper_table(self.run, self.table)

    @cached_property
    def latents(self) -> Latents:
        """Maps and clusters."""
        return explore(self.run)

    @cached_property
    def together(self) -> pd.DataFrame:
        """Species that fall together."""
        return together(self.latents.points)

    @cached_property
    def encoders(self) -> pd.DataFrame:
        """The encoders, best first."""
        return ranking.encoders_table(self.run, self.latents.scores)

    @property
    def encoder_statement(self) -> str:
        """How many encoders beat the controls, in a sentence."""
        return ranking.encoder_statement(self.encoders)

    def write(self) -> None:
        """Write those of `FILES` that have rows into the run's folder, and delete the others."""
        for name, attribute in FILES.items():
            frame: pd.DataFrame = getattr(self, attribute)
            if len(frame):
                (self.run.location / name).write_text(tables.to_csv(_joined(frame)))
            else:
                (self.run.location / name).delete()


def _joined(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with tuples of file names as text; file names seldom contain a bar."""
    lists = [name for name in ("files", "other_files") if name in frame]
    return frame.assign(**{name: frame[name].map("|".join) for name in lists})
