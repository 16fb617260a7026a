"""Memory estimated before work starts."""

import math

import psutil
import torch

from dipct.errors import InsufficientMemoryError
from dipct.measurement.grid import Grid

# Image-sized float32 arrays alive at once in the hungriest method.
_IMAGES_AT_ONCE = 16
_BYTES_PER_NUMBER = 4


def check_image_memory(grid: Grid, *, images_at_once: int = _IMAGES_AT_ONCE) -> None:
    """Raise unless images on a grid fit into free memory.

    Args:
        grid: the image grid.
        images_at_once: how many image-sized arrays the work needs.

    Raises:
        InsufficientMemoryError: they are estimated not to fit.
    """
    shape = " x ".join(map(str, grid.shape))
    # Exact integers: the product of NumPy's would wrap around for absurd sizes.
    count = math.prod(grid.shape) * images_at_once
    _check(count, f"An image of {shape} pixels", "Use fewer pixels.")


def check_batch_memory(
    grid: Grid, batch: int, *, images_at_once: int, device: torch.device
) -> None:
    """Raise unless a training batch fits into the free memory of a device.

    Args:
        grid: the image grid.
        batch: images in a step.
        images_at_once: image-sized float32 arrays for each of them.
        device: where the network is.

    Raises:
        InsufficientMemoryError: they are estimated not to fit.
    """
    free = None if device.type == "cpu" else free_on(device)
    count = math.prod(grid.shape) * images_at_once * batch
    shape = " x ".join(map(str, grid.shape))
    _check(count, f"A batch of {batch} images of {shape} pixels", "Use a smaller batch.", free)


def check_snapshot_memory(count: int, size: int) -> None:
    """Raise unless snapshots of a training fit into free memory while they are written.

    Args:
        count: number of snapshots.
        size: parameters in each.

    Raises:
        InsufficientMemoryError: they are estimated not to fit.
    """
    # Themselves, and the file that is put together in memory.
    _check(3 * count * size, f"Keeping {count} snapshots", "Keep fewer.")


def free_on(device: torch.device) -> int:
    """Bytes on a CUDA device, with those that torch holds but does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def check_projection_memory(n_views: int, n_cells: int) -> None:
    """Raise unless projections fit into free memory, with the copies made in simulating them.

    Args:
        n_views: number of views.
        n_cells: detector cells in a view.

    Raises:
        InsufficientMemoryError: they are estimated not to fit.
    """
    # Double precision and a few copies.
    _check(16 * n_views * n_cells, f"A scan of {n_views} views", "Use fewer views or pixels.")


def _check(count: int, what: str, advice: str, free: int | None = None) -> None:
    needed = _BYTES_PER_NUMBER * count
    free = psutil.virtual_memory().available if free is None else free
    if needed > free:
        raise InsufficientMemoryError(
            f"{what} needs about {needed / 2**30:.3g} GiB of memory; {free / 2**30:.3g} GiB are "
            f"free. {advice}"
        )
