"""Parameters of a network at several steps of its training."""

import io
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dipct.errors import ConfigurationError, FileFormatError
from dipct.measurement.hdf5 import write_bytes_whole
from dipct.solver import IterationState

_LOG = logging.getLogger(__name__)
# The first steps belong to no course yet (Barbano et al., arXiv 2302.10279, leave them out too).
_FIRST_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Parameters at several steps of a training.

    Attributes:
        steps: completed steps, rising, [S].
        thetas: parameters, float32 [S P].
    """

    steps: np.ndarray
    thetas: np.ndarray


def snapshot_steps(steps: int, count: int) -> list[int]:
    """The steps of snapshots: equally spaced, from a tenth of the training to its end.

    Args:
        steps: training steps.
        count: number of snapshots.

    Raises:
        ConfigurationError: more snapshots than there are such steps.
    """
    first = max(1, round(_FIRST_SHARE * steps))
    if count > steps - first + 1:
        raise ConfigurationError(
            f"Of a training of {steps} steps at most {steps - first + 1} snapshots can be kept; "
            f"got snapshots={count}. Train longer or keep fewer."
        )
    return [int(step) for step in np.linspace(first, steps, count).round()]


def spread_snapshots(snapshots: Snapshots | None, count: int, name: str) -> dict[int, np.ndarray]:
    """Some snapshots, equally spaced, before the last one, which is nearly the network itself.

    Args:
        snapshots: those of a network's file.
        count: how many.
        name: of the file, for the message.

    Returns:
        Parameters [P] by step.

    Raises:
        ConfigurationError: fewer snapshots than that.
    """
    if count == 0:
        return {}
    kept = 0 if snapshots is None else len(snapshots.steps)
    if snapshots is None or count >= kept:
        raise ConfigurationError(
            f"{name} has {kept} snapshots; {count} and a later one are asked for. Pretrain with "
            "more --snapshots, or ask for fewer."
        )
    chosen = np.linspace(0, kept - 1, count + 1).round().astype(int)[:-1]
    # Copies, which do not keep all the others in memory.
    return {int(snapshots.steps[i]): snapshots.thetas[i].copy() for i in chosen}


class SnapshotKeeper:
    """Keeps snapshots while a network is trained; called with every state.

    With a folder every snapshot is a file of its own at once, written whole, so that a training
    that was stopped keeps those it had. After going on from an earlier step they are written
    again, the same.

    Args:
        steps: see :func:`snapshot_steps`.
        folder: where to keep them; default: in memory.
        resume: keep what is there; else it is removed.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, steps: list[int], folder: Path | None, *, resume: bool) -> None:
        self._steps, self._folder = set(steps), folder
        self._kept: dict[int, np.ndarray] = {}
        if folder is not None and steps:
            if not resume:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)

    def __call__(self, state: IterationState) -> None:
        """Keep the parameters if it is their turn."""
        if state.iteration not in self._steps:
            return
        theta = state.tensors["theta"].detach().cpu().numpy().astype(np.float32)
        if self._folder is None:
            self._kept[state.iteration] = theta
            return
        buffer = io.BytesIO()
        np.save(buffer, theta)
        try:
            write_bytes_whole(self._file(state.iteration), buffer.getbuffer())
        except OSError as error:
            _LOG.warning(
                "The snapshot of step %d is kept in memory only; once stopped, the training cannot "
                "be resumed: %s.",
                state.iteration,
                error.strerror,
            )
            self._kept[state.iteration] = theta

    def check(self, last: int) -> None:
        """Raise a :class:`FileFormatError` unless all snapshots up to a step are there."""
        for step in self._upto(last):
            self._read(step)

    def collect(self, last: int) -> Snapshots | None:
        """All snapshots up to a step; None where there are none.

        Args:
            last: step at which the training ended.

        Raises:
            FileFormatError: a snapshot's file is missing or unreadable.
        """
        steps = self._upto(last)
        if not steps:
            return None
        return Snapshots(np.array(steps), np.stack([self._read(step) for step in steps]))

    def _upto(self, last: int) -> list[int]:
        return sorted(step for step in self._steps if step <= last)

    def _read(self, step: int) -> np.ndarray:
        if step in self._kept:
            return self._kept[step]
        try:
            return np.load(self._file(step), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FileFormatError(
                f"{self._file(step)}: the snapshot of step {step} is missing or unreadable "
                f"({error}). Start the training anew, or resume it from a checkpoint before that "
                "step."
            ) from error

    def _file(self, step: int) -> Path:
        assert self._folder is not None, f"no snapshot of step {step}"
        return self._folder / f"{step:09d}.npy"
