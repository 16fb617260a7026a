"""The two interfaces everything is built on: Operator and LinearOperator."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor

from dipct.device import find_device
from dipct.errors import DtypeError, InsufficientMemoryError, ShapeError
from dipct.shapes import check_shape

_LARGEST_DENSE = 2**28


class Operator(ABC):
    """A map from tensors of shape ``domain_shape`` to tensors of shape ``range_shape``.

    Leading axes are batch axes: ``A(x)`` maps ``(..., *domain_shape)`` to
    ``(..., *range_shape)``. Operators are plain objects without trainable parameters; they work
    under autograd and under ``torch.func`` (``jvp``, ``vjp``, ``vmap``).

    Attributes:
        domain_shape: shape of one input.
        range_shape: shape of one output.
    """

    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]

    # Keeps NumPy from taking an operator for an object to be put into an array.
    __array_ufunc__ = None

    @abstractmethod
    def _apply(self, x: Tensor) -> Tensor:
        """Apply to ``x`` of checked shape [... *domain_shape], differentiably."""

    @property
    def dtype(self) -> torch.dtype | None:
        """Floating-point type the operator is stored in; None where any will do."""
        return next((t.dtype for t in self._tensors() if t.dtype.is_floating_point), None)

    @property
    def device(self) -> torch.device | None:
        """Device the operator is stored on; None where any will do."""
        return next((t.device for t in self._tensors()), None)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the operator.

        Args:
            x: [... *domain_shape].

        Returns:
            [... *range_shape].

        Raises:
            ShapeError: ``x`` does not end in ``domain_shape``.
            DtypeError: ``x`` has another floating-point type or device than the operator.
        """
        self._check(x, self.domain_shape, "input")
        return self._apply(x)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """Directional derivative at ``x`` along ``v``: ``J(x) v``.

        Args:
            x: [... *domain_shape].
            v: direction, of the shape of ``x``.

        Returns:
            [... *range_shape].
        """
        self._check(v, self.domain_shape, "direction")
        return torch.func.jvp(self, (x,), (v,))[1]

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """Transposed derivative at ``x`` applied to ``w``: ``J(x)^T w``.

        Args:
            x: [... *domain_shape].
            w: [... *range_shape], with the batch axes of ``x``.

        Returns:
            [... *domain_shape].
        """
        self._check(w, self.range_shape, "cotangent")
        return torch.func.vjp(self, x)[1](w)[0]

    def linearize(self, x: Tensor) -> tuple[Tensor, "LinearOperator"]:
        """Value and Jacobian at ``x``.

        Args:
            x: [... *domain_shape]; with batch axes the Jacobian is block-diagonal.

        Returns:
            ``A(x)`` and the Jacobian as a linear operator from tensors shaped like ``x`` to
            tensors shaped like ``A(x)``.
        """
        from dipct.operator.jacobian import Jacobian

        jacobian = Jacobian(self, x)
        return jacobian.value, jacobian

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """A copy on another device or in another floating-point type.

        Raises:
            DeviceUnavailableError: no such device on this machine.
        """
        device = None if device is None else find_device(device)
        moved = copy.copy(self)
        for name, value in vars(self).items():
            setattr(moved, name, _moved(value, device, dtype))
        return moved

    def __matmul__(self, other: "Operator") -> "Operator":
        """Composition: ``(A @ B)(x) = A(B(x))``."""
        from dipct.operator.algebra import compose

        return compose(self, other) if isinstance(other, Operator) else NotImplemented

    def __add__(self, other: "Operator") -> "Operator":
        """Sum: ``(A + B)(x) = A(x) + B(x)``."""
        from dipct.operator.algebra import add

        return add(self, other) if isinstance(other, Operator) else NotImplemented

    def __sub__(self, other: "Operator") -> "Operator":
        """Difference: ``(A - B)(x) = A(x) - B(x)``."""
        return self + (-1.0) * other if isinstance(other, Operator) else NotImplemented

    def __rmul__(self, factor: float) -> "Operator":
        """Multiple: ``(c A)(x) = c A(x)``."""
        from dipct.operator.algebra import scale

        return scale(self, factor) if isinstance(factor, Real) else NotImplemented

    def __neg__(self) -> "Operator":
        """Negative: ``(-A)(x) = -A(x)``."""
        return (-1.0) * self

    def __repr__(self) -> str:
        """Name and shapes."""
        return f"{type(self).__name__}({self.domain_shape} -> {self.range_shape})"

    def _tensors(self) -> Iterator[Tensor]:
        for value in vars(self).values():
            yield from _tensors_in(value)

    def _check(self, x: Tensor, shape: tuple[int, ...], what: str) -> None:
        if not isinstance(x, Tensor):
            raise DtypeError(
                f"{self!r} needs a torch tensor as {what}; got {type(x).__name__}. "
                "Convert it with torch.as_tensor."
            )
        if tuple(x.shape[max(x.dim() - len(shape), 0) :]) != shape:
            pattern = " ".join(["...", *map(str, shape)])
            advice = ""
            if shape[:1] == (1,) and tuple(x.shape) == shape[1:]:
                advice = f"Add the channel axis: {what}[None]."
            check_shape(x, pattern, name=f"The {what} of {self!r}", advice=advice)
        if (dtype := self.dtype) is not None and x.dtype != dtype:
            raise DtypeError(
                f"{self!r} is stored in {dtype}; the {what} is {x.dtype}. Convert one of "
                "them, e.g. operator.to(dtype=...)."
            )
        if (device := self.device) is not None and x.device.type != device.type:
            raise DtypeError(
                f"{self!r} is on device {device}; the {what} is on {x.device}. Move one of "
                "them, e.g. operator.to(device=...)."
            )


