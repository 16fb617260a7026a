"""Beam hardening of objects of one material: linearisation by a polynomial.

A polychromatic beam loses its soft part first, so that the measured ``-log`` grows more slowly
than the length of material passed. A polynomial maps it back to a quantity proportional to that
length (Herman 1979, Phys. Med. Biol. 24, 81).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import polynomial

from dipct.errors import DataError, ShapeError
from dipct.measurement.preprocessing.bad_pixels import check_projections


@dataclass(frozen=True)
class BeamHardeningFit:
    """A fitted linearisation.

    Attributes:
        coefficients: of the first, second ... power of the measured projections; for
            :func:`correct_beam_hardening`.
        attenuation: attenuation of the material in the corrected projections, 1/length.
        residual_std: root mean square of corrected projections minus attenuation times path
            length, dimensionless.
    """

    coefficients: tuple[float, ...]
    attenuation: float
    residual_std: float


def correct_beam_hardening(projections: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    """Replace each projection value p by ``c1 p + c2 p^2 + ...``.

    Args:
        projections: measured ``-log``, [A D] or [A R D], dimensionless.
        coefficients: ``c1, c2, ...``; air stays zero.

    Returns:
        Corrected projections, float32, of the same shape, dimensionless.

    Raises:
        ShapeError: not projections.
        DataError: no coefficient, one that is not finite, or a polynomial that falls somewhere
            in the range of the projections.
    """
    values = check_projections(projections, "projections")
    powers = np.asarray(coefficients, dtype=np.float64)
    if powers.ndim != 1 or powers.size == 0 or not np.all(np.isfinite(powers)):
        raise DataError(
            "coefficients must be a list of finite numbers c1, c2, ... of the powers 1, 2, ...; "
            f"got {coefficients}."
        )
    if not np.all(np.isfinite(values)):
        raise DataError("projections hold NaN or infinite values; interpolate bad pixels first.")
    full = np.concatenate([[0.0], powers])
    _check_rising(full, float(values.min()), float(values.max()))
    return polynomial.polyval(values, full).astype(np.float32)


def fit_beam_hardening(
    projections: np.ndarray, path_lengths: np.ndarray, *, degree: int = 3
) -> BeamHardeningFit:
    """Fit the linearising polynomial to a part of known shape, by least squares.

    The lengths are fitted by ``a1 p + a2 p^2 + ...``, and divided by ``a1``: the corrected
    projections equal the measured ones where little is absorbed, and the attenuation is that of
    the unhardened beam, ``1 / a1``.

    Args:
        projections: measured ``-log`` of a part of one material, any shape, dimensionless.
        path_lengths: length of each ray in the material, of the same shape, mm.
        degree: of the polynomial.

    Returns:
        Coefficients, attenuation and residual.

    Raises:
        ShapeError: projections and path lengths differ in shape.
        DataError: values that are not finite, no material, or a polynomial that is not rising.
    """
    measured = np.asarray(projections, dtype=np.float64)
    lengths = np.asarray(path_lengths, dtype=np.float64)
    if measured.shape != lengths.shape:
        raise ShapeError(
            f"projections and path_lengths must have the same shape; got {measured.shape} and "
            f"{lengths.shape}."
        )
    if degree < 1:
        raise DataError(f"The degree of the polynomial must be at least 1; got {degree}.")
    if not (np.all(np.isfinite(measured)) and np.all(np.isfinite(lengths))):
        raise DataError("projections and path_lengths must be finite; leave bad values out.")
    if np.any(lengths < 0) or np.count_nonzero(lengths) < 2 * degree:
        raise DataError(
            f"A fit of degree {degree} needs path lengths >= 0, at least {2 * degree} of them "
            f"positive; got {np.count_nonzero(lengths > 0)}."
        )
    scale = float(np.max(np.abs(measured)))
    if scale == 0:
        raise DataError("The projections are all zero: there is no attenuation to fit.")
    # Scaling to [-1, 1] keeps the powers from differing by orders of magnitude.
    design = (measured.ravel() / scale)[:, None] ** np.arange(1, degree + 1)
    scaled = np.linalg.lstsq(design, lengths.ravel(), rcond=None)[0]
    powers = scaled / scale ** np.arange(1, degree + 1)
    _check_rising(np.concatenate([[0.0], powers]), 0.0, float(measured.max()))
    attenuation = 1.0 / powers[0]
    residual = attenuation * (design @ scaled - lengths.ravel())
    return BeamHardeningFit(
        tuple(float(c) for c in powers * attenuation),
        float(attenuation),
        float(np.sqrt(np.mean(residual**2))),
    )


def _check_rising(coefficients: np.ndarray, low: float, high: float) -> None:
    """Raise unless the polynomial rises strictly on ``[low, high]``."""
    slope = polynomial.polyder(coefficients)
    turning = polynomial.polyroots(polynomial.polyder(slope)) if slope.size > 2 else np.zeros(0)
    turning = turning[np.isreal(turning)].real
    inner = turning[(turning > low) & (turning < high)]
    at = np.concatenate([[low, high], inner])
    slopes = polynomial.polyval(at, slope)
    if np.min(slopes) <= 0:
        raise DataError(
            "The beam-hardening polynomial does not rise everywhere in the range "
            f"{low:.4g} to {high:.4g} of the projections (slope {np.min(slopes):.3g} at "
            f"{at[np.argmin(slopes)]:.4g}), so that it would merge different path lengths. Use a "
            "lower degree, or data that cover the whole range."
        )
