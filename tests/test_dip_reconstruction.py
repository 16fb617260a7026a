"""The method dip of reconstruct from end to end; test_gpu.py has its cases on a CUDA device."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from small_scans import matrix_scan, pixel_scan, small_scan
from test_pipeline import in_centimetres

from dipct import (
    GaussianNoise,
    Grid,
    RayTransform,
    Scan,
    generator_of,
    read_run,
    reconstruct,
    write_run,
)
from dipct.errors import (
    ConfigurationError,
    DataError,
    DeviceUnavailableError,
    GeometryError,
    InsufficientMemoryError,
    Interrupted,
    ShapeError,
)
from dipct.evaluation import psnr
from dipct.generator import has_bfloat16
from dipct.measurement.preprocessing import estimate_noise_std
from dipct.operator.filtered_backprojection import FilteredBackProjection
from dipct.solver import CGLS, GeneratorFit, iterate
from dipct.solver.deep_image_prior import noise_input

CPU = torch.device("cpu")
FAST = {
    "network": "small",
    "precision": "float32",
    "learning_rate": 5e-3,
    "tv_weight": 4.0,
    "iterations": 30,
    "stopping": "none",
}
"""Enough to see what a setting does; not enough for a good image."""


def dip(scan, **settings):
    return reconstruct(scan, method="dip", **FAST | settings)


def same_result(one, other):
    return np.array_equal(one.image, other.image) and all(
        np.array_equal(one.generator[name], other.generator[name]) for name in ("theta", "input")
    )


def residual(run):
    """Projections of the image less those measured, in standard deviations."""
    image = torch.from_numpy(run.image)[None]
    projections = RayTransform(run.scan.geometry, run.scan.grid)(image).numpy()
    std = run.scan.noise.std_of(run.scan.projections)
    return (projections.astype(np.float64) - run.scan.projections) / std


def objective(run):
    """What dip minimises, worked out from the run file's contents alone."""
    image = run.image.astype(np.float64) / run.configuration["image_scale"]
    variation = np.abs(np.diff(image, axis=0)).sum() + np.abs(np.diff(image, axis=1)).sum()
    return np.sum(residual(run) ** 2) / 2 + run.configuration["tv_weight"] * variation


@pytest.fixture(scope="module")
def scan():
    return small_scan("fan", source="ellipses", noise=0.05)


@pytest.fixture(scope="module")
def tiny():
    """Where the image does not matter."""
    return small_scan("fan", source="ellipses", noise=0.05, pixels=17, views=14)


@pytest.fixture(scope="module")
def noisy():
    return small_scan("fan", source="ellipses", noise=0.3, pixels=17, views=14)


@pytest.fixture(scope="module")
def run(scan):
    return dip(scan, iterations=200)


@pytest.fixture(scope="module")
def short(tiny):
    return dip(tiny)


# The image


def test_the_image_is_better_than_filtered_back_projection(scan, run):
    fbp = reconstruct(scan, method="fbp").metrics["psnr_db"]
    assert run.image.shape == scan.grid.shape and run.image.dtype == np.float32
    assert run.metrics["psnr_db"] > fbp + 4
    assert dip(scan, iterations=10).metrics["psnr_db"] < fbp
    assert (run.status, run.iterations) == ("MAX_ITERATIONS", 200) and run.advice
    np.testing.assert_array_equal(run.history["iteration"], range(0, 201, 20))
    assert all(len(values) == 11 for values in run.history.values())


def test_the_network_with_normalisation_too(scan):
    run = dip(scan, network="128", output="identity", learning_rate=1e-3, iterations=90)
    fbp = reconstruct(scan, method="fbp").metrics["psnr_db"]
    assert run.metrics["psnr_db"] > fbp + 1
    assert run.configuration["output"] == "identity"
    assert run.generator["theta"].shape == (451_694,)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parallel", "fan", "cwi-walnut"])
