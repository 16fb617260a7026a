"""Draws of a posterior, in parts that are kept one by one."""

from typing import Any

import torch
from torch import Tensor

from dipct.pipeline.hyperparameters import deciding
from dipct.pipeline.stages import Stages
from dipct.posterior import PathwisePosterior
from dipct.progress import WorkDisplay
from dipct.uncertainty import UncertaintySettings

_DRAWS_OF_A_STAGE = 64
_SEEDS_APART = 1_000_003


def draw(
    posterior: PathwisePosterior,
    settings: UncertaintySettings,
    decided_by: dict[str, Any],
    stages: Stages,
    display: WorkDisplay,
) -> Tensor:
    """Draw images.

    Args:
        posterior: of the image.
        settings: resolved: how many, and from which seed.
        decided_by: see :func:`dipct.pipeline.hyperparameters.deciding`.
        stages: keeps the parts.
        display: shows how far they are.

    Returns:
        [N 1 H W].
    """
    number = max(settings.draws, settings.samples or 0)
    report, parts = display.stage("Draws"), []
    for i, start in enumerate(range(0, number, _DRAWS_OF_A_STAGE)):
        count = min(_DRAWS_OF_A_STAGE, number - start)
        # Streams of their own, so that a part does not depend on those before it.
        seed = settings.seed + _SEEDS_APART * (i + 1)
        kept = stages(
            f"draws-{i}",
            lambda count=count, seed=seed: {"draws": posterior.sample(count, seed=seed)},
            posterior.mean.device,
            deciding(settings, decided_by) | {"mean": settings.mean, "count": count},
        )
        parts.append(kept["draws"])
        report(start + count, number)
    return torch.cat(parts)
