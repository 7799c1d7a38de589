"""What a study would do, from its configuration and the counts of its images; starts nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from analysis.wording import counted
from data.folders import find_images
from data.species import SPECIES
from data.splits import require_enough
from data.storage import InputError, Location
from study.cells import Cell, all_trained_cells, cells_of
from study.config import Config
from study.sections import PooledSplit

MIB = 2**20
SHARES = (0.125, 0.25, 0.5)  # of a GPU; more than 8 trials crowd its cores


@dataclass(frozen=True)
class Counts:
    """Images of a data set: of each species in train, and in all of valid and test."""

    train: tuple[int, ...]
    valid: int
    test: int

    def labelled(self, ratio: int) -> int:
        """Labelled training images at that ratio: per species ⌊ratio · n + ½⌋.

        Raises:
            InputError: a species would have none.
        """
        counts = [(2 * ratio * n + 100) // 200 for n in self.train]
        if not all(counts):
            raise InputError(
                f"cells.label_ratios: {ratio} % of the {min(self.train)} training images of a "
                "species leaves no label; expected at least one"
            )
        return sum(counts)


def require_unlabelled(config: Config, images: int, labelled: Callable[[int], int]) -> None:
    """Find out whether each encoder that is pretrained on unlabelled images has some.

    Args:
        config: the study.
        images: of train.
        labelled: how many of them are, by label ratio.

    Raises:
        InputError: a ratio rounds to all of them.
    """
    for cell in all_trained_cells(config):
        recipe, ratio = config.recipe(cell.variant), cell.label_ratio
        if not cell.kind.pretrained or recipe.pretrain_on != "unlabelled":
            continue
        if labelled(ratio) >= images:
            raise InputError(
                f"cells.label_ratios: found {ratio}, which labels all {images} training images, "
                f"with pretrain_on unlabelled for {cell.variant}; expected lower ratios"
            )


def count_images(config: Config) -> Counts:
    """Count the images of a study without opening any.

    Raises:
        InputError: ``data.root`` is no image folder.
    """
    if config.data.root is None:
        demo = config.data.demo
        species = len(SPECIES)
        train, valid, test = (
            (demo.train_per_species,) * species,
            demo.valid_per_species * species,
            demo.test_per_species * species,
        )
        if isinstance(config.data.split, PooledSplit):
            pool = demo.train_per_species + demo.valid_per_species + demo.test_per_species
            return _pooled(config.data.split, {f"species {n + 1}": pool for n in range(species)})
        return Counts(train, valid, test)
    split = "pooled" if isinstance(config.data.split, PooledSplit) else "folders"
    folder = find_images(Location(config.data.root), split)
    if folder.layout == "pooled":
        wanted = config.data.split
        pooled = wanted if isinstance(wanted, PooledSplit) else PooledSplit()
        return _pooled(pooled, Counter(file.species for file in folder.files))
    by_split = Counter(file.split for file in folder.files)
    per_species = Counter(file.species for file in folder.files if file.split == "train")
    return Counts(tuple(per_species.values()), by_split["valid"], by_split["test"])


def _pooled(split: PooledSplit, images: Mapping[str, int]) -> Counts:
    test, valid = split.test_per_class, split.valid_per_class
    for species, count in images.items():
        require_enough(species, count, test, valid)
    train = tuple(count - test - valid for count in images.values())
    return Counts(train, valid * len(images), test * len(images))


def plan(config: Config, out: Location) -> list[str]:
    """Lines that say what ``run`` would do.

    Raises:
        InputError: ``data.root`` is no image folder, or a label ratio does not suit its images.
    """
    counts, cells = count_images(config), cells_of(config)
    require_unlabelled(config, sum(counts.train), counts.labelled)
    trials = len(cells) * config.search.trials
    repeats = config.evaluation.repeats
    most = trials * config.training.max_epochs
    an_epoch = sum(images_an_epoch(config, counts, cell) for cell in cells)
    images = an_epoch * config.search.trials * config.training.max_epochs
    ratios = ", ".join(
        f"{ratio} % = {counts.labelled(ratio)}" for ratio in sorted(config.cells.label_ratios)
    )
    limit = config.search.max_seconds
    cap = f", at most {limit:g} s" if limit is not None else ""
    return [
        f"study       {config.name} in {out / config.name}",
        f"images      {sum(counts.train)} train, {counts.valid} valid, {counts.test} test; "
        f"{len(counts.train)} species; {config.data.image_size} px",
        f"labels      {ratios}; and {counts.valid} validation labels, used for choosing",
        f"cells       {len(cells)}: {', '.join(cell.name for cell in cells)}",
        f"trials      {trials}, {config.search.trials} a cell; "
        f"lr in [{config.search.lr[0]:g}, {config.search.lr[1]:g}], "
        f"{config.search.sampler}, {config.search.scheduler}, best {config.search.metric}{cap}",
        *_also_searched(config),
        f"epochs      at most {most:,} in the search ({images:,} images), fewer by "
        f"{config.search.scheduler} and patience {config.training.patience}; "
        f"at most {len(cells) * repeats * config.training.max_epochs:,} in the final evaluation",
        f"encoders    {_encoders(config)}",
        f"evaluation  {len(cells) * repeats}: {counted(repeats, 'repeat')} a cell",
        f"side by side  {_side_by_side(config)}",
        f"disk        about {_disk(config, counts) / MIB:,.0f} MiB",
    ]


def _also_searched(config: Config) -> list[str]:
    """A line on what is searched beside lr and recipe, where anything is."""
    parts = []
    for key, domain in config.search.space.domains.items():
        low, high = domain.range
        values = ", ".join(map(str, domain.choice or ()))
        scale = " by logarithm" if domain.log else ""
        parts.append(f"{key} in " + (f"{{{values}}}" if values else f"[{low:g}, {high:g}]{scale}"))
    return [f"space       {'; '.join(parts)}"] if parts else []


def images_an_epoch(config: Config, counts: Counts, cell: Cell) -> int:
    """How many images an epoch of a cell's classifier goes through, as `data.module` batches them;
    where sizes of batches are searched, by the one that makes it most.

    Few labelled ones are gone through again until the epoch has its steps; C sees all images of
    train besides.
    """
    labelled, most = counts.labelled(cell.label_ratio), 0
    for size in config.values_of("training.batch_size"):
        steps = max(-(-labelled // size), config.training.min_steps_per_epoch)
        seen = _in_batches(labelled, size, steps)
        if cell.kind.semi:
            unlabelled = max(config.values_of("semi.unlabelled_per_step"))
            seen += _in_batches(sum(counts.train), unlabelled, steps)
        most = max(most, seen)
    return most


def _in_batches(images: int, size: int, steps: int) -> int:
    """Images of so many batches; the last batch of each pass may be smaller."""
    passes, rest = divmod(steps, -(-images // size))
    return passes * images + rest * size


def _encoders(config: Config) -> str:
    pretrained = [cell for cell in all_trained_cells(config) if cell.kind.pretrained]
    if not pretrained:
        return "none"
    names = ", ".join(sorted({cell.variant for cell in pretrained}))
    most = max(config.recipe(cell.variant).epochs for cell in pretrained)
    own = not all(config.recipe(cell.variant).shared for cell in pretrained)
    shared = "" if own and config.evaluation.repeats else " (shared by all repeats)"
    searched = any(config.recipes_of(variant) for variant in config.cells.variants)
    most_of = "at most " if searched and own and config.evaluation.repeats else ""
    return f"{most_of}{_count_encoders(config)}{shared} for {names}, at most {most} epochs each"


def _count_encoders(config: Config) -> int:
    repeats = (None, *range(config.evaluation.repeats))
    cells = all_trained_cells(config)
    return len({encoder_key(config, cell, one) for cell in cells for one in repeats} - {None})


def encoder_key(config: Config, cell: Cell, repeat: int | None) -> Hashable:
    """What tells encoders apart, as `study.encoders` has it; None where a cell needs none."""
    if not cell.kind.pretrained:
        return None
    recipe = config.recipe(cell.variant)
    own = cell.label_ratio if recipe.pretrain_on == "unlabelled" else 0
    return recipe, own, None if recipe.shared else repeat


def _side_by_side(config: Config) -> str:
    cpus = (os.cpu_count() or 1) // config.resources.cpus_per_trial
    gpus = config.resources.gpus_per_trial
    share = gpu_share(config) if gpus == "auto" else gpus
    on_gpu = f"{int(1 / share)} trials a GPU" if 0 < share <= 1 else f"{share} GPUs a trial"
    return f"{cpus} trials on this machine's CPUs; {on_gpu} (gpus_per_trial {share:g})"


def gpu_share(config: Config) -> float:
    """The fraction of a GPU for one trial where ``resources.gpus_per_trial`` is ``auto``.

    Small networks leave most of a GPU idle, so up to eight trials share one: as many as fit a
    GPU of 16 GB by an estimate of what the largest variant, A, needs.
    """
    batch = max(config.values_of("training.batch_size"))
    activations = batch * config.encoder.width * config.data.image_size**2
    needed = 16 * parameters_of_a(config) + 4 * 6 * activations + 2**30  # CUDA's own GiB
    return smallest_share(needed, 16 * 2**30)


def smallest_share(needed: float, memory: float) -> float:
    """The smallest share of a GPU with so much memory in which a trial fits; 1 if none does."""
    return next((share for share in SHARES if needed <= share * memory), 1.0)


def parameters_of_a(config: Config) -> int:
    """Weights of A's largest layer, which is nearly all of them: 16 bytes each with Adam."""
    width = config.encoder.width
    return 2 * width * (config.data.image_size // 4) ** 2 * 8 * width


def _disk(config: Config, counts: Counts) -> float:
    size = config.data.image_size
    images = sum(counts.train) + counts.valid + counts.test
    packed = 2 * images * size * size * 3  # under OUT, and this node's copy
    pretrained = [cell for cell in all_trained_cells(config) if cell.kind.pretrained]
    recipes = {config.recipe(cell.variant) for cell in pretrained}
    drawn = [r.drawn.species * r.drawn.each for r in recipes if r.pretrain_on == "drawn"]
    packed += sum(drawn) * size * size * 3
    models = len(cells_of(config)) * parameters_of_a(config) * 4
    checkpoints = (os.cpu_count() or 1) * parameters_of_a(config) * 12
    return packed + models + checkpoints + _features(config, images) + 50 * MIB


def _features(config: Config, images: int) -> float:
    """Bytes of the features of all images by frozen encoders, on each node's disk.

    A U-Net's count, of 4 bytes each; those of other architectures are a few dozen an image.
    """
    repeats = (None, *range(config.evaluation.repeats))
    frozen = [cell for cell in all_trained_cells(config) if cell.kind.frozen]
    frozen = [c for c in frozen if config.recipe(c.variant).architecture == "unet"]
    made = {
        encoder_key(config, cell, one): 4 * config.recipe(cell.variant).width
        for cell in frozen
        for one in repeats
    }
    return sum(made.values()) * images * 4.0 * (config.data.image_size // 8) ** 2
