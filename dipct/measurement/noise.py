"""Noise models: what the measured projections are, given the noiseless line integrals."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dipct.errors import DataError


@dataclass(frozen=True, eq=False)
class GaussianNoise:
    """Additive white or pixel-wise Gaussian noise on the line integrals.

    Attributes:
        std: standard deviation, dimensionless: one number, or one per measured value in an
            array that broadcasts to the projections.
    """

    kind: ClassVar[str] = "gaussian"

    std: float | np.ndarray

    def __post_init__(self) -> None:
        """Validate the standard deviation."""
        if not np.all(np.isfinite(self.std)) or not np.all(np.asarray(self.std) > 0):
            raise DataError("The noise standard deviation must be positive and finite.")

    def sample(self, line_integrals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw noisy projections around noiseless line integrals of any shape."""
        return line_integrals + self.std * rng.standard_normal(line_integrals.shape)

    def std_of(self, projections: np.ndarray) -> np.ndarray:
        """Standard deviation of each measured value, with the shape of the projections."""
        return np.broadcast_to(self.std, projections.shape)

    def describe(self) -> str:
        """One line for people."""
        std = np.asarray(self.std)
        if std.ndim == 0:
            return f"Gaussian, standard deviation {float(std):.4g}"
        return f"Gaussian, standard deviation {std.min():.4g} to {std.max():.4g}"


@dataclass(frozen=True, eq=False)
class PoissonNoise:
    """Photon counting: counts are Poisson with mean ``photons * exp(-line integral)``.

    Projections are ``-log(counts / photons)``; a zero count is taken as half a photon, so that
    the logarithm exists.

    Attributes:
        photons: expected counts of an unattenuated ray, I0: one number, or an array that
            broadcasts to the projections.
    """

    kind: ClassVar[str] = "poisson"

    photons: float | np.ndarray

    def __post_init__(self) -> None:
        """Validate the photon count."""
        if not np.all(np.isfinite(self.photons)) or not np.all(np.asarray(self.photons) > 0):
            raise DataError("The photon count of an unattenuated ray must be positive and finite.")

    def sample(self, line_integrals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw noisy projections around noiseless line integrals of any shape."""
        counts = rng.poisson(self.photons * np.exp(-line_integrals))
        return -np.log(np.maximum(counts, 0.5) / self.photons)

    def std_of(self, projections: np.ndarray) -> np.ndarray:
        """Standard deviation of each measured value to first order: 1 / sqrt(counts)."""
        return np.exp(projections / 2) / np.sqrt(self.photons)

    def describe(self) -> str:
        """One line for people."""
        photons = np.asarray(self.photons)
        if photons.ndim == 0:
            return f"Poisson, {float(photons):.4g} photons per unattenuated ray"
        return f"Poisson, {photons.min():.4g} to {photons.max():.4g} photons per unattenuated ray"


Noise = GaussianNoise | PoissonNoise

NOISE_KINDS: dict[str, type[Any]] = {cls.kind: cls for cls in (GaussianNoise, PoissonNoise)}
"""Noise models by the name they have in files."""
