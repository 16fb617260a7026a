"""The choice of a pretrained network on a phantom, from Python and as `dipct choose`."""

import json
import shutil
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from small_scans import small_scan
from test_cli import PNG, names
from test_educated_dip import TRAINING

from dipct import (
    pretrain,
    read_pretrained_network,
    reconstruct,
    simulate,
    write_pretrained_network,
    write_scan,
)
from dipct.errors import ConfigurationError, ConvergenceError, FileFormatError, Interrupted
from dipct.evaluation import Convergence
from dipct.pipeline import choose_network
from dipct.pipeline.choose_network import Trial, _best

FAST = {"repeats": 1, "iterations": 20, "baseline_iterations": 40}


@pytest.fixture(scope="module")
def scan():
    return small_scan("fan", source="ellipses", noise=0.05, pixels=12, views=6)


@pytest.fixture(scope="module")
def files(scan, tmp_path_factory):
    """A network that was hardly trained, and a good one."""
    folder = tmp_path_factory.mktemp("networks")
    for name, steps, kept in (("bad", 3, 2), ("good", 50, 4)):
        network = pretrain(scan, steps=steps, snapshots=kept, **TRAINING)
        write_pretrained_network(network, folder / f"{name}.h5")
    return {name: str(folder / f"{name}.h5") for name in ("bad", "good")}


@pytest.fixture(scope="module")
def choice(scan, files):
    # What was measured does not matter.
    scan = replace(scan, projections=100 * scan.projections, noise=None)
    networks, twice = [files["bad"], files["good"]], FAST | {"repeats": 2}
    return choose_network(scan, networks, snapshots=1, **twice)


def test_finished_fits_are_not_done_again(scan, files, tmp_path, monkeypatch):
    module = import_module("dipct.pipeline.choose_network")
    networks, stages = [files["bad"], files["good"]], tmp_path / "stages"
    whole = choose_network(scan, networks, **FAST)
    calls = []

    def stop_at_the_third(*arguments, **settings):
        calls.append(settings)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return reconstruct(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(module, "reconstruct", stop_at_the_third)
        with pytest.raises(Interrupted, match="what is finished is kept"):
            choose_network(scan, networks, checkpoint=stages, **FAST)
    kept = sorted(p.name.rpartition("-")[0] for p in stages.iterdir())
    assert kept == ["candidate-0-0", "untrained-0"]
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            module, "reconstruct", lambda *a, **s: calls.append(s) or reconstruct(*a, **s)
        )
        resumed = choose_network(scan, networks, checkpoint=stages, resume=True, **FAST)
    assert [call["method"] for call in calls] == ["edip"]
    assert resumed.chosen == whole.chosen
    for one, other in zip(resumed.trials, whole.trials, strict=True):
        np.testing.assert_array_equal(one.psnr_db, other.psnr_db)
    longer = FAST | {"iterations": 21}
    with pytest.raises(ConfigurationError, match="other data or options"):
        choose_network(scan, networks, checkpoint=stages, resume=True, **longer)


# What is tried, and how


def test_a_network_that_was_trained_well_is_chosen(choice, files):
    assert choice.trials[choice.chosen].name == files["good"]
    good = read_pretrained_network(files["good"])
    np.testing.assert_array_equal(choice.network.theta, good.theta)
    best, others = choice.trials[choice.chosen].figures, choice.trials[:2]
    for other in others:
        assert best.initial_db > other.figures.initial_db + 1
        assert best.steady_db > other.figures.steady_db + 0.25
    assert best.baseline_step is not None
    assert not any(trial.diverged for trial in (choice.baseline, *choice.trials))


def test_the_chosen_network_can_be_fine_tuned(choice, scan, files, tmp_path):
    write_pretrained_network(choice.network, tmp_path / "chosen.h5")
    for settings in ({}, {"parameters": "subspace", "dimension": 4, "optimiser": "l-bfgs"}):
        settings |= {"tv_weight": 4.0, "iterations": 2, "stopping": "none"}
        chosen, good = (
            reconstruct(scan, method="edip", init=str(init), **settings)
            for init in (tmp_path / "chosen.h5", files["good"])
        )
        np.testing.assert_array_equal(chosen.image, good.image)
    bad = reconstruct(scan, method="edip", init=files["bad"], tv_weight=4.0, iterations=2)
    assert not np.array_equal(chosen.image, bad.image)


