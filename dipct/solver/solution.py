"""What an iterative method returns: a value with a status that says what to do next."""

from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor


class Status(Enum):
    """Why an iteration ended; the value of each member is advice in words."""

    CONVERGED = "The method reached its tolerance."
    MAX_ITERATIONS = (
        "The largest number of iterations was reached. For CGLS and SIRT that is the usual end, "
        "since they regularise by stopping early, and for the Deep Image Prior, which has no "
        "tolerance. Otherwise look at the history: if it still falls, continue with more "
        "iterations; if it has levelled off, loosen the tolerance or use float64."
    )
    DISCREPANCY_REACHED = (
        "The residual has fallen to the noise level; further iterations would fit noise."
    )
    SETTLED = (
        "The images have passed the point where they change least, before noise is fitted; the "
        "value is the image there."
    )
    TARGET_REACHED = (
        "The image has been in the wanted class, at the wanted probability, for as long as asked."
    )
    DIVERGED = (
        "The iteration diverged or produced NaN or infinite values; the value is the last valid "
        "recorded one. Check the scaling of the data, a smaller step, learning rate or relaxation, "
        "and whether the operator's adjoint is its transpose."
    )
    INTERRUPTED = (
        "Interrupted by the user; the value is the last complete iterate. Continue from the state."
    )

    @property
    def advice(self) -> str:
        """What the status means and what to do."""
        return self.value

    @property
    def is_success(self) -> bool:
        """Whether the iteration ended because it had reached its aim."""
        return self in (Status.CONVERGED, Status.DISCREPANCY_REACHED, Status.SETTLED)


@dataclass(frozen=True)
class IterationState:
    """Everything an iteration needs to go on exactly where it was.

    Attributes:
        iteration: number of completed iterations.
        tensors: the method's tensors by name.
        history: figures of the recorded iterations by name, [records ...], one value per batch
            element, and ``"iteration"`` [records], all on the CPU.
    """

    iteration: int
    tensors: dict[str, Tensor]
    history: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_recorded(self) -> bool:
        """Whether the last entry of the history belongs to this iteration."""
        recorded = self.history.get("iteration")
        return recorded is not None and int(recorded[-1]) == self.iteration

    def figures(self) -> dict[str, Tensor]:
        """The last recorded figures, [...] each."""
        return {name: v[-1] for name, v in self.history.items() if name != "iteration"}

    def recorded(self, figures: dict[str, Tensor]) -> "IterationState":
        """The same state with figures of this iteration at the end of its history."""
        entries = {"iteration": torch.tensor(self.iteration), **figures}
        # On the host, wherever the iteration runs: a few numbers, of which files are made.
        values = {name: value[None].cpu() for name, value in entries.items()}
        history = {
            name: torch.cat([self.history[name], value]) if name in self.history else value
            for name, value in values.items()
        }
        return IterationState(self.iteration, self.tensors, history)


@dataclass(frozen=True)
class Solution:
    """Result of an iterative method.

    Attributes:
        value: the estimate, [... *shape].
        status: why the iteration ended, with advice.
        iterations: completed iterations that led to ``value``.
        history: figures of the recorded iterations, as in :class:`IterationState`, and of the
            last one.
        state: where to go on from.
    """

    value: Tensor
    status: Status
    iterations: int
    history: dict[str, Tensor]
    state: IterationState
