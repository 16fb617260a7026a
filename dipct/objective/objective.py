"""The objective: a sum of weighted terms of an image, with its breakdown."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.objective.fidelity import Fidelity
from dipct.objective.total_variation import channel_differences, gradient_norm
from dipct.operator.base import Operator, check_same_shape


class Term(ABC):
    """A differentiable function of an image.

    Attributes:
        name: what it is called in histories.
        size: number of measured values it sums over; 0 if it measures nothing.
    """

    name: str
    size: int = 0

    @abstractmethod
    def value(self, image: Tensor) -> Tensor:
        """The term, without its weight.

        Args:
            image: [... *image_shape].

        Returns:
            [...].
        """


class OperatorTerm(Term):
    """A function of what an operator makes of an image.

    An objective applies the operator of several terms once, if it is the same object.

    Args:
        operator: linear or not.

    Attributes:
        operator: as given.
    """

    def __init__(self, operator: Operator) -> None:
        self.operator = operator

    @abstractmethod
    def value_of(self, eta: Tensor) -> Tensor:
        """The term, from the operator's value.

        Args:
            eta: [... *operator.range_shape].

        Returns:
            [...].
        """

    def value(self, image: Tensor) -> Tensor:
        """See :meth:`Term.value`."""
        return self.value_of(self.operator(image))


class DataTerm(OperatorTerm):
    """Fidelity of an image's projections: ``fidelity.value(A(x))``.

    Args:
        operator: A, linear or not.
        fidelity: with the measured values, of one object or of a batch.
        name: in histories.
    """

    def __init__(self, operator: Operator, fidelity: Fidelity, name: str = "fidelity") -> None:
        check_same_shape(
            operator.range_shape, fidelity.range_shape, "The fidelity does not fit the operator"
        )
        super().__init__(operator)
        self.fidelity, self.name = fidelity, name
        self.size = fidelity.size

    def value_of(self, eta: Tensor) -> Tensor:
        """See :meth:`OperatorTerm.value_of`."""
        return self.fidelity.value(eta)


class TotalVariation(Term):
    """Total variation of an image or volume, see :func:`dipct.objective.gradient_norm`.

    Args:
        image_shape: [C H W] or [1 Z H W].
        isotropic: Euclidean length of the differences of each pixel, of all channels together,
            instead of their sum.
    """

    name = "total_variation"

    def __init__(self, image_shape: tuple[int, ...], *, isotropic: bool = False) -> None:
        if len(image_shape) not in (3, 4) or (len(image_shape) == 4 and image_shape[0] != 1):
            raise ShapeError(
                f"Total variation needs a shape (C, H, W) or (1, Z, H, W); got {image_shape}."
            )
        self._image_shape, self.isotropic = tuple(image_shape), isotropic
        self._ndim = len(image_shape) - 1

    def value(self, image: Tensor) -> Tensor:
        """See :meth:`Term.value`."""
        differences = channel_differences(image, self._image_shape)
        return gradient_norm(differences, ndim=self._ndim, isotropic=self.isotropic)


class Objective:
    """``sum of weight * term(x)``: a negative log posterior, summed and never averaged.

    Args:
        terms: pairs of a weight, one number or one per batch element, and a term.

    Raises:
        ConfigurationError: no term, two of one name, or a negative or infinite weight.
    """

    def __init__(self, terms: Sequence[tuple[float | Tensor, Term]]) -> None:
        names = [term.name for _, term in terms]
        if not terms or len(set(names)) != len(names):
            raise ConfigurationError(f"An objective needs terms of different names; got {names}.")
        for weight, term in terms:
            values = torch.as_tensor(weight)
            if not bool((torch.isfinite(values) & (values >= 0)).all()):
                raise ConfigurationError(
                    f"The weight of {term.name} must be zero or positive and finite; got {weight}."
                )
        self.terms = tuple(terms)

    @property
    def size(self) -> int:
        """Number of measured values in all terms, at least 1."""
        return max(sum(term.size for _, term in self.terms), 1)

    def values(self, image: Tensor) -> dict[str, Tensor]:
        """All terms by name, without their weights, [...] each."""
        return self.evaluate(image)[0]

    def evaluate(self, image: Tensor) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """All terms, and what their operators made of the image.

        Args:
            image: [... *image_shape].

        Returns:
            The terms by name, without their weights, [...] each; and the value of every operator
            by its ``id``.
        """
        found: dict[str, Tensor] = {}
        applied: dict[int, Tensor] = {}
        for _, term in self.terms:
            if isinstance(term, OperatorTerm):
                key = id(term.operator)
                if key not in applied:
                    applied[key] = term.operator(image)
                found[term.name] = term.value_of(applied[key])
            else:
                found[term.name] = term.value(image)
        return found, applied

    def total(self, values: dict[str, Tensor]) -> Tensor:
        """The objective from its terms' values, [...]."""
        weighted = []
        for weight, term in self.terms:
            value = values[term.name]
            weighted.append(torch.as_tensor(weight, dtype=value.dtype, device=value.device) * value)
        return torch.stack(torch.broadcast_tensors(*weighted)).sum(0)

    def __call__(self, image: Tensor) -> Tensor:
        """The objective of an image [... *image_shape], [...]."""
        return self.total(self.values(image))
