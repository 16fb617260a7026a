"""The total variation prior of length scales in closed form."""

import math

import numpy as np
import pytest
import torch
from small_posterior import F64, SmallProblem
from test_evidence import finite_differences

from dipct.errors import ConfigurationError, ShapeError
from dipct.objective import total_variation
from dipct.posterior import (
    EdgeVariances,
    GPrior,
    TotalVariationPrior,
    edge_variances_of_gram,
    probed_edge_variances,
)
from dipct.posterior.total_variation_prior import folded_normal_mean, folded_normal_slope


@pytest.fixture(scope="module")
def problem():
    return SmallProblem()


@pytest.fixture(scope="module")
def hyperprior(problem):
    return TotalVariationPrior(problem.prior, problem.edges, 2.0)


def test_folded_normal_moments():
    from scipy.stats import foldnorm

    means = torch.tensor([0.0, 0.3, -2.0, 5.0], dtype=F64)
    variances = torch.tensor([1.0, 0.04, 9.0, 1e-4], dtype=F64)
    std = variances.sqrt().numpy()
    exact = foldnorm.mean(means.abs().numpy() / std, scale=std)
    found = folded_normal_mean(means, variances)
    assert torch.allclose(found, torch.from_numpy(np.asarray(exact)), rtol=1e-12)
    variable = variances.clone().requires_grad_()
    (slope,) = torch.autograd.grad(folded_normal_mean(means, variable).sum(), variable)
    assert torch.allclose(folded_normal_slope(means, variances), slope, rtol=1e-8, atol=1e-12)


def test_a_difference_without_variance_is_itself_and_gives_no_nan():
    variance = torch.zeros(3, dtype=F64, requires_grad=True)
    mean = torch.tensor([0.5, -0.5, 1e-3], dtype=F64)
    value = folded_normal_mean(mean, variance)
    assert torch.allclose(value, mean.abs())
    slope = folded_normal_slope(mean, variance)
    (gradient,) = torch.autograd.grad(value.sum() + slope.sum(), variance)
    assert torch.isfinite(gradient).all()


def images_of_block(problem, block, phi, number):
    """Images of the linear model with the weights of one block drawn, the others as trained."""
    random = torch.Generator().manual_seed(7)
    weights = problem.prior.sample(phi[:-1], number, random, dtype=F64)
    group = next(g for g in problem.prior.groups if g.name == block)
    only = torch.zeros_like(weights)
    only[:, group.weights] = weights[:, group.weights]
    images = only @ problem.jacobian_matrix.T
    return problem.model.image + images.reshape(number, *problem.model.image.shape)


def test_expected_total_variation_is_that_of_draws(problem, hyperprior):
    phi = problem.phi()
    for block, expected in hyperprior.expected(phi).items():
        values = total_variation(images_of_block(problem, block, phi, 4000))
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(expected.value - float(values.mean())) < 3.5 * error
        assert expected.value_error == expected.slope_error == 0


