"""What a scanner makes of drawn pictures: sinograms with noise, and what is made of those."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dipct.errors import ConfigurationError, DataError, ShapeError
from dipct.measurement.geometry import Geometry
from dipct.measurement.grid import Grid
from dipct.measurement.noise import GaussianNoise
from dipct.measurement.nominal import nominal_scan
from dipct.operator import LinearOperator, ray_transform
from dipct.operator.filtered_backprojection import FilteredBackProjection
from dipct.phantom import Scene
from dipct.pretrain.seeds import check_whole
from dipct.shapes import check_shape

SceneGeometry = Literal["parallel", "fan"]
"""Geometries of slices whose detector sees all of the picture."""


@dataclass(frozen=True, eq=False)
class ScannedScenes:
    """Scans of pictures, all in one geometry.

    A picture x [1 H W] agrees with scan n where ``||A x - y||^2 / std[n]^2`` is about as large as
    the number of measured values A D; ``A`` is the operator and ``y`` are projections n.

    Attributes:
        projections: with noise, float32 [N A D].
        reconstructions: filtered back-projections, float32 [N 1 H W]: on the scale of the
            pictures, but streaks and noise may go below zero and above one.
        std: standard deviation of the noise of every scan, float32 [N]; 0 without noise.
        operator: the ray transform, from [1 H W] to [A D].
        geometry: the scan.
        grid: where the pixels lie.
    """

    projections: Tensor
    reconstructions: Tensor
    std: Tensor
    operator: LinearOperator
    geometry: Geometry
    grid: Grid


def scan_scenes(
    scenes: Sequence[Scene] | np.ndarray,
    geometry: SceneGeometry = "parallel",
    *,
    views: int = 30,
    noise: float = 0.02,
    seed: int = 0,
) -> ScannedScenes:
    """Scan grey pictures and reconstruct them.

    Values of the pictures are taken as attenuation in 1/mm. The projections are made by the very
    matrix that is handed on: pictures are drawn in no finer pixels than they are reconstructed
    in.

    Args:
        scenes: grey pictures, or an array [N 1 H H] of them.
        geometry: see :func:`dipct.measurement.nominal.nominal_scan`.
        views: equispaced views.
        noise: standard deviation of white noise as a share of the mean absolute line integral of
            each picture; 0 for none.
        seed: of the noise. That of a picture depends on its number and the seed alone.

    Returns:
        Scans and reconstructions.

    Raises:
        ShapeError: pictures in colour, not square or of several sizes.
        DataError: values that are not finite.
        ConfigurationError: no picture, another geometry or impossible numbers.
    """
    images = _images(scenes)
    if geometry not in get_args(SceneGeometry):
        raise ConfigurationError(
            f"geometry must be {' or '.join(get_args(SceneGeometry))}; got {geometry!r}."
        )
    if not 0 <= noise < math.inf:
        raise ConfigurationError(
            f"noise must be a share of the mean line integral, 0 or larger; got {noise}."
        )
    check_whole(seed, "seed")
    scanner, grid = nominal_scan(geometry, pixels=images.shape[-1], views=views)
    operator, inverse = ray_transform(scanner, grid), FilteredBackProjection(scanner, grid)
    clean = operator(images)
    std = noise * clean.abs().mean((1, 2))
    # A stream of its own: with two numbers the noise would repeat those of the picture.
    noisy = [_noisy(clean[i], float(std[i]), [seed, i, 1]) for i in range(len(std))]
    projections = torch.stack(noisy)
    return ScannedScenes(projections, inverse(projections), std, operator, scanner, grid)


def _images(scenes: Sequence[Scene] | np.ndarray) -> Tensor:
    """The pictures as a tensor [N 1 H H]."""
    if not len(scenes):
        raise ConfigurationError("There is no picture to scan; give at least one.")
    if not isinstance(scenes, np.ndarray):
        shapes = sorted({scene.image.shape for scene in scenes})
        if len(shapes) > 1:
            raise ShapeError(f"Pictures to scan must have one shape; got {shapes}.")
        scenes = np.stack([scene.image for scene in scenes])
    check_shape(
        scenes, "N 1 H H", name="Pictures to scan", advice="Only square grey ones are scanned."
    )
    if not np.all(np.isfinite(scenes)):
        raise DataError("The pictures to scan hold NaN or infinite values; correct them first.")
    return torch.from_numpy(scenes.astype(np.float32))


def _noisy(clean: Tensor, std: float, seed: list[int]) -> Tensor:
    """One scan with noise; that of an empty picture has none."""
    if std == 0:
        return clean
    noisy = GaussianNoise(std).sample(clean.numpy(), np.random.default_rng(seed))
    return torch.from_numpy(noisy).to(clean)
