"""The Deep Image Prior as a function: data terms, batches, types, seeds, units, settings."""

import math

import numpy as np
import pytest
import torch
from small_scans import small_scan

from dipct import Grid, ParallelGeometry
from dipct.errors import ConfigurationError, DeviceUnavailableError, DtypeError, ShapeError
from dipct.generator import UNet, has_bfloat16
from dipct.objective import (
    DataTerm,
    GaussianFidelity,
    Objective,
    PoissonFidelity,
    TotalVariation,
    total_variation,
)
from dipct.operator import Identity, Mask, RayTransform
from dipct.solver import (
    LastIterate,
    LowestObjective,
    Status,
    deep_image_prior,
    deep_image_prior_fit,
    iterate,
)
from dipct.solver.deep_image_prior import noise_input

SHAPE, RANGE, STD = (1, 12, 14), (9, 17), 0.05
NETWORK = UNet((4, 4), (0, 2))
SETTINGS = {
    "network": NETWORK,
    "iterations": 30,
    "every": 5,
    "warm_up": 5,
    "learning_rate": 1e-2,
    "precision": "float32",
}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only cost time on problems this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ray(unit=1.0, dtype=torch.float32):
    """A ray transform whose lengths are given in a unit of so many mm."""
    angles = np.linspace(0, np.pi, RANGE[0], endpoint=False)
    geometry = ParallelGeometry(angles, RANGE[1], 1.0 / unit)
    return RayTransform(geometry, Grid(SHAPE[1:], 1.0 / unit), dtype=dtype)


