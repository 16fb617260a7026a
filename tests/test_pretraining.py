"""Supervised pretraining: gradients, processes, schedule, resume, divergence, file and figure."""

import json
import os
import pickle
import signal
from dataclasses import replace
from importlib import import_module

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from small_scans import matrix_scan, small_scan
from test_figures import all_text, drawn, misplaced_texts
from test_pipeline import in_centimetres
from test_training_data import worker_processes
from torch import distributed, multiprocessing

from dipct import (
    Grid,
    RayTransform,
    pretrain,
    read_pretrained_network,
    reconstruct,
    write_pretrained_network,
    write_run,
    write_scan,
)
from dipct.configuration import PretrainingConfiguration
from dipct.errors import (
    ConfigurationError,
    DataError,
    DeviceUnavailableError,
    FileFormatError,
    GeometryError,
    Interrupted,
    ShapeError,
)
from dipct.evaluation import psnr
from dipct.figures import save_figure, training_figure
from dipct.generator import (
    NetworkGenerator,
    ParameterLayout,
    apply_network,
    has_bfloat16,
    make_network,
)
from dipct.measurement.scan_file import read_scan_file
from dipct.operator.filtered_backprojection import FilteredBackProjection
from dipct.pretrain import PhantomImages, SupervisedTraining, TrainingPairs, TrainingSettings
from dipct.pretrain.processes import joined_processes, place
from dipct.solver import Status, iterate

CPU = torch.device("cpu")
SCAN = small_scan("parallel", source="ellipses", noise=0.05, pixels=17, views=6)
NETWORK = make_network("small", ceiling=4.0)
LAYOUT = ParameterLayout(NETWORK.parameters)
INITIAL = LAYOUT.join(NETWORK.initial(0))
FAST = {
    "steps": 12,
    "batch": 4,
    "learning_rate": 5e-3,
    "validation_images": 3,
    "validate_every": 4,
}
VERB = FAST | {"batch": 2, "network": "small", "precision": "float32"}


def pairs(fold="training", *, kind=TrainingPairs, dtype=torch.float64, images=0, **options):
    operator = RayTransform(SCAN.geometry, SCAN.grid).to(dtype=dtype)
    inverse = FilteredBackProjection(SCAN.geometry, SCAN.grid).to(dtype=dtype)
    drawn_from = PhantomImages("ellipses", SCAN.grid, fold, images)
    return kind(drawn_from, operator, inverse, **options)


def training(*, kind=SupervisedTraining, pairs_kind=TrainingPairs, initial=INITIAL, **settings):
    """In double precision, so that rounding explains no difference."""
    return kind(
        NETWORK,
        pairs(kind=pairs_kind),
        pairs("validation"),
        TrainingSettings(**FAST | settings),
        initial.double(),
    )


def trained(method):
    return iterate(method, max_iterations=method.settings.steps, every=1)


def difference(one, other):
    return float((one - other).norm() / other.norm())


def same_bits(one, other):
    np.testing.assert_array_equal(one.theta, other.theta)
    assert one.history.keys() == other.history.keys()
    for name in one.history:
        np.testing.assert_array_equal(one.history[name], other.history[name])
    unequal = ("theta", "history", "duration_s", "created", "settings")
    for name in set(vars(one)) - set(unequal):
        assert getattr(one, name) == getattr(other, name), name


# Gradient and schedule


def gradient_by_hand(theta, indices, *, summed=False):
    """Autograd of the mean squared difference, image by image."""
    batch = pairs().batch(indices)
    theta = theta.detach().requires_grad_()
    loss = torch.zeros((), dtype=theta.dtype)
    for z, target in zip(batch.inputs, batch.targets, strict=True):
        image = NetworkGenerator(NETWORK, z, SCAN.grid.shape)(theta)
        loss = loss + ((image - target) ** 2).sum()
    loss = loss if summed else loss / (len(indices) * SCAN.grid.n_pixels)
    return torch.autograd.grad(loss, theta)[0], float(loss.detach())


