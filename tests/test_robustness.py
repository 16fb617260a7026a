"""Bad input and bad luck: a clear message, a non-zero exit, nothing half-written."""

import resource
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import replace

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
import torch
from skimage import io
from small_scans import small_scan
from terminals import DIPCT, environment

from dipct import read_run, write_scan
from dipct.solver import SIRT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a good scan in it; the tests work there."""
    monkeypatch.chdir(tmp_path)
    write_scan(small_scan(views=8), "scan.h5")
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def refuses(folder, dipct_command):
    """Check that a command fails with a message and leaves the folder as it was."""

    def check(*arguments, says, code=1):
        before = contents(folder)
        result = dipct_command(*arguments)
        assert result.code == code, result
        assert result.err.count("error: ") == 1 and "Traceback" not in result.err
        message = result.err[result.err.index("error: ") :]
        for part in (says,) if isinstance(says, str) else says:
            assert part in message, message
        assert contents(folder) == before
        return message

    return check


def reconstruct(scan, *options, method="fbp"):
    return ("reconstruct", scan, "--method", method, "--out", "run.h5", *options)


# Scans


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["fbp", "tv"])
def test_projections_that_are_not_finite(folder, refuses, bad, method):
    with h5py.File("scan.h5", "a") as file:
        file["projections"][2, 5] = bad
    message = ("scan.h5", "1 of", "NaN or infinite", "(2, 5)")
    refuses(*reconstruct("scan.h5", method=method), says=message)
    refuses("scan", "info", "scan.h5", says=message)


@pytest.mark.parametrize("kept", [0, 100, 3000, -1])
def test_a_truncated_scan_file(folder, refuses, kept):
    whole = (folder / "scan.h5").read_bytes()
    (folder / "scan.h5").write_bytes(whole[:kept])
    refuses(*reconstruct("scan.h5"), says=("scan.h5", "truncated"))


def test_foreign_files_as_a_scan(folder, refuses):
    (folder / "text.h5").write_text("no scan")
    (folder / "text.mat").write_text("no scan")
    (folder / "empty.mat").write_bytes(b"")
    (folder / "folder").mkdir()
    tifffile.imwrite("image.tif", np.ones((8, 8), np.float32))
    with h5py.File("other.h5", "w") as file:
        file["x"] = 1
    scipy.io.savemat("other.mat", {"x": np.ones(3)})
    scipy.io.savemat("good.mat", {"CtDataFull": np.ones(3)})
    (folder / "cut.mat").write_bytes((folder / "good.mat").read_bytes()[:150])
    for name in ("text.h5", "text.mat", "empty.mat", "image.tif", "other.h5", "folder"):
        refuses(*reconstruct(name), says=(name, "can be read from", "HTC 2022"))
    for name in ("other.mat", "cut.mat"):
        refuses(*reconstruct(name), says=name)
    refuses(*reconstruct("missing.h5"), says=("missing.h5", "no such file"))


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("projections", np.zeros((7, 37), np.float32), "(8, 37)"),
        ("geometry/angles", np.zeros(9), "9"),
        ("geometry/angles", np.full(8, np.nan), "angles"),
        ("geometry/angles", np.arange(8) * 30.0, "degrees"),
        ("truth", np.zeros((4, 4), np.float32), "truth"),
    ],
    ids=str,
)
def test_geometry_and_data_that_disagree(folder, refuses, name, values, says):
    with h5py.File("scan.h5", "a") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = values
        file[name].attrs.update(attributes)
    refuses(*reconstruct("scan.h5"), says=("scan.h5", says))


def data_exchange(path, *, white=1000.0, dark=10.0, n_angles=60, column=None):
    """A small Data Exchange file of a disc."""
    shape = (60, 1, 32)
    column_numbers = np.arange(32) - 15.5
    lengths = 2 * np.sqrt(np.maximum(64 - column_numbers**2, 0))
    counts = dark + (1000 - dark) * np.exp(-0.05 * lengths)
    whites = np.full((3, *shape[1:]), white)
    if column is not None:
        whites[..., column] = 0
    with h5py.File(path, "w") as file:
        file["exchange/data"] = np.broadcast_to(counts, shape).astype(np.float32)
        file["exchange/data_white"] = whites.astype(np.float32)
        file["exchange/data_dark"] = np.full((2, *shape[1:]), dark, np.float32)
        file["exchange/theta"] = np.linspace(0, 180, n_angles, endpoint=False)


@pytest.mark.parametrize("wrong", [{"white": 0.0}, {"white": -3.0}, {"white": 10.0}, {"column": 7}])
def test_zero_or_negative_flats(folder, refuses, dipct_command, wrong):
    data_exchange("good.h5")
    assert dipct_command("scan", "info", "good.h5").code == 0
    data_exchange("bad.h5", **wrong)
    message = refuses(*reconstruct("bad.h5"), says="bad.h5")
    assert "flat" in message


def test_angles_and_views_of_another_number(folder, refuses):
    data_exchange("bad.h5", n_angles=59)
    refuses(*reconstruct("bad.h5"), says=("bad.h5", "59 angles", "60 views"))


# Truth


def test_bad_truths(folder, refuses):
    truth = small_scan(views=8).truth
    tifffile.imwrite("good.tif", truth)
    (folder / "cut.tif").write_bytes((folder / "good.tif").read_bytes()[:900])
    (folder / "text.tif").write_text("no picture")
    (folder / "cut.h5").write_bytes((folder / "scan.h5").read_bytes()[:2000])
    tifffile.imwrite("nan.tif", np.full_like(truth, np.nan))
    tifffile.imwrite("small.tif", truth[:-1])
    io.imsave("grey.png", np.zeros((25, 25), np.uint8), check_contrast=False)
    for name, says in (
        ("cut.tif", "cannot be read"),
        ("text.tif", "cannot be read"),
        ("cut.h5", "truncated"),
        ("nan.tif", "NaN"),
        ("small.tif", "(24, 25)"),
        ("grey.png", "whole numbers"),
        ("missing.tif", "no such image"),
        ("notes.txt", "no such image"),
    ):
        refuses(*reconstruct("scan.h5", "--truth", name), says=(name, says))


# Settings


def test_unknown_configuration_keys(folder, refuses):
    (folder / "settings.toml").write_text('method = "tv"\ntv_wieght = 3\nvews = 4\n')
    says = ("settings.toml", "'tv_wieght'", "tv_weight", "'vews'", "views")
    refuses("reconstruct", "scan.h5", "--out", "run.h5", "--config", "settings.toml", says=says)


def test_an_image_larger_than_memory(folder, refuses):
    for pixels in (10**6, 10**15):
        for scan in ("scan.h5", "example:walnut"):
            for method in ("fbp", "tv"):
                command = reconstruct(scan, "--pixels", pixels, method=method)
                refuses(*command, says=("GiB", "Use fewer pixels"))
        refuses("simulate", "walnut", "--pixels", pixels, "--out", "new.h5", says="GiB")


def test_a_stored_image_larger_than_memory(folder, refuses):
    with h5py.File("scan.h5", "a") as file:
        file["grid"].attrs["shape"] = (10**6, 10**6)
        del file["truth"]
    refuses(*reconstruct("scan.h5"), says=("GiB", "Use fewer pixels"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("method", ["fbp", "tv"])
def test_a_missing_gpu(folder, refuses, method):
    command = reconstruct("scan.h5", "--device", "cuda", method=method)
    refuses(*command, says=("'cuda' is not available", "Use device cpu"))


def test_outputs_that_cannot_be(folder, refuses):
    (folder / "folder.h5").mkdir()
    refuses("simulate", "discs", "--out", "no/scan.h5", says="folder no does not exist")
    refuses("simulate", "discs", "--out", "folder.h5", says="is a folder")
    refuses("simulate", "discs", "--out", "new.tif", says="must end in .h5")
    refuses("simulate", "discs", "--like", "scan.h5", "--out", "scan.h5", says="replace an input")
    command = ("reconstruct", "scan.h5", "--method", "fbp", "--out")
    refuses(*command, "scan.h5", says="replace an input")
    refuses(*command, "./../" + folder.name + "/scan.h5", says="replace an input")
    tifffile.imwrite("run.tif", np.ones((25, 25), np.float32))
    refuses(*command, "run.tif", says="must end in .h5")


def test_the_figure_does_not_replace_a_picture_that_is_an_input(folder, refuses):
    np.save("cat.npy", np.ones((25, 25), np.float32))
    (folder / "cat.npy").rename("cat.png")
    command = ("reconstruct", "scan.h5", "--method", "fbp", "--out", "cat.h5", "--truth", "cat.png")
    refuses(*command, says="cat.png would replace an input")


# A full disk


@contextmanager
def full_disk(size):
    """Let no file grow beyond so many bytes, the log of the tests included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    "command",
    [
        ("simulate", "discs", "--pixels", 16, "--out", "new.h5"),
        ("scan", "info", "scan.h5"),
        reconstruct("scan.h5"),
        reconstruct("scan.h5", "--iterations", 3, method="sirt"),
        ("show", "old.h5"),
        ("compare", "old.h5", "old.h5"),
        ("export", "old.h5", "--to", "tiff"),
        ("export", "old.h5", "--to", "nifti"),
    ],
    ids=lambda command: " ".join(map(str, command[:2])),
)
def test_a_full_disk(folder, refuses, dipct_command, command):
    made = dipct_command("reconstruct", "scan.h5", "--method", "fbp", "--out", "old.h5")
    assert made.code == 0
    (folder / "old.png").unlink()
    with full_disk(100):
        refuses(*command, says=("could not write", "File too large", "half-written"))


