"""A generator whose parameters are restricted to an affine subspace."""

import torch
from torch import Tensor

from dipct.errors import DataError, DtypeError, ShapeError
from dipct.generator.base import Generator
from dipct.generator.parameters import Kind, Parameter
from dipct.shapes import check_shape


class Subspace(Generator):
    """A generator on an affine subspace: ``c -> generator(origin + basis c)``.

    Subspace DIP (Barbano et al., TMLR 2024, arXiv 2302.10279): the origin is a pretrained network
    and the basis comes from the course of its pretraining, see
    :func:`dipct.generator.principal_directions` and :func:`dipct.generator.sparsify`. Only the
    rows of the basis that are not zero are stored. A basis without such rows is not copied: do
    not change it afterwards.

    Block: ``subspace``.

    Args:
        generator: the generator to restrict.
        origin: its parameters at ``c = 0``, [P].
        basis: directions, [P K]; its columns need not be orthonormal.

    Raises:
        ShapeError: an origin or basis of another shape, or K not in 1 ... P.
        DtypeError: an origin or basis of another type or device than the generator.
        DataError: values that are not finite, or a basis of zeros only.
    """

    def __init__(self, generator: Generator, origin: Tensor, basis: Tensor) -> None:
        check_parameters(generator, origin, "origin")
        low, high = _row_ranges(basis, origin)
        kept = (low != 0) | (high != 0)
        if not bool(kept.any()):
            raise DataError("The basis is zero: the image could not change.")
        self.generator = generator
        # A copy: the parameters of a network are often changed in place.
        self.origin = origin.detach().clone()
        self._rows = None if bool(kept.all()) else kept.nonzero().squeeze(-1)
        self._basis = basis.detach() if self._rows is None else basis.detach()[self._rows]
        coefficients = Parameter("coefficients", (basis.shape[1],), "subspace", Kind.COEFFICIENTS)
        self._set_spaces([coefficients], generator.range_shape)

    def initial(self, seed: int) -> Tensor:
        """Zeros, that is the origin; the seed does not matter."""
        return torch.zeros(self.n_parameters)

    def parameters(self, coefficients: Tensor) -> Tensor:
        """Parameters of the wrapped generator.

        Args:
            coefficients: [... K].

        Returns:
            ``origin + basis c``, [... P].

        Raises:
            ShapeError: another number of coefficients.
            DtypeError: coefficients of another floating-point type or device.
        """
        self._check(coefficients, self.domain_shape, "input")
        change = coefficients @ self._basis.T
        if self._rows is None:
            return self.origin + change
        origin = self.origin.expand(*change.shape[:-1], -1)
        return origin.index_add(-1, self._rows, change)

    def _apply(self, coefficients: Tensor) -> Tensor:
        return self.generator(self.parameters(coefficients))


def check_parameters(generator: Generator, theta: Tensor, name: str) -> None:
    """Raise unless these are finite parameters of one network.

    Args:
        generator: whose parameters they should be.
        theta: [P].
        name: what they are, for the message.

    Raises:
        ShapeError: another shape.
        DtypeError: no floating-point tensor, or of another type or device than the generator.
        DataError: values that are not finite.
    """
    generator._check(theta, generator.domain_shape, name)
    check_shape(theta, "P", name=f"The {name}", P=generator.n_parameters)
    if not theta.is_floating_point():
        raise DtypeError(f"The {name} must be a floating-point tensor; got {theta.dtype}.")
    if not bool(torch.isfinite(theta).all()):
        raise DataError(f"The {name} has values that are not finite.")


def _row_ranges(basis: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value of each row of a valid basis, [P] each."""
    if not isinstance(basis, Tensor):
        raise DtypeError(f"The basis must be a torch tensor; got {type(basis).__name__}.")
    n = origin.numel()
    check_shape(basis, "P K", name="The basis", P=n)
    if not 1 <= basis.shape[1] <= n:
        raise ShapeError(
            f"The basis must have between 1 and P={n} columns; got {tuple(basis.shape)}. With more "
            "columns than rows some coefficients would do nothing."
        )
    if basis.dtype != origin.dtype or basis.device != origin.device:
        raise DtypeError(
            f"The basis is {basis.dtype} on {basis.device}, the origin {origin.dtype} on "
            f"{origin.device}. Convert one of them."
        )
    # Extremes are not finite where any value is not, and need no copy of a basis that is large.
    low, high = basis.detach().aminmax(dim=1)
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise DataError("The basis has values that are not finite.")
    return low, high