def test_the_gradient_of_a_step_is_that_of_the_mean_squared_difference():
    method = training(clip=1e9, weight_decay=0.0)
    before = method.start()
    first = method.step(before)
    second = method.step(first)
    # Adam's average of gradients begins at zero and takes a tenth of each.
    found = first["gradient_mean"] / 0.1
    later = (second["gradient_mean"] - 0.9 * first["gradient_mean"]) / 0.1
    expected, loss = gradient_by_hand(before["theta"], range(4))
    assert difference(found, expected) < 1e-10
    assert difference(later, gradient_by_hand(first["theta"], range(4, 8))[0]) < 1e-10
    assert float(first["training_loss"]) == pytest.approx(loss)
    for indices, summed in ((range(4, 8), False), (range(3), False), (range(4), True)):
        wrong, _ = gradient_by_hand(before["theta"], indices, summed=summed)
        assert difference(found, wrong) > 1e-2
    for each in (before, first):
        assert all(torch.equal(before[name], method.start()[name]) for name in before), each


def by_torch(steps, *, rising=0.3, clip=0.02, weight_decay=0.05):
    """The parameters after training with the optimiser and schedule of torch."""
    theta = INITIAL.double().requires_grad_()
    adam = torch.optim.Adam([theta], lr=1.0, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        adam, max_lr=5e-3, total_steps=steps, pct_start=rising, cycle_momentum=False
    )
    for step in range(steps):
        theta.grad, _ = gradient_by_hand(theta, range(4 * step, 4 * step + 4))
        torch.nn.utils.clip_grad_norm_([theta], clip)
        adam.step()
        schedule.step()
    return theta.detach()


def test_the_course_is_that_of_torch_with_one_cycle_clipping_and_decay():
    method = training(steps=4, clip=0.02, weight_decay=0.05)
    last = trained(method).state.tensors["theta"]
    moved = last - INITIAL
    assert difference(moved, by_torch(4) - INITIAL) < 1e-4
    for wrong in ({"rising": 0.6}, {"clip": 0.2}, {"weight_decay": 0.0}):
        assert difference(moved, by_torch(4, **wrong) - INITIAL) > 1e-2, wrong


# History, and which parameters are kept


@pytest.fixture(scope="module")
def restless():
    """A training with a rate so high that it does not end at its best, and all its parameters."""
    method = training(learning_rate=0.1, validate_every=1)
    thetas = []
    solution = iterate(
        method,
        max_iterations=12,
        every=1,
        callbacks=[lambda state: thetas.append(state.tensors["theta"])],
    )
    return method, solution, [INITIAL.double(), *thetas]


def mean_psnr(theta, fold):
    batch = pairs(fold).batch(range(3))
    images = apply_network(NETWORK, theta, batch.inputs)

    def mean(given):
        each = zip(given.numpy(), batch.targets.numpy(), strict=True)
        return np.mean([psnr(image[0], target[0]) for image, target in each])

    return mean(images), mean(batch.inputs)


def test_the_best_parameters_are_kept_not_the_last(restless):
    _, solution, thetas = restless
    quality = solution.history["validation_psnr_db"]
    best = int(quality.argmax())
    assert 0 < best < 12 and int(solution.state.tensors["best_step"]) == best
    assert torch.equal(solution.value, thetas[best])
    assert not torch.equal(solution.value, thetas[-1])
    assert torch.equal(solution.state.tensors["theta"], thetas[-1])
    best_so_far = [int(quality[: i + 1].argmax()) for i in range(13)]
    assert solution.history["best_step"].tolist() == best_so_far


def test_the_history_holds_loss_and_validation(restless):
    method, solution, thetas = restless
    history = solution.history
    assert solution.status is Status.MAX_ITERATIONS and solution.iterations == 12
    assert set(history) == {"iteration", "training_loss", "validation_psnr_db", "best_step"}
    losses = [gradient_by_hand(thetas[k], range(4 * k, 4 * k + 4))[1] for k in range(12)]
    means = np.cumsum(losses) / np.arange(1, 13)
    np.testing.assert_allclose(history["training_loss"], [0, *means], rtol=1e-9)
    for k in (0, 7, 12):
        expected, fbp = mean_psnr(thetas[k], "validation")
        assert float(history["validation_psnr_db"][k]) == pytest.approx(expected, abs=1e-6)
        assert method.fbp_psnr_db == pytest.approx(fbp, abs=1e-6)
        assert abs(mean_psnr(thetas[k], "training")[0] - expected) > 0.1


def test_validation_is_now_and_then_and_at_the_end():
    solution = trained(training(steps=7, validate_every=3))
    changes = np.flatnonzero(np.diff(solution.history["validation_psnr_db"])) + 1
    assert changes.tolist() == [3, 6, 7]


# Several processes


class SameShare(TrainingPairs):
    """Deliberately wrong: every process takes the first one's share."""

    def stream(self, start, stop, batch, *, rank=0, world=1):
        return super().stream(start, stop, batch, rank=0, world=world)


