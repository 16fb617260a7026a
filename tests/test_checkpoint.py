from dataclasses import replace

import h5py
import numpy as np
import pytest
from small_scans import small_scan
from terminals import Terminal

from dipct import GaussianNoise, read_run, reconstruct, write_scan
from dipct.checkpoint import CheckpointWriter
from dipct.errors import ConfigurationError, FileFormatError, Interrupted
from dipct.solver import CGLS, SIRT, IterationState, PrimalDualTV

CASES = {
    "cgls": (CGLS, {"method": "cgls", "iterations": 25, "tolerance": 1e-9}),
    "sirt": (SIRT, {"method": "sirt", "iterations": 43}),
    "sirt to the noise": (
        SIRT,
        {"method": "sirt", "iterations": 400, "stopping": "discrepancy"},
    ),
    "tv": (PrimalDualTV, {"method": "tv", "tv_weight": 8.0, "iterations": 85, "tolerance": 1e-9}),
    "tv by discrepancy": (
        PrimalDualTV,
        {"method": "tv", "tv_weight": "discrepancy", "iterations": 87, "tolerance": 1e-9},
    ),
}


@pytest.fixture(scope="module")
def scan():
    return small_scan(views=10, noise=0.05)


@pytest.fixture
def interrupt_after(monkeypatch):
    """Make a step raise KeyboardInterrupt once so many of the final iteration are complete."""

    def prepare(kind, steps, tolerance=None):
        original, done = kind.step, []

        def step(self, tensors):
            result = original(self, tensors)
            if tolerance is None or self.tolerance == tolerance:
                done.append(None)
                if len(done) > steps:
                    raise KeyboardInterrupt
            return result

        monkeypatch.setattr(kind, "step", step)
        return lambda: monkeypatch.setattr(kind, "step", original)

    return prepare


def same_bits(one, other):
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.projections, other.projections)
    assert one.history.keys() == other.history.keys()
    for name in one.history:
        np.testing.assert_array_equal(one.history[name], other.history[name])
    for name in ("status", "iterations", "metrics", "configuration", "input_sha256"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize(
    ("case", "steps"),
    [(case, steps) for case in CASES for steps in (0, 7, 20, 33) if (case, steps) != ("cgls", 33)],
)
def test_going_on_gives_the_same_bits(case, steps, scan, tmp_path, interrupt_after):
    kind, settings = CASES[case]
    whole = reconstruct(scan, **settings)
    assert whole.iterations > steps
    path = tmp_path / "state"
    undo = interrupt_after(kind, steps, settings.get("tolerance"))
    with pytest.raises(Interrupted, match=f"{steps} iterations.*--resume"):
        reconstruct(scan, checkpoint=path, **settings)
    undo()
    assert [found.name for found in tmp_path.iterdir()] == ["state"]
    same_bits(reconstruct(scan, checkpoint=path, resume=True, **settings), whole)


def test_a_run_may_be_stopped_more_than_once(scan, tmp_path, interrupt_after):
    kind, settings = CASES["sirt"]
    whole, path = reconstruct(scan, **settings), tmp_path / "state"
    for number, steps in enumerate((3, 9, 14)):
        undo = interrupt_after(kind, steps)
        with pytest.raises(Interrupted):
            reconstruct(scan, checkpoint=path, resume=number > 0, **settings)
        undo()
    same_bits(reconstruct(scan, checkpoint=path, resume=True, **settings), whole)


def stopped(scan, path, interrupt_after, case="sirt", steps=12):
    kind, settings = CASES[case]
    undo = interrupt_after(kind, steps, settings.get("tolerance"))
    with pytest.raises(Interrupted):
        reconstruct(scan, checkpoint=path, **settings)
    undo()
    return settings


def test_more_iterations_are_allowed(scan, tmp_path, interrupt_after):
    path = tmp_path / "state"
    settings = stopped(scan, path, interrupt_after) | {"iterations": 61}
    same_bits(
        reconstruct(scan, checkpoint=path, resume=True, **settings), reconstruct(scan, **settings)
    )


def test_fewer_iterations_than_done_give_the_stopped_image(scan, tmp_path, interrupt_after):
    path = tmp_path / "state"
    settings = stopped(scan, path, interrupt_after)
    found = reconstruct(scan, checkpoint=path, resume=True, **settings | {"iterations": 5})
    assert (found.iterations, found.status) == (12, "MAX_ITERATIONS")


def test_a_checkpoint_of_something_else_is_refused(scan, tmp_path, interrupt_after):
    path = tmp_path / "state"
    settings = stopped(scan, path, interrupt_after)
    others = [
        (replace(scan, projections=scan.projections * 1.001), settings),
        (scan.select_views(np.arange(9)), settings),
        (replace(scan, noise=GaussianNoise(0.7)), settings),
        (scan, settings | {"nonnegative": False}),
        (scan, settings | {"projector": "joseph"}),
        (scan, settings | {"pixels": 20}),
        (scan, {"method": "cgls"}),
    ]
    before = path.read_bytes()
    for other, changed in others:
        with pytest.raises(ConfigurationError, match="other data or settings"):
            reconstruct(other, checkpoint=path, resume=True, **changed)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 500, -1])
