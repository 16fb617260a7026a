"""Ring artefacts: stripes along the views, made by detector pixels of unequal response."""

import numpy as np
from scipy import ndimage

from dipct.errors import DataError
from dipct.measurement.preprocessing.bad_pixels import check_projections


def remove_rings(projections: np.ndarray, *, window: int = 9) -> np.ndarray:
    """Remove stripes from sinograms by sorting.

    Each column of a sinogram is sorted by value; neighbouring columns, which see nearly the same
    values, then differ only where a pixel responds unequally. A median filter across the sorted
    columns removes that, and each value goes back to its view (Vo, Atwood and Drakopoulos 2018,
    Opt. Express 26, 28396, algorithm 3). Stripes of at most ``window // 2`` neighbouring
    columns are removed. Rings in the object itself that are concentric with the axis are weakened
    as well, so keep the window small.

    Args:
        projections: line integrals, [A D] or [A R D], dimensionless.
        window: odd width of the median filter, columns.

    Returns:
        Corrected projections, float32, of the same shape.

    Raises:
        ShapeError: not projections.
        DataError: values that are not finite, or an impossible window.
    """
    values = check_projections(projections, "projections")
    if not np.all(np.isfinite(values)):
        raise DataError("projections hold NaN or infinite values; interpolate bad pixels first.")
    if window < 3 or window % 2 == 0 or window > values.shape[-1]:
        raise DataError(
            "The window must be odd, at least 3 and at most the number of columns, "
            f"{values.shape[-1]}; got {window}."
        )
    order = np.argsort(values, axis=0, kind="stable")
    ranked = np.take_along_axis(values, order, axis=0)
    size = (1,) * (values.ndim - 1) + (window,)
    ranked = ndimage.median_filter(ranked, size=size, mode="reflect")
    corrected = np.empty_like(values)
    np.put_along_axis(corrected, order, ranked, axis=0)
    return corrected.astype(np.float32)