class OthersLeftOut(SupervisedTraining):
    """Deliberately wrong: every process goes its own way."""

    def _mean(self, value):
        return value


def worker(rank, world, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    try:
        found = {"place": np.array(place())}
        for name, options in (
            ("right", {}),
            ("same share", {"pairs_kind": SameShare}),
            ("others left out", {"kind": OthersLeftOut}),
        ):
            found |= {f"{name} {key}": value for key, value in course(**options).items()}
        try:
            training(batch=5)
        except ConfigurationError as error:
            found["refused"] = np.array(str(error))
        np.savez(f"{folder}/{rank}.npz", **found)
    finally:
        distributed.destroy_process_group()


def course(**options):
    method = training(steps=3, clip=1e9, weight_decay=0.0, validation_images=5, **options)
    first = method.step(method.start())
    solution = trained(method)
    return {
        "gradient": first["gradient_mean"].numpy() / 0.1,
        "theta": solution.state.tensors["theta"].numpy(),
        "fbp": np.array(method.fbp_psnr_db),
        **{name: values.numpy() for name, values in solution.history.items()},
    }


@pytest.fixture(scope="module")
def alone():
    return course()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(worker, (2, str(folder)), nprocs=2)
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def test_two_processes_train_as_one_with_the_joint_batch(two_processes, alone):
    for rank, found in enumerate(two_processes):
        assert found["place"].tolist() == [rank, 2]
        for name, expected in alone.items():
            np.testing.assert_allclose(
                found[f"right {name}"], expected, rtol=1e-7, atol=1e-9, err_msg=name
            )
    for name in alone:
        one, other = (found[f"right {name}"] for found in two_processes)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("wrong", ["same share", "others left out"])
def test_shares_that_are_wrong_are_noticed(two_processes, alone, wrong):
    for found in two_processes:
        gap = np.linalg.norm(found[f"{wrong} gradient"] - alone["gradient"])
        assert gap > 1e-2 * np.linalg.norm(alone["gradient"])


def test_a_batch_that_cannot_be_shared_is_refused(two_processes):
    for found in two_processes:
        assert "A batch of 5 cannot be shared by 2 processes" in str(found["refused"])


def test_without_other_processes_there_is_one(monkeypatch):
    assert place() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined_processes("cpu") as device:
        assert (device, place()) == ("cpu", (0, 1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="cannot share cuda:0"), joined_processes("cuda:0"):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(DeviceUnavailableError, match="cuda:0"), joined_processes("cuda"):
            pass


# What does not fit


@pytest.mark.parametrize("name", ["steps", "batch", "validation_images", "validate_every"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_impossible_settings(name, value):
    with pytest.raises(ConfigurationError, match=name):
        TrainingSettings(**{name: value})


def test_parameters_and_pairs_must_fit_the_network():
    settings = TrainingSettings(**FAST)
    with pytest.raises(ShapeError, match=r"76905 parameters.*\(5,\)"):
        SupervisedTraining(NETWORK, pairs(), pairs(), settings, torch.zeros(5))
    for given in ((pairs(), pairs(input="both")), (pairs(input="both"), pairs())):
        with pytest.raises(ShapeError, match="takes 1 channels, the pairs' inputs have 2"):
            SupervisedTraining(NETWORK, *given, settings, INITIAL)


# The verb


@pytest.fixture(scope="module")
def whole():
    return pretrain(SCAN, **VERB)


@pytest.fixture(scope="module")
def twice():
    """After two steps."""
    return pretrain(SCAN, **VERB | {"steps": 2})


@pytest.fixture(scope="module")
def sparse():
    """A scan with so few views that filtered back-projection is poor."""
    return small_scan("parallel", source="ellipses", noise=0.05, pixels=28, views=5)


@pytest.fixture(scope="module")
def learned(sparse):
    course = {"steps": 80, "batch": 4, "validation_images": 8, "validate_every": 20}
    return pretrain(sparse, **VERB | course)


def test_a_trained_network_beats_filtered_back_projection(learned):
    quality = learned.history["validation_psnr_db"]
    assert quality[0] < learned.fbp_psnr_db
    assert learned.validation_psnr_db > learned.fbp_psnr_db + 2
    assert learned.validation_psnr_db == quality.max() and learned.best_step > 20
    assert learned.history["training_loss"][-1] < learned.history["training_loss"][1] / 2


def test_what_was_learned_serves_a_scan_that_was_not_seen(learned, sparse):
    run = reconstruct(sparse, method="fbp")
    scale = float(np.quantile(run.image, 0.99))
    z = torch.from_numpy(run.image / scale)[None, None]
    network = learned.make_network()

    def quality(theta):
        image = scale * apply_network(network, theta, z)[0, 0].numpy()
        return psnr(image, sparse.truth)

    assert quality(torch.from_numpy(learned.theta)) > run.metrics["psnr_db"] + 2
    assert quality(ParameterLayout(network.parameters).join(network.initial(0))) < 14


def test_the_seed_decides_everything(whole):
    same_bits(pretrain(SCAN, **VERB), whole)
    with pytest.raises(AssertionError):
        same_bits(pretrain(SCAN, **VERB, seed=1), whole)


@pytest.mark.parametrize("seed", [0, 1])
def test_validation_images_are_those_of_their_fold_and_seed(seed, twice):
    found = twice if seed == 0 else pretrain(SCAN, **VERB | {"steps": 2}, seed=seed)

    def fbp_psnr(fold="validation", **seeds):
        batch = pairs(fold, dtype=torch.float32, **{"images": seed, "seed": seed} | seeds)
        given = batch.batch(range(3))
        both = zip(given.inputs.numpy(), given.targets.numpy(), strict=True)
        return np.mean([psnr(fbp[0], target[0]) for fbp, target in both])

    assert found.fbp_psnr_db == pytest.approx(fbp_psnr(), abs=1e-5)
    for wrong in ({"fold": "training"}, {"images": 5}, {"seed": 5}):
        assert abs(found.fbp_psnr_db - fbp_psnr(**wrong)) > 1e-3


def test_a_configuration_or_settings_by_name(whole):
    configuration = PretrainingConfiguration.from_values(VERB)
    same_bits(pretrain(SCAN, configuration), whole)
    with pytest.raises(ConfigurationError, match="not both; got seed"):
        pretrain(SCAN, configuration, seed=3)
    with pytest.raises(ConfigurationError, match="no setting 'step'"):
        pretrain(SCAN, step=3)


def test_the_scan_gives_its_geometry_only(whole):
    other = replace(SCAN, projections=2 * SCAN.projections, noise=None, truth=None, truth_source="")
    same_bits(pretrain(other, **VERB), whole)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"input": "noise"}, {"in_channels": 1}),
        ({"input": "both"}, {"in_channels": 2}),
        ({"output": "identity", "upsampling": "nearest"}, {"output": "identity"}),
        ({"images": "rectangles", "noise_level": 0.0, "projector": "joseph"}, {}),
        ({"views": 3, "bin": 2, "pixels": 16, "angular_range": 170.0}, {}),
    ],
    ids=str,
)
def test_settings_are_used_and_told(settings, options, twice):
    found = pretrain(SCAN, **VERB | {"steps": 2} | settings)
    assert {name: found.settings[name] for name in settings} == settings
    assert {name: found.network[name] for name in options} == options
    assert np.isnan(found.fbp_psnr_db) == (settings.get("input") == "noise")
    assert not np.array_equal(found.theta, twice.theta)


