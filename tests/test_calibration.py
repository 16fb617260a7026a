"""Coverage, sparsification and correlation: closed forms, brute force, wrong predictions."""

import numpy as np
import pytest
from scipy import special, stats

from dipct.errors import ConfigurationError, DataError, ShapeError
from dipct.evaluation import (
    CalibrationCurve,
    calibration_curve,
    coverage,
    coverage_of_samples,
    error_correlation,
    sparsification,
)

LEVELS = np.array([0.1, 0.5, 0.9, 0.95])


def prediction(shape=(80, 100), seed=0):
    """A truth that is drawn from its prediction, whose std varies."""
    rng = np.random.default_rng(seed)
    mean, std = rng.standard_normal(shape), rng.uniform(0.2, 3.0, shape)
    return mean + std * rng.standard_normal(shape), mean, std


def binomial_bound(levels, count):
    return 4 * np.sqrt(levels * (1 - levels) / count)


def test_coverage_counts_the_pixels_in_the_intervals():
    truth, mean, std = prediction((6, 7))
    found = coverage(truth, mean, std, LEVELS)
    for level, share in zip(LEVELS, found, strict=True):
        lower, upper = stats.norm(mean, std).interval(level)
        assert share == np.mean((lower <= truth) & (truth <= upper))
    # The ends of an interval belong to it, and the order of the levels is the caller's.
    end = np.array([special.ndtri(0.95)])
    for truth_at_end in (end, -end):
        shares = coverage(truth_at_end, np.zeros(1), np.ones(1), np.array([0.9, 0.89]))
        assert shares.tolist() == [1, 0]
    np.testing.assert_array_equal(coverage(truth, mean, std, LEVELS[::-1]), found[::-1])


def test_coverage_of_a_right_prediction_is_its_level():
    case = prediction()
    bound = binomial_bound(LEVELS, 8000)
    assert np.all(np.abs(coverage(*case, LEVELS) - LEVELS) < bound)
    assert calibration_curve(*case).calibration_error < 0.01


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 2.0])
def test_coverage_of_a_wrong_spread_is_that_of_its_interval(factor):
    truth, mean, std = prediction()
    found = coverage(truth, mean, factor * std, LEVELS)
    expected = 1 - 2 * stats.norm.sf(factor * stats.norm.ppf((1 + LEVELS) / 2))
    assert np.all(np.abs(found - expected) < binomial_bound(expected, 8000))
    assert np.any(np.abs(found - LEVELS) > binomial_bound(LEVELS, 8000))
    curve = calibration_curve(truth, mean, factor * std)
    assert curve.calibration_error > 0.05
    assert np.sign(curve.signed_error) == np.sign(factor - 1)


def test_a_shifted_mean_and_shuffled_deviations_are_noticed():
    truth, mean, std = prediction()
    assert calibration_curve(truth, mean + std, std).signed_error < -0.1
    shuffled = np.random.default_rng(1).permutation(std.ravel()).reshape(std.shape)
    assert calibration_curve(truth, mean, shuffled).calibration_error > 0.03


def test_errors_of_a_curve():
    levels = np.array([0.2, 0.4, 0.6])
    curve = CalibrationCurve(levels, np.array([0.3, 0.2, 0.6]))
    assert curve.calibration_error == pytest.approx(0.1)
    assert curve.signed_error == pytest.approx(-0.1 / 3)
    default = calibration_curve(*prediction((4, 5)))
    np.testing.assert_allclose(default.levels, np.linspace(0.05, 0.95, 19))
    assert default.coverage.shape == (19,)


def sampled(count, shape=(100, 200), seed=2, spread=1.0, shift=0.0):
    """Skewed truths and samples from one distribution, or another for the samples."""
    rng = np.random.default_rng(seed)
    truth = rng.gamma(2.0, size=shape)
    return truth, 2 + spread * (rng.gamma(2.0, size=(count, *shape)) - 2) + shift


@pytest.mark.parametrize("count", [4, 9, 99])
def test_coverage_of_few_samples_has_no_bias(count):
    truth, samples = sampled(count)
    levels = np.arange(count - 1, 0, -2) / (count + 1)
    found = coverage_of_samples(truth, samples, levels)
    bound = binomial_bound(levels, truth.size)
    assert np.all(np.abs(found - levels) < bound)
    # The usual quantiles, where the smallest sample is that of probability 0, are too narrow.
    tails = (1 - levels[0]) / 2, (1 + levels[0]) / 2
    lower, upper = np.quantile(samples, tails, axis=0)
    usual = np.mean((lower <= truth) & (truth <= upper))
    assert usual < levels[0] - bound[0]


