"""From what a user names to the scan that is reconstructed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dipct.configuration import Settings
from dipct.errors import ConfigurationError, DataError, FileFormatError, ShapeError
from dipct.measurement.noise import GaussianNoise
from dipct.measurement.preprocessing import NoiseEstimate, estimate_noise_std
from dipct.measurement.readers import read_scan
from dipct.measurement.scan import Scan
from dipct.pipeline.images import read_image
from dipct.pipeline.memory import check_image_memory
from dipct.pipeline.simulate import EXAMPLE_PREFIX, example_scan
from dipct.run import is_run_file


def open_scan(
    source: str | Path,
    configuration: Settings | None = None,
    options: Mapping[str, Any] | None = None,
) -> Scan:
    """Open a scan file or folder of any readable kind, or an example by its name.

    Args:
        source: a path, or ``"example:walnut"``.
        configuration: gives an example its seed and number of pixels.
        options: of the reader, see :func:`dipct.read_scan`.

    Raises:
        FileFormatError: a file that is missing, truncated or of an unknown kind.
        ConfigurationError: an unknown example or reader's option.
    """
    if str(source).startswith(EXAMPLE_PREFIX):
        pixels = None if configuration is None else configuration.pixels
        seed = getattr(configuration, "seed", 0)
        name = str(source).removeprefix(EXAMPLE_PREFIX)
        if options:
            raise ConfigurationError("An example is not read from a file; it has no reader.")
        return example_scan(name, pixels=pixels, seed=seed)
    path = Path(source)
    if is_run_file(path):
        raise FileFormatError(
            f"{path}: this is a run file, the result of a reconstruction, not a scan. Look at it "
            "with `dipct show`, or give the scan that it was made from."
        )
    return read_scan(path, **(options or {}))


def prepare(scan: Scan, configuration: Settings) -> Scan:
    """Select views and bins, and change the grid, as configured.

    Raises:
        GeometryError: a selection the scan does not allow.
        InsufficientMemoryError: the image would not fit into memory.
    """
    if configuration.angular_range is not None:
        scan = scan.angular_range(configuration.angular_range)
    if configuration.views is not None:
        scan = scan.equispaced_views(configuration.views)
    if configuration.bin > 1:
        scan = scan.bin_detector(configuration.bin)
    if configuration.pixels is not None:
        scan = _resized(scan, configuration.pixels)
    check_image_memory(scan.grid)
    return scan


def with_truth(scan: Scan, path: str | Path) -> Scan:
    """The scan with a reference image from a file, in the scan's units and on its grid.

    Raises:
        FileFormatError: not a readable image.
        DataError: a picture of whole numbers, which have no units.
        ShapeError: the image does not have the shape of the grid.
    """
    path = Path(path)
    truth = read_image(path)
    if truth.shape != scan.grid.shape:
        raise ShapeError(
            f"{path}: the truth has shape {truth.shape}, the reconstruction {scan.grid.shape}. "
            "Choose the same number of pixels, with --pixels if need be."
        )
    return replace(scan, truth=truth, truth_source=f"file {path.name}")


def with_noise(scan: Scan, *, required: bool) -> Scan:
    """The scan with a noise model: its own, or white noise of a level estimated from it.

    Args:
        scan: what was measured.
        required: whether the method needs it; if not, a simulated scan without noise and one
            in which none is found are left as they are.

    Raises:
        DataError: no noise can be found in the projections, and it is required.
    """
    if scan.noise is not None or (not required and scan.metadata.get("origin") == "simulated"):
        return scan
    try:
        estimate = estimate_noise_std(scan.projections)
    except DataError as error:
        if not required:
            return scan
        raise DataError(
            f"The scan does not describe its noise. {error} Store a noise model in the scan, or "
            "use a method that needs none: fbp, fdk, cgls or sirt."
        ) from error
    return replace(
        scan,
        noise=GaussianNoise(estimate.std),
        metadata={**scan.metadata, "noise": describe_estimate(estimate)},
    )


def describe_noise(scan: Scan) -> str:
    """The noise of a scan in one line: its own model, or the level that is estimated for it."""
    if scan.noise is not None:
        return scan.noise.describe()
    known = with_noise(scan, required=False)
    return "not described" if known is scan else known.metadata["noise"]


def describe_estimate(estimate: NoiseEstimate) -> str:
    """An estimated noise level in one line, with its error and how it was found."""
    return (
        f"standard deviation {estimate.std:.4g} +- {estimate.standard_error:.2g}, estimated from "
        f"the projections ({estimate.method})"
    )


def _resized(scan: Scan, pixels: int) -> Scan:
    grid = scan.grid.resized(pixels)
    if grid == scan.grid:
        return scan
    check_image_memory(grid)
    resized = scan.with_grid(grid)
    if scan.truth is None:
        return resized
    from skimage.transform import resize, resize_local_mean

    coarser = grid.n_pixels < scan.grid.n_pixels
    if coarser:
        truth = resize_local_mean(scan.truth, grid.shape, preserve_range=True)
    else:
        truth = resize(scan.truth, grid.shape, order=1, preserve_range=True)
    return replace(
        resized,
        truth=np.asarray(truth, dtype=np.float32),
        truth_source=f"{scan.truth_source}, resampled from {scan.grid.shape} pixels",
    )
