"""Overlapping random rectangles with few preferred orientations."""

from dataclasses import dataclass

import numpy as np

from dipct.measurement.grid import Grid
from dipct.phantom.sampling import render

SUPERSAMPLING = 8
_REFERENCE_POINTS = {2: 256, 3: 64}


@dataclass(frozen=True)
class Rectangle:
    """A rectangle, in a volume a box turned about z, of constant value, in unit coordinates.

    Attributes:
        value: added to the image inside.
        center: ``(x, y, z)``.
        half_sides: half the sides along the rectangle's own x, y and z.
        angle: rotation about z, counter-clockwise with y up, rad.
    """

    value: float
    center: tuple[float, float, float]
    half_sides: tuple[float, float, float]
    angle: float


def random_rectangles(
    rng: np.random.Generator, n_rectangles: int = 3, n_orientations: int = 2
) -> list[Rectangle]:
    """Draw rectangles as Barbano et al. 2022 (arXiv 2207.05714) do to simulate objects.

    Value U(0.5, 1), half sides U(0.1, 0.8), centre U(-0.75, 0.75) along each axis, orientation
    one of k evenly spaced directions with a random start, plus N(0, 0.05) rad.

    Args:
        rng: source of randomness.
        n_rectangles: number of rectangles.
        n_orientations: number k of preferred directions.
    """
    first = rng.uniform(0, np.pi)
    rectangles = []
    for _ in range(n_rectangles):
        value = rng.uniform(0.5, 1.0)
        half_sides = rng.uniform(0.1, 0.8, 3)
        center = rng.uniform(-0.75, 0.75, 3)
        mode = rng.integers(n_orientations)
        angle = first + np.pi * mode / n_orientations + rng.normal(0.0, 0.05)
        rectangles.append(Rectangle(value, tuple(center), tuple(half_sides), angle))
    return rectangles


def _sum(
    rectangles: list[Rectangle], z: np.ndarray, y: np.ndarray, x: np.ndarray, flat: bool
) -> np.ndarray:
    values = np.zeros((len(z), len(y), len(x)))
    for rectangle in rectangles:
        center_x, center_y, center_z = rectangle.center
        half_x, half_y, half_z = rectangle.half_sides
        dx, dy = x[None, :] - center_x, y[:, None] - center_y
        cosine, sine = np.cos(rectangle.angle), np.sin(rectangle.angle)
        in_plane = (np.abs(cosine * dx + sine * dy) <= half_x) & (
            np.abs(cosine * dy - sine * dx) <= half_y
        )
        in_slice = np.ones(1, dtype=bool) if flat else np.abs(z - center_z) <= half_z
        values += rectangle.value * (in_slice[:, None, None] & in_plane)
    return values


def rectangles(grid: Grid, *, seed: int = 0, n_rectangles: int = 3) -> np.ndarray:
    """Draw overlapping random rectangles, or in a volume boxes turned about z.

    Where rectangles overlap their values add; the image is divided by its maximum.

    Args:
        grid: the image grid, 2-D or 3-D.
        seed: another seed, another image.
        n_rectangles: number of rectangles.

    Returns:
        Image ``[*grid.shape]``, float32, dimensionless in [0, 1].
    """
    parts = random_rectangles(np.random.default_rng(seed), n_rectangles)
    flat = grid.ndim == 2
    # The maximum comes from fixed sample points, so the values do not depend on the resolution.
    axis = np.linspace(-1.0, 1.0, _REFERENCE_POINTS[grid.ndim])
    largest = _sum(parts, np.zeros(1) if flat else axis, axis, axis, flat).max()

    def sample(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.clip(_sum(parts, z, y, x, flat) / largest, 0.0, 1.0)

    return render(sample, grid, SUPERSAMPLING)
