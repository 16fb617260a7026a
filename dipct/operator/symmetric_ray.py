"""The ray transform of a circular scan, stored for a quarter of the image only.

Turned by 90 degrees, a circular scan of a square image is itself again: with ``R`` a quarter
turn of the image and ``T`` the matching permutation of the projections, ``T A = A R^-1``. Write
``Q`` for a quadrant of the image; then

    A x = sum over r of T^-r A_Q (R^-r x)_Q,            (A^T y)_(R^r Q) = A_Q^T T^r y,

so that one matrix with a quarter of the columns serves four vectors at once. It takes a quarter
of the memory, and a product with four vectors reads it once.
"""

from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from scipy.spatial import cKDTree
from torch import Tensor

from dipct.device import find_device
from dipct.errors import GeometryError
from dipct.measurement.geometry import ConeSliceGeometry, Geometry, MatrixGeometry
from dipct.measurement.grid import Grid
from dipct.operator.base import LinearOperator, apply_linear
from dipct.operator.matrix import MatrixOperator, check_stored_dtype
from dipct.operator.matrix_cache import find_matrix
from dipct.operator.slab_tracing import Projector

# Share of the largest distance by which views of a turned scan may differ.
_TOLERANCE = 1e-9


class SymmetricRayTransform(LinearOperator):
    """Line integrals along the rays of a scan that repeats itself every quarter turn.

    Up to rounding it equals :class:`dipct.operator.RayTransform`.

    Attributes:
        geometry: the scan.
        grid: the image grid.
        projector: ``"siddon"`` or ``"joseph"``.
        quadrant: the stored matrix, from a quadrant of the image to all projections.
    """

    def __init__(
        self,
        geometry: Geometry,
        grid: Grid,
        *,
        projector: Projector = "siddon",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        cache: Path | bool = False,
    ) -> None:
        """Trace the rays and store the part for one quadrant, and its transpose.

        Args:
            geometry: a scan of any kind in which :func:`quarter_turn` finds the symmetry.
            grid: square in the plane, centred on the rotation axis.
            projector: ``"siddon"`` or ``"joseph"``.
            dtype: ``torch.float32`` or ``torch.float64``.
            device: where to store the matrix.
            cache: keep the matrix on disk: True for the default folder, or a folder.

        Raises:
            GeometryError: the scan or grid does not have the symmetry.
            InsufficientMemoryError: the matrix is estimated not to fit into memory.
        """
        check_stored_dtype(dtype)
        device = find_device(device)
        turn = quarter_turn(geometry, grid)
        if turn is None:
            raise GeometryError(
                f"This {geometry.kind} scan does not repeat itself every quarter turn on a grid "
                f"{grid.shape} centred at {grid.center}; use RayTransform."
            )
        self.geometry, self.grid, self.projector = geometry, grid, projector
        self.domain_shape, self.range_shape = grid.image_shape, geometry.projection_shape
        turns = [np.arange(len(turn))]
        for _ in range(3):
            turns.append(turns[-1][turn])
        parts = [
            find_matrix(geometry, part, projector=projector, dtype=dtype, cache=cache)
            for part in _quadrant_grids(grid)
        ]
        quadrant = sparse.hstack(parts, format="csr")
        m, n = quadrant.shape
        self.quadrant = MatrixOperator(quadrant, (n,), (m,), dtype=dtype, device=device)
        self._turned = torch.from_numpy(np.stack(turns)).to(device)
        self._back = torch.from_numpy(np.stack([np.argsort(t) for t in turns])).to(device)

    @property
    def n_nonzeros(self) -> int:
        """Number of stored entries; the whole matrix has four times as many."""
        return self.quadrant.n_nonzeros

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._project, self._back_project)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._back_project, self._project)

    def _project(self, x: Tensor) -> Tensor:
        n = self.grid.shape[-1]
        images = x.reshape(-1, self.grid.n_pixels // n**2, n, n)
        parts = [torch.rot90(images[_part(n, r)], -r, (-2, -1)).flatten(1) for r in range(4)]
        if n % 2:
            # The middle pixel belongs to all four quadrants, with a quarter of its value each.
            middle = images[..., n // 2, n // 2] / 4
            parts = [torch.cat([part, middle], 1) for part in parts]
        rows = torch.stack(parts).flatten(0, 1)
        turned = self.quadrant(rows).reshape(4, len(images), -1)
        total = turned[0]
        for r in range(1, 4):
            total = total + turned[r].index_select(1, self._back[r])
        return total.reshape(*x.shape[: x.ndim - len(self.domain_shape)], *self.range_shape)

    def _back_project(self, y: Tensor) -> Tensor:
        n = self.grid.shape[-1]
        projections = y.reshape(-1, self._turned.shape[1])
        rows = torch.cat([projections.index_select(1, self._turned[r]) for r in range(4)])
        depth = self.grid.n_pixels // n**2
        quadrants = self.quadrant.adjoint(rows).reshape(4, len(projections), -1)
        high, wide = (n + 1) // 2, n // 2
        images = y.new_empty((len(projections), depth, n, n))
        for r in range(4):
            part = quadrants[r, :, : depth * high * wide].unflatten(1, (depth, high, wide))
            images[_part(n, r)] = torch.rot90(part, r, (-2, -1))
        if n % 2:
            images[..., n // 2, n // 2] = quadrants[..., depth * high * wide :].sum(0) / 4
        return images.reshape(*y.shape[: y.ndim - len(self.range_shape)], *self.domain_shape)


def quarter_turn(geometry: Geometry, grid: Grid) -> np.ndarray | None:
    """The permutation of the projections that goes with a quarter turn of the image.

    Args:
        geometry: any scan.
        grid: any grid.

    Returns:
        ``turn`` [m] such that ``(A x)[turn] = A rot90(x, -1)`` for all images and flattened
        projections; None where the scan does not repeat itself every quarter turn.
    """
    square = grid.shape[-1] == grid.shape[-2] > 1 and not any(grid.center[:2])
    if isinstance(geometry, MatrixGeometry) or not square:
        return None
    vectors = geometry.vectors()
    x, y = vectors[:, 0::3], vectors[:, 1::3]
    turned = vectors.copy()
    turned[:, 0::3], turned[:, 1::3] = -y, x
    view, found = _same_views(vectors, turned)
    cells = np.arange(int(np.prod(geometry.detector_shape)))
    columns = np.broadcast_to(cells, (geometry.n_views, len(cells))).copy()
    if geometry.beam == "parallel" and geometry.is_planar:
        # Along the opposite direction a parallel beam sees the same lines, columns reversed.
        turned[:, [0, 1, 6, 7]] *= -1
        opposite, also = _same_views(vectors, turned)
        reversed_ = also & ~found
        view[reversed_] = opposite[reversed_]
        columns[reversed_] = cells[::-1]
        found |= also
    if not found.all() or len(np.unique(view)) != geometry.n_views:
        return None
    if isinstance(geometry, ConeSliceGeometry) and np.any(geometry.rows[view] != geometry.rows):
        return None
    return (view[:, None] * len(cells) + columns).ravel()


def _same_views(vectors: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each wanted view [A 12] the nearest there is, and whether the two are the same."""
    distance, nearest = cKDTree(vectors).query(wanted)
    return nearest, distance <= _TOLERANCE * np.linalg.norm(vectors, axis=1).max()


def _part(n: int, r: int) -> tuple[object, slice, slice]:
    """Where the quadrant of ``r`` quarter turns lies; the four leave out an odd middle pixel."""
    high, wide = (n + 1) // 2, n // 2
    start, stop = slice(0, high), slice(n - high, n)
    left, right = slice(0, wide), slice(n - wide, n)
    rows, columns = ((start, left), (right, start), (stop, right), (left, stop))[r]
    return (..., rows, columns)


def _quadrant_grids(grid: Grid) -> list[Grid]:
    """The grid of the first quadrant, and that of the middle pixel if there is one."""
    n, h = grid.shape[-1], grid.pixel_size
    high, wide = (n + 1) // 2, n // 2
    above = tuple(grid.center[2:])
    left, top = float(grid.lower[0]), float(grid.upper[1])
    corner = (left + wide * h / 2, top - high * h / 2, *above)
    grids = [Grid((*grid.shape[:-2], high, wide), h, corner)]
    if n % 2:
        grids.append(Grid((*grid.shape[:-2], 1, 1), h, (0.0, 0.0, *above)))
    return grids
