"""Fitting under dropout: Monte Carlo dropout as a baseline of uncertainty."""

from dataclasses import replace

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.generator import ParameterLayout
from dipct.generator.channel_dropout import channel_dropout
from dipct.solver.loss import Evaluation, GeneratorLoss
from dipct.solver.optimiser import Optimiser

_SEEDS_APART = 1_000_003


class DropoutOptimiser(Optimiser):
    """Another optimiser that sees the loss with channels dropped, others in every step.

    Images of parameters with channels dropped are then draws of an approximate posterior (Gal &
    Ghahramani, ICML 2016; Laves et al., arXiv 2006.15135, for the Deep Image Prior).

    Args:
        inner: makes the steps.
        layout: of the generator's parameters.
        rate: probability of dropping a channel.
        seed: of the draws.

    Raises:
        ConfigurationError: a rate outside [0, 1).
    """

    def __init__(
        self, inner: Optimiser, layout: ParameterLayout, rate: float, *, seed: int
    ) -> None:
        if not 0 <= rate < 1:
            raise ConfigurationError(f"rate must be in [0, 1); got {rate}.")
        self._inner, self._layout, self._rate, self._seed = inner, layout, rate, seed

    def check(self, theta: Tensor) -> None:
        """See :meth:`Optimiser.check`."""
        self._inner.check(theta)

    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """See :meth:`Optimiser.start`."""
        return self._inner.start(theta)

    def evaluate(self, theta: Tensor, loss: GeneratorLoss, step: int) -> Evaluation:
        """See :meth:`Optimiser.evaluate`: with the channels of this step dropped."""
        # A function of the step alone, so that a fit can be resumed.
        random = torch.Generator().manual_seed(self._seed + _SEEDS_APART * (step + 1))
        number = max(1, theta[..., 0].numel())
        factors = channel_dropout(self._layout, self._rate, number, random)
        factors = factors.to(theta).reshape(theta.shape)
        here = loss.differentiate(theta * factors)
        assert here.gradient is not None
        return replace(here, gradient=here.gradient * factors)

    def step(
        self,
        theta: Tensor,
        memory: dict[str, Tensor],
        here: Evaluation,
        loss: GeneratorLoss,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Optimiser.step`."""
        return self._inner.step(theta, memory, here, loss, step)
