"""The verb simulate: a scan of a phantom or picture, with noise, in any geometry."""

import math
from pathlib import Path

import numpy as np
import torch

from dipct.errors import ConfigurationError, DataError
from dipct.measurement.geometry import Geometry
from dipct.measurement.grid import Grid
from dipct.measurement.noise import GaussianNoise, PoissonNoise
from dipct.measurement.nominal import nominal_scan
from dipct.measurement.scan import Scan
from dipct.operator.traced import TracedRayTransform
from dipct.phantom import default_peak, make_phantom, phantom_names
from dipct.pipeline.images import READABLE, read_image
from dipct.pipeline.memory import check_image_memory, check_projection_memory

EXAMPLES = {"walnut": "cwi-walnut"}
"""Embedded examples: a phantom and the geometry it is scanned in."""
EXAMPLE_PREFIX = "example:"

# Above this the generator of Poisson numbers overflows.
_MOST_COUNTS = 1e15
_MOST_NOISE = 1e3
# Arrays of the fine grid's size that drawing and averaging an object needs.
_IMAGES_AT_ONCE = 8


def simulate(
    source: str | Path | np.ndarray,
    *,
    geometry: str | Scan | None = None,
    pixels: int | None = None,
    views: int | None = None,
    noise: float | None = None,
    counts: float | None = None,
    oversampling: int = 2,
    seed: int = 0,
) -> Scan:
    """Simulate a scan.

    Args:
        source: a phantom's name, ``"example:walnut"``, an image file, or an array [H W] or
            [Z H W] of attenuation values in 1/mm. Floating-point values in a file are 1/mm too;
            whole numbers are a picture, whose white attenuates as the phantoms' brightest
            material.
        geometry: ``"parallel"``, ``"fan"``, ``"cone"``, ``"cwi-walnut"``, or a scan whose
            geometry and grid are taken over; default: the example's own, else parallel.
        pixels: pixels along a side of the image; the geometry's own by default.
        views: equispaced views; of a scan taken over, a selection of its views.
        noise: standard deviation of white noise as a share of the mean absolute line integral;
            0.05 unless ``counts`` is given; 0 for none.
        counts: photons of an unattenuated ray, for Poisson noise instead.
        oversampling: the scanned object has so many pixels per pixel of the grid along each
            axis. With 1 the data are made by the very matrix that will reconstruct them, as in
            many papers, which flatters every method.
        seed: of the phantom and of the noise.

    Returns:
        The scan, with the object averaged over the pixels of the grid as its truth.

    Raises:
        ConfigurationError: an unknown phantom, example or geometry, or impossible numbers.
        FileFormatError: an image that cannot be read.
        InsufficientMemoryError: the object or the projections would not fit into memory.
    """
    if noise is not None and counts is not None:
        raise ConfigurationError("Choose white noise or photon counts, not both.")
    noise = 0.05 if noise is None and counts is None else noise
    if noise is not None and not 0 <= noise <= _MOST_NOISE:
        raise ConfigurationError(
            f"The noise level must be from 0 to {_MOST_NOISE:g}, a share of the mean line "
            f"integral; got {noise}."
        )
    if counts is not None and not 0 < counts <= _MOST_COUNTS:
        raise ConfigurationError(
            f"The photon counts must be above 0 and at most {_MOST_COUNTS:g}; got {counts}."
        )
    if oversampling < 1:
        raise ConfigurationError(f"oversampling must be at least 1; got {oversampling}.")
    if seed < 0:
        raise ConfigurationError(f"seed must be 0 or larger; got {seed}.")
    source, geometry = _example(source, geometry)
    scanner, grid = _scanner(geometry, pixels, views)
    if scanner.kind == "matrix":
        oversampling = 1
    check_projection_memory(scanner.n_views, math.prod(scanner.detector_shape))
    fine = Grid(
        tuple(n * oversampling for n in grid.shape), grid.pixel_size / oversampling, grid.center
    )
    check_image_memory(fine, images_at_once=_IMAGES_AT_ONCE)
    image, description = _object(source, fine, seed)
    clean = _project(scanner, fine, image)
    model = _noise_model(clean, noise, counts)
    # A stream of its own, so that the noise does not repeat the numbers of the phantom.
    rng = np.random.default_rng([seed, 1])
    return Scan(
        clean if model is None else model.sample(clean, rng),
        scanner,
        grid,
        noise=model,
        truth=_averaged(image, oversampling),
        truth_source=f"simulated object: {description}",
        metadata={
            "origin": "simulated",
            "object": description,
            "noise": "none" if model is None else model.describe(),
            "oversampling": str(oversampling),
            "seed": str(seed),
        },
        length_unit=geometry.length_unit if isinstance(geometry, Scan) else "mm",
    )


