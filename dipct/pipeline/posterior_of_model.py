"""Hyper-parameters and posterior of a linear model, by the means that its size allows."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dipct.errors import ConvergenceError, InsufficientMemoryError
from dipct.pipeline.draws import draw
from dipct.pipeline.hyperparameters import (
    hyperprior_of,
    matern_of,
    prior_of,
    probed_edges,
    tuned,
)
from dipct.pipeline.posterior_memory import (
    SHARE,
    GramPlan,
    choose_product_storage,
    gram_bytes,
    plan_gram_matrices,
    working_bytes,
)
from dipct.pipeline.stages import Stages
from dipct.posterior import (
    DensePosterior,
    EvidenceAtWeights,
    ExactEvidence,
    LinearisedModel,
    PathwisePosterior,
    StochasticEvidence,
    StoredJacobian,
    TotalVariationPrior,
    Tuning,
    WeightPrior,
    edge_variances_of_gram,
    gram_matrices,
    linear_weights,
    probed_column_mean_square,
    recomputed_gram_matrices,
    tune,
    tune_by_expectation_maximisation,
    tune_stochastically,
)
from dipct.progress import WorkDisplay
from dipct.uncertainty import UncertaintySettings

_LOG = logging.getLogger(__name__)
_COLUMN_PROBES = 50
# Of the linear systems of draws: they need more than a gradient does.
_DRAW_RANK, _DRAW_TOLERANCE, _DRAW_ITERATIONS = 400, 1e-3, 200
_LARGEST_RESIDUAL = 0.1
_REDUCED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


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
        return _stochastic(model, settings, stages, display)
    try:
        plan = plan_gram_matrices(model, settings)
    except InsufficientMemoryError:
        if settings.evidence != "auto" or settings.storage != "auto":
            raise
        _LOG.info("The exact evidence does not fit into memory: it is estimated.")
        return _stochastic(model, settings, stages, display)
    weights = None
    if settings.evidence == "at-weights":
        weights = _linear_weights(model, regularisation, stages, display)
    if plan.storage == "dense":
        return _dense(model, weights, settings, stages, display)
    return _exact(model, weights, settings, stages, display, plan)


def _linear_weights(
    model: LinearisedModel, regularisation: Regularisation, stages: Stages, display: WorkDisplay
) -> Tensor:
    def compute() -> dict[str, Tensor]:
        report = display.stage("Weights of the linear model")
        return {"weights": linear_weights(model, **vars(regularisation), report=report)}

    return stages("weights", compute, model.residual.device, vars(regularisation))["weights"]


def _evidence(
    model: LinearisedModel, prior: WeightPrior, gram: Tensor, weights: Tensor | None
) -> ExactEvidence:
    """Of the data, or at weights that are given."""
    if weights is not None:
        return EvidenceAtWeights(prior, gram, model, weights)
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

    kept = stages("gram", compute, device, {"of": "image", "prior": settings.prior})
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
    tuning = tuned(settings, stages, display, _exactly(evidence, hyperprior, settings))
    posterior = DensePosterior(prior, tuning.phi, gram, model, mean=settings.mean)
    return Inference(
        tuning=tuning,
        mean=posterior.mean,
        std=posterior.variance().clamp(min=0).sqrt(),
        evidence="exact" if weights is None else "at-weights",
        choices={"kept": "image"},
        hyperprior=hyperprior,
        samples=None
        if settings.samples is None
        else posterior.sample(settings.samples, seed=settings.seed),
        covariance=posterior.covariance,
    )


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
            report=display.stage("Jacobian of the projections"),
        )

    def compute() -> dict[str, Tensor]:
        nonlocal stored
        found: dict[str, Tensor] = {}
        if plan.storage != "recompute":
            stored = store()
        if settings.prior == "g":
            found["column_mean_square"] = _column_mean_square(model, stored, settings)
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
        needed = gram_bytes(model, settings, plan.dtype) + working_bytes(model)
        found["gram"] = recomputed_gram_matrices(
            model,
            prior.groups,
            bytes_at_once=int(SHARE * plan.free) - needed,
            dtype=plan.dtype,
            report=display.stage("Jacobian of the projections"),
        )
        return found

    probed = settings.prior == "g" and plan.storage == "recompute"
    decided = {"of": "data", "prior": settings.prior, "seed": settings.seed if probed else None}
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
    tuning = tuned(settings, stages, display, by)
    solve = evidence.factorise(tuning.phi).solve
    posterior = PathwisePosterior(
        prior, tuning.phi, model, solve, products=stored, mean=settings.mean
    )
    kind = "exact" if settings.evidence == "auto" else settings.evidence
    found = _drawn(posterior, tuning, kind, {"kept": plan.storage}, settings, stages, display)
    return replace(found, hyperprior=hyperprior)


def _stochastic(
    model: LinearisedModel, settings: UncertaintySettings, stages: Stages, display: WorkDisplay
) -> Inference:
    """Products with the covariance of the data only, for what is too large for matrices."""
    groups, kept = matern_of(model, settings).groups, {}
    stored, storage = None, choose_product_storage(model, settings)
    reduced = _REDUCED.get(settings.product_precision)
    if reduced is not None and storage == "recompute":
        raise InsufficientMemoryError(
            f"Products in {settings.product_precision} take a stored Jacobian, which does not fit "
            "into memory here. Use --storage disk, or --product-precision float32."
        )
    if storage != "recompute":
        folder = tempfile.gettempdir() if storage == "disk" else None
        report = display.stage("Jacobian of the projections")
        stored = StoredJacobian.of_data(model, groups, folder=folder, report=report)
    if settings.prior == "g":
        kept["column_mean_square"] = _column_mean_square(model, stored, settings)
    prior = prior_of(model, settings, kept)
    edges = probed_edges(model, prior, settings, stages, display)
    products = model if stored is None else stored
    evidence = StochasticEvidence(
        prior, products, model.residual, model.noise_variance, product_dtype=reduced
    )
    hyperprior = hyperprior_of(prior, edges, settings)

    def tune_it(**options: Any) -> Tuning:
        return tune_stochastically(
            evidence,
            hyperprior,
            initial=evidence.scaled_initial(seed=settings.seed),
            steps=settings.iterations,
            seed=settings.seed,
            **options,
        )

    tuning = tuned(settings, stages, display, tune_it, is_resumable=True)
    exact = StochasticEvidence(
        prior,
        products,
        model.residual,
        model.noise_variance,
        rank=_DRAW_RANK,
        tolerance=_DRAW_TOLERANCE,
        max_iterations=_DRAW_ITERATIONS,
    )
    near = exact.preconditioner(tuning.phi, seed=settings.seed)

    residuals: list[float] = []

    def solve(block: Tensor) -> Tensor:
        found = exact.solve(tuning.phi, block, near)
        residuals.append(float(found.residuals.max()))
        if residuals[-1] > _LARGEST_RESIDUAL:
            raise ConvergenceError(
                f"The linear systems of the draws were solved to {residuals[-1]:.1e} only, and "
                f"draws from them would be wrong. {found.advice}"
            )
        return found.value

    posterior = PathwisePosterior(
        prior, tuning.phi, model, solve, products=products, mean=settings.mean
    )
    found = _drawn(posterior, tuning, "stochastic", {"kept": storage}, settings, stages, display)
    # Draws that were kept have passed the same test when they were made.
    checks = {"solver_residual": max(residuals)} if residuals else {}
    return replace(found, hyperprior=hyperprior, checks=checks)


def _exactly(
    evidence: ExactEvidence, hyperprior: TotalVariationPrior | None, settings: UncertaintySettings
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


def _drawn(
    posterior: PathwisePosterior,
    tuning: Tuning,
    evidence: str,
    choices: dict[str, Any],
    settings: UncertaintySettings,
    stages: Stages,
    display: WorkDisplay,
) -> Inference:
    """The posterior by draws."""
    samples = draw(posterior, settings, stages, display)
    return Inference(
        tuning=tuning,
        mean=posterior.mean,
        std=(samples - posterior.mean).square().mean(0).sqrt(),
        evidence=evidence,
        choices=choices,
        samples=samples,
    )


def _column_mean_square(
    model: LinearisedModel, stored: StoredJacobian | None, settings: UncertaintySettings
) -> Tensor:
    if stored is None:
        return probed_column_mean_square(model, probes=_COLUMN_PROBES, seed=settings.seed)
    return stored.column_mean_square()