def test_the_defaults_reconstruct_a_noisy_scan(kind):
    scan = small_scan(kind, source="ellipses", noise=0.1, pixels=32, views=20)
    run = reconstruct(scan, method="dip")
    assert run.configuration["network"] == "small" and run.iterations == 3000
    assert run.metrics["psnr_db"] > reconstruct(scan, method="fbp").metrics["psnr_db"] + 3
    assert run.metrics["psnr_db"] > reconstruct(scan, method="cgls").metrics["psnr_db"] + 2


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("weight", [0.0, 4.0, 40.0])
def test_the_result_is_that_of_the_lowest_objective(tiny, weight, isotropic):
    run = dip(tiny, tv_weight=weight, isotropic=isotropic, iterations=40)
    assert run.configuration["isotropic"] is isotropic
    assert run.metrics["reduced_chi_squared"] == pytest.approx(np.mean(residual(run) ** 2))
    history = run.history
    expected = history["fidelity"] + weight * history["total_variation"]
    np.testing.assert_allclose(history["objective"], expected, rtol=1e-5)
    size = tiny.projections.size
    np.testing.assert_allclose(history["discrepancy"], 2 * history["fidelity"] / size, rtol=1e-5)
    # The last parameters have not been offered: the choice is among those before the last step.
    assert history["chosen_step"][-1] < 40
    if not isotropic:
        assert objective(run) <= history["objective"][:-1].min() * (1 + 1e-4)
        wrong = replace(run, configuration={**run.configuration, "tv_weight": weight + 1})
        assert objective(wrong) > objective(run) * (1 + 1e-4)


def test_the_history_begins_with_the_first_image(tiny, short):
    generator, _, scale = generator_of(short)
    image = (scale * generator(generator.initial(0)))[0].numpy()
    assert short.history["psnr_db"][0] == pytest.approx(psnr(image, tiny.truth), abs=1e-9)
    other = (scale * generator(generator.initial(1)))[0].numpy()
    assert short.history["psnr_db"][0] != pytest.approx(psnr(other, tiny.truth), abs=1e-3)


def test_total_variation_makes_images_smoother(tiny):
    def variation(weight):
        image = dip(tiny, tv_weight=weight, iterations=200).image
        return np.abs(np.diff(image, axis=0)).sum() + np.abs(np.diff(image, axis=1)).sum()

    rough, smooth = variation(0.0), variation(1000.0)
    assert smooth < 0.8 * rough


# The run file and the way back to the network


def test_a_run_file_keeps_the_generator(run, scan, tmp_path):
    write_run(run, tmp_path / "run.h5")
    found = read_run(tmp_path / "run.h5")
    assert set(found.generator) == {"theta", "input"} and same_result(run, found)
    assert found.generator["theta"].dtype == found.generator["input"].dtype == np.float32
    assert found.configuration == run.configuration
    for name in run.history:
        np.testing.assert_array_equal(found.history[name], run.history[name])
    for each in (run, found):
        generator, theta, scale = generator_of(each)
        assert theta.shape == (generator.n_parameters,) == (76_905,)
        np.testing.assert_array_equal((scale * generator(theta))[0].numpy(), run.image)
        changed = (scale * generator(1.01 * theta))[0].numpy()
        assert np.abs(changed - run.image).max() > 1e-3 * run.image.max()


def test_only_networks_leave_a_generator(tiny, tmp_path):
    for method, settings in (("fbp", {}), ("sirt", {"iterations": 3}), ("tv", {"iterations": 3})):
        other = reconstruct(tiny, method=method, **settings)
        write_run(other, tmp_path / "run.h5")
        for each in (other, read_run(tmp_path / "run.h5")):
            assert not each.generator
            with pytest.raises(ConfigurationError, match=f"method {method} has no generator.*dip"):
                generator_of(each)


def test_the_generator_has_derivatives(short):
    generator, theta, _ = generator_of(short)
    exact, point = generator.to(dtype=torch.float64), theta.double()
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(theta.shape))
    image, jacobian = exact.linearize(point)
    # Short enough to stay on one side of nearly every kink of the activations.
    step = 1e-8
    difference = (exact(point + step * direction) - exact(point - step * direction)) / (2 * step)
    slope = jacobian(direction)
    assert (slope - difference).norm() <= 1e-4 * slope.norm()
    weights = torch.from_numpy(np.random.default_rng(1).standard_normal(image.shape))
    back = jacobian.adjoint(weights)
    assert float(weights.flatten() @ slope.flatten()) == pytest.approx(float(back @ direction))


