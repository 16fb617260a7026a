"""The CPU's laws on a CUDA device: stored matrices, ASTRA's projectors, whole reconstructions."""

import warnings

import numpy as np
import pytest
import torch

from dipct import generator_of, pretrain, write_pretrained_network
from dipct.errors import ConfigurationError, Interrupted
from dipct.generator import NetworkGenerator, has_bfloat16, make_network
from dipct.generator.group_norm import group_norm
from dipct.measurement.nominal import nominal_scan
from dipct.operator import ray_transform
from dipct.operator.checks import adjoint_mismatch, random_tensor
from dipct.pipeline import quantify, reconstruct, simulate
from dipct.run import read_run, write_run
from dipct.solver import GeneratorFit
from dipct.solver.deep_image_prior import noise_input

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

NETWORKS = {"small": (28, 28), "128": (61, 40), "walnut": (70, 33)}
"""Networks with sizes of images, odd ones among them."""
DIP = {"method": "dip", "learning_rate": 3e-3, "tv_weight": 4.0}


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


def interrupt_after(monkeypatch, steps, kind=GeneratorFit):
    """Make a step raise KeyboardInterrupt once so many are complete; undo with the result."""
    original, done = kind.step, []

    def step(self, tensors):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(None)
        return original(self, tensors)

    monkeypatch.setattr(kind, "step", step)
    return lambda: monkeypatch.setattr(kind, "step", original)


@pytest.mark.parametrize("settings", [{"method": "sirt"}, {"method": "tv", "tv_weight": 3.0}])
def test_a_stopped_iteration_goes_on(settings, tmp_path, monkeypatch):
    from dipct.solver import SIRT, PrimalDualTV

    kind = {"sirt": SIRT, "tv": PrimalDualTV}[settings["method"]]
    scan = simulate("shepp-logan", geometry="fan", pixels=32, views=20)
    settings = settings | {"iterations": 60, "device": "cuda"}
    whole = reconstruct(scan, **settings)
    undo = interrupt_after(monkeypatch, 23, kind)
    with pytest.raises(Interrupted):
        reconstruct(scan, checkpoint=tmp_path / "state", **settings)
    undo()
    found = reconstruct(scan, checkpoint=tmp_path / "state", resume=True, **settings)
    assert list(found.history["iteration"]) == list(whole.history["iteration"])
    assert abs(found.image - whole.image).max() <= 1e-4 * whole.image.max()


# Networks


