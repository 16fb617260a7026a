"""Posterior of the image: dense, by samples, and calibrated on draws of its own model."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from small_posterior import F64, SmallProblem

from dipct.errors import ConfigurationError, ShapeError
from dipct.posterior import DensePosterior, LinearisedModel, PathwisePosterior


@pytest.fixture(scope="module")
def problem():
    return SmallProblem()


def dense(problem, phi=None, mean="linear"):
    phi = problem.phi() if phi is None else phi
    return DensePosterior(problem.prior, phi, problem.image_gram, problem.model, mean=mean)


def pathwise(problem, mean="linear", **options):
    phi = problem.phi()
    solve = problem.evidence.factorise(phi).solve
    options = {"products": problem.stored, **options}
    return PathwisePosterior(problem.prior, phi, problem.model, solve, mean=mean, **options)


def covariance_error(draws, covariance):
    """Squared distance of a covariance from that of draws, over what it should be."""
    flat = draws.flatten(1)
    empirical = flat.T @ flat / len(flat)
    spread = torch.outer(covariance.diagonal(), covariance.diagonal()) + covariance.square()
    return float((empirical - covariance).square().sum() / (spread.sum() / len(flat)))


def test_dense_posterior_is_that_of_bayes_in_weight_space(problem):
    phi, jacobian = problem.phi(), problem.jacobian_matrix
    data_jacobian = problem.operator_matrix @ jacobian
    precision = 1 / (phi[-1].exp() * problem.variance.flatten())
    inner = torch.linalg.inv(problem.weight_covariance(phi))
    weights = torch.linalg.inv(inner + data_jacobian.T @ (precision[:, None] * data_jacobian))
    posterior = dense(problem)
    exact = jacobian @ weights @ jacobian.T
    assert torch.allclose(posterior.covariance, exact, atol=1e-8)
    assert torch.allclose(posterior.variance().flatten(), exact.diagonal(), atol=1e-8)
    mode = weights @ data_jacobian.T @ (precision * problem.model.residual)
    image = problem.model.image.flatten() + jacobian @ (mode - problem.model.jacobian.weights)
    assert torch.allclose(posterior.mean.flatten(), image, atol=1e-8)


def test_means(problem):
    assert torch.equal(dense(problem, mean="reconstruction").mean, problem.model.image)
    assert torch.allclose(pathwise(problem).mean, dense(problem).mean, atol=1e-9)
    assert torch.equal(pathwise(problem, mean="reconstruction").mean, problem.model.image)


def images_of(problem, posterior, number):
    """What draws of weights add to the mean, by the dense Jacobian, which is faster for many."""
    return posterior.sample_weights(number, seed=0) @ problem.jacobian_matrix.T


@pytest.mark.parametrize("products", ["stored", "network"])
def test_pathwise_draws_have_the_posterior_covariance(problem, products):
    if products == "stored":
        draws = images_of(problem, pathwise(problem), 3000)
    else:
        posterior = pathwise(problem, products=None)
        draws = posterior.sample(600, seed=0) - posterior.mean
    covariance = dense(problem).covariance
    assert covariance_error(draws, covariance) == pytest.approx(1.0, abs=0.5)


def test_covariances_of_patches_are_exact(problem):
    rows, columns = slice(2, 5), slice(1, 4)
    wanted = dense(problem).covariance.reshape(10, 10, 10, 10)[rows, columns][:, :, rows, columns]
    wanted = wanted.reshape(9, 9)
    assert torch.allclose(dense(problem).patch_covariance(rows, columns), wanted, atol=1e-12)
    for options in ({}, {"products": None}):
        found = pathwise(problem, **options).patch_covariance(rows, columns)
        assert torch.allclose(found, wanted, atol=1e-9)
    # The prior's is larger.
    prior = dense(problem).prior_covariance.reshape(10, 10, 10, 10)
    prior = prior[rows, columns][:, :, rows, columns].reshape(9, 9)
    assert not torch.allclose(prior, wanted, rtol=0.1)
    with pytest.raises(ConfigurationError, match="hold no pixel"):
        pathwise(problem).patch_covariance(slice(4, 4), columns)


def test_dense_draws_have_the_posterior_covariance(problem):
    posterior = dense(problem)
    draws = posterior.sample(3000, seed=1) - posterior.mean
    assert covariance_error(draws, posterior.covariance) == pytest.approx(1.0, abs=0.5)


def test_draws_without_their_noise_do_not(problem):
    posterior = pathwise(problem)
    posterior.model = LinearisedModel(
        problem.operator, problem.generator, problem.theta_hat, problem.data, 1e-12
    )
    draws = images_of(problem, posterior, 3000)
    assert covariance_error(draws, dense(problem).covariance) > 2


def test_draws_repeat_and_do_not_depend_on_how_many_are_made_together(problem):
    together = pathwise(problem).sample(5, seed=3)
    assert torch.equal(pathwise(problem).sample(5, seed=3), together)
    assert not torch.equal(pathwise(problem).sample(5, seed=4), together)
    assert together.shape == (5, *problem.model.image.shape)
    weights = pathwise(problem).sample_weights(5, seed=3)
    images = pathwise(problem).mean + problem.model.jacobian(weights)
    assert torch.allclose(images, together)
    added = images_of(problem, pathwise(problem), 5)
    both = pathwise(problem).mean.flatten() + added, pathwise(problem).sample(5, seed=0).flatten(1)
    assert torch.allclose(*both)


def test_nonlinear_images_are_those_of_the_network(problem):
    posterior = pathwise(problem)
    weights = posterior.sample_weights(2, seed=0)
    theta = problem.theta_hat.repeat(2, 1)
    theta[:, problem.model.jacobian.chosen] += weights
    expected = problem.generator(theta)
    assert torch.allclose(posterior.sample_nonlinear(2, seed=0), expected)
    # Near the point the network is its linearisation.
    small = 1e-4 * weights
    theta = problem.theta_hat.repeat(2, 1)
    theta[:, problem.model.jacobian.chosen] += small
    linear = problem.model.image + problem.model.jacobian(small)
    assert torch.allclose(problem.generator(theta), linear, atol=1e-6)


def test_the_scan_never_adds_uncertainty(problem):
    posterior = dense(problem)
    before = posterior.prior_covariance.diagonal()
    assert (posterior.covariance.diagonal() <= before + 1e-10).all()
    assert float(torch.linalg.eigvalsh(posterior.prior_covariance - posterior.covariance)[0]) > (
        -1e-8
    )


def test_another_view_never_adds_uncertainty():
    """At fixed hyper-parameters and linearisation."""
    from dipct import Grid, ParallelGeometry, ray_transform

    problem, variances = SmallProblem(), []
    phi = problem.phi()
    angles = np.linspace(0, np.pi, 6, endpoint=False)
    for views in (1, 2, 4, 6):
        operator = ray_transform(ParallelGeometry(angles[:views], 13), Grid((10, 10)))
        operator = operator.to(dtype=F64)
        data = torch.zeros(operator.range_shape, dtype=F64)
        model = LinearisedModel(operator, problem.generator, problem.theta_hat, data, 0.09)
        posterior = DensePosterior(problem.prior, phi, problem.image_gram, model)
        variances.append(posterior.variance())
    for fewer, more in pairwise(variances):
        assert (more <= fewer + 1e-10).all()
        assert more.sum() < fewer.sum()


def simulated_ranks(problem, factor=1.0):
    """Ranks of functionals of true images among posterior draws, over draws of the model.

    Args:
        problem: the linear model.
        factor: of the posterior's standard deviation; another than 1 is wrong.
    """
    phi, runs, number = problem.phi(), 200, 15
    random = torch.Generator().manual_seed(5)
    posterior = dense(problem, phi)
    model, jacobian = problem.model, problem.jacobian_matrix
    at_zero = model.image.flatten() - jacobian @ model.jacobian.weights
    weights = problem.prior.sample(phi[:-1], runs, random, dtype=F64)
    truths = at_zero + weights @ jacobian.T
    noise = torch.randn(runs, model.n_data, generator=random, dtype=F64)
    noise = noise * (phi[-1].exp() * model.noise_variance).sqrt()
    residuals = weights @ (problem.operator_matrix @ jacobian).T + noise
    to_data = problem.operator_matrix @ posterior.prior_covariance
    means = at_zero + problem.evidence.factorise(phi).solve(residuals) @ to_data
    functionals = torch.randn(4, truths.shape[1], generator=random, dtype=F64)
    ranks = []
    for run in range(runs):
        draws = posterior.sample(number, seed=run) - posterior.mean
        images = means[run] + factor * draws.flatten(1)
        ranks.append(((images @ functionals.T) < truths[run] @ functionals.T).sum(0))
    return torch.stack(ranks), number


def p_values(ranks, number):
    return [chisquare(np.bincount(each.numpy(), minlength=number + 1)).pvalue for each in ranks.T]


def test_ranks_of_the_truth_are_uniform_on_draws_of_the_model(problem):
    assert min(p_values(*simulated_ranks(problem))) > 1e-3


@pytest.mark.parametrize("factor", [0.6, 1.6])
def test_ranks_tell_a_posterior_that_is_too_sure_or_unsure(problem, factor):
    assert min(p_values(*simulated_ranks(problem, factor))) < 1e-3


def test_wrong_arguments_are_refused(problem):
    with pytest.raises(ConfigurationError, match="reconstruction or linear"):
        dense(problem, mean="best")
    with pytest.raises(ConfigurationError, match="reconstruction or linear"):
        pathwise(problem, mean="best")
    with pytest.raises(ShapeError, match="Gram matrices"):
        DensePosterior(problem.prior, problem.phi(), problem.image_gram[1:], problem.model)
