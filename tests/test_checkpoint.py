from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from small_scans import small_scan
from terminals import Terminal

from dipct import GaussianNoise, read_run, reconstruct, write_scan
from dipct.checkpoint import CheckpointWriter, elapsed_of
from dipct.errors import ConfigurationError, FileFormatError, Interrupted
from dipct.generator import has_bfloat16
from dipct.solver import CGLS, SIRT, GeneratorFit, IterationState, PrimalDualTV

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

DIP = {
    "method": "dip",
    "network": "small",
    "precision": "float32",
    "learning_rate": 5e-3,
    "iterations": 45,
}
COMMANDS = {
    "sirt": (SIRT, ("--method", "sirt"), ("--no-nonnegative",)),
    "dip": (
        GeneratorFit,
        (
            *("--method", "dip", "--network", "small", "--precision", "float32"),
            *("--tv-weight", 4, "--no-decay"),
        ),
        ("--seed", 1),
    ),
}
"""Of each method its options on the command line, and some that make it another problem."""
DIP_CASES = {
    "lowest objective": {"tv_weight": "auto"},
    "without decay": {"tv_weight": 4.0, "decay": False, "upsampling": "nearest"},
    "noise level": {"tv_weight": 0.0, "stopping": "discrepancy", "iterations": 300},
    "moving variance": {
        **{"tv_weight": 4.0, "stopping": "variance", "window": 6, "patience": 10},
        **{"output": "identity", "decay": False, "iterations": 200},
    },
    "bfloat16": {"tv_weight": 4.0, "input": "noise", "precision": "bfloat16"},
}


@pytest.fixture(scope="module")
def scan():
    return small_scan(views=10, noise=0.05)


@pytest.fixture(scope="module")
def fan():
    return small_scan("fan", source="ellipses", noise=0.3, pixels=17, views=14)


@pytest.fixture(scope="module")
def uninterrupted(scan, fan):
    """Runs that were never stopped, by the name of their case, each made once."""
    made = {}

    def run(case):
        if case not in made:
            given = (scan, CASES[case][1]) if case in CASES else (fan, DIP | DIP_CASES[case])
            made[case] = reconstruct(given[0], **given[1])
        return made[case]

    return run


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
    assert one.generator.keys() == other.generator.keys()
    for name in one.generator:
        np.testing.assert_array_equal(one.generator[name], other.generator[name])
    for name in ("status", "iterations", "metrics", "configuration", "input_sha256"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize(
    ("case", "steps"),
    [(case, steps) for case in CASES for steps in (0, 7, 20, 33) if (case, steps) != ("cgls", 33)],
)
def test_going_on_gives_the_same_bits(case, steps, scan, uninterrupted, tmp_path, interrupt_after):
    kind, settings = CASES[case]
    whole = uninterrupted(case)
    assert whole.iterations > steps
    path = tmp_path / "state"
    undo = interrupt_after(kind, steps, settings.get("tolerance"))
    with pytest.raises(Interrupted, match=f"{steps} iterations.*--resume"):
        reconstruct(scan, checkpoint=path, **settings)
    undo()
    assert [found.name for found in tmp_path.iterdir()] == ["state"]
    same_bits(reconstruct(scan, checkpoint=path, resume=True, **settings), whole)


@pytest.mark.parametrize(
    ("case", "steps"),
    # The moving variance begins after the warm-up of 100 steps.
    [*((case, steps) for case in DIP_CASES for steps in (0, 20, 33)), ("moving variance", 108)],
)
def test_a_network_goes_on_to_the_same_bits(
    case, steps, fan, uninterrupted, tmp_path, interrupt_after
):
    settings, path = DIP | DIP_CASES[case], tmp_path / "state"
    if settings["precision"] == "bfloat16" and not has_bfloat16(torch.device("cpu")):
        pytest.skip("this processor has no bfloat16")
    whole = uninterrupted(case)
    assert whole.iterations > steps
    undo = interrupt_after(GeneratorFit, steps)
    with pytest.raises(Interrupted, match=f"{steps} iterations.*--resume"):
        reconstruct(fan, checkpoint=path, **settings)
    undo()
    assert [found.name for found in tmp_path.iterdir()] == ["state"]
    same_bits(reconstruct(fan, checkpoint=path, resume=True, **settings), whole)


def test_the_rules_of_the_network_cases_are_met(uninterrupted):
    statuses = {case: uninterrupted(case).status for case in ("noise level", "moving variance")}
    assert statuses == {"noise level": "DISCREPANCY_REACHED", "moving variance": "SETTLED"}
    chosen = uninterrupted("lowest objective").configuration
    assert chosen["tv_weight_chosen_by"] == "auto" and chosen["tv_weight"] >= 2


def test_a_network_stopped_twice_goes_on(fan, uninterrupted, tmp_path, interrupt_after):
    case = "moving variance"
    settings, path = DIP | DIP_CASES[case], tmp_path / "state"
    for number, steps in enumerate((3, 99, 9)):
        undo = interrupt_after(GeneratorFit, steps)
        with pytest.raises(Interrupted):
            reconstruct(fan, checkpoint=path, resume=number > 0, **settings)
        undo()
    same_bits(reconstruct(fan, checkpoint=path, resume=True, **settings), uninterrupted(case))


def test_the_weight_is_not_chosen_again(fan, tmp_path, interrupt_after, monkeypatch):
    settings, path = DIP | DIP_CASES["lowest objective"], tmp_path / "state"
    undo = interrupt_after(GeneratorFit, 4)
    with pytest.raises(Interrupted):
        reconstruct(fan, checkpoint=path, **settings)
    undo()

    def solve(*_):
        raise AssertionError("total variation was solved again")

    monkeypatch.setattr(PrimalDualTV, "step", solve)
    found = reconstruct(fan, checkpoint=path, resume=True, **settings)
    assert found.configuration["tv_weight_chosen_by"] == "auto"
    with pytest.raises(AssertionError, match="solved again"):
        reconstruct(fan, **settings)


def test_the_length_of_a_falling_learning_rate_is_fixed(fan, tmp_path, interrupt_after):
    for case, allowed in (("lowest objective", False), ("without decay", True)):
        settings, path = DIP | DIP_CASES[case], tmp_path / case
        undo = interrupt_after(GeneratorFit, 7)
        with pytest.raises(Interrupted):
            reconstruct(fan, checkpoint=path, **settings)
        undo()
        longer = settings | {"iterations": 52}
        if allowed:
            found = reconstruct(fan, checkpoint=path, resume=True, **longer)
            same_bits(found, reconstruct(fan, **longer))
        else:
            with pytest.raises(ConfigurationError, match="other data or settings"):
                reconstruct(fan, checkpoint=path, resume=True, **longer)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"input": "noise"},
        {"network": "128"},
        {"output": "identity"},
        {"upsampling": "bilinear"},
        {"learning_rate": 4e-3},
        {"decay": True},
        {"stopping": "variance"},
        {"tv_weight": "auto"},
        {"isotropic": True},
        {"precision": "auto"},
    ],
    ids=str,
)
def test_a_checkpoint_of_another_network_is_refused(changed, fan, stopped_network):
    with pytest.raises(ConfigurationError, match="other data or settings"):
        reconstruct(
            fan,
            checkpoint=stopped_network,
            resume=True,
            **DIP | DIP_CASES["without decay"] | changed,
        )