@pytest.fixture
def exact_convolutions():
    """Convolutions in float32 proper: by default cuDNN rounds their inputs to TF32, 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    with warnings.catch_warnings():
        # Some versions of torch prefer another name of the same switch.
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = False
        yield
        torch.backends.cudnn.allow_tf32 = before


def network_on_cpu(name, upsampling="bilinear", in_channels=1):
    """A network in float64 with parameters and an input that are far from symmetric."""
    shape = NETWORKS[name]
    network = make_network(name, upsampling=upsampling, in_channels=in_channels)
    z = noise_input((in_channels, *shape), 3) + torch.linspace(-1, 1, shape[1])
    generator = NetworkGenerator(network, z, shape)
    theta = generator.initial(5)
    return generator, theta + 0.02 * torch.from_numpy(noise(theta.shape, 6)).float()


def noise(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


def distance(one, other):
    """Relative, in double precision on the CPU."""
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_make_the_images_of_the_cpu(name, upsampling, exact_convolutions):
    generator, theta = network_on_cpu(name, upsampling, in_channels=2)
    expected = generator.to(dtype=torch.float64)(theta.double())
    moved = generator.to("cuda")
    found = moved(theta.cuda())
    assert found.is_cuda and found.dtype == torch.float32
    assert distance(found, expected) <= 1e-5
    assert distance(moved(1.01 * theta.cuda()), expected) > 1e-4
    in_double = generator.to("cuda", torch.float64)(theta.double().cuda())
    assert distance(in_double, expected) <= 1e-12
    batch = torch.stack([theta, 0.9 * theta]).cuda()
    assert distance(moved(batch)[0], expected) <= 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_default_arithmetic_is_near_that_of_the_cpu(name):
    # cuDNN's TF32 has the exponent of float32 and 10 bits of mantissa, bfloat16 7 bits.
    generator, theta = network_on_cpu(name)
    expected = generator.to(dtype=torch.float64)(theta.double())
    assert distance(generator.to("cuda")(theta.cuda()), expected) <= 5e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_near_float32_and_has_its_gradient(name):
    if not has_bfloat16(torch.device("cuda")):
        pytest.skip("this device has no bfloat16")
    generator, theta = network_on_cpu(name)
    generator, theta = generator.to("cuda"), theta.cuda()
    reduced = generator.with_precision("bfloat16")
    found = reduced(theta)
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert 0 < distance(found, generator(theta)) <= 0.05
    target = torch.from_numpy(noise(found.shape, 1)).float().cuda()
    gradients = []
    for each in (generator, reduced):
        point = theta.clone().requires_grad_()
        ((each(point) - target) ** 2).sum().backward()
        gradients.append(point.grad)
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert gradients[1].dtype == torch.float32 and cosine > 0.98


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_are_those_of_the_cpu(name, upsampling):
    generator, theta = network_on_cpu(name, upsampling)
    generator, theta = generator.to(dtype=torch.float64), theta.double()
    moved = generator.to("cuda")
    direction = torch.from_numpy(noise(theta.shape, 0))
    weights = torch.from_numpy(noise(generator.range_shape, 1))
    slope = generator.jvp(theta, direction)
    back = generator.vjp(theta, weights)
    assert distance(moved.jvp(theta.cuda(), direction.cuda()), slope) <= 1e-10
    assert distance(moved.vjp(theta.cuda(), weights.cuda()), back) <= 1e-10
    assert distance(moved.jvp(theta.cuda(), direction.cuda() + 1), slope) > 1e-6
    image, jacobian = moved.linearize(theta.cuda())
    assert distance(image, generator(theta)) <= 1e-12
    product = float((jacobian(direction.cuda()) * weights.cuda()).sum())
    assert product == pytest.approx(float(jacobian.adjoint(weights.cuda()) @ direction.cuda()))


# Deep Image Prior


@pytest.fixture(scope="module")
def fan():
    return simulate(
        "ellipses", geometry="fan", pixels=33, views=24, noise=0.05, seed=1, oversampling=1
    )


@pytest.mark.parametrize("kind", ["fbp", "both"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", ["small", "128"])
def test_dip_is_as_good_as_on_the_cpu(fan, network, precision, kind):
    if precision == "bfloat16" and not has_bfloat16(torch.device("cuda")):
        pytest.skip("this device has no bfloat16")
    settings = DIP | {"network": network, "iterations": 400, "input": kind}
    on_cpu = reconstruct(fan, precision="float32", **settings)
    on_gpu = reconstruct(fan, precision=precision, device="cuda", **settings)
    fbp = reconstruct(fan, method="fbp").metrics["psnr_db"]
    assert on_cpu.metrics["psnr_db"] > fbp + 3
    assert on_gpu.metrics["psnr_db"] > on_cpu.metrics["psnr_db"] - 1
    assert on_gpu.configuration["image_scale"] == pytest.approx(
        on_cpu.configuration["image_scale"], rel=1e-4
    )
    assert on_gpu.configuration["precision"] == precision
    # The first image owes nothing to chance.
    first = [run.history["psnr_db"][0] for run in (on_cpu, on_gpu)]
    assert first[1] == pytest.approx(first[0], abs=0.5)


@pytest.mark.parametrize("stopping", ["none", "discrepancy", "variance"])
@pytest.mark.parametrize("weight", [0.0, "auto"])
def test_every_way_of_stopping_and_weighing(fan, stopping, weight, tmp_path):
    extra = {"window": 10, "patience": 20} if stopping == "variance" else {}
    settings = DIP | {"tv_weight": weight, "network": "small", "iterations": 150} | extra
    run = reconstruct(fan, device="cuda", stopping=stopping, **settings)
    assert np.isfinite(run.image).all() and run.iterations > 20
    # What is recorded has the values, whatever the device they were computed on.
    lengths = {len(values) for values in run.history.values()}
    assert lengths == {len(run.history["iteration"])}
    write_run(run, tmp_path / "run.h5")
    found = read_run(tmp_path / "run.h5")
    np.testing.assert_array_equal(found.generator["theta"], run.generator["theta"])
    generator, theta, scale = generator_of(found)
    assert theta.device.type == generator.z.device.type == "cpu"
    image = scale * generator(theta)[0]
    assert distance(image, torch.from_numpy(run.image)) <= 0.05


def test_auto_takes_bfloat16_where_it_is(fan):
    settings = DIP | {"network": "128", "iterations": 5, "device": "cuda"}
    run = reconstruct(fan, **settings)
    expected = "bfloat16" if has_bfloat16(torch.device("cuda")) else "float32"
    assert run.configuration["precision"] == expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", ["small", "128"])
def test_a_stopped_network_goes_on_to_the_same_bits(fan, network, precision, tmp_path, monkeypatch):
    if precision == "bfloat16" and not has_bfloat16(torch.device("cuda")):
        pytest.skip("this device has no bfloat16")
    settings = DIP | {
        "network": network,
        "precision": precision,
        "upsampling": "nearest",
        "iterations": 65,
        "device": "cuda",
    }
    whole = reconstruct(fan, **settings)
    # If this fails, it is not resuming but an operation whose order of sums is left to chance.
    again = reconstruct(fan, **settings)
    np.testing.assert_array_equal(again.image, whole.image)
    undo = interrupt_after(monkeypatch, 33)
    with pytest.raises(Interrupted, match="33 iterations"):
        reconstruct(fan, checkpoint=tmp_path / "state", **settings)
    undo()
    found = reconstruct(fan, checkpoint=tmp_path / "state", resume=True, **settings)
    np.testing.assert_array_equal(found.image, whole.image)
    np.testing.assert_array_equal(found.generator["theta"], whole.generator["theta"])
    assert found.history.keys() == whole.history.keys()
    for name in whole.history:
        np.testing.assert_array_equal(found.history[name], whole.history[name])


def test_a_stopped_network_goes_on_with_bilinear_interpolation(fan, tmp_path, monkeypatch):
    settings = DIP | {"network": "small", "iterations": 200, "device": "cuda"}
    whole = reconstruct(fan, **settings)
    undo = interrupt_after(monkeypatch, 33)
    with pytest.raises(Interrupted):
        reconstruct(fan, checkpoint=tmp_path / "state", **settings)
    undo()
    found = reconstruct(fan, checkpoint=tmp_path / "state", resume=True, **settings)
    # The same up to the order of sums, which the descent makes larger.
    assert found.metrics["psnr_db"] == pytest.approx(whole.metrics["psnr_db"], abs=1)
    assert list(found.history["iteration"]) == list(whole.history["iteration"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_large_network_at_its_size(precision):
    if precision == "bfloat16" and not has_bfloat16(torch.device("cuda")):
        pytest.skip("this device has no bfloat16")
    scan = simulate("walnut", geometry="fan", pixels=501, views=20, noise=0.05, oversampling=1)
    settings = DIP | {"precision": precision, "device": "cuda", "stopping": "discrepancy"}
    run = reconstruct(scan, iterations=3, **settings)
    assert run.configuration["network"] == "walnut"
    assert run.generator["theta"].shape == (2_973_880,)
    assert run.image.shape == (501, 501) and np.isfinite(run.image).all()
    assert np.isfinite(run.history["objective"]).all()
    np.testing.assert_array_equal(run.history["iteration"], [0, 3])
    assert run.history["objective"][1] != run.history["objective"][0]
    generator, theta, scale = generator_of(run)
    moved = generator.to("cuda").with_precision(precision)
    image = (scale * moved(theta.cuda()))[0]
    assert distance(image, torch.from_numpy(run.image)) <= 1e-3


# Pretraining


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_group_norm_is_that_of_the_cpu(dtype):
    x = torch.from_numpy(noise((2, 8, 33, 20), 0)) + torch.arange(8.0)[:, None, None]
    weight, bias = torch.from_numpy(noise((2, 8), 1))
    expected = group_norm(x, 2, weight, bias)
    found = group_norm(
        *(part.to("cuda", dtype) for part in (x,)),
        2,
        weight.to("cuda", dtype),
        bias.to("cuda", dtype),
    )
    allowed = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert distance(found, expected) <= allowed
    assert distance(found, group_norm(x, 4, weight, bias)) > 0.05


TRAINING = {
    "network": "small",
    "batch": 4,
    "learning_rate": 5e-3,
    "validation_images": 4,
    "validate_every": 20,
    "snapshots": 20,
}


@pytest.mark.parametrize("workers", [0, 2])
def test_pretraining_learns_as_on_the_cpu(fan, workers):
    settings = TRAINING | {"steps": 100, "precision": "float32"}
    on_cpu = pretrain(fan, **settings)
    on_gpu = pretrain(fan, device="cuda", workers=workers, **settings)
    assert on_gpu.fbp_psnr_db == pytest.approx(on_cpu.fbp_psnr_db, abs=1e-3)
    first = [each.history["validation_psnr_db"][0] for each in (on_cpu, on_gpu)]
    assert first[1] == pytest.approx(first[0], abs=0.05)
    assert on_gpu.validation_psnr_db > first[0] + 3
    assert on_gpu.validation_psnr_db == pytest.approx(on_cpu.validation_psnr_db, abs=1)
    assert on_gpu.snapshots.thetas.shape == on_cpu.snapshots.thetas.shape


@pytest.mark.parametrize("parameters", ["all", "subspace", "singular-values"])
@pytest.mark.parametrize("optimiser", ["adam", "l-bfgs", "natural-gradient"])
def test_every_fine_tuning_lowers_the_objective(fan, parameters, optimiser, tmp_path):
    if (parameters, optimiser) == ("all", "natural-gradient"):
        pytest.skip("the natural gradient is for few parameters")
    network = pretrain(fan, device="cuda", steps=60, **TRAINING)
    write_pretrained_network(network, tmp_path / "net.h5")
    extra = {"dimension": 15} if parameters == "subspace" else {}
    run = reconstruct(
        fan,
        method="edip",
        init=str(tmp_path / "net.h5"),
        parameters=parameters,
        optimiser=optimiser,
        iterations=12,
        stopping="none",
        tv_weight=4.0,
        device="cuda",
        **extra,
    )
    assert run.history["objective"][-1] < run.history["objective"][0]
    generator, theta, scale = generator_of(run)
    image = scale * generator(theta)[0]
    assert distance(image, torch.from_numpy(run.image)) <= 0.05


@pytest.fixture(scope="module")
def fitted():
    scan = simulate("shepp-logan", pixels=16, views=6)
    return reconstruct(
        scan, method="dip", iterations=400, tv_weight=1.0, stopping="none", precision="float32"
    )


@pytest.mark.parametrize(
    "settings", [{}, {"storage": "memory"}, {"storage": "host"}, {"prior": "g"}], ids=str
)
def test_uncertainty_is_that_of_the_cpu(fitted, settings):
    settings = {"tv_prior": False, "draws": 2000, **settings}
    there = "memory" if settings.get("storage") == "host" else settings.get("storage", "auto")
    on_cpu = quantify(fitted, **settings | {"storage": there}).uncertainty
    on_gpu = quantify(fitted, device="cuda", **settings).uncertainty
    assert on_gpu.log_evidence == pytest.approx(on_cpu.log_evidence, abs=0.5)
    assert on_gpu.std.mean() == pytest.approx(on_cpu.std.mean(), rel=0.1)


@pytest.mark.parametrize("evidence", ["stochastic", "em"])
def test_other_tuners_run(fitted, evidence):
    found = quantify(
        fitted, device="cuda", evidence=evidence, iterations=10, draws=64, samples=4
    ).uncertainty
    assert np.isfinite(found.std).all()
    assert found.samples.shape == (4, 16, 16)