def test_a_full_disk_keeps_the_old_result(folder, refuses, dipct_command):
    assert dipct_command(*reconstruct("scan.h5")).code == 0
    with full_disk(1000):
        refuses(*reconstruct("scan.h5", "--filter", "hann"), says="could not write")
    assert read_run("run.h5").configuration["filter"] == "ram-lak"


def test_a_full_disk_at_the_end_loses_no_work(folder, refuses, dipct_command, monkeypatch):
    original, done = SIRT.step, []

    def step(self, tensors):
        done.append(None)
        if len(done) > 9:
            raise KeyboardInterrupt
        return original(self, tensors)

    monkeypatch.setattr(SIRT, "step", step)
    command = reconstruct("scan.h5", "--iterations", 12, method="sirt")
    assert dipct_command(*command).code == 130
    monkeypatch.setattr(SIRT, "step", original)
    with full_disk(1000):
        refuses(*command, "--resume", says="could not write")
    assert dipct_command(*command, "--resume").code == 0
    assert read_run("run.h5").iterations == 12 and not (folder / "run.h5.checkpoint").exists()


def test_a_full_disk_in_a_program_of_its_own(folder):
    before = contents(folder)
    finished = subprocess.run(
        [*DIPCT, "simulate", "discs", "--pixels", "16", "--out", "new.h5"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 1 and finished.stdout == ""
    assert "could not write" in finished.stderr and "Traceback" not in finished.stderr
    assert contents(folder) == before


# Unchanged input


def test_a_matrix_without_its_noise_says_what_it_needs(folder, refuses):
    scan = small_scan(views=8)
    quiet = np.zeros_like(scan.projections)
    write_scan(
        replace(scan, projections=quiet, noise=None, truth=None, truth_source=""), "quiet.h5"
    )
    refuses(*reconstruct("quiet.h5", method="tv"), says=("does not describe its noise", "sirt"))
