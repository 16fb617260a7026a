"""The prior of a linear model as settings ask for it, and its hyper-parameters."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dipct.pipeline.stages import Stages
from dipct.posterior import (
    EdgeVariances,
    GPrior,
    LinearisedModel,
    MaternPrior,
    TotalVariationPrior,
    Tuning,
    WeightPrior,
    probed_edge_variances,
)
from dipct.progress import WorkDisplay
from dipct.uncertainty import UncertaintySettings

_LOG = logging.getLogger(__name__)


def matern_of(model: LinearisedModel, settings: UncertaintySettings) -> MaternPrior:
    """The hierarchical prior of a model's weights."""
    return MaternPrior(
        model.parameters,
        smoothness=settings.smoothness,
        lowest_variance=settings.lowest_variance,
    )


def prior_of(
    model: LinearisedModel, settings: UncertaintySettings, kept: dict[str, Any]
) -> WeightPrior:
    """The prior of a model's weights.

    Args:
        model: the linear model.
        settings: resolved.
        kept: holds ``column_mean_square`` [W] where the g-prior is asked for.
    """
    if settings.prior == "g":
        return GPrior(model.parameters, kept["column_mean_square"])
    return matern_of(model, settings)


def probed_edges(
    model: LinearisedModel,
    prior: WeightPrior,
    settings: UncertaintySettings,
    stages: Stages,
    display: WorkDisplay,
) -> EdgeVariances | None:
    """Variances of differences by probes, where a total variation prior needs them."""
    if not settings.tv_prior:
        return None

    def compute() -> dict[str, Any]:
        found = probed_edge_variances(
            model.jacobian,
            prior.groups,
            probes=settings.tv_probes,
            seed=settings.seed,
            report=display.stage("Variances of differences"),
        )
        return {"differences": found.differences, "variances": list(found.variances)}

    decided = {"probes": settings.tv_probes, "seed": settings.seed}
    kept = stages("edges", compute, model.residual.device, decided)
    return EdgeVariances(kept["differences"], tuple(kept["variances"]))


def hyperprior_of(
    prior: WeightPrior, edges: EdgeVariances | None, settings: UncertaintySettings
) -> TotalVariationPrior | None:
    """The prior of the hyper-parameters."""
    if edges is None or not isinstance(prior, MaternPrior):
        return None
    assert settings.tv_prior_weight is not None
    return TotalVariationPrior(
        prior, edges, settings.tv_prior_weight, convention=settings.tv_prior_convention
    )


def deciding(settings: UncertaintySettings, decided_by: dict[str, Any]) -> dict[str, Any]:
    """What decides the hyper-parameters, and with them everything after.

    Args:
        settings: resolved.
        decided_by: the means that were chosen for them, with the ``evidence`` that was used.
    """
    others = {"evidence", "samples", "draws", "mean", "device", "storage", "score_margin"}
    return settings.model_dump(exclude=others) | decided_by


def tuned(
    settings: UncertaintySettings,
    decided_by: dict[str, Any],
    stages: Stages,
    display: WorkDisplay,
    tune: Callable[..., Tuning],
    *,
    is_resumable: bool = False,
) -> Tuning:
    """Run a tuner with a display, or take its result from an interrupted call.

    Args:
        settings: resolved.
        decided_by: see :func:`deciding`.
        stages: keeps the result.
        display: shows how far it is.
        tune: called with ``fixed`` and ``report``.
        is_resumable: whether it also takes a ``state`` to go on from, and ``keep`` to store one.
    """
    report = display.stage("Hyper-parameters")

    def tell(iteration: int, parts: dict[str, float]) -> None:
        names = ("log evidence", "log evidence error", "projected gradient", "change")
        # The evidence is not estimated in every step.
        known = [name for name in names if parts.get(name) and math.isfinite(parts[name])]
        figures = [f"{name} {parts[name]:.4g}" for name in known]
        report(iteration, settings.iterations, "  ".join(figures))

    def compute(state: dict[str, Any] | None, keep: Callable[..., None]) -> dict[str, Any]:
        options: dict[str, Any] = {"state": state, "keep": keep} if is_resumable else {}
        found = tune(fixed=("noise",) if settings.fixed_noise else (), report=tell, **options)
        trace = {name: torch.from_numpy(np.array(v)) for name, v in found.trace.items()}
        return vars(found) | {"trace": trace, "names": list(found.names)}

    kept = stages.resumable("tuning", compute, torch.device("cpu"), deciding(settings, decided_by))
    trace = {name: values.numpy() for name, values in kept["trace"].items()}
    tuning = Tuning(**kept | {"trace": trace, "names": tuple(kept["names"])})
    if tuning.advice:
        _LOG.warning("%s", tuning.advice)
    return tuning
