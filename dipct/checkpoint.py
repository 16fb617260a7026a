"""Checkpoints: the state of an unfinished iteration in a file, to go on exactly from there.

Layout (HDF5), version 1: attributes ``format`` = "dipct-checkpoint", ``version``, ``iteration``,
``problem`` (digest of data and settings), ``choices`` (JSON: what was worked out before the
iteration), ``elapsed`` (seconds of work so far); groups ``tensors`` and ``history`` with one
dataset per name.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import torch

from dipct.errors import ConfigurationError, FileFormatError, Interrupted
from dipct.measurement.hdf5 import (
    get_attribute,
    get_dataset,
    get_group,
    open_hdf5,
    write_whole,
)
from dipct.solver import IterationState

FORMAT, VERSION = "dipct-checkpoint", 1
_LOG = logging.getLogger(__name__)


@dataclass
class CheckpointWriter:
    """Writes a checkpoint now and then; a callback of the solver loop.

    Attributes:
        path: the file; replaced each time.
        problem: digest of everything that must be the same for going on.
        choices: what was worked out before the iteration and should not be again.
        seconds: least time between two checkpoints.
        elapsed: seconds of work before this leg; those of this leg are added in the file.
    """

    path: Path
    problem: str
    choices: Mapping[str, Any]
    seconds: float = 60.0
    elapsed: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    def __call__(self, state: IterationState) -> None:
        """Write if the last one is long enough ago; a failure is logged and stops nothing."""
        if time.monotonic() - self._last >= self.seconds:
            self.keep(state)

    def keep(self, state: IterationState) -> None:
        """Write now; a failure is logged and stops nothing."""
        try:
            self.write(state)
        except OSError as error:
            self._last = time.monotonic()
            _LOG.warning("No checkpoint: %s.", error.strerror)

    def write(self, state: IterationState) -> None:
        """Write now, whole or not at all."""

        def fill(file: h5py.File) -> None:
            file.attrs["format"] = FORMAT
            file.attrs["version"] = VERSION
            file.attrs["iteration"] = state.iteration
            file.attrs["problem"] = self.problem
            file.attrs["choices"] = json.dumps(dict(self.choices))
            file.attrs["elapsed"] = self.elapsed + time.monotonic() - self._began
            for name, tensors in (("tensors", state.tensors), ("history", state.history)):
                group = file.create_group(name)
                for key, tensor in tensors.items():
                    group.create_dataset(key, data=tensor.detach().cpu().numpy())

        write_whole(self.path, fill)
        self._last = time.monotonic()


def stopped(done: str, state: IterationState, writer: CheckpointWriter | None) -> Interrupted:
    """Keep the state of work that the user stopped.

    Args:
        done: how far it came, as a sentence without its end.
        state: to keep.
        writer: keeps it, if there is one.

    Returns:
        The error to raise, which says how to go on.
    """
    if writer is None:
        return Interrupted(f"{done}; no checkpoint was asked for.")
    writer.write(state)
    return Interrupted(f"{done}; the state is kept in {writer.path}. Go on with --resume.")


def elapsed_of(path: Path) -> float:
    """Seconds of work that led to a checkpoint."""
    with open_hdf5(path, "a checkpoint of a stopped run") as file:
        return float(file.attrs.get("elapsed", 0.0))


def read_checkpoint(
    path: Path, problem: str, device: torch.device
) -> tuple[IterationState, dict[str, Any]]:
    """Read a checkpoint of a problem.

    Args:
        path: the file.
        problem: digest that the checkpoint must carry.
        device: where to put the tensors.

    Returns:
        The state and the choices made before the iteration.

    Raises:
        FileFormatError: missing, truncated or foreign.
        ConfigurationError: a checkpoint of other data or settings.
    """
    with open_hdf5(path, "a checkpoint of a stopped run") as file:
        if file.attrs.get("format") != FORMAT or get_attribute(file, "version") > VERSION:
            raise FileFormatError(
                "not a checkpoint that this dipct can read; start anew without --resume."
            )
        if get_attribute(file, "problem") != problem:
            raise ConfigurationError(
                f"{path} belongs to other data or settings. Resume with the same scan and options "
                "as the stopped run (only the number of iterations may differ, unless a learning "
                "rate decays over them), or start anew without --resume."
            )

        def tensors(name: str) -> dict[str, torch.Tensor]:
            group = get_group(file, name)
            return {key: torch.from_numpy(get_dataset(group, key)[...]) for key in group}

        state = IterationState(
            int(get_attribute(file, "iteration")),
            {key: tensor.to(device) for key, tensor in tensors("tensors").items()},
            tensors("history"),
        )
        return state, json.loads(get_attribute(file, "choices"))
