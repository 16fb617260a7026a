"""Operators made of operators: compositions, sums, multiples, stacks, adjoints."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dipct.errors import DtypeError, ShapeError
from dipct.operator.base import LinearOperator, Operator, check_same_shape


def compose(outer: Operator, inner: Operator) -> Operator:
    """``outer @ inner``; linear if both are."""
    both_linear = isinstance(outer, LinearOperator) and isinstance(inner, LinearOperator)
    return LinearComposition(outer, inner) if both_linear else Composition(outer, inner)


def add(one: Operator, other: Operator) -> Operator:
    """``one + other``; linear if both are."""
    both_linear = isinstance(one, LinearOperator) and isinstance(other, LinearOperator)
    return LinearSum(one, other) if both_linear else Sum(one, other)


def scale(operator: Operator, factor: float) -> Operator:
    """``factor * operator``; linear if the operator is."""
    linear = isinstance(operator, LinearOperator)
    return LinearMultiple(operator, factor) if linear else Multiple(operator, factor)


def stack(operators: Sequence[Operator]) -> Operator:
    """Join operators on the same domain along the first axis of their ranges.

    Several scans of one object are one scan with all their views: ``stack([A1, A2])`` maps to
    ``(A1 + A2 views, D)``.

    Raises:
        ShapeError: the domains, or the ranges beyond their first axis, differ.
    """
    all_linear = all(isinstance(operator, LinearOperator) for operator in operators)
    return LinearStack(operators) if all_linear else Stack(operators)


class Composition(Operator):
    """``outer`` after ``inner``."""

    def __init__(self, outer: Operator, inner: Operator) -> None:
        check_same_shape(
            outer.domain_shape, inner.range_shape, f"Cannot compose {outer!r} @ {inner!r}"
        )
        _check_same_kind((outer, inner))
        self.outer, self.inner = outer, inner
        self.domain_shape, self.range_shape = inner.domain_shape, outer.range_shape

    def _apply(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))


class LinearComposition(Composition, LinearOperator):
    """``outer`` after ``inner``, both linear; its adjoint runs backwards."""

    outer: LinearOperator
    inner: LinearOperator

    @property
    def matched(self) -> bool:  # type: ignore[override]
        """Whether both adjoints are exact."""
        return self.outer.matched and self.inner.matched

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))


class Sum(Operator):
    """Sum of two operators."""

    def __init__(self, one: Operator, other: Operator) -> None:
        what = f"Cannot add {one!r} and {other!r}"
        check_same_shape(one.domain_shape, other.domain_shape, what)
        check_same_shape(one.range_shape, other.range_shape, what)
        _check_same_kind((one, other))
        self.one, self.other = one, other
        self.domain_shape, self.range_shape = one.domain_shape, one.range_shape

    def _apply(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)


class LinearSum(Sum, LinearOperator):
    """Sum of two linear operators."""

    one: LinearOperator
    other: LinearOperator

    @property
    def matched(self) -> bool:  # type: ignore[override]
        """Whether both adjoints are exact."""
        return self.one.matched and self.other.matched

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return self.one.adjoint(y) + self.other.adjoint(y)


class Multiple(Operator):
    """A number times an operator."""

    def __init__(self, operator: Operator, factor: float) -> None:
        self.operator, self.factor = operator, float(factor)
        self.domain_shape, self.range_shape = operator.domain_shape, operator.range_shape

    def _apply(self, x: Tensor) -> Tensor:
        return self.factor * self.operator(x)


class LinearMultiple(Multiple, LinearOperator):
    """A number times a linear operator."""

    operator: LinearOperator

    @property
    def matched(self) -> bool:  # type: ignore[override]
        """Whether the operator's adjoint is exact."""
        return self.operator.matched

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.operator.adjoint(y)


class Stack(Operator):
    """Operators side by side, joined along the first axis of their ranges."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        if not operators:
            raise ShapeError("A stack needs at least one operator; got none.")
        first = operators[0]
        for other in operators[1:]:
            what = f"Cannot stack {first!r} and {other!r}"
            check_same_shape(first.domain_shape, other.domain_shape, what)
            check_same_shape(first.range_shape[1:], other.range_shape[1:], what)
        _check_same_kind(operators)
        self.operators = tuple(operators)
        self.sizes = [operator.range_shape[0] for operator in operators]
        self.domain_shape = first.domain_shape
        self.range_shape = (sum(self.sizes), *first.range_shape[1:])

    def _apply(self, x: Tensor) -> Tensor:
        return torch.cat([A(x) for A in self.operators], dim=-len(self.range_shape))


class LinearStack(Stack, LinearOperator):
    """Linear operators side by side; the adjoint sums theirs."""

    operators: tuple[LinearOperator, ...]

    @property
    def matched(self) -> bool:  # type: ignore[override]
        """Whether all adjoints are exact."""
        return all(operator.matched for operator in self.operators)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        parts = y.split(self.sizes, dim=-len(self.range_shape))
        summed = self.operators[0].adjoint(parts[0])
        for operator, part in zip(self.operators[1:], parts[1:], strict=True):
            summed = summed + operator.adjoint(part)
        return summed


class Adjoint(LinearOperator):
    """The adjoint of a linear operator."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.domain_shape, self.range_shape = operator.range_shape, operator.domain_shape

    @property
    def matched(self) -> bool:  # type: ignore[override]
        """Whether the operator's adjoint is exact."""
        return self.operator.matched

    @property
    def T(self) -> LinearOperator:
        """The operator itself."""
        return self.operator

    def _apply(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return self.operator(y)


def _check_same_kind(operators: Sequence[Operator]) -> None:
    for what in ("dtype", "device"):
        kinds = {kind for operator in operators if (kind := getattr(operator, what)) is not None}
        if len(kinds) > 1:
            raise DtypeError(
                f"Operators that are combined must share one {what}; got "
                f"{sorted(map(str, kinds))}. Convert them with operator.to({what}=...)."
            )
