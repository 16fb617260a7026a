"""The method edip of reconstruct from end to end, with a network pretrained on a small scan."""

import shutil
from dataclasses import replace
from importlib import import_module

import h5py
import numpy as np
import pytest
import torch
from small_scans import small_scan
from test_dip_reconstruction import objective, same_result, scaled
from test_pipeline import in_centimetres

from dipct import (
    GaussianNoise,
    Grid,
    RayTransform,
    generator_of,
    pretrain,
    read_pretrained_network,
    read_run,
    reconstruct,
    write_pretrained_network,
    write_run,
)
from dipct.errors import ConfigurationError, DeviceUnavailableError, FileFormatError, Interrupted
from dipct.evaluation import psnr
from dipct.generator import ParameterLayout, apply_network, has_bfloat16
from dipct.measurement.digest import file_digest
from dipct.operator.filtered_backprojection import FilteredBackProjection
from dipct.solver import GeneratorFit
from dipct.solver.deep_image_prior import noise_input
from dipct.solver.image_scale import image_scale

CPU = torch.device("cpu")
FAST = {
    "precision": "float32",
    "learning_rate": 5e-3,
    "tv_weight": 4.0,
    "iterations": 25,
    "stopping": "none",
}
"""Enough to see what a setting does."""
TRAINING = {
    "network": "small",
    "precision": "float32",
    "batch": 4,
    "learning_rate": 5e-3,
    "validation_images": 4,
    "validate_every": 20,
}


@pytest.fixture(scope="module")
def scan():
    return small_scan("fan", source="ellipses", noise=0.05, pixels=17, views=8)


@pytest.fixture(scope="module")
def pretrained(scan):
    return pretrain(scan, steps=80, **TRAINING)


@pytest.fixture(scope="module")
def files(scan, pretrained, tmp_path_factory):
    """Names of the files of networks, by what they are fed with; all but fbp hardly trained."""
    folder = tmp_path_factory.mktemp("networks")
    networks = {
        "fbp": pretrained,
        "noise": pretrain(scan, steps=3, input="noise", **TRAINING),
        "both": pretrain(scan, steps=3, input="both", **TRAINING),
        "identity": pretrain(scan, steps=3, output="identity", upsampling="nearest", **TRAINING),
    }
    for name, network in networks.items():
        write_pretrained_network(network, folder / f"{name}.h5")
    return {name: str(folder / f"{name}.h5") for name in networks}


@pytest.fixture(scope="module")
def edip(scan, files):
    def run(network="fbp", *, scan=scan, **settings):
        return reconstruct(scan, **{"method": "edip", "init": files[network], **FAST} | settings)

    return run


@pytest.fixture(scope="module")
def short(edip):
    return edip()


def layout_of(pretrained):
    return ParameterLayout(pretrained.make_network().parameters)


def directly(scan, pretrained, scale=None):
    """The image of the pretrained network without any fine-tuning."""
    data = torch.from_numpy(scan.projections)
    scale = scale or float(image_scale(RayTransform(scan.geometry, scan.grid), data))
    z = FilteredBackProjection(scan.geometry, scan.grid)(data)[None] / scale
    theta = torch.from_numpy(pretrained.theta)
    return scale * apply_network(pretrained.make_network(), theta, z)[0, 0].numpy()


# The image


def test_fine_tuning_begins_with_the_image_of_the_pretrained_network(scan, pretrained, short):
    first = short.history["psnr_db"][0]
    assert first == pytest.approx(psnr(directly(scan, pretrained), scan.truth), abs=1e-4)
    assert first > reconstruct(scan, method="fbp").metrics["psnr_db"] + 1
    untrained = replace(
        pretrained, theta=layout_of(pretrained).join(pretrained.make_network().initial(0)).numpy()
    )
    for wrong in (directly(scan, untrained), directly(scan, pretrained, scale=0.01)):
        assert abs(first - psnr(wrong, scan.truth)) > 0.1


def test_fine_tuning_is_ahead_of_the_deep_image_prior(scan, edip):
    run = edip(iterations=100)
    other = reconstruct(scan, method="dip", network="small", **FAST | {"iterations": 100})
    assert run.metrics["psnr_db"] > run.history["psnr_db"][0] + 0.5
    assert run.metrics["psnr_db"] > other.metrics["psnr_db"] + 1
    assert run.history["objective"][0] < other.history["objective"][0]


