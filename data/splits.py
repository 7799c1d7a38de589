"""Which images are for training, validation and test, and which of them are labelled.

Each species is drawn with a random stream of its own: images added to one move no other's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data.storage import InputError

_POOLED_SPLIT, _LABELS = 0, 1  # streams: one seed for both must not couple the two draws


def pooled_split(
    labels: npt.ArrayLike,
    seed: int,
    test_per_class: int,
    valid_per_class: int,
    species: Sequence[str] = (),
) -> npt.NDArray[np.str_]:
    """Draw train, validation and test images from one pool, per species.

    Args:
        labels: (N,) species of each image, as an index.
        seed: at least 0.
        test_per_class: test images of each species.
        valid_per_class: validation images of each species.
        species: names, for the error's sake.

    Returns:
        (N,) "train", "valid" or "test".

    Raises:
        InputError: a species would keep fewer than two images for training.
    """
    splits = np.full(np.shape(labels), "train", dtype="<U5")
    for number, order in _shuffled(labels, seed, _POOLED_SPLIT):
        require_enough(_name(number, species), len(order), test_per_class, valid_per_class)
        splits[order[:test_per_class]] = "test"
        splits[order[test_per_class : test_per_class + valid_per_class]] = "valid"
    return splits


def require_enough(species: str, images: int, test_per_class: int, valid_per_class: int) -> None:
    """Find out whether a species has enough images for a pooled split.

    Raises:
        InputError: it would keep fewer than two for training.
    """
    needed = test_per_class + valid_per_class + 2
    if images < needed:
        raise InputError(
            f"data.split: {species} has {images} images; expected at least {needed} "
            f"({test_per_class} test, {valid_per_class} valid, 2 train), or fewer of each: "
            f"--set data.split.pooled.test_per_class=N --set data.split.pooled.valid_per_class=N"
        )


def label_subset(
    labels: npt.ArrayLike, ratio: int, seed: int, species: Sequence[str] = ()
) -> npt.NDArray[np.int64]:
    """Draw the images that keep their label: ⌊ratio · n / 100 + ½⌋ of the n of each species.

    Nested: with one seed, the images at a lower ratio are among those at a higher one.

    Args:
        labels: (n,) species of each training image, as an index.
        ratio: per cent, 1 to 100.
        seed: at least 0.
        species: names, for the error's sake.

    Returns:
        Sorted indices into ``labels``.

    Raises:
        InputError: a species would have no labelled image, or the ratio is out of range.
    """
    if not 0 < ratio <= 100:
        raise InputError(f"cells.label_ratios: {ratio}; expected per cent from 1 to 100")
    kept: list[npt.NDArray[np.int64]] = []
    for number, order in _shuffled(labels, seed, _LABELS):
        count = (2 * ratio * len(order) + 100) // 200  # in integers: exact at every half
        if count == 0:
            raise InputError(
                f"cells.label_ratios: {ratio} % of the {len(order)} training images of "
                f"{_name(number, species)} leaves no label; expected at least one"
            )
        kept.append(order[:count])
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)


def _shuffled(
    labels: npt.ArrayLike, seed: int, stream: int
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Each species in turn: its number, and the indices of its images in random order."""
    numbers = np.asarray(labels)
    for number in np.unique(numbers).tolist():
        images = np.flatnonzero(numbers == number)
        yield number, np.random.default_rng([seed, stream, number]).permutation(images)


def _name(number: int, species: Sequence[str]) -> str:
    return species[number] if species else f"species {number}"