def draw(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def smooth():
    """A hill of height one."""
    rows, columns = (torch.linspace(0, math.pi, n, dtype=torch.float64) for n in SHAPE[1:])
    return (torch.sin(rows)[:, None] * torch.sin(columns))[None]


def scaled(dtype=torch.float32):
    """Maps the hill to projections up to about 2."""
    return 0.2 * ray(dtype=dtype)


def data(batch=(), dtype=torch.float32):
    clean = scaled(torch.float64)(smooth())
    return (clean + STD * draw(*batch, *RANGE, seed=1)).to(dtype)


def gaussian(batch=(), dtype=torch.float32):
    return GaussianFidelity(data(batch, dtype), STD, range_shape=RANGE)


def weighted():
    std = STD * torch.linspace(0.5, 3, RANGE[1])
    return GaussianFidelity(data(), std, range_shape=RANGE)


def poisson():
    return PoissonFidelity(data(), 400.0, range_shape=RANGE)


FIDELITIES = [gaussian, weighted, poisson]


def run(operator=None, fidelity=None, **settings):
    operator = scaled() if operator is None else operator
    fidelity = gaussian() if fidelity is None else fidelity
    return deep_image_prior(operator, fidelity, **SETTINGS | settings)


def same(one, other):
    """Whether value, state and history are bit-identical."""
    pairs = [(one.state.tensors, other.state.tensors), (one.history, other.history)]
    equal = [torch.equal(a[k], b[k]) for a, b in pairs for k in a | b]
    return all(equal) and torch.equal(one.value, other.value)


@pytest.mark.parametrize("make", FIDELITIES)
@pytest.mark.parametrize("tv_weight", [0.0, 2.0])
@pytest.mark.parametrize("isotropic", [False, True])
def test_every_data_term_is_minimised(make, tv_weight, isotropic):
    fidelity = make()
    solution = run(fidelity=fidelity, tv_weight=tv_weight, isotropic=isotropic)
    assert solution.status is Status.MAX_ITERATIONS
    history = solution.history
    assert float(history["objective"][-1]) < 0.2 * float(history["objective"][0])
    value = float(fidelity.value(scaled()(solution.value)))
    value += tv_weight * float(total_variation(solution.value, isotropic=isotropic))
    assert value == pytest.approx(float(solution.state.tensors["lowest"]), rel=1e-6)
    parts = history["fidelity"] + tv_weight * history["total_variation"]
    torch.testing.assert_close(parts, history["objective"])
    # Much closer to the truth than no image at all.
    truth = smooth().float()
    assert float((solution.value - truth).square().sum()) < 0.3 * float(truth.square().sum())


def test_weights_change_the_result():
    plain = run()
    assert not torch.equal(plain.value, run(fidelity=weighted()).value)
    smoother = run(tv_weight=30.0)
    assert float(total_variation(smoother.value)) < float(total_variation(plain.value))
    assert not torch.equal(smoother.value, run(tv_weight=30.0, isotropic=True).value)


def test_a_simulated_scan():
    scan = small_scan(views=12, noise=0.05)
    operator = RayTransform(scan.geometry, scan.grid)
    y = torch.from_numpy(scan.projections)
    scale = 1 / float(scan.truth.max())
    fidelity = GaussianFidelity(y, scan.noise.std)
    solution = run(operator=(1 / scale) * operator, fidelity=fidelity, iterations=150)
    error = solution.value / scale - torch.from_numpy(scan.truth)
    assert float(error.square().mean().sqrt()) < 0.7 * float(scan.truth.std())


def test_the_same_seed_gives_the_same_bits():
    assert same(run(seed=3), run(seed=3))
    assert not same(run(seed=3), run(seed=4))
    # Drawing numbers in between changes nothing.
    torch.rand(7)
    np.random.default_rng().random(3)
    before = torch.random.get_rng_state()
    assert same(run(seed=3), run(seed=3))
    assert torch.equal(before, torch.random.get_rng_state())


def test_input_and_parameters_come_from_the_seed():
    fit = deep_image_prior_fit(scaled(), gaussian(), network=NETWORK, seed=5)
    assert torch.equal(fit.generator.z, noise_input(SHAPE, 5))
    assert torch.equal(fit.start()["theta"], fit.generator.initial(5))
    many = noise_input((1, 200, 200), 5)
    assert float(many.mean()) == pytest.approx(0, abs=3e-3)
    assert float(many.std()) == pytest.approx(0.1, rel=0.02)
    given = deep_image_prior_fit(
        scaled(),
        gaussian(),
        network=NETWORK,
        seed=5,
        z=many[..., :12, :14],
        initial=0 * fit.start()["theta"],
    )
    assert torch.equal(given.generator.z, many[..., :12, :14])
    assert not bool(given.start()["theta"].any())


@pytest.mark.parametrize("tv_weight", [0.5, [0.0, 0.5, 4.0]])
def test_a_batch_is_three_runs_with_the_following_seeds(tv_weight):
    # Only sums are in another order; float64 shows that nothing else differs.
    operator, y = scaled(torch.float64), data((3,), torch.float64)
    weights = torch.as_tensor(tv_weight, dtype=torch.float64)
    together = run(operator, gaussian((3,), torch.float64), tv_weight=weights, seed=7)
    assert together.value.shape == (3, *SHAPE)
    for k in range(3):

        def alone(seed, k=k):
            one = GaussianFidelity(y[k], STD)
            return run(operator, one, tv_weight=weights.expand(3)[k], seed=seed)

        own = alone(7 + k)
        torch.testing.assert_close(together.value[k], own.value, rtol=0, atol=1e-8)
        for name, values in own.history.items():
            if name != "iteration":
                found = together.history[name][:, k]
                torch.testing.assert_close(found, values, rtol=1e-8, atol=1e-8)
        assert float((alone(8 + k).value - own.value).abs().max()) > 1e-3


def test_a_batch_with_two_axes_and_a_common_input():
    fidelity = gaussian((2, 1))
    solution = run(fidelity=fidelity, z=noise_input(SHAPE, 0), iterations=8)
    assert solution.value.shape == (2, 1, *SHAPE)
    assert not torch.equal(solution.value[0], solution.value[1])
    one = GaussianFidelity(fidelity.projections[0, 0], STD)
    alone = run(fidelity=one, z=noise_input(SHAPE, 0), iterations=8)
    torch.testing.assert_close(solution.value[0, 0], alone.value, rtol=0, atol=1e-3)


def test_float64():
    solution = run(scaled(torch.float64), gaussian((), torch.float64), tv_weight=0.1)
    assert solution.value.dtype == torch.float64
    assert {t.dtype for n, t in solution.state.tensors.items() if "step" not in n} == {
        torch.float64
    }
    single = run(tv_weight=0.1)
    assert single.value.dtype == torch.float32
    first = [s.history["objective"][0].double() for s in (solution, single)]
    torch.testing.assert_close(*first, rtol=1e-5, atol=0)
    torch.testing.assert_close(solution.value, single.value.double(), rtol=0, atol=2e-2)
    with pytest.raises(DtypeError, match="float64"):
        run(fidelity=gaussian((), torch.float64))


@pytest.mark.skipif(
    not has_bfloat16(torch.device("cpu")), reason="no bfloat16 instructions on this processor"
)
def test_bfloat16_reaches_nearly_the_objective_of_float32():
    full, reduced = (run(precision=p, iterations=150) for p in ("float32", "bfloat16"))
    lowest = [float(s.history["objective"].min()) for s in (full, reduced)]
    assert float(full.history["objective"][0]) > 20 * lowest[0]
    assert lowest[1] == pytest.approx(lowest[0], rel=0.3)
    assert not torch.equal(full.value, reduced.value)
    assert reduced.value.dtype == torch.float32
    assert same(run(precision="auto"), run(precision="bfloat16"))
    # Only float32 is reduced.
    double = run(scaled(torch.float64), gaussian((), torch.float64), precision="auto")
    assert double.value.dtype == torch.float64


@pytest.mark.skipif(
    has_bfloat16(torch.device("cpu")), reason="this processor has bfloat16 instructions"
)
def test_bfloat16_is_refused_where_there_is_none():
    with pytest.raises(DeviceUnavailableError):
        run(precision="bfloat16")
    assert same(run(precision="auto"), run(precision="float32"))


@pytest.mark.parametrize("unit", [8.0, 10.0])
def test_the_network_image_does_not_depend_on_the_unit_of_length(unit):
    # Attenuation per longer unit is larger by the factor that path lengths are smaller by.
    scale = 0.2
    in_mm = run(scale * ray(), tv_weight=0.5)
    other = run((scale * unit) * ray(unit), tv_weight=0.5)
    if unit == 8.0:
        # No rounding: the scaled operator is the same.
        x = smooth().float()
        assert torch.equal(unit * ray(unit)(x), ray()(x))
        assert same(in_mm, other)
    torch.testing.assert_close(in_mm.value, other.value, rtol=0, atol=1e-3)
    # The attenuation, of which the network's image is a multiple, is not the same number.
    assert not torch.equal(scale * in_mm.value, scale * unit * other.value)
    # Left unscaled the network would have to make another image.
    assert float((run(scale * ray(unit), tv_weight=0.5).value - in_mm.value).abs().max()) > 0.1


def test_noise_level_stops_a_reconstruction():
    settings = {"learning_rate": 3e-2, "decay": False, "iterations": 1500}
    solution = run(stopping="discrepancy", **settings)
    assert solution.status is Status.DISCREPANCY_REACHED
    assert solution.iterations < 1500
    residual = scaled()(solution.value) - data()
    assert float(residual.square().mean()) <= STD**2
    assert float(residual.square().mean()) > 0.8 * STD**2


def test_inpainting_fits_known_pixels_only():
    known = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.7
    operator = Mask(known)
    fidelity = GaussianFidelity(operator(smooth().float()), 0.1)
    solution = run(operator, fidelity, iterations=150)
    missing = (solution.value - smooth())[~known]
    assert float(missing.square().mean().sqrt()) < 0.3
    assert float(fidelity.discrepancy(operator(solution.value))) < 2


def test_variance_settles_and_rules_of_ones_own_are_taken():
    noisy = smooth().float() + 0.1 * draw(*SHAPE, seed=5).float()
    fidelity = GaussianFidelity(noisy, 0.1)
    settings = {"stopping": "variance", "window": 10, "patience": 60, "decay": False, "every": 1}
    solution = run(Identity(SHAPE), fidelity, **settings | {"iterations": 1500})
    assert solution.status is Status.SETTLED
    chosen = int(solution.state.tensors["chosen_step"])
    assert solution.iterations == chosen + 61
    assert same(run(stopping=LowestObjective()), run(stopping="none"))
    last = run(stopping=LastIterate())
    assert int(last.state.tensors["chosen_step"]) == 29
    assert "lowest" not in last.state.tensors


def test_continuing_with_the_same_settings_is_exact():
    def stop(state):
        if state.iteration == 15:
            raise KeyboardInterrupt

    stopped = run(callbacks=[stop])
    assert stopped.status is Status.INTERRUPTED
    assert same(run(state=stopped.state), run())
    fit = deep_image_prior_fit(
        scaled(), gaussian(), **{k: v for k, v in SETTINGS.items() if k != "every"}
    )
    part = iterate(fit, max_iterations=13, every=5)
    assert same(run(state=part.state), run())
    assert not same(run(state=part.state, decay=False), run())


def test_decay_and_warm_up():
    slow = run(warm_up=1000, decay=False, every=1)
    start = deep_image_prior_fit(scaled(), gaussian(), network=NETWORK).start()["theta"]
    # The first step of Adam is as long as the learning rate.
    first = run(warm_up=1000, decay=False, iterations=1).state.tensors["theta"] - start
    assert float(first.abs().max()) == pytest.approx(1e-5, rel=0.05)
    assert float(slow.history["objective"][-1]) > float(run().history["objective"][-1])
    # At the end of a cosine hardly anything moves.
    decayed, steady = (run(decay=decay, every=1) for decay in (True, False))

    def last_move(solution):
        return float(solution.history["objective"][-2:].diff().abs())

    assert last_move(decayed) < 0.2 * last_move(steady)


def test_frozen_parameters_stay():
    frozen = deep_image_prior_fit(scaled(), gaussian(), network=NETWORK).generator.layout.mask(
        blocks=["inc", "down_1"]
    )
    rates = torch.where(frozen, 0.0, 1e-2)
    solution = run(learning_rate=rates)
    start = deep_image_prior_fit(scaled(), gaussian(), network=NETWORK).start()["theta"]
    moved = solution.state.tensors["theta"] != start
    assert not bool(moved[frozen].any())
    assert float(moved[~frozen].float().mean()) > 0.9


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"network": "other"}, "network"),
        ({"iterations": -1}, "iterations"),
        ({"warm_up": -1}, "warm_up"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"tv_weight": -1.0}, "total_variation"),
        ({"tv_weight": math.nan}, "total_variation"),
        ({"tv_weight": math.inf}, "total_variation"),
        ({"loss_scale": 0.0}, "loss_scale"),
        ({"stopping": "early"}, "stopping"),
        ({"stopping": "variance", "window": 1}, "window"),
        ({"stopping": "variance", "patience": 0}, "patience"),
        ({"precision": "float16"}, "precision"),
        ({"every": 0}, "every"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        run(**settings)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"images \[1 H W\]"):
        run(Identity((1, 4, 12, 14)))
    with pytest.raises(ShapeError, match="fidelity"):
        run(fidelity=GaussianFidelity(data()[:, :5], STD))
    with pytest.raises(ShapeError, match="P=775"):
        run(initial=torch.zeros(774))
    with pytest.raises(ShapeError, match="input"):
        run(z=torch.zeros(1, 3, 3))
    with pytest.raises(ShapeError, match="batch"):
        run(z=torch.zeros(3, *SHAPE))
    with pytest.raises(ShapeError, match="smaller network"):
        run(network=UNet((4,) * 5, (0,) * 5))
    # Three sets of data that are not declared as a batch.
    with pytest.raises(ShapeError):
        run(fidelity=GaussianFidelity(data((3,)), STD))


