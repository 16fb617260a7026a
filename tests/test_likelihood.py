"""Log-likelihoods of the truth: scipy's densities, brute force over patches, and refusals."""

import numpy as np
import pytest
from scipy import stats

from dipct.errors import ConfigurationError, DataError, ShapeError
from dipct.evaluation import (
    gaussian_log_likelihood,
    patch_log_likelihood,
    pixel_log_likelihood,
    quantile_quantile,
    whitened_errors,
)


def random_covariance(n, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((n, n))
    return root @ root.T / n + 0.3 * np.eye(n)


def images(shape=(3, 4), seed=1):
    return np.random.default_rng(seed).standard_normal((2, *shape))


def drawn(covariance, count, seed=2):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, len(covariance))) @ np.linalg.cholesky(covariance).T


def posterior(shape, count, seed=3):
    """A truth, a mean and smooth deviations around it."""
    rng = np.random.default_rng(seed)
    deviations = rng.standard_normal((count, *shape))
    deviations[:, 1:] += 0.8 * deviations[:, :-1]
    deviations[:, :, 1:] += 0.5 * deviations[:, :, :-1]
    truth, mean = rng.standard_normal((2, *shape))
    return truth, mean, deviations * rng.uniform(0.5, 2, shape)


@pytest.mark.parametrize("shape", [(1,), (3, 4), (2, 3, 2)])
def test_the_joint_density_is_that_of_scipy(shape):
    truth, mean = images(shape)
    covariance = random_covariance(truth.size)
    expected = stats.multivariate_normal(mean.ravel(), covariance).logpdf(truth.ravel())
    found = gaussian_log_likelihood(truth, mean, covariance)
    assert found == pytest.approx(expected / truth.size, rel=1e-12)


def test_independent_pixels_are_the_diagonal_case():
    truth, mean = images()
    std = np.random.default_rng(4).uniform(0.2, 2, truth.shape)
    expected = stats.norm(mean, std).logpdf(truth).mean()
    assert pixel_log_likelihood(truth, mean, std) == pytest.approx(expected, rel=1e-12)
    joint = gaussian_log_likelihood(truth, mean, np.diag(std.ravel() ** 2))
    assert joint == pytest.approx(expected, rel=1e-12)


def test_the_unit_changes_the_density_by_its_logarithm():
    truth, mean = images()
    covariance = random_covariance(truth.size)
    before = gaussian_log_likelihood(truth, mean, covariance)
    after = gaussian_log_likelihood(7 * truth, 7 * mean, 49 * covariance)
    assert after == pytest.approx(before - np.log(7), rel=1e-12)


def test_the_true_covariance_scores_best():
    covariance = random_covariance(6)
    truths = drawn(covariance, 1500)
    zero = np.zeros(6)
    wrong = {
        "over-confident": 0.6 * covariance,
        "too wide": 1.6 * covariance,
        "uncorrelated": np.diag(np.diag(covariance)),
        "reordered": covariance[::-1, ::-1],
    }
    best = np.array([gaussian_log_likelihood(x, zero, covariance) for x in truths])
    entropy = stats.multivariate_normal(zero, covariance).entropy() / 6
    assert abs(best.mean() + entropy) < 4 * best.std() / np.sqrt(len(best))
    for name, other in wrong.items():
        gain = best - [gaussian_log_likelihood(x, zero, other) for x in truths]
        assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain)), name


def test_a_covariance_without_density_is_refused():
    truth, mean = images()
    with pytest.raises(DataError, match=r"not positive definite.*stabilising noise"):
        gaussian_log_likelihood(truth, mean, -random_covariance(12))
    for seed in range(50):
        # Rounding leaves some of these with positive pivots.
        low_rank = np.random.default_rng(seed).standard_normal((12, 11))
        with pytest.raises(DataError, match="not positive definite"):
            gaussian_log_likelihood(truth, mean, low_rank @ low_rank.T)
        noisy = low_rank @ low_rank.T + 1e-6 * np.eye(12)
        assert np.isfinite(gaussian_log_likelihood(truth, mean, noisy))


