"""Hyper-parameters by stochastic gradients of the evidence."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipct.posterior.stochastic_evidence import StochasticEvidence
from dipct.posterior.total_variation_prior import TotalVariationPrior
from dipct.posterior.tuning import Tuning, bounded, degenerate_blocks, fixed_bounds
from dipct.solver import Adam

# Of the optimiser; hyper-parameters are logarithms.
_LEARNING_RATE = 0.1
_LAST_FACTOR = 0.05
_BETAS = (0.8, 0.95)
# Steps between two preconditioners, and share of the steps whose mean tells convergence.
_REFRESH = 10
_LAST_SHARE = 0.3
# Mean gradient of the last steps over its standard error, and per datum, that count as zero.
_STANDARD_ERRORS = 3.0
_PER_DATUM = 1e-3
_VALUE_PROBES = 30

State = dict[str, Any]


def tune_stochastically(
    evidence: StochasticEvidence,
    hyperprior: TotalVariationPrior | None = None,
    *,
    initial: Tensor | None = None,
    fixed: Sequence[str] = (),
    steps: int = 100,
    learning_rate: float = _LEARNING_RATE,
    value_probes: int = _VALUE_PROBES,
    seed: int = 0,
    state: State | None = None,
    keep: Callable[[State], None] | None = None,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> Tuning:
    """Climb the evidence times a hyperprior along estimated gradients.

    Adam with a falling rate; the result is the mean of the last steps (Polyak & Juditsky, SIAM J.
    Control Optim. 30, 1992). It has converged if the mean gradient over them is zero up to three
    of its standard errors, or negligible for each datum.

    Args:
        evidence: estimates of the evidence.
        hyperprior: log-density of the hyper-parameters; default: constant.
        initial: where to begin, [H]; default: where the prior does.
        fixed: names of hyper-parameters to leave as they begin.
        steps: of the optimiser.
        learning_rate: its first rate, of logarithms.
        value_probes: random vectors for the evidence at the end.
        seed: of all probes.
        state: of a call with the same arguments that was stopped: goes on exactly as it would have.
        keep: called after every step with a state to go on from, of tensors and plain values.
        report: called after every step with its number and figures.

    Returns:
        The hyper-parameters; their evidence has a standard error.
    """
    start, names = evidence.initial() if initial is None else initial.double().cpu(), evidence.names
    bounds = fixed_bounds(evidence.bounds(), names, start, fixed)
    low, high = torch.tensor(bounds, dtype=torch.float64).T
    free = low < high
    optimiser = Adam(learning_rate, schedule=_Falling(steps), betas=_BETAS)
    first_averaged = steps - max(1, math.ceil(_LAST_SHARE * steps))
    at = (
        {
            "phi": start,
            "averages": optimiser.start(start),
            "records": [],
            "problems": {},
            "visited": [],
            "gradients": [],
        }
        if state is None
        else copy.deepcopy(state)
    )
    records, problems = at["records"], at["problems"]
    visited, gradients = at["visited"], at["gradients"]
    near = None
    for step in range(len(records), steps):
        phi, refreshed = at["phi"], step - step % _REFRESH
        if near is None or step == refreshed:
            # Also where a stopped call goes on: the one it had.
            here = phi if step == refreshed else at["refreshed"]
            near = evidence.preconditioner(here, seed=seed + refreshed)
        estimate = {"log evidence": math.nan, "log evidence error": math.nan}
        if step == refreshed:
            at["refreshed"] = phi
            value = evidence.log_density(phi, seed=seed + step, preconditioner=near)
            estimate = {"log evidence": value.value, "log evidence error": value.standard_error}
        found = evidence.gradient(phi, seed=seed + step, preconditioner=near)
        gradient, parts = found.gradient, {**estimate, "misfit": found.misfit}
        if hyperprior is not None:
            prior = hyperprior(phi)
            gradient = gradient + prior.gradient
            parts |= prior.parts
        gradient = torch.where(free, gradient, 0.0)
        if not found.solution.converged:
            problems[step] = found.solution.advice
        inside = torch.minimum(torch.maximum(phi + gradient, low), high) - phi
        logs = dict(zip(names, phi.tolist(), strict=True))
        length = float(inside.abs().max())
        records.append({**parts, "projected gradient": length / len(evidence.residual), **logs})
        if step >= first_averaged:
            visited.append(phi)
            gradients.append(inside)
        changed, at["averages"] = optimiser.update(phi, at["averages"], -gradient, step)
        at["phi"] = torch.where(free, torch.minimum(torch.maximum(changed, low), high), phi)
        if keep is not None:
            keep(copy.deepcopy(at))
        if report is not None:
            report(step + 1, records[-1])
    phi = at["phi"]
    phi = torch.stack(visited).mean(0) if visited else phi
    settled, norm = _settled(gradients, len(evidence.residual))
    value = evidence.log_density(phi, seed=seed + steps, probes=value_probes)
    trace = {k: np.array([r[k] for r in records]) for k in records[0]} if records else {}
    advice = (
        []
        if settled
        else [
            f"The mean gradient of the last steps is {norm:.1e} per datum and more than "
            f"{_STANDARD_ERRORS:g} of its standard errors: allow more iterations."
        ]
    )
    if problems:
        advice.append(f"In {len(problems)} of {steps} steps: {problems[max(problems)]}")
    if value.log_det.advice:
        advice.append(value.log_det.advice)
    advice += [*bounded(names, phi, bounds), *degenerate_blocks(hyperprior, start, phi)]
    return Tuning(
        phi=phi,
        names=names,
        log_evidence=value.value,
        log_evidence_error=value.standard_error,
        # Gradients of systems that were not solved are no gradients.
        converged=settled and 2 * sum(step >= first_averaged for step in problems) < len(visited),
        gradient_norm=norm,
        jitter=0.0,
        trace=trace,
        advice=" ".join(advice),
        degenerate=bool(degenerate_blocks(hyperprior, start, phi)),
    )


class _Falling:
    """From one to a small factor, as half a cosine."""

    def __init__(self, steps: int) -> None:
        self._steps = max(steps, 1)

    def __call__(self, step: int) -> float:
        share = (1 + math.cos(math.pi * step / self._steps)) / 2
        return _LAST_FACTOR + (1 - _LAST_FACTOR) * share


def _settled(gradients: list[Tensor], n_data: int) -> tuple[bool, float]:
    """Whether the mean of some gradients is zero, and its largest component per datum."""
    if len(gradients) < 2:
        return False, math.inf
    each = torch.stack(gradients)
    mean, error = each.mean(0), each.std(0) / math.sqrt(len(each))
    small = (mean.abs() <= _STANDARD_ERRORS * error) | (mean.abs() <= _PER_DATUM * n_data)
    return bool(small.all()), float(mean.abs().max()) / n_data
