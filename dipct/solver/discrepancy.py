"""Regularise by the noise level: stop, or weigh total variation, by the discrepancy principle."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.objective.fidelity import Fidelity
from dipct.operator.base import LinearOperator
from dipct.solver.batch import batch_shape, check_projections, inner
from dipct.solver.iteration import iterate
from dipct.solver.primal_dual import PrimalDualTV
from dipct.solver.solution import IterationState, Solution, Status

# Before a bracket is found: how the logarithm of the discrepancy typically grows with that of
# the weight, and the smallest and largest factor between two weights.
_TYPICAL_SLOPE = 0.4
_EXPANSION = (1.5, 10.0)
_LIMIT = 1e5
_SMALL = 1e-2


class DiscrepancyPrinciple:
    """Stopping rule: the residual is as large as the noise (Morozov 1966).

    Stops :class:`~dipct.solver.cgls.CGLS` or :class:`~dipct.solver.sirt.SIRT` at the first
    recorded iterate with ``mean((A x - y)^2 / std^2) <= target``; in a batch, when all elements
    have come so far.

    Args:
        std: noise standard deviation: one number, or a tensor that broadcasts to the
            projections.
        target: share of the expected squared residual; slightly above 1 is safer.

    Raises:
        ConfigurationError: a standard deviation or target that is not positive.
    """

    def __init__(self, std: float | Tensor, target: float = 1.0) -> None:
        if not bool((torch.as_tensor(std) > 0).all()) or not target > 0:
            raise ConfigurationError("The discrepancy principle needs a positive std and target.")
        self.std, self.target = std, target

    def __call__(self, state: IterationState) -> Status | None:
        """See :data:`dipct.solver.iteration.StoppingRule`."""
        if "residual" not in state.tensors:
            raise ConfigurationError(
                "The discrepancy principle stops methods that regularise by their number of "
                "iterations: CGLS and SIRT. For total variation use tv_weight_by_discrepancy."
            )
        scaled = state.tensors["residual"] / self.std
        n_batch_axes = state.history["iteration"].ndim - 1
        n_batch_axes += next(iter(state.figures().values())).ndim
        ratios = scaled.double().square().flatten(n_batch_axes).mean(-1)
        return Status.DISCREPANCY_REACHED if bool((ratios <= self.target).all()) else None


@dataclass(frozen=True)
class WeightChoice:
    """A TV weight and how it was found.

    Attributes:
        weight: the chosen weight.
        ratio: reduced discrepancy there, ``2 fidelity / m``.
        trail: all ``(weight, ratio)`` tried, in order.
        solution: the reconstruction with the chosen weight.
    """

    weight: float
    ratio: float
    trail: tuple[tuple[float, float], ...]
    solution: Solution


def tv_weight_by_discrepancy(
    operator: LinearOperator,
    fidelity: Fidelity,
    *,
    target: float = 1.0,
    accuracy: float = 0.02,
    first_weight: float | None = None,
    isotropic: bool = False,
    nonnegative: bool = True,
    tolerance: float = 1e-3,
    max_iterations: int = 2000,
    max_solves: int = 15,
    report: Callable[[float, float], None] | None = None,
) -> WeightChoice:
    """The TV weight at which the residual is as large as the noise.

    Finds the zero of ``log(2 fidelity / (m target))``, which grows with the weight, as a
    function of the logarithm of the weight: secant steps inside a bracket (the Illinois rule),
    every solve warm-started by the last. For Gaussian noise ``2 fidelity = |(A x - y) / std|^2``,
    for Poisson noise it is the deviance.

    Args:
        operator: A, with an exact adjoint.
        fidelity: data term of one set of projections, without batch axes.
        target: wanted ``2 fidelity / m``.
        accuracy: accepted relative deviation from the target.
        first_weight: where to begin; default: the size of the back-projected noise.
        isotropic: see :class:`PrimalDualTV`.
        nonnegative: see :class:`PrimalDualTV`.
        tolerance: relative gap of each solve.
        max_iterations: of each solve.
        max_solves: most reconstructions.
        report: called with every weight tried and its discrepancy.

    Returns:
        The weight, its trail and its reconstruction.

    Raises:
        ConfigurationError: no weight reaches the target, or not within ``max_solves``.
        ShapeError: projections with batch axes.
    """
    projections = check_projections(operator, fidelity.projections)
    if batch_shape(operator, projections):
        raise ShapeError(
            "The discrepancy principle chooses the weight of one set of projections "
            f"{operator.range_shape}; got {tuple(projections.shape)}. Call it for each of them."
        )
    _check_constant_image(operator, fidelity, target)
    first = first_weight or _noise_weight(operator, fidelity)
    search = _BracketedSecant(math.log(first))
    trail: list[tuple[float, float]] = []
    tensors: dict[str, Tensor] | None = None
    while len(trail) < max_solves:
        weight = math.exp(search.next())
        if not first / _LIMIT <= weight <= first * _LIMIT:
            raise ConfigurationError(_unreachable(trail, target))
        method = PrimalDualTV(
            operator,
            fidelity,
            weight,
            isotropic=isotropic,
            nonnegative=nonnegative,
            tolerance=tolerance,
        )
        state = None
        if tensors is not None:
            warm = method.warm_start(tensors)
            state = IterationState(0, warm).recorded(method.figures(warm))
        solution = iterate(method, max_iterations=max_iterations, state=state)
        tensors = solution.state.tensors
        ratio = 2 * float(solution.history["fidelity"][-1]) / fidelity.size
        trail.append((weight, ratio))
        if report is not None:
            report(weight, ratio)
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if abs(ratio / target - 1) <= accuracy:
            return WeightChoice(weight, ratio, tuple(trail), solution)
        search.tell(math.log(max(ratio, 1e-300) / target))
    raise ConfigurationError(
        f"No TV weight with a discrepancy within {accuracy:.0%} of {target} was found in "
        f"{max_solves} reconstructions; tried (weight, discrepancy) {_shown(trail)}."
    )


def attainable_discrepancy(
    operator: LinearOperator,
    fidelity: Fidelity,
    *,
    enough: float = 0.0,
    isotropic: bool = False,
    nonnegative: bool = True,
    max_iterations: int = 300,
) -> float:
    """Discrepancy that images can reach with next to no total variation, nearly.

    Where it is above 1, geometry, physics or stated noise are not quite those of the
    measurement, and no image fits the projections to the noise level.

    Args:
        operator: A, with an exact adjoint.
        fidelity: data term of one set of projections, without batch axes.
        enough: a discrepancy [noise variances] at which to stop: how far below it images could come
            is not asked. Default: never.
        isotropic: see :class:`PrimalDualTV`.
        nonnegative: see :class:`PrimalDualTV`.
        max_iterations: of :class:`PrimalDualTV`.

    Returns:
        ``2 fidelity / m`` of its best iterate: an upper bound of the least discrepancy.
    """
    weight = _SMALL * _noise_weight(operator, fidelity)
    method = PrimalDualTV(
        operator, fidelity, weight, isotropic=isotropic, nonnegative=nonnegative, tolerance=1e-2
    )

    def is_enough(state: IterationState) -> Status | None:
        ratio = 2 * float(state.figures()["fidelity"]) / fidelity.size
        return Status.DISCREPANCY_REACHED if ratio <= enough else None

    solution = iterate(method, max_iterations=max_iterations, stopping=[is_enough])
    if solution.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return 2 * float(solution.history["fidelity"].min()) / fidelity.size


class _BracketedSecant:
    """Zero of an increasing function: expand to a bracket, then secants by the Illinois rule."""

    def __init__(self, first: float) -> None:
        self.low: tuple[float, float] | None = None
        self.high: tuple[float, float] | None = None
        self._point, self._last_side = first, 0

    def next(self) -> float:
        """Where to evaluate."""
        return self._point

    def tell(self, value: float) -> None:
        """The function's value there."""
        side = 1 if value > 0 else -1
        if side > 0:
            self.high = (self._point, value)
            if self._last_side == side and self.low is not None:
                self.low = (self.low[0], self.low[1] / 2)
        else:
            self.low = (self._point, value)
            if self._last_side == side and self.high is not None:
                self.high = (self.high[0], self.high[1] / 2)
        self._last_side = side
        if self.low is None or self.high is None:
            smallest, largest = map(math.log, _EXPANSION)
            self._point -= side * min(max(abs(value) / _TYPICAL_SLOPE, smallest), largest)
            return
        (a, fa), (b, fb) = self.low, self.high
        self._point = a - fa * (b - a) / (fb - fa)


