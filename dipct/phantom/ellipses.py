"""Random ellipses, the usual synthetic images for pretraining."""

import numpy as np
from scipy.spatial.transform import Rotation

from dipct.measurement.grid import Grid
from dipct.phantom.ellipsoids import Ellipsoid, rotation_in_plane, sum_and_cover
from dipct.phantom.sampling import render, unit_axes

SUPERSAMPLING = 2
WALNUT_DISC_RADIUS = 0.4745
BALL_RADIUS = 0.7

_REFERENCE_PIXELS = {2: 128, 3: 48}


def _count(rng: np.random.Generator, mean: float, largest: int) -> int:
    return min(int(rng.poisson(mean)), largest)


def random_ellipses(rng: np.random.Generator, disc_radius: float | None = None) -> list[Ellipsoid]:
    """Draw ellipses as Barbano et al. 2022 (arXiv 2111.11926) do for pretraining.

    Number min(Poisson(40), 70), value U(-0.4, 1), rotation U(0, 2 pi). Without a disc the
    semi-axes are 0.2 Exp(1) and the centre is U(-0.9, 0.9)^2. In a disc of radius d the
    semi-axes are 0.2 d Exp(1), the centre's radius is triangular(0, d, d) and its angle uniform.

    Args:
        rng: source of randomness.
        disc_radius: radius of the disc that the centres keep to, in unit coordinates.
    """
    spread = 1.0 if disc_radius is None else disc_radius
    ellipses = []
    for _ in range(_count(rng, 40, 70)):
        value = rng.uniform(-0.4, 1.0)
        semi_axes = 0.2 * spread * rng.exponential(size=2)
        if disc_radius is None:
            x, y = rng.uniform(-0.9, 0.9, 2)
        else:
            radius = rng.triangular(0.0, disc_radius, disc_radius)
            direction = rng.uniform(0, 2 * np.pi)
            x, y = radius * np.cos(direction), radius * np.sin(direction)
        rotation = rotation_in_plane(rng.uniform(0, 2 * np.pi))
        ellipses.append(Ellipsoid(value, (x, y, 0.0), (*semi_axes, 1.0), rotation))
    return ellipses


def random_ellipsoids(
    rng: np.random.Generator, ball_radius: float = BALL_RADIUS
) -> list[Ellipsoid]:
    """Draw ellipsoids inside a ball, the 3-D counterpart of :func:`random_ellipses`.

    Number min(Poisson(120), 210), value U(-0.4, 1), semi-axes 0.2 r Exp(1) with r the radius of
    the ball, random rotation. Centres are uniform in the ball's bounding cube; an ellipsoid is
    drawn again until the six end points of its axes lie in the ball.

    Args:
        rng: source of randomness.
        ball_radius: in unit coordinates.
    """
    ellipsoids: list[Ellipsoid] = []
    n_ellipsoids = _count(rng, 120, 210)
    while len(ellipsoids) < n_ellipsoids:
        value = rng.uniform(-0.4, 1.0)
        center = rng.uniform(-ball_radius, ball_radius, 3)
        semi_axes = 0.2 * ball_radius * rng.exponential(size=3)
        rotation = Rotation.random(random_state=rng).as_matrix()
        arms = (rotation * semi_axes).T
        ends = np.concatenate([center + arms, center - arms])
        if np.all(np.linalg.norm(ends, axis=1) <= ball_radius):
            ellipsoids.append(Ellipsoid(value, tuple(center), tuple(semi_axes), rotation))
    return ellipsoids


def _draw(parts: list[Ellipsoid], grid: Grid) -> np.ndarray:
    # The shift and the scale come from a fixed grid and not from the given one: the same seed
    # then gives the same image at every resolution.
    n = _REFERENCE_PIXELS[grid.ndim]
    reference = Grid((n,) * grid.ndim)
    values, covered = sum_and_cover(parts, *unit_axes(reference, SUPERSAMPLING))
    lowest = values[covered].min(initial=np.inf)

    def shifted(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        values, covered = sum_and_cover(parts, z, y, x)
        return np.where(covered, np.maximum(values - lowest, 0.0), 0.0)

    highest = render(shifted, reference, SUPERSAMPLING).max()
    image = render(shifted, grid, SUPERSAMPLING)
    return np.minimum(image / highest, np.float32(1.0)) if highest > 0 else image


def ellipses(grid: Grid, *, seed: int = 0) -> np.ndarray:
    """Draw overlapping random ellipses, or in a volume ellipsoids inside a ball.

    Covered pixels are shifted to minimum 0 and the image is divided by its maximum.

    Args:
        grid: the image grid, 2-D or 3-D.
        seed: another seed, another image.

    Returns:
        Image ``[*grid.shape]``, float32, dimensionless in [0, 1].
    """
    rng = np.random.default_rng(seed)
    return _draw(random_ellipses(rng) if grid.ndim == 2 else random_ellipsoids(rng), grid)


def ellipses_in_disc(grid: Grid, *, seed: int = 0) -> np.ndarray:
    """Draw random ellipses gathered in a disc of a walnut's size, or in a volume in a ball.

    Args:
        grid: the image grid, 2-D or 3-D.
        seed: another seed, another image.

    Returns:
        Image ``[*grid.shape]``, float32, dimensionless in [0, 1].
    """
    rng = np.random.default_rng(seed)
    if grid.ndim == 2:
        return _draw(random_ellipses(rng, WALNUT_DISC_RADIUS), grid)
    return _draw(random_ellipsoids(rng, WALNUT_DISC_RADIUS), grid)
