"""Gaussian priors on the weights of a network: one covariance for all filters of a block."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.shapes import check_shape


@dataclass(frozen=True, eq=False)
class FilterGroup:
    """Weights that share a prior: filters of one size, independent of each other.

    The covariance of a filter is ``sum over r of c_r structures[r]``, with coefficients c that
    hyper-parameters decide. A scale multiplies every weight: the covariance of all weights of the
    group is ``diag(scale) (I x sum of c_r structures[r]) diag(scale)``.

    Attributes:
        name: of the block of the network.
        weights: where the group's weights are in the vector of all, filter after filter.
        structures: symmetric matrices over the positions of a filter, [R p p].
        scale: one number per weight; None for ones.
    """

    name: str
    weights: slice
    structures: Tensor
    scale: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weights.stop - self.weights.start

    @property
    def positions(self) -> int:
        """Weights of one filter p."""
        return int(self.structures.shape[-1])

    @property
    def filters(self) -> int:
        """Number of filters."""
        return self.size // self.positions

    def times(self, block: Tensor, matrix: Tensor) -> Tensor:
        """Multiply every filter by a matrix over its positions, without the scale.

        Args:
            block: weights of the group, [... size].
            matrix: [p p].
        """
        if self.positions == 1:
            return block * matrix[0, 0].to(block)
        filters = block.unflatten(-1, (self.filters, self.positions))
        return (filters @ matrix.mT.to(block)).flatten(-2)

    def scaled(self, block: Tensor) -> Tensor:
        """Weights of the group times their scale, [... size]."""
        return block if self.scale is None else block * self.scale.to(block)


class WeightPrior(ABC):
    """A zero-mean Gaussian on the weights, with hyper-parameters in log space.

    The covariance is linear in coefficients, ``Sigma = sum over k of c_k(phi) S_k`` with fixed
    ``S_k``: what is quadratic in the weights, like the covariance of the projections, need only
    be computed once for each k and is then known for all hyper-parameters phi.

    Args:
        groups: consecutive groups of weights.
        names: of the hyper-parameters, in order.

    Attributes:
        groups: as given.
        names: as given.
        size: number of weights.
        advice: what to know about it; empty if all is well.
    """

    advice: str = ""

    def __init__(self, groups: Sequence[FilterGroup], names: Sequence[str]) -> None:
        end = 0
        for group in groups:
            if group.weights.start != end or group.filters * group.positions != group.size:
                raise ShapeError(
                    f"The groups of a prior must follow each other and hold whole filters; "
                    f"{group.name} holds {group.weights} with filters of {group.positions}."
                )
            end = group.weights.stop
        if end == 0:
            raise ConfigurationError("A prior needs weights; there are none.")
        self.groups, self.names, self.size = tuple(groups), tuple(names), end

    @abstractmethod
    def initial(self) -> Tensor:
        """Hyper-parameters to begin with, float64 [H]."""

    @abstractmethod
    def bounds(self) -> list[tuple[float, float]]:
        """Lowest and highest value of each hyper-parameter."""

    @abstractmethod
    def group_coefficients(self, phi: Tensor) -> list[Tensor]:
        """Coefficients c of each group's structures, [R] each, differentiable in phi.

        Args:
            phi: hyper-parameters, [H].
        """

    def coefficients(self, phi: Tensor) -> Tensor:
        """Coefficients of all groups in order, [K], differentiable in phi."""
        check_shape(phi, "H", name="The hyper-parameters", H=len(self.names))
        return torch.cat(self.group_coefficients(phi))

    @property
    def n_components(self) -> int:
        """Number of coefficients K."""
        return sum(len(group.structures) for group in self.groups)

    def filter_covariances(self, phi: Tensor) -> list[Tensor]:
        """Covariance of one filter of each group, without the scale, float64 [p p] each."""
        check_shape(phi, "H", name="The hyper-parameters", H=len(self.names))
        return [
            torch.einsum("r,rij->ij", c, group.structures.to(c))
            for group, c in zip(self.groups, self.group_coefficients(phi), strict=True)
        ]

    def apply(self, phi: Tensor, block: Tensor) -> Tensor:
        """Covariance times weights.

        Args:
            phi: hyper-parameters, [H].
            block: [... W].

        Returns:
            [... W].
        """
        return self._per_group(
            block,
            [
                lambda part, group=group, matrix=matrix: group.scaled(
                    group.times(group.scaled(part), matrix)
                )
                for group, matrix in zip(self.groups, self.filter_covariances(phi), strict=True)
            ],
        )

    def solve(self, phi: Tensor, block: Tensor) -> Tensor:
        """Inverse covariance times weights, [... W]; arguments as :meth:`apply`."""
        parts = []
        for group, matrix in zip(self.groups, self.filter_covariances(phi), strict=True):
            inverse = torch.linalg.inv(matrix)

            def solve(
                part: Tensor, group: FilterGroup = group, inverse: Tensor = inverse
            ) -> Tensor:
                if group.scale is None:
                    return group.times(part, inverse)
                scale = group.scale.to(part)
                return group.times(part / scale, inverse) / scale

            parts.append(solve)
        return self._per_group(block, parts)

    def log_det(self, phi: Tensor) -> Tensor:
        """Log-determinant of the covariance, a float64 scalar, differentiable in phi."""
        total = torch.zeros((), dtype=torch.float64, device=phi.device)
        for group, matrix in zip(self.groups, self.filter_covariances(phi), strict=True):
            total = total + group.filters * torch.linalg.slogdet(matrix).logabsdet
            if group.scale is not None:
                total = total + 2 * group.scale.double().log().sum()
        return total

    def sample(
        self, phi: Tensor, number: int, generator: torch.Generator, *, dtype: torch.dtype
    ) -> Tensor:
        """Draw weights.

        Args:
            phi: hyper-parameters, [H].
            number: of draws.
            generator: of random numbers, on the device where the weights shall be.
            dtype: of the weights.

        Returns:
            [number W].
        """
        device = generator.device
        white = torch.randn(number, self.size, generator=generator, dtype=dtype, device=device)
        parts = []
        for group, matrix in zip(self.groups, self.filter_covariances(phi), strict=True):
            # A draw is L e with covariance L L^T = the filter's; L^T e has another one.
            factor = torch.linalg.cholesky(matrix)
            parts.append(
                lambda part, group=group, factor=factor: group.scaled(group.times(part, factor))
            )
        return self._per_group(white, parts)

    def _per_group(self, block: Tensor, functions: list) -> Tensor:  # type: ignore[type-arg]
        check_shape(block, "... W", name="The weights", W=self.size)
        parts = [
            function(block[..., group.weights])
            for group, function in zip(self.groups, functions, strict=True)
        ]
        return torch.cat(parts, dim=-1)
