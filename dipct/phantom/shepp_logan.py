"""The Shepp-Logan head phantom."""

import numpy as np

from dipct.measurement.grid import Grid
from dipct.phantom.ellipsoids import Ellipsoid, rotation_in_plane, sampler
from dipct.phantom.sampling import render

SUPERSAMPLING = 4

# value, semi-axes along x, y and z, centre (x, y), angle in degrees
_TABLE = (
    (1.0, (0.69, 0.92, 0.81), (0.0, 0.0), 0.0),
    (-0.8, (0.6624, 0.874, 0.78), (0.0, -0.0184), 0.0),
    (-0.2, (0.11, 0.31, 0.22), (0.22, 0.0), -18.0),
    (-0.2, (0.16, 0.41, 0.28), (-0.22, 0.0), 18.0),
    (0.1, (0.21, 0.25, 0.41), (0.0, 0.35), 0.0),
    (0.1, (0.046, 0.046, 0.05), (0.0, 0.1), 0.0),
    (0.1, (0.046, 0.046, 0.05), (0.0, -0.1), 0.0),
    (0.1, (0.046, 0.023, 0.05), (-0.08, -0.605), 0.0),
    (0.1, (0.023, 0.023, 0.02), (0.0, -0.606), 0.0),
    (0.1, (0.023, 0.046, 0.02), (0.06, -0.605), 0.0),
)


def shepp_logan_ellipsoids() -> list[Ellipsoid]:
    """The ten ellipsoids; their cut with the plane z = 0 is the 2-D phantom."""
    return [
        Ellipsoid(value, (*center, 0.0), semi_axes, rotation_in_plane(np.deg2rad(angle)))
        for value, semi_axes, center, angle in _TABLE
    ]


def shepp_logan(grid: Grid) -> np.ndarray:
    """Draw the Shepp-Logan phantom with the modified, higher contrast.

    Ellipses: Shepp and Logan 1974, IEEE Trans. Nucl. Sci. 21(3), and Kak and Slaney 1988,
    *Principles of Computerized Tomographic Imaging*, section 3.1. Contrast: Toft 1996, *The
    Radon Transform* (PhD thesis). In a volume each ellipse becomes an ellipsoid centred on the
    plane z = 0, with the third semi-axes that 3-D software uses (Schabel 2006, ``phantom3d``).

    Args:
        grid: the image grid, 2-D or 3-D.

    Returns:
        Image ``[*grid.shape]``, float32, dimensionless in [0, 1].
    """
    image = render(sampler(shepp_logan_ellipsoids()), grid, SUPERSAMPLING)
    # Cancelling contributions leave rounding errors just outside [0, 1].
    return np.clip(image, 0.0, 1.0)