def example_scan(name: str, *, pixels: int | None = None, seed: int = 0) -> Scan:
    """An embedded example: ``"walnut"``, one slice of a walnut in the CWI cone-beam geometry.

    Args:
        name: which example.
        pixels: pixels along a side of the image; 501 by default.
        seed: of phantom and noise.

    Raises:
        ConfigurationError: an unknown example.
    """
    return simulate(EXAMPLE_PREFIX + name, pixels=pixels, seed=seed)


def _example(
    source: str | Path | np.ndarray, geometry: str | Scan | None
) -> tuple[str | Path | np.ndarray, str | Scan]:
    """The phantom of an example, and the geometry where none is chosen."""
    if not (isinstance(source, str) and source.startswith(EXAMPLE_PREFIX)):
        return source, "parallel" if geometry is None else geometry
    name = source.removeprefix(EXAMPLE_PREFIX)
    if name not in EXAMPLES:
        raise ConfigurationError(
            f"There is no example {name!r}; there are: "
            f"{', '.join(EXAMPLE_PREFIX + known for known in EXAMPLES)}."
        )
    return name, EXAMPLES[name] if geometry is None else geometry


def _scanner(geometry: str | Scan, pixels: int | None, views: int | None) -> tuple[Geometry, Grid]:
    if isinstance(geometry, str):
        # Before the geometry, which holds entries per view and column.
        check_image_memory(Grid((max(pixels or 1, 1),) * 2), images_at_once=_IMAGES_AT_ONCE)
        check_projection_memory(views or 1, 1)
        return nominal_scan(geometry, pixels=pixels, views=views)
    scan = geometry if views is None else geometry.equispaced_views(views)
    grid = scan.grid if pixels is None else scan.grid.resized(pixels)
    return scan.geometry, scan.with_grid(grid).grid


def _object(source: str | Path | np.ndarray, grid: Grid, seed: int) -> tuple[np.ndarray, str]:
    """The scanned object on a grid, 1/mm, and what it is."""
    if isinstance(source, np.ndarray):
        return _fitted(source.astype(np.float32), grid), f"array of shape {source.shape}"
    path = Path(source)
    # An unknown phantom's name goes to the catalogue, whose error names the close ones.
    if str(source) in phantom_names() or not (path.suffix or path.exists()):
        name = str(source)
        return make_phantom(name, grid, seed=seed), f"{name} phantom, seed {seed}"
    image = read_image(path, largest=default_peak(grid))
    return _fitted(image, grid), f"picture {path.name}"


def _fitted(image: np.ndarray, grid: Grid) -> np.ndarray:
    """Resample to the grid, keeping the aspect; what is left over is empty."""
    from skimage.transform import resize

    if not np.all(np.isfinite(image)):
        raise DataError("The image to scan holds NaN or infinite values; correct them first.")
    if image.ndim != grid.ndim:
        what = "an image (H, W)" if grid.ndim == 2 else "a volume (Z, H, W)"
        raise ConfigurationError(
            f"This geometry scans {what}; the source has shape {image.shape}. Choose another "
            f"geometry, or one of the readable sources ({', '.join(READABLE)}) with that shape."
        )
    factor = min(n / m for n, m in zip(grid.shape, image.shape, strict=True))
    shape = tuple(max(1, round(m * factor)) for m in image.shape)
    resized = resize(image, shape, order=1, anti_aliasing=factor < 1, preserve_range=True)
    out = np.zeros(grid.shape, dtype=np.float32)
    inner = tuple(
        slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(grid.shape, shape, strict=True)
    )
    out[inner] = resized
    return out


def _project(geometry: Geometry, grid: Grid, image: np.ndarray) -> np.ndarray:
    """Line integrals in float64, without a matrix of the whole scan."""
    transform = TracedRayTransform(geometry, grid, dtype=torch.float64)
    return transform(torch.from_numpy(image)[None].double()).numpy()


def _noise_model(
    clean: np.ndarray, noise: float | None, counts: float | None
) -> GaussianNoise | PoissonNoise | None:
    if counts is not None:
        return PoissonNoise(counts)
    std = float(noise or 0.0) * float(np.abs(clean).mean())
    return GaussianNoise(std) if std > 0 else None


def _averaged(image: np.ndarray, factor: int) -> np.ndarray:
    split = tuple(n for size in image.shape for n in (size // factor, factor))
    return image.reshape(split).mean(axis=tuple(range(1, 2 * image.ndim, 2)))
