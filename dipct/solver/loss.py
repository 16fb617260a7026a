"""The loss of a generator's parameters, with the derivatives that optimisers ask for."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.generator.base import Generator
from dipct.objective.objective import DataTerm, Objective


@dataclass(frozen=True)
class Evaluation:
    """The loss at one point.

    Attributes:
        image: [... *image_shape].
        values: the objective's terms by name, [...] each.
        objective: [...].
        discrepancy: ``2 fidelity / m`` of the first data term, [...]; 0 without one.
        gradient: of the loss, [... P]; only where it was asked for.
        applied: what the operators of the terms made of the image, by their ``id``.
    """

    image: Tensor
    values: dict[str, Tensor]
    objective: Tensor
    discrepancy: Tensor
    gradient: Tensor | None = None
    applied: dict[int, Tensor] = field(default_factory=dict)


class GeneratorLoss:
    """``scale * objective(G(theta))``.

    Attributes:
        generator: G.
        objective: of images.
        scale: what the loss is of the objective.
        data_term: the first data term, or None.

    Args:
        scale: default: 1 / m, so that the loss of a perfect fit is about 1/2 at every size.

    Raises:
        ConfigurationError: a scale that is not positive.
    """

    def __init__(
        self, generator: Generator, objective: Objective, scale: float | None = None
    ) -> None:
        if scale is not None and not 0 < scale < math.inf:
            raise ConfigurationError(f"loss_scale must be positive and finite; got {scale}.")
        self.generator, self.objective = generator, objective
        self.scale = 1 / objective.size if scale is None else scale
        data_terms = [term for _, term in objective.terms if isinstance(term, DataTerm)]
        self.data_term = data_terms[0] if data_terms else None

    def evaluate(self, theta: Tensor) -> Evaluation:
        """The loss's parts without derivatives, at theta [... P]."""
        with torch.no_grad():
            return self._evaluation(*self._forward(theta))

    def differentiate(self, theta: Tensor) -> Evaluation:
        """The loss's parts and gradient, at theta [... P]."""
        theta = theta.detach().requires_grad_()
        with torch.enable_grad():
            image, values, applied = self._forward(theta)
            loss = self.scale * self.objective.total(values).sum()
        (gradient,) = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            detached = {name: value.detach() for name, value in values.items()}
            kept = {key: value.detach() for key, value in applied.items()}
            return self._evaluation(image.detach(), detached, kept, gradient)

    def whitened_gradients(self, theta: Tensor, v: Tensor) -> Tensor:
        """Gradients of linear functions of the data in units of their standard deviation.

        The rows ``J^T A^T (v_k / std)`` with the Jacobian J of the generator: of normal numbers
        v their second moment is the Fisher information of the first data term.

        Args:
            theta: [P].
            v: [K *range_shape].

        Returns:
            [K P].

        Raises:
            ConfigurationError: an objective without data.
        """
        if self.data_term is None:
            raise ConfigurationError("An objective without data has no Fisher information.")
        theta = theta.detach().requires_grad_()
        with torch.enable_grad():
            eta = self.data_term.operator(self.generator(theta))
        scaled = v / self.data_term.fidelity.std
        rows = [
            torch.autograd.grad(eta, theta, each.reshape(eta.shape), retain_graph=i + 1 < len(v))[0]
            for i, each in enumerate(scaled)
        ]
        return torch.stack(rows)

    def _forward(self, theta: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[int, Tensor]]:
        image = self.generator(theta)
        return image, *self.objective.evaluate(image)

    def _evaluation(
        self,
        image: Tensor,
        values: dict[str, Tensor],
        applied: dict[int, Tensor],
        gradient: Tensor | None = None,
    ) -> Evaluation:
        objective = self.objective.total(values)
        discrepancy = torch.zeros_like(objective)
        if self.data_term is not None:
            discrepancy = 2 * values[self.data_term.name] / self.data_term.size
        return Evaluation(image, values, objective, discrepancy, gradient, applied)
