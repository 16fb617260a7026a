"""Proper scores: integrals, brute force over pairs, unbiasedness, and that the truth wins."""

import numpy as np
import pytest
from scipy import integrate, stats

from dipct.errors import DataError, ShapeError
from dipct.evaluation import energy_score, gaussian_crps, sample_crps


def prediction(shape=(60, 70), seed=0):
    rng = np.random.default_rng(seed)
    mean, std = rng.standard_normal(shape), rng.uniform(0.5, 2.0, shape)
    return mean + std * rng.standard_normal(shape), mean, std


def draws(mean, std, count, seed=1):
    return mean + std * np.random.default_rng(seed).standard_normal((count, *mean.shape))


@pytest.mark.parametrize("truth", [-3.0, 0.3, 1.0, 6.0])
def test_gaussian_crps_is_the_integral_of_its_definition(truth):
    distribution = stats.norm(1.0, 1.7)

    def square(x):
        return (distribution.cdf(x) - (x >= truth)) ** 2

    expected = sum(integrate.quad(square, *ends)[0] for ends in ((-np.inf, truth), (truth, np.inf)))
    found = gaussian_crps(np.array(truth), np.array(1.0), np.array(1.7))
    assert found == pytest.approx(expected, rel=1e-6)


def test_gaussian_crps_against_a_published_value():
    """crps_norm(-3) of the tests of the R package scoringRules."""
    found = gaussian_crps(np.array(-3.0), np.array(0.0), np.array(1.0))
    assert found == pytest.approx(2.43657473, abs=1e-8)


def test_gaussian_crps_of_a_narrow_prediction_is_the_absolute_error():
    truth, mean, std = prediction()
    error = np.mean(np.abs(truth - mean))
    assert gaussian_crps(truth, mean, 1e-9 * std) == pytest.approx(error, rel=1e-8)
    far = gaussian_crps(np.array([1e8]), np.zeros(1), np.ones(1))
    assert far == pytest.approx(1e8 - 1 / np.sqrt(np.pi), rel=1e-15)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_sample_scores_are_sums_over_pairs(count):
    truth, mean, std = prediction((3, 4))
    samples = draws(mean, std, count)
    pairs = [(a, b) for i, a in enumerate(samples) for j, b in enumerate(samples) if i != j]

    def expected(distance):
        to_truth = np.mean([distance(s - truth) for s in samples])
        return to_truth - np.mean([distance(a - b) for a, b in pairs]) / 2

    crps = expected(lambda d: np.mean(np.abs(d)))
    assert sample_crps(truth, samples) == pytest.approx(crps, rel=1e-12)
    energy = expected(lambda d: np.sqrt(np.sum(d**2)))
    assert energy_score(truth, samples) == pytest.approx(energy, rel=1e-12)
    one = energy_score(truth[:1, :1], samples[:, :1, :1])
    assert one == pytest.approx(sample_crps(truth[:1, :1], samples[:, :1, :1]), rel=1e-12)


def biased_crps(truth, samples):
    """With the pairs of a sample with itself in the mean."""
    spread = np.mean(np.abs(samples[:, None] - samples))
    return np.mean(np.abs(samples - truth)) - spread / 2


@pytest.mark.parametrize("count", [2, 5])
def test_sample_crps_has_no_bias_of_few_samples(count):
    truth, mean, std = prediction()
    samples = draws(mean, std, count)
    exact = gaussian_crps(truth, mean, std)
    repeats = np.array(
        [sample_crps(truth, draws(mean, std, count, seed)) - exact for seed in range(30)]
    )
    error = repeats.std() / np.sqrt(len(repeats))
    assert abs(repeats.mean()) < 4 * error
    assert biased_crps(truth, samples) - exact > 20 * error


