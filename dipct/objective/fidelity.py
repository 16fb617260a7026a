"""Data fidelities: summed negative log-likelihoods of projections, with their convex conjugates."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dipct.errors import DataError
from dipct.shapes import check_shape

_NEWTON_STEPS = 60


class Fidelity(ABC):
    """A convex data term of the line integrals ``eta = A x``, summed over all measured values.

    It is the negative log-likelihood of the measured projections, shifted by a constant so that
    it is 0 for a perfect fit. Line integrals and projections are dimensionless, so the value
    does not depend on the unit of length. Leading axes are batch axes.

    Attributes:
        projections: measured projections, [... *range_shape].
        range_shape: shape of one set of projections: ``(A, D)`` or ``(A, R, D)``.
        std: standard deviation of the measured values, to first order where the noise is not
            Gaussian; broadcasts to the projections.
    """

    projections: Tensor
    range_shape: tuple[int, ...]
    std: Tensor

    def __init__(self, projections: Tensor, range_shape: tuple[int, ...] | None) -> None:
        shape = tuple(projections.shape if range_shape is None else range_shape)
        check_shape(projections, _pattern(shape), name="The projections")
        if not torch.isfinite(projections).all():
            raise DataError(
                f"{int((~torch.isfinite(projections)).sum())} of {projections.numel()} "
                "projection values are NaN or infinite. Interpolate the bad pixels, or replace "
                "them by any number and give them a large standard deviation."
            )
        self.projections = projections
        self.range_shape = shape

    @property
    def size(self) -> int:
        """Number of measured values m of one set of projections."""
        return int(torch.Size(self.range_shape).numel())

    @abstractmethod
    def value(self, eta: Tensor) -> Tensor:
        """The fidelity, differentiable in ``eta``.

        Args:
            eta: line integrals, [... *range_shape].

        Returns:
            [...], one nonnegative number per batch element.
        """

    @abstractmethod
    def conjugate(self, p: Tensor) -> Tensor:
        """Convex conjugate ``sup over eta of <p, eta> - value(eta)``.

        Args:
            p: dual variable, [... *range_shape].

        Returns:
            [...]; infinite outside the domain.
        """

    @abstractmethod
    def prox_conjugate(self, p: Tensor, step: Tensor | float) -> Tensor:
        """Minimiser over ``q`` of ``conjugate(q) + sum (q - p)^2 / (2 step)``.

        Args:
            p: [... *range_shape].
            step: positive; one number, or one per value in a tensor that broadcasts.

        Returns:
            [... *range_shape], inside the domain of the conjugate.
        """

    def discrepancy(self, eta: Tensor) -> Tensor:
        """Twice the value over the number of measurements (for Gaussian noise: reduced chi^2).

        Its expectation is about 1 where ``eta`` are the true line integrals.

        Args:
            eta: line integrals, [... *range_shape].

        Returns:
            [...].
        """
        return 2 * self.value(eta) / self.size

    def _sum(self, terms: Tensor) -> Tensor:
        return terms.flatten(-len(self.range_shape)).sum(-1)

    def _check(self, eta: Tensor) -> None:
        check_shape(eta, _pattern(self.range_shape), name="The argument of the fidelity")


class GaussianFidelity(Fidelity):
    """``sum (eta - y)^2 / (2 std^2)``: independent Gaussian noise.

    Args:
        projections: measured projections y, [... *range_shape].
        std: noise standard deviation, dimensionless: one number, or a tensor that broadcasts to
            the projections (a weighted fidelity).
        range_shape: shape of one set of projections; default: the whole shape of
            ``projections``, without batch axes.

    Raises:
        DataError: projections that are not finite, or a standard deviation that is not positive.
        ShapeError: shapes that do not fit.
    """

    def __init__(
        self,
        projections: Tensor,
        std: float | Tensor,
        *,
        range_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(projections, range_shape)
        self.std = _per_value(std, projections, "noise standard deviation")

    def value(self, eta: Tensor) -> Tensor:
        """See :meth:`Fidelity.value`."""
        self._check(eta)
        return self._sum(((eta - self.projections) / self.std).square()) / 2

    def conjugate(self, p: Tensor) -> Tensor:
        """``sum std^2 p^2 / 2 + y p``; see :meth:`Fidelity.conjugate`."""
        self._check(p)
        return self._sum((self.std * p).square() / 2 + self.projections * p)

    def prox_conjugate(self, p: Tensor, step: Tensor | float) -> Tensor:
        """See :meth:`Fidelity.prox_conjugate`."""
        return (p - step * self.projections) / (1 + step * self.std.square())


class PoissonFidelity(Fidelity):
    """Half the deviance of Poisson counts with mean ``I0 exp(-eta)``: transmission tomography.

    With counts ``n = I0 exp(-y)`` the negative log-likelihood is ``sum I0 exp(-eta) + n eta``
    (Lange & Carson, J. Comput. Assist. Tomogr. 8, 1984); its minimum, at ``eta = y``, is
    subtracted.

    Args:
        projections: ``y = -log(counts / I0)``, [... *range_shape].
        photons: expected counts I0 of an unattenuated ray: one number, or a tensor that
            broadcasts to the projections.
        range_shape: shape of one set of projections; default: the whole shape of
            ``projections``, without batch axes.

    Raises:
        DataError: projections that are not finite, or counts that are not positive.
        ShapeError: shapes that do not fit.
    """

    def __init__(
        self,
        projections: Tensor,
        photons: float | Tensor,
        *,
        range_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(projections, range_shape)
        self.photons = _per_value(photons, projections, "photon count of an unattenuated ray")
        self.counts = self.photons * torch.exp(-projections)
        self.std = self.counts.rsqrt()

    def value(self, eta: Tensor) -> Tensor:
        """See :meth:`Fidelity.value`."""
        self._check(eta)
        excess = eta - self.projections
        # n (exp(-d) - 1 + d): the difference of two large sums would lose all digits near 0.
        return self._sum(self.counts * (torch.expm1(-excess) + excess))

    def conjugate(self, p: Tensor) -> Tensor:
        """``sum (n - p) log((n - p) / n) + p + p y`` for ``p <= n``; else infinite."""
        self._check(p)
        rest = self.counts - p
        terms = torch.special.xlog1py(rest, -p / self.counts) + p + p * self.projections
        return self._sum(torch.where(rest >= 0, terms, torch.inf))

    def prox_conjugate(self, p: Tensor, step: Tensor | float) -> Tensor:
        """See :meth:`Fidelity.prox_conjugate`.

        With the excess ``t`` of the line integral over the measured one, ``q = n (1 - exp(-t))``
        and the optimality condition is ``n (1 - exp(-t)) + step t = p - step y``.
        """
        step = torch.as_tensor(step, dtype=p.dtype, device=p.device)
        excess = _solve_excess(self.counts, step, p - step * self.projections)
        return -self.counts * torch.expm1(-excess)


def _solve_excess(n: Tensor, step: Tensor, right: Tensor) -> Tensor:
    """Solve ``n (1 - exp(-t)) + step t = right`` for ``t`` by Newton's method.

    The left side increases and is concave: Newton's method climbs monotonically from any start
    below the root. Such starts come from bounding the exponential by its tangent at 0, by 0 and,
    where ``right`` is negative, from dropping ``step t``.
    """
    t = torch.maximum(right / (n + step), (right - n) / step)
    t = torch.maximum(t, torch.where(right < 0, -torch.log1p(-right.clamp(max=0) / n), t))
    tolerance = 4 * torch.finfo(right.dtype).eps
    for _ in range(_NEWTON_STEPS):
        remaining = torch.exp(-t)
        change = (right + n * torch.expm1(-t) - step * t) / (n * remaining + step)
        t = t + change
        if bool((change.abs() <= tolerance * (1 + t.abs())).all()):
            break
    return t


def _pattern(shape: tuple[int, ...]) -> str:
    return " ".join(["...", *map(str, shape)])


def _per_value(number: float | Tensor, projections: Tensor, what: str) -> Tensor:
    values = torch.as_tensor(number, dtype=projections.dtype, device=projections.device)
    try:
        fits = torch.broadcast_shapes(values.shape, projections.shape) == projections.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise DataError(
            f"The {what} must be one number or broadcast to the projections "
            f"{tuple(projections.shape)}; got shape {tuple(values.shape)}."
        )
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise DataError(f"The {what} must be positive and finite everywhere.")
    return values