def test_variances_of_very_different_size_are_no_singularity():
    truth, mean = images((2,))
    std = np.array([1e-9, 1e9])
    found = gaussian_log_likelihood(truth, mean, np.diag(std**2))
    assert found == pytest.approx(stats.norm(mean, std).logpdf(truth).mean(), rel=1e-12)


@pytest.mark.parametrize("score", [gaussian_log_likelihood, whitened_errors])
def test_what_is_no_covariance_of_the_image_is_refused(score):
    truth, mean = images()
    covariance = random_covariance(12)
    with pytest.raises(ShapeError, match=r"\(12, 12\)"):
        score(truth, mean, covariance[:6, :6])
    with pytest.raises(ShapeError, match="same shape"):
        score(truth, mean.T, covariance)
    with pytest.raises(DataError, match="not symmetric"):
        score(truth, mean, np.tril(covariance))
    with pytest.raises(DataError, match="1 of 12 values of the mean"):
        score(truth, np.where(np.arange(12).reshape(3, 4) == 5, np.nan, mean), covariance)
    broken = covariance.copy()
    broken[3, 3] = np.inf
    with pytest.raises(DataError, match="1 of 144 values of the covariance"):
        score(truth, mean, broken)
    with pytest.raises(DataError, match="real"):
        score(truth, mean, covariance.astype(complex))


def test_rounding_in_single_precision_is_no_asymmetry():
    truth, mean = images()
    root = np.random.default_rng(0).standard_normal((12, 40)).astype(np.float32)
    covariance = root @ root.T
    covariance[np.triu_indices(12, 1)] *= np.float32(1 + 2e-7)
    assert np.isfinite(gaussian_log_likelihood(truth, mean, covariance))


def patch_of_every_pixel(shape, patch, tiling):
    """Number of the patch that each pixel belongs to."""
    rows, columns = np.indices(shape) // patch
    if tiling == "enlarged":
        rows, columns = (
            np.minimum(index, side // patch - 1)
            for index, side in zip((rows, columns), shape, strict=True)
        )
    return (rows * shape[1] + columns).ravel()


def brute_force(truth, mean, deviations, patch, noise=0.0, shrinkage=0.5, tiling="enlarged"):
    """One dense covariance of the whole image that is zero between patches."""
    samples = deviations.reshape(len(deviations), -1)
    moment = np.mean(samples[:, :, None] * samples[:, None, :], axis=0)
    label = patch_of_every_pixel(truth.shape, patch, tiling)
    covariance = np.where(label[:, None] == label, shrinkage * moment, 0.0)
    covariance[np.diag_indices(truth.size)] = np.diag(moment) + noise
    density = stats.multivariate_normal(mean.ravel(), covariance).logpdf(truth.ravel())
    return density / truth.size


@pytest.mark.parametrize("shape", [(6, 8), (7, 8), (5, 11), (4, 4)])
@pytest.mark.parametrize("patch", [1, 2, 3, 4])
def test_patches_are_blocks_of_one_covariance(shape, patch):
    case = posterior(shape, 30)
    for settings in ({}, {"noise_variance": 0.3}, {"shrinkage": 0.8, "noise_variance": 0.01}):
        found = patch_log_likelihood(*case, patch=patch, **settings)
        expected = brute_force(
            *case, patch, settings.get("noise_variance", 0.0), settings.get("shrinkage", 0.5)
        )
        assert found == pytest.approx(expected, rel=1e-11)


def test_another_tiling_or_shrinkage_is_noticed():
    case = posterior((7, 8), 30)
    found = patch_log_likelihood(*case, patch=3)
    assert found != pytest.approx(brute_force(*case, 3, tiling="small last ones"), rel=1e-4)
    cropped = [array[..., :6, :6] for array in case]
    assert found != pytest.approx(brute_force(*cropped, 3), rel=1e-4)
    assert found != pytest.approx(brute_force(*case, 3, shrinkage=0.6), rel=1e-4)
    truth, mean, deviations = case
    centred = deviations - deviations.mean(axis=0)
    assert found != pytest.approx(brute_force(truth, mean, centred, 3), rel=1e-4)


def test_limits_of_the_patches():
    truth, mean, deviations = posterior((4, 4), 40)
    std = np.sqrt(np.mean(deviations**2, axis=0))
    pixels = pixel_log_likelihood(truth, mean, std)
    assert patch_log_likelihood(truth, mean, deviations, patch=1) == pytest.approx(pixels)
    independent = patch_log_likelihood(truth, mean, deviations, patch=2, shrinkage=0.0)
    assert independent == pytest.approx(pixels)
    samples = deviations.reshape(40, -1)
    whole = gaussian_log_likelihood(truth, mean, samples.T @ samples / 40)
    joint = patch_log_likelihood(truth, mean, deviations, patch=4, shrinkage=1.0)
    assert joint == pytest.approx(whole)
    assert abs(joint - pixels) > 1e-3


def test_a_region_is_the_image_cut_out():
    truth, mean, deviations = posterior((9, 10), 20)
    region = (slice(2, -2), slice(3, 9))
    found = patch_log_likelihood(truth, mean, deviations, patch=2, region=region)
    cut = truth[region], mean[region], deviations[:, 2:-2, 3:9]
    assert found == pytest.approx(brute_force(*cut, 2))
    swapped = patch_log_likelihood(truth, mean, deviations, patch=2, region=region[::-1])
    assert swapped != pytest.approx(found, rel=1e-3)
    # What lies outside does not matter, not even where it is not finite.
    truth[0, 0] = np.nan
    assert patch_log_likelihood(truth, mean, deviations, patch=2, region=region) == found


def test_true_patch_correlations_score_better_than_none():
    covariance = random_covariance(16)
    deviations = drawn(covariance, 3000).reshape(-1, 4, 4)
    truths = drawn(covariance, 200, seed=9).reshape(-1, 4, 4)
    zero = np.zeros((4, 4))

    def scores(samples, **settings):
        return np.array([patch_log_likelihood(x, zero, samples, **settings) for x in truths])

    joint = scores(deviations, patch=4, shrinkage=1.0)
    for other in (
        scores(deviations, patch=1),
        scores(deviations[:, ::-1], patch=4, shrinkage=1.0),
        scores(0.6 * deviations, patch=4, shrinkage=1.0),
        scores(1.7 * deviations, patch=4, shrinkage=1.0),
    ):
        gain = joint - other
        assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))


