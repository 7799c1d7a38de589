"""How many trials share a GPU: what the study's networks need of its memory, measured there.

Ray only counts fractions of a GPU; nothing keeps a trial from taking more memory than its share.
So the driver lets a worker try the largest training steps once, before the search. A trial that
runs out of memory all the same goes on with a larger share (`study.tuning`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from study.cells import all_trained_cells
from study.encoders import EncoderPlan, encoder_settings, new_objective
from study.material import Material
from study.planning import smallest_share

MARGIN = 1.25  # the allocator's gaps, and what cuDNN takes to find its fastest algorithm
GIB = 2**30
CONTEXT = (0.3 * GIB, 1.5 * GIB)  # what CUDA itself takes for each process, at least and at most


def share_for(needed: float, memory: float) -> float:
    """The smallest share of a GPU in which a trial fits.

    Args:
        needed: bytes of a trial.
        memory: bytes of the GPU.

    Returns:
        A fraction in (0, 1]; 1 also for what does not fit, so that it fails by itself.
    """
    return smallest_share(MARGIN * needed, memory)


def measure(material: Material) -> tuple[float, float]:
    """Train each network for two steps; runs in a worker that has a GPU to itself.

    Returns:
        Bytes that the largest trial needs, its data and CUDA's own among them, and bytes of the
        GPU.

    Raises:
        RuntimeError: PyTorch sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU")
    device, features = torch.device("cuda"), 0
    for network, images, loss, averaged in networks(material):
        features = max(features, _features(network))
        network.to(device)
        average = copy.deepcopy(network) if averaged else None
        _two_steps(network, images.to(device), loss)
        del network, images, average
    free, memory = torch.cuda.mem_get_info()
    context = memory - free - torch.cuda.memory_reserved()
    most = torch.cuda.max_memory_reserved() + min(max(context, CONTEXT[0]), CONTEXT[1])
    return most + _data(material, features), float(memory)


def networks(material: Material) -> Iterator[tuple[Any, Any, Any, bool]]:
    """What a study trains: its classifiers, trained whole, and its encoders' objectives.

    Yields:
        The network, a batch for it, its loss, and whether a moving average, as large as the
        network, is kept beside it.
    """
    import torch

    from models.classifiers import build_classifier

    config, classes = material.config, len(material.species)
    size, labelled = config.data.image_size, max(config.values_of("training.batch_size"))
    unlabelled = max(config.values_of("semi.unlabelled_per_step"))
    trained = [(cell.kind, config.recipe(cell.variant)) for cell in all_trained_cells(config)]
    for name, recipe, semi in dict.fromkeys(
        ("A" if kind.name == "A" else "B0", recipe, kind.semi) for kind, recipe in trained
    ):
        batch = labelled + (unlabelled if semi else 0)
        network = build_classifier(name, classes, **encoder_settings(recipe, size))
        averaged = semi or max(config.values_of("training.average")) > 0
        yield network, torch.zeros(batch, 3, size, size), _cross_entropy, averaged
    for recipe in dict.fromkeys(recipe for kind, recipe in trained if kind.pretrained):
        every = tuple(range(len(material.images.files)))
        objective = new_objective(material, EncoderPlan("memory", None, recipe, every, 0, None))
        images = torch.zeros(recipe.batch_size, 3, size, size)
        yield objective, images, _loss_of_objective, False


def _loss_of_objective(objective: Any, images: Any) -> Any:
    import torch

    return objective.loss(images, torch.zeros(len(images), dtype=torch.int64, device=images.device))


def _cross_entropy(network: Any, images: Any) -> Any:
    import torch.nn.functional as F

    logits = network(images).float()
    return F.cross_entropy(logits, logits.argmax(1))


def _two_steps(network: Any, images: Any, loss: Any) -> None:
    import torch

    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    for _ in range(2):  # the second has Adam's moments as well
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            value = loss(network, images)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()


def _features(network: Any) -> int:
    """How many values a classifier's head sees of an image; none of A, which is no encoder's."""
    from torch import nn

    if not hasattr(network, "encoder") or not hasattr(network, "head"):
        return 0
    return next(int(m.in_features) for m in network.head.modules() if isinstance(m, nn.Linear))


def _data(material: Material, features: int) -> float:
    """Bytes of the images on the device, or of a frozen encoder's features of them."""
    config, size = material.config, material.config.data.image_size
    recipes = [config.recipe(cell.variant) for cell in all_trained_cells(config)]
    drawn = [r.drawn.species * r.drawn.each for r in recipes if r.pretrain_on == "drawn"]
    images = max([len(material.images.files), *drawn])
    return float(images * max(3 * size * size, 4 * features))  # float32