def test_slope_is_that_of_the_expectation(problem, hyperprior):
    phi, step = problem.phi(), 1e-5
    for block, expected in hyperprior.expected(phi).items():
        change = torch.zeros_like(phi)
        change[problem.prior.length_scales[block]] = step
        up, down = (hyperprior.expected(phi + sign * change)[block].value for sign in (1, -1))
        assert expected.slope == pytest.approx((up - down) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("convention", ["length-scale", "bayes-dip"])
@pytest.mark.parametrize("seed", range(2))
def test_gradient_is_that_of_finite_differences(problem, convention, seed):
    prior = TotalVariationPrior(problem.prior, problem.edges, 2.0, convention=convention)
    phi = problem.phi(seed)
    exact = finite_differences(prior, phi)
    assert torch.allclose(prior(phi).gradient, exact, rtol=1e-5, atol=1e-5)
    # A hyperprior of variances and length scales only.
    assert prior(phi).gradient[-1] == 0


def test_density_is_as_defined(problem, hyperprior):
    phi = problem.phi()
    value = 0.0
    for block, expected in hyperprior.expected(phi).items():
        length = float(phi[problem.prior.length_scales[block]].exp())
        value += -2.0 * expected.value + math.log(abs(expected.slope / length))
    assert hyperprior(phi).value == pytest.approx(value, rel=1e-12)
    other = TotalVariationPrior(problem.prior, problem.edges, 2.0, convention="bayes-dip")
    value = sum(
        2.0 * (-e.value + math.log(abs(e.slope))) for e in hyperprior.expected(phi).values()
    )
    assert other(phi).value == pytest.approx(value, rel=1e-12)


def test_derivatives_with_frozen_signs_are_not_these(problem, hyperprior):
    """Published code differentiates |d| twice with its sign kept: the second one is wrong."""
    phi, block = problem.phi(), "up_1"
    place = problem.prior.length_scales[block]
    random = torch.Generator().manual_seed(3)
    group = next(g for g in problem.prior.groups if g.name == block)
    white = torch.randn(400, group.filters, 9, generator=random, dtype=F64)
    columns = problem.jacobian_matrix[:, group.weights]

    log_length = phi[place].clone().requires_grad_()
    changed = torch.cat([phi[:place], log_length[None], phi[place + 1 : -1]])
    at = [g.name for g in problem.prior.groups].index(block)
    factor = torch.linalg.cholesky(problem.prior.filter_covariances(changed)[at])
    images = (white @ factor.mT).flatten(1) @ columns.T
    images = problem.model.image + images.reshape(-1, *problem.model.image.shape)
    fixed = images.detach().requires_grad_()
    (signs,) = torch.autograd.grad(total_variation(fixed).mean(), fixed)
    (first,) = torch.autograd.grad((signs * images).sum(), log_length, create_graph=True)
    assert float(first.detach()) == pytest.approx(hyperprior.expected(phi)[block].slope, rel=0.3)
    (wrong,) = torch.autograd.grad(first, log_length)
    step = 1e-4
    change = torch.zeros_like(phi)
    change[place] = step
    up, down = (hyperprior.expected(phi + s * change)[block].slope for s in (1, -1))
    second = (up - down) / (2 * step)
    assert abs(float(wrong) - second) > 0.3 * abs(second)


def test_probes_are_unbiased_and_know_their_error(problem, hyperprior):
    phi, scaled, sums = problem.phi(), [], []
    for seed in range(6):
        probed = probed_edge_variances(
            problem.model.jacobian, problem.prior.groups, probes=16, sets=8, seed=seed
        )
        assert not probed.is_exact
        sums += [torch.stack([v.sum((1, 2)) for v in probed.variances], dim=1)]
        estimates = TotalVariationPrior(problem.prior, probed, 2.0).expected(phi)
        for block, exact in hyperprior.expected(phi).items():
            found = estimates[block]
            scaled.append((found.value - exact.value) / found.value_error)
            scaled.append((found.slope - exact.slope) / found.slope_error)
    # Student's distribution of seven degrees of freedom: 95 % within 2.4.
    assert np.mean(np.abs(scaled) < 2.4) >= 0.8
    sums = torch.cat(sums)
    exact = torch.stack([v.sum() for v in problem.edges.variances])
    standard = (sums.mean(0) - exact) / (sums.std(0) / len(sums) ** 0.5)
    assert standard.abs().max() < 3.5


def test_probes_cost_a_pass_for_each_position(problem):
    jacobian = problem.model.jacobian
    before, told = jacobian.passes.forward, []
    probed_edge_variances(
        jacobian, problem.prior.groups, probes=2, seed=0, report=lambda *at: told.append(at)
    )
    positions = sum(group.positions for group in problem.prior.groups)
    assert jacobian.passes.forward - before == 2 * positions
    assert told[-1] == (2 * positions, 2 * positions)


def test_wrong_arguments_are_refused(problem):
    with pytest.raises(ConfigurationError, match="two sets"):
        probed_edge_variances(problem.model.jacobian, problem.prior.groups, probes=1, seed=0)
    with pytest.raises(ShapeError, match="Gram matrices"):
        edge_variances_of_gram(problem.image_gram[1:], problem.model.image, problem.prior.groups)
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(ConfigurationError, match="weight of total variation"):
            TotalVariationPrior(problem.prior, problem.edges, wrong)
    with pytest.raises(ConfigurationError, match="convention"):
        TotalVariationPrior(problem.prior, problem.edges, 1.0, convention="other")
    other = GPrior(problem.model.parameters, torch.ones(problem.prior.size))
    edges = EdgeVariances(problem.edges.differences, problem.edges.variances[:1])
    with pytest.raises(ConfigurationError, match="this prior of the weights has none"):
        TotalVariationPrior(other, edges, 1.0)
