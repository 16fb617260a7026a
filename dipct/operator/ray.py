"""The ray transform of a scan as an operator."""

from pathlib import Path
from typing import Literal

import torch

from dipct.device import find_device
from dipct.errors import ConfigurationError
from dipct.measurement.geometry import Geometry
from dipct.measurement.grid import Grid
from dipct.operator.base import LinearOperator
from dipct.operator.matrix import MatrixOperator, check_stored_dtype
from dipct.operator.matrix_cache import find_matrix
from dipct.operator.slab_tracing import Projector
from dipct.operator.symmetric_ray import SymmetricRayTransform, quarter_turn
from dipct.operator.traced import TracedRayTransform

Backend = Literal["matrix", "traced", "astra"]


class RayTransform(MatrixOperator):
    """Line integrals of an image along the rays of a scan, as a stored sparse matrix.

    Attributes:
        geometry: the scan.
        grid: the image grid.
        projector: how a ray meets the pixels, ``"siddon"`` or ``"joseph"``.
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
        """Trace the rays and store matrix and transpose.

        Args:
            geometry: the scan, of any kind.
            grid: the image grid: images (1, H, W) for planar scans, else volumes (1, Z, H, W),
                in 1/mm.
            projector: ``"siddon"`` for exact intersection lengths, ``"joseph"`` for linear
                interpolation.
            dtype: ``torch.float32`` or ``torch.float64``.
            device: where to store the matrix.
            cache: keep the matrix on disk: True for the default folder, or a folder.

        Raises:
            GeometryError: geometry and grid do not fit together.
            InsufficientMemoryError: the matrix is estimated not to fit into memory.
            DtypeError: another floating-point type.
            DeviceUnavailableError: no such device on this machine.
        """
        check_stored_dtype(dtype)
        device = find_device(device)
        matrix = find_matrix(geometry, grid, projector=projector, dtype=dtype, cache=cache)
        super().__init__(
            matrix, grid.image_shape, geometry.projection_shape, dtype=dtype, device=device
        )
        self.geometry, self.grid, self.projector = geometry, grid, projector


def ray_transform(
    geometry: Geometry,
    grid: Grid,
    *,
    backend: Backend = "matrix",
    projector: Projector = "siddon",
    device: torch.device | str = "cpu",
    cache: Path | bool = False,
) -> LinearOperator:
    """The ray transform of a scan in float32, stored or matrix-free.

    Args:
        geometry: the scan.
        grid: the image grid.
        backend: ``"matrix"`` for a stored sparse matrix (fast, exact adjoint; a quarter of it for
            scans that repeat themselves every quarter turn), ``"traced"`` for
            tracing the rays anew for every product (little memory, exact adjoint, CPU),
            ``"astra"`` for ASTRA's matrix-free projectors (planar, or CUDA).
        projector: ``"siddon"`` or ``"joseph"``; ASTRA calls them line and linear.
        device: where projections are computed.
        cache: keep a stored matrix on disk, see :class:`RayTransform`.

    Raises:
        ConfigurationError: an unknown backend.
    """
    if backend == "matrix":
        symmetric = quarter_turn(geometry, grid) is not None
        kind = SymmetricRayTransform if symmetric else RayTransform
        return kind(geometry, grid, projector=projector, device=device, cache=cache)
    if backend == "astra":
        from dipct.operator.astra_ray import AstraRayTransform

        return AstraRayTransform(geometry, grid, projector=projector, device=device)
    if backend == "traced":
        if find_device(device).type != "cpu":
            raise ConfigurationError("The backend 'traced' computes on the CPU; use device cpu.")
        return TracedRayTransform(geometry, grid, projector=projector)
    raise ConfigurationError(f"backend must be 'matrix', 'traced' or 'astra'; got {backend!r}.")
