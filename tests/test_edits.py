"""Sizes and places of edits, on images made by hand."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from dipct.errors import ConfigurationError, DataError, ShapeError
from dipct.evaluation import agreement, auroc, bootstrap_interval, edit_size, localisation

SHAPE = (3, 64, 64)


def square(side=16, corner=(8, 20), change=0.5, channel=1):
    other = np.full(SHAPE, 0.25, dtype=np.float32)
    rows, columns = corner
    other[channel, rows : rows + side, columns : columns + side] += change
    return np.full(SHAPE, 0.25, dtype=np.float32), other


def region_of(side=16, corner=(8, 20)):
    region = np.zeros(SHAPE[1:], dtype=bool)
    region[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
    return region


def test_a_square_has_the_size_of_a_square():
    found = edit_size(*square())
    assert found.concentration == 256 / 4096 == 0.0625
    # A twentieth of the energy is less than a row on each side.
    assert found.energy_concentration == 0.0625
    assert found.area == 0.0625
    assert found.mean_squared == pytest.approx(0.25 * 256 / (3 * 4096))
    assert found.sparsity == pytest.approx((64 - 16) / 63)


def test_a_stray_pixel_blows_up_one_box_and_not_the_other():
    query, other = square()
    other[0, 63, 63] += 0.06
    found = edit_size(query, other)
    assert found.concentration == (64 - 8) * (64 - 20) / 4096
    assert found.energy_concentration == 0.0625


def test_changes_below_the_threshold_are_none():
    found = edit_size(*square(change=0.04))
    assert math.isnan(found.concentration)
    assert found.area == 0
    assert found.energy_concentration == 0.0625
    assert edit_size(*square(change=0.04), threshold=0.03).concentration == 0.0625


def test_no_change_has_no_concentration():
    query, _ = square()
    found = edit_size(query, query)
    assert found.mean_squared == found.area == 0
    assert all(
        math.isnan(v) for v in (found.concentration, found.energy_concentration, found.sparsity)
    )


def test_an_edit_in_its_region_has_full_marks():
    found = localisation(*square(), region_of())
    assert astuple(found) == pytest.approx((1,) * 8)


def test_an_edit_elsewhere_has_none():
    found = localisation(*square(corner=(40, 40)), region_of())
    assert found.mass_accuracy == found.rank_accuracy == found.overlap == found.pointing == 0
    assert found.matched_overlap == 0
    assert found.normalised_mass_accuracy == pytest.approx(-0.0625 / 0.9375)
    # The pixels that do not change are half of the time ahead of each other.
    assert found.auroc == pytest.approx(0.5 * (1 - 256 / 3840))


@pytest.mark.parametrize("rows", [slice(0, 8), slice(56, 64)])
def test_pixels_that_do_not_change_are_no_better_in_one_place_than_in_another(rows):
    query = np.zeros(SHAPE)
    other = query.copy()
    other[0, 30, 30] = 0.5
    region = np.zeros(SHAPE[1:], dtype=bool)
    region[rows] = True
    found = localisation(query, other, region)
    assert found.rank_accuracy == pytest.approx(511 / 512 * 512 / 4095, rel=1e-6)
    assert found.matched_overlap < 0.1


def test_random_edits_are_at_chance():
    rng = np.random.default_rng(0)
    query = np.full(SHAPE, 0.5)
    other = query + 0.1 * rng.standard_normal(SHAPE)
    found = localisation(query, other, region_of())
    assert abs(found.normalised_mass_accuracy) < 0.02
    assert found.auroc == pytest.approx(0.5, abs=0.05)
    assert found.average_precision == pytest.approx(0.0625, abs=0.02)
    assert found.rank_accuracy == pytest.approx(0.0625, abs=0.05)


def test_half_in_half_out():
    query, other = square(corner=(8, 28))
    found = localisation(query, other, region_of())
    assert found.mass_accuracy == pytest.approx(0.5)
    assert found.rank_accuracy == pytest.approx(0.5)
    assert found.overlap == found.matched_overlap == pytest.approx(1 / 3)


def test_nothing_has_no_place():
    query, _ = square()
    assert all(math.isnan(v) for v in astuple(localisation(query, query, region_of())))


def test_curves_are_those_of_definitions():
    rng = np.random.default_rng(1)
    positive, negative = rng.integers(0, 5, 30), rng.integers(0, 4, 50)
    wanted = mannwhitneyu(positive, negative).statistic / 1500
    assert auroc(positive, negative) == pytest.approx(wanted)
    query = np.zeros((1, 2, 3))
    other = np.array([[[0.9, 0.8, 0.7], [0.6, 0.5, 0.5]]])
    region = np.array([[True, False, True], [False, True, False]])
    # Found at ranks 1 and 3, and together with another at 5 and 6.
    wanted = (1 / 1 + 2 / 3 + 3 / 6) / 3
    assert localisation(query, other, region).average_precision == pytest.approx(wanted)


def test_agreement_with_a_known_counterfactual():
    query, known = square(change=0.4)
    full = agreement(query, known, known, region_of())
    assert full.direction == pytest.approx(1)
    assert full.psnr_gain_db == math.inf
    assert full.background == 0
    half = agreement(query, square(change=0.2)[1], known, region_of())
    assert half.direction == pytest.approx(1)
    assert half.psnr_gain_db == pytest.approx(20 * math.log10(2), rel=1e-5)
    # The right place and the wrong sign.
    opposite = agreement(query, square(change=-0.4)[1], known, region_of())
    assert opposite.direction == pytest.approx(-1)
    assert opposite.psnr_gain_db == pytest.approx(-20 * math.log10(2), rel=1e-5)
    elsewhere = agreement(query, square(change=0.4, corner=(40, 40))[1], known, region_of())
    assert elsewhere.direction == pytest.approx(0)
    assert elsewhere.background == pytest.approx(0.4 * math.sqrt(256 / 3 / 3840), rel=1e-5)
    assert math.isnan(agreement(query, query, known, region_of()).direction)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng, inside = np.random.default_rng(0), 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(size=40), resamples=300, seed=seed)
        inside += low <= 0 <= high
    assert 0.88 < inside / 200 < 0.99


def test_intervals_of_many_clusters_hold_the_mean():
    rng, inside = np.random.default_rng(3), 0
    clusters = np.repeat(np.arange(30), 5)
    for seed in range(150):
        values = rng.normal(size=30)[clusters] + 0.2 * rng.normal(size=150)
        low, high = bootstrap_interval(values, clusters=clusters, resamples=300, seed=seed)
        inside += low <= 0 <= high
    assert 0.86 < inside / 150 < 0.99


def test_few_clusters_make_wide_intervals():
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(3), 100)
    values = np.array([0.0, 1.0, 3.0])[clusters] + 0.1 * rng.normal(size=300)
    low, high = bootstrap_interval(values, clusters=clusters)
    naive = bootstrap_interval(values)
    assert high - low > 3 * (naive[1] - naive[0])
    assert low < 4 / 3 < high


def test_wrong_input_is_refused():
    query, other = square()
    with pytest.raises(ShapeError, match="one shape"):
        edit_size(query, other[:1])
    with pytest.raises(ConfigurationError, match="threshold"):
        edit_size(query, other, threshold=-0.1)
    with pytest.raises(DataError, match="NaN"):
        edit_size(query, other * np.nan)
    for region in (np.zeros((64, 64), bool), np.ones((64, 64), bool), region_of()[1:]):
        with pytest.raises(ShapeError, match="true somewhere"):
            localisation(query, other, region)
    with pytest.raises(ConfigurationError, match="probability"):
        bootstrap_interval(np.ones(3), probability=1.0)
    with pytest.raises(ShapeError, match="cluster"):
        bootstrap_interval(np.ones(3), clusters=np.zeros(2))
