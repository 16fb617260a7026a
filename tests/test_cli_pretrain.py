"""The commands of educated DIP: `dipct pretrain`, and `dipct reconstruct --method edip`."""

import os
import re
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from terminals import Terminal, environment
from test_cli import PNG, names
from test_pretraining import foreign_files
from test_pretraining import same_bits as same_network
from typer.main import get_command

from dipct import generator_of, read_pretrained_network, read_run
from dipct.cli import app
from dipct.configuration import PretrainingConfiguration
from dipct.pretrain import SupervisedTraining

SCAN = (
    *("simulate", "ellipses", "--geometry", "parallel", "--pixels", 17, "--views", 8),
    *("--oversampling", 1, "--out", "scan.h5"),
)
FAST = (
    *("--network", "small", "--precision", "float32", "--steps", 6, "--batch", 4),
    *("--validation-images", 2, "--validate-every", 3, "--learning-rate", 0.005),
)
PRETRAIN = ("pretrain", "scan.h5", "--out", "net.h5", *FAST)
EDIP = (
    *("reconstruct", "scan.h5", "--method", "edip", "--init", "net.h5", "--out", "run.h5"),
    *("--precision", "float32", "--tv-weight", 4, "--iterations", 20, "--stopping", "none"),
)


@pytest.fixture
def work(tmp_path, monkeypatch, dipct_command):
    """Work in a folder with a scan; commands must succeed and print no escape codes."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = dipct_command(*arguments)
        assert result.code == code, result
        assert "\x1b" not in result.out + result.err and "Traceback" not in result.err
        return result

    run(*SCAN)
    run.folder = tmp_path
    return run


@pytest.fixture
def network(work):
    """The same, with a pretrained network."""
    work(*PRETRAIN)
    return work


# From end to end


def test_two_lines_from_a_scan_to_an_image(work):
    result = work(*PRETRAIN)
    assert names(work.folder) == {"scan.h5", "net.h5", "net.png"}
    found = read_pretrained_network("net.h5")
    for text in (
        *("small", "6, kept that of step", f"{found.validation_psnr_db:.2f} dB"),
        *(f"{found.fbp_psnr_db:.2f} dB", "filtered back-projection", "Wrote net.h5 and net.png."),
    ):
        assert text in result.out
    assert (work.folder / "net.png").read_bytes().startswith(PNG)

    result = work(*EDIP, "--fixed-encoder")
    assert "Wrote run.h5, run.json and run.png." in result.out
    assert names(work.folder) == {"scan.h5", "net.h5", "net.png", "run.h5", "run.json", "run.png"}
    run = read_run("run.h5")
    assert (run.method, run.configuration["init"]) == ("edip", "net.h5")
    assert run.configuration["fixed_encoder"] is True
    generator, theta, scale = generator_of(run)
    np.testing.assert_array_equal((scale * generator(theta))[0].numpy(), run.image)
    changed = run.generator["theta"] != found.theta
    encoder = generator.layout.mask(blocks=generator.network.encoder_blocks).numpy()
    assert not changed[encoder].any() and changed[~encoder].any()

    assert "edip" in work("show", "run.h5").out
    work("reconstruct", "scan.h5", "--method", "fbp", "--out", "fbp.h5")
    assert "edip" in work("compare", "fbp.h5", "run.h5").out
    work("export", "run.h5", "--to", "tiff")


def test_every_option_reaches_its_setting(work):
    images = work.folder / "images"
    images.mkdir()
    for i in range(4):
        values = np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)
        Image.fromarray(values).save(images / f"{i}.png")
    given = {
        **{"images": "images", "steps": 2, "batch": 2, "noise_level": 0.1, "network": "small"},
        **{"input": "both", "output": "identity", "upsampling": "nearest"},
        **{"precision": "float32", "learning_rate": 0.001, "weight_decay": 0.01},
        **{"validation_images": 3, "validate_every": 1, "workers": 0, "views": 4, "snapshots": 2},
        **{"angular_range": 170.0, "bin": 2, "pixels": 16, "projector": "joseph", "seed": 5},
        "device": "cpu",
    }
    assert set(given) == set(PretrainingConfiguration.model_fields)
    options = [(f"--{name.replace('_', '-')}", value) for name, value in given.items()]
    work("pretrain", "scan.h5", "--out", "net.h5", *(word for pair in options for word in pair))
    found = read_pretrained_network("net.h5")
    assert found.settings == given
    assert found.pairs["images"]["kind"] == "folder" and found.scan["views"] == 4
    assert found.history["iteration"].tolist() == [0, 1, 2]
    kept = read_pretrained_network("net.h5", snapshots=True).snapshots
    assert kept.steps.tolist() == [1, 2]


def test_every_setting_has_an_option_with_a_help_text():
    command = get_command(app).commands["pretrain"]
    options = {parameter.name: parameter.help for parameter in command.params}
    assert set(PretrainingConfiguration.model_fields) <= set(options)
    assert all(help and help.endswith(".") for help in options.values()), options


def test_help(dipct_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert "pretrain" in dipct_command("--help").out
    text = dipct_command("pretrain", "--help").out
    for option in ("out", "images", "steps", "batch", "resume", "reader", *("views", "seed")):
        assert f"--{option}" in text
    for option in ("init", "fixed-encoder", "encoder-learning-rate"):
        assert f"--{option}" in dipct_command("reconstruct", "--help").out


def test_the_example_by_its_name(work):
    selection = ("--pixels", 17, "--views", 6, "--seed", 2)
    work("pretrain", "example:walnut", "--out", "net.h5", *FAST, *selection)
    edip = ("reconstruct", "example:walnut", *EDIP[2:])
    work(*edip, *selection)
    assert read_run("run.h5").source == "example:walnut"
    refused = work(*edip, "--pixels", 17, "--views", 5, code=1).err
    assert "views: 6 there, 5 here" in refused


def test_a_configuration_file_for_edip(network):
    (network.folder / "settings.toml").write_text(
        'method = "edip"\ninit = "net.h5"\niterations = 3\ntv_weight = 1\n'
        'precision = "float32"\nencoder_learning_rate = 1e-5\n'
    )
    network("reconstruct", "scan.h5", "--config", "settings.toml", "--out", "run.h5")
    told = read_run("run.h5").configuration
    assert (told["method"], told["init"], told["encoder_learning_rate"]) == ("edip", "net.h5", 1e-5)


# Wrong usage


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--steps", "many"), "--steps"),
        (("--network", "64"), "'64' is not one of"),
        (("--input", "zero"), "'zero' is not one of"),
        (("--precision", "16"), "'16' is not one of"),
        (("--stepz", 3), "--steps"),
    ],
    ids=str,
)
def test_wrong_usage_exits_with_two(work, dipct_command, options, says):
    result = dipct_command("pretrain", "scan.h5", "--out", "a.h5", *options)
    assert result.code == 2 and says in result.err
    assert names(work.folder) == {"scan.h5"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("none.h5", "--out", "a.h5"), "none.h5: no such file"),
        (("scan.h5", "--out", "a.h5", "--resume"), "no checkpoint a.h5.checkpoint"),
        (("scan.h5", "--out", "a.pt"), "must end in .h5"),
        (("scan.h5", "--out", "no/a.h5"), "folder no does not exist"),
        (("scan.h5", "--out", "scan.h5"), "would replace an input"),
        (("scan.h5", "--out", "a.h5", "--steps", 0), "steps"),
        (("scan.h5", "--out", "a.h5", "--batch", 0), "batch"),
        (("scan.h5", "--out", "a.h5", "--workers", -1), "workers"),
        (("scan.h5", "--out", "a.h5", "--snapshots", -1), "snapshots"),
        (("scan.h5", "--out", "a.h5", "--steps", 9, "--snapshots", 10), "at most 9 snapshots"),
        (("scan.h5", "--out", "a.h5", "--noise-level", -1), "noise_level"),
        (("scan.h5", "--out", "a.h5", "--learning-rate", 2), "less than or equal to 1; got 2"),
        (("scan.h5", "--out", "a.h5", "--output", "relu"), "'identity' or 'sigmoid'; got 'relu'"),
        (("scan.h5", "--out", "a.h5", "--images", "elipses"), "or a folder of images"),
        (("scan.h5", "--out", "a.h5", "--images", "shepp-logan"), "or a folder of images"),
        (("scan.h5", "--out", "a.h5", "--views", 9), "cannot choose 9"),
        (("scan.h5", "--out", "a.h5", "--network", "walnut"), "at least 32 x 32"),
        (("scan.h5", "--out", "a.h5", "--device", "tpu"), "device must be a name"),
        (("scan.h5", "--out", "a.h5", "--reader", "row"), "KEY=VALUE"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_errors_exit_with_one_and_a_message(work, arguments, says):
    result = work("pretrain", *arguments, code=1)
    assert result.out == "" and result.err.startswith("error: ") and says in result.err
    assert len(result.err.splitlines()) == 1 and names(work.folder) == {"scan.h5"}


def test_bad_folders_of_images(work):
    images = work.folder / "images"
    images.mkdir()
    command = ("pretrain", "scan.h5", "--out", "net.h5", *FAST, "--images", "images")
    assert "images: no images in this folder" in work(*command, code=1).err
    good = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(good).save(images / "good 0.png")
    assert "Add images" in work(*command, code=1).err
    for i in range(1, 4):
        Image.fromarray(good).save(images / f"good {i}.png")
    whole = (images / "good 0.png").read_bytes()
    (images / "cut.png").write_bytes(whole[:100])
    Image.fromarray(good[:5]).save(images / "narrow.png")
    np.save(images / "nan.npy", np.full((9, 9), np.nan))
    message = work(*command, code=1).err
    for part in ("3 of 7 images", "cut.png", "5 x 20 pixels", "nan.npy", "remove or replace"):
        assert part in message
    assert "good" not in message and names(work.folder) == {"scan.h5", "images"}
    for name in ("cut.png", "narrow.png", "nan.npy"):
        (images / name).unlink()
    work(*command)


def test_files_that_are_no_network(work):
    for name, says in foreign_files(work.folder).items():
        if name == "scan.h5":
            # The scan of this test by now, and an input twice.
            continue
        given = ("reconstruct", "scan.h5", "--method", "edip", "--init", name, "--out", "new.h5")
        result = work(*given, code=1)
        assert result.err.startswith("error: ") and name in result.err and says in result.err
    assert not {"executed", "new.h5", "new.json", "new.png"} & names(work.folder)


def test_a_network_for_another_scan(network):
    before = names(network.folder)
    for options, says in (
        (("--views", 4), "views: 8 there, 4 here"),
        (("--pixels", 16), "image shape: [17, 17] there, [16, 16] here"),
        (("--bin", 2), "detector shape"),
        (("--input", "both"), "cannot be fed with both"),
    ):
        result = network(*EDIP, *options, code=1)
        assert says in result.err and "Setting up the ray transform" not in result.err
    with h5py.File("scan.h5", "a") as file:
        file["geometry/angles"][...] += 1e-3
    assert "angles, positions or spacings differ" in network(*EDIP, code=1).err
    assert names(network.folder) == before


# Divergence


def stopped_at(monkeypatch, step):
    """Make the training end by Ctrl-C in the step after so many."""
    original = SupervisedTraining.step

    def interrupting(self, tensors):
        result = original(self, tensors)
        if int(tensors["step"]) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(SupervisedTraining, "step", interrupting)


def test_a_training_that_diverged_fails_but_keeps_its_best(work, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_at(patch, 4)
        stopped = work(*PRETRAIN, code=130).err
    assert "Stopped after 4 steps" in stopped or "Stopped after 5 steps" in stopped
    assert names(work.folder) == {"scan.h5", "net.h5.checkpoint"}
    with h5py.File("net.h5.checkpoint", "a") as file:
        # So large that the sums of the next step overflow.
        file["tensors/theta"][...] *= 1e30
        best, step = file["tensors/best"][()], int(file["tensors/best_step"][()])
    result = work(*PRETRAIN, "--resume", code=1)
    assert "training diverged" in result.err and "Use a lower --learning-rate" in result.err
    assert names(work.folder) == {"scan.h5", "net.h5", "net.png"}
    found = read_pretrained_network("net.h5")
    assert (found.status, found.best_step) == ("DIVERGED", step) and step == 3
    np.testing.assert_array_equal(found.theta, best)
    assert np.isfinite(found.theta).all()
    work(*EDIP)


# Stopping and going on


def test_resuming_gives_the_same_bits_and_removes_the_checkpoint(work, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_at(patch, 4)
        result = work(*PRETRAIN, code=130)
    assert "--resume" in result.err and names(work.folder) == {"scan.h5", "net.h5.checkpoint"}
    refused = work(*PRETRAIN, "--resume", "--seed", 1, code=1).err
    assert "other data or settings" in refused
    assert "Going on from step" in work(*PRETRAIN, "--resume").err
    work("pretrain", "scan.h5", "--out", "whole.h5", *FAST)
    same_network(*map(read_pretrained_network, ("net.h5", "whole.h5")))
    work("pretrain", "scan.h5", "--out", "other.h5", *FAST, "--seed", 1)
    with pytest.raises(AssertionError):
        same_network(*map(read_pretrained_network, ("net.h5", "other.h5")))
    assert not [name for name in names(work.folder) if name.endswith((".checkpoint", ".part"))]


def test_resuming_keeps_the_snapshots_and_removes_their_folder(work, monkeypatch):
    command = (*PRETRAIN, "--snapshots", 3)
    with monkeypatch.context() as patch:
        stopped_at(patch, 4)
        work(*command, code=130)
    assert names(work.folder) == {"scan.h5", "net.h5.checkpoint", "net.h5.checkpoint.snapshots"}
    work(*command, "--resume")
    assert names(work.folder) == {"scan.h5", "net.h5", "net.png"}
    found = read_pretrained_network("net.h5", snapshots=True).snapshots
    work(*command)
    whole = read_pretrained_network("net.h5", snapshots=True).snapshots
    assert found.steps.tolist() == [1, 4, 6]
    np.testing.assert_array_equal(found.thetas, whole.thetas)


def test_edip_goes_on_from_its_checkpoint(network, monkeypatch):
    from dipct.solver import GeneratorFit

    original, done = GeneratorFit.step, []

    def step(self, tensors):
        done.append(None)
        if len(done) > 12:
            raise KeyboardInterrupt
        return original(self, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(GeneratorFit, "step", step)
        assert "12 iterations" in network(*EDIP, code=130).err
    network(*EDIP, "--resume")
    run = read_run("run.h5")
    network(*EDIP)
    np.testing.assert_array_equal(read_run("run.h5").image, run.image)
    assert not (network.folder / "run.h5.checkpoint").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_keeps_a_checkpoint_from_which_training_goes_on_exactly(work, workers):
    options = (*FAST, "--steps", 200, "--validate-every", 5)
    with Terminal(
        *("pretrain", "scan.h5", "--out", "net.h5", *options, "--workers", workers),
        cwd=work.folder,
    ) as terminal:
        terminal.read_until(r"pretraining.* [1-9]\d*/200", seconds=240)
        children = psutil.Process(terminal.process.pid).children(recursive=True)
        assert len(children) >= workers
        terminal.interrupt()
        assert terminal.wait(seconds=240) == 130
    assert "--resume" in terminal.output and "Traceback" not in terminal.output
    deadline = time.monotonic() + 20
    while any(child.is_running() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(child.is_running() for child in children)
    assert names(work.folder) == {"scan.h5", "net.h5.checkpoint"}
    with h5py.File("net.h5.checkpoint") as file:
        assert 0 < int(file.attrs["iteration"]) < 200
    work("pretrain", "scan.h5", "--out", "net.h5", *options, "--resume")
    work("pretrain", "scan.h5", "--out", "whole.h5", *options)
    same_network(*map(read_pretrained_network, ("net.h5", "whole.h5")))


# Several processes


def torchrun(folder, *arguments):
    """What ``torchrun --nproc-per-node 2`` does; it takes a free port."""
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    return subprocess.run(
        [sys.executable, *command, "dipct", *map(str, arguments)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_two_processes_train_the_network_of_one(work):
    finished = torchrun(work.folder, *PRETRAIN)
    assert finished.returncode == 0, finished.stderr
    # The first process speaks for both.
    assert finished.stdout.count("Wrote net.h5 and net.png.") == 1
    assert names(work.folder) == {"scan.h5", "net.h5", "net.png"}
    work("pretrain", "scan.h5", "--out", "one.h5", *FAST)
    work("pretrain", "scan.h5", "--out", "half.h5", *FAST, "--batch", 2)
    two, one, half = (read_pretrained_network(f"{name}.h5") for name in ("net", "one", "half"))
    start = np.linalg.norm(one.theta - half.theta)
    assert np.linalg.norm(two.theta - one.theta) < 0.02 * start
    assert two.validation_psnr_db == pytest.approx(one.validation_psnr_db, abs=1e-3)
    assert two.fbp_psnr_db == pytest.approx(one.fbp_psnr_db, abs=1e-6)
    np.testing.assert_allclose(
        two.history["training_loss"], one.history["training_loss"], rtol=1e-3
    )
    assert not np.allclose(half.history["training_loss"], one.history["training_loss"], rtol=1e-3)


@pytest.mark.slow
def test_errors_of_two_processes_are_told(work):
    finished = torchrun(work.folder, *PRETRAIN, "--batch", 3)
    assert finished.returncode != 0
    assert "A batch of 3 cannot be shared by 2 processes" in finished.stderr
    assert names(work.folder) == {"scan.h5"}
    if not torch.cuda.is_available():
        finished = torchrun(work.folder, *PRETRAIN, "--device", "cuda")
        assert finished.returncode != 0
        assert re.search(r"error: The device 'cuda:[01]' is not available", finished.stderr)


def test_a_reconstruction_does_not_replace_its_network(network):
    before = (network.folder / "net.h5").read_bytes()
    command = ["net.h5" if word == "run.h5" else word for word in EDIP]
    assert "would replace an input" in network(*command, code=1).err.replace("\n", " ")
    assert (network.folder / "net.h5").read_bytes() == before