def test_a_chosen_snapshot_brings_those_before_it(scan, files, tmp_path):
    good = read_pretrained_network(files["good"], snapshots=True)
    # As if the training had gone wrong at its end.
    spoilt = replace(good, theta=0 * good.theta)
    write_pretrained_network(spoilt, tmp_path / "net.h5")
    few = FAST | {"iterations": 2, "baseline_iterations": 2}
    choice = choose_network(scan, [tmp_path / "net.h5"], snapshots=3, **few)
    assert [trial.network.best_step for trial in choice.trials] == [50, 5, 20, 35]
    assert choice.chosen == 3 and choice.network.best_step == 35
    np.testing.assert_array_equal(choice.network.theta, good.snapshots.thetas[2])
    np.testing.assert_array_equal(choice.network.snapshots.steps, [5, 20, 35])
    np.testing.assert_array_equal(choice.network.snapshots.thetas, good.snapshots.thetas[:3])


def test_candidates_are_the_files_and_their_snapshots(choice, files):
    bad, good = files["bad"], files["good"]
    expected = [bad, f"{bad}, step 1", good, f"{good}, step 5"]
    assert [trial.name for trial in choice.trials] == expected
    network = read_pretrained_network(good, snapshots=True)
    early = choice.trials[3].network
    np.testing.assert_array_equal(early.theta, network.snapshots.thetas[0])
    assert network.snapshots.steps[0] == early.best_step == 5
    # It was validated every 20 steps.
    assert early.validation_psnr_db == network.history["validation_psnr_db"][0]
    assert early.validation_psnr_db < network.validation_psnr_db - 1
    assert choice.baseline.name == "untrained" and choice.baseline.network is None


def test_candidates_are_tried_on_the_phantom_with_noise_of_every_repeat(choice, scan, files):
    trial = choice.trials[2]
    assert trial.psnr_db.shape == (2, 2) and trial.steps.tolist() == [0, 20]
    for seed in range(2):
        phantom = simulate("shepp-logan", geometry=scan, noise=0.05, seed=seed)
        settings = {"method": "edip", "init": files["good"], "iterations": 20, "seed": seed}
        run = reconstruct(phantom, stopping="none", **settings)
        np.testing.assert_array_equal(trial.psnr_db[seed], run.history["psnr_db"])
    assert not np.array_equal(*trial.psnr_db)


def test_the_baseline_is_the_untrained_network(choice, scan):
    phantom = simulate("shepp-logan", geometry=scan, noise=0.05, seed=0)
    run = reconstruct(phantom, method="dip", network="small", iterations=40, stopping="none")
    np.testing.assert_array_equal(choice.baseline.psnr_db[0], run.history["psnr_db"])
    assert choice.baseline.figures.baseline_step is None


# The rule


def trial(steady_db, baseline_step, rise_step=40, *, diverged=False):
    figures = Convergence(10.0, 40.0, steady_db, steady_db, rise_step, baseline_step)
    return Trial("", None, np.arange(2), np.zeros((1, 2)), figures, diverged)


@pytest.mark.parametrize(
    ("trials", "tolerance_db", "chosen"),
    [
        # Of those that are good enough the first at the untrained network's PSNR.
        ([(30.0, 100), (29.8, 50), (29.9, 60)], 0.25, 1),
        ([(30.0, 100), (29.8, 50), (29.9, 60)], 0.15, 2),
        ([(30.0, 100), (29.8, 50), (29.9, 60)], 0.0, 0),
        ([(29.0, 0), (30.0, 100)], 0.25, 1),
        ([(29.0, 0), (30.0, 100)], 1.0, 0),
        # One that never gets there comes last.
        ([(30.0, None, 5), (29.9, 400)], 0.25, 1),
        ([(30.0, None, 5), (29.0, 400)], 0.25, 0),
        # Where none gets there, or several at once, the first at its own.
        ([(20.0, None, 80), (19.9, None, 60)], 0.25, 1),
        ([(30.0, 50, 80), (29.9, 50, 60)], 0.25, 1),
        # Else the best.
        ([(29.9, 50), (30.0, 50)], 0.25, 1),
        ([(12.0, None)], 0.25, 0),
    ],
)
def test_the_fastest_of_the_good_ones_is_chosen(trials, tolerance_db, chosen):
    made = [trial(*each) for each in trials]
    assert _best(made, tolerance_db) == chosen
    assert _best(made[::-1], tolerance_db) == len(made) - 1 - chosen


