"""Long work in stages whose results are kept until all of it is done."""

import hashlib
import json
import logging
import os
import pickle
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dipct.errors import ConfigurationError

_LOG = logging.getLogger(__name__)


class Stages:
    """Computes results by name, or reads those of an earlier, interrupted call.

    Args:
        folder: where to keep them; None keeps nothing.
        problem: digest of what decides all results.
        resume: whether to use what is there; otherwise it is removed. What was kept for another
            problem is an error; of the same problem, a stage that was kept for other values of
            ``decided_by`` is made anew, with a warning.
        passes: how many passes through a network there were so far, if they are counted.

    Attributes:
        saved_seconds: what kept results took when they were computed.
        saved_passes: likewise, passes.
        seconds: what each took, now or then, those with a number at the end together.

    Raises:
        ConfigurationError: nothing to resume from, what belongs to another problem, or a folder
            that cannot be written.
    """

    def __init__(
        self,
        folder: Path | None,
        problem: str,
        *,
        resume: bool = False,
        passes: Callable[[], int] = lambda: 0,
    ) -> None:
        self.folder, self._resume, self._passes = folder, resume, passes
        self._problem = _digest(problem)
        self.saved_seconds, self.saved_passes = 0.0, 0
        self.seconds: dict[str, float] = {}
        if resume:
            self._check_kept()
        if folder is None:
            return
        if not folder.parent.is_dir():
            raise ConfigurationError(
                f"{folder}: the folder {folder.parent} does not exist; create it first."
            )
        for path in _files(folder):
            if not resume or path.suffix == ".tmp":
                path.unlink()

    def __call__(
        self,
        name: str,
        compute: Callable[[], dict[str, Any]],
        device: torch.device,
        decided_by: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The result of a stage.

        Args:
            name: unique among the stages.
            compute: makes it, of tensors and plain values.
            device: where it shall be.
            decided_by: plain values that decide this result too: what was kept for others is not
                used.

        Raises:
            ConfigurationError: the kept result is damaged.
        """
        return self.resumable(name, lambda *_: compute(), device, decided_by)

    def resumable(
        self,
        name: str,
        compute: Callable[[dict[str, Any] | None, Callable[[dict[str, Any]], None]], dict],
        device: torch.device,
        decided_by: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """As calling, for a stage that can go on from where it was stopped.

        Args:
            name: unique among the stages.
            compute: called with what it last kept, or None, and with a function that keeps
                something.
            device: where the result shall be, and what was kept on the way.
            decided_by: as for calling.

        Raises:
            ConfigurationError: what was kept is damaged.
        """
        began, before = time.perf_counter(), self._passes()
        if self.folder is None:
            result = compute(None, lambda _: None)
            self._spent(name, time.perf_counter() - began)
            return result
        digest = self._problem + _digest(json.dumps(dict(decided_by or {}), sort_keys=True))
        path, on_the_way = (self.folder / f"{n}-{digest}.pt" for n in (name, f"{name}{_PART}"))
        if path.exists():
            kept = _read(path, device)
            self._saved(name, kept)
            return kept["result"]
        part = {"result": None, "seconds": 0.0, "passes": 0}
        if on_the_way.exists():
            part = _read(on_the_way, device)
            self._saved(name, part)
        elif self._resume and any(_stage(each) == name for each in _files(self.folder)):
            _LOG.warning("What was kept of %s belongs to other options; it is made anew.", name)

        def record(result: dict[str, Any]) -> dict[str, Any]:
            return {
                "result": result,
                "seconds": part["seconds"] + time.perf_counter() - began,
                "passes": part["passes"] + self._passes() - before,
            }

        result = compute(part["result"], lambda state: self._keep(on_the_way, record(state)))
        self._spent(name, time.perf_counter() - began)
        self._keep(path, record(result))
        on_the_way.unlink(missing_ok=True)
        return result

    def _check_kept(self) -> None:
        """Refuse to resume where nothing was kept, or what belongs to another problem."""
        found = [] if self.folder is None else _files(self.folder)
        kept = [path for path in found if path.suffix == ".pt"]
        if not kept:
            raise ConfigurationError(
                f"There is nothing to resume from in {self.folder}; start without --resume."
            )
        if not any(_digests(path).startswith(self._problem) for path in kept):
            raise ConfigurationError(
                f"What is kept in {self.folder} belongs to other data or options. Resume with "
                "those of the stopped call, or start anew without --resume."
            )

    def _saved(self, name: str, kept: dict[str, Any]) -> None:
        self.saved_seconds += kept["seconds"]
        self.saved_passes += kept["passes"]
        self._spent(name, kept["seconds"])

    def _spent(self, name: str, seconds: float) -> None:
        title = _NUMBER.sub("", name)
        self.seconds[title] = self.seconds.get(title, 0.0) + seconds

    def _keep(self, path: Path, record: dict[str, Any]) -> None:
        beside = path.with_suffix(".tmp")
        try:
            # Not before there is something to keep.
            path.parent.mkdir(exist_ok=True)
            torch.save(record, beside)
            os.replace(beside, path)
        except (OSError, RuntimeError) as error:
            # The result is there and the work can go on.
            _LOG.warning("%s could not be kept: %s", path, error)
            beside.unlink(missing_ok=True)

    def interrupted(self) -> str:
        """What to say to a user who stopped the work."""
        if self.folder is None or not any(_files(self.folder)):
            return "Stopped; no stage was finished, and nothing is kept."
        return f"Stopped; what is finished is kept in {self.folder}. Go on with --resume."


def remove_stages(folder: Path) -> None:
    """Remove what was kept in a folder, and the folder if nothing else is in it."""
    for path in _files(folder):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _files(folder: Path) -> list[Path]:
    """Those written here, of whatever call."""
    return [path for path in folder.glob("*") if _NAME.fullmatch(path.name)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _stage(path: Path) -> str:
    """Name of the stage of a file, whether it was finished or not."""
    return path.name.rpartition("-")[0].removesuffix(_PART)


def _digests(path: Path) -> str:
    """Of the problem, and of what else decided the result in a file."""
    return path.stem.rpartition("-")[2]


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        kept = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigurationError(
            f"{path} is damaged; remove it, or start without --resume."
        ) from error
    _LOG.info("Taken from %s.", path)
    return kept


_NUMBER = re.compile(r"-[0-9]+$")
_NAME = re.compile(r"[a-z0-9-]+-[0-9a-f]{24}\.(pt|tmp)")
_PART = "-part"
