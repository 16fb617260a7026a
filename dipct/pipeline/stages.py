"""Long work in stages whose results are kept until all of it is done."""

import hashlib
import json
import logging
import os
import pickle
import shutil
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
        resume: whether to use what is there; otherwise it is removed.

    Raises:
        ConfigurationError: nothing to resume from.
    """

    def __init__(self, folder: Path | None, problem: str, *, resume: bool = False) -> None:
        self.folder, self._problem = folder, problem
        if resume and (folder is None or not folder.is_dir()):
            raise ConfigurationError(
                f"There is nothing to resume from in {folder}; start without --resume."
            )
        if folder is None:
            return
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        for path in folder.glob("*.tmp"):
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
        if self.folder is None:
            return compute()
        text = json.dumps([self._problem, dict(decided_by or {})], sort_keys=True)
        path = self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.pt"
        if path.exists():
            return self._read(path, device)
        result = compute()
        # Not before there is something to keep.
        self.folder.mkdir(exist_ok=True)
        beside = path.with_suffix(".tmp")
        torch.save(result, beside)
        os.replace(beside, path)
        return result

    def _read(self, path: Path, device: torch.device) -> dict[str, Any]:
        try:
            kept = torch.load(path, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigurationError(
                f"{path} is damaged; remove it, or start without --resume."
            ) from error
        _LOG.info("Taken from %s.", path)
        return kept

    def interrupted(self) -> str:
        """What to say to a user who stopped the work."""
        if self.folder is None:
            return "Stopped; nothing was to be kept."
        return f"Stopped; what is finished is kept in {self.folder}. Go on with --resume."
