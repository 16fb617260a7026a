"""Data sets of the Finnish Inverse Problems Society (https://fips.fi): MATLAB files.

Two kinds are published. The older ones (lotus root, https://doi.org/10.5281/zenodo.1254204;
walnut, https://doi.org/10.5281/zenodo.1254206; cheese and others) hold a sparse system matrix
``A`` and a sinogram ``m`` with ``A x = m`` when image and sinogram are unrolled column by
column; ``m`` has one row per detector element and one column per view. The newer ones hold a
struct with the fields ``type``, ``sinogram`` (views by detector elements) and ``parameters``;
the challenge data of :mod:`dipct.measurement.readers.htc2022` are such structs too.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from dipct.errors import DataError, FileFormatError, GeometryError
from dipct.measurement.geometry import FanGeometry, MatrixGeometry
from dipct.measurement.grid import Grid
from dipct.measurement.hdf5 import naming
from dipct.measurement.readers.matlab import read_mat, variable_names
from dipct.measurement.scan import Scan

KEPT_PARAMETERS = (
    "projectName",
    "scanner",
    "measurers",
    "date",
    "detector",
    "exposureTime",
    "exposureTimeUnit",
    "target",
    "voltage",
    "voltageUnit",
    "current",
    "currentUnit",
    "xRayFilter",
    "xRayFilterThickness",
)
"""Parameters that are kept as metadata."""


def read_fips(
    path: str | Path,
    *,
    image_shape: tuple[int, int] | None = None,
    pixel_size: float | None = None,
    n_columns: int | None = None,
) -> Scan:
    """Read a FIPS scan, with its own system matrix or with geometry parameters.

    The image of a system matrix comes out as MATLAB's ``imagesc`` shows it, without flips. Its
    view angles are not in the file; they are taken as equispaced over a full turn. The keyword
    arguments are for system matrices only.

    Args:
        path: MATLAB file, version 5 to 7.3.
        image_shape: ``(H, W)`` of the image; square by default.
        pixel_size: edge of a pixel, mm, for a matrix of path lengths in mm (lotus root, 128
            pixels: 0.627). By default lengths are in pixels, and the image in 1/pixel.
        n_columns: number of detector elements; needed where ``m`` is a vector.

    Returns:
        A scan with a :class:`MatrixGeometry` or a :class:`FanGeometry`.

    Raises:
        FileFormatError: missing, truncated or foreign file.
        DataError: values that are not finite, or a matrix that is not in mm although
            ``pixel_size`` was given.
        GeometryError: counts that disagree.
    """
    names = variable_names(path)
    with naming(path):
        if {"A", "m"} <= names:
            variables = read_mat(path, ["A", "m"])
            scan = _matrix_scan(variables["A"], variables["m"], image_shape, pixel_size, n_columns)
        else:
            structs = {k: v for k, v in read_mat(path).items() if is_ct_struct(v)}
            if len(structs) != 1:
                raise FileFormatError(
                    "expected a FIPS file: either variables A and m, or one struct with fields "
                    f"sinogram and parameters; got variables {', '.join(sorted(names)) or 'none'}."
                )
            (struct,) = structs.values()
            scan = fan_scan(struct)
    return replace(scan, metadata={"source": Path(path).name, **scan.metadata})


def is_ct_struct(value: Any) -> bool:
    """Whether a MATLAB variable is a struct of a scan with geometry parameters."""
    return (
        isinstance(value, dict)
        and "parameters" in value
        and any(name.startswith("sinogram") for name in value)
    )


def fan_scan(struct: Mapping[str, Any], *, n_pixels: int | None = None) -> Scan:
    """Make a scan of a struct with sinogram and geometry parameters.

    Args:
        struct: ``type``, ``sinogram`` [A D] and ``parameters``.
        n_pixels: pixels along each side of the grid, of the scan's effective pixel size; the
            number of detector elements by default.

    Raises:
        FileFormatError: a field is missing, or the scan is of a kind that cannot be read.
        GeometryError: counts that disagree.
    """
    kind = struct.get("type", "2D")
    if str(kind).lower() != "2d":
        raise FileFormatError(
            f"expected a two-dimensional scan (type = '2D'); got {kind!r}. Other scans of these "
            "data sets cannot be read."
        )
    if "sinogram" not in struct:
        raise FileFormatError(
            "expected a field sinogram; got "
            f"{', '.join(n for n in struct if n.startswith('sinogram'))}: a photon-counting "
            "scan. Store the energy bin to use as the field sinogram."
        )
    sinogram = np.asarray(struct["sinogram"])
    parameters = struct["parameters"]
    unit = parameters.get("distanceUnit", "mm")
    if unit != "mm":
        raise FileFormatError(f"expected distances in mm; got {unit!r}.")
    beam = str(parameters.get("geometryType", "cone")).lower()
    if beam not in ("cone", "fan"):
        raise FileFormatError(f"expected geometryType 'Cone' or 'Fan'; got {beam!r}.")
    source_origin = _number(parameters, "distanceSourceOrigin")
    source_detector = _number(parameters, "distanceSourceDetector")
    # The first release of this struct had no binning and names without "Post".
    pixel = _number(parameters, "effectivePixelSizePost", "effectivePixelSize")
    n_columns = int(_number(parameters, "numDetectorsPost", "numDetectors"))
    angles = np.asarray(_parameter(parameters, "angles"), dtype=float).ravel()
    if sinogram.shape != (len(angles), n_columns):
        raise GeometryError(
            f"the parameters tell of {len(angles)} angles and {n_columns} detector elements, but "
            f"the sinogram has shape {sinogram.shape} (views, elements)."
        )
    return Scan(
        projections=sinogram,
        geometry=FanGeometry(
            angles=np.deg2rad(angles),
            n_columns=n_columns,
            # The spacing after any binning; pixelSize is the one before it.
            column_spacing=pixel * source_detector / source_origin,
            source_origin=source_origin,
            origin_detector=source_detector - source_origin,
        ),
        grid=Grid((n_pixels or n_columns,) * 2, pixel),
        metadata={k: _text(parameters[k]) for k in KEPT_PARAMETERS if k in parameters},
    )


def effective_pixel_size(struct: Mapping[str, Any]) -> float:
    """Detector spacing projected back to the rotation axis, mm."""
    return _number(struct["parameters"], "effectivePixelSizePost", "effectivePixelSize")


def _matrix_scan(
    matrix: Any,
    sinogram: Any,
    image_shape: tuple[int, int] | None,
    pixel_size: float | None,
    n_columns: int | None,
) -> Scan:
    matrix = sparse.csc_matrix(matrix, dtype=np.float64)
    sinogram = np.asarray(sinogram.toarray() if sparse.issparse(sinogram) else sinogram)
    if min(sinogram.shape) == 1 and n_columns is None:
        raise DataError(
            f"m is a vector of {sinogram.size} values. Say how many detector elements make one "
            "view with n_columns."
        )
    n_columns = n_columns or sinogram.shape[0]
    n_rows, n_pixels = matrix.shape
    if sinogram.size != n_rows or n_rows % n_columns:
        raise GeometryError(
            f"A has {n_rows} rows, but m has {sinogram.size} values, shape {sinogram.shape} "
            f"(elements, views), of {n_columns} detector elements a view."
        )
    if image_shape is None:
        side = math.isqrt(n_pixels)
        image_shape = (side, side)
    height, width = image_shape
    if height * width != n_pixels:
        raise GeometryError(
            f"A has {n_pixels} columns, which are not the pixels of an image of shape "
            f"{image_shape}. Give image_shape=(H, W)."
        )
    if pixel_size is not None:
        _check_path_lengths(matrix, image_shape, pixel_size)
    # Column k of A belongs to the k-th pixel of the image read column by column.
    row_major = np.arange(n_pixels).reshape(width, height).T.ravel()
    return Scan(
        # Read column by column, m has the detector elements of the first view first.
        projections=sinogram.ravel(order="F").reshape(-1, n_columns),
        geometry=MatrixGeometry(sparse.csr_matrix(matrix[:, row_major]), n_columns),
        grid=Grid(image_shape, 1.0 if pixel_size is None else pixel_size),
        length_unit="pixel" if pixel_size is None else "mm",
    )


def _check_path_lengths(
    matrix: sparse.csc_matrix, image_shape: tuple[int, int], pixel_size: float
) -> None:
    """Raise unless the longest ray is between the longer side and the diagonal of the image."""
    longest = float(matrix.sum(axis=1).max())
    side, diagonal = max(image_shape) * pixel_size, math.hypot(*image_shape) * pixel_size
    if not 0.9 * side <= longest <= 1.1 * diagonal:
        raise DataError(
            f"with pixels of {pixel_size:g} mm the longest ray through the image should be "
            f"{side:.4g} to {diagonal:.4g} mm long, but the largest row sum of A is "
            f"{longest:.4g}. A is not in mm: leave pixel_size out (lengths in pixels)."
        )


def _parameter(parameters: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if name in parameters:
            return parameters[name]
    raise FileFormatError(
        f"parameter {' or '.join(names)} is missing; the struct has {', '.join(parameters)}."
    )


def _number(parameters: Mapping[str, Any], *names: str) -> float:
    value = np.asarray(_parameter(parameters, *names))
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise FileFormatError(f"parameter {names[0]} must be one number; got {value!r}.")
    return float(value.item())


def _text(value: Any) -> str:
    return str(value.item()) if isinstance(value, np.ndarray) and value.size == 1 else str(value)
