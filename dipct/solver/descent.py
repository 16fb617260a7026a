"""Fit a generator: minimise an objective of its image over its parameters."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.generator.base import Generator
from dipct.objective.objective import Objective
from dipct.shapes import check_shape
from dipct.solver.adam import Adam
from dipct.solver.iteration import Method
from dipct.solver.loss import Evaluation, GeneratorLoss
from dipct.solver.optimiser import Optimiser
from dipct.solver.selection import Iterate, LowestObjective, Selection
from dipct.solver.solution import Status

Measure = Callable[[Tensor], dict[str, Tensor]]
"""From an image [... *image_shape] to figures for the history, [...] each."""


class Part(NamedTuple):
    """What a step of a fit is made with.

    Attributes:
        loss: that it lowers.
        optimiser: that makes it.
        step: completed steps of this optimiser.
    """

    loss: GeneratorLoss
    optimiser: Optimiser
    step: int


class GeneratorFit(Method):
    """Minimise ``objective(G(theta))`` over theta: the Deep Image Prior and its kin.

    A batch of objectives is fitted with one parameter vector each, as one by one, but ends as a
    whole: when all elements are done, or when one diverges. The estimate is the image of the
    iterate that ``selection`` keeps.

    Figures: ``objective``, every term of the objective by name, ``discrepancy`` (``2 fidelity /
    m`` of the first data term, where there is one), ``network_passes`` (forward and backward, of
    optimisers that count them), the selection's and those of ``measure``.

    Args:
        generator: G.
        objective: of images; its terms may have batch axes.
        initial: first parameters, [... P], with the batch axes of the objective.
        optimiser: default: Adam.
        selection: which iterate is the result, and when to stop.
        loss_scale: the optimiser sees the objective times this, which matters to clipping only;
            see :class:`GeneratorLoss`.
        measure: more figures of the image, such as its PSNR where the truth is known; they
            never influence the fit.

    Raises:
        ShapeError: parameters that do not fit the generator.
        ConfigurationError: a loss scale that is not positive.
    """

    def __init__(
        self,
        generator: Generator,
        objective: Objective,
        initial: Tensor,
        *,
        optimiser: Optimiser | None = None,
        selection: Selection | None = None,
        loss_scale: float | None = None,
        measure: Measure | None = None,
    ) -> None:
        check_shape(initial, "... P", name="The initial parameters", P=generator.n_parameters)
        self.loss = GeneratorLoss(generator, objective, loss_scale)
        self._initial = initial.detach()
        self._optimiser, self._selection = optimiser or Adam(), selection or LowestObjective()
        self._measure = measure
        self._optimiser.check(initial)

    @property
    def generator(self) -> Generator:
        """G."""
        return self.loss.generator

    def start(self) -> dict[str, Tensor]:
        """See :meth:`Method.start`."""
        theta = self._initial
        here = self.loss.evaluate(theta)
        self.observed = tuple(self._measure(here.image)) if self._measure is not None else ()
        if here.objective.shape != theta.shape[:-1]:
            raise ShapeError(
                f"The objective has the batch axes {tuple(here.objective.shape)}, the initial "
                f"parameters have {tuple(theta.shape[:-1])}; every element of a batch needs "
                "parameters of its own."
            )
        return {
            "theta": theta,
            "step": torch.tensor(0),
            **self._optimiser.start(theta),
            **self._selection.start(_iterate(0, theta, here)),
        }

    def step(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.step`."""
        step, theta = int(tensors["step"]), tensors["theta"]
        part = self._part(step)
        if part.step == 0 and step > 0:
            tensors = {**tensors, **part.optimiser.start(theta)}
        here = part.optimiser.evaluate(theta, part.loss, part.step)
        with torch.no_grad():
            kept = self._selection.update(tensors, _iterate(step, theta, here))
            theta, memory = part.optimiser.step(theta, tensors, here, part.loss, part.step)
        return {"theta": theta, "step": torch.tensor(step + 1), **memory, **kept}

    def _part(self, step: int) -> Part:
        """What a step is made with."""
        return Part(self.loss, self._optimiser, step)

    def estimate(self, tensors: dict[str, Tensor]) -> Tensor:
        """The image of the chosen iterate, [... *image_shape]."""
        with torch.no_grad():
            return self.generator(tensors["chosen"])

    def figures(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.figures`."""
        step = int(tensors["step"])
        here = self._part(step).loss.evaluate(tensors["theta"])
        with torch.no_grad():
            figures = {"objective": here.objective, **here.values}
            if self.loss.data_term is not None:
                figures["discrepancy"] = here.discrepancy
            measured = {} if self._measure is None else self._measure(here.image)
            figures |= self._selection.figures(tensors, step)
        if "network_passes" in tensors:
            figures["network_passes"] = tensors["network_passes"]
        taken = sorted(measured.keys() & {"iteration", *figures})
        if taken:
            raise ConfigurationError(f"measure must not return figures named {', '.join(taken)}.")
        return {**figures, **measured}

    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """See :meth:`Method.outcome`."""
        return self._selection.outcome(figures)


def _iterate(step: int, theta: Tensor, here: Evaluation) -> Iterate:
    return Iterate(
        step, theta, here.image, here.objective, here.discrepancy, here.values, here.applied
    )
