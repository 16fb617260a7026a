"""Hyper-parameters by maximising the evidence, and the hyperprior, with exact gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dipct.errors import ConvergenceError
from dipct.posterior.evidence import Valued
from dipct.posterior.total_variation_prior import TotalVariationPrior

# Of the projected gradient per hyper-parameter, relative to the number of data: hyper-parameters
# are logarithms, so that this is far below what the data can tell about them.
_TOLERANCE = 1e-5
# Per datum [nat].
_WORSE = 10.0
# Of a logarithm.
_AT_BOUND = 1e-6


class LogDensity(Protocol):
    """A log-density of the hyper-parameters with its gradient."""

    def __call__(self, phi: Tensor) -> Valued:
        """Value at phi, [H]."""
        ...


class LogEvidence(LogDensity, Protocol):
    """A log-density of data, by hyper-parameters."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the hyper-parameters."""
        ...

    @property
    def n_data(self) -> int:
        """Number of data."""
        ...

    def initial(self) -> Tensor:
        """Hyper-parameters to begin with, float64 [H]."""
        ...

    def bounds(self) -> list[tuple[float, float]]:
        """Lowest and highest value of each."""
        ...


@dataclass(frozen=True, eq=False)
class Tuning:
    """Hyper-parameters that maximise a density, and how they were found.

    Attributes:
        phi: hyper-parameters, float64 [H], logarithms.
        names: of the hyper-parameters.
        log_evidence: there [nat].
        log_evidence_error: its standard error; 0 where it is exact.
        converged: whether the gradient vanished, up to the tolerance, where no bound is met.
        gradient_norm: largest component of the projected gradient.
        jitter: largest share of the mean diagonal that had to be added to a covariance.
        trace: value of every part after every iteration, and each hyper-parameter by its name,
            [iterations].
        advice: what to do if it did not converge or is degenerate; empty if all is well.
        degenerate: whether the hyperprior has no meaning between the start and the end.
    """

    phi: Tensor
    names: tuple[str, ...]
    log_evidence: float
    converged: bool
    gradient_norm: float
    jitter: float
    trace: dict[str, np.ndarray]
    advice: str
    log_evidence_error: float = 0.0
    degenerate: bool = False

    @property
    def status(self) -> str:
        """``CONVERGED``, ``NOT_CONVERGED`` or ``DEGENERATE``."""
        if self.degenerate:
            return "DEGENERATE"
        return "CONVERGED" if self.converged else "NOT_CONVERGED"

    @property
    def values(self) -> dict[str, float]:
        """The hyper-parameters themselves by name, not their logarithms."""
        return dict(zip(self.names, self.phi.exp().tolist(), strict=True))


