"""Open any readable scan, told apart by what is in the file and not by its name."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

from dipct.errors import ConfigurationError, FileFormatError
from dipct.measurement.hdf5 import open_hdf5
from dipct.measurement.readers.cwi_walnut import is_cwi_walnut, read_cwi_walnut
from dipct.measurement.readers.data_exchange import read_data_exchange
from dipct.measurement.readers.fips import read_fips
from dipct.measurement.readers.htc2022 import STRUCTS, read_htc2022
from dipct.measurement.readers.matlab import variable_names
from dipct.measurement.scan import Scan
from dipct.measurement.scan_file import FORMAT, read_scan_file

READABLE = (
    "a dipct scan file (.h5); a Data Exchange file (.h5, .hdf5) with exchange/data; an HTC 2022 "
    "file (.mat) with CtDataFull or CtDataLimited; a FIPS file (.mat) with A and m, or with a "
    "struct of sinogram and parameters; a CWI walnut folder with Projections/tubeV1 to tubeV3"
)
"""What :func:`read_scan` can open, for messages."""


def read_scan(path: str | Path, **options: Any) -> Scan:
    """Read a scan from any readable file or folder.

    Args:
        path: a file or folder; its contents, not its name, decide how it is read.
        **options: options of the reader that is then used, such as ``axis_column`` of
            :func:`read_data_exchange` or ``orbit`` of :func:`read_cwi_walnut`.

    Raises:
        FileFormatError: missing, truncated, or of no kind that can be read; the message lists
            those that can.
        ConfigurationError: the reader has no such option.
        DipctError: the contents are no valid scan; the message says why.
    """
    path = Path(path)
    if not path.exists():
        raise FileFormatError(
            f"{path}: no such file or folder. A scan can be read from {READABLE}."
        )
    if path.is_dir():
        if is_cwi_walnut(path):
            return _read_with(read_cwi_walnut, path, options)
        raise _unknown(path, "the folder holds no scan")
    if h5py.is_hdf5(path):
        return _read_hdf5(path, options)
    try:
        names = variable_names(path)
    except FileFormatError as error:
        raise _unknown(path, "the file is truncated or of another kind") from error
    return _read_matlab(path, names, options)


def _read_with(reader: Callable[..., Scan], path: Path, options: dict[str, Any]) -> Scan:
    """Call a reader with options it has."""
    parameters = inspect.signature(reader).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"{path}: {reader.__name__} has no option {name!r}; it has "
                f"{', '.join(known) or 'none'}."
            )
    return reader(path, **options)


def _read_hdf5(path: Path, options: dict[str, Any]) -> Scan:
    with open_hdf5(path, "a scan") as file:
        is_scan = file.attrs.get("format") == FORMAT
        is_exchange = "exchange/data" in file
        # MATLAB since version 7.3 marks every variable with its class.
        is_matlab = any("MATLAB_class" in item.attrs for item in file.values())
    if is_scan:
        return _read_with(read_scan_file, path, options)
    if is_exchange:
        return _read_with(read_data_exchange, path, options)
    if is_matlab:
        return _read_matlab(path, variable_names(path), options)
    raise _unknown(path, "the HDF5 file holds none of the known layouts")


def _read_matlab(path: Path, names: set[str], options: dict[str, Any]) -> Scan:
    return _read_with(read_htc2022 if names & set(STRUCTS) else read_fips, path, options)


def _unknown(path: Path, reason: str) -> FileFormatError:
    return FileFormatError(f"{path}: {reason}. A scan can be read from {READABLE}.")
