"""The g-prior: independent weights, each scaled so that it matters equally in the data."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.generator import Parameter
from dipct.posterior.linearised_model import LinearisedModel
from dipct.posterior.weight_prior import FilterGroup, WeightPrior

# A weight that no datum depends on would get an infinite variance.
_SMALLEST_COLUMN, _LARGEST_SCALE = 1e-6, 1e5


class GPrior(WeightPrior):
    """Independent weights, scaled so that each matters equally in the data.

    A weight's standard deviation is ``sqrt(g) s`` with ``s`` one over the root mean square of its
    column of the Jacobian of the data (Antoran et al., arXiv 2210.04994, section 5): it removes
    the arbitrary scale that layers before a normalisation have.

    Args:
        parameters: convolution weights, in the order of the vector of weights.
        column_mean_square: mean over the data of the squared Jacobian, [W].
        variance: g at first.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        column_mean_square: Tensor,
        *,
        variance: float = 0.01,
    ) -> None:
        if not 0 < variance < math.inf:
            raise ConfigurationError(f"variance must be positive and finite; got {variance}.")
        size = sum(parameter.size for parameter in parameters)
        if tuple(column_mean_square.shape) != (size,):
            raise ConfigurationError(
                f"column_mean_square must have one number for each of the {size} weights; got "
                f"shape {tuple(column_mean_square.shape)}."
            )
        self._first = math.log(variance)
        scale = column_mean_square.double().sqrt().clamp(min=_SMALLEST_COLUMN).reciprocal()
        largest = float(scale.max())
        if largest > _LARGEST_SCALE:
            self.advice = (
                f"Some weights matter so little in the data that the g-prior scales them by "
                f"{largest:.0e}."
            )
        groups, start = [], 0
        for block in dict.fromkeys(parameter.block for parameter in parameters):
            stop = start + sum(p.size for p in parameters if p.block == block)
            part = slice(start, stop)
            groups.append(FilterGroup(block, part, torch.ones(1, 1, 1), scale[part]))
            start = stop
        super().__init__(groups, ["g"])

    def initial(self) -> Tensor:
        """See :meth:`WeightPrior.initial`."""
        return torch.tensor([self._first], dtype=torch.float64)

    def bounds(self) -> list[tuple[float, float]]:
        """See :meth:`WeightPrior.bounds`."""
        return [(-30.0, 30.0)]

    def group_coefficients(self, phi: Tensor) -> list[Tensor]:
        """See :meth:`WeightPrior.group_coefficients`."""
        return [phi[:1].exp() for _ in self.groups]


def probed_column_mean_square(model: LinearisedModel, *, probes: int, seed: int) -> Tensor:
    """Mean over the data of the squared Jacobian, without computing all of its rows.

    For random signs v, ``E[(J^T A^T v)^2]`` is the sum of squares of each column.

    Args:
        model: the linear model.
        probes: random sign vectors, a pass through the network each.
        seed: of the signs.

    Returns:
        [W].
    """
    random = torch.Generator().manual_seed(seed)
    total = model.residual.new_zeros(model.n_weights)
    for _ in range(probes):
        signs = torch.randint(2, (1, model.n_data), generator=random) * 2 - 1
        total += model.to_weights(signs.to(model.residual))[0].square()
    return total / (probes * model.n_data)