def test_the_result_is_that_of_the_lowest_objective(edip, short):
    assert objective(short) <= short.history["objective"][:-1].min() * (1 + 1e-4)
    assert 0 < short.history["chosen_step"][-1] < 25
    wrong = replace(short, configuration={**short.configuration, "tv_weight": 5.0})
    assert objective(wrong) > objective(short) * (1 + 1e-4)


def test_the_run_tells_its_network(files, short, pretrained):
    told = short.configuration
    expected = {"network": "small", "output": "sigmoid", "ceiling": 4.0, "upsampling": "bilinear"}
    assert {name: told[name] for name in expected} == expected
    assert (told["method"], told["input"], told["init"]) == ("edip", "fbp", files["fbp"])
    assert told["init_sha256"] == file_digest(files["fbp"]) != file_digest(files["noise"])
    assert (short.status, short.iterations) == ("MAX_ITERATIONS", 25)


def test_the_defaults(scan, files):
    run = reconstruct(scan, method="edip", init=files["fbp"], iterations=3)
    told = run.configuration
    assert (told["learning_rate"], told["tv_weight_chosen_by"]) == (1e-3, "auto")
    assert (told["stopping"], told["decay"], told["fixed_encoder"]) == ("discrepancy", True, False)


# The run file, the way back and the settings


def test_a_run_file_keeps_the_generator(edip, files, tmp_path):
    for name in ("fbp", "both", "identity"):
        run = edip(name, iterations=5)
        write_run(run, tmp_path / "run.h5")
        found = read_run(tmp_path / "run.h5")
        assert same_result(run, found) and found.configuration == run.configuration
        network = read_pretrained_network(files[name]).make_network()
        for each in (run, found):
            generator, theta, scale = generator_of(each)
            assert generator.network.parameters == network.parameters
            assert generator.network.output == network.output
            assert generator.network.upsampling == network.upsampling
            np.testing.assert_array_equal((scale * generator(theta))[0].numpy(), run.image)
            changed = (scale * generator(1.01 * theta))[0].numpy()
            assert np.abs(changed - run.image).max() > 1e-3 * run.image.max()


@pytest.mark.parametrize(
    "settings",
    [
        {"tv_weight": "auto", "seed": 3, "decay": False},
        {"tv_weight": "discrepancy", "input": "noise"},
        {"stopping": "variance", "window": 4, "patience": 7, "fixed_encoder": True},
        {"stopping": "discrepancy", "isotropic": True, "encoder_learning_rate": 1e-4},
    ],
    ids=str,
)
def test_the_recorded_settings_give_the_same_bits(edip, settings, tmp_path):
    run = edip(**settings)
    again = reconstruct(run.scan, **run.settings)
    assert same_result(run, again) and run.configuration == again.configuration
    for name in run.history:
        np.testing.assert_array_equal(run.history[name], again.history[name])
    write_run(run, tmp_path / "run.h5")
    found = read_run(tmp_path / "run.h5")
    assert found.settings == run.settings
    assert same_result(run, reconstruct(found.scan, **found.settings))
    assert not same_result(run, reconstruct(run.scan, **run.settings | {"learning_rate": 4e-3}))


# Encoder and decoder


@pytest.mark.parametrize("name", ["fbp", "identity"])
def test_a_fixed_encoder_stays_and_all_others_change(edip, files, short, name):
    network = read_pretrained_network(files[name])
    layout, encoder = layout_of(network), network.make_network().encoder_blocks
    assert encoder == ("inc", "down_1", "down_2")
    fixed, free = (
        layout.split(torch.from_numpy(run.generator["theta"]))
        for run in (edip(name, fixed_encoder=True), edip(name))
    )
    before = layout.split(torch.from_numpy(network.theta))
    for parameter in layout.parameters:
        same = torch.equal(fixed[parameter.name], before[parameter.name])
        assert same == (parameter.block in encoder), parameter.name
        assert not torch.equal(free[parameter.name], before[parameter.name]), parameter.name


def moved(run, pretrained):
    """How far encoder and decoder have gone at most."""
    layout = layout_of(pretrained)
    change = np.abs(run.generator["theta"] - pretrained.theta)
    encoder = layout.mask(blocks=pretrained.make_network().encoder_blocks).numpy()
    return change[encoder].max(), change[~encoder].max()


