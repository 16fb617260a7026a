"""Digests that tell whether two scans are the same."""

import hashlib
from pathlib import Path

import numpy as np

from dipct.measurement.geometry import Geometry, MatrixGeometry
from dipct.measurement.grid import Grid
from dipct.measurement.scan import Scan


def geometry_digest(geometry: Geometry, grid: Grid) -> str:
    """SHA-256 of everything the ray transform of a scan depends on."""
    digest = hashlib.sha256(geometry.kind.encode())
    digest.update(repr(sorted(grid.to_dict().items())).encode())
    for name, value in sorted(geometry.to_dict().items()):
        if isinstance(geometry, MatrixGeometry) and name == "matrix":
            parts = (value.data, value.indices, value.indptr)
        else:
            parts = (value,)
        for part in parts:
            array = np.ascontiguousarray(part)
            digest.update(f"{name}{array.shape}{array.dtype.str}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def scan_digest(scan: Scan) -> str:
    """SHA-256 of a scan's projections, geometry and grid."""
    digest = hashlib.sha256(geometry_digest(scan.geometry, scan.grid).encode())
    digest.update(np.ascontiguousarray(scan.projections).tobytes())
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
