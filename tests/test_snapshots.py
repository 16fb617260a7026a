"""Snapshots of a training: their steps, memory and files, going on exactly, the network's file."""

import shutil
from dataclasses import replace
from importlib import import_module

import h5py
import numpy as np
import pytest
from test_cli import names
from test_pretraining import SCAN, VERB, same_bits
from torch import distributed, multiprocessing

from dipct import pretrain, read_pretrained_network, write_pretrained_network
from dipct.errors import (
    ConfigurationError,
    DataError,
    FileFormatError,
    InsufficientMemoryError,
    Interrupted,
)
from dipct.pipeline import remove_checkpoint
from dipct.pretrain import SupervisedTraining
from dipct.pretrain.pretrained_network import count_snapshots
from dipct.pretrain.snapshots import SnapshotKeeper, snapshot_steps

KEPT = VERB | {"snapshots": 5}
STEPS = [1, 4, 6, 9, 12]
"""Of five snapshots of twelve steps."""
FILES = [f"{step:09d}.npy" for step in STEPS]


def same_snapshots(one, other):
    np.testing.assert_array_equal(one.snapshots.steps, other.snapshots.steps)
    np.testing.assert_array_equal(one.snapshots.thetas, other.snapshots.thetas)


def same_network(one, other):
    same_snapshots(one, other)
    same_bits(replace(one, snapshots=None), replace(other, snapshots=None))


@pytest.fixture(scope="module")
def watched():
    """A network with snapshots, and the parameters of every step."""
    thetas = {}

    def note(state):
        thetas[state.iteration] = state.tensors["theta"].numpy().copy()

    return pretrain(SCAN, callbacks=[note], **KEPT | {"validate_every": 1}), thetas


@pytest.fixture(scope="module")
def network():
    return pretrain(SCAN, **KEPT)


# Which steps


@pytest.mark.parametrize("steps", [1, 4, 7, 12, 50, 333])
def test_snapshots_are_equally_spaced_from_a_tenth_of_the_training_to_its_end(steps):
    first = max(1, round(steps / 10))
    most = steps - first + 1
    for count in range(2, most + 1):
        found = snapshot_steps(steps, count)
        assert (found[0], found[-1], len(set(found))) == (first, steps, count)
        gaps = np.diff(found)
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
    assert snapshot_steps(steps, most) == list(range(first, steps + 1))
    assert snapshot_steps(steps, 0) == []
    with pytest.raises(ConfigurationError, match=rf"at most {most} .* got snapshots={most + 1}"):
        snapshot_steps(steps, most + 1)


