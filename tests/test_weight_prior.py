"""Priors on convolution weights: covariances, draws, counts of hyper-parameters."""

import math

import pytest
import torch
from small_posterior import F64, SmallProblem
from torch import Generator

from dipct.errors import ConfigurationError, ShapeError
from dipct.generator import Kind, make_network
from dipct.posterior import FilterGroup, GPrior, MaternPrior, WeightPrior


def weights_of(network):
    return [p for p in network.parameters if p.kind is Kind.CONVOLUTION and p.used]


@pytest.fixture(scope="module")
def problem():
    return SmallProblem()


@pytest.mark.parametrize(
    ("name", "hyper_parameters", "weights"),
    [("small", 14, 76_608), ("128", 18, 448_704), ("walnut", 26, 2_964_096)],
)
def test_published_networks_have_the_published_number_of_hyper_parameters(
    name, hyper_parameters, weights
):
    prior = MaternPrior(weights_of(make_network(name)))
    # And that of the noise.
    assert len(prior.names) + 1 == hyper_parameters
    assert prior.size == weights


def test_products_are_those_of_the_covariance_from_its_definition(problem):
    phi, prior = problem.phi()[:-1], problem.prior
    matrix = problem.weight_covariance(problem.phi())
    identity = torch.eye(prior.size, dtype=F64)
    assert torch.allclose(prior.apply(phi, identity), matrix, rtol=1e-12, atol=1e-14)
    assert torch.allclose(prior.solve(phi, matrix), identity, atol=1e-8)
    exact = torch.linalg.slogdet(matrix).logabsdet
    assert float(prior.log_det(phi)) == pytest.approx(float(exact), rel=1e-10)


def empirical_error(draws, matrix):
    """Mean squared distance from the covariance of draws, in standard errors, within filters."""
    empirical = draws.T @ draws / len(draws)
    spread = torch.outer(matrix.diagonal(), matrix.diagonal()) + matrix.square()
    squared = (empirical - matrix).square() / (spread / len(draws))
    return float(squared[matrix != 0].mean())


class TransposedDraws(MaternPrior):
    """Draws L^T e, as published code does: their covariance is L^T L."""

    def sample(self, phi, number, generator, *, dtype):
        white = torch.randn(number, self.size, generator=generator, dtype=dtype)
        factors = [torch.linalg.cholesky(m).mT for m in self.filter_covariances(phi)]
        parts = [g.times(white[:, g.weights], f) for g, f in zip(self.groups, factors, strict=True)]
        return torch.cat(parts, dim=1)


def test_draws_have_the_covariance(problem):
    phi, matrix = problem.phi(), problem.weight_covariance(problem.phi())
    draws = problem.prior.sample(phi[:-1], 4000, Generator().manual_seed(1), dtype=F64)
    assert empirical_error(draws, matrix) == pytest.approx(1.0, abs=0.05)


def test_draws_with_a_transposed_factor_do_not(problem):
    phi, matrix = problem.phi(), problem.weight_covariance(problem.phi())
    wrong = TransposedDraws(problem.model.parameters)
    draws = wrong.sample(phi[:-1], 4000, Generator().manual_seed(1), dtype=F64)
    assert empirical_error(draws, matrix) > 2


@pytest.mark.parametrize("smoothness", ["1/2", "3/2", "5/2"])
def test_correlations_are_those_of_the_matern_family(problem, smoothness):
    from scipy.special import gamma, kv

    nu = {"1/2": 0.5, "3/2": 1.5, "5/2": 2.5}[smoothness]
    prior = MaternPrior(problem.model.parameters, smoothness=smoothness, length_scale=0.8)
    matrix = prior.filter_covariances(prior.initial())[0]
    for i in range(9):
        distance = math.hypot(i // 3, i % 3)
        scaled = math.sqrt(2 * nu) * distance / 0.8
        known = 1.0
        if distance:
            known = 2 ** (1 - nu) / gamma(nu) * scaled**nu * kv(nu, scaled)
        assert float(matrix[0, i]) == pytest.approx(known, abs=2e-6)


def test_coefficients_give_the_covariance_and_are_differentiable(problem):
    phi = problem.phi()[:-1].requires_grad_()
    coefficients = problem.prior.coefficients(phi)
    structures = [s for group in problem.prior.groups for s in group.structures]
    assert len(coefficients) == len(structures) == problem.prior.n_components
    assert torch.autograd.gradcheck(problem.prior.coefficients, phi)


def test_g_prior_scales_columns_to_one():
    problem = SmallProblem()
    jacobian = problem.operator_matrix @ problem.jacobian_matrix
    prior = GPrior(problem.model.parameters, jacobian.square().mean(0), variance=0.5)
    phi = prior.initial()
    covariance = prior.apply(phi, torch.eye(prior.size, dtype=F64))
    columns = jacobian * covariance.diagonal().sqrt()
    assert torch.allclose(columns.square().mean(0), torch.full((prior.size,), 0.5, dtype=F64))
    assert torch.equal(covariance, covariance.diagonal().diag())
    draws = prior.sample(phi, 4000, Generator().manual_seed(1), dtype=F64)
    assert empirical_error(draws, covariance) == pytest.approx(1.0, abs=0.05)
    exact = covariance.diagonal().log().sum()
    assert float(prior.log_det(phi)) == pytest.approx(float(exact), rel=1e-12)
    assert torch.allclose(prior.solve(phi, covariance), torch.eye(prior.size, dtype=F64))


def test_wrong_settings_are_refused(problem):
    parameters = problem.model.parameters
    with pytest.raises(ConfigurationError, match="lowest_variance must be positive"):
        MaternPrior(problem.model.parameters, lowest_variance=0.0)
    with pytest.raises(ConfigurationError, match="smoothness must be 1/2, 3/2 or 5/2"):
        MaternPrior(parameters, smoothness="2/2")
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigurationError, match="positive and finite"):
            MaternPrior(parameters, variance=wrong)
        with pytest.raises(ConfigurationError, match="positive and finite"):
            GPrior(parameters, torch.ones(problem.prior.size), variance=wrong)
    with pytest.raises(ConfigurationError, match="one number for each of the"):
        GPrior(parameters, torch.ones(3))
    with pytest.raises(ConfigurationError, match="must lie together"):
        MaternPrior([*parameters, parameters[0]])
    with pytest.raises(ShapeError, match="hyper-parameters"):
        problem.prior.coefficients(torch.zeros(3))
    with pytest.raises(ShapeError, match="weights"):
        problem.prior.apply(problem.phi()[:-1], torch.zeros(2, 5, dtype=F64))


class Flat(WeightPrior):
    """Only to be constructed."""

    initial = bounds = group_coefficients = None


def test_groups_must_hold_whole_filters_one_after_the_other():
    eye = torch.eye(9)[None]
    with pytest.raises(ShapeError, match="whole filters"):
        Flat([FilterGroup("a", slice(0, 10), eye)], ["a"])
    with pytest.raises(ShapeError, match="follow each other"):
        Flat([FilterGroup("a", slice(9, 18), eye)], ["a"])
    with pytest.raises(ConfigurationError, match="there are none"):
        Flat([], [])