def test_the_encoder_has_a_rate_of_its_own(edip, pretrained):
    # Adam's first step is as long as the rate, and after it the objective is lower: the first
    # of the two iterates that are offered is not chosen.
    for settings, ratio in (({}, 1.0), ({"encoder_learning_rate": 5e-4}, 0.1)):
        run = edip(iterations=2, **settings)
        assert run.history["chosen_step"][-1] == 1
        encoder, decoder = moved(run, pretrained)
        assert encoder / decoder == pytest.approx(ratio, rel=0.02)
    assert moved(edip(fixed_encoder=True), pretrained)[0] == 0


def test_the_same_rate_for_the_encoder_changes_nothing(edip, short):
    assert same_result(edip(encoder_learning_rate=FAST["learning_rate"]), short)
    assert not same_result(edip(encoder_learning_rate=1e-3), short)


def test_a_fixed_encoder_has_no_rate(edip):
    with pytest.raises(ConfigurationError, match="fixed encoder has no encoder_learning_rate"):
        edip(fixed_encoder=True, encoder_learning_rate=1e-3)


# Inputs


def test_inputs_are_what_they_are_called(edip, scan, short):
    noise = noise_input((1, 17, 17), 0).numpy()
    fed = {
        (network, kind): edip(network, iterations=2, **({} if kind is None else {"input": kind}))
        for network, kind in (("fbp", None), ("fbp", "noise"), ("noise", None), ("noise", "fbp"))
    }
    for (network, kind), run in fed.items():
        assert run.configuration["input"] == (kind or network)
        is_noise = np.array_equal(run.generator["input"], noise)
        assert is_noise == ((kind or network) == "noise")
    both = edip("both", iterations=2)
    np.testing.assert_array_equal(both.generator["input"][:1], noise)
    np.testing.assert_array_equal(both.generator["input"][1:], short.generator["input"])
    other = edip(input="noise", seed=4, iterations=2)
    assert not np.array_equal(other.generator["input"], noise)


@pytest.mark.parametrize(
    ("network", "kind"), [("fbp", "both"), ("noise", "both"), ("both", "fbp"), ("both", "noise")]
)
def test_another_number_of_channels_is_refused(edip, network, kind, no_operator):
    says = rf"pretrained with input {network}, of \d channels; it cannot be fed with {kind}"
    with pytest.raises(ConfigurationError, match=says):
        edip(network, input=kind)


# Scale and units


def test_an_image_beyond_the_reach_of_the_sigmoid_is_scaled_down(
    scan, pretrained, edip, tmp_path, caplog
):
    low = replace(pretrained, network={**pretrained.network, "ceiling": 1.0})
    write_pretrained_network(low, tmp_path / "low.h5")
    data, operator = torch.from_numpy(scan.projections), RayTransform(scan.geometry, scan.grid)
    usual, largest = (float(image_scale(operator, data, quantile=q)) for q in (0.99, 1.0))
    assert usual < 1.25 * largest < 4 * usual
    with caplog.at_level("INFO", logger="dipct"):
        run = edip(init=str(tmp_path / "low.h5"), iterations=3)
    assert "beyond the reach of the pretrained network: it is scaled down to fit" in caplog.text
    scale = run.configuration["image_scale"]
    assert scale == pytest.approx(1.25 * largest) and run.image.max() < scale
    assert run.configuration["ceiling"] == 1.0
    caplog.clear()
    with caplog.at_level("INFO", logger="dipct"):
        others = edip("identity", iterations=3), edip(iterations=3)
    assert "scaled down" not in caplog.text
    for other in others:
        assert other.configuration["image_scale"] == pytest.approx(usual)


def test_units_of_length_change_nothing_but_the_geometry(scan, tmp_path):
    """A network belongs to one geometry in one unit; trained in another it is the same."""

    def both(one):
        network = pretrain(one, steps=3, **TRAINING | {"input": "both"})
        write_pretrained_network(network, tmp_path / "net.h5")
        init = str(tmp_path / "net.h5")
        return network, reconstruct(one, method="edip", init=init, **FAST | {"iterations": 5})

    network, run = both(scan)
    # A power of two changes no rounding.
    other_network, other = both(scaled(scan, 1 / 8))
    np.testing.assert_array_equal(other_network.theta, network.theta)
    assert other_network.validation_psnr_db == network.validation_psnr_db
    np.testing.assert_array_equal(other.generator["theta"], run.generator["theta"])
    np.testing.assert_array_equal(other.image / np.float32(8), run.image)
    # The network of the one is refused for the other: what is compared are numbers.
    for given in (scan, in_centimetres(scan)):
        with pytest.raises(ConfigurationError, match=r"another scan geometry.*pixel size"):
            reconstruct(given, method="edip", init=str(tmp_path / "net.h5"), **FAST)


