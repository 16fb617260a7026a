"""Stochastic estimates of the evidence against the exact one, and the tuners built on them."""

import copy
import math

import numpy as np
import pytest
import torch
from small_posterior import F64, SmallProblem

from dipct.linalg import Preconditioner
from dipct.posterior import (
    StochasticEvidence,
    TotalVariationPrior,
    expected_log_density,
    posterior_moments,
    tune,
    tune_by_expectation_maximisation,
    tune_stochastically,
)


@pytest.fixture(scope="module")
def problem():
    return SmallProblem()


@pytest.fixture(scope="module")
def exact(problem):
    """The maximum of the exact evidence."""
    return tune(problem.evidence)


def stochastic(problem, products=None, **options):
    options = {"rank": 10, "tolerance": 1e-8, **options}
    return StochasticEvidence(
        problem.prior,
        problem.stored if products is None else products,
        problem.model.residual,
        problem.model.noise_variance,
        **options,
    )


def test_products_are_those_of_the_covariance(problem):
    phi = problem.phi()
    identity = torch.eye(problem.model.n_data, dtype=F64)
    for products in (problem.stored, problem.model):
        found = stochastic(problem, products).apply(phi, identity)
        assert torch.allclose(found, problem.data_covariance(phi), atol=1e-9)


def standardised(problem, evidence, phi, seeds):
    exact = problem.evidence(phi).gradient
    found = [evidence.gradient(phi, seed=seed) for seed in range(seeds)]
    assert all(each.solution.converged for each in found)
    each = torch.stack([estimate.gradient for estimate in found])
    scaled = torch.stack([(e.gradient - exact) / e.standard_error for e in found])
    of_mean = (each.mean(0) - exact) / (each.std(0) / math.sqrt(seeds))
    return scaled, of_mean


def test_gradients_are_unbiased_and_know_their_error(problem):
    evidence = stochastic(problem, probes=12)
    for seed in range(2):
        scaled, of_mean = standardised(problem, evidence, problem.phi(seed), 30)
        # Student's distribution of eleven degrees of freedom: 94 % within two.
        assert 0.88 < float((scaled.abs() < 2).double().mean()) < 0.99
        assert float(of_mean.abs().max()) < 3.5


def test_the_preconditioner_of_other_hyper_parameters_changes_no_mean(problem):
    evidence, phi = stochastic(problem, probes=12), problem.phi()
    near = evidence.preconditioner(problem.phi(1), seed=0)
    exact = problem.evidence(phi).gradient
    each = torch.stack(
        [evidence.gradient(phi, seed=seed, preconditioner=near).gradient for seed in range(30)]
    )
    assert float(((each.mean(0) - exact) / (each.std(0) / 30**0.5)).abs().max()) < 3.5


class WrongDraws(Preconditioner):
    """Draws with another covariance than it says."""

    def __init__(self, near):
        self._near = near
        self.apply, self.solve, self.log_det = near.apply, near.solve, near.log_det

    apply = solve = log_det = None

    def sample(self, number, seed):
        return 1.3 * self._near.sample(number, seed)


def test_draws_of_another_covariance_are_found_out(problem):
    evidence, phi = stochastic(problem, probes=12), problem.phi()
    near = WrongDraws(evidence.preconditioner(phi, seed=0))
    exact = problem.evidence(phi).gradient
    each = torch.stack(
        [evidence.gradient(phi, seed=seed, preconditioner=near).gradient for seed in range(30)]
    )
    assert float(((each.mean(0) - exact) / (each.std(0) / 30**0.5)).abs().max()) > 5


def test_evidence_is_within_its_error(problem):
    evidence = stochastic(problem, probes=12)
    scaled = []
    for seed in range(30):
        phi = problem.phi(seed % 3)
        found = evidence.log_density(phi, seed=seed)
        assert found.log_det.converged
        exact = problem.evidence(phi).value
        scaled.append((found.value - exact) / found.standard_error)
    assert np.mean(np.abs(scaled) < 2.2) > 0.8
    assert abs(np.mean(scaled)) < 3.5 / 30**0.5


def test_a_loose_tolerance_of_gradients_does_not_shift_the_evidence(problem):
    phi = problem.phi()
    loose, tight = stochastic(problem, tolerance=0.1), stochastic(problem)
    values = [evidence.log_density(phi, seed=0).value for evidence in (loose, tight)]
    assert values[0] == pytest.approx(values[1], abs=0.01)
    # As it would with that tolerance itself.
    near = loose.preconditioner(phi, seed=0)
    rows = problem.model.residual[None]
    misfits = [float((rows * e.solve(phi, rows, near).value).sum()) for e in (loose, tight)]
    assert misfits[0] < misfits[1] - 0.01


def test_reduced_products_still_give_the_solution(problem):
    evidence = stochastic(problem, product_dtype=torch.float32, tolerance=1e-5)
    phi = problem.phi()
    near = evidence.preconditioner(phi, seed=0)
    found = evidence.solve(phi, problem.model.residual[None], near)
    exact = problem.evidence.factorise(phi).solve(problem.model.residual[None])
    assert torch.allclose(found.value, exact, rtol=1e-2, atol=1e-3 * float(exact.abs().max()))


def test_stochastic_tuning_comes_near_the_maximum(problem, exact):
    evidence = stochastic(problem, probes=12, tolerance=1e-4)
    found = tune_stochastically(evidence, steps=80, seed=0)
    reached = problem.evidence(found.phi).value
    before = problem.evidence(problem.evidence.initial()).value
    assert exact.log_evidence - reached < 0.1 * (exact.log_evidence - before)
    assert abs(found.log_evidence - reached) < 4 * found.log_evidence_error + 1e-6
    assert found.log_evidence_error > 0
    assert len(found.trace["noise"]) == 80
    known = np.isfinite(found.trace["log evidence"])
    assert known.sum() == 8


