"""Weights of the measured values in analytic reconstruction, for any set of views.

References:
    F. Noo, M. Defrise, R. Clackdoyle and H. Kudo, Image reconstruction from fan-beam projections
    on less than a short scan, Physics in Medicine and Biology 47 (2002).
    G. Wang, X-ray micro-CT with a displaced detector array, Medical Physics 29 (2002).
"""

from dataclasses import dataclass

import numpy as np

_MISSING = 3.0
_ROLL_OFF = np.deg2rad(10.0)
_EDGE_SHARE = 0.1


def view_weights(vectors: np.ndarray, n_columns: int, beam: str) -> np.ndarray:
    """Weight of each value before the filter, for columns along the detector's middle row.

    It contains the share of the view in the integral over angles, the redundancy weight of the
    line, the Jacobian of the rays and the scale of the filter.

    Args:
        vectors: per-view vectors, [A 12], mm.
        n_columns: detector columns D.
        beam: ``"parallel"`` or ``"cone"``.

    Returns:
        [A D], 1/mm for a parallel beam, mm for a divergent one.
    """
    first, centre, u, v = (vectors[:, i : i + 3] for i in (0, 3, 6, 9))
    # Column centres, then the two outer edges of the detector.
    steps = np.append(np.arange(n_columns), [-0.5, n_columns - 0.5]) - (n_columns - 1) / 2
    cells = (centre[:, None] + steps[:, None] * u[:, None])[..., :2]
    if beam == "parallel":
        normal = np.stack([-first[:, 1], first[:, 0]], 1)
        normal /= np.linalg.norm(normal, axis=1)[:, None]
        spacing = np.abs((u[:, :2] * normal).sum(-1))[:, None]
        angles = np.arctan2(first[:, 0], -first[:, 1])
        coverage = angular_coverage(angles, 2 * np.pi)
        if len(coverage.missing):
            return angular_coverage(angles, np.pi).widths[:, None] / spacing * np.ones(n_columns)
        here, opposite = _detector_share(np.einsum("akx,ax->ak", cells, normal))
        return coverage.widths[:, None] / spacing * here / (here + opposite)
    source = first[:, :2] - trajectory_centre(first[:, :2])
    directions = cells - first[:, None, :2]
    coverage = angular_coverage(np.arctan2(source[:, 0], -source[:, 1]), 2 * np.pi)
    along = np.einsum("akx,ax->ak", directions, source)
    across = source[:, None, 0] * directions[..., 1] - source[:, None, 1] * directions[..., 0]
    square = (directions**2).sum(-1)
    # The line meets the circle again where the source of the opposite measurement would be.
    other = source[:, None] - (2 * along / square)[..., None] * directions
    here, opposite = _detector_share(np.arctan2(-across, -along))
    here = here * coverage.share(np.arctan2(source[:, 0], -source[:, 1]))[:, None]
    other = other[:, :n_columns]
    opposite = opposite * coverage.share(np.arctan2(other[..., 0], -other[..., 1]))
    jacobian = (np.abs(along) / np.sqrt(square))[:, :n_columns]
    normal = np.cross(u, v)
    distance = np.abs(((first - centre) * normal).sum(-1)) / np.linalg.norm(normal, axis=1)
    per_view = coverage.widths * distance / np.linalg.norm(u, axis=1)
    return per_view[:, None] * jacobian * here / (here + opposite)