def test_coverage_of_wrong_samples_is_noticed():
    levels = np.array([0.2, 0.5, 0.8])
    right = CalibrationCurve(levels, coverage_of_samples(*sampled(49), levels))
    narrow = CalibrationCurve(levels, coverage_of_samples(*sampled(49, spread=0.6), levels))
    wide = CalibrationCurve(levels, coverage_of_samples(*sampled(49, spread=1.7), levels))
    shifted = CalibrationCurve(levels, coverage_of_samples(*sampled(49, shift=1.0), levels))
    assert right.calibration_error < 0.01
    assert narrow.signed_error < -0.05 and wide.signed_error > 0.05
    assert shifted.calibration_error > 0.05


def test_coverage_of_many_gaussian_samples_is_that_of_their_deviation():
    truth, mean, std = prediction((20, 20))
    samples = mean + std * np.random.default_rng(5).standard_normal((2000, *mean.shape))
    found = coverage_of_samples(truth, samples, LEVELS)
    np.testing.assert_allclose(found, coverage(truth, mean, std, LEVELS), atol=0.03)


def test_levels_are_probabilities_within_reach():
    truth, mean, std = prediction((4, 5))
    for wrong in (np.array([0.0]), np.array([0.5, 1.0]), np.array([50.0]), np.array(0.5)):
        with pytest.raises(ConfigurationError, match="between 0 and 1"):
            coverage(truth, mean, std, wrong)
        with pytest.raises(ConfigurationError, match="between 0 and 1"):
            coverage_of_samples(truth, np.zeros((30, 4, 5)), wrong)
    with pytest.raises(DataError, match="levels"):
        coverage(truth, mean, std, np.array([0.5, np.nan]))
    with pytest.raises(ConfigurationError, match=r"9 samples reach .* 0.8 at most; got 0.9"):
        coverage_of_samples(truth, np.zeros((9, 4, 5)), np.array([0.5, 0.9]))
    rounded_up = 1 - 2 / 14
    assert rounded_up > 12 / 14
    assert coverage_of_samples(truth, np.zeros((13, 4, 5)), np.array([rounded_up])) == 0


def brute_sparsification(loss, criterion, share, power):
    kept = np.argsort(criterion)[: len(loss) - int(share * len(loss))]
    return (np.mean(loss[kept] ** power) / np.mean(loss**power)) ** (1 / power)


@pytest.mark.parametrize(
    ("error", "power"), [("mean absolute", 1), ("root mean square", 2)], ids=["MAE", "RMSE"]
)
def test_sparsification_removes_the_largest_deviations(error, power):
    truth, mean, std = prediction((25, 40))
    found = sparsification(truth, mean, std, error=error, steps=20)
    loss = np.abs(truth - mean).ravel()
    np.testing.assert_allclose(found.removed, np.arange(20) / 20)
    for curve, criterion in ((found.remaining, std.ravel()), (found.oracle, loss)):
        expected = [brute_sparsification(loss, criterion, k / 20, power) for k in range(20)]
        np.testing.assert_allclose(curve, expected, rtol=1e-12)
    order = np.random.default_rng(1)
    draws = [
        brute_sparsification(loss, order.random(loss.size), 0.7, power) ** power for _ in range(400)
    ]
    assert found.random[14] ** power == pytest.approx(np.mean(draws), abs=0.02)
    assert 0 < found.ause < 0.7 * found.random_ause


def test_area_of_curves_in_closed_form():
    """Errors 1, ..., n: the mean of the smallest share 1 - f is 1 - f of that of all."""
    errors = np.random.default_rng(0).permutation(np.arange(1.0, 100_001.0))
    zero = np.zeros_like(errors)
    perfect = sparsification(errors, zero, 3 * errors**2, steps=1000)
    assert perfect.ause == 0
    assert perfect.random_ause == pytest.approx(0.5, abs=2e-3)
    worst = sparsification(errors, zero, 1 / errors, steps=1000)
    assert worst.ause == pytest.approx(1.0, abs=3e-3)


def test_what_sparsification_does_not_depend_on():
    truth, mean, std = prediction((30, 30))
    area = sparsification(truth, mean, std).ause
    assert sparsification(truth, mean, 5 * std**3).ause == pytest.approx(area)
    assert sparsification(9 * truth, 9 * mean, std).ause == pytest.approx(area)
    assert sparsification(truth, mean, std.T).ause > 1.5 * area