def test_everything_is_described(whole):
    assert whole.network == {
        **{"name": "small", "in_channels": 1, "output": "sigmoid", "ceiling": 4.0},
        "upsampling": "bilinear",
    }
    assert whole.scan["geometry"] == "parallel" and whole.scan["views"] == 6
    assert whole.scan["image_shape"] == [17, 17] and whole.scan["length_unit"] == "mm"
    assert whole.scan["pixel_size"] == SCAN.grid.pixel_size
    assert whole.pairs["images"]["rule"] == "ellipses" and whole.pairs["noise_level"] == 0.05
    assert (whole.pairs["input"], whole.seed, whole.steps) == ("fbp", 0, 12)
    assert whole.settings["learning_rate"] == 5e-3
    assert whole.settings["precision"] == "float32" and "torch" in whole.versions
    assert whole.status == "MAX_ITERATIONS" and whole.duration_s > 0
    assert whole.history["iteration"].tolist() == [0, 4, 8, 12]
    assert whole.theta.dtype == np.float32 and whole.theta.shape == (LAYOUT.size,)


def test_precision_that_was_chosen_is_told():
    found = pretrain(SCAN, **VERB | {"steps": 1, "precision": "auto"})
    expected = "bfloat16" if has_bfloat16(CPU) else "float32"
    assert found.settings["precision"] == expected


