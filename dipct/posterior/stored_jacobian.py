"""A Jacobian as a stored matrix: in memory, or in files where it does not fit."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    """A Jacobian with respect to the weights, kept, so that products need no pass of the network.

    Columns of a group of weights lie together: a Gram matrix reads them group by group.

    Args:
        to_weights: transposed products, [k m] to [k W].
        n_rows: number of rows m.
        groups: of the weights to keep.
        like: a tensor whose type and device the rows have.
        folder: where to map files that have no name, and vanish with the object; default:
            keep it in memory.
        device: where in memory; default: where the rows are computed.
        report: called with rows done and rows in all.

    Attributes:
        groups: the groups that are kept.
    """

    def __init__(
        self,
        to_weights: Callable[[Tensor], Tensor],
        n_rows: int,
        groups: Sequence[FilterGroup],
        *,
        like: Tensor,
        folder: str | Path | None = None,
        device: torch.device | str | None = None,
        report: Report | None = None,
    ) -> None:
        self.groups, self._n_rows = tuple(groups), n_rows
        self._folder = folder
        self._columns = [self._new(group, like, device) for group in self.groups]
        for start in range(0, n_rows, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, n_rows)
            units = like.new_zeros(stop - start, n_rows)
            units[torch.arange(stop - start), torch.arange(start, stop)] = 1
            rows = to_weights(units)
            for group, columns in zip(self.groups, self._columns, strict=True):
                columns[start:stop] = rows[:, group.weights]
            if report is not None:
                report(stop, n_rows)

    @staticmethod
    def of_data(
        model: LinearisedModel, groups: Sequence[FilterGroup], **options: Any
    ) -> "StoredJacobian":
        """``A J``, one row per datum; options as above."""
        return StoredJacobian(
            model.to_weights, model.n_data, groups, like=model.residual, **options
        )

    @staticmethod
    def of_image(
        model: LinearisedModel, groups: Sequence[FilterGroup], **options: Any
    ) -> "StoredJacobian":
        """``J``, one row per pixel; options as above."""
        shape = model.image.shape

        def to_weights(block: Tensor) -> Tensor:
            return model.jacobian.adjoint(block.reshape(-1, *shape))

        return StoredJacobian(
            to_weights, model.image.numel(), groups, like=model.residual, **options
        )

    def _new(self, group: FilterGroup, like: Tensor, device: torch.device | str | None) -> Tensor:
        shape = (self._n_rows, group.size)
        if self._folder is None:
            return torch.empty(shape, dtype=like.dtype, device=device or like.device)
        number, path = tempfile.mkstemp(prefix="dipct-jacobian-", dir=self._folder)
        os.close(number)
        try:
            mapped = torch.from_file(path, shared=True, size=shape[0] * shape[1], dtype=like.dtype)
        finally:
            # Its space is free again with the last reference to it, however the process ends.
            os.unlink(path)
        return mapped.reshape(shape)

    def columns(self, group: FilterGroup) -> Tensor:
        """Columns of a group's weights, [m size].

        Args:
            group: one of those that are kept, or with the same name.
        """
        return self._columns[[each.name for each in self.groups].index(group.name)]

    def column_mean_square(self) -> Tensor:
        """Mean over the rows of the squared entries, [W]."""
        found = []
        for columns in self._columns:
            total = columns.new_zeros(columns.shape[1])
            for rows in _parts(self._n_rows, columns):
                total += columns[rows].square().sum(0)
            found.append(total / self._n_rows)
        return torch.cat(found)

    def to_data(self, block: Tensor) -> Tensor:
        """The Jacobian times weights, [k W] to [k m]."""
        result = block.new_zeros(len(block), self._n_rows)
        for group, columns in zip(self.groups, self._columns, strict=True):
            part = block[:, group.weights]
            for rows in _parts(self._n_rows, columns):
                result[:, rows] += part @ columns[rows].to(part).mT
        return result

    def to_weights(self, block: Tensor) -> Tensor:
        """The transposed Jacobian times data, [k m] to [k W]."""
        found = []
        for columns in self._columns:
            total = block.new_zeros(len(block), columns.shape[1])
            for rows in _parts(self._n_rows, columns):
                total += block[:, rows] @ columns[rows].to(block)
            found.append(total)
        return torch.cat(found, dim=1)


def _parts(n_rows: int, columns: Tensor) -> list[slice]:
    step = max(1, _BYTES_AT_ONCE // (columns.shape[1] * columns.element_size()))
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
