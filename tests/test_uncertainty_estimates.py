"""Other ways to the uncertainty of a reconstruction than the exact one."""

import numpy as np
import pytest
import torch
from small_runs import network_run, quantified_run

import dipct
from dipct.pipeline.uncertainty import linearised_model_of
from dipct.posterior import ExactEvidence, MaternPrior, StoredJacobian, gram_matrices


@pytest.fixture(scope="module")
def run():
    return network_run()


@pytest.fixture(scope="module")
def found():
    return quantified_run()


@pytest.fixture(scope="module")
def without_hyperprior(run):
    return dipct.quantify(run, tv_prior=False).uncertainty


@pytest.fixture(scope="module")
def evidence_of(run):
    """The exact evidence at the hyper-parameters of a result."""
    model, _, _ = linearised_model_of(run, torch.device("cpu"))
    prior = MaternPrior(model.parameters)
    gram = gram_matrices(
        StoredJacobian.of_data(model, prior.groups), prior.groups, dtype=torch.float64
    )
    evidence = ExactEvidence(prior, gram, model.residual, model.noise_variance)

    def value(result):
        phi = torch.tensor(list(result.hyperparameters.values())).double().log()
        return evidence(phi).value

    return value


@pytest.mark.parametrize("storage", ["memory", "disk", "recompute"])
def test_other_ways_find_the_same(run, found, storage):
    result = dipct.quantify(run, storage=storage, tv_probes=30, samples=100, draws=100).uncertainty
    dense = found.uncertainty
    assert result.settings["kept"] == storage
    assert result.log_evidence == pytest.approx(dense.log_evidence, rel=0.02)
    assert result.samples.shape == (100, 12, 12)
    np.testing.assert_allclose(result.std.mean(), dense.std.mean(), rtol=0.1)
    assert "log_likelihood_patch_2" in result.scores
    assert "log_likelihood" not in result.scores


def test_without_hyperprior_the_ways_agree_closely(run, without_hyperprior):
    dense = without_hyperprior
    memory = dipct.quantify(run, tv_prior=False, storage="memory", samples=600).uncertainty
    assert memory.log_evidence == pytest.approx(dense.log_evidence, abs=0.05)
    np.testing.assert_allclose(memory.std, dense.std, rtol=0.15, atol=0.02 * dense.std.max())


def test_stochastic_estimates_come_near(run, without_hyperprior, evidence_of):
    exact = without_hyperprior
    result = dipct.quantify(
        run, evidence="stochastic", tv_prior=False, draws=200, iterations=60
    ).uncertainty
    assert result.settings["evidence"] == "stochastic"
    # Far from where it began, as seen by the exact evidence.
    reached = evidence_of(result)
    begun = evidence_of(dipct.quantify(run, tv_prior=False, iterations=1).uncertainty)
    assert reached > exact.log_evidence - 0.5 * abs(exact.log_evidence - begun) - 2
    assert abs(result.log_evidence - reached) < 5 * result.log_evidence_error + 0.5
    assert result.log_evidence_error > 0
    assert result.checks["solver_residual"] < 0.1
    assert len(result.trace["noise"]) == 60


def test_expectation_maximisation(run, evidence_of):
    result = dipct.quantify(run, evidence="em", tv_prior=False, draws=200, iterations=8).uncertainty
    assert result.settings["evidence"] == "em"
    trace = result.trace["log evidence"]
    assert trace[-1] > trace[0] + 1
    assert result.log_evidence == pytest.approx(evidence_of(result), abs=0.1)


@pytest.fixture(scope="module")
def kept_weights(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "stages"


@pytest.mark.parametrize("storage", ["auto", "memory"])
def test_the_published_form_of_the_evidence(run, storage, kept_weights, evidence_of):
    settings = {"tv_prior": False, "storage": storage, "draws": 50}
    # The weights take longest and do not depend on the storage.
    kept = {"checkpoint": kept_weights, "resume": kept_weights.exists()}
    result = dipct.quantify(run, evidence="at-weights", **kept, **settings).uncertainty
    assert result.settings["evidence"] == "at-weights"
    assert result.status == "CONVERGED"
    assert 0 <= result.checks["linear_weights_gradient"] < 1
    # A jvp and a vjp in each of 1000 iterations.
    assert result.network_passes > 2000
    exactly = dipct.quantify(run, **settings).uncertainty
    assert evidence_of(result) < exactly.log_evidence - 0.1


def test_products_in_reduced_precision(run, evidence_of):
    # On processors without them, products in half precision take ten times as long.
    settings = {"evidence": "stochastic", "tv_prior": False, "draws": 40, "iterations": 5}
    begun = dipct.quantify(run, **settings | {"iterations": 1}).uncertainty
    single = dipct.quantify(run, **settings).uncertainty
    half = dipct.quantify(run, product_precision="float16", **settings).uncertainty
    assert evidence_of(single) > evidence_of(begun) + 5
    # Rounded, but to no other place: the draws are solved for in full precision.
    assert half.hyperparameters != single.hyperparameters
    assert evidence_of(half) == pytest.approx(evidence_of(single), abs=1)
    assert half.std.mean() == pytest.approx(single.std.mean(), rel=0.2)
    # Three digits do not resolve noise this far below the signal, and that is said.
    settings |= {"product_precision": "bfloat16", "iterations": 1}
    coarse = dipct.quantify(run, **settings).uncertainty
    said = "Take a more precise type"
    assert said in coarse.advice and said not in begun.advice


def test_g_prior(run):
    dense = dipct.quantify(run, prior="g").uncertainty
    assert list(dense.hyperparameters) == ["g", "noise"]
    assert dense.settings["tv_prior"] is False
    memory = dipct.quantify(run, prior="g", storage="memory", draws=300).uncertainty
    assert memory.log_evidence == pytest.approx(dense.log_evidence, abs=0.05)
    np.testing.assert_allclose(memory.std.mean(), dense.std.mean(), rtol=0.1)
