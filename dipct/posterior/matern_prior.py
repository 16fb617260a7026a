"""The hierarchical prior on convolution weights: Matern over the positions of a filter."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.generator import Parameter
from dipct.posterior.weight_prior import FilterGroup, WeightPrior

Smoothness = Literal["1/2", "3/2", "5/2"]

# On the diagonal of a filter's covariance: at long length scales it is nearly singular.
_STABILISER = 1e-6
LOWEST_VARIANCE = math.exp(-6.9)
"""About 0.001, as published, for images of order one; see :class:`MaternPrior`."""
_HIGHEST_VARIANCE = math.exp(14)
# Beyond a hundredth and a hundred filter widths nothing changes any more.
_LOG_LENGTHS = (math.log(3e-2), math.log(3e2))


class MaternPrior(WeightPrior):
    """Filters independent of each other, a Matern process over the positions of each.

    Every block of convolutions larger than 1 x 1 has a variance and a length scale, in pixels of
    the filter; every block of 1 x 1 convolutions a variance (Antoran et al., arXiv 2203.00479,
    section 3.2; Rasmussen & Williams, "Gaussian processes for machine learning", eq. 4.14, for
    the covariances).

    Args:
        parameters: convolution weights, in the order of the vector of weights: those of a block
            together.
        smoothness: nu of the Matern covariance.
        variance: of every block at first, unless that is below the lowest.
        length_scale: of every block at first [pixel].
        lowest_variance: of every block. The evidence of a single scan tends to switch blocks off
            altogether, and then knows more than it can: a floor keeps each of them in doubt.

    Raises:
        ConfigurationError: an unknown smoothness, or values that are not positive.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        smoothness: Smoothness = "1/2",
        variance: float = 1.0,
        length_scale: float = 0.1,
        lowest_variance: float = LOWEST_VARIANCE,
    ) -> None:
        if smoothness not in _CORRELATIONS:
            raise ConfigurationError(f"smoothness must be 1/2, 3/2 or 5/2; got {smoothness!r}.")
        if not (0 < variance < math.inf and 0 < length_scale < math.inf):
            raise ConfigurationError(
                "variance and length_scale must be positive and finite; got "
                f"{variance} and {length_scale}."
            )
        if not 0 < lowest_variance < _HIGHEST_VARIANCE:
            raise ConfigurationError(
                f"lowest_variance must be positive and below {_HIGHEST_VARIANCE:g}; got "
                f"{lowest_variance}."
            )
        self.smoothness, self.lowest_variance = smoothness, lowest_variance
        self._first = (math.log(max(variance, lowest_variance)), math.log(length_scale))
        groups, names, self._distances = [], [], []
        for group, distances in _groups(parameters):
            groups.append(group)
            self._distances.append(distances)
            names.append(f"{group.name} variance")
            if group.positions > 1:
                names.append(f"{group.name} length scale")
        super().__init__(groups, names)

    def initial(self) -> Tensor:
        """See :meth:`WeightPrior.initial`."""
        variance, length = self._first
        values = [variance if name.endswith("variance") else length for name in self.names]
        return torch.tensor(values, dtype=torch.float64)

    def bounds(self) -> list[tuple[float, float]]:
        """See :meth:`WeightPrior.bounds`."""
        of_variance = (math.log(self.lowest_variance), math.log(_HIGHEST_VARIANCE))
        return [of_variance if n.endswith("variance") else _LOG_LENGTHS for n in self.names]

    def group_coefficients(self, phi: Tensor) -> list[Tensor]:
        """See :meth:`WeightPrior.group_coefficients`."""
        found, at = [], 0
        for distances in self._distances:
            variance = phi[at].exp()
            at += 1
            if len(distances) == 1:
                found.append(variance[None])
                continue
            ratio = distances.to(phi) / phi[at].exp()
            at += 1
            correlation = _CORRELATIONS[self.smoothness](ratio)
            on_diagonal = (distances == 0).to(phi)
            found.append(variance * (correlation + _STABILISER * on_diagonal))
        return found

    @property
    def length_scales(self) -> dict[str, int]:
        """Index in the hyper-parameters of the length scale of each block that has one."""
        suffix = " length scale"
        return {
            name.removesuffix(suffix): i
            for i, name in enumerate(self.names)
            if name.endswith(suffix)
        }


def _exponential(ratio: Tensor) -> Tensor:
    return torch.exp(-ratio)


def _once_differentiable(ratio: Tensor) -> Tensor:
    scaled = math.sqrt(3) * ratio
    return (1 + scaled) * torch.exp(-scaled)


def _twice_differentiable(ratio: Tensor) -> Tensor:
    scaled = math.sqrt(5) * ratio
    return (1 + scaled + scaled.square() / 3) * torch.exp(-scaled)


_CORRELATIONS = {
    "1/2": _exponential,
    "3/2": _once_differentiable,
    "5/2": _twice_differentiable,
}


def _groups(parameters: Sequence[Parameter]) -> list[tuple[FilterGroup, Tensor]]:
    """Groups of the weights of each block, with the distances their structures belong to."""
    found: list[tuple[FilterGroup, Tensor]] = []
    start, before = 0, None
    for parameter in parameters:
        kernel = parameter.shape[2:]
        stop = start + parameter.size
        if (parameter.block, kernel) == before:
            group, distances = found[-1]
            found[-1] = (replace(group, weights=slice(group.weights.start, stop)), distances)
        else:
            if any(parameter.block == group.name for group, _ in found):
                raise ConfigurationError(
                    f"The weights of block {parameter.block} must lie together and have one "
                    "filter size."
                )
            distances, structures = _distance_structures(kernel)
            found.append((FilterGroup(parameter.block, slice(start, stop), structures), distances))
        start, before = stop, (parameter.block, kernel)
    return found


def _distance_structures(kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Distances between positions of a filter [R], and where in [p p] each occurs, [R p p]."""
    axes = [torch.arange(n, dtype=torch.float64) for n in kernel]
    positions = torch.cartesian_prod(*axes).reshape(-1, len(kernel))
    # Whole squares tell equal distances apart from nearly equal ones.
    squared = (positions[:, None] - positions[None]).square().sum(-1)
    values = squared.unique()
    return values.sqrt(), (squared == values[:, None, None]).to(torch.float64)