@pytest.mark.parametrize(
    "settings",
    [
        {"input": "both", "output": "identity", "upsampling": "nearest"},
        {"tv_weight": "auto", "views": 7, "bin": 2, "pixels": 16, "seed": 3},
        {"tv_weight": "discrepancy"},
        {"stopping": "variance", "window": 4, "patience": 7, "decay": False},
        {"stopping": "discrepancy", "isotropic": True, "input": "noise"},
    ],
    ids=str,
)
def test_the_recorded_settings_give_the_same_bits(tiny, settings, tmp_path):
    run = dip(tiny, **settings)
    again = reconstruct(run.scan, **run.settings)
    assert same_result(run, again) and again.configuration["network"] == "small"
    selections = ("views", "pixels", "bin")
    one, other = (
        {name: value for name, value in each.configuration.items() if name not in selections}
        for each in (run, again)
    )
    assert one == other
    for name in run.history:
        np.testing.assert_array_equal(run.history[name], again.history[name])
    write_run(run, tmp_path / "run.h5")
    found = read_run(tmp_path / "run.h5")
    assert found.settings == run.settings
    other = {"iterations": 2, "seed": 4}
    assert not same_result(run, reconstruct(run.scan, **run.settings | other))


# Inputs


def test_inputs_are_what_they_are_called(tiny):
    runs = {kind: dip(tiny, input=kind, iterations=2) for kind in ("noise", "fbp", "both")}
    noise = noise_input((1, 17, 17), 0).numpy()
    data = torch.from_numpy(tiny.projections)
    fbp = FilteredBackProjection(tiny.geometry, tiny.grid)(data).numpy()
    fbp = fbp / runs["fbp"].configuration["image_scale"]
    np.testing.assert_array_equal(runs["noise"].generator["input"], noise)
    np.testing.assert_allclose(runs["fbp"].generator["input"], fbp, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        runs["both"].generator["input"],
        np.concatenate([runs[kind].generator["input"] for kind in ("noise", "fbp")]),
    )
    assert np.abs(fbp).max() < 5
    for kind, each in runs.items():
        generator, theta, scale = generator_of(each)
        assert generator.network.in_channels == (2 if kind == "both" else 1)
        np.testing.assert_array_equal((scale * generator(theta))[0].numpy(), each.image)


@pytest.mark.parametrize("kind", ["noise", "both"])
def test_every_input_leads_to_an_image(scan, kind):
    fbp = reconstruct(scan, method="fbp").metrics["psnr_db"]
    assert dip(scan, input=kind, iterations=300).metrics["psnr_db"] > fbp + 2


def test_a_scan_by_matrix_takes_noise(tiny):
    told = matrix_scan(tiny)
    for kind in ("fbp", "both"):
        with pytest.raises(ConfigurationError, match=r"system matrix.*Use input noise"):
            dip(told, input=kind)
    run = dip(told, input="noise")
    other = dip(tiny, input="noise")
    np.testing.assert_allclose(run.image, other.image, atol=1e-3 * other.image.max())


# Units


def scaled(scan, factor):
    """A fan scan with all lengths times a factor."""
    lengths = ("column_spacing", "source_origin", "origin_detector")
    changed = {name: factor * getattr(scan.geometry, name) for name in lengths}
    return Scan(
        scan.projections,
        replace(scan.geometry, **changed),
        Grid(scan.grid.shape, factor * scan.grid.pixel_size),
        noise=scan.noise,
        truth=scan.truth / factor,
        truth_source=scan.truth_source,
    )


