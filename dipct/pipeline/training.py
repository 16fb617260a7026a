"""What all trainings share: where they keep their state, and how they go on from it."""

import logging
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from dipct.checkpoint import CheckpointWriter, elapsed_of, read_checkpoint, stopped
from dipct.errors import ConfigurationError, ConvergenceError
from dipct.pretrain.labelled_training import LabelledTraining
from dipct.progress import ProgressDisplay
from dipct.solver import IterationState, Solution, Status, iterate

_LOG = logging.getLogger(__name__)
_LOGGED = 20
_SNAPSHOTS, _CENTROIDS = "snapshots", "centroids"


@dataclass(frozen=True)
class TrainingCheckpoint:
    """Where a training keeps its state, and whether it goes on from there.

    Attributes:
        path: the file; None keeps nothing.
        resume: go on from it.

    Raises:
        ConfigurationError: to resume without a file.
    """

    path: Path | None
    resume: bool

    def __post_init__(self) -> None:
        """Validate."""
        if self.resume and self.path is None:
            raise ConfigurationError("Resuming needs the name of the checkpoint.")

    @property
    def elapsed(self) -> float:
        """Seconds of work that led to the state that is gone on from.

        Raises:
            FileFormatError: missing, truncated or foreign.
        """
        return elapsed_of(self.path) if self.resume and self.path is not None else 0.0

    @property
    def snapshots(self) -> Path | None:
        """Folder of the snapshots of the training."""
        return None if self.path is None else _beside(self.path, _SNAPSHOTS)

    def of_centroids(self, *, resume: bool) -> "TrainingCheckpoint":
        """That of the fit of centroids to the finished classifier.

        Args:
            resume: go on from it if it is there; otherwise it is of an earlier training and is
                removed.
        """
        if self.path is None:
            return self
        path = _beside(self.path, _CENTROIDS)
        if not resume:
            path.unlink(missing_ok=True)
        return TrainingCheckpoint(path, path.exists())

    def state(self, problem: str, device: torch.device) -> IterationState | None:
        """The state to go on from; None to start anew.

        Args:
            problem: digest of all that decides the training.
            device: where to put the tensors.

        Raises:
            FileFormatError: missing, truncated or foreign.
            ConfigurationError: a checkpoint of other data or settings.
        """
        if not self.resume or self.path is None:
            return None
        state, _ = read_checkpoint(self.path, problem, device)
        _LOG.info("Going on from step %d of %s.", state.iteration, self.path)
        return state

    def writer(self, problem: str, elapsed: float) -> CheckpointWriter | None:
        """What keeps the state; None if nothing does.

        Args:
            problem: digest of all that decides the training.
            elapsed: seconds of work so far.
        """
        return (
            None if self.path is None else CheckpointWriter(self.path, problem, {}, elapsed=elapsed)
        )


def fit(
    method: LabelledTraining,
    title: str,
    steps: int,
    state: IterationState | None,
    writer: CheckpointWriter | None,
    *,
    progress: bool,
) -> Solution:
    """Train on labelled images to the end.

    Args:
        method: what is trained.
        title: what it is called.
        steps: how many.
        state: where to go on, or None.
        writer: keeps the state on the way, if there is one.
        progress: show a progress display.

    Raises:
        ConvergenceError: the training diverged.
        Interrupted: stopped by the user; the state is kept.
    """
    with ProgressDisplay(title, steps) if progress else nullcontext() as shown:
        solution = iterate(
            method,
            max_iterations=steps,
            state=state,
            every=_LOGGED,
            callbacks=[each for each in (shown, writer) if each is not None],
        )
    if solution.status is Status.INTERRUPTED:
        done = f"Stopped after {solution.iterations} steps of the {title}"
        raise stopped(done, solution.state, writer)
    if solution.status is Status.DIVERGED:
        raise ConvergenceError(f"The {title} diverged. Use a lower learning_rate.")
    return solution


def remove_checkpoint(checkpoint: str | Path) -> None:
    """Remove the checkpoint of a training and what lies beside it, once the result is safe."""
    path = Path(checkpoint)
    path.unlink(missing_ok=True)
    _beside(path, _CENTROIDS).unlink(missing_ok=True)
    shutil.rmtree(_beside(path, _SNAPSHOTS), ignore_errors=True)


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.name}.{name}")
