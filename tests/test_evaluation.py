"""Metrics: closed forms, independent implementations and refusal of bad input."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import io

from dipct.errors import DataError, ShapeError
from dipct.evaluation import (
    matthews_correlation,
    otsu_segmentation,
    psnr,
    relative_error,
    ssim,
)


def _pair(shape=(24, 20), noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-1, 3, shape)
    return truth + noise * rng.standard_normal(shape), truth


@pytest.mark.parametrize("shape", [(24, 20), (9, 12, 10)])
def test_psnr_of_a_known_error(shape):
    truth = np.linspace(0, 4, int(np.prod(shape))).reshape(shape)
    assert psnr(truth + 0.04, truth) == pytest.approx(40.0)
    assert psnr(truth, truth) == np.inf


def test_psnr_and_ssim_agree_with_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    image, truth = _pair()
    span = truth.max() - truth.min()
    expected = peak_signal_noise_ratio(truth, image, data_range=span)
    assert psnr(image, truth) == pytest.approx(expected, rel=1e-12)
    assert psnr(image, truth) != pytest.approx(
        peak_signal_noise_ratio(truth, image, data_range=truth.max()), rel=1e-3
    )
    expected = structural_similarity(truth, image, data_range=span)
    assert ssim(image, truth) == pytest.approx(expected, rel=1e-12)


def test_ssim_in_three_dimensions_ranks_images():
    slightly, truth = _pair((8, 12, 10), noise=0.1)
    badly, _ = _pair((8, 12, 10), noise=1.0)
    assert ssim(truth, truth) == pytest.approx(1.0)
    assert 1.0 > ssim(slightly, truth) > ssim(badly, truth)


def test_metrics_do_not_depend_on_the_unit():
    image, truth = _pair()
    assert psnr(10 * image, 10 * truth) == pytest.approx(psnr(image, truth))
    assert ssim(10 * image, 10 * truth) == pytest.approx(ssim(image, truth))
    assert relative_error(10 * image, 10 * truth) == pytest.approx(relative_error(image, truth))
    assert psnr(10 * image, truth) < psnr(image, truth) - 10


def test_relative_error_of_a_scaled_image():
    _, truth = _pair()
    assert relative_error(1.25 * truth, truth) == pytest.approx(0.25)


@pytest.mark.parametrize("metric", [psnr, ssim, relative_error])
def test_a_mask_keeps_errors_outside_from_counting(metric):
    _, truth = _pair((30, 30), noise=0.0)
    image = truth.copy()
    image[:5] += 10.0
    mask = np.zeros(truth.shape, dtype=bool)
    # Windows of seven pixels around the masked ones must not reach the changed rows.
    mask[8:] = True
    perfect = metric(truth, truth)
    assert metric(image, truth, mask=mask) == pytest.approx(perfect)
    assert metric(image, truth) != pytest.approx(perfect, rel=1e-3)


@pytest.mark.parametrize("metric", [psnr, ssim, relative_error])
def test_metrics_refuse_what_has_no_value(metric):
    image, truth = _pair()
    with pytest.raises(ShapeError, match="same shape"):
        metric(image[:-1], truth)
    with pytest.raises(ShapeError, match="mask"):
        metric(image, truth, mask=np.ones((3, 3), dtype=bool))
    with pytest.raises(DataError, match="empty"):
        metric(image, truth, mask=np.zeros(truth.shape, dtype=bool))
    for wrong in (np.nan, np.inf):
        broken = image.copy()
        broken[3, 4] = wrong
        with pytest.raises(DataError, match="1 of 480 values of the image"):
            metric(broken, truth)
        with pytest.raises(DataError, match="1 of 480 values of the truth"):
            metric(image, broken)
    with pytest.raises(DataError, match="real"):
        metric(image * 1j, truth)


def test_a_constant_truth_has_no_range():
    image, truth = _pair()
    for metric in (psnr, ssim):
        with pytest.raises(DataError, match="constant"):
            metric(image, np.ones_like(truth))
    with pytest.raises(DataError, match="zero"):
        relative_error(image, np.zeros_like(truth))
    with pytest.raises(ShapeError, match="at least 7"):
        ssim(image[:5], truth[:5])


def test_matthews_correlation_of_counts_and_limits():
    reference = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    found = np.array([1, 1, 0, 1, 0, 0, 0, 0], dtype=bool)
    # TP 2, FN 1, FP 1, TN 4.
    assert matthews_correlation(found, reference) == pytest.approx((2 * 4 - 1) / np.sqrt(225))
    assert matthews_correlation(reference, reference) == pytest.approx(1.0)
    assert matthews_correlation(~reference, reference) == pytest.approx(-1.0)
    assert matthews_correlation(np.ones(8), reference) == 0.0


def test_matthews_correlation_is_pearson_correlation():
    rng = np.random.default_rng(3)
    first, second = rng.random((2, 64, 64)) > 0.3
    second |= first
    expected = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert matthews_correlation(first, second) == pytest.approx(expected)
    assert matthews_correlation(~first, second) != pytest.approx(expected, abs=0.1)


def test_matthews_correlation_of_a_large_image():
    reference = np.zeros((3000, 3000), dtype=bool)
    reference[:1500] = True
    assert matthews_correlation(reference, reference) == pytest.approx(1.0)


def test_matthews_correlation_refuses_what_is_not_a_segmentation():
    reference = np.array([0, 1, 1])
    with pytest.raises(DataError, match="0 and 1"):
        matthews_correlation(np.array([0.2, 0.9, 1.0]), reference)
    with pytest.raises(DataError, match="one class"):
        matthews_correlation(reference, np.ones(3))
    with pytest.raises(ShapeError):
        matthews_correlation(reference, reference[:2])


def test_otsu_splits_two_populations():
    rng = np.random.default_rng(5)
    material = np.zeros((40, 40), dtype=bool)
    material[10:30, 5:25] = True
    image = np.where(material, 0.04, 0.0) + 0.004 * rng.standard_normal(material.shape)
    assert np.array_equal(otsu_segmentation(image), material)
    assert not np.array_equal(otsu_segmentation(-image), material)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.ones((4, 4)), "constant"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.zeros((0, 4)), "real"),
    ],
)
def test_otsu_refuses_what_cannot_be_split(image, message):
    with pytest.raises(DataError, match=message):
        otsu_segmentation(image)


def test_score_of_the_challenges_own_reconstruction():
    root = os.environ.get("DIPCT_DATA")
    if not root:
        pytest.skip("DIPCT_DATA is not set: the measured HTC2022 data are needed")
    folder = Path(root) / "htc2022"
    load = {"squeeze_me": True, "struct_as_record": False}
    image = io.loadmat(folder / "htc2022_ta_full_recon_fbp.mat", **load)
    segmentation = io.loadmat(folder / "htc2022_ta_full_recon_fbp_seg.mat", **load)
    image = next(v for k, v in image.items() if not k.startswith("__"))
    reference = next(v for k, v in segmentation.items() if not k.startswith("__"))
    found = otsu_segmentation(image)
    assert matthews_correlation(found, reference) > 0.98
    assert matthews_correlation(found[::-1], reference) < 0.9


def test_importing_the_metrics_does_not_load_scikit_image():
    code = "import sys, dipct.evaluation; sys.exit('skimage' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_given_range_takes_the_place_of_that_of_the_truth():
    rng = np.random.default_rng(0)
    truth = 0.2 + 0.3 * rng.random((16, 16))
    image = truth + 0.01 * rng.standard_normal((16, 16))
    wanted = -10 * np.log10(np.mean((image - truth) ** 2))
    assert psnr(image, truth, data_range=1.0) == pytest.approx(wanted)
    assert psnr(image, truth) < wanted
    assert ssim(image, truth, data_range=1.0) > ssim(image, truth)
    # A picture of one colour has no range of its own.
    assert psnr(np.full((8, 8), 0.4), np.full((8, 8), 0.5), data_range=1.0) == pytest.approx(20)
    for wrong in (0.0, -1.0, np.inf):
        with pytest.raises(DataError, match="data_range"):
            psnr(image, truth, data_range=wrong)
