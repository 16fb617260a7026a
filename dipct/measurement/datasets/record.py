"""The files of a Zenodo record, with the sizes and checksums that it states."""

from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import requests

from dipct.errors import DownloadError
from dipct.measurement.datasets.catalogue import DataSet, find_data_set

ZENODO = "https://zenodo.org"
TIMEOUT = 30.0
"""Seconds without an answer after which a connection is given up."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a record.

    Attributes:
        name: file name.
        url: where its content is.
        checksum: algorithm and hexadecimal digest, as in ``"md5:9fb6..."``.
        size_bytes: length of the content.
    """

    name: str
    url: str
    checksum: str
    size_bytes: int


def remote_files(name: str, *, base_url: str = ZENODO) -> tuple[RemoteFile, ...]:
    """The files that the record of a data set holds now.

    Args:
        name: of a data set of the catalogue.
        base_url: server with Zenodo's interface, ``/api/records/NUMBER``.

    Returns:
        Names, addresses, checksums and sizes, as the record states them.

    Raises:
        ConfigurationError: an unknown data set.
        DownloadError: the record cannot be read.
    """
    return read_record(find_data_set(name), base_url)


def read_record(data_set: DataSet, base_url: str) -> tuple[RemoteFile, ...]:
    """As :func:`remote_files`, of a given data set."""
    number = data_set.doi.rpartition("zenodo.")[2]
    url = f"{base_url.rstrip('/')}/api/records/{number}"
    try:
        response = requests.get(url, timeout=TIMEOUT)
        response.raise_for_status()
        entries = response.json()["files"]
        files = tuple(_remote_file(entry) for entry in entries)
    except requests.JSONDecodeError as error:
        raise DownloadError(f"{url} did not answer with a record. {_by_hand(data_set)}") from error
    except requests.RequestException as error:
        raise DownloadError(
            f"The record of {data_set.name} could not be read from {url}: {error}. Check the "
            f"network connection. {_by_hand(data_set)}"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DownloadError(
            f"The record at {url} is not laid out as expected ({error!r}). {_by_hand(data_set)}"
        ) from error
    if not files:
        raise DownloadError(f"The record at {url} holds no files. {_by_hand(data_set)}")
    return files


def _remote_file(entry: dict[str, Any]) -> RemoteFile:
    name, checksum = str(entry["key"]), str(entry["checksum"])
    # A name with folders in it could write outside the target folder.
    if name in ("", ".", "..") or {PurePosixPath(name).name, PureWindowsPath(name).name} != {name}:
        raise ValueError(f"unusable file name {name!r}")
    algorithm, _, digest = checksum.partition(":")
    if algorithm not in ("md5", "sha1", "sha256", "sha512") or not digest:
        raise ValueError(f"unusable checksum {checksum!r}")
    return RemoteFile(name, str(entry["links"]["self"]), checksum, int(entry["size"]))


def _by_hand(data_set: DataSet) -> str:
    return f"Or fetch the files with a browser from {data_set.url}."
