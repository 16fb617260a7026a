"""The quarter of a symmetric scan's matrix does what the whole one does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from catalogue import SYMMETRIC

from dipct.errors import GeometryError
from dipct.measurement import (
    FanGeometry,
    Grid,
    VectorGeometry,
)
from dipct.measurement.nominal import cwi_walnut_slice, nominal_scan
from dipct.operator import RayTransform, SymmetricRayTransform, ray_transform
from dipct.operator.symmetric_ray import quarter_turn

F64 = torch.float64


@pytest.mark.parametrize("projector", ["siddon", "joseph"])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_equals_the_whole_matrix_and_stores_a_quarter(name, projector):
    geometry, grid = SYMMETRIC[name]
    whole = RayTransform(geometry, grid, projector=projector, dtype=F64)
    quarter = SymmetricRayTransform(geometry, grid, projector=projector, dtype=F64)
    torch.testing.assert_close(quarter.to_matrix(), whole.to_matrix(), rtol=0, atol=1e-12)
    middle = grid.n_pixels if grid.shape[-1] % 2 else 0
    assert 4 * quarter.n_nonzeros <= whole.n_nonzeros + 3 * middle * geometry.n_views


def test_the_permutation_is_the_quarter_turn():
    for geometry, grid in SYMMETRIC.values():
        whole = RayTransform(geometry, grid, dtype=F64)
        x = torch.rand(grid.image_shape, dtype=F64)
        turn = torch.from_numpy(quarter_turn(geometry, grid))
        turned = whole(torch.rot90(x, -1, (-2, -1))).flatten()
        torch.testing.assert_close(whole(x).flatten()[turn], turned)
        wrong_way = whole(torch.rot90(x, 1, (-2, -1))).flatten()
        assert (whole(x).flatten()[turn] - wrong_way).norm() > 0.01 * wrong_way.norm()


@pytest.mark.parametrize("n", [16, 17])
@pytest.mark.parametrize("kind", ["parallel", "fan", "cone"])
def test_rays_along_borders_are_shared_the_same_way(kind, n):
    # Nominal scans have a ray in the middle of the detector, along a border where n is even.
    geometry, grid = nominal_scan(kind, pixels=n if kind != "cone" else n - 8, views=8)
    whole = RayTransform(geometry, grid, dtype=F64)
    quarter = SymmetricRayTransform(geometry, grid, dtype=F64)
    x = torch.rand(grid.image_shape, dtype=F64)
    torch.testing.assert_close(quarter(x), whole(x), rtol=1e-10, atol=1e-10)


def _moved(vectors):
    vectors[1, 0] += 1e-4
    return vectors


FAN, GRID = SYMMETRIC["fan, even"]
HALF = SYMMETRIC["parallel, half a turn"][0]


@pytest.mark.parametrize(
    ("geometry", "grid"),
    [
        (FAN, Grid((6, 7), 1.3)),
        (FAN, Grid((6, 6), 1.3, (0.0, 0.01))),
        (replace(FAN, angles=FAN.angles[:3]), GRID),
        (replace(FAN, angles=FAN.angles + np.array([0, 0, 0, 1e-6])), GRID),
        (replace(FAN, angles=np.append(FAN.angles, FAN.angles[0] + 2 * np.pi)), GRID),
        (replace(HALF, column_offset=0.1), GRID),
        (FanGeometry(HALF.angles, 9, 1.9, 40.0, 25.0), GRID),
        (VectorGeometry(_moved(FAN.vectors()), 1, 9, "cone", True), GRID),
    ],
    ids=[
        "not square",
        "off centre",
        "three views",
        "one view turned",
        "closing view",
        "half a turn with an offset",
        "fan over half a turn",
        "one source moved",
    ],
)
def test_scans_without_the_symmetry_are_left_whole(geometry, grid):
    assert quarter_turn(geometry, grid) is None
    assert isinstance(ray_transform(geometry, grid), RayTransform)
    with pytest.raises(GeometryError, match="RayTransform"):
        SymmetricRayTransform(geometry, grid)


@pytest.mark.parametrize("kind", ["parallel", "fan", "cone"])
def test_nominal_scans_have_the_symmetry(kind):
    geometry, grid = nominal_scan(kind, pixels=8, views=4)
    assert isinstance(ray_transform(geometry, grid), SymmetricRayTransform)


def test_vectors_and_slices_with_the_symmetry_are_found():
    vectors = VectorGeometry(FAN.vectors(), 1, 9, "cone", True)
    assert isinstance(ray_transform(vectors, GRID), SymmetricRayTransform)
    walnut, grid = cwi_walnut_slice(8), Grid((9, 9), 5.0)
    quarter = SymmetricRayTransform(walnut, grid, dtype=F64)
    whole = RayTransform(walnut, grid, dtype=F64)
    torch.testing.assert_close(quarter.to_matrix(), whole.to_matrix(), rtol=0, atol=1e-10)
    other_row = walnut.rows.copy()
    other_row[3, 5] -= 1
    assert quarter_turn(replace(walnut, rows=other_row), grid) is None


def test_the_cache_serves_both(tmp_path):
    first = SymmetricRayTransform(FAN, GRID, dtype=F64, cache=tmp_path)
    whole = RayTransform(FAN, GRID, dtype=F64, cache=tmp_path)
    again = SymmetricRayTransform(FAN, GRID, dtype=F64, cache=tmp_path)
    # The quadrant and the whole matrix.
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(first.to_matrix(), again.to_matrix())
    torch.testing.assert_close(whole.to_matrix(), first.to_matrix(), rtol=0, atol=1e-12)
