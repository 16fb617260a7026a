"""A scan: measured projections together with everything needed to reconstruct them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from dipct.errors import DataError, GeometryError, ShapeError
from dipct.measurement.geometry import Geometry, MatrixGeometry
from dipct.measurement.grid import Grid
from dipct.measurement.noise import GaussianNoise, Noise, PoissonNoise

LengthUnit = Literal["mm", "pixel"]


@dataclass(frozen=True, eq=False)
class Scan:
    """Projections, geometry, grid, noise and, where known, the truth.

    Attributes:
        projections: line integrals of the attenuation, float32, ``(A, D)`` or ``(A, R, D)``,
            dimensionless.
        geometry: where source and detector were.
        grid: where the reconstruction shall lie.
        noise: the noise model, None where it is not known.
        truth: reference image on the grid, float32, ``(H, W)`` or ``(Z, H, W)``, 1/length_unit.
        truth_source: where the truth comes from; needed with a truth.
        metadata: anything worth keeping: source, licence, exposure and the like.
        length_unit: unit of all lengths; ``"pixel"`` where the scan does not tell the size of
            its pixels.

    Raises:
        ShapeError: data and geometry, noise and data, or truth and grid, disagree.
        DataError: projections or truth are not finite.
        GeometryError: geometry and grid do not fit together.
    """

    projections: np.ndarray
    geometry: Geometry
    grid: Grid
    noise: Noise | None = None
    truth: np.ndarray | None = None
    truth_source: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    length_unit: LengthUnit = "mm"

    def __post_init__(self) -> None:
        """Validate that the parts fit together."""
        projections = _real(self.projections, "projections")
        object.__setattr__(self, "projections", projections)
        expected = self.geometry.projection_shape
        if projections.shape != expected:
            axes = "(views, columns)" if len(expected) == 2 else "(views, rows, columns)"
            raise ShapeError(
                f"The geometry describes projections of shape {expected} {axes}; got "
                f"{projections.shape}. Transpose the data, or correct the geometry."
            )
        _check_finite(projections, "projections", "Mask or interpolate bad values first.")
        if self.grid.ndim != (2 if self.geometry.is_planar else 3):
            raise GeometryError(
                f"A {self.geometry.kind} scan of detector shape {self.geometry.detector_shape} "
                f"reconstructs {'an image' if self.geometry.is_planar else 'a volume'}; got a "
                f"grid of shape {self.grid.shape}."
            )
        if isinstance(self.geometry, MatrixGeometry):
            n_pixels = self.geometry.matrix.shape[1]
            if n_pixels != self.grid.n_pixels:
                raise GeometryError(
                    f"The scan's system matrix is for {n_pixels} pixels, the grid "
                    f"{self.grid.shape} has {self.grid.n_pixels}. Another grid cannot be used."
                )
        _check_noise(self.noise, projections.shape)
        if self.truth is not None:
            truth = _real(self.truth, "truth")
            if truth.shape != self.grid.shape:
                raise ShapeError(
                    f"The truth must lie on the grid, shape {self.grid.shape}; got {truth.shape}."
                )
            _check_finite(truth, "truth", "Correct the reference image.")
            if not self.truth_source:
                raise DataError("A truth needs truth_source: say where the reference comes from.")
            object.__setattr__(self, "truth", truth)
        if self.length_unit not in ("mm", "pixel"):
            raise DataError(f"length_unit must be 'mm' or 'pixel'; got {self.length_unit!r}.")
        object.__setattr__(self, "metadata", {k: str(v) for k, v in self.metadata.items()})

    def select_views(self, indices: np.ndarray) -> "Scan":
        """Keep the views with the given indices, in the given order.

        Raises:
            GeometryError: no index, or one that is out of range.
        """
        indices = np.asarray(indices)
        n = self.geometry.n_views
        if indices.dtype == bool and indices.shape == (n,):
            indices = np.flatnonzero(indices)
        whole = indices.ndim == 1 and indices.dtype.kind in "iu"
        if not whole or indices.size == 0 or indices.min() < 0 or indices.max() >= n:
            raise GeometryError(
                f"View indices must lie in 0..{n - 1}, at least one; got {indices}."
            )
        return replace(
            self,
            projections=self.projections[indices],
            geometry=self.geometry.select_views(indices),
            noise=_noise_like(self.noise, self.projections.shape, lambda a: a[indices]),
        )

    def equispaced_views(self, n: int) -> "Scan":
        """Keep ``n`` views spread evenly over those measured.

        View ``k`` is number ``floor(k A / n)`` of the ``A`` measured ones, so that a closing
        view which repeats the first direction is left out.

        Raises:
            GeometryError: more views than there are, or none.
        """
        available = self.geometry.n_views
        if not 1 <= n <= available:
            raise GeometryError(f"The scan has {available} views; cannot choose {n} of them.")
        return self.select_views(np.arange(n) * available // n)

    def angular_range(self, degrees: float) -> "Scan":
        """Keep the views within ``degrees`` of the first one, both ends included.

        Raises:
            GeometryError: the range is not positive.
        """
        if not degrees > 0:
            raise GeometryError(f"The angular range must be positive, in degrees; got {degrees}.")
        # Angles may start anew at zero in the middle of a scan.
        angles = np.unwrap(self.geometry.angles)
        turned = np.abs(np.rad2deg(angles - angles[0]))
        return self.select_views(np.flatnonzero(turned <= degrees + 1e-6))

    def bin_detector(self, factor: int) -> "Scan":
        """Average ``factor`` neighbouring detector columns (and rows) of every view.

        The line integrals are averaged; cells left over at the end are dropped. The noise
        standard deviation of the mean is smaller by ``sqrt`` of the number of cells.
        """
        geometry = self.geometry.bin_detector(factor)
        ratio = factor ** (1 if self.geometry.is_planar else 2)

        def bin_array(array: np.ndarray) -> np.ndarray:
            shape = geometry.projection_shape
            for axis in range(1, array.ndim):
                kept = np.take(array, range(shape[axis] * factor), axis=axis)
                split = (*kept.shape[:axis], shape[axis], factor, *kept.shape[axis + 1 :])
                array = kept.reshape(split).mean(axis + 1)
            return array

        noise = self.noise
        if isinstance(noise, GaussianNoise):
            variance = GaussianNoise(np.square(noise.std))
            binned = _noise_like(variance, self.projections.shape, bin_array)
            noise = GaussianNoise(np.sqrt(binned.std / ratio))  # type: ignore[union-attr]
        elif isinstance(noise, PoissonNoise):
            binned = _noise_like(noise, self.projections.shape, bin_array)
            noise = PoissonNoise(binned.photons * ratio)  # type: ignore[union-attr]
        return replace(
            self, projections=bin_array(self.projections), geometry=geometry, noise=noise
        )

    def crop_detector(self, first: int, last: int) -> "Scan":
        """Keep the detector columns ``first`` to ``last - 1``."""
        return replace(
            self,
            projections=self.projections[..., first:last],
            geometry=self.geometry.crop_detector(first, last),
            noise=_noise_like(self.noise, self.projections.shape, lambda a: a[..., first:last]),
        )

    def with_grid(self, grid: Grid) -> "Scan":
        """The same scan to be reconstructed on another grid; a truth elsewhere is dropped."""
        if grid == self.grid:
            return self
        return replace(self, grid=grid, truth=None, truth_source="")


def _real(values: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name} must be real numbers; got {array.dtype}.")
    return np.ascontiguousarray(array, dtype=np.float32)


def _check_finite(array: np.ndarray, name: str, advice: str) -> None:
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise DataError(
            f"{bad} of {array.size} values in the {name} are NaN or infinite, the first at index "
            f"{where}. {advice}"
        )


def _check_noise(noise: Noise | None, shape: tuple[int, ...]) -> None:
    if noise is None:
        return
    values = np.shape(noise.std if isinstance(noise, GaussianNoise) else noise.photons)
    try:
        fits = np.broadcast_shapes(values, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(
            f"The noise model's values have shape {values}, which does not broadcast to the "
            f"projections' shape {shape}. Give one number, or one per measured value."
        )


def _noise_like(noise: Noise | None, shape: tuple[int, ...], change) -> Noise | None:  # noqa: ANN001
    """The noise model after ``change`` of the projections' array, pixel-wise values in step."""
    if noise is None:
        return None
    values = noise.std if isinstance(noise, GaussianNoise) else noise.photons
    if np.ndim(values) == 0:
        return noise
    return type(noise)(change(np.broadcast_to(values, shape)))
