"""The random parts of training batches, drawn here or ahead of time by worker processes."""

import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dipct.errors import DipctError
from dipct.pretrain.images import TrainingImages
from dipct.pretrain.seeds import Purpose, sample_seed
from dipct.solver.deep_image_prior import noise_input

_BATCHES_AHEAD = 4


class Drawn(NamedTuple):
    """What a batch needs from the random streams, on the CPU, float32.

    Attributes:
        images: [B 1 H W], in [0, 1].
        noise: standard normal numbers for the projections, [B *range_shape].
        inputs: noise for the network's input, [B C H W]; C = 0 where it gets none.
    """

    images: Tensor
    noise: Tensor
    inputs: Tensor


class SampleDrawer(Dataset[Drawn | DipctError]):
    """Draws the samples of a batch, a pure function of their indices; picklable.

    Args:
        images: the images.
        range_shape: shape of the projections of one.
        seed: of the noise.
        network_noise: whether the network's input has noise.
    """

    def __init__(
        self,
        images: TrainingImages,
        range_shape: tuple[int, ...],
        *,
        seed: int,
        network_noise: bool,
    ) -> None:
        self.images, self.range_shape = images, range_shape
        self.seed, self.network_noise = seed, network_noise

    def draw(self, indices: Sequence[int]) -> Drawn:
        """The samples of some indices, in their order."""
        return Drawn(
            torch.stack([torch.from_numpy(self.images(i))[None] for i in indices]),
            torch.stack([self._noise(i) for i in indices]),
            torch.stack([self._network_noise(i) for i in indices]),
        )

    def __getitem__(self, indices: Sequence[int]) -> Drawn | DipctError:
        """As :meth:`draw`, for a worker: an error for people is handed over, not raised."""
        try:
            return self.draw(indices)
        except DipctError as error:
            return error

    def _noise(self, index: int) -> Tensor:
        rng = np.random.default_rng(self._seed("projection noise", index))
        return torch.from_numpy(rng.standard_normal(self.range_shape, dtype=np.float32))

    def _network_noise(self, index: int) -> Tensor:
        shape = self.images.grid.shape
        if not self.network_noise:
            return torch.zeros(0, *shape)
        return noise_input((1, *shape), self._seed("network input", index))

    def _seed(self, purpose: Purpose, index: int) -> int:
        return sample_seed(purpose, self.seed, self.images.fold, index)


def draw_ahead(
    drawer: SampleDrawer, batches: Sequence[Sequence[int]], *, workers: int, pinned: bool
) -> Generator[Drawn, None, None]:
    """Draw batches in order, by worker processes that end when the generator does.

    Args:
        drawer: draws a batch.
        batches: the indices of every batch.
        workers: number of processes; 0 draws in this one, when asked.
        pinned: put the batches into page-locked memory, for the way to a CUDA device.

    Yields:
        The batches.

    Raises:
        DipctError: what went wrong in a worker.
    """
    if not workers or not batches:
        yield from map(drawer.draw, batches)
        return
    loader = DataLoader(
        drawer,
        batch_size=None,
        sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        # Fresh processes: a forked one inherits locks held by threads, and CUDA's state.
        multiprocessing_context="spawn",
        prefetch_factor=max(1, _BATCHES_AHEAD // workers),
        pin_memory=pinned,
        # Else the loader takes a number from torch's global generator.
        generator=torch.Generator(),
    )
    started: Iterator[Drawn | DipctError] | None = None
    try:
        with _interrupts_held_back():
            started = iter(loader)
        for drawn in started:
            if isinstance(drawn, DipctError):
                raise drawn
            yield drawn
    finally:
        if started is not None:
            # Without this the processes live as long as anything refers to the iterator, such as
            # the traceback of an interrupt. The loader has no public way to end them.
            started._shutdown_workers()  # type: ignore[attr-defined]


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Keep keyboard interrupts from processes started inside, and from this one until the end.

    A terminal sends an interrupt to all its processes. The workers are ended by this one; a
    traceback of each would bury its message.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Started now, since the first start of a process would start it and let interrupts in again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
