"""Small simulated scans of every kind, for the tests of the pipeline and the command line."""

import numpy as np

from dipct import GaussianNoise, Grid, MatrixGeometry, Scan, simulate
from dipct.operator.ray_tracing import assemble_matrix

# Odd, so that no ray runs along the border of pixels, where projectors may take either side.
PIXELS = {"parallel": 25, "fan": 25, "cone": 13, "cwi-walnut": 25}


def small_scan(kind="parallel", *, source="discs", views=16, noise=0.02, seed=0, **options):
    """A scan without discretisation error, so that its noise model is exact."""
    options = {"pixels": PIXELS[kind], "oversampling": 1} | options
    return simulate(source, geometry=kind, views=views, noise=noise, seed=seed, **options)


def matrix_scan(scan):
    """The same scan, told by its system matrix alone."""
    matrix = assemble_matrix(scan.geometry, scan.grid)
    geometry = MatrixGeometry(matrix, scan.geometry.detector_shape[-1], scan.geometry.angles)
    return Scan(
        scan.projections,
        geometry,
        scan.grid,
        noise=scan.noise,
        truth=scan.truth,
        truth_source=scan.truth_source,
        length_unit=scan.length_unit,
    )


def pixel_scan(n=21, views=12):
    """A scan that does not tell the size of its pixels, with its truth in 1/pixel."""
    grid = Grid((n, n))
    made = simulate("discs", pixels=n, views=views, noise=0, oversampling=1)
    size = made.grid.pixel_size
    geometry = type(made.geometry)(
        made.geometry.angles, made.geometry.n_columns, made.geometry.column_spacing / size
    )
    rng = np.random.default_rng(3)
    clean = made.projections
    return Scan(
        clean + 0.01 * rng.standard_normal(clean.shape),
        geometry,
        grid,
        noise=GaussianNoise(0.01),
        truth=made.truth * size,
        truth_source="simulated",
        length_unit="pixel",
    )
