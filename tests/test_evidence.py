"""The exact evidence, its gradient, and hyper-parameters that maximise it."""

import math

import numpy as np
import pytest
import torch
from small_posterior import F64, SmallProblem

from dipct.errors import ConvergenceError, ShapeError
from dipct.posterior import ExactEvidence, TotalVariationPrior, factorise, tune
from dipct.posterior.tuning import bounded


@pytest.fixture(scope="module")
def problem():
    return SmallProblem()


def gaussian_log_density(residual, covariance):
    zero = torch.zeros_like(residual)
    return float(torch.distributions.MultivariateNormal(zero, covariance).log_prob(residual))


def finite_differences(function, phi, step=1e-5):
    return torch.tensor(
        [
            (function(phi + step * e).value - function(phi - step * e).value) / (2 * step)
            for e in torch.eye(len(phi), dtype=F64)
        ],
        dtype=F64,
    )


@pytest.mark.parametrize("seed", range(3))
def test_evidence_is_the_density_of_the_data(problem, seed):
    phi = problem.phi(seed)
    covariance = problem.data_covariance(phi)
    assert torch.allclose(problem.evidence.covariance(phi), covariance, atol=1e-10)
    exact = gaussian_log_density(problem.model.residual, covariance)
    assert problem.evidence(phi).value == pytest.approx(exact, rel=1e-10)
    assert problem.evidence(phi).jitter == 0


def test_evidence_without_its_constant_is_not(problem):
    phi = problem.phi()
    exact = gaussian_log_density(problem.model.residual, problem.data_covariance(phi))
    found = problem.evidence(phi)
    without = -(found.parts["misfit"] + found.parts["log determinant"]) / 2
    assert abs(without - exact) > 10


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_finite_differences(problem, seed):
    phi = problem.phi(seed)
    exact = finite_differences(problem.evidence, phi)
    assert torch.allclose(problem.evidence(phi).gradient, exact, rtol=1e-5, atol=1e-6)


def test_gram_matrices_in_single_precision_will_do(problem):
    single = ExactEvidence(
        problem.prior,
        problem.evidence.gram.float(),
        problem.model.residual,
        problem.model.noise_variance,
    )
    phi = problem.phi()
    assert single(phi).value == pytest.approx(problem.evidence(phi).value, abs=1e-3)


def test_tuning_finds_a_maximum(problem):
    told = []
    found = tune(problem.evidence, report=lambda i, at: told.append(i))
    assert found.converged
    assert found.advice == ""
    assert found.log_evidence >= problem.evidence(problem.evidence.initial()).value
    trace = found.trace["log evidence"]
    assert np.all(np.diff(trace) > -1e-9)
    assert told == list(range(len(trace)))
    # Nowhere near is it larger.
    random = torch.Generator().manual_seed(0)
    low, high = torch.tensor([*problem.prior.bounds(), (-10.0, 10.0)], dtype=F64).T
    for _ in range(20):
        change = 0.05 * torch.randn(len(found.phi), generator=random, dtype=F64)
        near = torch.minimum(torch.maximum(found.phi + change, low), high)
        assert problem.evidence(near).value <= found.log_evidence + 1e-4
    assert found.values["noise"] == pytest.approx(math.exp(found.phi[-1]))


def test_tuning_says_when_it_has_not_converged(problem):
    found = tune(problem.evidence, max_iterations=1)
    assert not found.converged
    assert "allow more iterations" in found.advice


class Fragile(ExactEvidence):
    """Cannot be factorised at noise a little below the best."""

    failures = 0

    def __call__(self, phi):
        if phi[-1] < -0.6:
            self.failures += 1
            raise ConvergenceError("not positive definite")
        return super().__call__(phi)


def test_a_trial_that_cannot_be_factorised_is_turned_back_from(problem):
    whole = problem.evidence
    fragile = Fragile(
        problem.prior, whole.gram, problem.model.residual, problem.model.noise_variance
    )
    found = tune(fragile)
    assert fragile.failures > 0
    assert found.log_evidence > tune(whole).log_evidence - 1.0
    beyond = whole.initial()
    beyond[-1] = -1.0
    with pytest.raises(ConvergenceError):
        tune(fragile, initial=beyond)


def test_fixed_hyper_parameters_stay(problem):
    found = tune(problem.evidence, fixed=("noise",))
    assert found.values["noise"] == 1.0


def test_tuning_recovers_the_noise_and_the_scale_of_draws_of_the_model():
    problem = SmallProblem(n=8, views=8)
    phi = problem.phi()
    phi[-1] = math.log(4.0)
    random = torch.Generator().manual_seed(0)
    factor = torch.linalg.cholesky(problem.evidence.covariance(phi))
    values = []
    for _ in range(8):
        residual = factor @ torch.randn(len(factor), generator=random, dtype=F64)
        evidence = ExactEvidence(
            problem.prior, problem.evidence.gram, residual, problem.model.noise_variance
        )
        found = tune(evidence, initial=phi)
        assert found.log_evidence >= evidence(phi).value
        values.append(float(found.phi[-1]))
    mean, error = np.mean(values), np.std(values) / math.sqrt(len(values))
    assert abs(mean - math.log(4.0)) < 3 * error + 0.15


def test_with_a_hyperprior_the_sum_is_maximised(problem):
    hyperprior = TotalVariationPrior(problem.prior, problem.edges, 1.0)
    found = tune(problem.evidence, hyperprior)
    alone = tune(problem.evidence)
    both = {
        name: problem.evidence(each.phi).value + hyperprior(each.phi).value
        for name, each in (("with", found), ("without", alone))
    }
    assert both["with"] >= both["without"]
    assert found.log_evidence <= alone.log_evidence + 1e-6
    assert "log hyperprior" in found.trace


def test_jitter_is_reported_never_hidden():
    random = torch.Generator().manual_seed(0)
    half = torch.randn(20, 5, generator=random, dtype=F64)
    found = factorise(half @ half.T)
    assert 0 < found.jitter < 1e-8
    assert factorise(half @ half.T + torch.eye(20, dtype=F64)).jitter == 0
    with pytest.raises(ConvergenceError, match="not positive definite"):
        factorise(-torch.eye(4, dtype=F64))


def test_wrong_shapes_are_refused(problem):
    gram, residual = problem.evidence.gram, problem.model.residual
    variance = problem.model.noise_variance
    with pytest.raises(ShapeError, match="Gram matrices must have shape"):
        ExactEvidence(problem.prior, gram[1:], residual, variance)
    with pytest.raises(ShapeError, match="Gram matrices must have shape"):
        ExactEvidence(problem.prior, gram, residual, variance[1:])
    with pytest.raises(ShapeError, match="hyper-parameters"):
        problem.evidence(torch.zeros(2, dtype=F64))


def test_hyper_parameters_at_their_bounds_are_told():
    names = ("a variance", "a length scale", "b variance", "c variance", "noise")
    bounds = [(-7.0, 14.0), (-3.0, 5.0), (-7.0, 14.0), (-7.0, 14.0), (-10.0, 10.0)]
    inside = torch.tensor([-7.0, -3.0, 0.0, 1.0, 0.0], dtype=F64)
    assert bounded(names, inside, bounds) == []
    switched_off = torch.tensor([-7.0, 0.0, -7.0, 1.0, 10.0], dtype=F64)
    (off, end) = bounded(names, switched_off, bounds)
    assert "a variance, b variance." in off
    assert "noise;" in end
    fixed = [(at, at) for at in switched_off.tolist()]
    assert bounded(names, switched_off, fixed) == []
