"""The project's own scan file: one HDF5 layout for every geometry.

Layout, version 1. The same group can be the root of a file or lie inside another file. ``L`` is
the scan's length unit; A, R, D are views, detector rows and columns.

Attributes of the group:
    format          ``"dipct-scan"``
    version         1
    length_unit     ``"mm"`` or ``"pixel"``

``projections``
    float32, (A, D) or (A, R, D), gzip: line integrals, dimensionless.
``geometry`` (group)
    attribute ``kind``: parallel, fan, cone, vectors, cone-slice or matrix. Every field of that
    geometry under its own name: numbers, texts and pairs as attributes, arrays as float64
    datasets. Angles in rad; positions, spacings and offsets in L; detector rows and row and
    column numbers count from 0.

    ==========  =================================================================================
    parallel    angles (A), n_columns, column_spacing, column_offset
    fan         angles (A), n_columns, column_spacing, source_origin, origin_detector,
                column_offset
    cone        angles (A), n_rows, n_columns, row_spacing, column_spacing, source_origin,
                origin_detector, column_offset, row_offset
    vectors     view_vectors (A, 12), n_rows, n_columns, beam (``cone`` or ``parallel``), planar
    cone-slice  view_vectors (A, 12), n_rows, n_columns, rows (A, D), stack_bounds (2)
    matrix      matrix, n_columns, view_angles (A)
    ==========  =================================================================================

    The sparse matrix is a group ``matrix``: attribute ``shape`` (A*D, H*W); datasets ``data``,
    ``indices``, ``indptr`` of the compressed sparse row form, in the types they were given;
    path lengths in L.
``grid`` (group)
    attributes ``shape`` (H, W) or (Z, H, W), ``pixel_size`` in L, ``center`` (x, y[, z]) in L.
``noise`` (group, only where the noise is known)
    attribute ``kind``: ``gaussian`` with ``std`` (standard deviation of the projections,
    dimensionless) or ``poisson`` with ``photons`` (counts of an unattenuated ray); a dataset
    that is a scalar or broadcasts to the projections.
``truth`` (only where there is one)
    float32, shape of the grid, gzip: reference attenuation, 1/L; attribute ``source``.
``metadata``
    (M, 2) UTF-8 strings: name and value.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy import sparse

from dipct.errors import FileFormatError
from dipct.measurement.geometry import KINDS, Geometry
from dipct.measurement.grid import Grid
from dipct.measurement.hdf5 import (
    get_attribute,
    get_dataset,
    get_group,
    open_hdf5,
    write_whole,
)
from dipct.measurement.noise import NOISE_KINDS, GaussianNoise, Noise
from dipct.measurement.scan import Scan

FORMAT = "dipct-scan"
VERSION = 1
EXPECTED = "a dipct scan file (HDF5)"


def write_scan(scan: Scan, path: str | Path) -> None:
    """Write a scan to an HDF5 file, whole or not at all.

    Args:
        scan: what to write.
        path: the file; replaced if it exists.

    Raises:
        OSError: the file could not be written, for example on a full disk; nothing is left.
    """
    write_whole(path, lambda file: write_scan_group(scan, file))


def read_scan_file(path: str | Path) -> Scan:
    """Read a scan from a file written by :func:`write_scan`.

    Args:
        path: the file.

    Returns:
        The scan, equal to the written one to the last bit.

    Raises:
        FileFormatError: missing, truncated or foreign file.
        DipctError: the file holds values that are no scan; the message says which.
    """
    with open_hdf5(path, EXPECTED) as file:
        return read_scan_group(file)


def write_scan_group(scan: Scan, group: h5py.Group) -> None:
    """Write a scan into an open, empty HDF5 group.

    Args:
        scan: what to write.
        group: where to; the module's documentation says what it will hold.
    """
    group.attrs.update(format=FORMAT, version=VERSION, length_unit=scan.length_unit)
    group.create_dataset("projections", data=scan.projections, compression="gzip")
    _write_geometry(scan.geometry, group.create_group("geometry"))
    group.create_group("grid").attrs.update(scan.grid.to_dict())
    if scan.noise is not None:
        noise = group.create_group("noise")
        noise.attrs["kind"] = scan.noise.kind
        name, values = _noise_values(scan.noise)
        noise.create_dataset(name, data=values)
    if scan.truth is not None:
        truth = group.create_dataset("truth", data=scan.truth, compression="gzip")
        truth.attrs["source"] = scan.truth_source
    pairs = np.array(list(scan.metadata.items()), dtype=object).reshape(-1, 2)
    group.create_dataset("metadata", data=pairs, dtype=h5py.string_dtype())


def read_scan_group(group: h5py.Group) -> Scan:
    """Read a scan from an open HDF5 group written by :func:`write_scan_group`.

    Args:
        group: the group.

    Raises:
        FileFormatError: the group is no scan, of a later version, or incomplete.
        DipctError: the group holds values that are no scan; the message says which.
    """
    if group.attrs.get("format") != FORMAT:
        raise FileFormatError(
            f"expected a scan (attribute format = {FORMAT!r}); got "
            f"{group.attrs.get('format', 'no such attribute')!r}. Write scans with write_scan, or "
            "open other formats with read_scan."
        )
    version = get_attribute(group, "version")
    if version != VERSION:
        raise FileFormatError(
            f"the scan is of layout version {version}, this dipct reads version {VERSION}. "
            "Update dipct, or write the scan again."
        )
    grid = get_group(group, "grid")
    truth, source = None, ""
    if "truth" in group:
        dataset = get_dataset(group, "truth")
        truth, source = dataset[()], get_attribute(dataset, "source")
    return Scan(
        projections=get_dataset(group, "projections")[()],
        geometry=_read_geometry(get_group(group, "geometry")),
        grid=Grid.from_dict({f.name: get_attribute(grid, f.name) for f in fields(Grid)}),
        noise=_read_noise(get_group(group, "noise")) if "noise" in group else None,
        truth=truth,
        truth_source=source,
        metadata=dict(get_dataset(group, "metadata").asstr()[()].tolist()),
        length_unit=get_attribute(group, "length_unit"),
    )


def _write_geometry(geometry: Geometry, group: h5py.Group) -> None:
    group.attrs["kind"] = geometry.kind
    for name, value in geometry.to_dict().items():
        if sparse.issparse(value):
            matrix = group.create_group(name)
            matrix.attrs["shape"] = value.shape
            for part in ("data", "indices", "indptr"):
                matrix.create_dataset(part, data=getattr(value, part), compression="gzip")
        elif isinstance(value, np.ndarray):
            group.create_dataset(name, data=value)
        else:
            group.attrs[name] = value


def _read_geometry(group: h5py.Group) -> Geometry:
    kind = get_attribute(group, "kind")
    if kind not in KINDS:
        raise FileFormatError(
            f"unknown geometry {kind!r}; this dipct knows {', '.join(KINDS)}. Update dipct, or "
            "write the scan again."
        )
    cls = KINDS[kind]
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        found = group.get(field.name)
        if isinstance(found, h5py.Dataset):
            values[field.name] = found[()]
        elif isinstance(found, h5py.Group):
            values[field.name] = _read_matrix(found)
        else:
            value = get_attribute(group, field.name)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _read_matrix(group: h5py.Group) -> sparse.csr_matrix:
    parts = tuple(get_dataset(group, part)[()] for part in ("data", "indices", "indptr"))
    matrix = sparse.csr_matrix(parts, shape=tuple(get_attribute(group, "shape")))
    # The cheap check of the constructor does not look at every index.
    matrix.check_format(full_check=True)
    return matrix


def _noise_values(noise: Noise) -> tuple[str, float | np.ndarray]:
    if isinstance(noise, GaussianNoise):
        return "std", noise.std
    return "photons", noise.photons


def _read_noise(group: h5py.Group) -> Noise:
    kind = get_attribute(group, "kind")
    if kind not in NOISE_KINDS:
        raise FileFormatError(
            f"unknown noise model {kind!r}; this dipct knows {', '.join(NOISE_KINDS)}. Update "
            "dipct, or write the scan again."
        )
    cls = NOISE_KINDS[kind]
    (field,) = fields(cls)
    values = get_dataset(group, field.name)[()]
    return cls(values.item() if np.ndim(values) == 0 else values)
