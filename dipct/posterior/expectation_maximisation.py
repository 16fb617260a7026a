"""Hyper-parameters by expectation maximisation with posterior samples of the weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dipct.posterior.evidence import Factorisation
from dipct.posterior.hyperparameter_space import HyperparameterSpace
from dipct.posterior.posterior import DataJacobian
from dipct.posterior.total_variation_prior import TotalVariationPrior
from dipct.posterior.tuning import Tuning, bounded, degenerate_blocks, fixed_bounds
from dipct.posterior.weight_prior import WeightPrior

# Of logarithms of hyper-parameters from one iteration to the next.
_TOLERANCE = 1e-3


class DataCovariance(Protocol):
    """The covariance of the data, factorised; :class:`ExactEvidence` is one."""

    def factorise(self, phi: Tensor) -> Factorisation:
        """Cholesky factor of the covariance at phi."""
        ...

    def log_density_of(self, found: Factorisation) -> float:
        """The evidence from the factor."""
        ...


@dataclass(frozen=True, eq=False)
class PosteriorMoments:
    """Second moments of weights and noise under the posterior: the statistics of the M-step.

    Attributes:
        filters: summed over the filters of each group, ``E[w w^T]``, float64 [p p] each.
        noise: ``E[(r - A J w)^T V^-1 (r - A J w)]``.
    """

    filters: tuple[Tensor, ...]
    noise: float


def posterior_moments(
    prior: WeightPrior,
    products: DataJacobian,
    residual: Tensor,
    noise_variance: Tensor,
    phi: Tensor,
    solve: Callable[[Tensor], Tensor],
    *,
    samples: int,
    seed: int,
) -> PosteriorMoments:
    """Moments from the posterior mean of the weights and draws around it.

    Args:
        prior: of the weights.
        products: of ``A J``.
        residual: r, [m].
        noise_variance: V, the diagonal, [m].
        phi: hyper-parameters, [H].
        solve: ``K^-1`` at phi.
        samples: draws.
        seed: of the draws.
    """
    random = torch.Generator(residual.device).manual_seed(seed)
    draws = prior.sample(phi[:-1], samples, random, dtype=residual.dtype)
    white = torch.randn(
        samples, len(residual), generator=random, dtype=residual.dtype, device=residual.device
    )
    noise = white * (phi[-1].exp().to(residual) * noise_variance).sqrt()
    images = products.to_data(draws)
    # The mean, and draws by Matheron's rule.
    solved = solve(torch.cat([residual[None], images + noise]))
    back = prior.apply(phi[:-1], products.to_weights(solved))
    mean, around = back[:1], draws - back[1:]
    fitted = products.to_data(torch.cat([mean, around]))
    filters = []
    for group in prior.groups:
        unscaled = [
            block[:, group.weights]
            if group.scale is None
            else block[:, group.weights] / group.scale.to(block)
            for block in (mean, around)
        ]
        one, other = (b.unflatten(1, (group.filters, group.positions)) for b in unscaled)
        of_mean, of_draws = (torch.einsum("kfi,kfj->ij", b, b).double() for b in (one, other))
        filters.append(of_mean + of_draws / samples)
    misfit = ((residual - fitted[0]).double().square() / noise_variance).sum()
    spread = (fitted[1:].double().square() / noise_variance).sum() / samples
    return PosteriorMoments(tuple(filters), float(misfit + spread))


def expected_log_density(
    prior: WeightPrior, moments: PosteriorMoments, n_data: int, phi: Tensor
) -> Tensor:
    """Expected log-density of weights and data as a function of phi, up to a constant.

    Args:
        prior: of the weights.
        moments: under the posterior of earlier hyper-parameters.
        n_data: m.
        phi: hyper-parameters, [H].

    Returns:
        A scalar, differentiable in phi.
    """
    total = -(n_data * phi[-1] + moments.noise * (-phi[-1]).exp()) / 2
    for group, matrix, moment in zip(
        prior.groups, prior.filter_covariances(phi[:-1]), moments.filters, strict=True
    ):
        factor = torch.linalg.cholesky(matrix)
        log_det = 2 * factor.diagonal().log().sum()
        inside = torch.cholesky_solve(moment.to(matrix), factor).diagonal().sum()
        total = total - (group.filters * log_det + inside) / 2
    return total


def tune_by_expectation_maximisation(
    prior: WeightPrior,
    products: DataJacobian,
    residual: Tensor,
    noise_variance: Tensor,
    covariance: DataCovariance,
    hyperprior: TotalVariationPrior | None = None,
    *,
    initial: Tensor,
    names: tuple[str, ...],
    fixed: Sequence[str] = (),
    iterations: int = 50,
    samples: int = 64,
    tolerance: float = _TOLERANCE,
    seed: int = 0,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> Tuning:
    """Alternate between posterior samples of the weights and the best hyper-parameters for them.

    Sampled Laplace (Antoran et al., ICLR 2023, arXiv 2210.04994) with the exact maximisation in
    the hyper-parameters in place of its fixed-point step: the covariance of a filter is a small
    matrix, whose likelihood under the sampled moments costs nothing. The draws repeat from
    iteration to iteration, so that the iteration converges and does not dither.

    Args:
        prior: of the weights.
        products: of ``A J``.
        residual: what the linear model has to explain, [m].
        noise_variance: V, the diagonal, [m].
        covariance: solves with the covariance of the data.
        hyperprior: log-density of the hyper-parameters; default: constant.
        initial: where to begin, [H].
        names: of the hyper-parameters.
        fixed: names of those to leave as they begin.
        iterations: most iterations.
        samples: draws in each.
        tolerance: largest change of a logarithm between iterations at the end.
        seed: of the draws.
        report: called after every iteration with its number and figures.

    Returns:
        The hyper-parameters, with a trace.

    Raises:
        ConvergenceError: a covariance of the data that is not positive definite.
    """
    phi = initial.double().cpu()
    start, records, change, norm = phi.clone(), [], math.inf, math.inf
    bounds = fixed_bounds(HyperparameterSpace(prior).bounds(), names, phi, fixed)
    low, high = torch.tensor(bounds, dtype=torch.float64).T
    for iteration in range(iterations):
        found = covariance.factorise(phi)
        moments = posterior_moments(
            prior,
            products,
            residual,
            noise_variance.to(residual),
            phi,
            found.solve,
            samples=samples,
            seed=seed,
        )
        better = _maximise(prior, moments, len(residual), hyperprior, phi, bounds)
        # That of the evidence, by Fisher's identity.
        _, gradient = _value(prior, moments, len(residual), hyperprior, phi)
        inside = torch.minimum(torch.maximum(phi + gradient / len(residual), low), high) - phi
        norm, change = float(inside.abs().max()), float((better - phi).abs().max())
        parts = {} if hyperprior is None else hyperprior(phi).parts
        logs = dict(zip(names, phi.tolist(), strict=True))
        figures = {
            "log evidence": covariance.log_density_of(found),
            "jitter": found.jitter,
            "projected gradient": norm,
            "change": change,
        }
        records.append({**figures, **parts, **logs})
        phi = better
        if report is not None:
            report(iteration + 1, records[-1])
        if change <= tolerance:
            break
    converged = change <= tolerance
    advice = (
        []
        if converged
        else [
            f"In the last iteration a logarithm changed by {change:.1e}, more than "
            f"{tolerance:.1e}: allow more iterations."
        ]
    )
    found = covariance.factorise(phi)
    jitter = max([found.jitter, *(record["jitter"] for record in records)])
    if jitter > 0:
        advice.append(
            f"Rounding left a covariance of the data indefinite; {jitter:.0e} of its mean diagonal "
            "was added."
        )
    advice += [*bounded(names, phi, bounds), *degenerate_blocks(hyperprior, start, phi)]
    return Tuning(
        phi=phi,
        names=names,
        log_evidence=covariance.log_density_of(found),
        converged=converged,
        gradient_norm=norm,
        jitter=jitter,
        trace={k: np.array([r[k] for r in records]) for k in records[0]} if records else {},
        advice=" ".join(advice),
        degenerate=bool(degenerate_blocks(hyperprior, start, phi)),
    )


def _maximise(
    prior: WeightPrior,
    moments: PosteriorMoments,
    n_data: int,
    hyperprior: TotalVariationPrior | None,
    phi: Tensor,
    bounds: list[tuple[float, float]],
) -> Tensor:
    from scipy.optimize import minimize

    def objective(at: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value(prior, moments, n_data, hyperprior, torch.from_numpy(at.copy()))
        return -value / n_data, -gradient.numpy() / n_data

    low, high = zip(*bounds, strict=True)
    first = np.clip(phi.numpy(), low, high)
    result = minimize(objective, first, jac=True, method="L-BFGS-B", bounds=bounds)
    return torch.from_numpy(result.x.copy())


def _value(
    prior: WeightPrior,
    moments: PosteriorMoments,
    n_data: int,
    hyperprior: TotalVariationPrior | None,
    phi: Tensor,
) -> tuple[float, Tensor]:
    """What the M-step maximises, and its gradient."""
    variable = phi.detach().requires_grad_()
    value = expected_log_density(prior, moments, n_data, variable)
    (gradient,) = torch.autograd.grad(value, variable)
    if hyperprior is None:
        return float(value.detach()), gradient
    other = hyperprior(phi.detach())
    return float(value.detach()) + other.value, gradient + other.gradient