@pytest.mark.parametrize(("kind", "weight"), [("noise", 4.0), ("both", "auto")])
def test_units_of_length_change_nothing(tiny, kind, weight):
    settings = {"input": kind, "tv_weight": weight}
    run = dip(tiny, **settings)
    # A power of two changes no rounding.
    for factor in (8, 1 / 1024):
        found = dip(scaled(tiny, 1 / factor), **settings)
        np.testing.assert_array_equal(found.generator["theta"], run.generator["theta"])
        np.testing.assert_array_equal(found.image / np.float32(factor), run.image)
        assert found.configuration["image_scale"] == factor * run.configuration["image_scale"]
        assert found.configuration["tv_weight"] == run.configuration["tv_weight"]
        assert found.metrics["psnr_db"] == pytest.approx(run.metrics["psnr_db"], abs=1e-4)
    found = dip(in_centimetres(tiny), **settings)
    np.testing.assert_allclose(found.generator["theta"], run.generator["theta"], atol=1e-3)
    np.testing.assert_allclose(found.image / 10, run.image, atol=1e-2 * run.image.max())
    assert found.configuration["tv_weight"] == pytest.approx(run.configuration["tv_weight"], 1e-3)
    # A size in pixels is no unit of length.
    coarser = dip(tiny, **settings | {"pixels": 16, "tv_weight": 4.0})
    assert not np.allclose(coarser.generator["theta"], run.generator["theta"], atol=1e-3)


# Stopping


def test_stopping_at_the_noise_level(noisy):
    settings = {"stopping": "discrepancy", "tv_weight": 0.0, "iterations": 300}
    run = dip(noisy, **settings)
    assert run.status == "DISCREPANCY_REACHED" and "noise level" in run.advice
    assert 0.8 < run.metrics["reduced_chi_squared"] <= 1
    steps = int(run.history["chosen_step"][-1])
    assert steps < run.iterations <= steps + 20 < 300
    np.testing.assert_array_equal(
        run.history["reached_noise_level"], [0.0] * (len(run.history["iteration"]) - 1) + [1.0]
    )
    assert (run.history["discrepancy"][run.history["iteration"] < steps] > 1).all()
    # Noise told to be smaller is reached later.
    smaller = replace(noisy, noise=GaussianNoise(0.8 * noisy.noise.std))
    assert dip(smaller, **settings).history["chosen_step"][-1] > steps


def test_a_noise_level_that_is_not_reached(tiny):
    run = dip(tiny, stopping="discrepancy", iterations=25)
    assert (run.status, run.iterations) == ("MAX_ITERATIONS", 25)
    assert run.metrics["reduced_chi_squared"] > 1 and not run.history["reached_noise_level"].any()
    # The lowest objective, which the last need not have.
    assert same_result(run, dip(tiny, iterations=25))


def test_stopping_where_the_images_change_least(tiny):
    settings = {"stopping": "variance", "output": "identity", "decay": False, "iterations": 250}
    run = dip(tiny, window=20, patience=20, **settings)
    assert run.status == "SETTLED" and "change least" in run.advice
    steps = int(run.history["chosen_step"][-1])
    assert 20 <= run.iterations - 1 - steps < 20 + 20
    assert (run.configuration["window"], run.configuration["patience"]) == (20, 20)
    assert run.history["steps_since_minimum"][-1] == run.iterations - 1 - steps
    longer = dip(tiny, window=20, patience=60, **settings)
    assert longer.iterations > run.iterations
    assert not same_result(
        longer, dip(tiny, window=5, patience=60, **settings | {"iterations": 400})
    )


def test_rules_of_stopping_do_not_change_the_course(tiny, short):
    constant = dip(tiny, decay=False)
    for rule, same in (("variance", constant), ("discrepancy", short)):
        other = dip(tiny, stopping=rule)
        for name in ("objective", "fidelity", "psnr_db"):
            np.testing.assert_array_equal(other.history[name], same.history[name])


# The weight of total variation


def test_a_number_is_the_weight(tiny):
    for weight in (0, 3, 7.5):
        run = dip(tiny, tv_weight=weight, iterations=5)
        assert run.configuration["tv_weight"] == weight
        assert run.configuration["tv_weight_chosen_by"] == "setting"
        assert "discrepancy_target" not in run.configuration
    assert run.settings["tv_weight"] == 7.5


def test_the_weight_is_that_of_total_variation(noisy):
    chosen = reconstruct(noisy, method="tv", tv_weight="discrepancy", iterations=2).configuration
    for wanted in ("auto", "discrepancy"):
        run = dip(noisy, tv_weight=wanted, iterations=5)
        assert run.configuration["tv_weight_chosen_by"] == wanted == run.settings["tv_weight"]
        for name in ("tv_weight", "discrepancy_target", "image_scale", "data_term"):
            assert run.configuration[name] == chosen[name]
    assert chosen["tv_weight"] > 2
    number = dip(noisy, tv_weight=chosen["tv_weight"], iterations=5)
    assert same_result(run, number)