def tune(
    evidence: LogEvidence,
    hyperprior: TotalVariationPrior | None = None,
    *,
    initial: Tensor | None = None,
    fixed: Sequence[str] = (),
    max_iterations: int = 200,
    tolerance: float = _TOLERANCE,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> Tuning:
    """Maximise the evidence times a hyperprior: type-II maximum a posteriori.

    By the quasi-Newton method with bounds of Byrd et al. (SIAM J. Sci. Comput. 16, 1995). Every
    evaluation is one Cholesky factorisation and no pass through the network.

    Args:
        evidence: log-density of the data.
        hyperprior: log-density of the hyper-parameters; default: constant.
        initial: where to begin, [H]; default: where the prior does.
        fixed: names of hyper-parameters to leave as they begin.
        max_iterations: most iterations.
        tolerance: largest component of the projected gradient, relative to the number of data.
        report: called after every iteration with its number and the parts of the value.

    Returns:
        The hyper-parameters, with a trace.

    Raises:
        ConvergenceError: a covariance that is not positive definite where it begins.
    """
    from scipy.optimize import minimize

    start = evidence.initial() if initial is None else initial.double().cpu()
    terms: list[LogDensity] = [evidence, *([] if hyperprior is None else [hyperprior])]
    bounds = fixed_bounds(evidence.bounds(), evidence.names, start, fixed)
    low, high = (np.array(side) for side in zip(*bounds, strict=True))
    scale, records = evidence.n_data, []
    evaluated: dict[bytes, tuple[np.ndarray, dict[str, float]]] = {}

    def objective(at: np.ndarray) -> tuple[float, np.ndarray]:
        phi = torch.from_numpy(at.copy())
        try:
            found = [term(phi) for term in terms]
        except ConvergenceError:
            if not records:
                raise
            # A trial that cannot be computed is worse than all before: the line search turns back.
            return records[-1]["per datum"] + _WORSE, np.zeros_like(at)
        value = sum(each.value for each in found)
        gradient = np.sum([each.gradient.numpy() for each in found], axis=0)
        parts = {name: part for each in found for name, part in each.parts.items()}
        parts["jitter"] = max(each.jitter for each in found)
        evaluated.clear()
        parts["per datum"] = -value / scale
        evaluated[at.tobytes()] = (gradient, parts)
        return -value / scale, -gradient / scale

    def keep(at: np.ndarray) -> None:
        if at.tobytes() not in evaluated:
            objective(at)
        gradient, parts = evaluated[at.tobytes()]
        inside = _projected(at, gradient / scale, low, high)
        logs = dict(zip(evidence.names, at.tolist(), strict=True))
        records.append({**parts, "projected gradient": float(np.abs(inside).max()), **logs})
        if report is not None:
            report(len(records) - 1, records[-1])

    first = np.clip(start.numpy(), low, high)
    keep(first)
    result = minimize(
        objective,
        first,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        callback=keep,
        options={"maxiter": max_iterations, "gtol": tolerance, "ftol": 1e-14, "maxls": 40},
    )
    final = torch.from_numpy(result.x.copy())
    if [records[-1][name] for name in evidence.names] != result.x.tolist():
        keep(result.x)
    names = [name for name in records[0] if name != "per datum"]
    trace = {name: np.array([record[name] for record in records]) for name in names}
    norm, jitter = float(trace["projected gradient"][-1]), float(trace["jitter"].max())
    converged = norm <= tolerance
    return Tuning(
        phi=final,
        names=evidence.names,
        log_evidence=float(trace["log evidence"][-1]),
        converged=converged,
        gradient_norm=norm,
        jitter=jitter,
        trace=trace,
        advice=" ".join(
            [
                *_advice(converged, norm, tolerance, jitter),
                *bounded(evidence.names, final, bounds),
                *degenerate_blocks(hyperprior, start, final),
            ]
        ),
        degenerate=bool(degenerate_blocks(hyperprior, start, final)),
    )


def _projected(at: np.ndarray, ascent: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A gradient of a maximisation without what leads across bounds."""
    return np.clip(at + ascent, low, high) - at


def _advice(converged: bool, norm: float, tolerance: float, jitter: float) -> list[str]:
    found = []
    if not converged:
        found.append(
            f"The gradient per datum is {norm:.1e} and had to reach {tolerance:.1e}: allow more "
            "iterations, or begin elsewhere."
        )
    if jitter > 0:
        found.append(
            f"Rounding left a covariance of the data indefinite; {jitter:.0e} of its mean diagonal "
            "was added. Gram matrices in float64 avoid it."
        )
    return found


def fixed_bounds(
    bounds: Sequence[tuple[float, float]],
    names: Sequence[str],
    start: Tensor,
    fixed: Sequence[str],
) -> list[tuple[float, float]]:
    """Bounds with both of the first value where a hyper-parameter is not to be tuned."""
    return [
        (at, at) if name in fixed else pair
        for name, at, pair in zip(names, start.tolist(), bounds, strict=True)
    ]


def bounded(names: Sequence[str], phi: Tensor, bounds: Sequence[tuple[float, float]]) -> list[str]:
    """What to say of hyper-parameters that end at a bound; usually nothing.

    Length scales may, beyond whose bounds nothing changes, and some of the variances: that is how
    the evidence leaves out blocks that the data do not need.

    Args:
        names: of the hyper-parameters.
        phi: where they end, [H].
        bounds: of each; where both are the same it was not tuned.
    """
    off, others = [], []
    for name, at, (low, high) in zip(names, phi.tolist(), bounds, strict=True):
        if low == high or name.endswith("length scale") or low + _AT_BOUND < at < high - _AT_BOUND:
            continue
        is_off = name.endswith(" variance") and at < high - _AT_BOUND
        (off if is_off else others).append(name)
    found = []
    if 2 * len(off) > sum(name.endswith(" variance") for name in names):
        found.append(
            f"At the lowest value allowed: {', '.join(off)}. Their share of the uncertainty is "
            "that bound's choice and not the data's; compare with another lowest variance."
        )
    if others:
        ends = ", ".join(others)
        found.append(f"At the end of their range: {ends}; the data do not settle them.")
    return found


def degenerate_blocks(
    hyperprior: TotalVariationPrior | None, start: Tensor, final: Tensor
) -> list[str]:
    """What to say where a hyperprior has no meaning between two places; usually nothing."""
    if hyperprior is None:
        return []
    before, after = hyperprior.slopes(start), hyperprior.slopes(final)
    turned = [block for block in after if after[block] * before[block] <= 0]
    if not turned:
        return []
    return [
        "The mean total variation does not change monotonically with the length scale of "
        f"{', '.join(turned)}: the hyperprior vanishes between, and has no meaning there. "
        "Compare with the evidence alone."
    ]