def test_what_diverged_is_not_chosen():
    better = (30.0, 10)
    assert _best([trial(*better), trial(20.0, 90)], 0.25) == 0
    assert _best([trial(*better, diverged=True), trial(20.0, 90)], 0.25) == 1
    with pytest.raises(ConvergenceError, match=r"every network diverged .*lower learning rate"):
        _best([trial(*better, diverged=True)], 0.25)


# What is refused


@pytest.fixture
def no_phantom(monkeypatch):
    """Fail where the phantom, with which the work begins, is scanned."""

    def fail(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(import_module("dipct.pipeline.choose_network"), "simulate", fail)


@pytest.mark.usefixtures("no_phantom")
def test_work_is_noticed(scan, files):
    for snapshots in (0, 1):
        with pytest.raises(AssertionError, match="work has begun"):
            choose_network(scan, files.values(), snapshots=snapshots)


@pytest.mark.usefixtures("no_phantom")
@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("repeats", "iterations", "baseline_iterations")),
        *({"snapshots": -1}, {"tolerance_db": -0.1}, {"tolerance_db": float("nan")}),
    ],
    ids=str,
)
def test_impossible_numbers_are_refused(scan, files, wrong):
    with pytest.raises(
        ConfigurationError, match=f"must be at least .*{next(iter(wrong.values()))}"
    ):
        choose_network(scan, [files["good"]], **wrong)


@pytest.mark.usefixtures("no_phantom")
def test_networks_that_cannot_be_tried_are_refused(scan, files, tmp_path):
    write_scan(scan, tmp_path / "scan.h5")
    other = small_scan("fan", source="ellipses", noise=0.05, pixels=12, views=5)
    for given, networks, error, says in (
        (scan, [], ConfigurationError, "at least one pretrained network"),
        (other, [files["good"]], ConfigurationError, "views: 6 there, 5 here"),
        (scan, [files["good"], tmp_path / "none.h5"], FileFormatError, r"none\.h5: no such file"),
        (scan, [tmp_path / "scan.h5"], FileFormatError, r"scan\.h5: expected a pretrained net"),
    ):
        with pytest.raises(error, match=says):
            choose_network(given, networks)


@pytest.mark.usefixtures("no_phantom")
def test_more_snapshots_than_there_are_are_refused(scan, files, tmp_path):
    for snapshots in (2, 3):
        says = rf"bad\.h5 has 2 snapshots; {snapshots} and a later one are asked for\. Pretrain"
        with pytest.raises(ConfigurationError, match=says):
            choose_network(scan, [files["good"], files["bad"]], snapshots=snapshots)
    write_pretrained_network(read_pretrained_network(files["bad"]), tmp_path / "net.h5")
    with pytest.raises(ConfigurationError, match="has 0 snapshots; 1 and"):
        choose_network(scan, [tmp_path / "net.h5"], snapshots=1)


@pytest.mark.usefixtures("no_phantom")
def test_networks_that_cannot_be_compared_are_refused(scan, files, tmp_path):
    network = read_pretrained_network(files["bad"])

    def changed(**pairs):
        return replace(network, pairs={**network.pairs, **pairs})

    larger = pretrain(scan, steps=1, **TRAINING | {"network": "128"})
    for other, says in (
        (changed(noise_level=0.1), r"'noise_level': 0\.05}, and of .*net\.h5 .*: 0\.1}"),
        (changed(input="noise"), r"'input': 'fbp'.* and of .*'input': 'noise'"),
        (larger, r"'name': 'small'.* and of .*'name': '128'"),
    ):
        write_pretrained_network(other, tmp_path / "net.h5")
        with pytest.raises(ConfigurationError, match=f"compared only if .*{says}"):
            choose_network(scan, [files["good"], tmp_path / "net.h5"])


# The command


@pytest.fixture
def work(scan, files, tmp_path, monkeypatch, dipct_command):
    """Work in a folder with the scan and two networks; commands must succeed."""
    monkeypatch.chdir(tmp_path)
    write_scan(scan, "scan.h5")
    for file in files.values():
        shutil.copy(file, tmp_path)

    def run(*arguments, code=0):
        result = dipct_command("choose", *arguments)
        assert result.code == code, result
        assert "\x1b" not in result.out + result.err and "Traceback" not in result.err
        return result

    run.folder = tmp_path
    return run