@pytest.mark.skipif(not has_bfloat16(CPU), reason="this processor has no bfloat16")
def test_bfloat16_trains_nearly_the_same(whole):
    reduced = pretrain(SCAN, **VERB | {"precision": "bfloat16"})
    assert reduced.theta.dtype == np.float32
    assert reduced.validation_psnr_db == pytest.approx(whole.validation_psnr_db, abs=1)
    assert not np.array_equal(reduced.theta, whole.theta)


def test_without_bfloat16_it_is_refused(monkeypatch):
    found = import_module("dipct.generator.network")
    monkeypatch.setattr(found, "has_bfloat16", lambda device: False)
    with pytest.raises(DeviceUnavailableError, match="Use precision float32"):
        pretrain(SCAN, **VERB | {"precision": "bfloat16"})


def test_what_cannot_be_pretrained_for():
    volume = small_scan("cone", pixels=6, views=4)
    with pytest.raises(GeometryError, match="volume"):
        pretrain(volume, **VERB)
    with pytest.raises(ConfigurationError, match=r"must be one of ellipses.*or a folder"):
        pretrain(SCAN, **VERB, images="elipses")
    with pytest.raises(ShapeError, match="at least 32 x 32"):
        pretrain(SCAN, **VERB | {"network": "walnut"})
    told = matrix_scan(SCAN)
    with pytest.raises(GeometryError, match="system matrix"):
        pretrain(told, **VERB)
    assert np.isfinite(pretrain(told, **VERB | {"input": "noise", "steps": 1}).theta).all()


# A folder of images


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(5):
        values = np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)
        Image.fromarray(values).save(images / f"{i}.png")
    return images


def test_a_folder_of_images(folder):
    found = pretrain(SCAN, **VERB | {"steps": 2}, images=str(folder))
    assert found.pairs["images"]["kind"] == "folder" and found.pairs["images"]["files"] == 3
    (folder / "3.png").write_bytes(b"no picture")
    with pytest.raises(FileFormatError, match=r"1 of 5 images cannot be trained on(.|\n)*3\.png"):
        pretrain(SCAN, **VERB, images=str(folder))


# Stopping and going on


def interrupt():
    """What Ctrl-C sends."""
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interrupted_at(monkeypatch, tmp_path):
    """Pretrain, interrupted in the step after so many; the checkpoint."""

    def run(step, scan=SCAN, resume=False, **settings):
        original = SupervisedTraining.step

        def interrupting(self, tensors):
            result = original(self, tensors)
            if int(tensors["step"]) == step:
                interrupt()
            return result

        path = tmp_path / "state"
        with monkeypatch.context() as patch:
            patch.setattr(SupervisedTraining, "step", interrupting)
            with pytest.raises(Interrupted, match=r"Stopped after \d+ steps.*state.*--resume"):
                pretrain(scan, checkpoint=path, resume=resume, **VERB | settings)
        return path

    return run


@pytest.mark.parametrize("step", [0, 3, 4, 11])
def test_going_on_gives_the_same_bits(step, whole, interrupted_at, tmp_path):
    path = interrupted_at(step)
    assert [found.name for found in tmp_path.iterdir()] == ["state"]
    with h5py.File(path) as file:
        done = int(file.attrs["iteration"])
    assert step <= done <= step + 1
    seen = []
    note = [lambda state: seen.append(state.iteration)]
    found = pretrain(SCAN, checkpoint=path, resume=True, callbacks=note, **VERB)
    same_bits(found, whole)
    # It goes on, and does not begin again.
    assert seen == [k for k in (4, 8, 12) if k > done]
    assert found.fbp_psnr_db == whole.fbp_psnr_db


def test_stopped_twice_with_other_inputs(interrupted_at):
    for step, resume in ((2, False), (7, True)):
        path = interrupted_at(step, input="both", resume=resume)
    found = pretrain(SCAN, checkpoint=path, resume=True, **VERB, input="both")
    same_bits(found, pretrain(SCAN, **VERB, input="both"))