def test_a_truncated_checkpoint_is_refused(scan, tmp_path, interrupt_after, kept):
    path = tmp_path / "state"
    settings = stopped(scan, path, interrupt_after)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileFormatError, match="state"):
        reconstruct(scan, checkpoint=path, resume=True, **settings)


def test_a_foreign_or_missing_checkpoint_is_refused(scan, tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(scan, path)
    with pytest.raises(FileFormatError, match="not a checkpoint"):
        reconstruct(scan, method="cgls", checkpoint=path, resume=True)
    with pytest.raises(FileFormatError, match="no such file"):
        reconstruct(scan, method="cgls", checkpoint=tmp_path / "none", resume=True)
    with pytest.raises(ConfigurationError, match="name of the checkpoint"):
        reconstruct(scan, method="cgls", resume=True)
    with pytest.raises(ConfigurationError, match="nothing to resume"):
        reconstruct(scan, method="fbp", checkpoint=path, resume=True)


def test_a_newer_checkpoint_is_refused(scan, tmp_path, interrupt_after):
    path = tmp_path / "state"
    settings = stopped(scan, path, interrupt_after)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 99
    with pytest.raises(FileFormatError, match="this dipct can read"):
        reconstruct(scan, checkpoint=path, resume=True, **settings)


def test_without_a_checkpoint_the_message_says_so(scan, interrupt_after):
    interrupt_after(SIRT, 4)
    with pytest.raises(Interrupted, match="no checkpoint was asked for"):
        reconstruct(scan, method="sirt")


def test_the_writer_keeps_its_pace(scan, tmp_path):
    method = CGLS(*_problem(scan))
    state = IterationState(3, method.start())
    state = state.recorded(method.figures(state.tensors))
    patient = CheckpointWriter(tmp_path / "patient", "x", {})
    eager = CheckpointWriter(tmp_path / "eager", "x", {}, seconds=0)
    patient(state)
    eager(state)
    assert [path.name for path in tmp_path.iterdir()] == ["eager"]


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_work(scan, tmp_path, caplog):
    method = CGLS(*_problem(scan))
    writer = CheckpointWriter(tmp_path / "no" / "state", "x", {}, seconds=0)
    with caplog.at_level("WARNING", logger="dipct"):
        writer(IterationState(0, method.start()))
    assert "No checkpoint: could not write" in caplog.text
    with pytest.raises(OSError, match="could not write"):
        writer.write(IterationState(0, method.start()))


def _problem(scan):
    import torch

    from dipct import RayTransform

    return RayTransform(scan.geometry, scan.grid), torch.from_numpy(scan.projections)


def test_the_command_line_resumes_and_then_removes_the_checkpoint(
    scan, tmp_path, interrupt_after, dipct_command
):
    source, out, whole = (tmp_path / f"{name}.h5" for name in ("scan", "run", "whole"))
    write_scan(scan, source)
    command = ("reconstruct", source, "--method", "sirt", "--iterations", 30, "--out")
    undo = interrupt_after(SIRT, 17)
    result = dipct_command(*command, out)
    undo()
    assert result.code == 130 and "17 iterations" in result.err and "--resume" in result.err
    assert "Traceback" not in result.err
    kept = {"scan.h5", "run.h5.checkpoint"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    other = dipct_command(*command, out, "--resume", "--no-nonnegative")
    assert other.code == 1 and "other data or settings" in other.err
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert dipct_command(*command, out, "--resume").code == 0
    assert dipct_command(*command, whole).code == 0
    same_bits(read_run(out), read_run(whole))
    assert not list(tmp_path.glob("*.checkpoint")) and not list(tmp_path.glob(".*"))


def test_interrupting_the_choice_of_the_weight_leaves_nothing(
    scan, tmp_path, interrupt_after, dipct_command
):
    source = tmp_path / "scan.h5"
    write_scan(scan, source)
    interrupt_after(PrimalDualTV, 5)
    command = ("reconstruct", source, "--tv-weight", "discrepancy", "--out", tmp_path / "run.h5")
    result = dipct_command(*command)
    assert result.code == 130 and "Stopped" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["scan.h5"]


def test_ctrl_c_keeps_a_checkpoint_from_which_the_run_goes_on_exactly(
    scan, tmp_path, dipct_command
):
    write_scan(scan, tmp_path / "scan.h5")
    command = ("reconstruct", "scan.h5", "--method", "sirt", "--iterations", 10**7, "--out")
    with Terminal(*command, "run.h5", cwd=tmp_path) as terminal:
        terminal.read_until(r"sirt.* [1-9]\d*/10000000")
        terminal.interrupt()
        assert terminal.wait() == 130
    assert "--resume" in terminal.output and "Traceback" not in terminal.output
    checkpoint = tmp_path / "run.h5.checkpoint"
    assert {path.name for path in tmp_path.iterdir()} == {"scan.h5", checkpoint.name}
    with h5py.File(checkpoint) as file:
        iterations = int(file.attrs["iteration"]) + 4
    command = ("reconstruct", tmp_path / "scan.h5", "--method", "sirt", "--iterations", iterations)
    assert dipct_command(*command, "--out", tmp_path / "run.h5", "--resume").code == 0
    assert dipct_command(*command, "--out", tmp_path / "whole.h5").code == 0
    assert not checkpoint.exists()
    same_bits(read_run(tmp_path / "run.h5"), read_run(tmp_path / "whole.h5"))