def test_stochastic_tuning_that_stops_early_says_so(problem):
    evidence = stochastic(problem, probes=12, tolerance=1e-4)
    found = tune_stochastically(evidence, steps=6, seed=0, learning_rate=0.01)
    assert not found.converged
    assert "allow more iterations" in found.advice


def test_linear_systems_that_are_not_solved_are_told(problem):
    evidence = stochastic(problem, rank=1, max_iterations=1)
    found = tune_stochastically(evidence, steps=2, seed=0)
    assert "did not converge" in found.advice


def test_stochastic_tuning_repeats(problem):
    evidence = stochastic(problem)
    one, other = (tune_stochastically(evidence, steps=3, seed=4) for _ in range(2))
    assert torch.equal(one.phi, other.phi)


@pytest.mark.parametrize("stopped_after", [3, 10, 12])
def test_stochastic_tuning_goes_on_exactly(problem, stopped_after):
    evidence, kept = stochastic(problem), []

    def keep(state):
        kept.append(copy.deepcopy(state))
        if len(kept) == stopped_after:
            raise KeyboardInterrupt

    whole = tune_stochastically(evidence, steps=14, seed=4)
    with pytest.raises(KeyboardInterrupt):
        tune_stochastically(evidence, steps=14, seed=4, keep=keep)
    rest = []
    resumed = tune_stochastically(evidence, steps=14, seed=4, state=kept[-1], keep=rest.append)
    assert len(rest) == 14 - stopped_after
    assert torch.equal(resumed.phi, whole.phi)
    assert resumed.log_evidence == whole.log_evidence
    for name, course in whole.trace.items():
        assert np.array_equal(resumed.trace[name], course, equal_nan=True)


def moments(problem, phi, samples, seed=0):
    return posterior_moments(
        problem.prior,
        problem.stored,
        problem.model.residual,
        problem.model.noise_variance,
        phi,
        problem.evidence.factorise(phi).solve,
        samples=samples,
        seed=seed,
    )


def test_moments_are_those_of_the_posterior(problem):
    phi = problem.phi()
    jacobian = problem.operator_matrix @ problem.jacobian_matrix
    precision = 1 / (phi[-1].exp() * problem.variance.flatten())
    inverse = torch.linalg.inv(problem.weight_covariance(phi))
    covariance = torch.linalg.inv(inverse + jacobian.T @ (precision[:, None] * jacobian))
    mean = covariance @ jacobian.T @ (precision * problem.model.residual)
    second = covariance + torch.outer(mean, mean)
    found = moments(problem, phi, 3000)
    for group, moment in zip(problem.prior.groups, found.filters, strict=True):
        part = second[group.weights, group.weights]
        shape = (group.filters, group.positions) * 2
        exact = torch.einsum("fifj->ij", part.reshape(shape))
        assert torch.allclose(moment, exact, rtol=0.15, atol=0.1 * float(exact.abs().max()))
    error = problem.model.residual - jacobian @ mean
    spread = torch.einsum("mi,ij,mj->m", jacobian, covariance, jacobian)
    noise = float(((error.square() + spread) / problem.variance.flatten()).sum())
    assert found.noise == pytest.approx(noise, rel=0.03)


def test_the_expected_density_has_the_gradient_of_the_evidence_where_it_was_taken(problem):
    """Fisher's identity."""
    phi = problem.phi()
    variable = phi.clone().requires_grad_()
    value = expected_log_density(
        problem.prior, moments(problem, phi, 4000), problem.model.n_data, variable
    )
    (gradient,) = torch.autograd.grad(value, variable)
    exact = problem.evidence(phi).gradient
    assert torch.allclose(gradient, exact, rtol=0.05, atol=0.5)


def expectation_maximisation(problem, hyperprior=None, **options):
    return tune_by_expectation_maximisation(
        problem.prior,
        problem.stored,
        problem.model.residual,
        problem.model.noise_variance,
        problem.evidence,
        hyperprior,
        initial=problem.evidence.initial(),
        names=problem.evidence.names,
        **options,
    )


def test_expectation_maximisation_climbs_towards_the_maximum(problem, exact):
    found = expectation_maximisation(problem, iterations=60, samples=256)
    trace = found.trace["log evidence"]
    assert np.all(np.diff(trace) > -0.2)
    # It climbs fast at first and slowly near the top.
    before = problem.evidence(problem.evidence.initial()).value
    assert exact.log_evidence - found.log_evidence < 0.4 * (exact.log_evidence - before)
    assert found.gradient_norm < found.trace["projected gradient"][0]
    assert found.log_evidence <= exact.log_evidence + 1e-6


def test_expectation_maximisation_with_a_hyperprior_climbs_the_sum(problem):
    hyperprior = TotalVariationPrior(problem.prior, problem.edges, 1.0)
    found = expectation_maximisation(problem, hyperprior, iterations=30, samples=128)
    both = found.trace["log evidence"] + found.trace["log hyperprior"]
    assert both[-1] > both[0]
    start = problem.evidence.initial()
    assert both[-1] > problem.evidence(start).value + hyperprior(start).value


def test_expectation_maximisation_says_when_it_is_not_done(problem):
    found = expectation_maximisation(problem, iterations=2, samples=8, fixed=("noise",))
    assert not found.converged
    assert "allow more iterations" in found.advice
    assert found.values["noise"] == 1.0