@pytest.fixture(scope="module")
def stopped_network(fan, tmp_path_factory):
    path = tmp_path_factory.mktemp("stopped") / "state"

    def step(self, tensors):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(GeneratorFit, "step", step)
        reconstruct(fan, checkpoint=path, **DIP | DIP_CASES["without decay"])
    return path


def test_a_run_may_be_stopped_more_than_once(scan, uninterrupted, tmp_path, interrupt_after):
    kind, settings = CASES["sirt"]
    whole, path = uninterrupted("sirt"), tmp_path / "state"
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
    from dipct import RayTransform

    return RayTransform(scan.geometry, scan.grid), torch.from_numpy(scan.projections)


@pytest.mark.parametrize("method", COMMANDS)
def test_the_command_line_resumes_and_then_removes_the_checkpoint(
    method, scan, tmp_path, interrupt_after, dipct_command
):
    kind, options, other = COMMANDS[method]
    source, out, whole = (tmp_path / f"{name}.h5" for name in ("scan", "run", "whole"))
    write_scan(scan, source)
    command = ("reconstruct", source, *options, "--iterations", 30, "--out")
    undo = interrupt_after(kind, 17)
    result = dipct_command(*command, out)
    undo()
    assert result.code == 130 and "17 iterations" in result.err and "--resume" in result.err
    assert "Traceback" not in result.err
    kept = {"scan.h5", "run.h5.checkpoint"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    refused = dipct_command(*command, out, "--resume", *other)
    assert refused.code == 1 and "other data or settings" in refused.err
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


@pytest.mark.parametrize("method", COMMANDS)
def test_ctrl_c_keeps_a_checkpoint_from_which_the_run_goes_on_exactly(
    method, scan, tmp_path, dipct_command
):
    write_scan(scan, tmp_path / "scan.h5")
    _, options, _ = COMMANDS[method]
    command = ("reconstruct", "scan.h5", *options, "--iterations", 10**7, "--out")
    with Terminal(*command, "run.h5", cwd=tmp_path) as terminal:
        terminal.read_until(rf"{method}.* [1-9]\d*/10000000")
        terminal.interrupt()
        assert terminal.wait() == 130
    assert "--resume" in terminal.output and "Traceback" not in terminal.output
    checkpoint = tmp_path / "run.h5.checkpoint"
    assert {path.name for path in tmp_path.iterdir()} == {"scan.h5", checkpoint.name}
    with h5py.File(checkpoint) as file:
        iterations = int(file.attrs["iteration"]) + 4
    command = ("reconstruct", tmp_path / "scan.h5", *options, "--iterations", iterations)
    assert dipct_command(*command, "--out", tmp_path / "run.h5", "--resume").code == 0
    assert dipct_command(*command, "--out", tmp_path / "whole.h5").code == 0
    assert not checkpoint.exists()
    same_bits(read_run(tmp_path / "run.h5"), read_run(tmp_path / "whole.h5"))


def test_the_time_of_all_legs_is_counted(tmp_path):
    path = tmp_path / "state"
    state = IterationState(1, {"x": torch.zeros(2)})
    CheckpointWriter(path, "problem", {}, elapsed=100.0).write(state)
    assert 100 <= elapsed_of(path) < 110