class LinearOperator(Operator):
    """A linear map with its adjoint.

    Attributes:
        matched: whether :meth:`adjoint` is the exact transpose up to rounding. Some backends'
            back-projection is not, and methods that need the transpose refuse it.
    """

    matched: bool = True

    @abstractmethod
    def _apply_adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint to ``y`` of checked shape [... *range_shape], differentiably."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint (transpose).

        Args:
            y: [... *range_shape].

        Returns:
            [... *domain_shape].

        Raises:
            ShapeError: ``y`` does not end in ``range_shape``.
            DtypeError: ``y`` has another floating-point type or device than the operator.
        """
        self._check(y, self.range_shape, "input of the adjoint")
        return self._apply_adjoint(y)

    @property
    def T(self) -> "LinearOperator":
        """The adjoint as an operator; ``A.T.T is A``."""
        from dipct.operator.algebra import Adjoint

        return Adjoint(self)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """See :meth:`Operator.jvp`; independent of ``x``."""
        self._check(x, self.domain_shape, "input")
        return self(v)

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """See :meth:`Operator.vjp`; independent of ``x``."""
        self._check(x, self.domain_shape, "input")
        return self.adjoint(w)

    def linearize(self, x: Tensor) -> tuple[Tensor, "LinearOperator"]:
        """See :meth:`Operator.linearize`; without batch axes the Jacobian is the operator."""
        if x.ndim == len(self.domain_shape):
            return self(x), self
        return super().linearize(x)

    def norm(self, *, iterations: int = 100, tolerance: float = 1e-4, seed: int = 0) -> float:
        """Largest singular value, by the Lanczos method on ``A^T A``.

        Args:
            iterations: most iterations.
            tolerance: stop when the estimate grows twice by less than this share of itself.
            seed: of the starting vector.

        Returns:
            An estimate from below; its relative error is usually near ``tolerance``.
        """
        generator = torch.Generator().manual_seed(seed)
        # A nonnegative start has a large part along the leading singular vector of a
        # nonnegative matrix; the random part serves the others.
        x = 0.5 + torch.randn(self.domain_shape, generator=generator, dtype=torch.float64)
        x = x.to(device=self.device, dtype=self.dtype or torch.float32)
        x = x / torch.linalg.vector_norm(x)
        before, coupling, squared, settled = torch.zeros_like(x), 0.0, 0.0, 0
        diagonal: list[float] = []
        off_diagonal: list[float] = []
        for _ in range(iterations):
            product = self.adjoint(self(x)) - coupling * before
            diagonal.append(float(torch.sum(product * x)))
            product = product - diagonal[-1] * x
            tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
            tridiagonal += torch.diag(torch.tensor(off_diagonal, dtype=torch.float64), -1)
            # eigvalsh reads the lower triangle only.
            largest = max(float(torch.linalg.eigvalsh(tridiagonal)[-1]), 0.0)
            # The eigenvalue is a square, so its share grows twice as fast.
            settled = settled + 1 if largest - squared <= 2 * tolerance * largest else 0
            squared = max(squared, largest)
            coupling = float(torch.linalg.vector_norm(product))
            if settled == 2 or coupling <= torch.finfo(x.dtype).eps * squared:
                break
            off_diagonal.append(coupling)
            before, x = x, product / coupling
        return squared**0.5

    def to_matrix(self) -> Tensor:
        """The dense matrix of the operator on flattened tensors, [prod(range) prod(domain)].

        Raises:
            InsufficientMemoryError: the matrix would have more than 2^28 entries.
        """
        n = int(torch.Size(self.domain_shape).numel())
        m = int(torch.Size(self.range_shape).numel())
        if m * n > _LARGEST_DENSE:
            raise InsufficientMemoryError(
                f"The dense matrix of {self!r} would be {m} x {n}, more than the limit of 2^28 "
                "entries. Apply the operator instead."
            )
        identity = torch.eye(n, dtype=self.dtype or torch.float32, device=self.device)
        columns = [self(part.reshape(-1, *self.domain_shape)) for part in identity.split(256)]
        return torch.cat(columns).reshape(n, m).T.contiguous()

    def __matmul__(self, other: Operator) -> Operator:
        """Composition: ``(A @ B)(x) = A(B(x))``; linear if ``B`` is."""
        return super().__matmul__(other)


def check_same_shape(one: tuple[int, ...], other: tuple[int, ...], what: str) -> None:
    """Raise a :class:`ShapeError` unless two spaces agree."""
    if one != other:
        raise ShapeError(f"{what}: shapes {one} and {other} differ.")


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Operator):
        yield from value._tensors()
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors_in(item)


def _moved(value: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, Operator):
        return value.to(device, dtype)
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device, dtype) for item in value)
    return value


Kernel = Callable[[Tensor], Tensor]
"""Applies a linear map to [... *shape]; need not be differentiable."""


class _LinearFunction(torch.autograd.Function):
    """A linear kernel and its adjoint as one differentiable function.

    The derivative of a linear map is the map itself and the pullback its adjoint, to every
    order; the kernels take any leading axes, so that ``vmap`` only has to put its axis first.
    """

    @staticmethod
    def forward(x: Tensor, kernel: Kernel, adjoint_kernel: Kernel) -> Tensor:
        return kernel(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.kernel, ctx.adjoint_kernel = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return apply_linear(gradient, ctx.adjoint_kernel, ctx.kernel), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return apply_linear(tangent, ctx.kernel, ctx.adjoint_kernel)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, kernel: Kernel, adjoint: Kernel
    ) -> tuple[Tensor, int]:
        return apply_linear(x.movedim(in_dims[0] or 0, 0), kernel, adjoint), 0


# torch asks for it at each call, and to find it takes longer than a small product.
_LinearFunction.forward.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    _LinearFunction.forward
)


def apply_linear(x: Tensor, kernel: Kernel, adjoint_kernel: Kernel) -> Tensor:
    """Apply a linear kernel so that autograd and ``torch.func`` see its exact derivative.

    Args:
        x: [... *domain_shape].
        kernel: the map.
        adjoint_kernel: its adjoint, used in reverse mode.
    """
    return _LinearFunction.apply(x, kernel, adjoint_kernel)  # type: ignore[return-value]