def test_energy_score_has_no_bias_of_few_samples():
    shape = (2000, 6)
    rng = np.random.default_rng(3)
    truths, few = rng.standard_normal(shape), rng.standard_normal((3, *shape))
    many = rng.standard_normal((500, 6))
    difference = np.array(
        [
            energy_score(x, s) - energy_score(x, many)
            for x, s in zip(truths[:400], few.swapaxes(0, 1), strict=False)
        ]
    )
    error = difference.std() / np.sqrt(len(difference))
    assert abs(difference.mean()) < 4 * error
    # With the pairs of a sample with itself a third of the spread is missing.
    spread = np.mean(np.linalg.norm(many[1:] - many[:-1], axis=1)) / 2
    assert spread / 3 > 10 * error


@pytest.mark.parametrize("wrong", ["narrow", "wide", "shifted", "shuffled"])
def test_the_true_distribution_scores_best(wrong):
    truth, mean, std = prediction((100, 100))
    other = {
        "narrow": (mean, 0.6 * std),
        "wide": (mean, 1.6 * std),
        "shifted": (mean + 0.4 * std, std),
        "shuffled": (mean, std.T),
    }[wrong]
    assert gaussian_crps(truth, *other) > gaussian_crps(truth, mean, std) + 0.005
    best = sample_crps(truth, draws(mean, std, 100))
    assert sample_crps(truth, draws(*other, 100)) > best + 0.005


@pytest.mark.parametrize("wrong", ["narrow", "wide", "shifted", "uncorrelated"])
def test_the_energy_score_sees_whole_images(wrong):
    rng = np.random.default_rng(4)
    root = np.linalg.cholesky(0.05 * np.eye(10) + 0.95)
    truths, samples = (rng.standard_normal((n, 10)) @ root.T for n in (1500, 300))
    other = {
        "narrow": 0.5 * samples,
        "wide": 2.0 * samples,
        "shifted": samples + 0.5,
        "uncorrelated": rng.standard_normal(samples.shape),
    }[wrong]
    loss = np.array([energy_score(x, other) - energy_score(x, samples) for x in truths[:300]])
    assert loss.mean() > 4 * loss.std() / np.sqrt(len(loss))


def test_scores_have_the_unit_of_the_image():
    truth, mean, std = prediction((5, 6))
    samples = draws(mean, std, 10)
    scaled = gaussian_crps(7 * truth, 7 * mean, 7 * std)
    assert scaled == pytest.approx(7 * gaussian_crps(truth, mean, std))
    for score in (sample_crps, energy_score):
        assert score(7 * truth, 7 * samples) == pytest.approx(7 * score(truth, samples))
        assert score(truth + 1e3, samples + 1e3) == pytest.approx(score(truth, samples))


def test_samples_that_equal_the_truth_score_zero():
    truth, _, _ = prediction((3, 4))
    for score in (sample_crps, energy_score):
        assert score(truth, np.stack([truth] * 5)) == 0


@pytest.mark.parametrize("score", [sample_crps, energy_score])
def test_sample_scores_refuse_what_has_no_value(score):
    truth, mean, std = prediction((3, 4))
    samples = draws(mean, std, 5)
    for wrong in (samples[:1], samples[0], samples[:, :2], samples[..., :1]):
        with pytest.raises(ShapeError, match=r"\[S 3 4\]"):
            score(truth, wrong)
    samples[2, 1, 1] = np.nan
    with pytest.raises(DataError, match="1 of 60 values of the samples"):
        score(truth, samples)
    with pytest.raises(DataError, match="real"):
        score(truth * 1j, samples)


def test_gaussian_crps_refuses_what_has_no_value():
    truth, mean, std = prediction((3, 4))
    with pytest.raises(DataError, match="12 of 12"):
        gaussian_crps(truth, mean, 0 * std)
    with pytest.raises(ShapeError, match="std"):
        gaussian_crps(truth, mean, std[0])
    with pytest.raises(DataError, match="mean"):
        gaussian_crps(truth, mean * np.nan, std)
