"""Memory estimated before work starts."""

import math

import psutil

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


def _check(count: int, what: str, advice: str) -> None:
    needed, free = _BYTES_PER_NUMBER * count, psutil.virtual_memory().available
    if needed > free:
        raise InsufficientMemoryError(
            f"{what} needs about {needed / 2**30:.3g} GiB of memory; {free / 2**30:.3g} GiB are "
            f"free. {advice}"
        )
