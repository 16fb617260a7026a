"""Many data of few pixels, as few data that say the same."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from dipct.operator.base import LinearOperator, apply_linear
from dipct.posterior.evidence import Factorisation, GramEvidence, Valued
from dipct.posterior.linearised_model import LinearisedModel
from dipct.posterior.weight_prior import WeightPrior

_IMAGES_AT_ONCE = 64
_DATA_AT_ONCE = 4096


class SufficientModel(LinearisedModel):
    """A linear model with as many data as its image has pixels, at most, that say the same.

    With data y and operator divided by the deviation of the noise and ``A = Q R``, Q of orthonormal
    columns, only ``Q^T y`` depends on the image: a sufficient statistic, which is ``R x`` and noise
    of variance one. The posterior is what it was, and its matrices get as small as the image. The
    rest of y is noise alone and tells the evidence how much there is: :class:`SufficientEvidence`.

    Args:
        model: with more data than pixels, or it does not get smaller.

    Attributes:
        n_others: number of data that are noise alone.
        others_squared: sum of their squares.
        log_variance: logarithm of the product of all noise variances before.
    """

    def __init__(self, model: LinearisedModel) -> None:
        # All but the data is that of the model, which is not linearised anew.
        vars(self).update(vars(model))
        deviation = model.noise_variance.sqrt()
        transposed = _transposed(model)
        transposed /= deviation
        squared = model.residual.new_zeros(len(transposed), len(transposed), dtype=torch.float64)
        for part in transposed.split(_DATA_AT_ONCE, dim=1):
            squared.addmm_(part.double(), part.double().mT)
        values, vectors = torch.linalg.eigh(squared)
        # Less is rounding: of A, or of its square.
        of_double = torch.finfo(torch.float64).eps
        rounding = max(torch.finfo(transposed.dtype).eps ** 2, of_double) * len(transposed)
        kept = values > rounding * values[-1]
        singular, vectors = values[kept].sqrt(), vectors[:, kept]
        whitened = (model.residual / deviation).double()
        to_pixels = torch.stack(
            [_product(transposed, y / deviation) for y in (model.residual, model.misfit)]
        )
        residual, misfit = (to_pixels @ vectors) / singular
        self.operator = _Dense((singular[:, None] * vectors.mT).to(transposed), model.image.shape)
        self.residual, self.misfit = residual.to(transposed), misfit.to(transposed)
        self.noise_variance = torch.ones_like(self.residual)
        self.n_others = model.n_data - len(residual)
        self.others_squared = max(float(whitened.square().sum() - residual.square().sum()), 0.0)
        self.log_variance = float(model.noise_variance.double().log().sum())


class SufficientEvidence(GramEvidence):
    """The evidence of all data from the Gram matrices of those that suffice.

    As :class:`dipct.posterior.ExactEvidence` of the model that they are from, to rounding.

    Args:
        prior: of the weights.
        gram: its Gram matrices, [K r r].
        model: the data.
    """

    def __init__(self, prior: WeightPrior, gram: Tensor, model: SufficientModel) -> None:
        super().__init__(prior, gram, model.residual, model.noise_variance)
        self._model = model

    @property
    def n_data(self) -> int:
        """Number of all data."""
        return len(self.residual) + self._model.n_others

    def __call__(self, phi: Tensor) -> Valued:
        """See :meth:`GramEvidence.__call__`."""
        found, number, log_factor = super().__call__(phi), self._model.n_others, float(phi[-1])
        misfit = self._model.others_squared * math.exp(-log_factor)
        log_det = number * log_factor + self._model.log_variance
        gradient = found.gradient.clone()
        gradient[-1] += (misfit - number) / 2
        value = found.value - (misfit + log_det + number * math.log(2 * math.pi)) / 2
        parts = {
            "log evidence": value,
            "log determinant": found.parts["log determinant"] + log_det,
            "misfit": found.parts["misfit"] + misfit,
        }
        return replace(found, value=value, gradient=gradient, parts=parts)

    def _misfit(self, phi: Tensor, found: Factorisation) -> tuple[float, Tensor, Tensor | None]:
        solution = found.solve(self.residual[None])[0]
        return float(self.residual @ solution), torch.zeros_like(phi).double().cpu(), solution


class _Dense(LinearOperator):
    """Multiplication of flattened images by a matrix [r n]."""

    def __init__(self, matrix: Tensor, domain_shape: tuple[int, ...]) -> None:
        self.matrix = matrix
        self.domain_shape, self.range_shape = tuple(domain_shape), (len(matrix),)

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._push, self._pull)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._pull, self._push)

    def _push(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: x.ndim - len(self.domain_shape)], -1) @ self.matrix.mT

    def _pull(self, y: Tensor) -> Tensor:
        return (y @ self.matrix).reshape(*y.shape[:-1], *self.domain_shape)


def _transposed(model: LinearisedModel) -> Tensor:
    """A, transposed, [n m]."""
    n, like = model.image.numel(), model.residual
    found = like.new_empty(n, model.n_data)
    units = torch.eye(n, dtype=like.dtype, device=like.device)
    for unit, rows in zip(units.split(_IMAGES_AT_ONCE), found.split(_IMAGES_AT_ONCE), strict=True):
        rows[:] = model.operator(unit.reshape(-1, *model.image.shape)).flatten(1)
    return found


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """Of a matrix and a vector in double precision, without a copy of the matrix in it."""
    pieces = zip(
        matrix.split(_DATA_AT_ONCE, dim=1), vector.double().split(_DATA_AT_ONCE), strict=True
    )
    found = vector.new_zeros(len(matrix), dtype=torch.float64)
    for part, piece in pieces:
        found += part.double() @ piece
    return found
