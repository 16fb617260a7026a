"""Gram matrices of the Jacobian: the covariance of the data for every hyper-parameter at once."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dipct.errors import InsufficientMemoryError
from dipct.posterior.linearised_model import LinearisedModel
from dipct.posterior.stored_jacobian import Report, StoredJacobian
from dipct.posterior.weight_prior import FilterGroup

# Double-precision bytes of the Jacobian on the device of the products at a time.
_BYTES_AT_ONCE = 2**29
# Rows of a product computed at a time: only those on and below the diagonal are.
_ROWS_AT_ONCE = 512
_ROUNDING = 1e-12


def gram_matrices(
    stored: StoredJacobian,
    groups: Sequence[FilterGroup],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    report: Report | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``G_k = A J S_k J^T A^T`` for every structure S_k of a prior on the weights.

    With ``Sigma = sum c_k S_k`` the covariance of the projections is ``sum c_k G_k``: no pass
    through the network is needed to know it for other hyper-parameters. Distances between
    positions of a 3 x 3 filter take six values only, hence six matrices for each of its blocks.

    Products are taken in double precision whatever the type of the result: signal variances can
    be many orders larger than that of the noise, which decides the evidence. Each column of the
    Jacobian is read once, so that it may lie elsewhere than the products.

    Args:
        stored: the Jacobian.
        groups: of the prior.
        dtype: of the result; default: that of the Jacobian.
        device: of the products and the result; default: where the Jacobian is.
        report: called with matrices done and matrices in all.
        out: where to put the result, [K m m].

    Returns:
        Symmetric, in the order of the prior's coefficients, [K m m].
    """
    first = stored.columns(groups[0])
    m, device = first.shape[0], first.device if device is None else torch.device(device)
    total = sum(len(group.structures) for group in groups)
    if out is None:
        out = torch.empty(total, m, m, dtype=dtype or first.dtype, device=device)
    done = 0
    for group in groups:
        part = out[done : done + len(group.structures)]
        _fill(part, stored.columns(group), group)
        done += len(group.structures)
        if report is not None:
            report(done, total)
    return out


