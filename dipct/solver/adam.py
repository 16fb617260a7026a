"""Adam with a schedule and clipping, as a pure function of its state."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.shapes import check_shape
from dipct.solver.loss import Evaluation, GeneratorLoss
from dipct.solver.optimiser import Optimiser

Schedule = Callable[[int], float]
"""From the number of completed steps to a factor of the learning rate."""


@dataclass(frozen=True)
class WarmUp:
    """Learning rate that rises linearly over the first steps, then stays.

    Attributes:
        steps: after so many it is full.
    """

    steps: int

    def __call__(self, step: int) -> float:
        """The factor before a step."""
        return min(1.0, (step + 1) / max(self.steps, 1))


@dataclass(frozen=True)
class CosineDecay:
    """Linear warm-up, then half a cosine down to zero (Loshchilov & Hutter, ICLR 2017).

    Attributes:
        total: the step at which it is zero.
        warm_up: steps of the rise.
    """

    total: int
    warm_up: int = 0

    def __call__(self, step: int) -> float:
        """The factor before a step."""
        share = (step - self.warm_up) / max(self.total - self.warm_up, 1)
        decay = (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2
        return WarmUp(self.warm_up)(step) * decay


@dataclass(frozen=True)
class OneCycle:
    """Half a cosine up to the full rate and half a cosine down (Smith & Topin, arXiv 1708.07120).

    Attributes:
        total: the last step.
        rising: share of the steps on the way up.
        first: factor of the first step.
        last: factor of the last.
    """

    total: int
    rising: float = 0.3
    first: float = 1 / 25
    last: float = 1 / 250_000

    def __call__(self, step: int) -> float:
        """The factor before a step."""
        top = max(self.rising * self.total - 1, 0.0)
        if step <= top:
            return self._between(self.first, 1.0, step / max(top, 1.0))
        share = (step - top) / max(self.total - 1 - top, 1.0)
        return self._between(1.0, self.last, min(share, 1.0))

    @staticmethod
    def _between(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, eq=False)
class Adam(Optimiser):
    """Adam (Kingma & Ba, ICLR 2015) for flat vectors, each element of a batch by itself.

    Attributes:
        learning_rate: one number, or one per parameter [P]; zero freezes a parameter.
        schedule: factor of the learning rate; default: always 1.
        clip: gradients longer than this are shortened to it; default: never.
        betas: decay of the averages of the gradient and of its square.
        epsilon: keeps the division finite.
        weight_decay: so many times the parameters are added to the gradient, after clipping.
    """

    learning_rate: float | Tensor = 1e-3
    schedule: Schedule | None = None
    clip: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        rate = torch.as_tensor(self.learning_rate)
        if not bool((torch.isfinite(rate) & (rate >= 0)).all()) or not bool((rate > 0).any()):
            raise ConfigurationError(
                f"learning_rate must be positive and finite; got {self.learning_rate}."
            )
        if self.clip is not None and not self.clip > 0:
            raise ConfigurationError(f"clip must be positive; got {self.clip}.")
        if not all(0 <= beta < 1 for beta in self.betas) or not self.epsilon > 0:
            raise ConfigurationError(
                f"betas must lie in [0, 1) and epsilon be positive; got {self.betas} and "
                f"{self.epsilon}."
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigurationError(
                f"weight_decay must be zero or positive and finite; got {self.weight_decay}."
            )

    def check(self, theta: Tensor) -> None:
        """See :meth:`Optimiser.check`."""
        rate = torch.as_tensor(self.learning_rate)
        if rate.ndim > 0:
            check_shape(rate, "P", name="The learning rate", P=theta.shape[-1])

    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """The averages before the first step."""
        return {"gradient_mean": torch.zeros_like(theta), "square_mean": torch.zeros_like(theta)}

    def step(
        self,
        theta: Tensor,
        memory: dict[str, Tensor],
        here: Evaluation,
        loss: GeneratorLoss,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Optimiser.step`."""
        assert here.gradient is not None
        return self.update(theta, memory, here.gradient, step)

    def update(
        self, theta: Tensor, averages: dict[str, Tensor], gradient: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step from a gradient.

        Args:
            theta: [... P].
            averages: as from :meth:`start`; not changed.
            gradient: [... P].
            step: completed steps.

        Returns:
            New parameters and averages.
        """
        rate = torch.as_tensor(self.learning_rate, dtype=theta.dtype, device=theta.device)
        if self.clip is not None:
            # The gradient of frozen parameters must not shorten that of the others.
            gradient = torch.where(rate > 0, gradient, 0.0)
            length = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
            gradient = gradient * (self.clip / length.clamp(min=self.clip))
        if self.weight_decay:
            gradient = gradient + self.weight_decay * theta
        first, second = self.betas
        mean = torch.lerp(gradient, averages["gradient_mean"], first)
        square = torch.lerp(gradient.square(), averages["square_mean"], second)
        if self.schedule is not None:
            rate = rate * self.schedule(step)
        scale = math.sqrt(1 - second ** (step + 1))
        denominator = square.sqrt().div_(scale).add_(self.epsilon)
        change = mean.div(denominator).mul_(rate / (1 - first ** (step + 1)))
        return theta - change, {"gradient_mean": mean, "square_mean": square}