def test_a_weight_too_small_to_be_right_is_raised(noisy, caplog):
    underestimated = replace(noisy, noise=GaussianNoise(0.8 * noisy.noise.std))
    found = dip(underestimated, tv_weight="discrepancy")
    assert 0 < found.configuration["tv_weight"] < 2
    with caplog.at_level("INFO", logger="dipct"):
        raised = dip(underestimated, tv_weight="auto")
    assert "weight raised to 2" in caplog.text
    assert raised.configuration["tv_weight"] == 2
    assert raised.configuration["tv_weight_chosen_by"] == raised.settings["tv_weight"] == "auto"
    assert same_result(raised, dip(underestimated, tv_weight=2.0))
    assert not same_result(raised, found)


# The network


def test_a_sigmoid_reaches_beyond_the_quantile_of_the_scale():
    scan = small_scan("fan", noise=0.02)
    data = torch.from_numpy(scan.projections)
    blurred = iterate(CGLS(RayTransform(scan.geometry, scan.grid), data), max_iterations=5).value
    quantile = float(np.quantile(blurred.numpy(), 0.99))
    assert scan.truth.max() > 1.3 * quantile
    run = dip(scan, output="sigmoid", iterations=100)
    assert run.image.min() >= 0 and run.image.max() > 1.3 * quantile
    largest = run.configuration["ceiling"] * run.configuration["image_scale"]
    assert run.image.max() <= largest and 1.1 * scan.truth.max() < largest
    free = dip(scan, output="identity", iterations=2)
    assert free.configuration["image_scale"] == pytest.approx(quantile, rel=1e-5)
    assert run.configuration["image_scale"] == free.configuration["image_scale"]
    assert "ceiling" not in free.configuration
    assert free.image.min() < 0


def test_interpolation_is_that_asked_for(short, tiny):
    nearest = dip(tiny, upsampling="nearest")
    assert not same_result(nearest, short)
    assert nearest.configuration["upsampling"] == "nearest"
    assert short.configuration["upsampling"] == "bilinear"
    generator, theta, scale = generator_of(nearest)
    assert generator.network.upsampling == "nearest"
    np.testing.assert_array_equal((scale * generator(theta))[0].numpy(), nearest.image)


@pytest.mark.parametrize("settings", [{"learning_rate": 4e-3}, {"decay": False}], ids=str)
def test_settings_of_the_descent_are_used(tiny, settings):
    one, changed = dip(tiny, iterations=120), dip(tiny, iterations=120, **settings)
    assert not same_result(changed, one)
    assert {**one.configuration, **settings} == dict(changed.configuration)


@pytest.mark.parametrize(
    ("shape", "network"),
    [((25, 25), "small"), ((32, 20), "small"), ((33, 33), "128"), ((16, 40), "128")],
)
def test_the_network_is_chosen_by_the_longer_side(shape, network):
    size = max(shape)
    made = small_scan("parallel", pixels=size, views=4)
    run = reconstruct(made.with_grid(Grid(shape, made.grid.pixel_size)), **_once())
    assert run.image.shape == shape
    assert run.configuration["network"] == network
    assert run.configuration["output"] == "sigmoid"


@pytest.mark.slow
@pytest.mark.parametrize(("pixels", "network"), [(256, "128"), (257, "walnut")])
def test_large_images_get_the_large_network(pixels, network):
    run = reconstruct(small_scan("parallel", pixels=pixels, views=3), **_once())
    assert run.configuration["network"] == network
    assert run.generator["theta"].size == {"128": 451_694, "walnut": 2_973_880}[network]


def _once():
    return {"method": "dip", "iterations": 1, "tv_weight": 0.0, "precision": "float32"}


def test_projectors_and_backends(tiny, short):
    for backend in ("traced", "astra"):
        other = dip(tiny, backend=backend, iterations=10)
        expected = dip(tiny, iterations=10)
        # ASTRA lets rays through corners go either way.
        atol = {"traced": 1e-3, "astra": 3e-2}[backend] * expected.image.max()
        np.testing.assert_allclose(other.image, expected.image, atol=atol)
    assert not np.allclose(dip(tiny, projector="joseph").image, short.image, rtol=1e-3, atol=0)


