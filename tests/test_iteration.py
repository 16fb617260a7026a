"""The iteration loop: recording, stopping, resuming, interrupts, divergence."""

import signal

import numpy as np
import pytest
import torch
from scipy import sparse

from dipct.errors import ConfigurationError, DataError, ShapeError
from dipct.objective import GaussianFidelity, PoissonFidelity
from dipct.operator.matrix import MatrixOperator
from dipct.solver import (
    CGLS,
    SIRT,
    DiscrepancyPrinciple,
    IterationState,
    Method,
    PrimalDualTV,
    Status,
    iterate,
)

DOMAIN, RANGE = (1, 6, 6), (4, 7)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only cost time on problems this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def operator(dtype=torch.float64):
    matrix = sparse.random(28, 36, density=0.3, random_state=np.random.default_rng(0))
    return MatrixOperator(matrix, DOMAIN, RANGE, dtype=dtype)


def projections(batch=(), dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand((*batch, *DOMAIN), generator=generator, dtype=torch.float64)
    clean = operator()(image)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    return (clean + 0.05 * noise).to(dtype)


def cgls(y):
    return CGLS(operator(y.dtype), y, tolerance=0.0)


def sirt(y):
    return SIRT(operator(y.dtype), y, tolerance=0.0)


def tv(y):
    fidelity = GaussianFidelity(y, 0.05, range_shape=RANGE)
    return PrimalDualTV(operator(y.dtype), fidelity, 2.0, tolerance=0.0)


def poisson_tv(y):
    fidelity = PoissonFidelity(y, 500.0, range_shape=RANGE)
    return PrimalDualTV(operator(y.dtype), fidelity, 2.0, isotropic=True, tolerance=0.0)


METHODS = [cgls, sirt, tv, poisson_tv]


class Doubling(Method):
    """x -> factor x; the figure is x, so that it overflows for a factor above 1."""

    def __init__(self, factor):
        self.factor = factor

    def start(self):
        return {"x": torch.ones(2)}

    def step(self, tensors):
        return {"x": self.factor * tensors["x"]}

    def estimate(self, tensors):
        return tensors["x"]

    def figures(self, tensors):
        return {"size": tensors["x"]}

    def outcome(self, figures):
        return Status.CONVERGED if bool((figures["size"] < 1e-3).all()) else None


class Mutating(Doubling):
    """Breaks the rule that a step leaves its input alone."""

    def step(self, tensors):
        return {"x": tensors["x"].mul_(self.factor)}


def differs(one, other):
    """Names of tensors or histories that are not bit-identical."""
    pairs = [(one.state.tensors, other.state.tensors), (one.state.history, other.state.history)]
    names = [k for a, b in pairs for k in a | b if not torch.equal(a[k], b[k])]
    return names + ([] if torch.equal(one.value, other.value) else ["value"])


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_resuming_is_bit_identical(make, batch):
    y = projections(batch, torch.float32)
    whole = iterate(make(y), max_iterations=45, every=4)
    part = iterate(make(y), max_iterations=13, every=4)
    assert part.status is Status.MAX_ITERATIONS
    rest = iterate(make(y), max_iterations=45, every=4, state=part.state)
    assert rest.iterations == whole.iterations == 45
    assert whole.state.history["iteration"].tolist() == list(range(0, 45, 4))
    assert differs(rest, whole) == []
    # A start from the image alone is not a continuation, and the comparison sees it.
    assert differs(part, whole) != []


@pytest.mark.parametrize("make", METHODS)
def test_steps_leave_their_input_alone(make):
    method = make(projections((2,)))
    before = method.step(method.start())
    kept = {name: tensor.clone() for name, tensor in before.items()}
    method.step(before)
    method.figures(before)
    assert all(torch.equal(before[name], kept[name]) for name in kept)
    broken = Mutating(2.0)
    tensors = broken.start()
    broken.step(tensors)
    assert not torch.equal(tensors["x"], torch.ones(2))


@pytest.mark.parametrize("make", METHODS)
def test_batch_elements_do_not_influence_each_other(make):
    y = projections((3,))
    together = iterate(make(y), max_iterations=6, every=2)
    for k in range(3):
        alone = iterate(make(y[k]), max_iterations=6, every=2)
        torch.testing.assert_close(together.value[k], alone.value, rtol=1e-7, atol=1e-9)
        for name, values in alone.history.items():
            if name != "iteration":
                torch.testing.assert_close(
                    together.history[name][:, k], values, rtol=1e-6, atol=1e-8
                )


def test_records_and_callbacks():
    seen = []
    solution = iterate(
        cgls(projections()), max_iterations=10, every=4, callbacks=[lambda s: seen.append(s)]
    )
    assert [s.iteration for s in seen] == [4, 8]
    assert all(s.is_recorded for s in seen)
    assert solution.history["iteration"].tolist() == [0, 4, 8, 10]
    assert solution.state.history["iteration"].tolist() == [0, 4, 8]
    assert seen[0].history["iteration"].tolist() == [0, 4]


def test_observers_are_called_after_every_iteration():
    seen = []

    def note(name):
        return lambda state: seen.append((name, state))

    solution = iterate(
        Doubling(0.5),
        max_iterations=5,
        every=2,
        callbacks=[note("callback")],
        observers=[note("one"), note("two")],
    )
    called = [(name, state.iteration) for name, state in seen]
    assert called == [
        *(("one", 1), ("two", 1)),
        *(("one", 2), ("two", 2), ("callback", 2)),
        *(("one", 3), ("two", 3)),
        *(("one", 4), ("two", 4), ("callback", 4)),
        *(("one", 5), ("two", 5)),
    ]
    states = [state for name, state in seen if name == "one"]
    assert [state.is_recorded for state in states] == [False, True, False, True, False]
    assert [float(state.tensors["x"][0]) for state in states] == [0.5**k for k in range(1, 6)]
    assert states[-1] is solution.state


def test_observers_see_only_what_is_new():
    y, seen = projections(), []
    whole = iterate(cgls(y), max_iterations=9, every=4)
    part = iterate(cgls(y), max_iterations=5, every=4)
    rest = iterate(
        cgls(y),
        max_iterations=9,
        every=4,
        state=part.state,
        observers=[lambda state: seen.append(state.iteration)],
    )
    assert seen == [6, 7, 8, 9] and differs(rest, whole) == []
    iterate(cgls(y), max_iterations=9, every=4, state=rest.state, observers=[seen.append])
    assert seen == [6, 7, 8, 9]


def test_observers_see_what_diverges():
    observed, recorded = [], []
    solution = iterate(
        Doubling(1e10),
        max_iterations=50,
        every=2,
        callbacks=[recorded.append],
        observers=[observed.append],
    )
    assert (solution.status, solution.iterations) == (Status.DIVERGED, 2)
    assert [state.iteration for state in observed] == [1, 2, 3, 4]
    assert not torch.isfinite(observed[-1].tensors["x"]).all()
    assert [state.iteration for state in recorded] == [2]


@pytest.mark.parametrize("at", [3, 4])
def test_an_interrupt_in_an_observer_keeps_the_state(at):
    def interrupt(state):
        if state.iteration == at:
            raise KeyboardInterrupt

    stopped = iterate(Doubling(0.9), max_iterations=9, every=2, observers=[interrupt])
    assert (stopped.status, stopped.iterations) == (Status.INTERRUPTED, at)
    rest = iterate(Doubling(0.9), max_iterations=9, every=2, state=stopped.state)
    assert differs(rest, iterate(Doubling(0.9), max_iterations=9, every=2)) == []


def test_interrupt_in_a_step_keeps_the_last_complete_state():
    class Interrupted(Doubling):
        def step(self, tensors):
            following = super().step(tensors)
            if float(tensors["x"][0]) < 0.2:
                signal.raise_signal(signal.SIGINT)
            return following

    stopped = iterate(Interrupted(0.5), max_iterations=20, every=2)
    assert stopped.status is Status.INTERRUPTED
    assert stopped.iterations == 3
    assert stopped.value.tolist() == [0.125, 0.125]
    rest = iterate(Doubling(0.5), max_iterations=20, every=2, state=stopped.state)
    assert differs(rest, iterate(Doubling(0.5), max_iterations=20, every=2)) == []


def test_interrupt_in_a_callback_does_not_skip_the_stopping_rules():
    def interrupt(state):
        if state.iteration == 4:
            raise KeyboardInterrupt

    def rule(state):
        return Status.DISCREPANCY_REACHED if state.iteration == 4 else None

    stopped = iterate(Doubling(0.9), max_iterations=9, every=2, callbacks=[interrupt])
    assert (stopped.status, stopped.iterations) == (Status.INTERRUPTED, 4)
    rest = iterate(Doubling(0.9), max_iterations=9, every=2, state=stopped.state, stopping=[rule])
    assert (rest.status, rest.iterations) == (Status.DISCREPANCY_REACHED, 4)


def test_divergence_is_a_status_with_the_last_valid_value():
    solution = iterate(Doubling(1e10), max_iterations=50, every=3)
    assert solution.status is Status.DIVERGED
    assert solution.iterations == 3
    assert bool(torch.isfinite(solution.value).all())
    assert "adjoint" in solution.status.advice
    # Also where the overflow happens after the last regular record.
    late = iterate(Doubling(1e10), max_iterations=5, every=3)
    assert (late.status, late.iterations) == (Status.DIVERGED, 3)
    assert iterate(Doubling(0.5), max_iterations=50, every=3).status is Status.CONVERGED


def test_continuing_a_converged_solution_does_nothing():
    solution = iterate(Doubling(0.1), max_iterations=50, every=1)
    again = iterate(Doubling(0.1), max_iterations=50, every=1, state=solution.state)
    assert again.iterations == solution.iterations == 4
    assert again.status is Status.CONVERGED


def test_every_status_advises():
    assert all(len(status.advice) > 20 for status in Status)
    aims = {Status.CONVERGED, Status.DISCREPANCY_REACHED, Status.SETTLED}
    assert {status for status in Status if status.is_success} == aims


def test_foreign_states_and_bad_numbers_are_refused():
    y = projections()
    foreign = iterate(sirt(y), max_iterations=2).state
    with pytest.raises(ConfigurationError, match="another method"):
        iterate(cgls(y), max_iterations=5, state=foreign)
    with pytest.raises(ConfigurationError, match="another method"):
        iterate(sirt(y.float()), max_iterations=5, state=foreign)
    for numbers in ({"max_iterations": -1}, {"max_iterations": 1, "every": 0}):
        with pytest.raises(ConfigurationError, match="at least"):
            iterate(cgls(y), **numbers)


@pytest.mark.parametrize("make", [cgls, sirt])
def test_bad_projections_are_refused(make):
    y = projections()
    with pytest.raises(DataError):
        make(torch.where(y == y.max(), torch.nan, y))
    with pytest.raises(ShapeError):
        make(y[:2])


def test_discrepancy_principle_stops_at_the_noise_level():
    y = projections()
    rule = DiscrepancyPrinciple(0.05, target=1.2)
    solution = iterate(cgls(y), max_iterations=100, every=1, stopping=[rule])
    assert solution.status is Status.DISCREPANCY_REACHED
    residual = operator()(solution.value) - y
    assert float(residual.square().mean()) <= 1.2 * 0.05**2
    before = iterate(cgls(y), max_iterations=solution.iterations - 1, every=1)
    assert float((operator()(before.value) - y).square().mean()) > 1.2 * 0.05**2
    # A weighted rule equals the plain one where the weights are all the same.
    weighted = DiscrepancyPrinciple(torch.full(RANGE, 0.05), target=1.2)
    again = iterate(cgls(y), max_iterations=100, every=1, stopping=[weighted])
    assert again.iterations == solution.iterations


def test_discrepancy_principle_waits_for_the_whole_batch():
    y = projections((3,))
    rule = DiscrepancyPrinciple(0.05, target=1.2)
    alone = [iterate(cgls(e), max_iterations=100, every=1, stopping=[rule]).iterations for e in y]
    together = iterate(cgls(y), max_iterations=100, every=1, stopping=[rule])
    assert together.iterations == max(alone)


def test_discrepancy_principle_refuses_what_it_cannot_stop():
    with pytest.raises(ConfigurationError, match="tv_weight_by_discrepancy"):
        iterate(tv(projections()), max_iterations=3, stopping=[DiscrepancyPrinciple(0.05)])
    for bad in ({"std": 0.0}, {"std": 1.0, "target": -1.0}):
        with pytest.raises(ConfigurationError, match="positive"):
            DiscrepancyPrinciple(**bad)


def test_state_is_a_value():
    state = IterationState(0, {"x": torch.ones(1)}).recorded({"size": torch.tensor(1.0)})
    more = IterationState(1, state.tensors, state.history).recorded({"size": torch.tensor(2.0)})
    assert state.history["size"].tolist() == [1.0]
    assert more.history["size"].tolist() == [1.0, 2.0]
    assert float(more.figures()["size"]) == 2.0