def test_few_samples_are_refused_where_nothing_is_shrunk():
    case = posterior((7, 7), 25)
    with pytest.raises(ConfigurationError, match="25 samples cannot determine"):
        patch_log_likelihood(*case, patch=4, shrinkage=1.0, noise_variance=0.1)
    # The last squares of side 3 have side 4.
    assert np.isfinite(patch_log_likelihood(*case, patch=3, shrinkage=1.0))
    truth, mean, deviations = case
    with pytest.raises(ConfigurationError, match="of a patch of 16 pixels"):
        patch_log_likelihood(truth, mean, deviations[:16], patch=3, shrinkage=1.0)
    assert np.isfinite(patch_log_likelihood(truth, mean, deviations[:3], patch=3))
    assert np.isfinite(patch_log_likelihood(*case, patch=1, shrinkage=1.0))
    with pytest.raises(DataError, match="two deviations"):
        patch_log_likelihood(case[0], case[1], case[2][:1], patch=2)


def test_pixels_without_variance_need_a_noise_of_the_truth():
    truth, mean, deviations = posterior((5, 5), 20)
    deviations[:, 1, 2] = 0
    for patch in (1, 2):
        with pytest.raises(DataError, match="1 of 25 pixels have no variance"):
            patch_log_likelihood(truth, mean, deviations, patch=patch)
        found = patch_log_likelihood(truth, mean, deviations, patch=patch, noise_variance=0.1)
        assert found == pytest.approx(brute_force(truth, mean, deviations, patch, 0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 0}, "between 1 and 5"),
        ({"patch": 6}, "between 1 and 5"),
        ({"patch": 3, "region": (slice(0, 2), slice(0, 5))}, "between 1 and 2"),
        ({"region": (slice(3, 3), slice(None))}, "no pixel"),
        ({"region": (slice(0, 5, 2), slice(None))}, "without a step"),
        ({"region": slice(0, 2)}, "pair of slices"),
        ({"noise_variance": -0.1}, "at least 0"),
        ({"noise_variance": np.nan}, "at least 0"),
        ({"shrinkage": 1.1}, "in \\[0, 1\\]"),
    ],
)
def test_impossible_patches_are_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        patch_log_likelihood(*posterior((5, 6), 20), **({"patch": 2} | change))


