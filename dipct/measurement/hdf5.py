"""HDF5 files that are whole or absent when written, and closed and understood when read."""

import io
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from dipct.errors import DipctError, FileFormatError


def write_whole(path: str | Path, fill: Callable[[h5py.File], None]) -> None:
    """Write an HDF5 file that appears under its name only when it is complete.

    Args:
        path: the file; replaced if it exists.
        fill: puts the contents into the open file.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; an existing file is
            then as it was and no partial one is left.
    """
    path = Path(path)
    # HDF5 cannot close a file whose last write failed, so it never writes to the disk itself.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        fill(file)
    write_bytes_whole(path, buffer.getbuffer())


def write_bytes_whole(path: str | Path, contents: bytes | memoryview) -> None:
    """Write bytes to a file that appears under its name only when it is complete.

    Args:
        path: the file; replaced if it exists.
        contents: everything the file shall hold.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; an existing file is
            then as it was and no partial one is left.
    """
    path = Path(path)
    # In the same folder, because a file can only be renamed in one step on the same disk.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb") as out:
            out.write(contents)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno,
            f"could not write {len(contents)} bytes to {path}: {reason}. Nothing was left "
            "half-written; make room or choose another place, and try again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_hdf5(path: str | Path, expected: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, and turn every failure inside into a clear one.

    Args:
        path: the file.
        expected: what the file should be, for the message.

    Yields:
        The open file, closed on leaving.

    Raises:
        FileFormatError: missing, truncated or foreign, or without something looked up in it.
    """
    path = Path(path)
    with naming(path):
        check_is_file(path, expected)
        try:
            with h5py.File(path, "r") as file:
                yield file
        except DipctError:
            raise
        except (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            # h5py quotes the messages of its KeyErrors.
            reason = str(error).strip("'\"")
            raise FileFormatError(
                f"expected {expected}, but it cannot be read as such ({reason}). The file may be "
                "truncated or of another kind; copy or download it again."
            ) from error


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the file's name in front of the message of every dipct error raised inside."""
    try:
        yield
    except DipctError as error:
        if str(error).startswith(str(path)):
            raise
        raise type(error)(f"{path}: {error}") from error


def check_is_file(path: str | Path, expected: str) -> None:
    """Raise a :class:`FileFormatError` unless ``path`` is a file that can be opened."""
    path = Path(path)
    if path.is_dir():
        raise FileFormatError(f"{path}: expected {expected}; this is a folder.")
    if not path.is_file():
        raise FileFormatError(f"{path}: no such file; expected {expected}. Check the name.")
    if not os.access(path, os.R_OK):
        raise FileFormatError(f"{path}: expected {expected}; reading the file is not allowed.")


def check_format(file: h5py.File, name: str, version: int, expected: str) -> None:
    """Raise a :class:`FileFormatError` unless a file is of a kind, and not newer than known.

    Args:
        file: with the attributes ``format`` and ``version``.
        name: of the format.
        version: the newest that can be read.
        expected: what the file should be, for the message.
    """
    found = file.attrs.get("format")
    if found != name:
        raise FileFormatError(
            f"expected {expected}; this HDF5 file is another one (format {found!r})."
        )
    if get_attribute(file, "version") > version:
        raise FileFormatError(
            f"the file has version {get_attribute(file, 'version')}, this dipct reads up to "
            f"{version}. Upgrade dipct."
        )


def format_of(path: str | Path) -> str | None:
    """What kind of file of dipct it is: its attribute ``format``, or None.

    Raises:
        FileFormatError: missing, or no HDF5 file.
    """
    with open_hdf5(path, "a file written by dipct") as file:
        found = file.attrs.get("format")
        return None if found is None else str(found)


def get_dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """The dataset of a name, or a :class:`FileFormatError` that says it is missing."""
    found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise FileFormatError(
            f"dataset {_full(group, name)} is missing. The file is incomplete or of another kind."
        )
    return found


def get_group(group: h5py.Group, name: str) -> h5py.Group:
    """The group of a name, or a :class:`FileFormatError` that says it is missing."""
    found = group.get(name)
    if not isinstance(found, h5py.Group):
        raise FileFormatError(
            f"group {_full(group, name)} is missing. The file is incomplete or of another kind."
        )
    return found


def get_attribute(group: h5py.Group | h5py.Dataset, name: str) -> Any:
    """The attribute of a name as plain Python values, or a :class:`FileFormatError`."""
    if name not in group.attrs:
        raise FileFormatError(
            f"attribute {name} of {group.name} is missing. The file is incomplete or of another "
            "kind."
        )
    value = group.attrs[name]
    return value.tolist() if hasattr(value, "tolist") else value


def link_name(name: str) -> str:
    """The name of a dataset for a name that may hold a slash, which in HDF5 divides groups."""
    return name.replace("%", "%25").replace("/", "%2F")


def name_of_link(link: str) -> str:
    """The name that :func:`link_name` was given."""
    return link.replace("%2F", "/").replace("%25", "%")


def _full(group: h5py.Group, name: str) -> str:
    return f"{(group.name or '').rstrip('/')}/{name}"
