"""The published form of the evidence, and the weights of the linear model that it takes."""

import copy
import math

import pytest
import torch
from small_posterior import F64, SmallProblem
from test_evidence import finite_differences

from dipct.errors import ConfigurationError, ConvergenceError, ShapeError
from dipct.posterior import EvidenceAtWeights, GPrior, LinearisedGenerator, linear_weights, tune


@pytest.fixture(scope="module")
def problem():
    return SmallProblem()


def at(problem, weights, model=None, prior=None):
    return EvidenceAtWeights(
        prior or problem.prior, problem.evidence.gram, model or problem.model, weights
    )


def random_weights(problem):
    random = torch.Generator().manual_seed(3)
    return torch.randn(problem.model.n_weights, generator=random, dtype=F64)


def mode(problem, phi):
    jacobian = problem.operator_matrix @ problem.jacobian_matrix
    covariance = problem.data_covariance(phi)
    return (
        problem.weight_covariance(phi)
        @ jacobian.T
        @ torch.linalg.solve(covariance, problem.model.residual)
    )


@pytest.mark.parametrize("seed", range(2))
def test_value_is_its_definition(problem, seed):
    phi, weights = problem.phi(seed), random_weights(problem)
    covariance = problem.data_covariance(phi)
    misfit = problem.model.misfit.square() / (phi[-1].exp() * problem.variance.flatten())
    norm = weights @ torch.linalg.solve(problem.weight_covariance(phi), weights)
    wanted = misfit.sum() + norm + torch.logdet(covariance)
    wanted += problem.model.n_data * math.log(2 * math.pi)
    assert at(problem, weights)(phi).value == pytest.approx(float(-wanted / 2), rel=1e-8)


def test_gradient_is_that_of_finite_differences(problem):
    evidence = at(problem, random_weights(problem))
    for seed in range(2):
        phi = problem.phi(seed)
        exact = finite_differences(evidence, phi)
        assert torch.allclose(evidence(phi).gradient, exact, rtol=1e-5, atol=1e-5)


def test_it_is_the_evidence_at_the_mode_and_below_it_elsewhere(problem):
    phi = problem.phi()
    jacobian = problem.operator_matrix @ problem.jacobian_matrix
    exactly = problem.evidence(phi).value
    for weights, gap in ((mode(problem, phi), 0.0), (0.9 * mode(problem, phi), None)):
        model = copy.copy(problem.model)
        model.misfit = model.residual - jacobian @ weights
        found = at(problem, weights, model)(phi).value
        if gap is None:
            assert found < exactly - 1e-3
        else:
            assert found == pytest.approx(exactly, abs=1e-6)


def test_scaled_weights_of_the_g_prior(problem):
    squares = torch.linspace(0.5, 2, problem.model.n_weights, dtype=F64)
    prior, weights = GPrior(problem.model.parameters, squares), random_weights(problem)
    gram = torch.eye(problem.model.n_data, dtype=F64).expand(prior.n_components, -1, -1)
    evidence = EvidenceAtWeights(prior, gram, problem.model, weights)
    phi = torch.tensor([0.3, 0.1], dtype=F64)
    norm = weights @ prior.solve(phi[:-1], weights)
    misfit = (problem.model.misfit.square() / problem.variance.flatten()).sum() / phi[-1].exp()
    assert evidence(phi).parts["misfit"] == pytest.approx(float(misfit + norm), rel=1e-10)


def test_tuning_finds_its_maximum(problem):
    evidence = at(problem, problem.model.jacobian.weights)
    found = tune(evidence)
    assert found.converged
    assert found.log_evidence >= evidence(problem.evidence.initial()).value


def test_linear_weights_minimise_what_they_say():
    problem, decay = SmallProblem(n=6), 0.03
    model = problem.model
    jacobian = problem.operator_matrix @ problem.jacobian_matrix
    scale = 2 * model.noise_variance.mean() / model.n_data
    weighted = scale * jacobian.T / model.noise_variance
    identity = torch.eye(model.n_weights, dtype=F64)
    exact = torch.linalg.solve(weighted @ jacobian + decay * identity, weighted @ model.residual)
    found = linear_weights(model, iterations=600, learning_rate=1e-2, weight_decay=decay)
    assert found.gradient < 0.05
    found = found.weights
    assert torch.linalg.norm(found - exact) < 0.02 * torch.linalg.norm(exact)
    # Without the decay they are others.
    free = linear_weights(model, iterations=600, learning_rate=1e-2, weight_decay=0.0).weights
    assert torch.linalg.norm(free - exact) > 0.1 * torch.linalg.norm(exact)


def test_linear_weights_of_total_variation_make_plainer_images(problem):
    generator = LinearisedGenerator(problem.model)
    assert torch.allclose(generator(problem.model.jacobian.weights), problem.model.image)

    def variation(weights):
        image = generator(weights)
        return float(image.diff(dim=-1).abs().sum() + image.diff(dim=-2).abs().sum())

    told = []
    plain = linear_weights(problem.model, iterations=100, learning_rate=1e-2).weights
    smooth = linear_weights(
        problem.model,
        tv_weight=100.0,
        iterations=100,
        learning_rate=1e-2,
        report=lambda *of: told.append(of),
    ).weights
    assert variation(smooth) < 0.9 * variation(plain)
    assert told[-1] == (100, 100)


def test_wrong_arguments_are_refused(problem):
    with pytest.raises(ShapeError, match="weights"):
        at(problem, torch.ones(3, dtype=F64))
    with pytest.raises(ConfigurationError, match="iterations"):
        linear_weights(problem.model, iterations=0)
    with pytest.raises(ConvergenceError, match="learning rate"):
        linear_weights(SmallProblem(n=6, dtype=torch.float32).model, learning_rate=1e30)
