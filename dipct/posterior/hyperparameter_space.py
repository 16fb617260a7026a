"""The hyper-parameters of a prior of the weights together with that of the noise."""

import torch
from torch import Tensor

from dipct.posterior.weight_prior import WeightPrior

NOISE_BOUNDS = (-10.0, 10.0)
"""Of the logarithm of the factor of the noise variance."""


class HyperparameterSpace:
    """Logarithms of a prior's hyper-parameters, and last of a factor of the noise variance.

    Args:
        prior: of the weights.

    Attributes:
        prior: as given.
    """

    def __init__(self, prior: WeightPrior) -> None:
        self.prior = prior

    @property
    def names(self) -> tuple[str, ...]:
        """Of the hyper-parameters."""
        return (*self.prior.names, "noise")

    def initial(self) -> Tensor:
        """Hyper-parameters to begin with: the prior's, and noise as it is, float64 [H]."""
        first = self.prior.initial()
        return torch.cat([first, first.new_zeros(1)])

    def bounds(self) -> list[tuple[float, float]]:
        """Lowest and highest value of each hyper-parameter."""
        return [*self.prior.bounds(), NOISE_BOUNDS]
