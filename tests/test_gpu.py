"""The CPU's laws on a CUDA device: stored matrices, ASTRA's projectors, whole reconstructions."""

import pytest
import torch

from dipct.errors import ConfigurationError
from dipct.measurement.nominal import nominal_scan
from dipct.operator import ray_transform
from dipct.operator.checks import adjoint_mismatch, random_tensor
from dipct.pipeline import reconstruct, simulate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("kind", ["parallel", "fan", "cone", "cwi-walnut"])
def test_stored_matrices_do_the_same(kind):
    geometry, grid = nominal_scan(kind, pixels=16, views=9)
    on_cpu = ray_transform(geometry, grid)
    on_gpu = ray_transform(geometry, grid, device="cuda")
    x = random_tensor((2, *on_cpu.domain_shape), on_cpu, 0)
    torch.testing.assert_close(on_gpu(x.cuda()).cpu(), on_cpu(x), rtol=1e-5, atol=1e-4)
    assert adjoint_mismatch(on_gpu) <= 1e-5


@pytest.mark.parametrize("kind", ["parallel", "fan", "cone"])
def test_astra_agrees_and_tells_that_its_pair_is_not_matched(kind):
    pytest.importorskip("astra")
    geometry, grid = nominal_scan(kind, pixels=32, views=12)
    scan = simulate("discs", geometry=kind, pixels=32, views=12, noise=0, oversampling=1)
    exact = ray_transform(geometry, grid, projector="joseph")
    astra = ray_transform(geometry, grid, backend="astra", projector="joseph", device="cuda")
    # An asymmetric object: a flipped axis would differ by its whole size.
    x = torch.from_numpy(scan.truth)[None]
    difference = astra(x.cuda()).cpu() - exact(x)
    assert difference.norm() <= 0.02 * exact(x).norm()
    back = astra.adjoint(exact(x).cuda()).cpu() - exact.adjoint(exact(x))
    assert back.norm() <= 0.05 * exact.adjoint(exact(x)).norm()
    assert not astra.matched
    with pytest.raises(ConfigurationError, match="transpose"):
        reconstruct(scan, method="cgls", backend="astra", projector="joseph", device="cuda")


@pytest.mark.parametrize("method", ["fbp", "cgls", "sirt", "tv"])
def test_reconstructions_are_those_of_the_cpu(method):
    scan = simulate("shepp-logan", geometry="fan", pixels=32, views=20)
    extra = {"tv_weight": 3.0, "tolerance": 1e-4} if method == "tv" else {}
    on_cpu = reconstruct(scan, method=method, **extra).image
    on_gpu = reconstruct(scan, method=method, device="cuda", **extra).image
    assert abs(on_gpu - on_cpu).max() <= 5e-3 * on_cpu.max()
