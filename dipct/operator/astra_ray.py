"""Matrix-free ray transforms by ASTRA; the only module that imports it."""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipct.device import find_device
from dipct.errors import (
    BackendUnavailableError,
    ConfigurationError,
    DeviceUnavailableError,
    DtypeError,
)
from dipct.measurement.geometry import ConeSliceGeometry, Geometry, MatrixGeometry
from dipct.measurement.grid import Grid
from dipct.operator.base import LinearOperator, apply_linear
from dipct.operator.ray_tracing import check_fit

try:
    import astra
except ImportError as error:
    raise BackendUnavailableError(
        f"ASTRA cannot be loaded ({error}). Install astra-toolbox, or use backend='matrix'."
    ) from error

_PLANAR = {
    ("siddon", "parallel"): "line",
    ("siddon", "cone"): "line_fanflat",
    ("joseph", "parallel"): "linear",
}


class AstraRayTransform(LinearOperator):
    """Line integrals computed on the fly, for scans whose matrix does not fit in memory.

    Planar scans run on the CPU and on a CUDA device, spatial ones on a CUDA device only. The
    CPU pair is an exact transpose (``matched``), the CUDA pair is not. Data are float32.

    Reference: W. van Aarle et al., Fast and flexible X-ray tomography using the ASTRA Toolbox,
    Optics Express 24 (2016).
    """

    def __init__(
        self,
        geometry: Geometry,
        grid: Grid,
        *,
        projector: str = "siddon",
        device: torch.device | str = "cpu",
    ) -> None:
        """Set up ASTRA's projector.

        Args:
            geometry: the scan.
            grid: the image grid.
            projector: ``"siddon"`` or ``"joseph"`` on the CPU; CUDA has interpolation only.
            device: ``"cpu"`` or a CUDA device; tensors on it are copied through the host.

        Raises:
            GeometryError: geometry and grid do not fit together.
            BackendUnavailableError: ASTRA cannot do this scan on this device.
            ConfigurationError: ASTRA has no such projector for this beam on the CPU.
            DeviceUnavailableError: no CUDA device is present.
        """
        self.like = torch.empty(0, dtype=torch.float32, device=find_device(device))
        self.geometry, self.grid, self.projector = geometry, grid, projector
        self.domain_shape, self.range_shape = grid.image_shape, geometry.projection_shape
        on_gpu = self.like.is_cuda
        if isinstance(geometry, MatrixGeometry | ConeSliceGeometry):
            raise BackendUnavailableError(
                f"ASTRA has no projector for a {geometry.kind} scan; use backend='matrix'."
            )
        check_fit(geometry, grid)
        if on_gpu and not astra.use_cuda():
            raise DeviceUnavailableError(
                "ASTRA finds no CUDA device on this machine; use device='cpu'."
            )
        if not geometry.is_planar and not on_gpu:
            raise BackendUnavailableError(
                "ASTRA projects volumes on a CUDA device only; use backend='matrix' on the CPU."
            )
        self.matched = not on_gpu
        self._projector = _Projector(self._projector_type(on_gpu), geometry, grid)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "AstraRayTransform":
        """The same transform on another device."""
        if dtype not in (None, torch.float32):
            raise DtypeError(f"ASTRA computes in float32; got {dtype}. Use backend='matrix'.")
        return AstraRayTransform(
            self.geometry, self.grid, projector=self.projector, device=device or self.like.device
        )

    def _projector_type(self, on_gpu: bool) -> str:
        if on_gpu:
            return "cuda" if self.geometry.is_planar else "cuda3d"
        try:
            return _PLANAR[self.projector, self.geometry.beam]
        except KeyError:
            raise ConfigurationError(
                f"ASTRA has no projector {self.projector!r} for a {self.geometry.beam} beam on "
                f"the CPU; it has {sorted(_PLANAR)}. Use backend='matrix'."
            ) from None

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._project, self._back_project)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._back_project, self._project)

    def _project(self, x: Tensor) -> Tensor:
        return self._each(x, self.domain_shape, self._projector.project, self.range_shape)

    def _back_project(self, y: Tensor) -> Tensor:
        return self._each(y, self.range_shape, self._projector.back_project, self.domain_shape)

    def _each(self, x, shape, function, out_shape) -> Tensor:  # noqa: ANN001
        batch = x.shape[: x.ndim - len(shape)]
        arrays = x.detach().cpu().reshape(-1, *shape).contiguous().numpy()
        results = np.stack([function(array) for array in arrays])
        return torch.from_numpy(results).to(x.device).reshape(*batch, *out_shape)


class _Projector:
    """Owns ASTRA's projector object; ASTRA's own order of axes stays in here."""

    def __init__(self, kind: str, geometry: Geometry, grid: Grid) -> None:
        self.views_last = not geometry.is_planar
        vectors = geometry.vectors().copy()
        (x0, y0), (x1, y1) = grid.lower[:2], grid.upper[:2]
        if geometry.is_planar:
            name = "parallel_vec" if geometry.beam == "parallel" else "fanflat_vec"
            planar = vectors[:, [0, 1, 3, 4, 6, 7]]
            projections = astra.create_proj_geom(name, geometry.detector_shape[0], planar)
            volume = astra.create_vol_geom(*grid.shape, x0, x1, y0, y1)
        else:
            # In ASTRA's volumes y grows with the row index, in ours it falls: mirror the world.
            vectors[:, 1::3] *= -1
            name = "parallel3d_vec" if geometry.beam == "parallel" else "cone_vec"
            n_rows, n_columns = geometry.detector_shape
            projections = astra.create_proj_geom(name, n_rows, n_columns, vectors)
            depth, height, width = grid.shape
            z0, z1 = grid.lower[2], grid.upper[2]
            volume = astra.create_vol_geom(height, width, depth, x0, x1, -y1, -y0, z0, z1)
        self.identifier = astra.create_projector(kind, projections, volume)
        self.operator: Any = astra.OpTomo(self.identifier)

    def project(self, image: np.ndarray) -> np.ndarray:
        sinogram = self.operator.FP(image[0])
        return np.ascontiguousarray(sinogram.swapaxes(0, 1)) if self.views_last else sinogram

    def back_project(self, sinogram: np.ndarray) -> np.ndarray:
        data = np.ascontiguousarray(sinogram.swapaxes(0, 1)) if self.views_last else sinogram
        return self.operator.BP(data)[None]

    def __del__(self) -> None:
        # At interpreter exit ASTRA may already be gone.
        with contextlib.suppress(AttributeError, TypeError):
            astra.projector.delete(self.identifier)