@pytest.mark.slow
def test_workers_change_nothing_and_end_with_the_training(whole, tmp_path):
    path = tmp_path / "state"

    def stop(state):
        assert len(worker_processes()) == 2
        if state.iteration == 8:
            interrupt()

    with pytest.raises(Interrupted):
        pretrain(SCAN, checkpoint=path, callbacks=[stop], **VERB, workers=2)
    assert worker_processes() == []
    found = pretrain(SCAN, checkpoint=path, resume=True, **VERB, workers=2)
    assert worker_processes() == []
    same_bits(found, whole)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"steps": 13},
        {"batch": 4},
        {"images": "rectangles"},
        {"noise_level": 0.1},
        {"input": "noise"},
        {"output": "identity"},
        {"upsampling": "nearest"},
        {"network": "128"},
        {"learning_rate": 4e-3},
        {"weight_decay": 0.0},
        {"validation_images": 2},
        {"validate_every": 3},
        {"projector": "joseph"},
        {"views": 3},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_a_checkpoint_of_another_training_is_refused(changed, stopped):
    if changed.get("precision") == "bfloat16" and not has_bfloat16(CPU):
        pytest.skip("this processor has no bfloat16")
    before = stopped.read_bytes()
    with pytest.raises(ConfigurationError, match="other data or settings"):
        pretrain(SCAN, checkpoint=stopped, resume=True, **VERB | changed)
    assert stopped.read_bytes() == before


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    path = tmp_path_factory.mktemp("stopped") / "state"
    stop = [lambda state: interrupt()]
    with pytest.raises(Interrupted):
        pretrain(SCAN, checkpoint=path, callbacks=stop, **VERB)
    return path


def test_a_checkpoint_of_another_scan_or_folder_is_refused(stopped, folder, tmp_path):
    with pytest.raises(ConfigurationError, match="other data or settings"):
        pretrain(in_centimetres(SCAN), checkpoint=stopped, resume=True, **VERB)
    path, settings = tmp_path / "state", VERB | {"images": str(folder)}
    with pytest.raises(Interrupted):
        pretrain(SCAN, checkpoint=path, callbacks=[lambda state: interrupt()], **settings)
    (folder / "0.png").rename(folder / "zero.png")
    with pytest.raises(ConfigurationError, match="other data or settings"):
        pretrain(SCAN, checkpoint=path, resume=True, **settings)
    (folder / "zero.png").rename(folder / "0.png")
    pretrain(SCAN, checkpoint=path, resume=True, **settings)


def test_resuming_needs_a_checkpoint(tmp_path):
    with pytest.raises(ConfigurationError, match="name of the checkpoint"):
        pretrain(SCAN, resume=True, **VERB)
    with pytest.raises(FileFormatError, match="none: no such file"):
        pretrain(SCAN, resume=True, checkpoint=tmp_path / "none", **VERB)
    with pytest.raises(Interrupted, match="no checkpoint was asked for"):
        pretrain(SCAN, callbacks=[lambda state: interrupt()], **VERB)


# Divergence


@pytest.mark.parametrize("every", [1, 4, 100])
@pytest.mark.parametrize("output", ["identity", "sigmoid"])
def test_numbers_that_overflow_are_a_status(every, output):
    network = make_network("small", output=output)
    method = SupervisedTraining(
        network,
        pairs(dtype=torch.float32),
        pairs("validation", dtype=torch.float32),
        # So large a rate that the first steps lead beyond the range of single precision.
        TrainingSettings(**FAST | {"learning_rate": 1e12, "validate_every": every}),
        INITIAL,
    )
    solution = iterate(method, max_iterations=12, every=min(every, 5))
    assert solution.status is Status.DIVERGED
    assert torch.isfinite(solution.value).all() and torch.equal(solution.value, INITIAL)
    assert all(torch.isfinite(values).all() for values in solution.history.values())


@pytest.fixture(scope="module")
def good():
    """A training that went well so far, and its method."""
    method = training(validate_every=4)
    return method, iterate(method, max_iterations=8, every=4)


@pytest.mark.parametrize("every", [1, 4, 100])
def test_the_last_good_parameters_are_kept(every, good):
    method, good = good
    assert int(good.state.tensors["best_step"]) > 0
    bad = {**good.state.tensors, "theta": good.state.tensors["theta"].clone()}
    bad["theta"][100] = torch.inf
    found = iterate(method, max_iterations=12, every=every, state=replace(good.state, tensors=bad))
    assert found.status is Status.DIVERGED
    assert torch.equal(found.value, good.value) and torch.isfinite(found.value).all()


def test_what_went_well_goes_on(good):
    method, good = good
    found = iterate(method, max_iterations=12, every=4, state=good.state)
    assert found.status is Status.MAX_ITERATIONS and found.iterations == 12


def test_parameters_that_are_bad_from_the_beginning():
    method = training(initial=torch.full_like(INITIAL, torch.nan))
    assert trained(method).status is Status.DIVERGED


# The file


