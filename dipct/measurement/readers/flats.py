"""What flats and darks tell about a scan before they are averaged."""

import numpy as np

from dipct.errors import DataError
from dipct.measurement.noise import PoissonNoise


def check_flats(flats: np.ndarray, darks: np.ndarray) -> None:
    """Check that the beam was on in every flat; an average would hide one without beam.

    Args:
        flats: [F ...], counts.
        darks: [K ...], counts.

    Raises:
        DataError: a flat that is not well above the darks, or is not finite.
    """
    beam = (flats - darks.mean(axis=0)).reshape(len(flats), -1)
    brightness = np.median(beam, axis=1)
    # Written so that NaN fails too.
    lit = (brightness > 0) & (brightness > 0.1 * np.median(brightness))
    if not np.all(lit):
        number = int(np.argmin(lit))
        raise DataError(
            f"flat {number} of {len(flats)} (counted from 0) is {brightness[number]:.4g} counts "
            "above the mean dark: zero, negative or without beam. Remove it, or exchange flats "
            "and darks if they are swapped."
        )


def noise_of_flats(flats: np.ndarray, darks: np.ndarray) -> PoissonNoise | None:
    """Photon counts of the unattenuated beam from the spread of the flats.

    A detector that gives g counts per photon has flats with variance g times their mean, so that
    g is the ratio of the two (photon transfer; Janesick 2007, ISBN 978-0-8194-6722-5).

    Args:
        flats: [F D], counts.
        darks: [K D], counts.

    Returns:
        One photon count per column; None where the flats do not tell it.
    """
    # One frame has no spread. The darks' own variance is not photon noise.
    if len(flats) < 2 or len(darks) < 2:
        return None
    beam = flats.mean(axis=0) - darks.mean(axis=0)
    # The beam as a whole flickers from frame to frame, which is not photon noise either.
    brightness = (flats - darks.mean(axis=0)).mean(axis=1, keepdims=True)
    steady = (flats - darks.mean(axis=0)) * (brightness.mean() / brightness)
    spread = steady.var(axis=0, ddof=1).mean() - darks.var(axis=0, ddof=1).mean()
    gain = spread / beam.mean()
    # Flats that are copies of each other differ by rounding errors at most.
    if not gain > 1e-12 * beam.mean():
        return None
    return PoissonNoise(beam / gain)
