"""The ray transform without a stored matrix: rays are traced anew for every product."""

import numpy as np
import torch
from torch import Tensor

from dipct.measurement.geometry import Geometry
from dipct.measurement.grid import Grid
from dipct.operator.base import LinearOperator, apply_linear
from dipct.operator.ray_tracing import assemble_matrix
from dipct.operator.slab_tracing import Projector

_RAYS_AT_ONCE = 2**15


class TracedRayTransform(LinearOperator):
    """Line integrals on the CPU in the memory of a few views, for any geometry.

    The adjoint is exact. A product costs as much as assembling the matrix, some hundred times
    the product with a stored one: for scans whose matrix does not fit, or for a single product.

    Attributes:
        geometry: the scan.
        grid: the image grid.
        projector: ``"siddon"`` or ``"joseph"``.
    """

    def __init__(
        self,
        geometry: Geometry,
        grid: Grid,
        *,
        projector: Projector = "siddon",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Describe the transform; nothing is computed yet.

        Args:
            geometry: the scan.
            grid: the image grid.
            projector: ``"siddon"`` for exact intersection lengths, ``"joseph"`` for linear
                interpolation.
            dtype: of inputs and outputs; the tracing itself is in float64.
        """
        self.geometry, self.grid, self.projector = geometry, grid, projector
        self.domain_shape, self.range_shape = grid.image_shape, geometry.projection_shape
        self.like = torch.empty(0, dtype=dtype)
        self._views_at_once = max(1, _RAYS_AT_ONCE // int(np.prod(geometry.detector_shape)))

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._project, self._back_project)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._back_project, self._project)

    def _matrices(self):  # noqa: ANN202
        """Runs of views, each with its matrix."""
        values = np.float64 if self.like.dtype == torch.float64 else np.float32
        n = self.geometry.n_views
        for first in range(0, n, self._views_at_once):
            views = np.arange(first, min(first + self._views_at_once, n))
            part = self.geometry.select_views(views)
            yield views, assemble_matrix(part, self.grid, projector=self.projector, dtype=values)

    def _project(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.domain_shape)]
        columns = x.detach().cpu().reshape(-1, self.grid.n_pixels).numpy().T
        parts = [matrix @ columns for _, matrix in self._matrices()]
        return self._shaped(np.concatenate(parts), batch, self.range_shape)

    def _back_project(self, y: Tensor) -> Tensor:
        batch = y.shape[: y.ndim - len(self.range_shape)]
        sinograms = y.detach().cpu().reshape(-1, *self.range_shape).numpy()
        total = np.zeros((self.grid.n_pixels, len(sinograms)), dtype=sinograms.dtype)
        for views, matrix in self._matrices():
            total += matrix.T @ sinograms[:, views].reshape(len(sinograms), -1).T
        return self._shaped(total, batch, self.domain_shape)

    def _shaped(self, columns: np.ndarray, batch: torch.Size, shape: tuple[int, ...]) -> Tensor:
        result = torch.from_numpy(np.ascontiguousarray(columns.T)).to(self.like)
        return result.reshape(*batch, *shape)