@pytest.fixture
def file(whole, tmp_path):
    path = tmp_path / "net.h5"
    write_pretrained_network(whole, path)
    return path


def test_a_file_keeps_everything(whole, file):
    found = read_pretrained_network(file)
    same_bits(found, whole)
    for name in ("settings", "duration_s", "created", "fbp_psnr_db"):
        assert getattr(found, name) == getattr(whole, name), name
    assert found.theta.dtype == np.float32
    network = found.make_network()
    assert network.parameters == NETWORK.parameters and network.ceiling == 4.0
    other = replace(whole, theta=whole.theta + np.float32(1e-3))
    write_pretrained_network(other, file)
    with pytest.raises(AssertionError):
        same_bits(read_pretrained_network(file), whole)
    assert [path.name for path in file.parent.iterdir()] == ["net.h5"]


def test_a_network_fed_with_noise_has_no_filtered_back_projection(tmp_path):
    made = pretrain(SCAN, **VERB | {"steps": 1, "input": "noise"})
    write_pretrained_network(made, tmp_path / "net.h5")
    assert np.isnan(read_pretrained_network(tmp_path / "net.h5").fbp_psnr_db)


class Payload:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def foreign_files(folder):
    """Files that are no pretrained network, by name, with what the message must say."""
    trace = folder / "executed"
    (folder / "pickle.h5").write_bytes(pickle.dumps(Payload(trace)))
    torch.save({"theta": Payload(trace)}, folder / "torch.h5")
    (folder / "text.h5").write_text("theta")
    (folder / "empty.h5").write_bytes(b"")
    write_scan(SCAN, folder / "scan.h5")
    write_run(reconstruct(SCAN, method="fbp"), folder / "run.h5")
    with h5py.File(folder / "other.h5", "w") as file:
        file["theta"] = np.zeros(3)
    return {
        **dict.fromkeys(
            ("pickle.h5", "torch.h5", "text.h5", "empty.h5"), "expected a pretrained network"
        ),
        "scan.h5": "another one (format 'dipct-scan'",
        "run.h5": "another one (format 'dipct-run'",
        "other.h5": "another one (format None)",
        "missing.h5": "no such file",
        ".": "this is a folder",
    }


def test_other_files_are_refused_and_nothing_is_executed(tmp_path):
    for name, says in foreign_files(tmp_path).items():
        with pytest.raises(FileFormatError) as caught:
            read_pretrained_network(tmp_path / name)
        assert says in str(caught.value) and str(tmp_path / name) in str(caught.value)
    assert not (tmp_path / "executed").exists()
    # The trap does work where a file is executed.
    with (tmp_path / "pickle.h5").open("rb") as opened:
        pickle.load(opened)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("kept", [10, 2000, -1])