def _fill(result: Tensor, columns: Tensor, group: FilterGroup) -> None:
    """Gram matrices of one group.

    With an orthogonal basis of filters that the symmetries of a square suggest, most products of
    two basis functions occur in no structure: a third of the work is left for 3 x 3 filters.
    """
    m, p = len(columns), group.positions
    basis = _square_basis(p).to(result.device)
    structures, pairs = _rotated(group, basis)
    products = basis.new_zeros(len(pairs), m, m)
    step = max(1, _BYTES_AT_ONCE // (m * p * products.element_size()))
    for start in range(0, group.filters, step):
        part = slice(start * p, min(start + step, group.filters) * p)
        # Moved before it is widened, not after.
        block = columns[:, part].to(products.device).to(products.dtype)
        if group.scale is not None:
            # Not in place: it may be the caller's.
            block = block * group.scale[part].to(block)
        rotated = torch.einsum("ap,mfp->amf", basis, block.unflatten(1, (-1, p)))
        for (i, j), product in zip(pairs, products, strict=True):
            _add_symmetric_product(product, rotated[i], None if i == j else rotated[j])
    for structure, matrix in zip(structures, result, strict=True):
        coefficients = torch.stack([structure[pair] for pair in pairs])
        lower = torch.einsum("k,kij->ij", coefficients, products).tril()
        matrix.copy_(lower + lower.tril(-1).mT)


def _rotated(group: FilterGroup, basis: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """Structures in another basis, [R p p], and where any of them is not zero."""
    structures = basis @ group.structures.to(basis) @ basis.mT
    is_needed, p = (structures.abs() > _ROUNDING).any(0), group.positions
    return structures, [(i, j) for i in range(p) for j in range(i + 1) if is_needed[i, j]]


def gram_working_bytes(groups: Sequence[FilterGroup], n_rows: int) -> int:
    """Bytes that :func:`gram_matrices` takes beside its result and the Jacobian.

    Args:
        groups: of the prior.
        n_rows: of the Jacobian, m.
    """
    products = max(len(_rotated(g, _square_basis(g.positions))[1]) for g in groups)
    largest = 8 * n_rows * max(group.size for group in groups)
    return 8 * products * n_rows**2 + 2 * min(_BYTES_AT_ONCE, largest)


def _add_symmetric_product(total: Tensor, one: Tensor, other: Tensor | None) -> None:
    """Add ``one other^T + other one^T``, or ``one one^T``, on and below the diagonal."""
    for start in range(0, len(total), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(total))
        rows = total[start:stop, :stop]
        if other is None:
            rows.addmm_(one[start:stop], one[:stop].mT)
        else:
            rows.addmm_(one[start:stop], other[:stop].mT)
            rows.addmm_(other[start:stop], one[:stop].mT)


def _square_basis(positions: int) -> Tensor:
    """Orthogonal basis of filters, even or odd in each axis and under their exchange, [p p].

    For filters that are not square: the positions themselves.
    """
    width = math.isqrt(positions)
    if width**2 != positions:
        return torch.eye(positions, dtype=torch.float64)
    unit = torch.eye(width, dtype=torch.float64)
    mirrored = unit.flip(0)
    half = width // 2
    even = [(unit[i] + mirrored[i]) / math.sqrt(2) for i in range(half)]
    odd = [(unit[i] - mirrored[i]) / math.sqrt(2) for i in range(half)]
    axis = torch.stack([*even, *([unit[half]] if width % 2 else []), *odd])
    found = []
    for i in range(width):
        found.append(torch.outer(axis[i], axis[i]))
        for j in range(i):
            product = torch.outer(axis[i], axis[j])
            is_mixed = (i < width - half) != (j < width - half)
            found += (
                [product, product.mT]
                if is_mixed
                else [(product + product.mT) / math.sqrt(2), (product - product.mT) / math.sqrt(2)]
            )
    return torch.stack(found).flatten(1)


def recomputed_gram_matrices(
    model: LinearisedModel,
    groups: Sequence[FilterGroup],
    *,
    bytes_at_once: int,
    dtype: torch.dtype | None = None,
    report: Report | None = None,
) -> Tensor:
    """As :func:`gram_matrices` without keeping the whole Jacobian.

    Groups are taken together as far as they fit; the rows are computed anew for each set of them.

    Args:
        model: whose Jacobian it is.
        groups: of the prior.
        bytes_at_once: most bytes of the Jacobian to keep.
        dtype: of the result; default: that of the data.
        report: called with rows done and rows in all, from the start for every set of groups.

    Returns:
        [K m m].

    Raises:
        InsufficientMemoryError: a single group does not fit.
    """
    sets = _sets_that_fit(model, groups, bytes_at_once)
    total, m = sum(len(group.structures) for group in groups), model.n_data
    like = model.residual
    result = torch.empty(total, m, m, dtype=dtype or like.dtype, device=like.device)
    done = 0
    for together in sets:
        stored = StoredJacobian.of_data(model, together, report=report)
        count = sum(len(group.structures) for group in together)
        gram_matrices(stored, together, out=result[done : done + count])
        done += count
        # Before the next one is made.
        del stored
    return result


def _sets_that_fit(
    model: LinearisedModel, groups: Sequence[FilterGroup], bytes_at_once: int
) -> list[list[FilterGroup]]:
    row = model.residual.element_size() * model.n_data
    sets: list[list[FilterGroup]] = []
    free = 0
    for group in groups:
        needed = row * group.size
        if needed > bytes_at_once:
            raise InsufficientMemoryError(
                f"The Jacobian of block {group.name} takes {needed / 2**30:.3g} GiB, more than the "
                f"{bytes_at_once / 2**30:.3g} GiB allowed. Keep it on disk, or tune the evidence "
                "with stochastic estimates."
            )
        if needed > free:
            sets.append([])
            free = bytes_at_once
        sets[-1].append(group)
        free -= needed
    return sets
