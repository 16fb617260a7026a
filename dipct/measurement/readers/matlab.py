"""MATLAB files of both kinds as plain dictionaries, in MATLAB's own array shapes."""

import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from scipy import sparse

from dipct.errors import FileFormatError
from dipct.measurement.hdf5 import check_is_file, naming, open_hdf5

EXPECTED = "a MATLAB .mat file"


def read_mat(path: str | Path, names: list[str] | None = None) -> dict[str, Any]:
    """Read variables of a MATLAB file of version 5 to 7 or of version 7.3 (HDF5).

    Args:
        path: the file.
        names: variables to read, those that exist; all by default.

    Returns:
        Variables by name: structs as dictionaries, texts as ``str``, sparse matrices as CSC,
        arrays with the shape they have in MATLAB (at least two axes).

    Raises:
        FileFormatError: missing, truncated or foreign file.
    """
    if _is_hdf5(path):
        with open_hdf5(path, EXPECTED) as file:
            chosen = [n for n in file if not n.startswith("#") and (names is None or n in names)]
            return {name: _from_hdf5(file[name]) for name in chosen}
    with naming(path):
        loaded = _scipy_call(
            scipy.io.loadmat,
            path,
            variable_names=names,
            struct_as_record=False,
        )
    return {name: _from_scipy(v) for name, v in loaded.items() if not name.startswith("__")}


def variable_names(path: str | Path) -> set[str]:
    """Names of the variables in a MATLAB file, found without reading them.

    Raises:
        FileFormatError: missing, truncated or foreign file.
    """
    if _is_hdf5(path):
        with open_hdf5(path, EXPECTED) as file:
            return {name for name in file if not name.startswith("#")}
    with naming(path):
        return {name for name, _, _ in _scipy_call(scipy.io.whosmat, path)}


def _is_hdf5(path: str | Path) -> bool:
    check_is_file(path, EXPECTED)
    return bool(h5py.is_hdf5(path))


def _scipy_call(function: Any, path: str | Path, **options: Any) -> Any:
    try:
        with open(path, "rb") as file:
            return function(file, **options)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        EOFError,
        NotImplementedError,
        OverflowError,
        UnicodeDecodeError,
        zlib.error,
        scipy.io.matlab.MatReadError,
    ) as error:
        raise FileFormatError(
            f"expected {EXPECTED}, but it cannot be read as such ({error}). The file may be "
            "truncated or of another kind; copy or download it again."
        ) from error


def _from_scipy(value: Any) -> Any:
    if isinstance(value, scipy.io.matlab.mat_struct):
        return {name: _from_scipy(getattr(value, name)) for name in value._fieldnames}
    if sparse.issparse(value):
        return sparse.csc_matrix(value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return "".join(value.ravel())
    if isinstance(value, np.ndarray) and value.dtype == object and value.size == 1:
        return _from_scipy(value.item())
    return value


def _from_hdf5(item: h5py.Group | h5py.Dataset) -> Any:
    # MATLAB stores column-major arrays, so that HDF5 sees their axes reversed.
    kind = item.attrs.get("MATLAB_class", b"")
    if isinstance(item, h5py.Group):
        if "MATLAB_sparse" in item.attrs:
            n_rows, indptr = int(item.attrs["MATLAB_sparse"]), item["jc"][()]
            if "ir" not in item:
                return sparse.csc_matrix((n_rows, len(indptr) - 1))
            parts = (item["data"][()], item["ir"][()].astype(np.int64), indptr.astype(np.int64))
            matrix = sparse.csc_matrix(parts, shape=(n_rows, len(indptr) - 1))
            matrix.check_format(full_check=True)
            return matrix
        return {name: _from_hdf5(item[name]) for name in item}
    if kind == b"char":
        codes = np.zeros(0, int) if "MATLAB_empty" in item.attrs else item[()].T
        return "".join(chr(code) for code in codes.ravel())
    if "MATLAB_empty" in item.attrs:
        return np.zeros(tuple(int(n) for n in item[()].ravel()))
    return item[()].T
