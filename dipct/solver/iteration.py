"""The one loop of all iterative methods: state in, state out, no input or output inside."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.solver.solution import IterationState, Solution, Status

Callback = Callable[[IterationState], None]
"""Called with every recorded state, for progress and checkpoints."""

StoppingRule = Callable[[IterationState], Status | None]
"""Called with every recorded state; a status ends the iteration."""


class Method(ABC):
    """An iterative method: how to start, one step, and what to report.

    A method holds its problem and settings only; everything that changes is in the tensors, so
    that a run can be saved and continued exactly. A method with random steps keeps the state of
    its generator there, one whose best iterate is not its last keeps the best there.

    Attributes:
        observed: names of figures that only observe, and may be infinite: those of a method
            itself must be finite, or the iteration has diverged.
    """

    observed: Collection[str] = ()

    @abstractmethod
    def start(self) -> dict[str, Tensor]:
        """Tensors before the first step."""

    @abstractmethod
    def step(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """One iteration.

        Must not change the tensors it is given: an interrupt then leaves them intact.
        """

    @abstractmethod
    def estimate(self, tensors: dict[str, Tensor]) -> Tensor:
        """The current estimate of the solution."""

    @abstractmethod
    def figures(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Figures of merit by name, one number per batch element, [...]."""

    @abstractmethod
    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """A status if the figures say that the iteration is at its end, else None."""


def iterate(
    method: Method,
    *,
    max_iterations: int,
    state: IterationState | None = None,
    every: int = 10,
    callbacks: Sequence[Callback] = (),
    stopping: Sequence[StoppingRule] = (),
    observers: Sequence[Callback] = (),
) -> Solution:
    """Run an iterative method.

    Iteration 0 and every ``every``-th one are recorded: the figures join the history, callbacks
    and stopping rules are called. Continuing from a solution's state gives exactly the result
    and the history of a run that was never stopped.

    A keyboard interrupt ends the loop with status ``INTERRUPTED`` and the last complete state.
    Figures of its own that are not finite end it with ``DIVERGED`` and the last valid recorded
    state.

    Args:
        method: the method.
        max_iterations: most iterations in total, those of ``state`` included.
        state: where to go on; default: the method's start.
        every: iterations between two records.
        callbacks: called in order with every recorded state.
        stopping: rules asked in order, after the method's own.
        observers: called in order with the state after every iteration, recorded or not.

    Returns:
        The solution. Reaching no tolerance is a status, not an error.

    Raises:
        ConfigurationError: impossible numbers, or a state of another method or problem.
    """
    if max_iterations < 0 or every < 1:
        raise ConfigurationError(
            "max_iterations must be at least 0 and every at least 1; got "
            f"{max_iterations} and {every}."
        )
    start = method.start()
    if state is None:
        state = IterationState(0, start)
        state = state.recorded(method.figures(start))
    else:
        _check_same_tensors(state.tensors, start)
    valid = state
    try:
        while True:
            if state.is_recorded:
                figures = state.figures()
                if not _all_finite(figures, method):
                    status, state = Status.DIVERGED, valid
                    break
                valid = state
                ended = _ending(method, state, figures, stopping)
                if ended is not None:
                    status = ended
                    break
            if state.iteration >= max_iterations:
                status = Status.MAX_ITERATIONS
                break
            state = _advance(method, state, every)
            for observer in observers:
                observer(state)
            if state.is_recorded and _all_finite(state.figures(), method):
                for callback in callbacks:
                    callback(state)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return _solution(method, state, valid, status)


def _ending(
    method: Method,
    state: IterationState,
    figures: dict[str, Tensor],
    stopping: Sequence[StoppingRule],
) -> Status | None:
    outcome = method.outcome(figures)
    for rule in stopping:
        if outcome is not None:
            break
        outcome = rule(state)
    return outcome


def _advance(method: Method, state: IterationState, every: int) -> IterationState:
    """The next state, with its record where it has one: complete or not at all."""
    following = IterationState(state.iteration + 1, method.step(state.tensors), state.history)
    if following.iteration % every == 0:
        following = following.recorded(method.figures(following.tensors))
    return following


def _solution(
    method: Method, state: IterationState, valid: IterationState, status: Status
) -> Solution:
    shown = state
    if not state.is_recorded:
        # Only the solution's history gets the last figures: the state's own must stay that of
        # an uninterrupted run.
        shown = state.recorded(method.figures(state.tensors))
    if not _all_finite(shown.figures(), method):
        shown = state = valid
        status = Status.DIVERGED
    value = method.estimate(state.tensors)
    return Solution(value, status, state.iteration, shown.history, state)


def _all_finite(figures: dict[str, Tensor], method: Method) -> bool:
    own = [value for name, value in figures.items() if name not in method.observed]
    return all(bool(torch.isfinite(value).all()) for value in own)


def _check_same_tensors(given: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    def describe(tensors: dict[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {name: (tuple(t.shape), t.dtype) for name, t in sorted(tensors.items())}

    if describe(given) != describe(start):
        raise ConfigurationError(
            "The state to continue from belongs to another method, image grid or floating-point "
            f"type: it holds {describe(given)}, this method needs {describe(start)}."
        )
