"""From a reconstruction by a network to its uncertainty: the verb and the command line."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from small_scans import small_scan

import dipct
from dipct.errors import (
    ConfigurationError,
    FileFormatError,
    InsufficientMemoryError,
    Interrupted,
)
from dipct.evaluation import pixel_log_likelihood
from dipct.pipeline.stages import remove_stages
from dipct.pipeline.uncertainty import linearised_model_of
from dipct.posterior import (
    LOWEST_VARIANCE,
    ExactEvidence,
    MaternPrior,
    StoredJacobian,
    gram_matrices,
)
from dipct.run import read_run, write_run
from dipct.uncertainty import UncertaintySettings


@pytest.fixture(scope="module")
def run():
    scan = small_scan(views=5, pixels=12, noise=0.05)
    return dipct.reconstruct(
        scan, method="dip", iterations=800, tv_weight=1.0, stopping="none", precision="float32"
    )


@pytest.fixture(scope="module")
def found(run):
    return dipct.quantify(run)


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


def test_a_run_gets_its_uncertainty(run, found):
    result = found.uncertainty
    assert run.uncertainty is None
    assert np.array_equal(found.image, run.image)
    np.testing.assert_allclose(result.mean, run.image, rtol=1e-3, atol=1e-4)
    assert result.std.shape == run.image.shape
    assert (result.std >= 0).all()
    assert result.std.max() > 0
    assert result.status == "CONVERGED"
    assert len(result.hyperparameters) == 14
    assert result.settings["evidence"] == "exact"
    assert result.settings["tv_prior"] is True
    assert result.settings["tv_prior_weight"] == 1.0
    assert result.samples is None
    assert {"log_likelihood", "log_likelihood_pixel", "crps"} <= set(result.scores)
    assert all(np.isfinite(value) for value in result.scores.values())
    # One pass for every pixel, one for the residual, two for the gradient that is left.
    assert result.network_passes == 12 * 12 + 3
    assert result.checks["reduced_chi_squared"] == pytest.approx(
        run.metrics["reduced_chi_squared"], rel=0.02
    )
    assert 0 <= result.checks["gradient"] <= 1
    assert result.checks["jitter"] == result.checks["hyperprior_error"] == 0
    assert result.log_evidence_error == 0


def test_it_repeats(run, found):
    again = dipct.quantify(run).uncertainty
    assert np.array_equal(again.std, found.uncertainty.std)
    assert again.hyperparameters == found.uncertainty.hyperparameters


@pytest.mark.parametrize("storage", ["memory", "disk", "recompute"])
def test_other_ways_find_the_same(run, found, storage):
    result = dipct.quantify(run, storage=storage, tv_probes=30, samples=400, draws=400).uncertainty
    dense = found.uncertainty
    assert result.settings["kept"] == storage
    assert result.log_evidence == pytest.approx(dense.log_evidence, rel=0.02)
    assert result.samples.shape == (400, 12, 12)
    np.testing.assert_allclose(result.std.mean(), dense.std.mean(), rtol=0.1)
    assert "log_likelihood_patch_2" in result.scores
    assert "log_likelihood" not in result.scores


def test_without_hyperprior_the_ways_agree_closely(run, without_hyperprior):
    dense = without_hyperprior
    memory = dipct.quantify(run, tv_prior=False, storage="memory", samples=2000).uncertainty
    assert memory.log_evidence == pytest.approx(dense.log_evidence, abs=0.05)
    np.testing.assert_allclose(memory.std, dense.std, rtol=0.15, atol=0.02 * dense.std.max())


def test_the_scale_of_lengths_changes_units_only(run, found):
    """The same object in centimetres: attenuation is ten times as large."""
    scan = run.scan
    grid = dipct.Grid(scan.grid.shape, scan.grid.pixel_size / 10)
    geometry = type(scan.geometry)(
        scan.geometry.angles, scan.geometry.n_columns, scan.geometry.column_spacing / 10
    )
    other = replace(scan, grid=grid, geometry=geometry, truth=10 * scan.truth)
    again = dipct.quantify(
        dipct.reconstruct(
            other, method="dip", iterations=800, tv_weight=1.0, stopping="none", precision="float32"
        )
    )
    np.testing.assert_allclose(again.image, 10 * run.image, rtol=0.05, atol=0.05)
    assert again.uncertainty.std.mean() == pytest.approx(10 * found.uncertainty.std.mean(), rel=0.2)


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


def test_published_density_of_length_scales(run, found):
    result = dipct.quantify(run, tv_prior_convention="bayes-dip").uncertainty
    assert result.settings["tv_prior_convention"] == "bayes-dip"
    assert result.hyperparameters != pytest.approx(found.uncertainty.hyperparameters, rel=0.01)


def test_products_in_reduced_precision(run, evidence_of):
    settings = {"evidence": "stochastic", "tv_prior": False, "draws": 100, "iterations": 20}
    single = dipct.quantify(run, **settings).uncertainty
    half = dipct.quantify(run, product_precision="float16", **settings).uncertainty
    # Rounded, but to no other place: the draws are solved for in full precision.
    assert half.hyperparameters != single.hyperparameters
    assert evidence_of(half) == pytest.approx(evidence_of(single), abs=5)
    assert half.std.mean() == pytest.approx(single.std.mean(), rel=0.2)
    # Three digits do not resolve noise this far below the signal, and that is said.
    coarse = dipct.quantify(run, product_precision="bfloat16", **settings).uncertainty
    assert coarse.status == "NOT_CONVERGED"
    assert "Take a more precise type" in coarse.advice


def test_g_prior(run):
    dense = dipct.quantify(run, prior="g").uncertainty
    assert list(dense.hyperparameters) == ["g", "noise"]
    assert dense.settings["tv_prior"] is False
    memory = dipct.quantify(run, prior="g", storage="memory", draws=1000).uncertainty
    assert memory.log_evidence == pytest.approx(dense.log_evidence, abs=0.05)
    np.testing.assert_allclose(memory.std.mean(), dense.std.mean(), rtol=0.1)


def test_linear_mean_fixed_noise_and_samples(run):
    result = dipct.quantify(run, mean="linear", fixed_noise=True, samples=64, seed=3).uncertainty
    assert not np.allclose(result.mean, run.image, rtol=1e-3)
    assert result.hyperparameters["noise"] == 1.0
    assert result.samples.shape == (64, 12, 12)
    assert result.samples.std(0).mean() == pytest.approx(result.std.mean(), rel=0.2)


def test_intervals_are_those_of_a_normal_distribution(found):
    result = found.uncertainty
    low, high = result.interval(0.9)
    np.testing.assert_allclose((high - low) / 2, 1.6448536 * result.std, rtol=1e-4)
    np.testing.assert_allclose((high + low) / 2, result.mean, atol=1e-5)
    for wrong in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="between 0 and 1"):
            result.interval(wrong)


def test_scores_can_leave_out_the_border(run, found):
    whole = found.uncertainty
    assert whole.whitened_errors.shape == (144,)
    inner = dipct.quantify(run, score_margin=3).uncertainty
    assert inner.whitened_errors.shape == (36,)
    assert np.array_equal(inner.std, whole.std)
    truth = run.scan.truth[3:9, 3:9].astype(float)
    std = np.sqrt(whole.std[3:9, 3:9].astype(float) ** 2 + whole.scores["noise_correction"])
    wanted = pixel_log_likelihood(truth, whole.mean[3:9, 3:9].astype(float), std)
    assert inner.scores["log_likelihood_pixel"] == pytest.approx(wanted, rel=1e-6)
    assert inner.scores["log_likelihood"] != pytest.approx(whole.scores["log_likelihood"], rel=0.01)
    with pytest.raises(ConfigurationError, match="score_margin must leave"):
        dipct.quantify(run, score_margin=6)


def test_a_file_holds_it(run, found, tmp_path):
    path = tmp_path / "uq.h5"
    with_samples = dipct.quantify(run, samples=4)
    write_run(with_samples, path)
    read, written = read_run(path).uncertainty, with_samples.uncertainty
    for name in ("mean", "std", "samples"):
        assert np.array_equal(getattr(read, name), getattr(written, name).astype(np.float32))
    assert read.hyperparameters == pytest.approx(written.hyperparameters)
    assert read.scores == pytest.approx(written.scores)
    np.testing.assert_allclose(read.whitened_errors, written.whitened_errors, rtol=1e-5)
    assert read.stage_seconds == pytest.approx(written.stage_seconds)
    assert {"gram", "tuning"} <= set(read.stage_seconds)
    assert read.settings == written.settings
    assert set(read.trace) == set(written.trace)
    assert json.loads(path.with_suffix(".json").read_text())["uncertainty"]["status"] == (
        "CONVERGED"
    )
    write_run(run, tmp_path / "without.h5")
    assert read_run(tmp_path / "without.h5").uncertainty is None
    with h5py.File(path, "a") as file:
        del file["uncertainty/std"]
    with pytest.raises(FileFormatError, match="std"):
        read_run(path)


def test_finished_stages_are_not_done_again(run, tmp_path, monkeypatch, caplog):
    from dipct.pipeline import posterior_of_model

    settings = {"storage": "memory", "tv_probes": 4, "draws": 100}
    whole = dipct.quantify(run, **settings).uncertainty
    stages = tmp_path / "uq.h5.stages"

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(posterior_of_model, "tune", interrupt)
        with pytest.raises(Interrupted, match="what is finished is kept"):
            dipct.quantify(run, checkpoint=stages, **settings)
    assert sorted(path.name.partition("-")[0] for path in stages.iterdir()) == ["edges", "gram"]
    before = {path: path.stat().st_mtime_ns for path in stages.iterdir()}
    resumed = dipct.quantify(run, checkpoint=stages, resume=True, **settings).uncertainty
    # What was spent before counts.
    assert resumed.network_passes > 5 * 17
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert resumed.hyperparameters == pytest.approx(whole.hyperparameters)
    np.testing.assert_allclose(resumed.std, whole.std, rtol=0.01, atol=1e-6)
    # What other settings do not change is used with them, and nothing else.
    assert "made anew" not in caplog.text
    other = dipct.quantify(run, checkpoint=stages, resume=True, **settings | {"tv_probes": 6})
    assert "What was kept of edges belongs to other options; it is made anew." in caplog.text
    assert "of gram belongs" not in caplog.text
    assert len(list(stages.glob("gram-*"))) == 1
    assert len(list(stages.glob("edges-*"))) == 2
    assert other.uncertainty.hyperparameters != resumed.hyperparameters
    next(stages.glob("gram-*")).write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="damaged"):
        dipct.quantify(run, checkpoint=stages, resume=True, **settings)
    with pytest.raises(ConfigurationError, match="nothing to resume"):
        dipct.quantify(run, checkpoint=tmp_path / "none", resume=True)


@pytest.mark.parametrize("tv_prior", [False, True])
def test_stochastic_tuning_goes_on_where_it_was_stopped(run, tmp_path, monkeypatch, tv_prior):
    from dipct.posterior import stochastic_evidence

    settings = {"evidence": "stochastic", "tv_prior": tv_prior, "iterations": 6, "draws": 20}
    whole = dipct.quantify(run, **settings).uncertainty
    stages, calls = tmp_path / "uq.h5.stages", []
    gradient = stochastic_evidence.StochasticEvidence.gradient

    def interrupted(self, *arguments, **options):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return gradient(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stochastic_evidence.StochasticEvidence, "gradient", interrupted)
        with pytest.raises(Interrupted, match="what is finished is kept"):
            dipct.quantify(run, checkpoint=stages, **settings)
        calls.append(None)
        resumed = dipct.quantify(run, checkpoint=stages, resume=True, **settings).uncertainty
    # Three steps before, one that was not finished, three after.
    assert len(calls) == 4 + 1 + 3
    assert resumed.hyperparameters == whole.hyperparameters
    assert not list(stages.glob("tuning-part-*"))


def test_what_other_means_found_is_not_resumed_with(run, tmp_path, monkeypatch):
    from dipct.pipeline import posterior_memory

    settings = {"tv_prior": False, "iterations": 5, "draws": 20}
    stages = tmp_path / "uq.h5.stages"
    with monkeypatch.context() as patch:
        # What auto finds depends on the machine.
        patch.setattr(posterior_memory, "free_memory", lambda device: 10_000)
        estimated = dipct.quantify(run, checkpoint=stages, **settings).uncertainty
    assert estimated.settings["evidence"] == "stochastic"
    exact = dipct.quantify(run, checkpoint=stages, resume=True, **settings).uncertainty
    assert exact.settings["evidence"] == "exact"
    assert exact.log_evidence_error == 0
    assert exact.hyperparameters == dipct.quantify(run, **settings).uncertainty.hyperparameters
    # Scales of the g-prior by probes are others than exact ones.
    g = {"prior": "g", "iterations": 50, "draws": 20}
    dipct.quantify(run, storage="recompute", checkpoint=stages, resume=True, **g)
    kept = dipct.quantify(run, storage="memory", checkpoint=stages, resume=True, **g).uncertainty
    fresh = dipct.quantify(run, storage="memory", **g).uncertainty
    assert kept.hyperparameters == fresh.hyperparameters


def test_double_precision_goes_before_speed_and_passes_come_last(run, monkeypatch):
    from dipct.pipeline import posterior_memory

    model, _, _ = linearised_model_of(run, torch.device("cpu"))
    settings = UncertaintySettings()
    monkeypatch.setattr(posterior_memory, "_LARGEST_DENSE_IMAGE", 0)
    jacobian = posterior_memory.jacobian_bytes(model)
    double, single = (
        posterior_memory.gram_bytes(model, settings, dtype)
        + posterior_memory.working_bytes(model, settings, model.n_data)
        for dtype in (torch.float64, torch.float32)
    )

    def planned(needed):
        free = int(needed / posterior_memory.SHARE) + 100
        monkeypatch.setattr(posterior_memory, "free_memory", lambda device: free)
        plan = posterior_memory.plan_gram_matrices(model, settings)
        return plan.storage, plan.dtype

    assert planned(double + jacobian) == ("memory", torch.float64)
    assert planned(double) == ("disk", torch.float64)
    assert planned(single) == ("disk", torch.float32)
    with pytest.raises(InsufficientMemoryError):
        planned(single - 1000)
    monkeypatch.setattr(posterior_memory.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    largest = max(group.size for group in MaternPrior(model.parameters).groups)
    rows = largest * model.n_data * 4
    assert planned(double + rows) == ("recompute", torch.float64)
    assert planned(single + rows) == ("recompute", torch.float32)


def test_a_floor_keeps_variances_up(run, tmp_path):
    stages = tmp_path / "stages"
    settings = {"tv_prior": False, "checkpoint": stages}
    usual = dipct.quantify(run, **settings).uncertainty
    high = dipct.quantify(run, lowest_variance=0.5, resume=True, **settings).uncertainty
    low = dipct.quantify(run, lowest_variance=1e-8, resume=True, **settings).uncertainty
    for result, floor in ((usual, LOWEST_VARIANCE), (high, 0.5), (low, 1e-8)):
        variances = [v for n, v in result.hyperparameters.items() if n.endswith("variance")]
        assert min(variances) == pytest.approx(floor, rel=1e-6)
    assert low.log_evidence > usual.log_evidence > high.log_evidence
    assert low.std.mean() < usual.std.mean() < high.std.mean()
    assert "At the lowest value allowed" in high.advice


def test_a_run_without_network_is_refused(run):
    other = dipct.reconstruct(run.scan, method="sirt", iterations=5)
    with pytest.raises(ConfigurationError, match="has no network"):
        dipct.quantify(other)


def test_a_scan_changed_since_is_refused(run):
    geometry = type(run.scan.geometry)(
        run.scan.geometry.angles + 0.5,
        run.scan.geometry.n_columns,
        run.scan.geometry.column_spacing,
    )
    with pytest.raises(ConfigurationError, match="not the one that was reconstructed"):
        dipct.quantify(replace(run, scan=replace(run.scan, geometry=geometry)))
    generator = dict(run.generator) | {"theta": run.generator["theta"] + 0.1}
    with pytest.raises(ConfigurationError, match="image of its network"):
        dipct.quantify(replace(run, generator=generator))


def test_projections_changed_since_are_refused(run):
    scan = replace(run.scan, projections=run.scan.projections[:, ::-1].copy())
    with pytest.raises(ConfigurationError, match="projections have been changed since"):
        dipct.quantify(replace(run, scan=scan))


def test_the_projector_of_the_run_is_linearised(run):
    joseph = dipct.reconstruct(
        run.scan,
        method="dip",
        iterations=100,
        tv_weight=1.0,
        stopping="none",
        precision="float32",
        projector="joseph",
    )
    assert dipct.quantify(joseph, iterations=2).uncertainty.std.max() > 0


def test_other_files_in_the_folder_of_stages_stay(run, tmp_path):
    mine = tmp_path / "stages" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    dipct.quantify(run, checkpoint=mine.parent, iterations=2)
    remove_stages(mine.parent)
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]


def test_a_run_without_noise_model_is_refused(run):
    with pytest.raises(ConfigurationError, match="no noise model"):
        dipct.quantify(replace(run, scan=replace(run.scan, noise=None)))


def test_a_network_far_from_the_data_is_warned_of(run, caplog):
    early = dipct.reconstruct(
        run.scan, method="dip", iterations=3, tv_weight=1.0, stopping="none", precision="float32"
    )
    with caplog.at_level(logging.WARNING, logger="dipct"):
        dipct.quantify(early, iterations=1)
    assert "linearised far from where it explains the scan" in caplog.text
    assert "the gradient left is" in caplog.text


def test_a_fit_that_has_not_settled_is_warned_of(run, caplog):
    noisy = replace(run.scan, noise=dipct.GaussianNoise(2 * run.scan.noise.std))
    early = dipct.reconstruct(
        noisy,
        method="dip",
        iterations=800,
        tv_weight=1e-3,
        stopping="discrepancy",
        precision="float32",
    )
    with caplog.at_level(logging.WARNING, logger="dipct"):
        dipct.quantify(early, iterations=1)
    assert "the fit was still moving" in caplog.text


def test_too_little_memory_names_the_alternatives(run, monkeypatch):
    from dipct.pipeline import posterior_memory

    monkeypatch.setattr(posterior_memory, "free_memory", lambda device: 10_000)
    with pytest.raises(
        InsufficientMemoryError, match="Use --evidence stochastic, fewer views, or bin the detector"
    ):
        dipct.quantify(run, storage="memory")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evidence": "precise"}, "evidence"),
        ({"sample": 3}, "Did you mean samples"),
        ({"samples": 0}, "samples"),
        ({"iterations": 0}, "iterations"),
        ({"tv_prior_weight": float("inf")}, "tv_prior_weight"),
        ({"prior": "g", "tv_prior_weight": 1.0}, "no meaning for the g-prior"),
        ({"prior": "g", "tv_prior": True}, "length scales"),
        ({"prior": "g", "smoothness": "3/2"}, "smoothness belongs"),
        ({"tv_prior": False, "tv_prior_weight": 1.0}, "no meaning without"),
        ({"tv_prior": False, "tv_prior_convention": "bayes-dip"}, "no meaning without"),
        ({"prior": "g", "tv_prior_convention": "bayes-dip"}, "no meaning without"),
        ({"product_precision": "bfloat16"}, "belongs to the stochastic"),
        ({"lowest_variance": 0}, "lowest_variance"),
        ({"prior": "g", "lowest_variance": 0.1}, "belongs to the Matern"),
        ({"storage": "host"}, "other devices than the cpu"),
        ({"storage": "host", "device": "cuda", "evidence": "em"}, "belongs to the exact"),
        (
            {
                "evidence": "stochastic",
                "product_precision": "bfloat16",
                "storage": "recompute",
            },
            "stored Jacobian",
        ),
        ({"tv_probes": True}, "true or false"),
    ],
)
def test_wrong_settings(run, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        dipct.quantify(run, **settings)


def test_a_configuration_and_settings_exclude_each_other(run):
    with pytest.raises(ConfigurationError, match="not both"):
        dipct.quantify(run, UncertaintySettings(), seed=1)


def test_isotropic_total_variation_has_no_closed_form(run):
    isotropic = dict(run.configuration) | {"isotropic": True}
    with pytest.raises(ConfigurationError, match="--no-tv-prior"):
        dipct.quantify(replace(run, configuration=isotropic), tv_prior=True)
    assert (
        dipct.quantify(replace(run, configuration=isotropic), iterations=1).uncertainty.settings[
            "tv_prior"
        ]
        is False
    )


def test_a_convention_without_hyperprior_is_refused(run):
    isotropic = dict(run.configuration) | {"isotropic": True}
    with pytest.raises(ConfigurationError, match="tv_prior_convention belongs"):
        dipct.quantify(replace(run, configuration=isotropic), tv_prior_convention="bayes-dip")


def test_command_line(run, tmp_path, dipct_command):
    path, out = tmp_path / "dip.h5", tmp_path / "uq.h5"
    write_run(run, path)
    done = dipct_command("uncertainty", path, "--out", out, "--samples", "8", "--no-tv-prior")
    assert done.code == 0, done.err
    assert "log evidence" in done.out
    assert {p.name for p in tmp_path.iterdir()} == {
        "dip.h5",
        "dip.json",
        "uq.h5",
        "uq.json",
        "uq.png",
    }
    with h5py.File(out) as file:
        assert file["uncertainty/mean"].shape == file["uncertainty/std"].shape == (12, 12)
        assert file["uncertainty/samples"].shape == (8, 12, 12)
    assert read_run(out).uncertainty.settings["tv_prior"] is False


def test_command_line_refuses_before_any_work(run, tmp_path, dipct_command, monkeypatch):
    from dipct.pipeline import uncertainty

    path = tmp_path / "dip.h5"
    write_run(run, path)

    def work(*arguments, **options):
        raise AssertionError("work was begun")

    monkeypatch.setattr(uncertainty, "linearised_model_of", work)
    wrong = dipct_command("uncertainty", path, "--out", path)
    assert wrong.code != 0
    assert "would replace an input" in wrong.err
    wrong = dipct_command("uncertainty", path, "--out", tmp_path / "uq.h5", "--resume")
    assert wrong.code != 0
    assert "start without --resume" in wrong.err
    wrong = dipct_command("uncertainty", path, "--out", tmp_path / "uq.h5", "--score-margin", "6")
    assert wrong.code != 0
    assert "score_margin must leave pixels" in wrong.err
    wrong = dipct_command("uncertainty", tmp_path / "none.h5", "--out", tmp_path / "uq.h5")
    assert wrong.code != 0
