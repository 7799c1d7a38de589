"""The samplers that a search can have, a line each: Optuna's own, fitted to small budgets.

A trial's sampler is made anew and seeded for that trial alone. What one trial leaves for the next
lies in the cell's Optuna study: the finished trials, and the notes that CMA-ES (its distribution)
and NSGA-II (generations) attach to trials as they are asked. Notes are not recorded, as CMA-ES's
are pickled. `Guided` has them made again: it asks the sampler once more, and answers what the
records say.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.samplers.nsgaii import BLXAlphaCrossover, PolynomialMutation
from optuna.trial import FrozenTrial
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

Point = Mapping[str, Any]  # a value for each hyperparameter


@dataclass(frozen=True)
class Sampler:
    """One way to choose the next point.

    Attributes:
        make: (seed, trials a cell, hyperparameters) -> Optuna's sampler.
        ranks_pruned: it learns from PRUNED trials as such. The others see COMPLETE ones only, and
            ASHA leaves a third to a half of the trials COMPLETE: they are shown a pruned trial as
            complete with the best value that it reached.
        keeps_notes: on the trials that it is asked for; they are asked for again on a resume.
        memory: trials of a cell that it looks at, at most; None: all of them.
    """

    make: Callable[[int, int, int], BaseSampler]
    ranks_pruned: bool = False
    keeps_notes: bool = False
    memory: int | None = 200


def random_first(trials: int) -> int:
    """Points at random before a model is fitted; Optuna's 10 would be most of a small budget."""
    return min(10, max(3, trials // 4))


def population(trials: int) -> int:
    """Of a generation of NSGA-II: three generations in the budget, where it has 12 trials or more.

    Optuna's 50 would make all of a small budget the first generation, which is random. Generations
    of 2 to 4 settle too soon on one of their first points (benchmarks/samplers.py).
    """
    return min(50, max(4, math.ceil(trials / 3)))


class _OneThreadGP(GPSampler):
    """With one thread: BLAS's threads wait for each other, beside trials on all cores seven times
    the processor time of one. Optuna limits them too, but where NumPy is loaded it is too late.
    """

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with threadpool_limits(1):
            return super().sample_relative(study, trial, search_space)


def _tpe(seed: int, trials: int, searched: int) -> BaseSampler:
    """One hyperparameter has no others to be drawn together with: the same points, and no time
    spent on comparing the distributions of all trials."""
    return TPESampler(seed=seed, n_startup_trials=random_first(trials), multivariate=searched > 1)


def _gp(seed: int, trials: int, searched: int) -> BaseSampler:
    """Expected improvement under a Gaussian process; its first fit imports PyTorch, for 2 s."""
    return _OneThreadGP(seed=seed, n_startup_trials=random_first(trials))


def _cmaes(seed: int, trials: int, searched: int) -> BaseSampler:
    """From the middle of the range, a sixth of it wide; Hansen's population, 4 for one number.

    Of trials side by side it cannot use those that end after their generation is full.
    """
    return CmaEsSampler(seed=seed)


def _nsga2(seed: int, trials: int, searched: int) -> BaseSampler:
    """A genetic search.

    Optuna's default, uniform crossover and a mutation that draws anew with probability 1 / (numbers
    searched), is random search where one number is searched. These are for real numbers: Eshelman
    and Schaffer 1993 (BLX-α), Deb 2002 (polynomial mutation).
    """
    return NSGAIISampler(
        seed=seed,
        population_size=population(trials),
        crossover=BLXAlphaCrossover(),
        mutation=PolynomialMutation(),
    )


def _random(seed: int, trials: int, searched: int) -> BaseSampler:
    return RandomSampler(seed=seed)


SAMPLERS = {
    "tpe": Sampler(_tpe, ranks_pruned=True),
    "gp": Sampler(_gp, memory=100),  # 0.03 s a trial over 100 of them, 0.07 s over 200
    # What these two build on lies in their notes; 2 ms a trial for each thousand of the cell.
    "cmaes": Sampler(_cmaes, keeps_notes=True, memory=None),
    "nsga2": Sampler(_nsga2, keeps_notes=True, memory=None),
    "random": Sampler(_random, ranks_pruned=True),
}


class Guided(BaseSampler):
    """A sampler kept in the range, or to a point that is known.

    Args:
        sampler: chooses a value for whatever is not known.
        known: the point to answer; the sampler is asked all the same, for its notes.
    """

    def __init__(self, sampler: BaseSampler, known: Point | None = None):
        self.sampler, self.known = sampler, known

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        point = self.sampler.sample_relative(study, trial, search_space)
        if self.known is not None:
            return {}
        return {name: _within(search_space[name], value) for name, value in point.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, distribution: BaseDistribution
    ) -> Any:
        if self.known is not None:
            return self.known[param_name]
        value = self.sampler.sample_independent(study, trial, param_name, distribution)
        return _within(distribution, value)


def _within(distribution: BaseDistribution, value: Any) -> Any:
    """exp(log(low)) may lie under low, and Optuna refuses such a trial when it is added again."""
    if isinstance(distribution, FloatDistribution):
        return min(max(value, distribution.low), distribution.high)
    return value


def make(
    sampler: Sampler, seed: int, trials: int, searched: int, known: Point | None = None
) -> BaseSampler:
    """The sampler of one trial.

    Args:
        seed: its own.
        trials: the budget of its cell.
        searched: how many hyperparameters its cell has.
        known: its point, where that is not to be chosen.
    """
    if known is not None and not sampler.keeps_notes:
        return Guided(RandomSampler(seed=seed), known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return Guided(sampler.make(seed, trials, searched), known)
