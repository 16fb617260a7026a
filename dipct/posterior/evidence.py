"""The evidence of the hyper-parameters, exactly: a Gaussian density of the data."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from dipct.errors import ConvergenceError, ShapeError
from dipct.posterior.hyperparameter_space import HyperparameterSpace
from dipct.posterior.weight_prior import WeightPrior
from dipct.shapes import check_shape

_ROWS_AT_ONCE = 512
_JITTERS = (0.0, *(10.0**power for power in range(-12, -2)))


@dataclass(frozen=True, eq=False)
class Factorisation:
    """A covariance of the data and its Cholesky factor.

    Attributes:
        factor: lower triangular, float64 [m m].
        jitter: what had to be added to the diagonal for rounding to leave it positive definite,
            relative to its mean; 0 if nothing.
    """

    factor: Tensor
    jitter: float

    def solve(self, block: Tensor) -> Tensor:
        """Inverse covariance times rows, [k m] to [k m]."""
        right = block.to(self.factor).mT
        return torch.cholesky_solve(right, self.factor).mT.to(block)

    @property
    def log_det(self) -> Tensor:
        """Log-determinant of the covariance."""
        return 2 * self.factor.diagonal().log().sum()


@dataclass(frozen=True, eq=False)
class Valued:
    """A function of the hyper-parameters at one place.

    Attributes:
        value: of the function.
        gradient: with respect to the hyper-parameters, float64 [H].
        parts: named parts of the value, for the record.
        jitter: see :class:`Factorisation`.
    """

    value: float
    gradient: Tensor
    parts: dict[str, float]
    jitter: float = 0.0


class GramEvidence(HyperparameterSpace, ABC):
    """A log-density of the data with the covariance ``K = sum over k of c_k(phi) G_k + f V``.

    The last hyper-parameter is the logarithm of the factor f of the noise variance V.

    Args:
        prior: of the weights.
        gram: its Gram matrices, [K m m].
        residual: what the linear model has to explain, [m].
        noise_variance: V, the diagonal, [m].

    Raises:
        ShapeError: shapes that do not fit.
    """

    def __init__(
        self, prior: WeightPrior, gram: Tensor, residual: Tensor, noise_variance: Tensor
    ) -> None:
        check_shape(residual, "m", name="The residual")
        m = len(residual)
        if tuple(gram.shape) != (prior.n_components, m, m) or noise_variance.shape != (m,):
            raise ShapeError(
                f"For {m} data and this prior the Gram matrices must have shape "
                f"({prior.n_components}, {m}, {m}) and the noise variance ({m},); got "
                f"{tuple(gram.shape)} and {tuple(noise_variance.shape)}."
            )
        super().__init__(prior)
        self.gram = gram
        self.residual = residual.to(gram.device, torch.float64)
        self.noise_variance = noise_variance.to(gram.device, torch.float64)

    @property
    def n_data(self) -> int:
        """Number of data m."""
        return len(self.residual)

    def covariance(self, phi: Tensor) -> Tensor:
        """Covariance K of the data, float64 [m m]."""
        check_shape(phi, "H", name="The hyper-parameters", H=len(self.names))
        result = self.prior_covariance(phi)
        result.diagonal().add_(phi[-1].exp().to(result) * self.noise_variance)
        return result

    def prior_covariance(self, phi: Tensor) -> Tensor:
        """Covariance of the data without noise, float64 [m m]."""
        coefficients = self.prior.coefficients(phi[:-1].double()).to(self.gram.device)
        result = torch.zeros_like(self.gram[0], dtype=torch.float64)
        # One at a time: a sum over all of them at once would need them all in double precision.
        for coefficient, matrix in zip(coefficients, self.gram, strict=True):
            result.add_(matrix.to(torch.float64), alpha=float(coefficient))
        return result

    def factorise(self, phi: Tensor) -> Factorisation:
        """Cholesky factor of the covariance."""
        return factorise(self.covariance(phi))

    def __call__(self, phi: Tensor) -> Valued:
        """The evidence and its gradient.

        Args:
            phi: hyper-parameters, [H].

        Returns:
            The evidence [nat], its gradient, and its parts.
        """
        found = self.factorise(phi)
        misfit, change, in_data = self._misfit(phi, found)
        log_det = float(found.log_det)
        # d value / d c_k = (solution^T G_k solution - tr K^-1 G_k) / 2.
        weights = -torch.cholesky_inverse(found.factor)
        if in_data is not None:
            weights += torch.outer(in_data, in_data)
        slopes = torch.stack([_product(weights, matrix) for matrix in self.gram]) / 2
        variable = phi.detach().double().cpu().requires_grad_()
        coefficients = self.prior.coefficients(variable[:-1])
        (gradient,) = torch.autograd.grad(coefficients, variable, slopes.cpu())
        noise = phi[-1].exp().to(weights) * self.noise_variance
        gradient[-1] = float(weights.diagonal() @ noise) / 2
        m = len(self.residual)
        value = -(misfit + log_det + m * math.log(2 * math.pi)) / 2
        parts = {"log evidence": value, "log determinant": log_det, "misfit": misfit}
        return Valued(value, gradient - change / 2, parts, found.jitter)

    @abstractmethod
    def _misfit(self, phi: Tensor, found: Factorisation) -> tuple[float, Tensor, Tensor | None]:
        """What the density has of the data, beside the determinant.

        Returns:
            Its value; its gradient [H] except for what K contributes; and for that a vector u
            [m], if any, where its derivative is ``- u^T dK u``.
        """


class ExactEvidence(GramEvidence):
    """``log N(residual; 0, K)``: the marginal likelihood of the linear model.

    Its mode needs not be found, for the weights are integrated out (MacKay, Neural Computation 4,
    1992; Rasmussen & Williams, eq. 5.8 and 5.9). Arguments as :class:`GramEvidence`.
    """

    def log_density_of(self, found: Factorisation) -> float:
        """The evidence [nat] from the factor of the covariance, without its gradient."""
        misfit = float(self.residual @ found.solve(self.residual[None])[0])
        constant = len(self.residual) * math.log(2 * math.pi)
        return -(misfit + float(found.log_det) + constant) / 2

    def _misfit(self, phi: Tensor, found: Factorisation) -> tuple[float, Tensor, Tensor | None]:
        solution = found.solve(self.residual[None])[0]
        return float(self.residual @ solution), torch.zeros_like(phi).double().cpu(), solution


def factorise(covariance: Tensor) -> Factorisation:
    """Cholesky factor of a covariance, with as little added to its diagonal as needed.

    Args:
        covariance: float64 [m m].

    Raises:
        ConvergenceError: it is not positive definite by more than rounding.
    """
    mean = covariance.diagonal().mean()
    for jitter in _JITTERS:
        shifted = covariance
        if jitter:
            shifted = covariance.clone()
            shifted.diagonal().add_(jitter * mean)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info) == 0:
            return Factorisation(factor, jitter)
    raise ConvergenceError(
        "The covariance of the data is not positive definite, not even with "
        f"{_JITTERS[-1]:.0e} of its mean diagonal added. Compute Gram matrices in float64, or "
        "check that the Jacobian is finite."
    )


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Sum of the products of the entries of two matrices, in double precision."""
    total = one.new_zeros(())
    for rows in range(0, len(one), _ROWS_AT_ONCE):
        part = slice(rows, rows + _ROWS_AT_ONCE)
        total += torch.sum(one[part] * other[part])
    return total