def test_equal_deviations_are_removed_by_chance():
    truth, mean, std = prediction((30, 30))
    constant = sparsification(truth, mean, np.ones_like(std))
    np.testing.assert_allclose(constant.remaining, 1, rtol=1e-12)
    assert constant.ause == pytest.approx(constant.random_ause)
    rounded = np.floor(std)
    order = np.random.default_rng(3).permutation(std.size)
    mixed = sparsification(*(a.ravel()[order] for a in (truth, mean, rounded)))
    np.testing.assert_allclose(
        mixed.remaining, sparsification(truth, mean, rounded).remaining, rtol=1e-12
    )


def test_correlations_are_those_of_scipy_and_of_theory():
    truth, mean, std = prediction((200, 200))
    found = error_correlation(truth, mean, std)
    error = np.abs(truth - mean).ravel()
    assert found.pearson == pytest.approx(np.corrcoef(std.ravel(), error)[0, 1], rel=1e-12)
    ranks = stats.rankdata(std), stats.rankdata(error)
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-12)
    # |error| = std |z| with E|z| = c: covariance c Var(std), variance E(std^2) - c^2 E(std)^2.
    c, first, variance = np.sqrt(2 / np.pi), 1.6, 2.8**2 / 12
    theory = c * np.sqrt(variance / (variance + first**2 - c**2 * first**2))
    assert found.pearson == pytest.approx(theory, abs=0.02)


def test_correlations_of_wrong_deviations():
    truth, mean, std = prediction((200, 200))
    shuffled = error_correlation(truth, mean, std.T)
    assert abs(shuffled.pearson) < 0.02 and abs(shuffled.spearman) < 0.02
    opposite = error_correlation(truth, mean, 1 / std)
    assert opposite.pearson < -0.2 and opposite.spearman < -0.2
    right, bent = (error_correlation(truth, mean, s) for s in (std, np.exp(3 * std)))
    assert bent.spearman == pytest.approx(right.spearman)
    assert bent.pearson < right.pearson - 0.05
    perfect = error_correlation(truth, mean, np.abs(truth - mean))
    assert perfect.pearson == pytest.approx(1) and perfect.spearman == pytest.approx(1)


@pytest.mark.parametrize("score", [calibration_curve, error_correlation, sparsification])
def test_scores_refuse_what_has_no_value(score):
    truth, mean, std = prediction((12, 15))
    with pytest.raises(ShapeError, match="std"):
        score(truth, mean, std[:-1])
    with pytest.raises(ShapeError, match="mean"):
        score(truth, mean[:, :1], std)
    for position, name in enumerate(("truth", "mean", "std")):
        broken = [truth.copy(), mean.copy(), std.copy()]
        broken[position][2, 3] = np.nan
        with pytest.raises(DataError, match=f"1 of 180 values of the {name}"):
            score(*broken)
    negative = std.copy()
    negative[0, :2] = -1
    with pytest.raises(DataError, match="2 of 180"):
        score(truth, mean, negative)
    with pytest.raises(DataError, match="empty"):
        score(truth[:0], mean[:0], std[:0])


def test_rankings_refuse_what_they_cannot_rank():
    truth, mean, std = prediction((12, 15))
    with pytest.raises(DataError, match="1 everywhere"):
        error_correlation(truth, mean, np.ones_like(std))
    with pytest.raises(DataError, match="absolute error is 0"):
        error_correlation(mean, mean, std)
    with pytest.raises(DataError, match="no error"):
        sparsification(mean, mean, std)
    with pytest.raises(ConfigurationError, match="'mean absolute' or"):
        sparsification(truth, mean, std, error="median")
    for steps in (1, 181):
        with pytest.raises(ConfigurationError, match="steps"):
            sparsification(truth, mean, std, steps=steps)


def test_samples_must_fit_the_truth():
    truth = np.zeros((4, 5))
    for wrong in (np.ones((9, 5, 4)), np.ones((1, 4, 5)), np.ones((4, 5)), np.array(1.0)):
        with pytest.raises(ShapeError, match=r"\[S 4 5\]"):
            coverage_of_samples(truth, wrong, np.array([0.5]))
    with pytest.raises(DataError, match="samples"):
        coverage_of_samples(truth, np.full((9, 4, 5), np.inf), np.array([0.5]))
