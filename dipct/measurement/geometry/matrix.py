"""A scan that is known only through the system matrix that came with its data."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from scipy import sparse

from dipct.errors import GeometryError
from dipct.measurement.geometry.base import (
    Beam,
    Geometry,
    Rays,
    check_angles,
    check_columns,
    check_counts,
    check_factor,
)


@dataclass(frozen=True, eq=False)
class MatrixGeometry(Geometry):
    """A given sparse matrix from image to sinogram in place of source and detector positions.

    Attributes:
        matrix: [A*D, H*W], rows ordered by view, then column; columns in row-major image order.
        n_columns: number of detector columns D.
        view_angles: angle of each view if known, [A], rad; else equispaced over a full turn.
    """

    kind: ClassVar[str] = "matrix"
    beam: ClassVar[Beam] = "parallel"  # type: ignore[misc]

    matrix: sparse.csr_matrix
    n_columns: int
    view_angles: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_counts(n_columns=self.n_columns)
        matrix = sparse.csr_matrix(self.matrix)
        if matrix.shape[0] % self.n_columns or matrix.shape[0] == 0:
            raise GeometryError(
                f"A system matrix with {self.n_columns} detector columns needs a multiple of "
                f"that many rows; got {matrix.shape[0]}."
            )
        if not np.all(np.isfinite(matrix.data)):
            raise GeometryError("The system matrix holds values that are not finite.")
        object.__setattr__(self, "matrix", matrix)
        n_views = matrix.shape[0] // self.n_columns
        angles = np.asarray(self.view_angles, dtype=np.float64)
        if angles.size == 0:
            angles = np.arange(n_views) * (2 * np.pi / n_views)
        angles = check_angles(angles)
        if len(angles) != n_views:
            raise GeometryError(
                f"The system matrix has {n_views} views of {self.n_columns} columns, but "
                f"{len(angles)} angles came."
            )
        object.__setattr__(self, "view_angles", angles)

    @property
    def n_views(self) -> int:
        """Number of views A."""
        return self.matrix.shape[0] // self.n_columns

    @property
    def detector_shape(self) -> tuple[int, ...]:
        """``(D,)``."""
        return (self.n_columns,)

    @property
    def angles(self) -> np.ndarray:  # type: ignore[override]
        """Angle of each view, [A], rad."""
        return self.view_angles

    def vectors(self) -> np.ndarray:
        """Raise: the positions of source and detector are not known."""
        raise GeometryError(
            "This scan comes with a system matrix, not with source and detector positions. "
            "Methods that need positions (FBP, FDK, another grid) cannot be used; CGLS, SIRT and "
            "TV can."
        )

    def rays(self, views: slice | np.ndarray | None = None) -> Rays:
        """Raise, as :meth:`vectors`."""
        self.vectors()
        raise AssertionError

    def select_views(self, indices: np.ndarray) -> "MatrixGeometry":
        """Keep the views with the given indices, in the given order."""
        rows = np.arange(self.matrix.shape[0]).reshape(self.n_views, -1)[indices].ravel()
        return replace(self, matrix=self.matrix[rows], view_angles=self.view_angles[indices])

    def bin_detector(self, factor: int) -> "MatrixGeometry":
        """Average the matrix rows of ``factor`` neighbouring columns."""
        check_factor(factor, self.n_columns)
        n = self.n_columns // factor
        mean = sparse.kron(sparse.eye(n), np.full((1, factor), 1 / factor), format="csr")
        mean.resize(n, self.n_columns)
        averaging = sparse.kron(sparse.eye(self.n_views), mean, format="csr")
        return replace(self, matrix=averaging @ self.matrix, n_columns=n)

    def crop_detector(self, first: int, last: int) -> "MatrixGeometry":
        """Keep the detector columns ``first`` to ``last - 1``."""
        check_columns(first, last, self.n_columns)
        rows = np.arange(self.matrix.shape[0]).reshape(self.n_views, -1)[:, first:last].ravel()
        return replace(self, matrix=self.matrix[rows], n_columns=last - first)

    def summary(self) -> dict[str, str]:
        """See :meth:`Geometry.summary`."""
        rows, columns = self.matrix.shape
        return super().summary() | {
            "system matrix": f"{rows} x {columns}, {self.matrix.nnz} non-zeros"
        }
