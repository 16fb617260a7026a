"""The walnut's kernel: two halves of smooth convoluted lobes."""

from dataclasses import dataclass

import numpy as np


def smooth_minimum(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Minimum of two distances with a rounded crease, so that two shapes melt together.

    Args:
        a: distances.
        b: distances.
        width: difference below which the two are blended.
    """
    overlap = np.maximum(np.float32(width) - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap * np.float32(0.25 / width)


def smooth_maximum(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Maximum of two distances with a rounded crease, so that a cut has rounded edges.

    Args:
        a: distances.
        b: distances.
        width: difference below which the two are blended.
    """
    return -smooth_minimum(-a, -b, width)


@dataclass(frozen=True)
class Finger:
    """A tapered rod in the plane whose tip wanders with z.

    Attributes:
        root: ``(x, y)`` of one end.
        tip: ``(x, y)`` of the other end, at mean position.
        radii: radius at the root and at the tip.
        sway: amplitude of the tip's movement along x and y.
        pace: rate of that movement along z, rad per unit length, for x and y.
        phase: phase of that movement, rad, for x and y.
    """

    root: tuple[float, float]
    tip: tuple[float, float]
    radii: tuple[float, float]
    sway: float
    pace: tuple[float, float]
    phase: tuple[float, float]

    def distance(self, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """Approximate signed distance, negative inside.

        Args:
            x: coordinates ``[N]``.
            y: coordinates ``[N]``.
            z: height of the slice.

        Returns:
            Distances ``[N]``.
        """
        reach_x, reach_y = (
            tip - root + self.sway * float(np.sin(pace * z + phase))
            for tip, root, pace, phase in zip(
                self.tip, self.root, self.pace, self.phase, strict=True
            )
        )
        dx, dy = x - self.root[0], y - self.root[1]
        length = reach_x**2 + reach_y**2
        along = np.clip(dx * (reach_x / length) + dy * (reach_y / length), 0, 1)
        radius = self.radii[0] + along * (self.radii[1] - self.radii[0])
        return np.sqrt((dx - along * reach_x) ** 2 + (dy - along * reach_y) ** 2) - radius


def draw_half(rng: np.random.Generator, side: int) -> list[Finger]:
    """Draw the fingers of one kernel half: a waist, a lobe above and below, one to the side.

    Args:
        rng: source of randomness.
        side: +1 for the half at positive x, -1 for the other.
    """

    def finger(
        root: tuple[float, float],
        tip: tuple[float, float],
        radii: tuple[float, float],
        spread: float,
    ) -> Finger:
        jittered = np.asarray(tip) + spread * rng.uniform(-1, 1, 2)
        return Finger(
            root=(side * root[0], root[1]),
            tip=(side * float(jittered[0]), float(jittered[1])),
            radii=(radii[0] * rng.uniform(0.9, 1.1), radii[1] * rng.uniform(0.8, 1.2)),
            sway=0.03,
            pace=(rng.uniform(4, 9), rng.uniform(4, 9)),
            phase=(rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)),
        )

    fingers = [
        finger((0.19, 0.12), (0.19, -0.12), (0.075, 0.075), 0.01),
        finger((0.19, 0.0), (rng.uniform(0.38, 0.48), 0.0), (0.09, 0.035), 0.05),
    ]
    for up in (1, -1):
        shoulder = (0.20, 0.24 * up)
        fingers += [
            finger((0.19, 0.10 * up), (0.19, 0.34 * up), (0.08, 0.08), 0.03),
            finger(shoulder, (0.38, 0.34 * up), (0.06, 0.05), 0.06),
            finger(shoulder, (0.13, 0.46 * up), (0.06, 0.05), 0.05),
        ]
        if rng.uniform() < 0.6:
            fingers.append(finger(shoulder, (0.28, 0.46 * up), (0.05, 0.04), 0.05))
        if rng.uniform() < 0.5:
            fingers.append(finger((0.24, 0.10 * up), (0.38, 0.17 * up), (0.05, 0.03), 0.03))
    return fingers


def union(
    fingers: list[Finger], x: np.ndarray, y: np.ndarray, z: float, widths: tuple[float, ...]
) -> list[np.ndarray]:
    """Signed distance of fingers melted together, once for each width of blending.

    Args:
        fingers: the parts.
        x: coordinates ``[N]``.
        y: coordinates ``[N]``.
        z: height of the slice.
        widths: blending widths; a large one bridges the hollows between the fingers.

    Returns:
        Distances ``[N]``, one array per width.
    """
    first = fingers[0].distance(x, y, z)
    distances = [first] * len(widths)
    for part in fingers[1:]:
        distance = part.distance(x, y, z)
        distances = [
            smooth_minimum(old, distance, width)
            for old, width in zip(distances, widths, strict=True)
        ]
    return distances
