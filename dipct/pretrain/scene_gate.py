"""Whether a classifier goes by the causes of drawn pictures, and not by their nuisances."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dipct.errors import ConfigurationError
from dipct.operator import LOGITS, FeatureOperator
from dipct.phantom import SceneTask

LEAST_CAUSAL, MOST_NUISANCE = 0.95, 0.02
"""Bounds of :attr:`SceneGate.is_passed`."""

_AT_ONCE = 256


@dataclass(frozen=True)
class SceneGate:
    """What makes the predictions of a classifier change.

    Explanations of a classifier that fails say as much of its mistakes as of the explainer.

    Attributes:
        accuracy: on held-out pictures.
        causal_flips: of those in their class, the share whose true counterfactual is seen in its
            own.
        nuisance_flips: share of pictures whose class changes with nuisances alone.
    """

    accuracy: float
    causal_flips: float
    nuisance_flips: float

    @property
    def is_passed(self) -> bool:
        """Whether explanations of this classifier can be scored against the causes."""
        return self.causal_flips >= LEAST_CAUSAL and self.nuisance_flips <= MOST_NUISANCE


def scene_gate(model: nn.Module, task: SceneTask, *, number: int, seed: int) -> SceneGate:
    """Measure a classifier on pictures and their counterfactuals.

    Args:
        model: maps images [N C H W] to logits.
        task: what the pictures are of.
        number: of pictures.
        seed: of the pictures; another one than that of the training.

    Raises:
        ConfigurationError: no pictures.
    """
    if number < 1:
        raise ConfigurationError(f"number must be one or more; got {number}.")
    operator = FeatureOperator(model, [LOGITS], task.image_shape)
    scenes = task.sample(number, seed=seed)
    labels = task.labels(scenes)
    rng = np.random.default_rng([seed, number])
    # Of two classes there is one other; of more, any.
    moved = rng.integers(1, len(task.classes), number)
    targets = (labels + moved) % len(task.classes)
    images = [scene.image for scene in scenes]
    others = [
        task.counterfactual(scene, int(target)).image
        for scene, target in zip(scenes, targets, strict=True)
    ]
    moved_nuisances = [
        task.with_other_nuisances(scene, seed=seed + 1 + i).image for i, scene in enumerate(scenes)
    ]
    seen, of_others, of_moved = (
        _classes(operator, each) for each in (images, others, moved_nuisances)
    )
    is_right = seen == labels
    flips = of_others[is_right] == targets[is_right]
    return SceneGate(
        accuracy=float(is_right.mean()),
        causal_flips=float(flips.mean()) if is_right.any() else 0.0,
        nuisance_flips=float((of_moved != seen).mean()),
    )


@torch.no_grad()
def _classes(operator: FeatureOperator, images: list[np.ndarray]) -> np.ndarray:
    batch: Tensor = torch.from_numpy(np.stack(images))
    return torch.cat([operator(part).argmax(-1) for part in batch.split(_AT_ONCE)]).numpy()
