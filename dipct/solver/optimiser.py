"""The interface of optimisers: pure functions of a state that is nothing but tensors."""

from abc import ABC, abstractmethod

from torch import Tensor

from dipct.solver.loss import Evaluation, GeneratorLoss


class Optimiser(ABC):
    """Makes steps in parameters from the loss's derivatives.

    An optimiser holds settings only; what it remembers is in tensors, so that a fit can be
    stopped and resumed exactly.
    """

    def check(self, theta: Tensor) -> None:  # noqa: B027
        """Raise an error unless the settings fit parameters [... P]."""

    @abstractmethod
    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """What it remembers before the first step.

        Args:
            theta: first parameters, [... P].
        """

    def evaluate(self, theta: Tensor, loss: GeneratorLoss, step: int) -> Evaluation:
        """The loss and its gradient from which the next step is made.

        Args:
            theta: [... P].
            loss: what is minimised.
            step: completed steps.
        """
        return loss.differentiate(theta)

    @abstractmethod
    def step(
        self,
        theta: Tensor,
        memory: dict[str, Tensor],
        here: Evaluation,
        loss: GeneratorLoss,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step.

        Args:
            theta: [... P].
            memory: as from :meth:`start` or the step before; not changed.
            here: the loss at theta, with its gradient.
            loss: to ask for more.
            step: completed steps.

        Returns:
            New parameters and memory.
        """
