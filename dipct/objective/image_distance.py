"""How far an image, or its features, are from those of a query."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.objective.objective import OperatorTerm, Term
from dipct.operator import FeatureOperator

Distance = Literal["relative", "mean-square", "l2", "l1"]

# Below it a length has no direction: of float32 values of order one.
_TINY = 1e-12


class FeatureFidelity(OperatorTerm):
    """Distance of an image's features from those of a query, the mean over layers.

    The fidelity of pre-images and counterfactuals (Mahendran & Vedaldi, CVPR 2015, eq. 2;
    Thiagarajan et al., arXiv 2109.14274, eq. 3). ``relative`` divides the squared distance by the
    squared length of the query's features, so that a weight means the same in every layer, for
    every classifier and size of image.

    Args:
        operator: features.
        query: [... C H W], with batch axes if there are several.
        layers: which of the operator's layers count; default: all.
        distance: ``relative``, ``mean-square`` of the differences, their length ``l2``, or their
            mean absolute value ``l1``, rounded off within a millionth around zero.

    Raises:
        ConfigurationError: a layer that the operator does not have, or another distance.
    """

    name = "features"

    def __init__(
        self,
        operator: FeatureOperator,
        query: Tensor,
        *,
        layers: Sequence[str] | None = None,
        distance: Distance = "relative",
    ) -> None:
        super().__init__(operator)
        self.layers = tuple(operator.layers if layers is None else layers)
        missing = [name for name in self.layers if name not in operator.layers]
        if missing or not self.layers:
            raise ConfigurationError(
                f"The features are of the layers {', '.join(operator.layers)}; got {self.layers}."
            )
        self.distance = _checked(distance)
        with torch.no_grad():
            found = operator.split(operator(query))
        self._wanted = {name: found[name] for name in self.layers}
        self._split = operator.split

    def value_of(self, eta: Tensor) -> Tensor:
        """See :meth:`OperatorTerm.value_of`."""
        found = self._split(eta)
        each = []
        for name, wanted in self._wanted.items():
            ndim = found[name].ndim - (eta.ndim - 1)
            each.append(distance_of(found[name], wanted, ndim=ndim, distance=self.distance))
        return torch.stack(each).mean(0)


class ImageFidelity(Term):
    """Distance of an image from a query, pixel by pixel.

    Args:
        query: [... C H W], with batch axes if there are several.
        distance: see :class:`FeatureFidelity`.
        allowed: where the image may differ at will, [H W] or [C H W], true or false; default:
            nowhere.

    Raises:
        ConfigurationError: another distance.
        ShapeError: a query without channels, or a mask that does not fit.
    """

    name = "image"

    def __init__(
        self, query: Tensor, *, distance: Distance = "relative", allowed: Tensor | None = None
    ) -> None:
        if query.ndim < 3:
            raise ShapeError(f"The query must be [... C H W]; got {tuple(query.shape)}.")
        self.distance, self._query = _checked(distance), query
        self._counted: Tensor | None = None
        if allowed is not None:
            shape = tuple(query.shape[-3:])
            if allowed.dtype != torch.bool or tuple(allowed.shape) not in (shape, shape[1:]):
                raise ShapeError(
                    f"The mask of what may change must hold true or false, {shape[1:]} or {shape}; "
                    f"got {tuple(allowed.shape)} of {allowed.dtype}."
                )
            self._counted = (~allowed).to(query)

    def value(self, image: Tensor) -> Tensor:
        """See :meth:`Term.value`."""
        if self._counted is not None:
            image = self._query + self._counted * (image - self._query)
        return distance_of(image, self._query, ndim=3, distance=self.distance)


def distance_of(one: Tensor, other: Tensor, *, ndim: int, distance: Distance) -> Tensor:
    """Distance of two tensors over their last axes.

    Args:
        one: [... *axes].
        other: what it is measured against, of the same axes.
        ndim: number of these axes.
        distance: see :class:`FeatureFidelity`.

    Returns:
        [...].
    """
    squares = (one - other).square().flatten(-ndim)
    if distance == "l1":
        return (squares + _TINY).sqrt().mean(-1) - _TINY**0.5
    if distance == "mean-square":
        return squares.mean(-1)
    if distance == "l2":
        return (squares.sum(-1) + _TINY).sqrt() - _TINY**0.5
    return squares.sum(-1) / other.square().flatten(-ndim).sum(-1).clamp(min=_TINY)


def _checked(distance: Distance) -> Distance:
    if distance not in ("relative", "mean-square", "l2", "l1"):
        raise ConfigurationError(
            f"distance must be relative, mean-square, l2 or l1; got {distance!r}."
        )
    return distance
