"""Filtered backprojection of planar scans, and the weights it shares with cone-beam scans.

With ``p(theta, s)`` the integral over the line of normal angle ``theta`` and distance ``s`` from
the origin, the image is ``f(x) = iint w p h(x . n - s) dtheta ds``: ``h`` is the ramp and the
weights ``w`` of all measurements of one line add up to one. For a divergent beam the variables
are changed to the source's angle ``lambda`` and the coordinate ``u`` on the flat detector:

    f(x) = int D / L(x)^2  int w p |a'(lambda) . n| h(u(x) - u) du dlambda

with ``a`` the source, ``n`` the normal of the ray in the plane, ``D`` the distance from source
to detector and ``L`` the one from source to ``x``, both across the detector. On a circle about
the origin ``|a' . n|`` is its radius times the cosine of the fan angle and the formula is Kak
and Slaney's; written so, the detector may be shifted, turned and scaled in every view.

References:
    A. C. Kak and M. Slaney, Principles of Computerized Tomographic Imaging, IEEE Press (1988),
    chapter 3, sections 3.3 and 3.4.2.
    F. Noo, M. Defrise, R. Clackdoyle and H. Kudo, Image reconstruction from fan-beam projections
    on less than a short scan, Physics in Medicine and Biology 47 (2002).
"""

import numpy as np
import torch
from torch import Tensor

from dipct.errors import DtypeError, GeometryError
from dipct.measurement.geometry import ConeSliceGeometry, Geometry
from dipct.measurement.grid import Grid
from dipct.operator.base import LinearOperator, apply_linear
from dipct.operator.ramp_filter import Filter, filter_columns, ramp_response
from dipct.operator.view_weights import trajectory_centre, view_weights

_PIXELS_PER_STEP = 2**19