CHOOSE = (
    *("bad.h5", "good.h5", "--scan", "scan.h5", "--repeats", 1, "--iterations", 3),
    *("--baseline-iterations", 3),
)


def test_the_command_writes_the_chosen_network_with_curves_and_numbers(work):
    result = work(*CHOOSE, "--out", "chosen.h5")
    made = {"chosen.h5", "chosen.png", "chosen.json"}
    assert names(work.folder) == {"scan.h5", "bad.h5", "good.h5", *made}
    found, good = map(read_pretrained_network, ("chosen.h5", "good.h5"))
    np.testing.assert_array_equal(found.theta, good.theta)
    assert found.settings == good.settings
    assert (work.folder / "chosen.png").read_bytes().startswith(PNG)

    record = json.loads((work.folder / "chosen.json").read_text())
    assert record["settings"]["repeats"] == 1 and record["settings"]["tolerance_db"] == 0.25
    rows = record["trials"]
    assert [row["name"] for row in rows] == ["untrained", "bad.h5", "good.h5"]
    assert [row["chosen"] for row in rows] == [False, False, True]
    for row in rows:
        assert row["steps"] == [0, 3] and np.shape(row["psnr_db"]) == (1, 2)
        assert row["initial_db"] == row["psnr_db"][0][0]
    assert rows[0]["baseline_step"] is None and rows[2]["baseline_step"] == 0

    lines = result.out.splitlines()
    for line, row in zip(lines[1:4], rows, strict=True):
        assert line.startswith(row["name"]) and f" {row['steady_db']:.2f} " in line
        assert ("(chosen)" in line) == row["chosen"]
    assert lines[4:] == ["Wrote chosen.h5, chosen.png and chosen.json."]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*CHOOSE, "--out", "good.h5"), "good.h5 would replace an input"),
        ((*CHOOSE, "--out", "scan.h5"), "scan.h5 would replace an input"),
        ((*CHOOSE, "--out", "chosen.pt"), "must end in .h5"),
        ((*CHOOSE, "--out", "no/chosen.h5"), "folder no does not exist"),
        ((*CHOOSE, "--out", "a.h5", "--snapshots", 2), "has 2 snapshots; 2 and a later one"),
        ((*CHOOSE, "--out", "a.h5", "--views", 3), "views: 6 there, 3 here"),
        ((*CHOOSE, "--out", "a.h5", "--device", "tpu"), "device must be a name"),
        (("none.h5", *CHOOSE, "--out", "a.h5"), "none.h5: no such file"),
        (("scan.h5", *CHOOSE, "--out", "a.h5"), "expected a pretrained network"),
        (("bad.h5", "--scan", "none.h5", "--out", "a.h5"), "none.h5: no such file"),
    ],
    ids=lambda value: " ".join(map(str, value[-2:])) if isinstance(value, tuple) else "",
)
def test_errors_exit_with_one_and_replace_nothing(work, arguments, says):
    before = {path.name: path.read_bytes() for path in work.folder.iterdir()}
    result = work(*arguments, code=1)
    assert says in " ".join(result.err.splitlines())
    assert result.err.splitlines()[-1].startswith("error: ")
    assert {path.name: path.read_bytes() for path in work.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        *(
            ((*CHOOSE, "--out", "a.h5", option, value), option)
            for option, value in (
                *(("--repeats", 0), ("--iterations", 0), ("--baseline-iterations", 0)),
                *(("--snapshots", -1), ("--tolerance", -1), ("--snapshots", "all")),
            )
        ),
        (("good.h5", "--out", "a.h5"), "--scan"),
        (("good.h5", "--scan", "scan.h5"), "--out"),
        (("--scan", "scan.h5", "--out", "a.h5"), "Missing argument"),
    ],
    ids=lambda value: " ".join(map(str, value[-2:])) if isinstance(value, tuple) else "",
)
def test_wrong_usage_exits_with_two(work, arguments, says):
    assert says in work(*arguments, code=2).err
    assert names(work.folder) == {"scan.h5", "bad.h5", "good.h5"}
