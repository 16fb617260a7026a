"""An asymmetric phantom of discs at known places, for checks of orientation and position."""

import numpy as np

from dipct.measurement.grid import Grid
from dipct.phantom.ellipsoids import Ellipsoid, sampler
from dipct.phantom.sampling import render, unit_scale

SUPERSAMPLING = 4

DISCS: tuple[Ellipsoid, ...] = (
    Ellipsoid(1.0, (0.45, 0.30, 0.0), (0.10, 0.10, 0.10)),
    Ellipsoid(0.7, (-0.20, 0.55, 0.08), (0.13, 0.13, 0.13)),
    Ellipsoid(0.5, (-0.50, -0.15, -0.05), (0.16, 0.16, 0.16)),
    Ellipsoid(0.3, (0.10, -0.50, 0.04), (0.20, 0.20, 0.20)),
)
"""The balls, in unit coordinates; no mirror image or turn of the phantom equals the phantom."""


def disc_centers(grid: Grid) -> np.ndarray:
    """World coordinates of the discs' centres, in the order of :data:`DISCS`.

    Args:
        grid: the image grid, 2-D or 3-D.

    Returns:
        Centres ``[4, 2]`` as (x, y), or ``[4, 3]`` as (x, y, z), mm.
    """
    units = np.array([disc.center for disc in DISCS])[:, : grid.ndim]
    return np.asarray(grid.center) + unit_scale(grid) * units


def discs(grid: Grid) -> np.ndarray:
    """Draw four separate discs (in a volume: balls) of different sizes and values.

    Args:
        grid: the image grid, 2-D or 3-D.

    Returns:
        Image ``[*grid.shape]``, float32, dimensionless in [0, 1].
    """
    return render(sampler(DISCS), grid, SUPERSAMPLING)
