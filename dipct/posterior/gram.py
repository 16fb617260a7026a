"""Gram matrices of the Jacobian: the covariance of the data for every hyper-parameter at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dipct.errors import InsufficientMemoryError
from dipct.posterior.linearised_model import LinearisedModel
from dipct.posterior.stored_jacobian import Report, StoredJacobian
from dipct.posterior.weight_prior import FilterGroup

_ROWS_AT_ONCE = 512


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
    be many orders larger than that of the noise, which decides the evidence.

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
    """Symmetric matrices, blocks on and below the diagonal computed and mirrored."""
    parts = [slice(i, i + _ROWS_AT_ONCE) for i in range(0, len(columns), _ROWS_AT_ONCE)]
    for i, rows in enumerate(parts):
        left = _rows_of(columns, rows, group, result.device)
        for others in parts[: i + 1]:
            # Read once for all structures: columns may have to come from elsewhere.
            right = left if others == rows else _rows_of(columns, others, group, result.device)
            for matrix, structure in zip(result, group.structures, strict=True):
                product = group.times(left, structure) @ right.mT
                if others == rows:
                    # Rounding differs between the two triangles.
                    product = (product + product.mT) / 2
                matrix[rows, others] = product.to(matrix)
                matrix[others, rows] = product.mT.to(matrix)


def _rows_of(columns: Tensor, rows: slice, group: FilterGroup, device: torch.device) -> Tensor:
    return group.scaled(columns[rows].to(device, torch.float64))


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
