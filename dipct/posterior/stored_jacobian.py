"""The Jacobian of the data as a stored matrix: in memory, or in files where it does not fit."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dipct.posterior.linearised_model import LinearisedModel
from dipct.posterior.weight_prior import FilterGroup

Report = Callable[[int, int], None]
"""Told how many of how many rows are done."""

# Rows computed before they are written, and rows read at a time.
_ROWS_AT_ONCE = 16
# Bytes of a group's columns that are moved to a device at a time.
_BYTES_AT_ONCE = 2**30


class StoredJacobian:
    """``A J``, one row per datum, kept so that its products need no pass through the network.

    Columns of a group of weights lie together: a Gram matrix reads them group by group.

    Args:
        model: whose Jacobian it is.
        groups: of the weights to keep; default: all.
        folder: where to put files, which are removed with the object; default: keep it in
            memory, on the model's device.
        report: called with rows done and rows in all.

    Attributes:
        groups: the groups that are kept.
    """

    def __init__(
        self,
        model: LinearisedModel,
        groups: Sequence[FilterGroup],
        *,
        folder: str | Path | None = None,
        report: Report | None = None,
    ) -> None:
        self.groups = tuple(groups)
        self._n_data, like = model.n_data, model.residual
        self._folder = None if folder is None else Path(tempfile.mkdtemp(dir=folder))
        if self._folder is not None:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._columns = [self._new(group, like) for group in self.groups]
        for start in range(0, self._n_data, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, self._n_data)
            units = like.new_zeros(stop - start, self._n_data)
            units[torch.arange(stop - start), torch.arange(start, stop)] = 1
            rows = model.to_weights(units)
            for group, columns in zip(self.groups, self._columns, strict=True):
                columns[start:stop] = rows[:, group.weights]
            if report is not None:
                report(stop, self._n_data)

    def _new(self, group: FilterGroup, like: Tensor) -> Tensor:
        shape = (self._n_data, group.size)
        if self._folder is None:
            return like.new_empty(shape)
        path = self._folder / group.name
        return torch.from_file(
            str(path), shared=True, size=shape[0] * shape[1], dtype=like.dtype
        ).reshape(shape)

    def columns(self, group: FilterGroup) -> Tensor:
        """Columns of a group's weights, [m size]."""
        return self._columns[[each.name for each in self.groups].index(group.name)]

    def to_data(self, block: Tensor) -> Tensor:
        """``A J`` times weights, [k W] to [k m]."""
        result = block.new_zeros(len(block), self._n_data)
        for group, columns in zip(self.groups, self._columns, strict=True):
            part = block[:, group.weights]
            for rows in _parts(self._n_data, columns):
                result[:, rows] += part @ columns[rows].to(part).mT
        return result

    def to_weights(self, block: Tensor) -> Tensor:
        """``J^T A^T`` times data, [k m] to [k W]."""
        found = []
        for columns in self._columns:
            total = block.new_zeros(len(block), columns.shape[1])
            for rows in _parts(self._n_data, columns):
                total += block[:, rows] @ columns[rows].to(block)
            found.append(total)
        return torch.cat(found, dim=1)


def _parts(n_rows: int, columns: Tensor) -> list[slice]:
    step = max(1, _BYTES_AT_ONCE // (columns.shape[1] * columns.element_size()))
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
