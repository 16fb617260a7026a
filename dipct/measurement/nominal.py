"""Nominal scan geometries for simulation, sized to a grid."""

from collections.abc import Callable

import numpy as np

from dipct.errors import ConfigurationError
from dipct.measurement.geometry import (
    ConeGeometry,
    ConeSliceGeometry,
    FanGeometry,
    Geometry,
    ParallelGeometry,
    VectorGeometry,
)
from dipct.measurement.grid import Grid

# The scanner of the CWI walnut collection (Der Sarkissian et al. 2019): distances and detector
# pixel in mm, detector cells, field of view.
_SOURCE_ORIGIN, _SOURCE_DETECTOR = 66.0, 199.0
_DETECTOR_PIXEL = 0.1496
_DETECTOR_ROWS, _DETECTOR_COLUMNS = 972, 768
_FIELD_OF_VIEW, _WALNUT_PIXELS = 50.1, 501


def nominal_scan(
    kind: str, *, pixels: int | None = None, views: int | None = None
) -> tuple[Geometry, Grid]:
    """A scan of a 50.1 mm field of view in one of the standard geometries.

    Args:
        kind: ``"parallel"`` (half turn), ``"fan"``, ``"cone"`` (full turn, volumes) or
            ``"cwi-walnut"``, the single-slice problem of the CWI walnuts with nominal distances.
        pixels: pixels along a side of the image; 128 (cone: 64, cwi-walnut: 501) by default.
        views: equispaced views; 60 by default.

    Raises:
        ConfigurationError: an unknown kind or an impossible number.
    """
    builders: dict[str, tuple[Callable[[Grid, int], Geometry], tuple[int, ...]]] = {
        "parallel": (parallel_around, (128, 128)),
        "fan": (fan_around, (128, 128)),
        "cone": (cone_around, (64, 64, 64)),
        "cwi-walnut": (lambda _, n: cwi_walnut_slice(n), (_WALNUT_PIXELS,) * 2),
    }
    if kind not in builders:
        raise ConfigurationError(
            f"The geometry must be one of {', '.join(builders)}; got {kind!r}."
        )
    build, shape = builders[kind]
    for name, value in (("pixels", pixels), ("views", views)):
        if value is not None and value < 1:
            raise ConfigurationError(f"The number of {name} must be positive; got {value}.")
    if pixels is not None:
        shape = (pixels,) * len(shape)
    grid = Grid(shape, _FIELD_OF_VIEW / shape[0])
    return build(grid, 60 if views is None else views), grid


def full_turn(views: int) -> np.ndarray:
    """Equispaced angles over [0, 2 pi), rad."""
    return np.arange(views) * (2 * np.pi / views)


def columns_across(grid: Grid) -> int:
    """Odd number of pixel-sized columns that cover the diagonal of the image.

    This is ODL's default: 41 for 28 x 28 pixels, 183 for 128 x 128.
    """
    return 2 * int(np.ceil(np.hypot(*grid.shape[-2:]) / 2)) + 1


def parallel_around(grid: Grid, views: int) -> ParallelGeometry:
    """Equispaced views over half a turn, columns as wide as pixels."""
    angles = np.arange(views) * (np.pi / views)
    return ParallelGeometry(angles, columns_across(grid), grid.pixel_size)


def fan_around(grid: Grid, views: int) -> FanGeometry:
    """Equispaced views over a full turn at the distances of the CWI walnut scanner."""
    source_origin, origin_detector, width = _distances_around(grid)
    n = columns_across(grid)
    return FanGeometry(full_turn(views), n, width / n, source_origin, origin_detector)


def cone_around(grid: Grid, views: int) -> ConeGeometry:
    """As :func:`fan_around`, with as many square cells along rows as along columns."""
    source_origin, origin_detector, width = _distances_around(grid)
    n = columns_across(grid)
    return ConeGeometry(
        full_turn(views), n, n, width / n, width / n, source_origin, origin_detector
    )


def _distances_around(grid: Grid) -> tuple[float, float, float]:
    """Distances scaled to the grid, and the detector width that covers its diagonal."""
    scale = max(grid.size[:2]) / _FIELD_OF_VIEW
    source_origin = _SOURCE_ORIGIN * scale
    source_detector = _SOURCE_DETECTOR * scale
    radius = np.hypot(*grid.size[:2]) / 2
    width = 2 * source_detector * np.tan(np.arcsin(radius / source_origin))
    return source_origin, source_detector - source_origin, float(width)


def cwi_walnut_slice(views: int = 120, *, column_step: int = 6) -> ConeSliceGeometry:
    """The single-slice walnut problem on a nominal circular orbit.

    Source, axis and detector centre lie in ``z = 0``; the slice of interest is the third above
    the middle of a stack of nine, seen by nine detector rows, of which one is chosen for every
    view and column (Barbano et al. 2022, https://arxiv.org/abs/2203.00479). The real
    scans' corrected vectors differ a little; they come with the data.

    Args:
        views: equispaced views over a full turn.
        column_step: keep every so many detector columns, around the middle.
    """
    vectors = ConeGeometry(
        full_turn(views),
        _DETECTOR_ROWS,
        _DETECTOR_COLUMNS,
        _DETECTOR_PIXEL,
        _DETECTOR_PIXEL,
        _SOURCE_ORIGIN,
        _SOURCE_DETECTOR - _SOURCE_ORIGIN,
    ).vectors()
    # Detector rows run downwards in this collection.
    vectors[:, 9:12] *= -1
    scan = VectorGeometry(vectors, _DETECTOR_ROWS, _DETECTOR_COLUMNS)
    chosen = scan.crop_rows(474, 483).decimate_columns(column_step)
    voxel_size = _FIELD_OF_VIEW / _WALNUT_PIXELS
    return ConeSliceGeometry.from_scan(
        chosen,
        voxel_size=voxel_size,
        slice_z=3 * voxel_size,
        n_slices=9,
        volume_shape=(_WALNUT_PIXELS,) * 3,
    )
