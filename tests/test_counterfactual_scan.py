"""Counterfactuals of images that were reconstructed from a scan."""

from functools import cache

import numpy as np
import pytest
import torch

from dipct.errors import ConfigurationError, DataError, ShapeError
from dipct.inversion import read_counterfactual
from dipct.measurement.scan_file import write_scan
from dipct.pipeline import (
    counterfactual,
    measurement_of,
    open_query,
    reconstruct,
    simulate,
    train_classifier,
)
from dipct.pretrain import LabelledImages, write_trained_classifier
from dipct.run import write_run

SIDE = 16
INSIDE = np.hypot(*(np.indices((SIDE, SIDE)) - 7.5)) < 6.5


def disc(seed, *, has_hole):
    """A grey disc, with a dark square in its middle or without."""
    random = np.random.default_rng(seed)
    image = random.uniform(0.6, 0.9) * INSIDE + 0.02 * random.standard_normal((SIDE, SIDE))
    if has_hole:
        image[6:10, 6:10] *= 0.2
    return image.clip(0, 1).astype(np.float32)


def discs(number, first):
    labels = np.arange(number) % 2
    images = np.stack([disc(first + i, has_hole=bool(k)) for i, k in enumerate(labels)])
    groups = np.arange(number)
    return LabelledImages(images[:, None], labels, ("whole", "hollow"), groups, {"kind": "discs"})


@cache
def classifier():
    settings = {"side": SIDE, "shift": 0, "noise": 0.1, "loss_estimator": False}
    return train_classifier(
        discs(100, 0), discs(20, 1000), steps=40, batch=16, learning_rate=5e-3, **settings
    )


@cache
def scan(views=30, scale=0.05):
    """Of a disc with a hole; attenuation is no number from zero to one."""
    image = scale * disc(2000, has_hole=True)
    return simulate(image, pixels=SIDE, views=views, noise=0.02, oversampling=1)


def hollow():
    return disc(2000, has_hole=True)[None]


def misfit(measurement, image):
    eta = measurement.operator(torch.from_numpy(image))
    return float(measurement.fidelity.discrepancy(eta))


@pytest.mark.parametrize("scale", [0.05, 3.0])
def test_the_misfit_is_in_units_of_the_noise_whatever_those_of_the_image(scale):
    measurement = measurement_of(scan(scale=scale), hollow())
    assert misfit(measurement, hollow()) == pytest.approx(1, abs=0.3)
    whole = np.where(hollow() > 0.3, hollow(), 0.75 * INSIDE).astype(np.float32)
    assert misfit(measurement, whole) > 5
    # The factor is that of the image that it was made for, not fitted anew for every edit.
    assert misfit(measurement, 0.5 * hollow()) > 100


def test_an_image_of_other_pixels_is_projected_in_the_same_field_of_view():
    coarse = hollow().reshape(1, 8, 2, 8, 2).mean((2, 4))
    measurement = measurement_of(scan(), coarse)
    assert measurement.operator.domain_shape == (1, 8, 8)
    assert misfit(measurement, coarse) < 0.1 * misfit(measurement, coarse[..., ::-1, :] * 0.5)


def explained(views, **settings):
    measured = measurement_of(scan(views), hollow()) if views else None
    values = {"method": "lso-tv", "steps": 60, "class_weight": 1.0, "norm_weight": 0.0}
    (found,) = counterfactual(
        classifier(), hollow(), 0, measurement=measured, **(values | settings)
    )
    return found


def test_many_views_hold_what_few_leave_open():
    free, few, many = explained(0), explained(2), explained(30)
    assert "scan_misfit" not in free.scores
    assert free.valid and few.valid
    whole = measurement_of(scan(30), hollow())
    assert few.scores["scan_misfit"] < 0.3 * misfit(measurement_of(scan(2), hollow()), free.image)
    # What fits few views does not fit many.
    assert misfit(whole, few.image) > 2 * misfit(whole, many.image)
    assert many.p_target < few.p_target
    for found in (few, many):
        assert found.scores["scan_misfit_query"] == pytest.approx(1, abs=0.6)


def test_the_score_is_the_misfit_of_the_image():
    found = explained(30)
    measurement = measurement_of(scan(30), hollow())
    assert found.scores["scan_misfit"] == pytest.approx(misfit(measurement, found.image), rel=1e-4)
    assert found.scores["scan_misfit_query"] == pytest.approx(misfit(measurement, hollow()))


def test_from_a_scan_to_a_counterfactual(tmp_path, monkeypatch, dipct_command):
    monkeypatch.chdir(tmp_path)
    write_trained_classifier(classifier(), "discs.h5")
    write_scan(scan(), "scan.h5")
    asked = ("--classifier", "discs.h5", "--image", "run.h5", "--out", "cf.h5")
    asked += ("--method", "lso-tv", "--steps", 5, "--target", "whole")
    assert dipct_command("reconstruct", "scan.h5", "--out", "run.h5", "--method", "tv").code == 0
    result = dipct_command("counterfactual", *asked, "--scan", "scan.h5")
    assert result.code == 0, result
    assert "scan misfit" in result.out
    found = read_counterfactual("cf.h5")
    assert found.query.max() == 1
    assert found.scores["scan_misfit_query"] < 1.5
    assert "measurement" in found.history
    result = dipct_command("counterfactual", *asked, "--measurement-weight", 2)
    assert result.code != 0
    assert "without a measurement" in result.err
    result = dipct_command("counterfactual", *asked, "--scan", "run.h5")
    assert "run file" in result.err


def test_what_does_not_belong_together_is_refused(tmp_path):
    with pytest.raises(ShapeError, match="1 H H"):
        measurement_of(scan(), np.zeros((3, SIDE, SIDE)))
    with pytest.raises(DataError, match="nothing in common"):
        measurement_of(scan(), np.zeros((1, SIDE, SIDE)))
    volume = simulate(np.zeros((8, 8, 8), np.float32), geometry="cone", pixels=8, views=2, noise=0)
    with pytest.raises(ConfigurationError, match="square slices"):
        measurement_of(volume, hollow())
    path = tmp_path / "run.h5"
    write_run(reconstruct(scan(), method="fbp", pixels=8), path)
    with pytest.raises(ShapeError, match="--pixels 16"):
        open_query(classifier(), str(path))
    empty = simulate(np.zeros((SIDE, SIDE), np.float32), pixels=SIDE, views=4, noise=0)
    write_run(reconstruct(empty, method="fbp"), path)
    with pytest.raises(DataError, match="no positive value"):
        open_query(classifier(), str(path))
