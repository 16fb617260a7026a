"""Noise in a disc: an image without any content but its outline."""

import numpy as np

from dipct.measurement.grid import Grid
from dipct.phantom.ellipsoids import Ellipsoid, sampler
from dipct.phantom.sampling import render

SUPERSAMPLING = 4
DISC_RADIUS = 0.9
"""In unit coordinates: as far out as the centres of the random ellipses."""


def noise_disc(grid: Grid, *, seed: int = 0) -> np.ndarray:
    """Fill a disc, or in a volume a ball, with white noise: U(0, 1) in every pixel on its own.

    Pretraining on it, next to pretraining on ellipses, shows whether the content of the training
    images matters (an ablation of Barbano et al. 2022, arXiv 2111.11926).

    Alone among the phantoms this one is not a function of position: white noise has no limit as
    pixels get smaller. Another grid gets other numbers, and the mean of n x n fine pixels varies n
    times less than a coarse pixel. Only the disc is the same at every resolution. Draw it on
    the grid it is meant for.

    Args:
        grid: the image grid, 2-D or 3-D.
        seed: another seed, another image.

    Returns:
        Image ``[*grid.shape]``, float32, dimensionless in [0, 1].
    """
    disc = Ellipsoid(1.0, (0.0, 0.0, 0.0), (DISC_RADIUS,) * 3)
    covered = render(sampler([disc]), grid, SUPERSAMPLING)
    noise = np.random.default_rng(seed).random(grid.shape, dtype=np.float32)
    return covered * noise
