"""How fast and how well an iteration comes to rest, from its quality against the step."""

from dataclasses import dataclass

import numpy as np

from dipct.errors import ConfigurationError, ShapeError


@dataclass(frozen=True)
class Convergence:
    """Figures of a history of PSNRs (Barbano et al., arXiv 2111.11926, section 4).

    Attributes:
        initial_db: before the first step.
        maximum_db: the highest.
        steady_db: median over the last steps.
        final_db: at the last step.
        rise_step: first recorded step above the steady PSNR less a margin.
        baseline_step: the same for the steady PSNR of a baseline; None where it is never reached
            or there is no baseline.
    """

    initial_db: float
    maximum_db: float
    steady_db: float
    final_db: float
    rise_step: int
    baseline_step: int | None

    @property
    def loss_db(self) -> float:
        """What is lost from the maximum to the end without stopping early."""
        return self.maximum_db - self.final_db


def convergence(
    steps: np.ndarray,
    psnr_db: np.ndarray,
    *,
    baseline_db: float | None = None,
    last_share: float = 0.15,
    margin_db: float = 0.1,
) -> Convergence:
    """Figures of merit of a PSNR history, of several repeats the point-wise median.

    Args:
        steps: recorded steps, [N], rising.
        psnr_db: [N] or of several repeats [R N].
        baseline_db: steady PSNR of a baseline.
        last_share: share of the steps that count as the end.
        margin_db: distance to a steady PSNR at which it counts as reached.

    Raises:
        ShapeError: histories that do not fit the steps.
        ConfigurationError: steps that do not rise, or a share outside (0, 1].
    """
    steps, values = np.asarray(steps), np.asarray(psnr_db, dtype=np.float64)
    if steps.ndim != 1 or not len(steps) or values.shape[-1:] != steps.shape or values.ndim > 2:
        raise ShapeError(
            f"psnr_db must have shape [N] or [R N] with N = {steps.size} steps; got {values.shape}."
        )
    if np.any(np.diff(steps) <= 0) or not 0 < last_share <= 1:
        raise ConfigurationError("steps must rise and last_share lie in (0, 1].")
    median = np.median(np.atleast_2d(values), axis=0)
    last = steps >= steps[-1] - last_share * (steps[-1] - steps[0])
    steady = float(np.median(median[last]))
    return Convergence(
        initial_db=float(median[0]),
        maximum_db=float(median.max()),
        steady_db=steady,
        final_db=float(median[-1]),
        rise_step=_first(steps, median, steady - margin_db) or 0,
        baseline_step=None
        if baseline_db is None
        else _first(steps, median, baseline_db - margin_db),
    )


def _first(steps: np.ndarray, values: np.ndarray, level: float) -> int | None:
    above = np.flatnonzero(values > level)
    return int(steps[above[0]]) if above.size else None