def _noise_weight(operator: LinearOperator, fidelity: Fidelity) -> float:
    """Root mean square of back-projected noise ``A^T (noise / std^2)``, from one draw."""
    generator = torch.Generator().manual_seed(0)
    shape = fidelity.projections.shape
    draw = torch.randn(shape, generator=generator, dtype=torch.float64).to(fidelity.projections)
    back = operator.adjoint(draw / fidelity.std)
    return float(back.double().square().mean().sqrt())


def _check_constant_image(operator: LinearOperator, fidelity: Fidelity, target: float) -> None:
    """Raise if the best constant image, the limit of large weights, fits too well already."""
    ones = operator(fidelity.projections.new_ones(operator.domain_shape))
    ndim, weights = len(operator.range_shape), fidelity.std.square().reciprocal()
    norm_squared = float(inner(weights * ones, ones, ndim))
    if norm_squared == 0:
        raise ConfigurationError(f"{operator!r} maps images to zero.")
    level = max(0.0, float(inner(weights * ones, fidelity.projections, ndim)) / norm_squared)
    ratio = float(fidelity.discrepancy(level * ones))
    if ratio <= target:
        cause = (
            "the stated noise is larger than all structure in the projections. Check the noise "
            "standard deviation or photon count"
            if target <= 1
            else "no image does much better. Check the signs of the projections, the geometry and "
            "whether the grid is fine enough"
        )
        raise ConfigurationError(
            f"Even a constant image has discrepancy {ratio:.3g}, not above the target "
            f"{target:.3g}: {cause}."
        )


def _unreachable(trail: list[tuple[float, float]], target: float) -> str:
    below = trail[-1][1] > target
    reason = (
        "the projections contradict any image by more than the stated noise: the noise level is "
        "too small, or the geometry or preprocessing is wrong"
        if below
        else "the stated noise is larger than all structure in the projections"
    )
    return (
        f"No TV weight gives discrepancy {target}: {reason}. Tried (weight, discrepancy) "
        f"{_shown(trail)}."
    )


def _shown(trail: list[tuple[float, float]]) -> str:
    return ", ".join(f"({weight:.3g}, {ratio:.3g})" for weight, ratio in trail)
