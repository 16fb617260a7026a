"""Sums of ellipsoids, the building block of several phantoms."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dipct.phantom.sampling import Sampler


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid of constant value, in unit coordinates.

    A 2-D ellipse is an ellipsoid centred on the plane z = 0; a disc is a flat ball.

    Attributes:
        value: added to the image inside.
        center: ``(x, y, z)``.
        semi_axes: semi-axes along the ellipsoid's own x, y and z.
        rotation: matrix ``[3, 3]`` that turns the ellipsoid's own axes into the world's.
    """

    value: float
    center: tuple[float, float, float]
    semi_axes: tuple[float, float, float]
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))

    def half_extent(self) -> np.ndarray:
        """Half the size of the axis-aligned bounding box along x, y and z."""
        return np.linalg.norm(self.rotation * np.asarray(self.semi_axes), axis=1)

    def contains(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Which points of a tensor grid lie inside.

        Args:
            z: coordinates ``[Z]``.
            y: coordinates ``[H]``.
            x: coordinates ``[W]``.

        Returns:
            Booleans ``[Z, H, W]``.
        """
        to_ball = (self.rotation / np.asarray(self.semi_axes)).T
        dx, dy, dz = (axis - middle for axis, middle in zip((x, y, z), self.center, strict=True))
        squared = np.zeros((len(z), len(y), len(x)))
        for along_x, along_y, along_z in to_ball:
            plane = (along_z * dz)[:, None, None] + (along_y * dy)[None, :, None]
            squared += (plane + along_x * dx) ** 2
        return squared <= 1.0


def rotation_in_plane(angle: float) -> np.ndarray:
    """Rotation matrix ``[3, 3]`` about z, counter-clockwise with y up.

    Args:
        angle: rad.
    """
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def _overlap(axis: np.ndarray, center: float, half: float) -> slice:
    inside = np.flatnonzero(np.abs(axis - center) <= half)
    return slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0)


def sum_and_cover(
    ellipsoids: Sequence[Ellipsoid], z: np.ndarray, y: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of ellipsoids at the points of a tensor grid, and where any of them lies.

    Args:
        ellipsoids: what to add up.
        z: coordinates ``[Z]``.
        y: coordinates ``[H]``.
        x: coordinates ``[W]``.

    Returns:
        Values ``[Z, H, W]``, float64, and booleans ``[Z, H, W]``.
    """
    values = np.zeros((len(z), len(y), len(x)))
    covered = np.zeros(values.shape, dtype=bool)
    for ellipsoid in ellipsoids:
        # Only the bounding box is looked at: most ellipsoids are small.
        half_x, half_y, half_z = ellipsoid.half_extent()
        center_x, center_y, center_z = ellipsoid.center
        box = (
            _overlap(z, center_z, half_z),
            _overlap(y, center_y, half_y),
            _overlap(x, center_x, half_x),
        )
        inside = ellipsoid.contains(z[box[0]], y[box[1]], x[box[2]])
        values[box] += ellipsoid.value * inside
        covered[box] |= inside
    return values, covered


def sampler(ellipsoids: Sequence[Ellipsoid]) -> Sampler:
    """The sum of ellipsoids as a function to draw.

    Args:
        ellipsoids: what to add up.
    """

    def sample(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return sum_and_cover(ellipsoids, z, y, x)[0]

    return sample