def _detector_share(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each ray, and the mirrored ray, is inside the detector: from 0 to 1.

    A line at ``position`` (distance from the axis, or fan angle) is seen from the other side at
    ``-position``, if the detector reaches there. The share falls to zero smoothly towards the
    edges; it matters only where the detector is not centred on the axis.

    Args:
        position: of the columns, then of the two edges, [A D+2].

    Returns:
        Share of the rays and of the mirrored rays, [A D] each.
    """
    edges = np.sort(position[:, -2:], axis=1)
    low, high = edges[:, :1], edges[:, 1:]
    columns = position[:, :-2]
    overlap = 2 * np.minimum(-low, high)
    full = _EDGE_SHARE * (high - low)
    width = np.where(overlap > 0, np.minimum(overlap, full), full)
    return tuple(  # type: ignore[return-value]
        _smooth_step(np.minimum(p - low, high - p) / width) for p in (columns, -columns)
    )


def _smooth_step(t: np.ndarray) -> np.ndarray:
    return np.sin(np.pi / 2 * np.clip(t, 0.0, 1.0)) ** 2


@dataclass(frozen=True)
class AngularCoverage:
    """What part of a circle the views cover.

    Attributes:
        widths: share of each view in the integral over angles, [A], rad.
        missing: unmeasured intervals, [M 2], rad; the second end may lie beyond a period.
    """

    widths: np.ndarray
    missing: np.ndarray

    def share(self, angles: np.ndarray) -> np.ndarray:
        """Zero where nothing was measured, rising smoothly to one inside the measured arcs.

        This is ``c(lambda)`` of Noo et al. (2002), with ten degrees from zero to one.

        Args:
            angles: source angles of a full circle, any shape, rad.
        """
        share = np.ones(np.shape(angles))
        for low, high in self.missing:
            half = (high - low) / 2
            turned = np.mod(angles - (low + high) / 2 + np.pi, 2 * np.pi) - np.pi
            share = np.minimum(share, _smooth_step((np.abs(turned) - half) / _ROLL_OFF))
        return share


def angular_coverage(angles: np.ndarray, period: float) -> AngularCoverage:
    """Trapezoid widths of the views around a circle, with unmeasured arcs left out.

    Views of the same angle share its width. A gap of more than three times the 90th percentile
    of the gaps is an arc that was not measured; the views at its ends reach half an ordinary
    gap into it.

    Args:
        angles: of the views, [A], rad.
        period: ``2 pi``, or ``pi`` where a half turn gives the same lines.
    """
    folded = np.mod(angles, period)
    order = np.argsort(folded)
    ordered = folded[order]
    ahead = np.diff(ordered, append=ordered[0] + period)
    tolerance = 1e-3 * period / len(angles)
    new = np.roll(ahead, 1) > tolerance
    if not new.any():
        return AngularCoverage(np.full(len(angles), period / len(angles)), np.zeros((0, 2)))
    # Views before the first new angle repeat the last one, from the end of the period.
    group = (np.cumsum(new) - 1) % int(new.sum())
    distinct = ordered[new]
    gaps = np.diff(distinct, append=distinct[0] + period)
    usual = float(np.percentile(gaps, 90, method="lower"))
    absent = gaps > _MISSING * usual
    ends = np.stack([distinct + usual / 2, distinct + gaps - usual / 2], 1)[absent]
    gaps = np.where(absent, usual, gaps)
    width = (gaps + np.roll(gaps, 1)) / 2
    widths = np.empty(len(angles))
    widths[order] = (width / np.bincount(group))[group]
    return AngularCoverage(widths, ends)


def trajectory_centre(sources: np.ndarray) -> np.ndarray:
    """Centre of the circle on which the sources lie, by least squares, [2], mm.

    Sources that do not surround the origin determine the centre badly; it is then the origin,
    where the geometries put the rotation axis.

    Args:
        sources: [A 2], mm.
    """
    angles = np.sort(np.arctan2(sources[:, 1], sources[:, 0]))
    gaps = np.diff(angles, append=angles[0] + 2 * np.pi)
    if gaps.max() > 0.95 * np.pi:
        return np.zeros(2)
    # |a|^2 = 2 a . centre + (radius^2 - |centre|^2) is linear in what is sought.
    system = np.column_stack([2 * sources, np.ones(len(sources))])
    return np.linalg.lstsq(system, (sources**2).sum(1), rcond=None)[0][:2]
