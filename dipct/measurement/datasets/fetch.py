"""Fetch a public data set into a folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import platformdirs
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dipct.errors import ConfigurationError, DownloadError
from dipct.measurement.datasets.catalogue import DataSet, find_data_set
from dipct.measurement.datasets.download import download_file, is_complete, partial_path
from dipct.measurement.datasets.record import ZENODO, RemoteFile, read_record


def data_folder(name: str) -> Path:
    """Folder to which a data set is fetched by default: in the user's data directory."""
    return platformdirs.user_data_path("dipct") / find_data_set(name).name


def fetch_data_set(
    name: str,
    folder: str | Path | None = None,
    *,
    base_url: str | None = None,
    files: Sequence[str] | None = None,
    progress: bool = True,
    attempts: int = 3,
) -> list[Path]:
    """Fetch files of a public data set and check them against the checksums of its record.

    Files that are already there and whole are not fetched again; interrupted downloads go on
    where they stopped.

    Args:
        name: of a data set of the catalogue.
        folder: where to put the files; :func:`data_folder` by default.
        base_url: another server with Zenodo's interface, such as a mirror.
        files: names of the files to fetch; by default those that a reconstruction needs.
        progress: whether to show it, on standard error.
        attempts: how often to connect for each file before giving up.

    Returns:
        Paths of the files.

    Raises:
        ConfigurationError: an unknown data set or file name.
        DownloadError: no connection, a refusing server, a full disk or a wrong checksum; what is
            missing and how to go on is said.
    """
    data_set = find_data_set(name)
    if attempts < 1:
        raise ConfigurationError(f"attempts must be at least 1; got {attempts}.")
    target = Path(folder) if folder is not None else data_folder(name)
    available = read_record(data_set, base_url or ZENODO)
    chosen = _choose(data_set, available, files)
    try:
        target.mkdir(parents=True, exist_ok=True)
        missing = [file for file in chosen if not is_complete(target / file.name, file)]
        _check_space(missing, target)
        _download(missing, target, progress, attempts)
    except DownloadError as error:
        raise DownloadError(
            f"{error} The files can also be fetched with a browser from {data_set.url}; put them "
            f"into {target}."
        ) from error
    except OSError as error:
        raise DownloadError(
            f"{name} could not be written to {target}: {error}. Free some space or choose "
            "another folder, and fetch it again."
        ) from error
    return [target / file.name for file in chosen]


def _choose(
    data_set: DataSet, available: tuple[RemoteFile, ...], files: Sequence[str] | None
) -> list[RemoteFile]:
    by_name = {file.name: file for file in available}
    wanted = list(files) if files is not None else list(data_set.default_files)
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        listing = ", ".join(f"{f.name} ({f.size_bytes / 1e6:.1f} MB)" for f in available)
        raise ConfigurationError(
            f"The record of {data_set.name} does not hold {', '.join(unknown)}. Choose from: "
            f"{listing}."
        )
    return [by_name[name] for name in wanted] if wanted else list(available)


def _check_space(missing: list[RemoteFile], folder: Path) -> None:
    parts = [partial_path(folder / file.name) for file in missing]
    there = sum(part.stat().st_size for part in parts if part.exists())
    needed = sum(file.size_bytes for file in missing) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{needed / 1e9:.2f} GB are to be fetched, but {folder} has only {free / 1e9:.2f} GB "
            "left. Free some space, choose another folder, or fetch fewer files."
        )


def _download(missing: list[RemoteFile], folder: Path, progress: bool, attempts: int) -> None:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    live = progress and console.is_terminal
    with Progress(*columns, console=console, disable=not live) as bar:
        for file in missing:
            task = bar.add_task(file.name, total=file.size_bytes)
            download_file(
                file,
                folder / file.name,
                attempts=attempts,
                on_progress=lambda n, task=task: bar.update(task, completed=n),
            )
            if progress and not live:
                console.print(f"{file.name}: {file.size_bytes / 1e6:.1f} MB fetched")
