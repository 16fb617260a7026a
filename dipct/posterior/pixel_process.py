"""A Gaussian process of the pixels themselves: what a network has to be better than."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dipct.errors import ConvergenceError, ShapeError
from dipct.operator.base import LinearOperator
from dipct.posterior.evidence import Valued, factorise
from dipct.posterior.hyperparameter_space import NOISE_BOUNDS
from dipct.posterior.posterior import GaussianImage
from dipct.posterior.tuning import tune

# In pixels, as logarithms.
_LOG_LENGTHS = (math.log(0.3), math.log(300.0))
_LOG_VARIANCES = (-16.0, 10.0)


class PixelProcess(GaussianImage):
    """Posterior of an image whose pixels are a Matern-1/2 process of constant mean.

    Exact, by dense linear algebra on pixels: for small images. Hyper-parameters maximise the
    evidence of the data.

    Args:
        operator: A, linear.
        data: y, [*operator.range_shape].
        noise_variance: of each datum, up to a factor that the evidence chooses, [*range_shape].
        report: called after every iteration of the tuning with its number and figures.

    Attributes:
        tuning: the hyper-parameters and their evidence.
        covariance: of the image, float64 [n n].
        prior_covariance: before the data, float64 [n n].

    Raises:
        ShapeError: shapes that do not fit.
        ConvergenceError: a covariance that is not positive definite.
    """

    def __init__(
        self,
        operator: LinearOperator,
        data: Tensor,
        noise_variance: Tensor | float,
        *,
        report: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        if tuple(data.shape) != operator.range_shape or len(operator.domain_shape) != 3:
            raise ShapeError(
                f"A pixel process needs an operator on images [1 H W] and data of the shape "
                f"{operator.range_shape}; got {operator.domain_shape} and {tuple(data.shape)}."
            )
        evidence = _PixelEvidence(operator, data, noise_variance)
        self.tuning = tune(evidence, report=report)
        prior = self.prior_covariance = evidence.prior_covariance(self.tuning.phi)
        found = factorise(evidence.data_covariance(prior, self.tuning.phi))
        to_data = evidence.matrix @ prior
        self.covariance = prior - to_data.mT @ found.solve(to_data.mT).mT
        image = found.solve(evidence.data[None]) @ to_data
        self.mean = image.reshape(operator.domain_shape).to(data)


class _PixelEvidence:
    """``log N(y; 0, A K A^T + f V)`` of variance, length scale [pixel] and factor of the noise."""

    names = ("variance", "length scale", "noise")

    def __init__(
        self, operator: LinearOperator, data: Tensor, noise_variance: Tensor | float
    ) -> None:
        self.matrix, self.data = operator.to_matrix().double(), data.flatten().double()
        variance = torch.as_tensor(noise_variance, dtype=torch.float64, device=data.device)
        self._noise = variance.broadcast_to(data.shape).flatten()
        rows, columns = operator.domain_shape[1:]
        at = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
        self._distance = torch.cdist(at, at).to(data.device)

    @property
    def n_data(self) -> int:
        return len(self.data)

    def initial(self) -> Tensor:
        return torch.tensor([0.1, 3.0, 1.0], dtype=torch.float64).log()

    def bounds(self) -> list[tuple[float, float]]:
        return [_LOG_VARIANCES, _LOG_LENGTHS, NOISE_BOUNDS]

    def prior_covariance(self, phi: Tensor) -> Tensor:
        return phi[0].exp() * torch.exp(-self._distance * (-phi[1]).exp())

    def data_covariance(self, prior: Tensor, phi: Tensor) -> Tensor:
        return self.matrix @ prior @ self.matrix.mT + torch.diag(phi[2].exp() * self._noise)

    def __call__(self, phi: Tensor) -> Valued:
        variable = phi.detach().requires_grad_()
        covariance = self.data_covariance(self.prior_covariance(variable), variable)
        factor, info = torch.linalg.cholesky_ex(covariance)
        if int(info):
            raise ConvergenceError(
                "The covariance of the data is not positive definite: the noise variance is too "
                "small beside the signal. Give a larger one."
            )
        white = torch.linalg.solve_triangular(factor, self.data[:, None], upper=False)
        log_det = 2 * factor.diagonal().log().sum()
        misfit, constant = white.square().sum(), self.n_data * math.log(2 * math.pi)
        value = -(misfit + log_det + constant) / 2
        (gradient,) = torch.autograd.grad(value, variable)
        return Valued(float(value.detach()), gradient, {"log evidence": float(value.detach())})
