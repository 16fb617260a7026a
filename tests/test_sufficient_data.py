"""As many data as pixels that say what all of them do: evidence and posterior stay the same."""

import pytest
import torch
from small_posterior import F64, SmallProblem

from dipct.operator.checks import adjoint_mismatch
from dipct.posterior import (
    DensePosterior,
    ExactEvidence,
    StoredJacobian,
    SufficientEvidence,
    SufficientModel,
    gram_matrices,
    tune,
)

# More data than the 36 pixels, and fewer, where there is nothing to gain but nothing to lose.
SIZES = ({"n": 6, "views": 9}, {"n": 6, "views": 2})


@pytest.fixture(scope="module", params=SIZES, ids=("many", "few"))
def problem(request):
    return SmallProblem(**request.param)


@pytest.fixture(scope="module")
def model(problem):
    return SufficientModel(problem.model)


@pytest.fixture(scope="module")
def gram(problem, model):
    return gram_matrices(StoredJacobian.of_data(model, problem.prior.groups), problem.prior.groups)


@pytest.fixture(scope="module")
def evidence(problem, model, gram):
    return SufficientEvidence(problem.prior, gram, model)


def test_there_are_no_more_data_than_pixels(problem, model):
    assert model.n_data <= min(problem.model.n_data, 36)
    assert model.n_data + model.n_others == problem.model.n_data
    assert problem.model.n_data == len(problem.model.residual), "the model given is as it was"


@pytest.mark.parametrize("seed", range(3))
def test_the_evidence_is_that_of_all_data(problem, evidence, seed):
    phi = problem.phi(seed)
    exact, found = problem.evidence(phi), evidence(phi)
    assert found.value == pytest.approx(exact.value, rel=1e-9)
    assert torch.allclose(found.gradient, exact.gradient, rtol=1e-7, atol=1e-7)
    for name, value in exact.parts.items():
        assert found.parts[name] == pytest.approx(value, rel=1e-8)


def test_without_the_rest_it_is_another():
    problem = SmallProblem(**SIZES[0])
    model = SufficientModel(problem.model)
    gram = gram_matrices(StoredJacobian.of_data(model, problem.prior.groups), problem.prior.groups)
    alone = ExactEvidence(problem.prior, gram, model.residual, model.noise_variance)
    phi = problem.phi()
    assert abs(alone(phi).value - problem.evidence(phi).value) > 1
    assert abs(alone(phi).gradient[-1] - problem.evidence(phi).gradient[-1]) > 1


def test_hyperparameters_are_those_of_all_data(problem, evidence):
    exact, found = tune(problem.evidence), tune(evidence)
    assert found.log_evidence == pytest.approx(exact.log_evidence, abs=1e-5)
    assert found.values["noise"] == pytest.approx(exact.values["noise"], rel=1e-3)


@pytest.mark.parametrize("mean", ["reconstruction", "linear"])
def test_the_posterior_is_that_of_all_data(problem, model, mean):
    phi = problem.phi()
    exact, found = (
        DensePosterior(problem.prior, phi, problem.image_gram, each, mean=mean)
        for each in (problem.model, model)
    )
    assert torch.allclose(found.mean, exact.mean, atol=1e-9)
    assert torch.allclose(found.covariance, exact.covariance, atol=1e-10)


def test_other_data_have_another_posterior(problem, model):
    phi = problem.phi()
    exact = DensePosterior(problem.prior, phi, problem.image_gram, problem.model).covariance
    model = SufficientModel(problem.model)
    model.noise_variance = 2 * model.noise_variance
    wrong = DensePosterior(problem.prior, phi, problem.image_gram, model).covariance
    assert not torch.allclose(wrong, exact, rtol=1e-3)


def test_its_operator_has_its_transpose_as_adjoint(model):
    assert adjoint_mismatch(model.operator) < 1e-12
    units = torch.eye(model.n_data, dtype=F64)
    assert torch.allclose(model.operator.adjoint(units).flatten(1), model.operator.to_matrix())
