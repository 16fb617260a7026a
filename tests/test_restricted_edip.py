"""The method edip of few parameters and with other optimisers, from end to end."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from small_scans import small_scan
from test_dip_reconstruction import same_result
from test_educated_dip import TRAINING, directly, layout_of, no_operator  # noqa: F401

from dipct import (
    generator_of,
    pretrain,
    read_pretrained_network,
    read_run,
    reconstruct,
    write_pretrained_network,
    write_run,
    write_scan,
)
from dipct.errors import ConfigurationError, Interrupted
from dipct.generator import Kind, apply_network, principal_directions, sparsify
from dipct.pretrain.snapshots import Snapshots
from dipct.solver import GeneratorFit

# Torch itself still uses what it deprecates, on the first forward-mode derivative in a process.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

SNAPSHOTS, DIMENSION = 20, 6
ADAM = {"optimiser": "adam", "precision": "float32", "warm_up": 0}
LBFGS, NATURAL = {"optimiser": "l-bfgs"}, {"optimiser": "natural-gradient"}
ALL = {"parameters": "all"}
SUBSPACE = {"parameters": "subspace", "dimension": DIMENSION}
SINGULAR = {"parameters": "singular-values"}
COMBINATIONS = [
    free | optimiser
    for free in (ALL, SUBSPACE, SINGULAR)
    for optimiser in (ADAM, LBFGS, NATURAL)
    if not (free is ALL and optimiser is NATURAL)
]
RESTRICTED = [each for each in COMBINATIONS if each["parameters"] != "all"]


def short_name(settings):
    return " ".join(map(str, settings.values()))


every_combination = pytest.mark.parametrize("settings", COMBINATIONS, ids=short_name)


@pytest.fixture(scope="module")
def scan():
    return small_scan("fan", source="ellipses", noise=0.05, pixels=17, views=8)


@pytest.fixture(scope="module")
def pretrained(scan):
    return pretrain(scan, steps=40, snapshots=SNAPSHOTS, **TRAINING)


@pytest.fixture(scope="module")
def files(pretrained, tmp_path_factory):
    """Names of files of the same network, by how many of its snapshots they hold."""
    folder = tmp_path_factory.mktemp("networks")
    kept = pretrained.snapshots
    networks = {
        "all": pretrained,
        "three": replace(pretrained, snapshots=Snapshots(kept.steps[:3], kept.thetas[:3])),
        "none": replace(pretrained, snapshots=None),
    }
    for name, network in networks.items():
        write_pretrained_network(network, folder / f"{name}.h5")
    return {name: str(folder / f"{name}.h5") for name in networks}


@pytest.fixture(scope="module")
def edip(scan, files):
    fixed = {"tv_weight": 4.0, "iterations": 6, "stopping": "none"}

    def run(network="all", **settings):
        return reconstruct(scan, method="edip", init=files[network], **fixed | settings)

    return run


@pytest.fixture(scope="module")
def free(edip):
    """Of all parameters."""
    return edip(**ADAM)


def moved(run, pretrained):
    """How far parameters have gone, [P]."""
    return torch.from_numpy(run.generator["theta"]).double() - torch.from_numpy(pretrained.theta)


# Without any iteration


@every_combination
def test_without_iterations_the_image_is_that_of_the_pretrained_network(
    scan, pretrained, edip, free, settings
):
    run = edip(**settings, iterations=0)
    assert (run.iterations, run.history["iteration"].tolist()) == (0, [0])
    scale, z = run.configuration["image_scale"], torch.from_numpy(run.generator["input"])[None]

    def image(theta):
        return scale * apply_network(pretrained.make_network(), theta, z)[0, 0].numpy()

    close = 1e-4 * run.image.max()
    theta = torch.from_numpy(pretrained.theta)
    for expected in (image(theta), directly(scan, pretrained, scale)):
        np.testing.assert_allclose(run.image, expected, rtol=0, atol=close)
    for wrong in (image(1.01 * theta), free.image):
        assert np.abs(run.image - wrong).max() > 2 * close
    np.testing.assert_allclose(run.generator["theta"], pretrained.theta, rtol=1e-5, atol=1e-6)


# A subspace


def outside(vector, basis):
    """Share of a vector that an orthonormal basis does not span."""
    basis = basis.double()
    return float((vector - basis @ (basis.T @ vector)).norm() / vector.norm())


@pytest.fixture(scope="module")
def directions(pretrained):
    return principal_directions(torch.from_numpy(pretrained.snapshots.thetas), DIMENSION)


@pytest.mark.parametrize("optimiser", [ADAM, LBFGS, NATURAL], ids=short_name)
def test_in_a_subspace_parameters_move_in_the_principal_directions(
    pretrained, edip, directions, optimiser
):
    change = moved(edip(**SUBSPACE, **optimiser), pretrained)
    assert outside(change, directions) < 1e-3
    for fewer in (directions[:, 1:], directions[:, :-1]):
        assert outside(change, fewer) > 1e-2


def test_all_parameters_leave_the_subspace(pretrained, free, directions):
    assert outside(moved(free, pretrained), directions) > 0.5


def test_a_share_of_the_parameters_moves(pretrained, edip, directions):
    kept = round(0.1 * len(directions))
    basis = sparsify(directions, kept)
    change = moved(edip(**SUBSPACE, **LBFGS, kept_share=0.1), pretrained)
    rows = (basis != 0).any(1)
    assert not (change != 0)[~rows].any()
    assert 0.9 * kept < int((change != 0).sum()) <= kept
    assert outside(change, torch.linalg.qr(basis.double())[0]) < 1e-3
    whole = moved(edip(**SUBSPACE, **LBFGS), pretrained)
    assert int((whole != 0).sum()) > 5 * kept


# Singular values


def layers_of(pretrained):
    """Weights of convolutions that are replaced, with all parameters but those."""
    layout = layout_of(pretrained)
    blocks = [block for block in layout.blocks if block.startswith(("up_", "down_"))]
    assert blocks == ["down_1", "down_2", "up_1", "up_2"]
    mask = layout.mask(blocks=blocks, kinds=[Kind.CONVOLUTION])
    names = [
        parameter.name
        for parameter in layout.parameters
        if parameter.block in blocks and parameter.kind is Kind.CONVOLUTION
    ]
    return layout, names, mask


def turned(run, pretrained):
    """Share of the change of each weight that is not one of its singular values."""
    layout, names, _ = layers_of(pretrained)
    after, before = (
        layout.split(torch.from_numpy(theta).double())
        for theta in (run.generator["theta"], pretrained.theta)
    )
    shares = []
    for name in names:
        weight = before[name].flatten(1)
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        change = after[name].flatten(1) - weight
        values = (left.T @ change @ right.T).diagonal()
        shares.append(float((change - (left * values) @ right).norm() / change.norm()))
    return shares


@pytest.mark.parametrize("optimiser", [ADAM, LBFGS, NATURAL], ids=short_name)
def test_only_singular_values_of_convolutions_change(pretrained, edip, free, optimiser):
    run = edip(**SINGULAR, **optimiser)
    _, _, mask = layers_of(pretrained)
    change = moved(run, pretrained)
    assert not change[~mask].any() and int((change[mask] != 0).sum()) > 0.5 * int(mask.sum())
    assert moved(free, pretrained)[~mask].any()
    assert max(turned(run, pretrained)) < 1e-2
    assert min(turned(free, pretrained)) > 0.5


def ranks(run, pretrained):
    layout, names, _ = layers_of(pretrained)
    weights = layout.split(torch.from_numpy(run.generator["theta"]))
    return {int(torch.linalg.matrix_rank(weights[name].flatten(1), rtol=1e-4)) for name in names}


def test_rank_limits_the_singular_values(pretrained, edip):
    for iterations in (0, 3):
        run = edip(**SINGULAR, **LBFGS, rank=2, iterations=iterations)
        assert ranks(run, pretrained) == {2}
        assert min(ranks(edip(**SINGULAR, **LBFGS, iterations=iterations), pretrained)) > 2


def test_a_rank_above_all_changes_nothing(edip):
    whole = edip(**SINGULAR, **LBFGS)
    assert same_result(edip(**SINGULAR, **LBFGS, rank=10_000), whole)
    assert not same_result(edip(**SINGULAR, **LBFGS, rank=2), whole)


# Optimisers


@pytest.fixture
def every_iteration(monkeypatch):
    """Record them all."""
    monkeypatch.setitem(import_module("dipct.pipeline.reconstruct")._EVERY, "edip", 1)


def rises(run):
    """The largest rise of the objective in an iteration, relative."""
    values = run.history["objective"]
    return float((np.diff(values) / values[:-1]).max())


@pytest.mark.usefixtures("every_iteration")
@pytest.mark.parametrize(
    "settings", [each for each in COMBINATIONS if "precision" not in each], ids=short_name
)
def test_the_objective_never_rises(edip, settings):
    run = edip(**settings)
    assert len(run.history["objective"]) == 7 and rises(run) <= 1e-6
    assert run.history["objective"][-1] < 0.9 * run.history["objective"][0]
    passes = run.history["network_passes"]
    assert passes[0] == 0 and (np.diff(passes) >= 2).all()
    assert run.configuration["precision"] == "float32"


@pytest.mark.usefixtures("every_iteration")
def test_with_adam_the_objective_can_rise(edip):
    run = edip(**SUBSPACE, **ADAM, learning_rate=1.0)
    assert rises(run) > 1e-2 and "network_passes" not in run.history


def test_the_seed_is_that_of_the_natural_gradient_too(edip):
    for optimiser, follows in ((NATURAL, True), (LBFGS, False)):
        one, other = (edip(**SUBSPACE, **optimiser, iterations=2, seed=seed) for seed in (0, 1))
        assert np.array_equal(one.generator["input"], other.generator["input"])
        assert same_result(one, other) != follows


# Going on, again and back


@pytest.mark.parametrize(
    "settings", [each for each in RESTRICTED if each != SINGULAR | ADAM], ids=short_name
)
def test_going_on_gives_the_same_bits(edip, settings, tmp_path, monkeypatch):
    original, done, path = GeneratorFit.step, [], tmp_path / "state"

    def step(self, tensors):
        done.append(None)
        if len(done) > 4:
            raise KeyboardInterrupt
        return original(self, tensors)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="4 iterations"):
        patch.setattr(GeneratorFit, "step", step)
        edip(**settings, checkpoint=path)
    finer = (
        [{"rank": 2}] if "dimension" not in settings else [{"dimension": 5}, {"kept_share": 0.5}]
    )
    for other in (*RESTRICTED, *(settings | each for each in finer)):
        if other != settings:
            with pytest.raises(ConfigurationError, match="other data or settings"):
                edip(**other, checkpoint=path, resume=True)
    found, whole = edip(**settings, checkpoint=path, resume=True), edip(**settings)
    assert same_result(found, whole) and found.configuration == whole.configuration
    for name in whole.history:
        np.testing.assert_array_equal(found.history[name], whole.history[name])


@pytest.mark.parametrize(
    "settings",
    [
        SUBSPACE | ADAM | {"kept_share": 0.2, "decay": False},
        SUBSPACE | ADAM | {"stopping": "variance", "window": 3, "patience": 9},
        SUBSPACE | LBFGS,
        SUBSPACE | NATURAL | {"seed": 3, "stopping": "discrepancy"},
        SINGULAR | ADAM | {"learning_rate": 0.02, "isotropic": True},
        SINGULAR | LBFGS | {"rank": 5, "input": "noise"},
        ALL | LBFGS,
    ],
    ids=short_name,
)
def test_a_run_is_made_again_and_keeps_its_generator(edip, settings, tmp_path):
    run = edip(**settings)
    assert {name: run.settings[name] for name in settings} == settings
    write_run(run, tmp_path / "run.h5")
    found = read_run(tmp_path / "run.h5")
    assert same_result(run, found) and found.settings == run.settings
    assert same_result(run, reconstruct(found.scan, **found.settings))
    assert not same_result(run, reconstruct(found.scan, **found.settings | {"tv_weight": 1.0}))
    for each in (run, found):
        generator, theta, scale = generator_of(each)
        np.testing.assert_array_equal((scale * generator(theta))[0].numpy(), run.image)
        changed = (scale * generator(1.01 * theta))[0].numpy()
        assert np.abs(changed - run.image).max() > 1e-3 * run.image.max()


# What is refused


@pytest.mark.usefixtures("no_operator")
@pytest.mark.parametrize(
    ("network", "dimension", "kept"), [("none", 1, 0), ("three", 4, 3), ("all", 21, SNAPSHOTS)]
)
def test_too_few_snapshots_are_refused(edip, files, network, dimension, kept):
    # All say that they were pretrained with as many.
    assert read_pretrained_network(files[network]).settings["snapshots"] == SNAPSHOTS
    says = rf"{network}\.h5 holds {kept} snapshots .* no subspace of {dimension} dimensions\. Pre"
    with pytest.raises(ConfigurationError, match=says):
        edip(network, parameters="subspace", dimension=dimension)
    if kept:
        with pytest.raises(AssertionError, match="long work"):
            edip(network, parameters="subspace", dimension=kept)


@pytest.mark.usefixtures("no_operator")
def test_by_default_a_subspace_needs_two_hundred_snapshots(edip):
    with pytest.raises(ConfigurationError, match=r"20 snapshots .* of 200 dimensions"):
        edip(parameters="subspace")


@pytest.mark.usefixtures("no_operator")
def test_fewer_parameters_than_directions_are_refused(edip):
    says = r"kept_share 5e-05 keeps 4 parameters, fewer than the 6 dimensions"
    with pytest.raises(ConfigurationError, match=says):
        edip(**SUBSPACE, kept_share=5e-5)
    with pytest.raises(AssertionError, match="long work"):
        edip(**SUBSPACE | {"dimension": 4}, kept_share=5e-5)


def test_snapshots_that_are_too_much_alike_are_refused(scan, pretrained, tmp_path):
    kept = pretrained.snapshots
    again = Snapshots(kept.steps, kept.thetas[np.arange(SNAPSHOTS) % 3])
    write_pretrained_network(replace(pretrained, snapshots=again), tmp_path / "net.h5")
    settings = {"init": str(tmp_path / "net.h5"), "tv_weight": 4.0, "iterations": 1}
    with pytest.raises(ConfigurationError, match=r"20 snapshots .* span 3 dimensions.*=6"):
        reconstruct(scan, method="edip", **settings, **SUBSPACE)
    reconstruct(scan, method="edip", **settings, **SUBSPACE | {"dimension": 3})


# The command


def test_the_command(scan, files, edip, tmp_path, dipct_command):
    write_scan(scan, tmp_path / "scan.h5")
    command = ("reconstruct", tmp_path / "scan.h5", "--method", "edip", "--tv-weight", 4)
    command += ("--stopping", "none", "--out", tmp_path / "run.h5", "--init")
    subspace = ("--parameters", "subspace", "--dimension", DIMENSION, "--kept-share", 0.5)
    singular = ("--parameters", "singular-values", "--rank", 3)
    for options, settings in (
        ((*subspace, "--iterations", 6), {**SUBSPACE, "kept_share": 0.5}),
        ((*singular, "--iterations", 0), {**SINGULAR, "rank": 3, "iterations": 0}),
    ):
        result = dipct_command(*command, files["all"], "--optimiser", "l-bfgs", *options)
        assert result.code == 0, result
        run = read_run(tmp_path / "run.h5")
        np.testing.assert_array_equal(run.image, edip(**LBFGS, **settings).image)
        assert (tmp_path / "run.png").stat().st_size > 10_000
    result = dipct_command(*command, files["none"], *subspace)
    assert result.code == 1 and "holds 0 snapshots" in result.err