# Precision


@pytest.mark.skipif(not has_bfloat16(CPU), reason="this processor has no bfloat16")
def test_bfloat16_leads_to_nearly_the_same_image(tiny):
    run, reduced = (dip(tiny, precision=each, iterations=90) for each in ("float32", "bfloat16"))
    assert reduced.configuration["precision"] == "bfloat16"
    assert reduced.image.dtype == reduced.generator["theta"].dtype == np.float32
    assert reduced.metrics["psnr_db"] == pytest.approx(run.metrics["psnr_db"], abs=1.5)
    assert not np.array_equal(reduced.image, run.image)
    generator, theta, scale = generator_of(reduced)
    assert generator.precision == "float32"
    again = (scale * generator.with_precision("bfloat16")(theta))[0].numpy()
    np.testing.assert_array_equal(again, reduced.image)
    exact = (scale * generator(theta))[0].numpy()
    assert 0 < np.linalg.norm(exact - reduced.image) < 0.03 * np.linalg.norm(reduced.image)
    automatic = dip(tiny, precision="auto", iterations=90)
    assert automatic.configuration["precision"] == "bfloat16"
    assert same_result(automatic, reduced)


def test_without_bfloat16_it_is_refused_and_auto_does_without(tiny, short, monkeypatch, caplog):
    for module in ("generator.network", "pipeline.deep_image_prior"):
        found = import_module(f"dipct.{module}")
        monkeypatch.setattr(found, "has_bfloat16", lambda device: False)
    with pytest.raises(DeviceUnavailableError, match=r"cpu has no bfloat16.*precision float32"):
        dip(tiny, precision="bfloat16")
    with caplog.at_level("INFO", logger="dipct"):
        automatic = dip(tiny, precision="auto")
    assert "no bfloat16: the network is computed in float32" in caplog.text
    assert automatic.configuration["precision"] == "float32" and same_result(automatic, short)


# Scans


def test_photon_counts_have_their_own_data_term():
    scan = small_scan("fan", source="ellipses", noise=None, counts=3000.0, pixels=17)
    run = dip(scan, iterations=100, tv_weight="auto")
    assert run.configuration["data_term"] == "poisson"
    assert run.metrics["psnr_db"] > reconstruct(scan, method="fbp").metrics["psnr_db"] + 1
    std = np.asarray(scan.noise.std_of(scan.projections))
    gaussian = dip(
        replace(scan, noise=GaussianNoise(std)),
        iterations=100,
        tv_weight=run.configuration["tv_weight"],
    )
    assert gaussian.configuration["data_term"] == "gaussian" and not same_result(run, gaussian)
    difference = np.linalg.norm(gaussian.image - run.image)
    assert difference < 0.2 * np.linalg.norm(run.image)


def test_the_noise_is_estimated_where_the_scan_has_none(tiny):
    run = dip(replace(tiny, noise=None))
    estimate = estimate_noise_std(tiny.projections)
    assert run.scan.noise.std == pytest.approx(estimate.std)
    assert same_result(run, dip(replace(tiny, noise=GaussianNoise(estimate.std))))
    assert same_result(run, reconstruct(run.scan, **run.settings))


def test_a_scan_in_pixels():
    scan = pixel_scan()
    run = dip(scan, iterations=100)
    assert run.units == "1/pixel"
    assert run.metrics["psnr_db"] > reconstruct(scan, method="fbp").metrics["psnr_db"]


def test_selections_are_made_first(tiny):
    run = dip(tiny, views=8, bin=2, pixels=18)
    chosen = tiny.equispaced_views(8).bin_detector(2).with_grid(tiny.grid.resized(18))
    assert run.image.shape == (18, 18) and run.generator["input"].shape == (1, 18, 18)
    assert same_result(run, dip(chosen))


# Refusals


