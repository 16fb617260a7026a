"""Download of one file that goes on where it stopped and is kept only with its checksum."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pooch
import requests

from dipct.errors import DownloadError
from dipct.measurement.datasets.record import TIMEOUT, RemoteFile

CHUNK_BYTES = 1 << 16


def is_complete(path: Path, file: RemoteFile) -> bool:
    """Whether the file lies at ``path`` with the size and checksum of the record."""
    return (
        path.is_file()
        and path.stat().st_size == file.size_bytes
        and _digest(path, file) == _expected(file)
    )


def partial_path(target: Path) -> Path:
    """Where the part of a file that has arrived is kept."""
    return target.with_name(target.name + ".part")


def download_file(
    file: RemoteFile,
    target: Path,
    *,
    attempts: int = 3,
    on_progress: Callable[[int], None] = lambda n_bytes: None,
) -> None:
    """Download a file; what an earlier, interrupted download left is not fetched again.

    Args:
        file: what to fetch.
        target: where to; its folder exists. Written only when whole.
        attempts: how often to connect before giving up.
        on_progress: called with the number of bytes that are there.

    Raises:
        DownloadError: the server refuses, the connection breaks ``attempts`` times (what has come
            is kept), or the checksum is wrong (nothing is kept).
    """
    part = partial_path(target)
    for attempt in range(1, attempts + 1):
        try:
            _receive(file, part, on_progress)
            break
        except requests.HTTPError as error:
            raise DownloadError(
                f"The server does not give out {file.name}: {error}. Try again later, or see "
                "whether the record has changed."
            ) from error
        except requests.RequestException as error:
            if attempt == attempts:
                there = part.stat().st_size if part.exists() else 0
                raise DownloadError(
                    f"The download of {file.name} stopped after {there} of {file.size_bytes} "
                    f"bytes: {error}. Fetch it again to go on from there ({part} is kept)."
                ) from error
            time.sleep(min(2.0 ** (attempt - 1), 30.0))
    actual = _digest(part, file)
    if actual != _expected(file):
        n_bytes = part.stat().st_size
        part.unlink()
        raise DownloadError(
            f"{file.name} arrived damaged: {file.size_bytes} bytes with checksum {file.checksum} "
            f"were expected, {n_bytes} bytes with {actual} came. The file was removed; "
            "fetch it again."
        )
    os.replace(part, target)


def _receive(file: RemoteFile, part: Path, on_progress: Callable[[int], None]) -> None:
    """Append to ``part`` what it lacks."""
    there = part.stat().st_size if part.exists() else 0
    if there > file.size_bytes:
        part.unlink()
        there = 0
    if there == file.size_bytes and part.exists():
        on_progress(there)
        return
    # Compressed transfer would change what byte numbers mean.
    headers = {"Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    with requests.get(file.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.range_not_satisfiable:
            # The server's file is shorter than what is there: start anew next time.
            part.unlink()
        response.raise_for_status()
        continues = response.headers.get("Content-Range", "").startswith(f"bytes {there}-")
        if not (response.status_code == 206 and continues):
            # The server sends the whole file, whatever was asked for.
            there = 0
        with part.open("ab" if there else "wb") as stream:
            on_progress(there)
            for chunk in response.iter_content(CHUNK_BYTES):
                stream.write(chunk)
                there += len(chunk)
                on_progress(there)
    if there < file.size_bytes:
        raise requests.ConnectionError("the server ended the transfer early")


def _expected(file: RemoteFile) -> str:
    return file.checksum.lower()


def _digest(path: Path, file: RemoteFile) -> str:
    algorithm = file.checksum.partition(":")[0]
    return f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"