def test_too_many_snapshots_are_refused_before_any_work(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("long work has begun")

    monkeypatch.setattr(import_module("dipct.pipeline.pretrain"), "ray_transform", fail)
    with pytest.raises(ConfigurationError, match=r"12 steps at most 12 .*Train longer or keep"):
        pretrain(SCAN, **VERB, snapshots=13)
    with pytest.raises(AssertionError, match="long work"):
        pretrain(SCAN, **VERB, snapshots=12)
    with pytest.raises(InsufficientMemoryError, match=r"Keeping 900000 snapshots .*Keep fewer"):
        pretrain(SCAN, **VERB | {"steps": 1_000_000}, snapshots=900_000)


@pytest.mark.parametrize("bad", [-1, 2.5, True, "all"])
def test_an_impossible_number_of_snapshots(bad):
    with pytest.raises(ConfigurationError, match=r"(?i)snapshots"):
        pretrain(SCAN, **VERB, snapshots=bad)


# In memory


def test_snapshots_are_the_parameters_at_their_steps(watched):
    found, thetas = watched
    assert found.snapshots.steps.tolist() == STEPS
    assert found.snapshots.thetas.dtype == np.float32
    for step, theta in zip(STEPS, found.snapshots.thetas, strict=True):
        np.testing.assert_array_equal(theta, thetas[step])
        assert not any(np.array_equal(theta, thetas[k]) for k in thetas if k != step)


def test_the_last_snapshot_is_the_end_of_the_training(watched):
    found, thetas = watched
    np.testing.assert_array_equal(found.snapshots.thetas[-1], thetas[12])
    # Which is not always what the network is.
    best = found.best_step
    np.testing.assert_array_equal(found.theta, thetas[best])
    assert (best == 12) == np.array_equal(found.theta, found.snapshots.thetas[-1])


def test_how_often_is_recorded_does_not_matter(watched, network):
    same_snapshots(network, watched[0])


def test_keeping_snapshots_changes_nothing_else(network):
    without = pretrain(SCAN, **VERB)
    assert without.snapshots is None and network.settings["snapshots"] == 5
    same_bits(replace(network, snapshots=None), without)


# In files


def test_with_a_checkpoint_snapshots_are_files(network, tmp_path):
    folder = tmp_path / "state.snapshots"
    found = pretrain(SCAN, checkpoint=tmp_path / "state", **KEPT)
    same_snapshots(found, network)
    assert sorted(names(folder)) == FILES
    for name, theta in zip(FILES, network.snapshots.thetas, strict=True):
        np.testing.assert_array_equal(np.load(folder / name), theta)


def test_without_snapshots_there_is_no_folder(tmp_path):
    pretrain(SCAN, checkpoint=tmp_path / "state", **VERB | {"steps": 1})
    assert names(tmp_path) == set()


def test_a_training_that_begins_anew_removes_those_of_another(network, tmp_path):
    folder = tmp_path / "state.snapshots"
    folder.mkdir()
    for name in ("000000002.npy", FILES[0]):
        np.save(folder / name, np.zeros(3))
    same_snapshots(pretrain(SCAN, checkpoint=tmp_path / "state", **KEPT), network)
    assert sorted(names(folder)) == FILES


def test_snapshots_that_cannot_be_written_are_kept_in_memory(network, tmp_path, caplog):
    def stand_in_the_way(state):
        if state.iteration == 8:
            (tmp_path / "state.snapshots" / FILES[3]).mkdir()

    with caplog.at_level("WARNING", logger="dipct"):
        found = pretrain(SCAN, checkpoint=tmp_path / "state", callbacks=[stand_in_the_way], **KEPT)
    assert caplog.text.count("step 9 is kept in memory only; once stopped") == 1
    assert f"could not write 307748 bytes to {tmp_path}" in caplog.text
    same_snapshots(found, network)


def test_removing_a_checkpoint_removes_its_snapshots_only(tmp_path):
    for name in ("state", "other"):
        (tmp_path / name).write_text("a checkpoint")
        (tmp_path / f"{name}.snapshots").mkdir()
        np.save(tmp_path / f"{name}.snapshots" / FILES[0], np.zeros(3))
    # Once more there is nothing to remove.
    for _ in range(2):
        remove_checkpoint(tmp_path / "state")
        assert names(tmp_path) == {"other", "other.snapshots"}
    assert names(tmp_path / "other.snapshots") == {FILES[0]}


# Stopping and going on


@pytest.fixture
def stop(monkeypatch, tmp_path):
    """Pretrain, interrupted in the step after so many; the checkpoint."""
    original = SupervisedTraining.step

    def run(done, **options):
        def step(self, tensors):
            if int(tensors["step"]) == done:
                raise KeyboardInterrupt
            return original(self, tensors)

        with monkeypatch.context() as patch:
            patch.setattr(SupervisedTraining, "step", step)
            with pytest.raises(Interrupted, match=f"Stopped after {done} steps"):
                pretrain(SCAN, checkpoint=tmp_path / "state", **KEPT, **options)
        return tmp_path / "state"

    return run


def go_on(path, **changed):
    return pretrain(SCAN, checkpoint=path, resume=True, **KEPT | changed)


@pytest.mark.parametrize("done", [0, 4, 11])
def test_going_on_gives_the_same_snapshots(done, stop, network):
    path = stop(done)
    folder = path.with_name("state.snapshots")
    assert sorted(names(folder)) == [FILES[i] for i in range(5) if STEPS[i] <= done]
    found = go_on(path)
    same_network(found, network)
    remove_checkpoint(path)
    assert names(path.parent) == set()


def test_stopped_twice_gives_the_same_snapshots(stop, network):
    stop(3)
    same_snapshots(go_on(stop(8, resume=True)), network)


def test_from_an_earlier_step_snapshots_are_written_again(stop, network, tmp_path):
    """After a crash the checkpoint can be older than the snapshots."""
    earlier = shutil.copy(stop(5), tmp_path / "earlier")
    path = stop(10, resume=True)
    shutil.copy(earlier, path)
    np.save(tmp_path / "state.snapshots" / FILES[2], np.zeros(network.theta.shape, np.float32))
    same_snapshots(go_on(path), network)


def test_stopped_between_a_step_and_its_snapshot(network, tmp_path, monkeypatch):
    original = SnapshotKeeper.__call__

    def interrupted(self, state):
        if state.iteration == STEPS[2]:
            raise KeyboardInterrupt
        original(self, state)

    path = tmp_path / "state"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after 6 steps"):
        patch.setattr(SnapshotKeeper, "__call__", interrupted)
        pretrain(SCAN, checkpoint=path, **KEPT)
    assert sorted(names(tmp_path / "state.snapshots")) == FILES[:2]
    same_snapshots(go_on(path), network)


def test_another_number_of_snapshots_is_another_training(stop):
    path = stop(5)
    for changed in (0, 4):
        with pytest.raises(ConfigurationError, match="other data or settings"):
            go_on(path, snapshots=changed)
    assert sorted(names(path.with_name("state.snapshots"))) == FILES[:2]


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "objects"])
def test_a_snapshot_that_is_missing_or_damaged_is_noticed_before_going_on(
    damage, stop, monkeypatch
):
    path = stop(5)
    file = path.with_name("state.snapshots") / FILES[1]
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "objects":
        np.save(file, np.array([print]), allow_pickle=True)
    else:
        file.write_bytes(whole[:-100] if damage == "truncated" else b"theta")

    def fail(*_):
        raise AssertionError("the training goes on")

    says = r"000000004\.npy: the snapshot of step 4 is missing or unreadable .*training anew"
    monkeypatch.setattr(SupervisedTraining, "step", fail)
    with pytest.raises(FileFormatError, match=says):
        go_on(path)
    file.write_bytes(whole)
    with pytest.raises(AssertionError, match="goes on"):
        go_on(path)


