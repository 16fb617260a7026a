"""Fit a generator: minimise an objective of its image over its parameters."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.generator.base import Generator
from dipct.objective.objective import DataTerm, Objective
from dipct.shapes import check_shape
from dipct.solver.adam import Adam
from dipct.solver.iteration import Method
from dipct.solver.selection import Iterate, LowestObjective, Selection
from dipct.solver.solution import Status

Measure = Callable[[Tensor], dict[str, Tensor]]
"""From an image [... *image_shape] to figures for the history, [...] each."""


class GeneratorFit(Method):
    """Minimise ``objective(G(theta))`` over theta by Adam: the Deep Image Prior and its kin.

    A batch of objectives is fitted with one parameter vector each, as one by one, but ends as a
    whole: when all elements are done, or when one diverges. The estimate is the image of the
    iterate that ``selection`` keeps.

    Figures: ``objective``, every term of the objective by name, ``discrepancy`` (``2 fidelity /
    m`` of the first data term, where there is one), the selection's and those of ``measure``.

    Args:
        generator: G.
        objective: of images; its terms may have batch axes.
        initial: first parameters, [... P], with the batch axes of the objective.
        optimiser: settings of Adam.
        selection: which iterate is the result, and when to stop.
        loss_scale: Adam sees the objective times this, which matters to clipping only; default:
            1 / m, so that the loss of a perfect fit is about 1/2 at every size.
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
        optimiser: Adam | None = None,
        selection: Selection | None = None,
        loss_scale: float | None = None,
        measure: Measure | None = None,
    ) -> None:
        check_shape(initial, "... P", name="The initial parameters", P=generator.n_parameters)
        if loss_scale is not None and not 0 < loss_scale < math.inf:
            raise ConfigurationError(f"loss_scale must be positive and finite; got {loss_scale}.")
        self.generator, self.objective = generator, objective
        self._initial = initial.detach()
        self._optimiser, self._selection = optimiser or Adam(), selection or LowestObjective()
        self._loss_scale = 1 / objective.size if loss_scale is None else loss_scale
        self._measure = measure
        rate = torch.as_tensor(self._optimiser.learning_rate)
        if rate.ndim > 0:
            check_shape(rate, "P", name="The learning rate", P=generator.n_parameters)
        data_terms = [term for _, term in objective.terms if isinstance(term, DataTerm)]
        self._data_term = data_terms[0] if data_terms else None

    def start(self) -> dict[str, Tensor]:
        """See :meth:`Method.start`."""
        theta = self._initial
        with torch.no_grad():
            image, values = self._evaluate(theta)
            first = self._iterate(0, theta, image, values)
            self.observed = tuple(self._measure(image)) if self._measure is not None else ()
        if first.objective.shape != theta.shape[:-1]:
            raise ShapeError(
                f"The objective has the batch axes {tuple(first.objective.shape)}, the initial "
                f"parameters have {tuple(theta.shape[:-1])}; every element of a batch needs "
                "parameters of its own."
            )
        return {
            "theta": theta,
            "step": torch.tensor(0),
            **self._optimiser.start(theta),
            **self._selection.start(first),
        }

    def step(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.step`."""
        step = int(tensors["step"])
        theta = tensors["theta"].detach().requires_grad_()
        with torch.enable_grad():
            image, values = self._evaluate(theta)
            loss = self._loss_scale * self.objective.total(values).sum()
        (gradient,) = torch.autograd.grad(loss, theta)
        theta = theta.detach()
        with torch.no_grad():
            detached = {name: value.detach() for name, value in values.items()}
            iterate = self._iterate(step, theta, image.detach(), detached)
            kept = self._selection.update(tensors, iterate)
            averages = {name: tensors[name] for name in ("gradient_mean", "square_mean")}
            theta, averages = self._optimiser.step(theta, averages, gradient, step)
        return {"theta": theta, "step": torch.tensor(step + 1), **averages, **kept}

    def estimate(self, tensors: dict[str, Tensor]) -> Tensor:
        """The image of the chosen iterate, [... *image_shape]."""
        with torch.no_grad():
            return self.generator(tensors["chosen"])

    def figures(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.figures`."""
        step = int(tensors["step"])
        with torch.no_grad():
            image, values = self._evaluate(tensors["theta"])
            iterate = self._iterate(step, tensors["theta"], image, values)
            figures = {"objective": iterate.objective, **values}
            if self._data_term is not None:
                figures["discrepancy"] = iterate.discrepancy
            measured = {} if self._measure is None else self._measure(image)
            figures |= self._selection.figures(tensors, step)
        taken = sorted(measured.keys() & {"iteration", *figures})
        if taken:
            raise ConfigurationError(f"measure must not return figures named {', '.join(taken)}.")
        return {**figures, **measured}

    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """See :meth:`Method.outcome`."""
        return self._selection.outcome(figures)

    def _evaluate(self, theta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        image = self.generator(theta)
        return image, self.objective.values(image)

    def _iterate(
        self, step: int, theta: Tensor, image: Tensor, values: dict[str, Tensor]
    ) -> Iterate:
        objective = self.objective.total(values)
        discrepancy = torch.zeros_like(objective)
        if self._data_term is not None:
            discrepancy = 2 * values[self._data_term.name] / self._data_term.size
        return Iterate(step, theta, image, objective, discrepancy)
