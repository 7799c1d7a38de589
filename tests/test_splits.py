"""Which images are held out, and which keep their label."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest

from data.splits import label_subset, pooled_split
from data.storage import InputError

RATIOS = (1, 3, 10, 25, 50, 75, 99, 100)
SPECIES = ("ATALA", "CLEOPATRA", "GREAT JAY")


def some_labels() -> np.ndarray:
    """Three species of 50, 82 and 121 images, mixed up."""
    return np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 82, 121]))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("n", [50, 82, 85, 90, 121, 1000])
def test_each_species_keeps_the_rounded_share(n: int, ratio: int) -> None:
    labels = np.repeat([0, 1], n)
    counts = np.bincount(labels[label_subset(labels, ratio, seed=0)])
    assert counts.tolist() == [floor(Fraction(ratio * n, 100) + Fraction(1, 2))] * 2


def test_halves_are_rounded_up() -> None:
    assert len(label_subset(np.zeros(50, int), 25, seed=0)) == 13  # 12.5
    assert len(label_subset(np.zeros(10, int), 25, seed=0)) == 3  # 2.5


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_subsets_are_nested(seed: int) -> None:
    labels = some_labels()
    subsets = [set(label_subset(labels, ratio, seed).tolist()) for ratio in RATIOS]
    for smaller, larger in pairwise(subsets):
        assert smaller < larger
    assert subsets[-1] == set(range(len(labels)))


def test_a_subset_is_sorted_and_has_no_image_twice() -> None:
    subset = label_subset(some_labels(), 50, seed=3)
    assert subset.dtype == np.int64
    assert (np.diff(subset) > 0).all()


def test_a_subset_follows_from_the_seed() -> None:
    labels = some_labels()
    assert np.array_equal(label_subset(labels, 25, 1), label_subset(labels, 25, 1))
    assert not np.array_equal(label_subset(labels, 25, 1), label_subset(labels, 25, 2))


def test_every_image_can_be_drawn() -> None:
    labels = np.repeat([0, 1], 10)
    drawn = np.concatenate([label_subset(labels, 30, seed) for seed in range(200)])
    counts = np.bincount(drawn, minlength=20)
    assert counts.min() > 30  # 60 expected, standard deviation 6.5
    assert counts.max() < 90


def test_images_added_to_a_species_move_no_other() -> None:
    """As positions within the species: here the species lie one after the other."""
    few, many = np.repeat([0, 1, 2], [40, 30, 20]), np.repeat([0, 1, 2], [40, 77, 20])
    few_subset, many_subset = label_subset(few, 50, 5), label_subset(many, 50, 5)
    for species in (0, 2):
        before = few_subset[few[few_subset] == species] - np.flatnonzero(few == species)[0]
        after = many_subset[many[many_subset] == species] - np.flatnonzero(many == species)[0]
        assert np.array_equal(before, after)


def test_species_are_not_drawn_alike() -> None:
    labels = np.repeat([0, 1], 100)
    subset = label_subset(labels, 50, 0)
    assert not np.array_equal(subset[:50], subset[50:] - 100)


def test_a_species_without_a_label_is_named() -> None:
    labels = np.repeat([0, 1, 2], [50, 4, 50])
    with pytest.raises(InputError, match=r"10 % of the 4 training images of CLEOPATRA .*at least"):
        label_subset(labels, 10, 0, SPECIES)
    with pytest.raises(InputError, match="species 1"):
        label_subset(labels, 10, 0)


@pytest.mark.parametrize("ratio", [0, -5, 101])
def test_a_ratio_that_is_no_percentage_is_refused(ratio: int) -> None:
    with pytest.raises(InputError, match=f"label_ratios: {ratio}; expected per cent"):
        label_subset(some_labels(), ratio, 0)


def test_pooled_split_holds_out_so_many_of_each_species() -> None:
    labels = some_labels()
    splits = pooled_split(labels, seed=0, test_per_class=25, valid_per_class=10)
    counts = {s: np.bincount(labels[splits == s]).tolist() for s in ("train", "valid", "test")}
    assert counts == {"train": [15, 47, 86], "valid": [10] * 3, "test": [25] * 3}


def test_pooled_split_follows_from_the_seed() -> None:
    labels = some_labels()
    assert np.array_equal(pooled_split(labels, 4, 5, 5), pooled_split(labels, 4, 5, 5))
    assert not np.array_equal(pooled_split(labels, 4, 5, 5), pooled_split(labels, 5, 5, 5))


def test_pooled_split_keeps_a_species_that_has_just_enough() -> None:
    splits = pooled_split(np.zeros(17, int), 0, 10, 5)
    assert [(splits == s).sum() for s in ("train", "valid", "test")] == [2, 5, 10]


def test_pooled_split_names_a_species_that_is_too_small() -> None:
    labels = np.repeat([0, 1, 2], [50, 36, 50])
    with pytest.raises(InputError, match=r"CLEOPATRA has 36 images; expected at least 37"):
        pooled_split(labels, 0, 25, 10, SPECIES)


def test_pooled_split_and_labels_are_drawn_apart_under_one_seed() -> None:
    labels = np.zeros(100, int)
    held_out = set(np.flatnonzero(pooled_split(labels, 7, 50, 0) == "test").tolist())
    labelled = set(label_subset(labels, 50, 7).tolist())
    assert 10 < len(held_out & labelled) < 40
