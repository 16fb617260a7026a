"""From an image and the scan that it was reconstructed from to the misfit that edits of it have."""

from pathlib import Path

import numpy as np
import torch

from dipct.device import find_device
from dipct.errors import ConfigurationError, DataError, ShapeError
from dipct.measurement.scan import Scan
from dipct.objective import DataTerm
from dipct.operator import LinearOperator, ray_transform
from dipct.pipeline.prepare import with_noise
from dipct.pipeline.total_variation import fidelity_of
from dipct.run import read_run
from dipct.shapes import check_shape


def measurement_of(scan: Scan, image: np.ndarray, *, device: str = "cpu") -> DataTerm:
    """The misfit of images to a scan, for :func:`dipct.pipeline.counterfactual`.

    Images for a classifier go from zero to one, those of a scan have units. One is a multiple of
    the other: the one by which the projections of the image come nearest to the scan.

    Args:
        scan: with a noise model, or its noise is estimated.
        image: reconstructed from it, [1 H H] from zero to one, of the whole field of view; the
            number of pixels may be another one.
        device: where to compute.

    Raises:
        ShapeError: an image in colour or not square.
        ConfigurationError: a scan of a volume, or of a field of view that is no square.
        DataError: no noise is found, or the image has nothing to do with the scan.
    """
    check_shape(image, "1 H H", name="An image of a scan", advice="Only square grey ones are.")
    if scan.grid.ndim != 2 or scan.grid.shape[0] != scan.grid.shape[1]:
        raise ConfigurationError(
            f"The classifier sees square slices; the scan is of {scan.grid.shape} pixels."
        )
    scan = with_noise(scan, required=True)
    where = find_device(device)
    operator = ray_transform(scan.geometry, scan.grid.resized(image.shape[-1]), device=where)
    data = torch.from_numpy(scan.projections).to(where)
    made = operator(torch.from_numpy(np.float32(image)).to(where))
    factor = float((made * data).sum() / made.square().sum().clamp_min(1e-12))
    if not factor > 0:
        raise DataError(
            "The projections of the image have nothing in common with the scan; give an image "
            "that was reconstructed from it."
        )
    scaled = factor * operator
    assert isinstance(scaled, LinearOperator)
    return DataTerm(scaled, fidelity_of(scan, data), name="measurement")


def image_of_run(path: Path, side: int) -> np.ndarray:
    """The image of a run file as a classifier sees it: from zero to one, the largest value.

    Args:
        path: of the run file.
        side: pixels along the sides.

    Returns:
        float32 [1 side side].

    Raises:
        FileFormatError: no readable run file.
        ShapeError: an image of another shape.
        DataError: an image without positive values.
    """
    image = read_run(path).image
    if image.shape != (side, side):
        raise ShapeError(
            f"{path}: the reconstruction has shape {image.shape}, and the classifier sees images "
            f"of {side} x {side} pixels. Reconstruct with --pixels {side}."
        )
    largest = float(image.max())
    if not largest > 0:
        raise DataError(f"{path}: the reconstruction has no positive value.")
    return np.float32(image / largest).clip(0, 1)[None]