# Divergence


@pytest.fixture
def diverged(stop):
    """A training that diverged after five steps, and the folder of its snapshots."""
    path = stop(5)
    with h5py.File(path, "a") as file:
        # So large that the sums of the next step overflow.
        file["tensors/theta"][...] *= 1e30
    return go_on(path), path.with_name("state.snapshots")


def test_of_a_training_that_diverged_only_good_snapshots_are_kept(diverged, network, tmp_path):
    found, folder = diverged
    assert found.status == "DIVERGED" and found.steps == 5
    assert found.snapshots.steps.tolist() == STEPS[:2]
    np.testing.assert_array_equal(found.snapshots.thetas, network.snapshots.thetas[:2])
    # There are others.
    assert not np.isfinite(np.load(folder / FILES[2])).all()
    write_pretrained_network(found, tmp_path / "net.h5")
    same_snapshots(read_pretrained_network(tmp_path / "net.h5", snapshots=True), found)
    assert (found.settings["snapshots"], count_snapshots(tmp_path / "net.h5")) == (5, 2)


# The network's file


@pytest.fixture
def file(network, tmp_path):
    path = tmp_path / "net.h5"
    write_pretrained_network(network, path)
    return path


def test_a_file_keeps_the_snapshots(network, file):
    found = read_pretrained_network(file, snapshots=True)
    same_network(found, network)
    assert found.snapshots.thetas.dtype == np.float32
    assert count_snapshots(file) == 5
    other = replace(network.snapshots, thetas=network.snapshots.thetas + np.float32(1e-3))
    write_pretrained_network(replace(network, snapshots=other), file)
    with pytest.raises(AssertionError):
        same_snapshots(read_pretrained_network(file, snapshots=True), network)


def test_snapshots_are_read_only_on_request(network, file):
    assert read_pretrained_network(file).snapshots is None
    same_bits(read_pretrained_network(file), replace(network, snapshots=None))


def test_a_file_without_snapshots(network, file):
    write_pretrained_network(replace(network, snapshots=None), file)
    assert read_pretrained_network(file, snapshots=True).snapshots is None
    assert count_snapshots(file) == 0


def test_a_file_that_is_no_network_has_no_number_of_snapshots(tmp_path):
    (tmp_path / "text.h5").write_text("theta")
    with pytest.raises(FileFormatError, match=r"text\.h5: expected a pretrained network"):
        count_snapshots(tmp_path / "text.h5")


def damaged(thetas, name):
    """Snapshots that cannot be; the class of the error and what it must say."""
    if name == "fewer":
        return thetas[:-1], FileFormatError, r"\(5, 76905\); they have \(4, 76905\)"
    if name == "narrow":
        return thetas[:, :-1], FileFormatError, r"\(5, 76905\); they have \(5, 76904\)"
    if name == "one":
        return thetas[0], FileFormatError, r"they have \(76905,\)"
    if name == "missing":
        return None, FileFormatError, "thetas is missing"
    thetas = thetas.copy()
    thetas[3, 7] = float(name)
    return thetas, DataError, "snapshots are not finite; pretrain again"


@pytest.mark.parametrize("name", ["fewer", "narrow", "one", "missing", "nan", "inf"])
def test_damaged_snapshots_are_refused(name, network, file):
    thetas, error, says = damaged(network.snapshots.thetas, name)
    with h5py.File(file, "a") as opened:
        del opened["snapshots/thetas"]
        if thetas is not None:
            opened["snapshots/thetas"] = thetas
    with pytest.raises(error, match=says) as caught:
        read_pretrained_network(file, snapshots=True)
    assert str(file) in str(caught.value)
    read_pretrained_network(file)


# Several processes


def worker(rank, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    try:
        found = pretrain(SCAN, checkpoint=f"{folder}/{rank}", **KEPT)
        write_pretrained_network(found, f"{folder}/{rank}.h5")
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_of_two_processes_the_first_keeps_the_snapshots(network, tmp_path):
    multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    assert {"0.snapshots"} == {name for name in names(tmp_path) if name.endswith(".snapshots")}
    first, second = (
        read_pretrained_network(tmp_path / f"{rank}.h5", snapshots=True) for rank in (0, 1)
    )
    assert second.snapshots is None
    np.testing.assert_array_equal(first.theta, second.theta)
    np.testing.assert_array_equal(first.snapshots.steps, STEPS)
    apart = np.abs(np.diff(network.snapshots.thetas, axis=0)).max()
    assert np.abs(first.snapshots.thetas - network.snapshots.thetas).max() < 0.1 * apart
