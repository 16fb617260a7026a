"""Hyper-parameters and posterior of a linear model that is too large for matrices."""

import tempfile
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dipct.errors import ConvergenceError, InsufficientMemoryError
from dipct.pipeline.hyperparameters import (
    hyperprior_of,
    matern_of,
    prior_of,
    probed_edges,
    tuned,
)
from dipct.pipeline.inference import Inference, column_mean_square, drawn
from dipct.pipeline.posterior_memory import choose_product_storage
from dipct.pipeline.stages import Stages
from dipct.posterior import (
    LinearisedModel,
    PathwisePosterior,
    StochasticEvidence,
    StoredJacobian,
    Tuning,
    tune_stochastically,
)
from dipct.progress import WorkDisplay
from dipct.uncertainty import UncertaintySettings

# Of the linear systems of draws: they need more than a gradient does.
_DRAW_RANK, _DRAW_TOLERANCE, _DRAW_ITERATIONS = 400, 1e-3, 200
_LARGEST_RESIDUAL = 0.1
_REDUCED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def infer_stochastically(
    model: LinearisedModel, settings: UncertaintySettings, stages: Stages, display: WorkDisplay
) -> Inference:
    """Tune and draw with products of the covariance of the data only.

    Args:
        model: the linear model.
        settings: resolved.
        stages: keeps the results of long stages.
        display: shows how far they are.

    Raises:
        InsufficientMemoryError: what was asked for would not fit.
        ConvergenceError: linear systems of the draws that are not solved.
    """
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
        report = display.stage("Jacobian of the data")
        stored = StoredJacobian.of_data(model, groups, folder=folder, report=report)
    if settings.prior == "g":
        kept["column_mean_square"] = column_mean_square(model, stored, settings)
    decided_by = {"evidence": "stochastic", "stored": stored is not None}
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

    tuning = tuned(settings, decided_by, stages, display, tune_it, is_resumable=True)
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
    found = drawn(
        posterior, tuning, hyperprior, decided_by, {"kept": storage}, settings, stages, display
    )
    # Draws that were kept have passed the same test when they were made.
    checks = {"solver_residual": max(residuals)} if residuals else {}
    return replace(found, checks=checks)