def test_objective_is_the_weighted_sum_of_its_terms():
    terms = [
        (1.0, DataTerm(scaled(torch.float64), gaussian((), torch.float64))),
        (0.1, TotalVariation(SHAPE)),
        (0.3, DataTerm(Identity(SHAPE), GaussianFidelity(smooth(), 0.1), "image")),
    ]
    objective = Objective(terms)
    image = smooth() + draw(*SHAPE, seed=0)
    values = objective.values(image)
    assert list(values) == ["fidelity", "total_variation", "image"]
    assert objective.size == math.prod(RANGE) + math.prod(SHAPE)
    parts = [0.1 * float(values["total_variation"]), 0.3 * float(values["image"])]
    expected = float(values["fidelity"]) + sum(parts)
    # Weights are not rounded to float32 on the way.
    assert float(objective(image)) == pytest.approx(expected, rel=1e-14)
    assert float(values["total_variation"]) == float(total_variation(image))
    assert Objective(terms[1:2]).size == 1


def test_weights_of_an_objective_are_one_per_batch_element():
    images = draw(3, *SHAPE, seed=0)
    weights = torch.tensor([0.0, 0.1, 2.0], dtype=torch.float64)
    term = DataTerm(Identity(SHAPE), GaussianFidelity(smooth(), 0.1))
    together = Objective([(1.0, term), (weights, TotalVariation(SHAPE))])(images)
    for k in range(3):
        alone = Objective([(1.0, term), (float(weights[k]), TotalVariation(SHAPE))])
        assert float(alone(images[k])) == pytest.approx(float(together[k]), rel=1e-14)
    assert together.shape == (3,)


def test_impossible_objectives_are_refused():
    term = TotalVariation(SHAPE)
    for bad in ([], [(1.0, term), (2.0, term)]):
        with pytest.raises(ConfigurationError, match="different names"):
            Objective(bad)
    for weight in (-1.0, math.nan, math.inf, torch.tensor([1.0, -1.0])):
        with pytest.raises(ConfigurationError, match="total_variation"):
            Objective([(weight, term)])
