"""Fits of a generator: what is returned, stopping, resuming, interrupts, divergence."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy import sparse

from dipct.checkpoint import CheckpointWriter, read_checkpoint
from dipct.errors import ConfigurationError, ShapeError
from dipct.generator import NetworkGenerator, UNet
from dipct.objective import DataTerm, GaussianFidelity, Objective, TotalVariation
from dipct.operator import Identity, MatrixOperator
from dipct.operator.base import Operator
from dipct.solver import (
    Adam,
    CosineDecay,
    FirstAtNoiseLevel,
    GeneratorFit,
    IterationState,
    LastIterate,
    LeastMovingVariance,
    LowestObjective,
    Status,
    iterate,
)

SHAPE, RANGE, STD = (1, 12, 14), (8, 11), 0.05
NETWORK = UNet((4, 4), (0, 2))
RULES = {
    "lowest": LowestObjective,
    "last": LastIterate,
    "reached": lambda: FirstAtNoiseLevel(60.0),
    "not reached": lambda: FirstAtNoiseLevel(1e-6),
    "variance": lambda: LeastMovingVariance(5, 1000, 3),
    "window not full": lambda: LeastMovingVariance(40, 1000),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only cost time on problems this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def smooth():
    """A hill of height one."""
    rows, columns = (torch.linspace(0, math.pi, n, dtype=torch.float64) for n in SHAPE[1:])
    return (torch.sin(rows)[:, None] * torch.sin(columns))[None]


def system(dtype=torch.float32):
    rng = np.random.default_rng(0)
    matrix = sparse.random(
        math.prod(RANGE), math.prod(SHAPE), density=0.1, random_state=rng, data_rvs=rng.random
    )
    return MatrixOperator(matrix, SHAPE, RANGE, dtype=dtype)


def data(batch=(), dtype=torch.float32):
    clean = system(torch.float64)(smooth())
    return (clean + STD * draw(*batch, *RANGE, seed=1)).to(dtype)


def generator(batch=(), dtype=torch.float32):
    return NetworkGenerator(NETWORK, 0.1 * draw(*batch, *SHAPE, seed=2).to(dtype), SHAPE[1:])


def fit(operator=None, *, batch=(), dtype=torch.float32, rate=1e-2, tv=0.5, **settings):
    """A fit of data with total variation, to be run for 30 steps."""
    operator = system(dtype) if operator is None else operator
    fidelity = GaussianFidelity(data(batch, dtype), STD, range_shape=RANGE)
    objective = Objective([(1.0, DataTerm(operator, fidelity)), (tv, TotalVariation(SHAPE))])
    made = generator(batch, dtype)
    count = math.prod(batch)
    initial = torch.stack([made.initial(seed) for seed in range(count)]).to(dtype)
    optimiser = Adam(rate, schedule=CosineDecay(30, 5), clip=1.0)
    settings = {"optimiser": optimiser} | settings
    return GeneratorFit(made, objective, initial.reshape(*batch, -1), **settings)


def run(method, **options):
    return iterate(method, **({"max_iterations": 30, "every": 4} | options))


class Tripping(Operator):
    """An operator to which something happens at one of its calls, or at all from then on."""

    def __init__(self, at, *, happens, forever=False):
        self.operator, self.at, self.happens, self.forever = system(), at, happens, forever
        self.domain_shape, self.range_shape = SHAPE, RANGE
        self.calls = 0

    def _apply(self, x):
        self.calls += 1
        y = self.operator(x)
        if self.calls == self.at or (self.forever and self.calls > self.at):
            return self.happens(y)
        return y


@functools.cache
def unbroken(name="lowest", batch=()):
    """A whole run, which others are compared with."""
    return run(fit(batch=batch, selection=RULES[name]()))


def interrupt(y):
    raise KeyboardInterrupt


def differs(one, other):
    """Names of tensors or histories that are not bit-identical."""
    pairs = [
        (one.state.tensors, other.state.tensors),
        (one.state.history, other.state.history),
        (one.history, other.history),
        ({"value": one.value}, {"value": other.value}),
    ]
    found = set()
    for a, b in pairs:
        assert a.keys() == b.keys()
        found |= {k for k in a if not torch.equal(a[k], b[k]) or a[k].dtype != b[k].dtype}
    return found


def test_the_estimate_is_the_image_of_the_lowest_objective_seen():
    method = fit()
    solution = run(method, every=1)
    objective = solution.history["objective"]
    assert objective.shape == (31,)
    assert float(objective[-1]) < 0.2 * float(objective[0])
    tensors = solution.state.tensors
    # The iterate after the last step is recorded, but no step has seen it.
    seen = objective[:-1]
    assert int(tensors["chosen_step"]) == int(seen.argmin())
    assert float(tensors["lowest"]) == float(seen.min())
    assert torch.equal(solution.value, method.generator(tensors["chosen"]))
    assert float(method.loss.objective(solution.value)) == float(seen.min())
    assert not solution.value.requires_grad
    assert solution.value.shape == SHAPE


def test_the_lowest_objective_is_kept_where_the_last_is_worse():
    method = fit(optimiser=Adam(1.0))
    solution = run(method, every=1)
    seen = solution.history["objective"]
    assert float(seen[-1]) > 1.1 * float(seen.min())
    assert float(method.loss.objective(solution.value)) == float(seen[:-1].min())


def test_the_gradient_step_is_that_of_the_scaled_objective():
    method = fit(optimiser=Adam(1e-2, betas=(0.0, 0.0)))
    tensors = method.start()
    theta = tensors["theta"].clone().requires_grad_()
    loss = method.loss.objective(method.generator(theta)) / math.prod(RANGE)
    (gradient,) = torch.autograd.grad(loss, theta)
    found = method.step(tensors)["gradient_mean"]
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
    doubled = fit(optimiser=Adam(1e-2, betas=(0.0, 0.0)), loss_scale=2 / math.prod(RANGE))
    torch.testing.assert_close(doubled.step(tensors)["gradient_mean"], 2 * found)
    assert float(gradient.abs().max()) > 1e-3


def test_figures_are_those_of_the_current_iterate():
    method = fit(tv=0.7)
    solution = run(method, every=3)
    last = {name: float(values[-1]) for name, values in solution.history.items()}
    image = method.generator(solution.state.tensors["theta"])
    fidelity = method.loss.objective.terms[0][1].fidelity
    assert last["iteration"] == 30
    assert last["fidelity"] == float(fidelity.value(system()(image)))
    assert last["discrepancy"] == pytest.approx(2 * last["fidelity"] / 88)
    assert last["discrepancy"] == pytest.approx(float(fidelity.discrepancy(system()(image))))
    assert last["objective"] == pytest.approx(last["fidelity"] + 0.7 * last["total_variation"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_steps_leave_their_input_alone(rule, batch):
    method = fit(batch=batch, selection=RULES[rule]())
    tensors = method.start()
    for _ in range(6):
        kept = {name: tensor.clone() for name, tensor in tensors.items()}
        following = method.step(tensors)
        method.figures(tensors)
        method.estimate(tensors)
        assert all(torch.equal(tensors[name], kept[name]) for name in kept)
        assert not any(tensor.requires_grad for tensor in following.values())
        assert {k: (v.shape, v.dtype) for k, v in following.items()} == {
            k: (v.shape, v.dtype) for k, v in tensors.items()
        }
        tensors = following


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("batch", "stop"), [((), 0), ((), 4), ((), 13), ((2,), 13)])
def test_resuming_is_bit_identical(rule, batch, stop):
    whole = unbroken(rule, batch)
    part = run(fit(batch=batch, selection=RULES[rule]()), max_iterations=stop)
    rest = run(fit(batch=batch, selection=RULES[rule]()), state=part.state)
    assert rest.iterations == whole.iterations
    assert differs(rest, whole) == set()


def test_the_comparison_sees_what_is_not_a_continuation():
    part = run(fit(), max_iterations=13)
    # The parameters alone do not make the state.
    forgetful = fit().start() | {name: part.state.tensors[name] for name in ("theta", "step")}
    state = IterationState(13, forgetful, part.state.history)
    assert "theta" in differs(run(fit(), state=state), unbroken())


@pytest.mark.parametrize("rule", RULES)
def test_resuming_from_a_file_is_bit_identical(rule, tmp_path):
    path = tmp_path / "stopped.h5"
    writer = CheckpointWriter(path, "problem", {"seed": 0}, seconds=0.0)

    def die(state):
        # After the writer, as if the machine had gone down.
        if state.iteration == 8:
            raise SystemExit

    with pytest.raises(SystemExit):
        run(fit(selection=RULES[rule]()), callbacks=[writer, die])
    state, choices = read_checkpoint(path, "problem", torch.device("cpu"))
    assert (state.iteration, choices) == (8, {"seed": 0})
    rest = run(fit(selection=RULES[rule]()), state=state)
    assert differs(rest, unbroken(rule)) == set()
    # Between two records and of a batch, too.
    part = run(fit(batch=(2,), selection=RULES[rule]()), max_iterations=13)
    writer.write(part.state)
    state, _ = read_checkpoint(path, "problem", torch.device("cpu"))
    assert state.iteration == part.iterations
    rest = run(fit(batch=(2,), selection=RULES[rule]()), state=state)
    assert differs(rest, unbroken(rule, (2,))) == set()


@pytest.mark.parametrize("rule", RULES)
def test_resuming_after_an_interrupt_is_bit_identical(rule):
    def stop(state):
        if state.iteration == 8:
            raise KeyboardInterrupt

    stopped = run(fit(selection=RULES[rule]()), callbacks=[stop])
    assert (stopped.status, stopped.iterations) == (Status.INTERRUPTED, 8)
    rest = run(fit(selection=RULES[rule]()), state=stopped.state)
    assert differs(rest, unbroken(rule)) == set()


@pytest.mark.parametrize("at", [3, 7, 8, 9, 30])
def test_an_interrupt_inside_the_operator_keeps_the_last_complete_state(at):
    stopped = run(fit(Tripping(at, happens=interrupt)))
    assert stopped.status is Status.INTERRUPTED
    assert 0 <= stopped.iterations < 30
    assert bool(torch.isfinite(stopped.value).all())
    assert differs(run(fit(), state=stopped.state), unbroken()) == set()
    # The same value as that of a run which was to end there.
    assert differs(run(fit(), max_iterations=stopped.iterations), stopped) == set()


@pytest.mark.parametrize("at", [5, 8, 17, 37])
@pytest.mark.parametrize(
    ("bad", "forever"), [(math.nan, True), (math.nan, False), (math.inf, True)]
)
@pytest.mark.parametrize("rule", ["lowest", "not reached", "variance"])
def test_projections_that_are_not_finite_end_a_fit_with_its_last_valid_image(
    at, bad, forever, rule
):
    broken = Tripping(at, happens=lambda y: y * bad, forever=forever)
    solution = run(fit(broken, selection=RULES[rule]()))
    assert solution.status is Status.DIVERGED
    assert solution.iterations % 4 == 0
    valid = run(fit(selection=RULES[rule]()), max_iterations=solution.iterations)
    assert torch.equal(solution.value, valid.value)
    assert bool(torch.isfinite(solution.value).all())
    assert all(bool(torch.isfinite(values).all()) for values in solution.history.values())
    # It can be taken up again where it was valid.
    rest = run(fit(selection=RULES[rule]()), state=solution.state)
    assert differs(rest, unbroken(rule)) == set()


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_an_absurd_learning_rate_diverges(rate):
    method = fit(optimiser=Adam(rate))
    solution = run(method)
    assert solution.status is Status.DIVERGED
    assert "learning rate" in solution.status.advice
    assert torch.equal(solution.value, method.generator(method.start()["theta"]))


def test_measured_figures_join_the_history_and_change_nothing():
    truth = smooth().float()

    def measure(image):
        error = (image - truth).square().flatten(-3).mean(-1)
        return {"mean_square_error": error, "largest": image.flatten(-3).amax(-1)}

    for batch in ((), (2,)):
        plain, measured = run(fit(batch=batch)), run(fit(batch=batch, measure=measure))
        assert set(measured.history) - set(plain.history) == {"mean_square_error", "largest"}
        for name in plain.history:
            assert torch.equal(plain.history[name], measured.history[name])
        for name in plain.state.tensors:
            assert torch.equal(plain.state.tensors[name], measured.state.tensors[name])
        assert torch.equal(plain.value, measured.value)
        assert measured.history["mean_square_error"].shape == (9, *batch)
        image = generator(batch)(measured.state.tensors["theta"])
        assert torch.equal(measured.history["largest"][-1], image.flatten(-3).amax(-1))
        assert not torch.equal(plain.value, run(fit(batch=batch, tv=5.0)).value)


def test_noise_level_ends_a_fit_there():
    method = fit(tv=0.0, optimiser=Adam(3e-2), selection=FirstAtNoiseLevel(1.2))
    solution = run(method, max_iterations=2000, every=1)
    assert solution.status is Status.DISCREPANCY_REACHED
    residual = system()(solution.value) - data()
    assert float(residual.square().mean()) <= 1.2 * STD**2
    history = solution.history["discrepancy"]
    chosen = int(solution.state.tensors["chosen_step"])
    # Every iterate before was worse, so that this one is the first.
    assert float(history[:chosen].min()) > 1.2
    assert float(history[chosen]) <= 1.2
    assert solution.iterations == chosen + 1
    # With fewer records the fit ends later, with the same image.
    rarely = run(
        fit(tv=0.0, optimiser=Adam(3e-2), selection=FirstAtNoiseLevel(1.2)),
        max_iterations=2000,
        every=50,
    )
    assert rarely.iterations % 50 == 0
    assert torch.equal(rarely.value, solution.value)


def denoising(patience=60):
    truth = smooth().float()
    noisy = truth + 0.1 * draw(*SHAPE, seed=5).float()
    objective = Objective([(1.0, DataTerm(Identity(SHAPE), GaussianFidelity(noisy, 0.1)))])
    made = generator()
    return truth, GeneratorFit(
        made,
        objective,
        made.initial(0),
        optimiser=Adam(1e-2, clip=1.0),
        selection=LeastMovingVariance(10, patience),
        measure=lambda image: {"error": (image - truth).square().flatten(-3).mean(-1)},
    )


def test_moving_variance_ends_denoising_before_noise_is_fitted():
    truth, method = denoising()
    solution = iterate(method, max_iterations=1500, every=1)
    assert solution.status is Status.SETTLED
    assert solution.status.is_success
    chosen = int(solution.state.tensors["chosen_step"])
    assert solution.iterations == chosen + 60 + 1
    variance = solution.history["moving_variance"]
    # A figure of step k is that of the iterate before it.
    assert int(variance[10:].argmin()) + 10 == chosen + 1
    assert not bool(variance[:10].any())
    error = float((solution.value - truth).square().mean())
    assert error == float(solution.history["error"][chosen])
    assert error < 0.7 * 0.1**2


def test_moving_variance_chooses_the_same_whenever_it_is_asked():
    _, method = denoising()
    often = iterate(method, max_iterations=1500, every=1)
    rarely = iterate(method, max_iterations=1500, every=400)
    assert rarely.status is Status.SETTLED
    assert torch.equal(often.value, rarely.value)


def test_the_first_data_term_is_that_of_the_discrepancy():
    fidelity = GaussianFidelity(data(), STD)
    other = GaussianFidelity(smooth().float(), 0.1)
    made = generator()
    terms = [
        (0.1, TotalVariation(SHAPE)),
        (1.0, DataTerm(system(), fidelity)),
        (2.0, DataTerm(Identity(SHAPE), other, "image")),
    ]
    method = GeneratorFit(made, Objective(terms), made.initial(0))
    figures = method.figures(method.start())
    assert float(figures["discrepancy"]) == pytest.approx(2 * float(figures["fidelity"]) / 88)
    assert float(figures["image"]) > 0
    # Without data there is no discrepancy.
    smoothing = GeneratorFit(made, Objective(terms[:1]), made.initial(0))
    assert "discrepancy" not in run(smoothing).history


def test_states_of_other_fits_are_refused():
    state = run(fit(), max_iterations=4).state
    others = [
        fit(selection=LastIterate()),
        fit(batch=(2,)),
        fit(dtype=torch.float64),
        fit(selection=LeastMovingVariance(5)),
    ]
    for other in others:
        with pytest.raises(ConfigurationError, match="another method"):
            run(other, state=state)
    state = run(others[-1], max_iterations=4).state
    with pytest.raises(ConfigurationError, match="another method"):
        run(fit(selection=LeastMovingVariance(6)), state=state)


def test_settings_that_do_not_fit_are_refused():
    made = generator()
    objective = Objective([(1.0, DataTerm(system(), GaussianFidelity(data(), STD)))])
    with pytest.raises(ShapeError, match=f"P={made.n_parameters}"):
        GeneratorFit(made, objective, made.initial(0)[:-1])
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match="loss_scale"):
            GeneratorFit(made, objective, made.initial(0), loss_scale=bad)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (775, 1)])
def test_learning_rates_that_do_not_fit_are_refused(shape):
    with pytest.raises(ShapeError, match="learning"):
        run(fit(rate=torch.full(shape, 1e-3)), max_iterations=1)


def test_one_network_for_a_batch_of_data_is_refused():
    # It would fit one image to all data and call it one for each.
    made = generator()
    fidelity = GaussianFidelity(data((3,)), STD, range_shape=RANGE)
    objective = Objective([(1.0, DataTerm(system(), fidelity))])
    with pytest.raises(ShapeError, match="batch"):
        run(GeneratorFit(made, objective, made.initial(0)))
    with pytest.raises(ShapeError, match="batch"):
        run(fit(tv=torch.tensor([0.0, 1.0, 2.0])))


@pytest.mark.parametrize("name", ["iteration", "objective", "fidelity", "chosen_step"])
def test_measured_figures_cannot_take_the_names_of_others(name):
    with pytest.raises(ConfigurationError, match=name):
        run(fit(measure=lambda image: {name: image.sum()}))


def test_checkpoints_hold_every_tensor(tmp_path):
    writer = CheckpointWriter(tmp_path / "all.h5", "problem", {}, seconds=0.0)
    state = run(fit(selection=LeastMovingVariance(5)), max_iterations=10).state
    writer.write(state)
    again, _ = read_checkpoint(tmp_path / "all.h5", "problem", torch.device("cpu"))
    for given, read in ((state.tensors, again.tensors), (state.history, again.history)):
        assert given.keys() == read.keys()
        assert all(torch.equal(given[name], read[name]) for name in given)
        assert all(given[name].dtype == read[name].dtype for name in given)


def test_a_measured_figure_may_be_infinite():
    def measure(image):
        return {"psnr_db": torch.tensor(math.inf)}

    solution = iterate(fit(measure=measure), max_iterations=6, every=2)
    assert solution.status is Status.MAX_ITERATIONS
    assert bool(torch.isinf(solution.history["psnr_db"]).all())
