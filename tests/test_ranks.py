"""Ranks of the truth: definitions, simulation-based calibration, and wrong posteriors."""

import numpy as np
import pytest
from scipy import stats

from dipct.errors import ConfigurationError, DataError, ShapeError
from dipct.evaluation import probability_integral_transform, rank_of_truth, rank_uniformity

SAMPLES = 19


def simulated_ranks(count=3000, spread=1.0, shift=0.0, seed=0):
    """Ranks of many truths from a prior N(0, 1), each measured once with unit noise."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(count)
    data = truth + rng.standard_normal(count)
    std = spread * np.sqrt(0.5)
    samples = data / 2 + shift + std * rng.standard_normal((SAMPLES, count))
    return rank_of_truth(truth, samples)


def test_ranks_count_the_samples_below():
    rng = np.random.default_rng(1)
    truth, samples = rng.standard_normal((3, 4)), rng.standard_normal((7, 3, 4))
    ranks = rank_of_truth(truth, samples)
    assert ranks.shape == (3, 4) and ranks.dtype.kind == "i"
    for index in np.ndindex(3, 4):
        assert ranks[index] == sum(sample[index] < truth[index] for sample in samples)
    assert rank_of_truth(np.array(10.0), samples[:, 0, 0]) == 7
    assert rank_of_truth(np.array(-10.0), samples[:, 0, 0]).shape == ()


def test_ranks_among_equal_values_are_drawn():
    """Of images clipped at zero the ranks are uniform as well."""
    rng = np.random.default_rng(2)
    values = np.maximum(rng.standard_normal((10, 4000)), 0)
    truth, samples = values[0], values[1:]
    with pytest.raises(DataError, match="Give a seed"):
        rank_of_truth(truth, samples)
    ranks = rank_of_truth(truth, samples, seed=0)
    np.testing.assert_array_equal(ranks, rank_of_truth(truth, samples, seed=0))
    assert rank_uniformity(ranks, 9, 10)[1] > 1e-3
    always_below = np.count_nonzero(samples < truth, axis=0)
    assert rank_uniformity(always_below, 9, 10)[1] < 1e-9
    always_above = np.count_nonzero(samples <= truth, axis=0)
    assert rank_uniformity(always_above, 9, 10)[1] < 1e-9


@pytest.mark.parametrize("bins", [2, 5, 7, 20])
def test_ranks_of_a_right_posterior_are_uniform(bins):
    statistic, p_value = rank_uniformity(simulated_ranks(), SAMPLES, bins)
    assert p_value > 1e-3
    assert p_value == pytest.approx(stats.chi2.sf(statistic, bins - 1))


@pytest.mark.parametrize(
    "wrong", [{"spread": 0.7}, {"spread": 1.4}, {"shift": 0.2}], ids=["narrow", "wide", "shifted"]
)
def test_ranks_of_a_wrong_posterior_are_not(wrong):
    assert rank_uniformity(simulated_ranks(**wrong), SAMPLES, 10)[1] < 1e-6


def test_p_values_are_uniform_themselves():
    p_values = [rank_uniformity(simulated_ranks(400, seed=s), SAMPLES, 7)[1] for s in range(200)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_statistic_of_unequal_bins():
    """Ten ranks in four bins of 3, 2, 3 and 2."""
    ranks = np.repeat(np.arange(10), [30, 31, 29, 35, 30, 30, 32, 28, 30, 25])
    statistic, _ = rank_uniformity(ranks, 9, 4)
    observed, expected = np.array([90, 65, 90, 55]), 300 * np.array([3, 2, 3, 2]) / 10
    assert statistic == pytest.approx(np.sum((observed - expected) ** 2 / expected))


def test_impossible_ranks_are_refused():
    ranks = np.random.default_rng(0).integers(0, 10, 500)
    with pytest.raises(DataError, match="n_samples = 8"):
        rank_uniformity(ranks, 8, 3)
    with pytest.raises(DataError, match="whole numbers"):
        rank_uniformity(ranks / 2, 9, 5)
    with pytest.raises(DataError, match="whole numbers"):
        rank_uniformity(ranks - 1, 9, 5)
    with pytest.raises(DataError, match="at least 5"):
        rank_uniformity(ranks[:40], 9, 10)
    for n_samples, bins in ((9, 1), (9, 11), (0, 2)):
        with pytest.raises(ConfigurationError, match="bins"):
            rank_uniformity(ranks, n_samples, bins)


def test_ranks_refuse_samples_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"\[S 3 4\]"):
        rank_of_truth(np.zeros((3, 4)), np.ones((7, 4, 3)))
    with pytest.raises(DataError, match="samples"):
        rank_of_truth(np.zeros(3), np.full((7, 3), np.nan))


def test_probability_integral_transform():
    rng = np.random.default_rng(3)
    mean, std = rng.standard_normal((50, 60)), rng.uniform(0.5, 2, (50, 60))
    truth = mean + std * rng.standard_normal(mean.shape)
    found = probability_integral_transform(truth, mean, std)
    np.testing.assert_allclose(found, stats.norm(mean, std).cdf(truth), rtol=1e-12)
    assert stats.kstest(found.ravel(), "uniform").pvalue > 1e-3
    for wrong in (
        (mean, 0.7 * std),
        (mean, 1.4 * std),
        (mean + 0.2, std),
        (mean, std.ravel()[::-1].reshape(std.shape)),
    ):
        values = probability_integral_transform(truth, *wrong)
        assert stats.kstest(values.ravel(), "uniform").pvalue < 1e-3
    with pytest.raises(DataError, match="above zero"):
        probability_integral_transform(truth, mean, 0 * std)