def test_arrays_that_do_not_fit_are_refused():
    truth, mean, deviations = posterior((5, 6), 20)
    with pytest.raises(ShapeError, match="deviations"):
        patch_log_likelihood(truth, mean, deviations[0], patch=2)
    with pytest.raises(ShapeError, match="deviations"):
        patch_log_likelihood(truth, mean, deviations[:, :4], patch=2)
    with pytest.raises(ShapeError, match="mean"):
        patch_log_likelihood(truth, mean[:, :1], deviations, patch=2)
    with pytest.raises(ShapeError, match="truth"):
        patch_log_likelihood(truth[0], mean, deviations, patch=2)
    deviations[3, 2, 1] = np.inf
    with pytest.raises(DataError, match="1 of 600 values of the deviations"):
        patch_log_likelihood(truth, mean, deviations, patch=2)


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan])
def test_a_standard_deviation_is_above_zero(wrong):
    truth, mean = images()
    std = np.ones_like(truth)
    std[1, 1] = wrong
    with pytest.raises(DataError, match="1 of 12"):
        pixel_log_likelihood(truth, mean, std)
    with pytest.raises(ShapeError, match="std"):
        pixel_log_likelihood(truth, mean, np.ones(4))


def test_whitened_errors_are_standard_normal():
    covariance = random_covariance(5)
    truths, zero = drawn(covariance, 2500), np.zeros(5)
    white = np.array([whitened_errors(x, zero, covariance) for x in truths])
    bound = 4 * np.sqrt(2 / len(white))

    def distance(errors):
        return np.abs(errors.T @ errors / len(errors) - np.eye(5)).max()

    assert distance(white) < bound
    assert stats.kstest(white.ravel(), "norm").pvalue > 1e-3
    mahalanobis = np.einsum("si,ij,sj->s", truths, np.linalg.inv(covariance), truths)
    np.testing.assert_allclose(np.sum(white**2, axis=1), mahalanobis, rtol=1e-10)
    transposed = np.linalg.solve(np.linalg.cholesky(covariance).T, truths.T).T
    assert distance(transposed) > 2 * bound
    for factor in (0.7, 1.4):
        wrong = np.array([whitened_errors(x, zero, factor * covariance) for x in truths])
        assert distance(wrong) > 2 * bound


def test_whitened_errors_take_the_pixels_in_their_order():
    truth, mean = images((2, 3))
    covariance = random_covariance(6)
    white = whitened_errors(truth, mean, covariance)
    assert white.shape == (6,)
    assert white[0] == pytest.approx((truth - mean)[0, 0] / np.sqrt(covariance[0, 0]))
    np.testing.assert_allclose(np.linalg.cholesky(covariance) @ white, (truth - mean).ravel())


def test_quantiles_lie_on_the_diagonal_for_the_right_spread():
    rng = np.random.default_rng(7)
    errors = rng.standard_normal((60, 50))
    theoretical, observed = quantile_quantile(errors)
    assert theoretical.shape == observed.shape == (3000,)
    np.testing.assert_array_equal(observed, np.sort(errors, axis=None))
    for factor in (0.7, 1.0, 1.5):
        _, observed = quantile_quantile(factor * errors)
        assert np.polyfit(theoretical, observed, 1)[0] == pytest.approx(factor, rel=0.05)
    # Medians of the order statistics of five, from their beta distributions.
    theoretical, _ = quantile_quantile(np.arange(5.0))
    medians = stats.norm.ppf(stats.beta.median(np.arange(1, 6), np.arange(5, 0, -1)))
    np.testing.assert_allclose(theoretical, medians, atol=2e-3)


def test_quantiles_of_what_has_none_are_refused():
    with pytest.raises(DataError, match="at least two"):
        quantile_quantile(np.ones(1))
    with pytest.raises(DataError, match="NaN"):
        quantile_quantile(np.array([0.0, np.nan, 1.0]))
    with pytest.raises(DataError, match="empty"):
        quantile_quantile(np.ones(0))
