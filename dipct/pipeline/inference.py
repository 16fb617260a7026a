"""What is inferred of a linear model, and what all ways to it share."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dipct.pipeline.draws import draw
from dipct.pipeline.stages import Stages
from dipct.posterior import (
    LinearisedModel,
    PathwisePosterior,
    StoredJacobian,
    TotalVariationPrior,
    Tuning,
    probed_column_mean_square,
)
from dipct.progress import WorkDisplay
from dipct.uncertainty import UncertaintySettings

_COLUMN_PROBES = 50


@dataclass(frozen=True)
class Regularisation:
    """That of the reconstruction whose network is linearised.

    Attributes:
        tv_weight: of total variation, zero for none.
        isotropic: which total variation.
    """

    tv_weight: float
    isotropic: bool


@dataclass(frozen=True, eq=False)
class Inference:
    """What was found of a linear model.

    Attributes:
        tuning: the hyper-parameters.
        mean: what the posterior is centred on, [1 H W].
        std: of every pixel, [1 H W].
        evidence: how the hyper-parameters were tuned.
        choices: how it was done, for the record.
        samples: draws, [N 1 H W], where there are some.
        covariance: of the image, [n n], where it was formed.
        hyperprior: of the hyper-parameters, where there was one.
        checks: figures that should be small.
        advice: what to know about the prior; empty if all is well.
    """

    tuning: Tuning
    mean: Tensor
    std: Tensor
    evidence: str
    choices: dict[str, Any] = field(default_factory=dict)
    samples: Tensor | None = None
    covariance: Tensor | None = None
    hyperprior: TotalVariationPrior | None = None
    checks: dict[str, float] = field(default_factory=dict)
    advice: str = ""


def drawn(
    posterior: PathwisePosterior,
    tuning: Tuning,
    hyperprior: TotalVariationPrior | None,
    decided_by: dict[str, Any],
    choices: dict[str, Any],
    settings: UncertaintySettings,
    stages: Stages,
    display: WorkDisplay,
) -> Inference:
    """The posterior by draws.

    Args:
        posterior: of the image.
        tuning: its hyper-parameters.
        hyperprior: of those, where there was one.
        decided_by: what decided them beside the settings, with the ``evidence`` that was used.
        choices: how it was done, for the record.
        settings: resolved.
        stages: keeps the draws.
        display: shows how far they are.
    """
    samples = draw(posterior, settings, decided_by, stages, display)
    return Inference(
        tuning=tuning,
        mean=posterior.mean,
        std=(samples - posterior.mean).square().mean(0).sqrt(),
        evidence=decided_by["evidence"],
        choices=choices,
        samples=samples,
        hyperprior=hyperprior,
        advice=posterior.prior.advice,
    )


def column_mean_square(
    model: LinearisedModel, stored: StoredJacobian | None, settings: UncertaintySettings
) -> Tensor:
    """Mean squares of the columns of the Jacobian of the data, by probes if it is not stored."""
    if stored is None:
        return probed_column_mean_square(model, probes=_COLUMN_PROBES, seed=settings.seed)
    return stored.column_mean_square()
