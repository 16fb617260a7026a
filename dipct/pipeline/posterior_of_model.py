"""Hyper-parameters and posterior of a linear model, by the means that its size allows."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dipct.errors import InsufficientMemoryError
from dipct.pipeline.hyperparameters import (
    hyperprior_of,
    matern_of,
    prior_of,
    probed_edges,
    tuned,
)
from dipct.pipeline.inference import Inference, Regularisation, column_mean_square, drawn
from dipct.pipeline.posterior_memory import (
    SHARE,
    GramPlan,
    gram_bytes,
    plan_gram_matrices,
    working_bytes,
)
from dipct.pipeline.stages import Stages
from dipct.pipeline.stochastic_posterior import infer_stochastically
from dipct.posterior import (
    DensePosterior,
    EvidenceAtWeights,
    ExactEvidence,
    GramEvidence,
    LinearisedModel,
    LinearWeights,
    PathwisePosterior,
    StoredJacobian,
    SufficientEvidence,
    SufficientModel,
    TotalVariationPrior,
    Tuning,
    WeightPrior,
    edge_variances_of_gram,
    gram_matrices,
    linear_weights,
    recomputed_gram_matrices,
    tune,
    tune_by_expectation_maximisation,
)
from dipct.progress import WorkDisplay
from dipct.uncertainty import UncertaintySettings

_LOG = logging.getLogger(__name__)


def infer(
    model: LinearisedModel,
    settings: UncertaintySettings,
    regularisation: Regularisation,
    stages: Stages,
    display: WorkDisplay,
) -> Inference:
    """Tune the hyper-parameters and make the posterior.

    Args:
        model: the linear model.
        settings: resolved.
        regularisation: that of the reconstruction.
        stages: keeps the results of long stages.
        display: shows how far they are.

    Raises:
        InsufficientMemoryError: what was asked for would not fit.
    """
    if settings.evidence == "stochastic":
        return infer_stochastically(model, settings, stages, display)
    try:
        plan = plan_gram_matrices(model, settings)
    except InsufficientMemoryError:
        if settings.evidence != "auto" or settings.storage != "auto":
            raise
        _LOG.info("The exact evidence does not fit into memory: it is estimated.")
        return infer_stochastically(model, settings, stages, display)
    weights, checks = None, {}
    if settings.evidence == "at-weights":
        fitted = _linear_weights(model, regularisation, stages, display)
        weights, checks = fitted.weights, {"linear_weights_gradient": fitted.gradient}
    if plan.storage == "dense":
        found = _dense(model, weights, settings, stages, display)
    else:
        found = _exact(model, weights, settings, stages, display, plan)
    return replace(found, checks=found.checks | checks)


def _linear_weights(
    model: LinearisedModel, regularisation: Regularisation, stages: Stages, display: WorkDisplay
) -> LinearWeights:
    def compute() -> dict[str, Any]:
        report = display.stage("Weights of the linear model")
        return vars(linear_weights(model, **vars(regularisation), report=report))

    return LinearWeights(**stages("weights", compute, model.residual.device, vars(regularisation)))


def _evidence(
    model: LinearisedModel, prior: WeightPrior, gram: Tensor, weights: Tensor | None
) -> GramEvidence:
    """Of the data, or at weights that are given."""
    if weights is not None:
        return EvidenceAtWeights(prior, gram, model, weights)
    if isinstance(model, SufficientModel):
        return SufficientEvidence(prior, gram, model)
    return ExactEvidence(prior, gram, model.residual, model.noise_variance)


def _dense(
    model: LinearisedModel,
    weights: Tensor | None,
    settings: UncertaintySettings,
    stages: Stages,
    display: WorkDisplay,
) -> Inference:
    """Small images: everything from the Gram matrices of the Jacobian of the image."""
    device = model.residual.device
    operator = model.operator.to_matrix().double()

    def compute() -> dict[str, Tensor]:
        groups = matern_of(model, settings).groups
        stored = StoredJacobian.of_image(
            model, groups, report=display.stage("Jacobian of the image")
        )
        found = {}
        if settings.prior == "g":
            to_data = operator.to(model.residual)
            squares = [(to_data @ stored.columns(g)).square().mean(0) for g in groups]
            found["column_mean_square"] = torch.cat(squares)
        prior = prior_of(model, settings, found)
        # Differences of neighbouring pixels cancel most digits.
        found["gram"] = gram_matrices(
            stored, prior.groups, dtype=torch.float64, report=display.stage("Gram matrices")
        )
        return found

    decided = {"of": "image", "prior": settings.prior, "data": _data(model)}
    kept = stages("gram", compute, device, decided)
    gram = kept["gram"]
    prior = prior_of(model, settings, kept)
    of_data = gram.new_empty(len(gram), model.n_data, model.n_data)
    for matrix, result in zip(gram, of_data, strict=True):
        result[:] = operator @ matrix @ operator.mT
    evidence = _evidence(model, prior, of_data, weights)
    edges = None
    if settings.tv_prior:
        edges = edge_variances_of_gram(gram, model.image, prior.groups)
    hyperprior = hyperprior_of(prior, edges, settings)
    decided_by = {"evidence": _name(settings), "variation": "exact", **decided}
    tune_it = _exactly(evidence, hyperprior, settings)
    tuning = tuned(settings, decided_by, stages, display, tune_it)
    posterior = DensePosterior(prior, tuning.phi, gram, model, mean=settings.mean)
    return Inference(
        tuning=tuning,
        mean=posterior.mean,
        std=posterior.variance().clamp(min=0).sqrt(),
        evidence=_name(settings),
        choices={"kept": "image"},
        hyperprior=hyperprior,
        samples=None
        if settings.samples is None
        else posterior.sample(settings.samples, seed=settings.seed),
        covariance=posterior.covariance,
        advice=prior.advice,
    )


def _data(model: LinearisedModel) -> str:
    """Whether there are all data or those that suffice, which depends on the machine."""
    return "sufficient" if isinstance(model, SufficientModel) else "all"


def _name(settings: UncertaintySettings) -> str:
    """Of the evidence that is used where all of it fits."""
    return "exact" if settings.evidence == "auto" else settings.evidence


def _exact(
    model: LinearisedModel,
    weights: Tensor | None,
    settings: UncertaintySettings,
    stages: Stages,
    display: WorkDisplay,
    plan: GramPlan,
) -> Inference:
    """Gram matrices of the Jacobian of the data, and draws."""
    device, groups = model.residual.device, matern_of(model, settings).groups
    stored: StoredJacobian | None = None

    def store() -> StoredJacobian:
        return StoredJacobian.of_data(
            model,
            groups,
            folder=tempfile.gettempdir() if plan.storage == "disk" else None,
            device="cpu" if plan.storage == "host" else None,
            report=display.stage("Jacobian of the data"),
        )

    def compute() -> dict[str, Tensor]:
        nonlocal stored
        found: dict[str, Tensor] = {}
        if plan.storage != "recompute":
            stored = store()
        if settings.prior == "g":
            found["column_mean_square"] = column_mean_square(model, stored, settings)
        prior = prior_of(model, settings, found)
        if stored is not None:
            found["gram"] = gram_matrices(
                stored,
                prior.groups,
                dtype=plan.dtype,
                device=device,
                report=display.stage("Gram matrices"),
            )
            return found
        needed = gram_bytes(model, settings, plan.dtype)
        needed += working_bytes(model, settings, model.n_data)
        found["gram"] = recomputed_gram_matrices(
            model,
            prior.groups,
            bytes_at_once=int(SHARE * plan.free) - needed,
            dtype=plan.dtype,
            report=display.stage("Jacobian of the data"),
        )
        return found

    probed = settings.prior == "g" and plan.storage == "recompute"
    decided = {
        "of": "data",
        "prior": settings.prior,
        "data": _data(model),
        "seed": settings.seed if probed else None,
    }
    kept = stages("gram", compute, device, decided)
    if plan.storage == "host":
        # Products would move all of it: passes through the network are faster.
        stored = None
    prior = prior_of(model, settings, kept)
    evidence = _evidence(model, prior, kept["gram"], weights)
    edges = probed_edges(model, prior, settings, stages, display)
    hyperprior = hyperprior_of(prior, edges, settings)
    by = _exactly(evidence, hyperprior, settings)
    if settings.evidence == "em":
        if stored is None and plan.storage in ("memory", "disk"):
            # Every iteration needs more products than it has rows.
            stored = store()
        by = _by_expectation(model, prior, stored, evidence, hyperprior, settings)
    decided_by = {"evidence": _name(settings), "variation": "probed", **decided}
    tuning = tuned(settings, decided_by, stages, display, by)
    solve = evidence.factorise(tuning.phi).solve
    posterior = PathwisePosterior(
        prior, tuning.phi, model, solve, products=stored, mean=settings.mean
    )
    choices = {"kept": plan.storage}
    return drawn(posterior, tuning, hyperprior, decided_by, choices, settings, stages, display)


def _exactly(
    evidence: GramEvidence, hyperprior: TotalVariationPrior | None, settings: UncertaintySettings
) -> Callable[..., Tuning]:
    def tune_it(**options: Any) -> Tuning:
        return tune(evidence, hyperprior, max_iterations=settings.iterations, **options)

    return tune_it


def _by_expectation(
    model: LinearisedModel,
    prior: WeightPrior,
    stored: StoredJacobian | None,
    evidence: ExactEvidence,
    hyperprior: TotalVariationPrior | None,
    settings: UncertaintySettings,
) -> Callable[..., Tuning]:
    def tune_it(**options: Any) -> Tuning:
        return tune_by_expectation_maximisation(
            prior,
            model if stored is None else stored,
            model.residual,
            model.noise_variance,
            evidence,
            hyperprior,
            initial=evidence.initial(),
            names=evidence.names,
            iterations=settings.iterations,
            seed=settings.seed,
            **options,
        )

    return tune_it
