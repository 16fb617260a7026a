"""A Gaussian process of the pixels themselves: what a network has to be better than."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dipct.errors import ShapeError
from dipct.operator.base import LinearOperator
from dipct.posterior.evidence import factorise
from dipct.posterior.posterior import GaussianImage
from dipct.posterior.tuning import NOISE_BOUNDS, Tuning
from dipct.shapes import check_shape

_NAMES = ("variance", "length scale", "noise")
# In pixels, as logarithms.
_LOG_LENGTHS = (math.log(0.3), math.log(300.0))
_LOG_VARIANCES = (-16.0, 10.0)
_TOLERANCE = 1e-5


class PixelProcess(GaussianImage):
    """Posterior of an image whose pixels are a Matern-1/2 process of constant mean.

    Exact, by dense linear algebra on pixels: for small images. Hyper-parameters maximise the
    evidence of the data.

    Args:
        operator: A, linear.
        data: y, [*operator.range_shape].
        noise_variance: of each datum, up to a factor that the evidence chooses, [*range_shape].

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
        self._matrix = operator.to_matrix().double()
        self._data = data.flatten().double()
        variance = torch.as_tensor(noise_variance, dtype=torch.float64, device=data.device)
        self._noise = variance.broadcast_to(data.shape).flatten()
        rows, columns = operator.domain_shape[1:]
        at = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
        self._distance = torch.cdist(at, at).to(data.device)
        self.tuning = self._tune(report)
        prior = self.prior_covariance = self._prior(self.tuning.phi)
        found = factorise(self._data_covariance(prior, self.tuning.phi))
        to_data = self._matrix @ prior
        self.covariance = prior - to_data.mT @ found.solve(to_data.mT).mT
        image = found.solve(self._data[None]) @ to_data
        self.mean = image.reshape(operator.domain_shape).to(data)

    def log_evidence(self, phi: Tensor) -> Tensor:
        """``log N(y; 0, A K A^T + f V)`` [nat], differentiable in the hyper-parameters.

        Args:
            phi: logarithms of variance, length scale [pixel] and factor of the noise, [3].
        """
        check_shape(phi, "H", name="The hyper-parameters", H=len(_NAMES))
        covariance = self._data_covariance(self._prior(phi), phi)
        factor = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(factor, self._data[:, None], upper=False)
        log_det = 2 * factor.diagonal().log().sum()
        return -(white.square().sum() + log_det + len(self._data) * math.log(2 * math.pi)) / 2

    def _prior(self, phi: Tensor) -> Tensor:
        return phi[0].exp() * torch.exp(-self._distance * (-phi[1]).exp())

    def _data_covariance(self, prior: Tensor, phi: Tensor) -> Tensor:
        return self._matrix @ prior @ self._matrix.mT + torch.diag(phi[2].exp() * self._noise)

    def _tune(self, report: Callable[[int, dict[str, float]], None] | None) -> Tuning:
        from scipy.optimize import minimize

        scale, records = len(self._data), []

        def objective(at: np.ndarray) -> tuple[float, np.ndarray]:
            phi = torch.from_numpy(at.copy()).requires_grad_()
            value = self.log_evidence(phi)
            (gradient,) = torch.autograd.grad(value, phi)
            return -float(value.detach()) / scale, -gradient.numpy() / scale

        def keep(at: np.ndarray) -> None:
            value = -objective(at)[0] * scale
            logs = dict(zip(_NAMES, at.tolist(), strict=True))
            records.append({"log evidence": value, **logs})
            if report is not None:
                report(len(records) - 1, records[-1])

        bounds = [_LOG_VARIANCES, _LOG_LENGTHS, NOISE_BOUNDS]
        first = np.array([math.log(0.1), math.log(3.0), 0.0])
        keep(first)
        result = minimize(
            objective,
            first,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            callback=keep,
            options={"gtol": _TOLERANCE, "ftol": 1e-14},
        )
        low, high = (np.array(side) for side in zip(*bounds, strict=True))
        gradient = -objective(result.x)[1]
        norm = float(np.abs(np.clip(result.x + gradient, low, high) - result.x).max())
        converged = norm <= _TOLERANCE
        return Tuning(
            phi=torch.from_numpy(result.x.copy()),
            names=_NAMES,
            log_evidence=-float(result.fun) * scale,
            converged=converged,
            gradient_norm=norm,
            jitter=0.0,
            trace={name: np.array([r[name] for r in records]) for name in records[0]},
            advice=""
            if converged
            else f"The gradient per datum is {norm:.1e}: it did not converge.",
        )