class FilteredBackProjection(LinearOperator):
    """Filtered backprojection: from the sinogram ``(A, D)`` to the image ``(1, H, W)``, 1/mm.

    Pixel-driven, with linear interpolation between columns. Everything is derived from the
    per-view vectors of the scan, so that detectors may be shifted, cropped or binned and views
    unevenly spaced or repeated. Lines measured twice are weighted (full circle, short scan,
    limited arc, and full circles with a detector that reaches past the axis on one side only);
    directions that were not measured stay missing. A cone slice is treated as a fan beam in the
    plane, with each value multiplied by the cosine of its ray's slope.

    The operator follows the floating-point type and the device of its input.

    Attributes:
        geometry: the scan.
        grid: the image grid.
    """

    def __init__(
        self,
        geometry: Geometry,
        grid: Grid,
        *,
        filter: Filter = "ram-lak",
        frequency_scaling: float = 1.0,
    ) -> None:
        """Prepare weights and filter.

        Args:
            geometry: a planar scan: parallel, fan, planar vectors or cone slice.
            grid: a 2-D grid.
            filter: ``"ram-lak"``, ``"shepp-logan"``, ``"cosine"``, ``"hamming"`` or ``"hann"``.
            frequency_scaling: cut-off of the filter as a share of the Nyquist frequency.

        Raises:
            GeometryError: not a planar scan, positions not known, or a source inside the grid.
            ConfigurationError: unknown filter or impossible cut-off.
        """
        vectors = planar_vectors(geometry)
        if grid.ndim != 2:
            raise GeometryError(
                f"Filtered backprojection reconstructs an image; got a grid of shape {grid.shape}."
            )
        n_columns = geometry.detector_shape[-1]
        self.geometry, self.grid = geometry, grid
        self.domain_shape, self.range_shape = geometry.projection_shape, grid.image_shape
        column, _, depth = projection_coefficients(vectors, (1, n_columns), geometry.beam)
        check_depth(depth, grid)
        self._weights = view_weights(vectors, n_columns, geometry.beam)
        if isinstance(geometry, ConeSliceGeometry):
            directions = geometry.rays().directions
            in_plane = np.linalg.norm(directions[..., :2], axis=-1)
            self._weights *= in_plane / np.linalg.norm(directions, axis=-1)
        self._extension = detector_extension(vectors, column, depth, n_columns, geometry.beam)
        self._n_filtered = n_columns + sum(self._extension)
        self._response = ramp_response(self._n_filtered, filter, frequency_scaling)
        column = column + self._extension[0] * depth
        # z = 0: only the constant and the factors of x and y matter.
        self._coefficients = np.stack([column[:, :3], depth[:, :3]], 1)

    def _apply(self, x: Tensor) -> Tensor:
        check_real(x, self)
        return apply_linear(x, self._reconstruct, self._project)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        check_real(y, self)
        return apply_linear(y, self._project, self._reconstruct)

    def _reconstruct(self, x: Tensor) -> Tensor:
        batch = x.shape[:-2]
        n_views, n_columns = self.domain_shape
        weights, response = like(self._weights, x), like(self._response, x)
        weighted = x.reshape(-1, n_views, n_columns) * weights
        filtered = filter_columns(torch.nn.functional.pad(weighted, self._extension), response)
        # Positions off the detector are moved onto the zeros beside it.
        padded = torch.nn.functional.pad(filtered, (1, 2))
        difference = torch.diff(padded, append=padded[..., -1:])
        image = x.new_zeros((len(padded), self.grid.n_pixels))
        for views in self._chunks(len(padded)):
            index, share, weight = self._interpolation(views, x)
            low, slope = (
                values[:, views].flatten(1).index_select(1, index.view(-1))
                for values in (padded, difference)
            )
            value = torch.addcmul(low.view(-1, *index.shape), slope.view(-1, *index.shape), share)
            image += (value * weight).sum(1) if weight is not None else value.sum(1)
        return image.reshape(*batch, *self.range_shape)

    def _project(self, y: Tensor) -> Tensor:
        """The exact transpose of :meth:`_reconstruct`."""
        batch = y.shape[:-3]
        n_views, n_columns = self.domain_shape
        n_padded = self._n_filtered + 3
        image = y.reshape(-1, 1, self.grid.n_pixels)
        padded = y.new_zeros((len(image), n_views, n_padded))
        for views in self._chunks(len(image)):
            index, share, weight = self._interpolation(views, y)
            value = image * weight if weight is not None else image.expand(-1, len(index), -1)
            upper = value * share
            sums = y.new_zeros((len(image), len(index) * n_padded + 1))
            flat = index.view(-1)
            sums.index_add_(1, flat, (value - upper).flatten(1))
            sums.index_add_(1, flat + 1, upper.flatten(1))
            padded[:, views] = sums[:, :-1].view(len(image), -1, n_padded)
        filtered = filter_columns(padded[..., 1:-2], like(self._response, y))
        weighted = filtered.narrow(-1, self._extension[0], n_columns) * like(self._weights, y)
        return weighted.reshape(*batch, *self.domain_shape)

    def _chunks(self, batch: int) -> list[slice]:
        n_views = self.domain_shape[0]
        step = max(1, _PIXELS_PER_STEP // max(1, batch * self.grid.n_pixels))
        return [slice(first, min(first + step, n_views)) for first in range(0, n_views, step)]

    def _interpolation(self, views: slice, like_: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Column below each pixel in the padded, joined views, share above it, and weight.

        Each is [V H*W]; the weight is None for a parallel beam.
        """
        y, x = (like(axis, like_) for axis in self.grid.axes())
        numerator, depth = like(self._coefficients[views], like_).unbind(1)
        column = _affine(numerator, x, y)
        weight = None
        if self.geometry.beam == "cone":
            weight = _affine(depth, x, y).reciprocal_()
            column.mul_(weight)
            weight.square_()
        column.clamp_(-1, self._n_filtered)
        low = column.floor()
        share = column.sub_(low)
        first = 1 + (self._n_filtered + 3) * torch.arange(len(column), device=column.device)
        return low.long().add_(first[:, None]), share, weight


def _affine(coefficients: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Constant, x and y factor [V 3] evaluated on the pixels, [V H*W]."""
    rows = coefficients[:, :1] + coefficients[:, 2:] * y
    columns = coefficients[:, 1:2] * x
    return (rows[:, :, None] + columns[:, None, :]).flatten(1)


def planar_vectors(geometry: Geometry) -> np.ndarray:
    """Per-view vectors of a planar scan with everything in ``z = 0`` and a unit row step.

    Args:
        geometry: a planar scan; of a cone slice the rays are projected on the plane.

    Returns:
        [A 12], mm.

    Raises:
        GeometryError: a scan in space, or one without positions.
    """
    if not geometry.is_planar:
        raise GeometryError(
            f"Filtered backprojection needs a planar scan; this {geometry.kind} scan has "
            f"detector shape {geometry.detector_shape}. Use FDK."
        )
    vectors = geometry.vectors().copy()
    if isinstance(geometry, ConeSliceGeometry):
        rows = geometry.rows.mean(1, keepdims=True) - (geometry.n_rows - 1) / 2
        vectors[:, 3:6] += rows * vectors[:, 9:12]
    vectors[:, [2, 5, 8]] = 0.0
    vectors[:, 9:12] = (0.0, 0.0, 1.0)
    return vectors


def projection_coefficients(
    vectors: np.ndarray, detector_shape: tuple[int, int], beam: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a point of space is projected, as ratios of affine functions of its coordinates.

    Args:
        vectors: per-view vectors, [A 12], mm.
        detector_shape: rows and columns.
        beam: ``"parallel"`` or ``"cone"``.

    Returns:
        For column index times depth, row index times depth and depth: the constant and the
        factors of x, y and z, each [A 4]. The depth is the distance from the source across the
        detector, mm, and one for a parallel beam.

    Raises:
        GeometryError: a detector seen edge-on.
    """
    first, centre, u, v = (vectors[:, i : i + 3] for i in (0, 3, 6, 9))
    normal = np.cross(u, v)
    across = _dot(first - centre, normal) if beam == "cone" else _dot(first, normal)
    size = np.linalg.norm(first, axis=1) * np.linalg.norm(normal, axis=1)
    if np.any(np.abs(across) <= 1e-9 * size):
        view = int(np.argmax(np.abs(across) <= 1e-9 * size))
        raise GeometryError(f"The detector of view {view} lies along its rays; correct it.")
    # The dual basis: a point of the detector plane is at ``(point - centre) . dual`` steps.
    square = _dot(normal, normal)[:, None]
    duals = (np.cross(v, normal) / square, np.cross(normal, u) / square)
    results = []
    if beam == "cone":
        normal = normal * np.sign(across)[:, None] / np.sqrt(square)
        distance = _dot(first - centre, normal)[:, None]
        depth = np.concatenate([_dot(first, normal)[:, None], -normal], 1)
        for dual, n in zip(duals, reversed(detector_shape), strict=True):
            shift = (n - 1) / 2 + _dot(first - centre, dual)[:, None]
            moved = np.concatenate([-_dot(first, dual)[:, None], dual], 1)
            results.append(shift * depth + distance * moved)
    else:
        depth = np.zeros((len(vectors), 4))
        depth[:, 0] = 1.0
        for dual, n in zip(duals, reversed(detector_shape), strict=True):
            # Along the ray to the detector plane.
            slope = dual - (_dot(first, dual) / across)[:, None] * normal
            results.append(np.concatenate([(n - 1) / 2 - _dot(centre, slope)[:, None], slope], 1))
    return results[0], results[1], depth


def detector_extension(
    vectors: np.ndarray, column: np.ndarray, depth: np.ndarray, n_columns: int, beam: str
) -> tuple[int, int]:
    """Columns to add before the first and after the last one to centre the detector on the axis.

    Where one side of a line is measured only in the opposite view, the filtered values off the
    detector belong to the image as well.

    Args:
        vectors: per-view vectors, [A 12], mm.
        column: of :func:`projection_coefficients`, [A 4].
        depth: of :func:`projection_coefficients`, [A 4].
        n_columns: detector columns D.
        beam: ``"parallel"`` or ``"cone"``.

    Returns:
        Columns before and after, at most D each.
    """
    point = np.ones((len(vectors), 4))
    point[:, 1:3] = trajectory_centre(vectors[:, :2]) if beam == "cone" else 0.0
    point[:, 3] = vectors[:, 2] if beam == "cone" else 0.0
    axis = _dot(column, point) / _dot(depth, point)
    before = n_columns - 1 - 2 * axis.min()
    after = 2 * axis.max() - (n_columns - 1)
    return tuple(int(np.clip(np.ceil(n - 1e-6), 0, n_columns)) for n in (before, after))  # type: ignore[return-value]


def check_depth(depth: np.ndarray, grid: Grid) -> None:
    """Raise a :class:`GeometryError` unless all pixels lie before the source in every view."""
    half = np.array(grid.size) / 2
    centre = np.array(grid.center)
    factors = depth[:, 1 : 1 + grid.ndim]
    nearest = depth[:, 0] + factors @ centre - np.abs(factors) @ half
    if np.any(nearest <= 0):
        view = int(nearest.argmin())
        raise GeometryError(
            f"The source of view {view} is inside the image grid or beside it (the grid reaches "
            f"{-nearest[view]:.3g} behind it); use a smaller grid."
        )


def like(values: np.ndarray, tensor: Tensor) -> Tensor:
    """Numbers in the type and on the device of a tensor."""
    return torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device)


def check_real(x: Tensor, operator: LinearOperator) -> None:
    """Raise a :class:`DtypeError` for a type without Fourier transform on every device."""
    if x.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"{operator!r} needs float32 or float64; got {x.dtype}. Convert it.")


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1)
