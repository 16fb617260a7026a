"""System matrices kept on disk, so that the same scan is traced once."""

import contextlib
import hashlib
import logging
import os
import struct
import uuid
import zipfile
import zlib
from pathlib import Path

import numpy as np
import platformdirs
import torch
from scipy import sparse

from dipct.measurement.digest import geometry_digest
from dipct.measurement.geometry import Geometry
from dipct.measurement.grid import Grid
from dipct.operator.ray_tracing import assemble_matrix
from dipct.operator.slab_tracing import Projector

_VERSION = 2
_LIMIT_BYTES = 8 * 2**30
# What the readers of ZIP archives and arrays raise, depending on which bytes are wrong.
_DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, ArithmeticError),
    *(MemoryError, struct.error, zlib.error, zipfile.BadZipFile),
)
_LOG = logging.getLogger(__name__)


def default_cache_folder() -> Path:
    """Where matrices are kept: ``$DIPCT_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("DIPCT_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("dipct")) / "matrices"


def matrix_key(
    geometry: Geometry, grid: Grid, projector: Projector, dtype: type[np.floating]
) -> str:
    """A digest of everything the matrix depends on."""
    settings = f"{_VERSION} {projector} {np.dtype(dtype).str} {geometry_digest(geometry, grid)}"
    return hashlib.sha256(settings.encode()).hexdigest()[:32]


def cached_matrix(
    geometry: Geometry,
    grid: Grid,
    *,
    projector: Projector = "siddon",
    dtype: type[np.floating] = np.float32,
    folder: Path | None = None,
) -> sparse.csr_matrix:
    """As :func:`assemble_matrix`, from disk if it was assembled before.

    A damaged file is assembled anew; a folder that cannot be written to only costs the time of
    assembling, and is logged.

    Args:
        geometry: the scan.
        grid: the image grid.
        projector: ``"siddon"`` or ``"joseph"``.
        dtype: floating-point type of the values.
        folder: the cache; :func:`default_cache_folder` by default. Beyond 8 GiB the matrices
            used longest ago are removed.
    """
    if geometry.kind == "matrix":
        return assemble_matrix(geometry, grid, projector=projector, dtype=dtype)
    folder = default_cache_folder() if folder is None else folder
    path = folder / f"{matrix_key(geometry, grid, projector, dtype)}.npz"
    shape = (int(np.prod(geometry.projection_shape)), grid.n_pixels)
    matrix = _load(path, shape)
    if matrix is None:
        matrix = assemble_matrix(geometry, grid, projector=projector, dtype=dtype)
        _store(matrix, path)
    return matrix


def find_matrix(
    geometry: Geometry,
    grid: Grid,
    *,
    projector: Projector,
    dtype: torch.dtype,
    cache: Path | bool,
) -> sparse.csr_matrix:
    """The matrix of a scan, kept on disk if ``cache`` is True or a folder."""
    values = np.float64 if dtype == torch.float64 else np.float32
    if cache is False:
        return assemble_matrix(geometry, grid, projector=projector, dtype=values)
    folder = None if cache is True else cache
    return cached_matrix(geometry, grid, projector=projector, dtype=values, folder=folder)


def _load(path: Path, shape: tuple[int, int]) -> sparse.csr_matrix | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            parts = (stored["data"], stored["indices"], stored["indptr"])
        matrix = sparse.csr_matrix(parts, shape=shape)
        matrix.check_format(full_check=True)
    except _DAMAGE as error:
        _LOG.warning("The cached matrix %s is damaged and is assembled anew: %s", path, error)
        return None
    # The time of last use; a folder for reading only keeps its own.
    with contextlib.suppress(OSError):
        path.touch()
    return matrix


def _store(matrix: sparse.csr_matrix, path: Path) -> None:
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, data=matrix.data, indices=matrix.indices, indptr=matrix.indptr)
        os.replace(temporary, path)
        _forget_oldest(path.parent)
    except OSError as error:
        _LOG.warning("The matrix could not be kept in %s: %s", path.parent, error)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.npz"), key=lambda p: p.stat().st_mtime, reverse=True)
    total = 0
    for position, file in enumerate(files):
        total += file.stat().st_size
        if total > _LIMIT_BYTES and position > 0:
            file.unlink(missing_ok=True)
