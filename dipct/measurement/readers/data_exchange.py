"""Scientific Data Exchange: HDF5 files of synchrotron scans, raw counts with flats and darks.

De Carlo et al. (2014), J. Synchrotron Rad. 21, 1224, https://doi.org/10.1107/S160057751401604X.
"""

from pathlib import Path

import h5py
import numpy as np

from dipct.errors import DataError, FileFormatError, GeometryError
from dipct.measurement.geometry import ParallelGeometry
from dipct.measurement.grid import Grid
from dipct.measurement.hdf5 import get_dataset, open_hdf5
from dipct.measurement.preprocessing import find_rotation_axis, line_integrals, transmission
from dipct.measurement.readers.flats import check_flats, noise_of_flats
from dipct.measurement.scan import Scan

EXPECTED = "a Data Exchange file (HDF5)"


def read_data_exchange(path: str | Path, *, row: int = 0, axis_column: float | None = None) -> Scan:
    """Read one detector row of a parallel-beam Data Exchange scan.

    The file need not tell the size of a detector pixel, so lengths are in pixels and the image
    comes out in 1/pixel. The grid has as many pixels along each side as the detector has
    columns, centred on the rotation axis.

    Args:
        path: the file, with datasets ``exchange/data`` (A, R, D), ``data_white`` (F, R, D),
            ``data_dark`` (K, R, D) and ``theta`` (A), degrees.
        row: detector row to read.
        axis_column: detector column, possibly fractional, of the rotation axis; found in the
            projections by default.

    Returns:
        A parallel-beam scan, with Poisson noise estimated from the flats where they allow it.

    Raises:
        FileFormatError: missing, truncated or foreign file, or a dataset missing in it.
        GeometryError: counts of angles and views, or detectors, that disagree, or no such row.
        DataError: values that are not finite; zero or negative flats; an axis off the detector.
    """
    with open_hdf5(path, EXPECTED) as file:
        names = ("data", "data_white", "data_dark")
        stacks = [get_dataset(file, f"exchange/{name}") for name in names]
        if any(stack.ndim != 3 for stack in stacks):
            shapes = ", ".join(f"{n} {s.shape}" for n, s in zip(names, stacks, strict=True))
            raise FileFormatError(f"expected stacks of shape (frames, R, D); got {shapes}.")
        n_views, n_rows, n_columns = stacks[0].shape
        if any(stack.shape[1:] != (n_rows, n_columns) or not len(stack) for stack in stacks):
            raise GeometryError(
                f"data have a detector of {n_rows} x {n_columns} pixels; data_white has shape "
                f"{stacks[1].shape} and data_dark {stacks[2].shape}. All three need one detector."
            )
        if not 0 <= row < n_rows:
            raise GeometryError(f"row must be a detector row, 0 to {n_rows - 1}; got {row}.")
        angles = _angles(get_dataset(file, "exchange/theta"))
        if len(angles) != n_views:
            raise GeometryError(
                f"exchange/theta has {len(angles)} angles, exchange/data {n_views} views. One "
                "angle per view is needed."
            )
        counts, flats, darks = (np.asarray(stack[:, row], np.float64) for stack in stacks)
        check_flats(flats, darks)
        projections = line_integrals(transmission(counts, flats, darks))
        found = axis_column is None
        axis = float(find_rotation_axis(projections, angles) if found else axis_column)
        if not 0 <= axis <= n_columns - 1:
            raise DataError(
                f"the rotation axis must lie on a detector column, 0 to {n_columns - 1}; got "
                f"{axis:g}. Give axis_column."
            )
        return Scan(
            projections=projections,
            geometry=ParallelGeometry(angles, n_columns, 1.0, (n_columns - 1) / 2 - axis),
            grid=Grid((n_columns, n_columns)),
            noise=noise_of_flats(flats, darks),
            metadata={
                "source": Path(path).name,
                "detector row": str(row),
                "rotation axis": f"column {axis:.2f}, {'found' if found else 'given'}",
            },
            length_unit="pixel",
        )


def _angles(theta: h5py.Dataset) -> np.ndarray:
    values = np.asarray(theta[()], np.float64)
    unit = theta.attrs.get("units", "degrees")
    unit = (unit.decode() if isinstance(unit, bytes) else str(unit)).lower()
    if unit.startswith("rad"):
        return values
    if unit.startswith("deg"):
        return np.deg2rad(values)
    raise FileFormatError(f"exchange/theta must be in degrees or radians; got {unit!r}.")
