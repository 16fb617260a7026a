"""Gram matrices of the Jacobian: the covariance of the data for every hyper-parameter at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dipct.errors import InsufficientMemoryError
from dipct.posterior.linearised_model import LinearisedModel
from dipct.posterior.stored_jacobian import Report, StoredJacobian
from dipct.posterior.weight_prior import FilterGroup

_ROWS_AT_ONCE = 1024


def gram_matrices(
    stored: StoredJacobian,
    groups: Sequence[FilterGroup],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    report: Report | None = None,
) -> Tensor:
    """``G_k = A J S_k J^T A^T`` for every structure S_k of a prior on the weights.

    With ``Sigma = sum c_k S_k`` the covariance of the projections is ``sum c_k G_k``: no pass
    through the network is needed to know it for other hyper-parameters. Distances between
    positions of a 3 x 3 filter take six values only, hence six matrices for each of its blocks.

    Args:
        stored: the Jacobian.
        groups: of the prior.
        dtype: of the products and the result; default: that of the Jacobian.
        device: of the products and the result; default: where the Jacobian is.
        report: called with matrices done and matrices in all.

    Returns:
        Symmetric, in the order of the prior's coefficients, [K m m].
    """
    first = stored.columns(groups[0])
    m, device = first.shape[0], first.device if device is None else torch.device(device)
    total = sum(len(group.structures) for group in groups)
    result = torch.empty(total, m, m, dtype=dtype or first.dtype, device=device)
    done = 0
    for group in groups:
        columns = stored.columns(group)
        for structure in group.structures:
            _fill(result[done], columns, group, structure)
            done += 1
            if report is not None:
                report(done, total)
    return result


def _fill(result: Tensor, columns: Tensor, group: FilterGroup, structure: Tensor) -> None:
    """One symmetric matrix, blocks on and below the diagonal computed and mirrored."""
    parts = [slice(i, i + _ROWS_AT_ONCE) for i in range(0, len(columns), _ROWS_AT_ONCE)]
    for i, rows in enumerate(parts):
        left = group.times(group.scaled(columns[rows].to(result)), structure)
        for others in parts[: i + 1]:
            product = left @ group.scaled(columns[others].to(result)).mT
            result[rows, others] = product
            result[others, rows] = product.mT
        # Rounding differs between the two triangles of a block on the diagonal.
        block = result[rows, rows]
        result[rows, rows] = (block + block.mT.clone()) / 2


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
    found = []
    for together in _sets_that_fit(model, groups, bytes_at_once):
        stored = StoredJacobian.of_data(model, together, report=report)
        found.append(gram_matrices(stored, together, dtype=dtype))
    return torch.cat(found)


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
                f"The Jacobian of block {group.name} takes {needed / 2**30:.1f} GiB, more than the "
                f"{bytes_at_once / 2**30:.1f} GiB allowed. Keep it on disk, or tune the evidence "
                "with stochastic estimates."
            )
        if needed > free:
            sets.append([])
            free = bytes_at_once
        sets[-1].append(group)
        free -= needed
    return sets
