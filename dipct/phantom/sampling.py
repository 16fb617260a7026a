"""From a function of position to an anti-aliased image on a grid.

Phantoms are functions of unit coordinates: the origin is the grid's centre and the longer
in-plane side spans [-1, 1]. The same scale holds for all axes, so a ball stays a ball.
"""

from collections.abc import Callable

import numpy as np

from dipct.measurement.grid import Grid

MAX_SAMPLES = 2**20

Sampler = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Values ``[Z, H, W]`` at the points of the tensor grid ``z [Z] x y [H] x x [W]``."""


def unit_scale(grid: Grid) -> float:
    """Length of one unit: half the longer in-plane side, mm."""
    return max(grid.size[:2]) / 2


def unit_axes(grid: Grid, supersampling: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit coordinates of the sample points along each array axis.

    Args:
        grid: the image grid; an image is the slice z = 0.
        supersampling: samples per pixel along y and along x. Slices are sampled at their middle
            plane only, so an image equals the slice through the centre of a volume.

    Returns:
        ``(z [Z], y [H * supersampling], x [W * supersampling])``; ``y`` is descending.
    """
    scale = unit_scale(grid)
    offsets = ((np.arange(supersampling) + 0.5) / supersampling - 0.5) * grid.pixel_size / scale
    *slices, rows, columns = grid.axes()
    z = (slices[0] - grid.center[2]) / scale if slices else np.zeros(1)
    y = (rows - grid.center[1]) / scale
    x = (columns - grid.center[0]) / scale
    return z, (y[:, None] - offsets).ravel(), (x[:, None] + offsets).ravel()


def render(
    sample: Sampler, grid: Grid, supersampling: int, max_samples: int = MAX_SAMPLES
) -> np.ndarray:
    """Average a function over each pixel, working in blocks of bounded memory.

    Args:
        sample: the function to draw.
        grid: the image grid.
        supersampling: samples per pixel along y and along x.
        max_samples: largest number of points handed to ``sample`` at a time, if one row of
            pixels does not already need more.

    Returns:
        Pixel means ``[*grid.shape]``, float32, in the units of ``sample``.
    """
    z, y, x = unit_axes(grid, supersampling)
    n_rows, n_columns = grid.shape[-2:]
    image = np.empty((len(z), n_rows, n_columns), dtype=np.float32)
    rows = min(n_rows, max(1, max_samples // (supersampling * len(x))))
    slices = max(1, max_samples // (rows * supersampling * len(x)))
    for first in range(0, len(z), slices):
        for top in range(0, n_rows, rows):
            bottom = min(top + rows, n_rows)
            block = sample(
                z[first : first + slices], y[top * supersampling : bottom * supersampling], x
            )
            pixels = (len(block), bottom - top, supersampling, n_columns, supersampling)
            image[first : first + slices, top:bottom] = block.reshape(pixels).mean(axis=(2, 4))
    return image.reshape(grid.shape)