@pytest.mark.parametrize(
    ("kind", "options", "settings", "error", "message"),
    [
        ("cone", {"pixels": 5}, {}, GeometryError, r"scan is of a volume\. Use tv, or"),
        ("fan", {"pixels": 3}, {}, ShapeError, r"at least 4 x 4 pixels; got 3 x 3.*smaller"),
        ("fan", {"pixels": 7}, {"network": "128"}, ShapeError, "at least 8 x 8 pixels; got 7 x 7"),
        ("fan", {}, {"network": "walnut"}, ShapeError, r"at least 32 x 32 .*smaller network"),
        ("fan", {}, {"pixels": 10**7}, InsufficientMemoryError, "fewer pixels"),
    ],
)
def test_images_that_no_network_makes(kind, options, settings, error, message):
    with pytest.raises(error, match=message):
        dip(small_scan(kind, views=6, **options), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tv_weight": -1.0}, "(?i)tv_weight must be zero or positive; got -1"),
        ({"tv_weight": float("nan")}, "(?i)tv_weight must be"),
        ({"tv_weight": "strong"}, "tv_weight.*'auto' or 'discrepancy'.*got 'strong'"),
        ({"network": "large"}, "network.*'small', '128' or 'walnut'.*got 'large'"),
        ({"input": "zeros"}, "input.*'noise', 'fbp' or 'both'"),
        ({"output": "relu"}, "output.*'identity' or 'sigmoid'"),
        ({"upsampling": "cubic"}, "upsampling.*'bilinear' or 'nearest'"),
        ({"precision": "float16"}, "precision.*'float32' or 'bfloat16'"),
        ({"stopping": "early"}, "stopping.*'none', 'discrepancy' or 'variance'"),
        ({"window": 10}, "(?i)window and patience belong to stopping variance"),
        ({"stopping": "discrepancy", "patience": 10}, "belong to stopping variance"),
        ({"stopping": "variance", "window": 1}, "window: .*greater than or equal to 2; got 1"),
        ({"iterations": -1}, "iterations: .*got -1"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate: .*greater than 0"),
        ({"nonnegative": True}, "dip has no setting nonnegative"),
        ({"tolerance": 1e-3}, "dip has no setting tolerance"),
        ({"filter": "hann"}, "dip has no setting filter"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_before_the_scan_is_looked_at(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        dip(None, **settings)


def test_a_scan_without_any_noise_is_refused(tiny):
    flat = replace(
        tiny,
        projections=np.zeros_like(tiny.projections),
        noise=None,
        truth=None,
        truth_source="",
    )
    with pytest.raises(DataError, match="does not describe its noise"):
        dip(flat)


def test_one_scan_at_a_time(tiny):
    batch = np.stack([tiny.projections, tiny.projections])
    with pytest.raises(ShapeError, match="projections"):
        dip(replace(tiny, projections=batch))


# Truth and seeds


def test_the_truth_is_compared_with_and_nothing_else(tiny):
    settings = {"stopping": "variance", "window": 4, "patience": 8}
    known = dip(tiny, **settings)
    unknown = dip(replace(tiny, truth=None, truth_source=""), **settings)
    wrong = dip(replace(tiny, truth=tiny.truth[::-1].copy()), **settings)
    constant = dip(replace(tiny, truth=np.ones_like(tiny.truth)), **settings)
    assert "psnr_db" in known.history and "psnr_db" in wrong.history
    assert "psnr_db" not in unknown.history and "psnr_db" not in constant.history
    assert not np.array_equal(known.history["psnr_db"], wrong.history["psnr_db"])
    for other in (unknown, wrong, constant):
        assert same_result(known, other)
        assert dict(other.configuration) == dict(known.configuration)
        for name in set(known.history) - {"psnr_db"}:
            np.testing.assert_array_equal(other.history[name], known.history[name])


def test_a_truth_from_a_file_is_in_the_history(tiny, short, tmp_path):
    np.save(tmp_path / "truth.npy", tiny.truth)
    unknown = replace(tiny, truth=None, truth_source="")
    run = reconstruct(unknown, method="dip", truth=tmp_path / "truth.npy", **FAST)
    np.testing.assert_array_equal(run.history["psnr_db"], short.history["psnr_db"])
    assert run.metrics["psnr_db"] == short.metrics["psnr_db"]


@pytest.mark.parametrize("kind", ["noise", "fbp"])
def test_seeds(tiny, kind):
    one = dip(tiny, input=kind, seed=5)
    torch.manual_seed(99)
    torch.rand(3)
    np.testing.assert_array_equal(one.image, dip(tiny, input=kind, seed=5).image)
    other = dip(tiny, input=kind, seed=6)
    assert np.abs(one.image - other.image).max() > 1e-2 * one.image.max()
    assert (one.seed, other.seed) == (5, 6)
    inputs = [each.generator["input"] for each in (one, other)]
    assert np.array_equal(*inputs) == (kind == "fbp")


def test_the_scan_and_the_random_numbers_of_others_are_left_alone(tiny):
    before = tiny.projections.copy(), tiny.truth.copy()
    torch.manual_seed(4)
    np.random.seed(4)  # noqa: NPY002
    expected = torch.rand(3), np.random.random(3)  # noqa: NPY002
    torch.manual_seed(4)
    np.random.seed(4)  # noqa: NPY002
    dip(tiny, iterations=3)
    torch.testing.assert_close(torch.rand(3), expected[0], rtol=0, atol=0)
    np.testing.assert_array_equal(np.random.random(3), expected[1])  # noqa: NPY002
    np.testing.assert_array_equal(tiny.projections, before[0])
    np.testing.assert_array_equal(tiny.truth, before[1])


@pytest.mark.parametrize("source", ["discs", "rectangles", "shepp-logan", "ellipses"])
def test_a_sigmoid_reaches_the_largest_values(source):
    scan = small_scan("fan", source=source, noise=0.02)
    run = dip(scan, iterations=1, tv_weight=0.0)
    assert run.configuration["output"] == "sigmoid"
    largest = run.configuration["ceiling"] * run.configuration["image_scale"]
    assert largest > 1.1 * scan.truth.max()


@pytest.mark.parametrize(
    ("kind", "pixels", "extra", "error"),
    [
        ("cone", 5, {}, GeometryError),
        ("fan", 3, {}, ShapeError),
        ("matrix", 9, {"input": "fbp"}, ConfigurationError),
    ],
)
def test_refused_before_the_ray_transform_is_set_up(kind, pixels, extra, error, caplog):
    scan = small_scan("fan" if kind == "matrix" else kind, views=6, pixels=pixels)
    scan = matrix_scan(scan) if kind == "matrix" else scan
    with caplog.at_level("INFO", logger="dipct"), pytest.raises(error):
        dip(scan, **extra, tv_weight="auto")
    assert "Setting up the ray transform" not in caplog.text
    assert "Choosing the total-variation weight" not in caplog.text


def test_bfloat16_is_refused_before_the_ray_transform_is_set_up(monkeypatch, caplog):
    found = import_module("dipct.generator.network")
    monkeypatch.setattr(found, "has_bfloat16", lambda device: False)
    scan = small_scan("fan", source="ellipses", noise=0.05)
    with caplog.at_level("INFO", logger="dipct"), pytest.raises(DeviceUnavailableError):
        dip(scan, precision="bfloat16", tv_weight="auto")
    assert "Choosing the total-variation weight" not in caplog.text


@pytest.mark.parametrize("first", [True, False])
def test_a_truth_that_comes_or_goes_on_resuming(first, tmp_path, monkeypatch):
    scan = small_scan("fan", source="ellipses", noise=0.05, pixels=17, views=14)
    unknown = replace(scan, truth=None, truth_source="")
    before, after = (scan, unknown) if first else (unknown, scan)
    original, done = GeneratorFit.step, []

    def step(self, tensors):
        done.append(None)
        if len(done) > 25:
            raise KeyboardInterrupt
        return original(self, tensors)

    monkeypatch.setattr(GeneratorFit, "step", step)
    with pytest.raises(Interrupted):
        dip(before, checkpoint=tmp_path / "state", iterations=60)
    monkeypatch.setattr(GeneratorFit, "step", original)
    with pytest.raises(ConfigurationError, match="other data or settings"):
        dip(after, checkpoint=tmp_path / "state", resume=True, iterations=60)


def test_the_advice_of_a_finished_run_speaks_of_the_method():
    scan = small_scan("fan", source="ellipses", noise=0.05, pixels=17, views=14)
    assert "Deep Image Prior" in dip(scan, iterations=3).advice
