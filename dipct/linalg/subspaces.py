"""Orthonormal bases of subspaces, as rows, and the angles between subspaces."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dipct.errors import DataError, DtypeError, ShapeError
from dipct.shapes import check_shape

# Elements of each vector that are taken at a time: it bounds the extra memory of a rotation in
# place, and the rounding of inner products in single precision.
_AT_ONCE = 2**14


def subspace_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the principal angles between the spans of the columns of two matrices.

    The singular values of ``Q_a^T Q_b`` with orthonormal bases Q by QR: Björck & Golub,
    "Numerical methods for computing angles between linear subspaces", Math. Comp. 27 (1973),
    theorem 1. Their mean square is the share of one space that lies in the other.

    Args:
        a: columns that span the one space, [n K].
        b: columns that span the other, [n K].

    Returns:
        Cosines, largest first, in [0, 1], [K].

    Raises:
        ShapeError: the shapes differ, or there are more columns than rows.
        DtypeError: not both float32 or both float64, or not on the same device.
        DataError: values that are not finite, or columns that are linearly dependent.
    """
    check_shape(a, "n K", name="a")
    n, k = a.shape
    check_shape(b, "n K", name="b", n=n, K=k, advice="Take as many columns of both.")
    if not 1 <= k <= n:
        raise ShapeError(
            f"a and b must have between 1 and n = {n} columns to span a space; got {k}."
        )
    check_dtype(a.dtype, "a and b")
    if (a.dtype, a.device) != (b.dtype, b.device):
        raise DtypeError(
            f"a and b must have one type and device; got {a.dtype} on {a.device} and "
            f"{b.dtype} on {b.device}. Convert one of them."
        )
    cosines = torch.linalg.svdvals(inner_products(_spanning(a, "a"), _spanning(b, "b")))
    return cosines.clamp(0, 1).to(a)


def check_dtype(dtype: torch.dtype, name: str) -> None:
    """Check that a type is one that decompositions know.

    Args:
        dtype: the type.
        name: what has it, for the message.

    Raises:
        DtypeError: it is neither float32 nor float64.
    """
    if dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"{name} must be float32 or float64; got {dtype}.")


def inner_products(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of rows with rows.

    Args:
        one: rows, [p n].
        other: rows, [q n].

    Returns:
        All products, [p q], in double precision on the CPU.
    """
    total = torch.zeros(len(one), len(other), dtype=torch.float64)
    for part in _parts(one.shape[1]):
        total += (one[:, part] @ other[:, part].mT).to(total)
    return total


def orthonormal_rows(block: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows whose span holds the rows of a block.

    Args:
        block: the rows, [k n], k <= n.

    Returns:
        The rows [k n]; and R [k k], in double precision on the CPU, with
        ``block = R^T @ rows``.
    """
    q, r = torch.linalg.qr(block.mT)
    rows, r = q.mT, r.to("cpu", torch.float64)
    # Householder QR of a million rows in single precision leaves the lengths wrong by 1e-4.
    factor = torch.linalg.cholesky(inner_products(rows, rows))
    rotate_rows(rows, torch.linalg.inv(factor).to(rows))
    return rows, factor.mT @ r


def new_directions(block: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal rows, orthogonal to those of a basis, from a block already projected off it.

    Orthonormalising a nearly dependent block normalises rounding errors too, which may lie in
    the span of the basis: only combinations that are mainly outside it are kept.

    Args:
        block: rows, [p n].
        basis: orthonormal rows, [k n].

    Returns:
        At most p rows, [q n].
    """
    block, _ = orthonormal_rows(block)
    overlap = inner_products(block, basis)
    shares, combinations = torch.linalg.eigh(overlap @ overlap.mT)
    outside = shares < 0.5
    rotation = (combinations[:, outside] / (1 - shares[outside]).sqrt()).mT
    rotate_rows(block, rotation.to(block))
    inside = (rotation @ overlap).to(block)
    return block[: len(rotation)].addmm_(inside, basis, alpha=-1)


def rotate_rows(rows: Tensor, rotation: Tensor) -> None:
    """Overwrite the first k of some rows by combinations of all of them.

    Args:
        rows: the rows, [p n].
        rotation: their combinations, [k p], k <= p.
    """
    for part in _parts(rows.shape[1]):
        rows[: len(rotation), part] = rotation @ rows[:, part]


def _spanning(columns: Tensor, name: str) -> Tensor:
    """Orthonormal rows [K n] with the span of linearly independent columns [n K]."""
    if not torch.isfinite(columns).all():
        raise DataError(f"{name} must be finite; it holds NaN or infinite values.")
    rows, r = orthonormal_rows(columns.mT)
    finfo = torch.finfo(columns.dtype)
    # Scaled to unit columns: how long they are says nothing about their span.
    least = torch.linalg.svdvals(r / r.norm(dim=0).clamp_min(finfo.tiny))[-1]
    if least <= 10 * len(r) * finfo.eps:
        raise DataError(
            f"{name} must have linearly independent columns; scaled to length one, their "
            f"smallest singular value is {float(least):.1e}. Leave out columns that others span."
        )
    return rows


def _parts(length: int) -> Iterator[slice]:
    """Slices that cover a length."""
    for start in range(0, length, _AT_ONCE):
        yield slice(start, start + _AT_ONCE)
