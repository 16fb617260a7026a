"""From a reconstruction by a network to its uncertainty: the verb and the command line."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from small_runs import network_run, quantified_run

import dipct
from dipct.errors import (
    ConfigurationError,
    FileFormatError,
    InsufficientMemoryError,
)
from dipct.evaluation import pixel_log_likelihood
from dipct.pipeline.uncertainty import linearised_model_of
from dipct.posterior import (
    LOWEST_VARIANCE,
    MaternPrior,
)
from dipct.run import read_run, write_run
from dipct.uncertainty import UncertaintySettings


@pytest.fixture(scope="module")
def run():
    return network_run()


@pytest.fixture(scope="module")
def found():
    return quantified_run()


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


def test_published_density_of_length_scales(run, found):
    result = dipct.quantify(run, tv_prior_convention="bayes-dip").uncertainty
    assert result.settings["tv_prior_convention"] == "bayes-dip"
    assert result.hyperparameters != pytest.approx(found.uncertainty.hyperparameters, rel=0.01)


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