def test_a_truncated_file_is_refused(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(FileFormatError, match=r"net\.h5: .*truncated"):
        read_pretrained_network(file)


def damage(file, name):
    """Change a file; the class of the error and what it must say."""
    network = json.loads(file.attrs["network"])
    if name == "newer":
        file.attrs["version"] = 2
        return FileFormatError, "has version 2, this dipct reads up to 1"
    if name == "parameters":
        theta = file["theta"][:-1]
        del file["theta"]
        file["theta"] = theta
        return FileFormatError, r"small has 76905 parameters, the file holds \(76904,\)"
    if name == "matrix":
        theta = file["theta"][()][None]
        del file["theta"]
        file["theta"] = theta
        return FileFormatError, r"holds \(1, 76905\)"
    if name in ("nan", "infinite"):
        file["theta"][7] = float(name[:3])
        return DataError, "parameters are not finite"
    if name == "theta":
        del file["theta"]
        return FileFormatError, "theta is missing"
    if name == "history":
        del file["history"]
        return FileFormatError, "history is missing"
    if name == "steps":
        del file.attrs["steps"]
        return FileFormatError, "steps of / is missing"
    if name == "no-json":
        file.attrs["network"] = "small"
        return FileFormatError, "cannot be read as such"
    if name == "options":
        file.attrs["network"] = json.dumps(network | {"layers": 7})
        return FileFormatError, "cannot be read as such"
    file.attrs["network"] = json.dumps(network | {"name": "huge"})
    return ConfigurationError, "network must be small"


@pytest.mark.parametrize(
    "name",
    "newer parameters matrix nan infinite theta history steps unknown options no-json".split(),
)
def test_a_damaged_file_is_refused(file, name):
    read_pretrained_network(file)
    with h5py.File(file, "a") as opened:
        error, says = damage(opened, name)
    with pytest.raises(error, match=says) as caught:
        read_pretrained_network(file)
    assert str(file) in str(caught.value)


def test_a_folder_that_is_missing(whole, tmp_path):
    with pytest.raises(OSError, match="could not write"):
        write_pretrained_network(whole, tmp_path / "none" / "net.h5")


# Which scans it fits


def shifted(scan, angle=1e-9):
    return replace(scan, geometry=replace(scan.geometry, angles=scan.geometry.angles + angle))


OTHERS = {
    "views": (SCAN.select_views(np.arange(5)), ["views: 6 there, 5 here"]),
    "order of views": (SCAN.select_views(np.arange(5, -1, -1)), ["angles, positions or spacings"]),
    "angles": (shifted(SCAN), ["angles, positions or spacings differ"]),
    "pixels": (SCAN.with_grid(SCAN.grid.resized(16)), ["image shape: [17, 17] there, [16, 16]"]),
    "pixel size": (
        SCAN.with_grid(Grid(SCAN.grid.shape, 1.01 * SCAN.grid.pixel_size)),
        ["pixel size", "there"],
    ),
    "detector": (SCAN.bin_detector(2), ["detector shape: [27] there, [13] here"]),
    "fan": (
        small_scan("fan", pixels=17, views=6),
        ["geometry: parallel there, fan here"],
    ),
    # The same scan in another unit of length has other numbers: it is another geometry.
    "centimetres": (in_centimetres(SCAN), ["pixel size"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_scan_is_refused_by_what_differs(name, whole):
    other, says = OTHERS[name]
    with pytest.raises(ConfigurationError, match="pretrained for another scan geometry") as caught:
        whole.check_fits(other)
    assert all(part in str(caught.value) for part in says), caught.value


def test_the_same_scan_fits_however_it_comes(whole, file, tmp_path):
    write_scan(SCAN, tmp_path / "scan.h5")
    again = read_scan_file(tmp_path / "scan.h5")
    for network in (whole, read_pretrained_network(file)):
        for scan in (SCAN, again, reconstruct(again, method="fbp").scan):
            network.check_fits(scan)
        # What was measured does not matter.
        network.check_fits(replace(SCAN, projections=0 * SCAN.projections))


# The figure


def test_the_figure_shows_loss_and_validation(learned, tmp_path):
    figure = drawn(training_figure(learned))
    assert misplaced_texts(figure) == []
    left, right = figure.axes
    steps, history = learned.history["iteration"], learned.history
    (loss,) = left.lines
    np.testing.assert_array_equal(loss.get_xdata(), steps)
    # Before the first step there is no loss.
    np.testing.assert_array_equal(loss.get_ydata()[1:], history["training_loss"][1:])
    assert np.isnan(loss.get_ydata()[0]) and left.get_yscale() == "log"
    curve, fbp, kept = right.lines
    np.testing.assert_array_equal(curve.get_ydata(), history["validation_psnr_db"])
    assert set(fbp.get_ydata()) == {learned.fbp_psnr_db}
    assert (*kept.get_xdata(), *kept.get_ydata()) == (
        learned.best_step,
        learned.validation_psnr_db,
    )
    text = all_text(figure)
    for words in ("training loss", "validation PSNR [dB]", "step", "kept", "back-projection"):
        assert words in text
    save_figure(figure, tmp_path / "net.png")
    assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_a_network_fed_with_noise_has_no_line_for_fbp(learned):
    noise = replace(learned, fbp_psnr_db=float("nan"))
    figure = drawn(training_figure(noise))
    assert len(figure.axes[1].lines) == 2 and "back-projection" not in all_text(figure)


def test_the_figure_of_a_training_that_diverged_at_once(learned):
    history = {name: values[:1] for name, values in learned.history.items()}
    figure = drawn(training_figure(replace(learned, history=history, best_step=0)))
    assert misplaced_texts(figure) == []


@pytest.mark.parametrize(("rate", "warned"), [(1.0, True), (5e-3, False)])
def test_a_training_that_did_not_help_is_told(caplog, rate, warned):
    settings = {"network": "small", "precision": "float32", "steps": 6, "batch": 4}
    with caplog.at_level("WARNING", logger="dipct"):
        found = pretrain(
            SCAN, learning_rate=rate, validation_images=2, validate_every=3, **settings
        )
    assert (found.best_step == 0) is warned
    assert ("use a lower learning rate" in caplog.text) is warned
