"""Figures of merit of a reconstruction."""

import numpy as np

from dipct.evaluation import psnr, ssim
from dipct.measurement.scan import Scan

# The window of the structural similarity.
_SSIM_WINDOW = 7


def figures_of_merit(image: np.ndarray, projections: np.ndarray, scan: Scan) -> dict[str, float]:
    """How well an image explains a scan, and how close it is to the truth where there is one.

    Args:
        image: [*grid.shape], in the scan's units.
        projections: the projections of the image, shaped like the scan's.
        scan: what was reconstructed.

    Returns:
        ``relative_residual`` ``|A x - y| / |y|``; with a noise model ``reduced_chi_squared``;
        with a truth that is not constant ``psnr_db`` and, for large enough images, ``ssim``.
    """
    residual = projections.astype(np.float64) - scan.projections
    norm = float(np.linalg.norm(scan.projections.astype(np.float64)))
    metrics = {"relative_residual": float(np.linalg.norm(residual)) / norm if norm else 0.0}
    if scan.noise is not None:
        std = scan.noise.std_of(scan.projections)
        metrics["reduced_chi_squared"] = float(np.mean(np.square(residual / std)))
    if scan.truth is not None and np.ptp(scan.truth) > 0:
        metrics["psnr_db"] = psnr(image, scan.truth)
        if min(image.shape) >= _SSIM_WINDOW:
            metrics["ssim"] = ssim(image, scan.truth)
    return metrics