# Which networks are refused, before any work


@pytest.fixture
def no_operator(monkeypatch):
    """Fail where the ray transform, the first long work, is made."""

    def fail(*_, **__):
        raise AssertionError("long work has begun")

    monkeypatch.setattr(import_module("dipct.pipeline.reconstruct"), "ray_transform", fail)


def test_long_work_is_noticed(edip, no_operator):
    with pytest.raises(AssertionError, match="long work"):
        edip()


def test_another_scan_is_refused(scan, edip, no_operator):
    angles = replace(scan.geometry, angles=scan.geometry.angles + 0.01)
    larger = Grid(scan.grid.shape, 1.1 * scan.grid.pixel_size)
    for given, settings, says in (
        (scan, {"views": 4}, "views: 8 there, 4 here"),
        (scan, {"pixels": 16}, r"image shape: \[17, 17\] there, \[16, 16\] here"),
        (scan, {"bin": 2}, "detector shape"),
        (replace(scan, geometry=angles), {}, "angles, positions or spacings differ"),
        (scan.with_grid(larger), {}, "pixel size: .* there"),
        (small_scan("parallel", pixels=17, views=8), {}, "geometry: fan there, parallel here"),
        (small_scan("cone", pixels=6, views=4), {}, "geometry: fan there, cone here"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            edip(scan=given, **settings)


def test_the_selection_it_was_trained_with_fits(scan, tmp_path):
    selection = {"views": 4, "pixels": 16, "bin": 2}
    network = pretrain(scan, steps=1, **TRAINING, **selection)
    write_pretrained_network(network, tmp_path / "net.h5")
    settings = {"method": "edip", "init": str(tmp_path / "net.h5"), **FAST, "iterations": 2}
    run = reconstruct(scan, **settings, **selection)
    assert run.image.shape == (16, 16)
    assert same_result(run, reconstruct(run.scan, **run.settings))
    with pytest.raises(ConfigurationError, match="another scan geometry"):
        reconstruct(scan, **settings)


def test_a_file_that_is_no_network_is_refused(scan, short, tmp_path, no_operator):
    (tmp_path / "text.h5").write_text("theta")
    write_run(short, tmp_path / "run.h5")
    for name, says in (
        ("none.h5", "no such file; expected a pretrained network"),
        ("text.h5", "expected a pretrained network"),
        ("run.h5", "another one .format 'dipct-run'"),
    ):
        with pytest.raises(FileFormatError, match=f"{name}: .*{says}"):
            reconstruct(scan, method="edip", init=str(tmp_path / name), **FAST)


def test_a_network_is_needed_and_brings_its_own_architecture(scan, files):
    with pytest.raises(ConfigurationError, match="needs init, the file of a pretrained network"):
        reconstruct(scan, method="edip", **FAST)
    for settings in ({"network": "small"}, {"output": "identity"}, {"upsampling": "nearest"}):
        with pytest.raises(ConfigurationError, match=f"edip has no setting {next(iter(settings))}"):
            reconstruct(scan, method="edip", init=files["fbp"], **settings)
    with pytest.raises(ConfigurationError, match="dip has no setting init"):
        reconstruct(scan, method="dip", init=files["fbp"])


# Weight and stopping


def test_the_weight_is_that_of_total_variation(scan, edip):
    noisy = small_scan("fan", source="ellipses", noise=0.3, pixels=17, views=8, seed=1)
    chosen = reconstruct(noisy, method="tv", tv_weight="discrepancy", iterations=2).configuration
    assert chosen["tv_weight"] > 2
    for wanted in ("auto", "discrepancy"):
        run = edip(scan=noisy, tv_weight=wanted, iterations=3)
        assert run.configuration["tv_weight_chosen_by"] == wanted == run.settings["tv_weight"]
        for name in ("tv_weight", "discrepancy_target", "image_scale", "data_term"):
            assert run.configuration[name] == chosen[name]
    number = edip(scan=noisy, tv_weight=chosen["tv_weight"], iterations=3)
    assert same_result(run, number)
    assert not same_result(run, edip(scan=noisy, tv_weight=1.0, iterations=3))


def test_stopping_at_the_noise_level(scan, edip):
    noisy = small_scan("fan", source="ellipses", noise=0.3, pixels=17, views=8)
    settings = {"stopping": "discrepancy", "tv_weight": 0.0, "iterations": 300, "scan": noisy}
    run = edip(**settings)
    assert run.status == "DISCREPANCY_REACHED" and run.iterations < 300
    assert run.metrics["reduced_chi_squared"] <= 1
    steps = int(run.history["chosen_step"][-1])
    assert (run.history["discrepancy"][run.history["iteration"] < steps] > 1).all()
    smaller = replace(noisy, noise=GaussianNoise(0.8 * noisy.noise.std))
    assert edip(**settings | {"scan": smaller}).history["chosen_step"][-1] > steps


def test_stopping_where_the_images_change_least(edip):
    settings = {"stopping": "variance", "window": 10, "patience": 15, "iterations": 600}
    run = edip(**settings)
    assert run.configuration["decay"] is False and run.status == "SETTLED"
    steps = int(run.history["chosen_step"][-1])
    # The moving variance begins after the warm-up.
    assert 100 <= steps < run.iterations < 600
    assert not same_result(run, edip(iterations=600, decay=False))


# Going on


@pytest.mark.parametrize("steps", [0, 7, 20])
def test_going_on_gives_the_same_bits(edip, short, tmp_path, monkeypatch, steps):
    original, done = GeneratorFit.step, []

    def step(self, tensors):
        done.append(None)
        if len(done) > steps:
            raise KeyboardInterrupt
        return original(self, tensors)

    path = tmp_path / "state"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=f"{steps} iterations"):
        patch.setattr(GeneratorFit, "step", step)
        edip(checkpoint=path)
    found = edip(checkpoint=path, resume=True)
    assert same_result(found, short) and found.configuration == short.configuration
    for name in short.history:
        np.testing.assert_array_equal(found.history[name], short.history[name])
    for changed in ({"fixed_encoder": True}, {"encoder_learning_rate": 1e-3}, {"input": "noise"}):
        with pytest.raises(ConfigurationError, match="other data or settings"):
            edip(checkpoint=path, resume=True, **changed)


def test_a_checkpoint_belongs_to_the_network_not_to_its_name(
    scan, files, short, tmp_path, monkeypatch
):
    def step(self, tensors):
        raise KeyboardInterrupt

    path, moved_file = tmp_path / "state", tmp_path / "moved.h5"
    shutil.copy(files["fbp"], moved_file)
    settings = {"method": "edip", **FAST, "checkpoint": path}
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(GeneratorFit, "step", step)
        reconstruct(scan, init=files["fbp"], **settings)
    found = reconstruct(scan, init=str(moved_file), resume=True, **settings)
    assert same_result(found, short)
    with h5py.File(moved_file, "a") as file:
        file["theta"][0] += 1e-3
    with pytest.raises(ConfigurationError, match="other data or settings"):
        reconstruct(scan, init=str(moved_file), resume=True, **settings)


# Precision


@pytest.mark.skipif(not has_bfloat16(CPU), reason="this processor has no bfloat16")
def test_bfloat16_leads_to_nearly_the_same_image(edip, short):
    reduced = edip(precision="bfloat16")
    assert reduced.configuration["precision"] == "bfloat16"
    assert reduced.image.dtype == reduced.generator["theta"].dtype == np.float32
    assert reduced.metrics["psnr_db"] == pytest.approx(short.metrics["psnr_db"], abs=1)
    assert not np.array_equal(reduced.image, short.image)
    assert same_result(edip(precision="auto"), reduced)


def test_without_bfloat16_it_is_refused_and_auto_does_without(edip, short, monkeypatch):
    for module in ("generator.network", "pipeline.deep_image_prior"):
        found = import_module(f"dipct.{module}")
        monkeypatch.setattr(found, "has_bfloat16", lambda device: False)
    with pytest.raises(DeviceUnavailableError, match=r"cpu has no bfloat16.*precision float32"):
        edip(precision="bfloat16")
    assert same_result(edip(precision="auto"), short)
