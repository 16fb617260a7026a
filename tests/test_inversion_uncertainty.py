"""The posterior of a counterfactual: that of tomography, on hidden features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_classifier import TASK, queries, small_classifier

from dipct.errors import ConfigurationError
from dipct.inversion import read_counterfactual, write_inversion
from dipct.operator import LOGITS
from dipct.pipeline import (
    counterfactual,
    generator_of_inversion,
    pre_image,
    quantify_inversion,
)
from dipct.pretrain import make_classifier
from dipct.uncertainty import UncertaintySettings

LAYERS = ("layer3",)
FAST = {"steps": 30, "fit_steps": 60, "width": 8, "learning_rate": 5e-3, "class_weight": 0.3}


@pytest.fixture(scope="module")
def found():
    scenes, images = queries()
    (made,) = counterfactual(small_classifier(), images[0], 1, method="lso-inr", **FAST)
    may = TASK.true_counterfactuals(scenes[0], 1, draws=4).may
    return replace(made, region=may)


@pytest.fixture(scope="module")
def quantified(found):
    settings = UncertaintySettings(samples=64, tv_prior=False)
    return quantify_inversion(small_classifier(), found, settings, layers=LAYERS)


def test_the_generator_of_a_file_makes_its_image(found):
    generator, theta = generator_of_inversion(found)
    with torch.no_grad():
        assert np.allclose(generator(theta).numpy(), found.image, atol=1e-5)


def test_samples_are_around_the_image_as_wide_as_the_deviation(found, quantified):
    assert quantified.samples.shape == (64, *found.image.shape)
    assert quantified.std.shape == found.image.shape
    assert (quantified.std > 0).all()
    spread = np.sqrt(np.mean((quantified.samples - found.image) ** 2, axis=0))
    ratio = spread.mean() / quantified.std.mean()
    assert 0.8 < ratio < 1.25


def test_scores_are_of_the_samples(found, quantified):
    region = found.region
    of_pixels = quantified.std.mean(0)
    assert quantified.scores["std_inside"] == pytest.approx(of_pixels[region].mean(), rel=1e-4)
    assert quantified.scores["std_outside"] == pytest.approx(of_pixels[~region].mean(), rel=1e-4)
    logits = small_classifier().features([LOGITS])
    with torch.no_grad():
        classes = logits(torch.from_numpy(quantified.samples).clamp(0, 1)).argmax(-1)
    assert quantified.scores["samples_in_target"] == float((classes == 1).double().mean())
    assert quantified.scores["noise"] > 0
    assert quantified.scores["mse"] == found.scores["mse"]


def test_more_features_leave_less_uncertainty(found, quantified):
    """At the same hyper-parameters data cannot widen a posterior: here at one noise level."""
    settings = UncertaintySettings(samples=8, tv_prior=False, fixed_noise=True, iterations=1)
    few, many = (
        quantify_inversion(small_classifier(), found, settings, layers=layers).std.mean()
        for layers in (("layer4",), ("layer3", "layer4"))
    )
    assert many < few


def test_a_region_stays_as_certain_as_it_is():
    allowed = np.zeros((16, 16), dtype=bool)
    allowed[:8] = True
    (made,) = counterfactual(
        small_classifier(), queries()[1][0], 1, method="lso-inr", region=allowed, **FAST
    )
    settings = UncertaintySettings(samples=8, tv_prior=False)
    quantified = quantify_inversion(small_classifier(), made, settings, layers=LAYERS)
    assert (quantified.std[:, ~allowed] == 0).all()
    assert (quantified.std[:, allowed] > 0).all()


def test_what_was_kept_for_other_layers_is_not_used(found, tmp_path):
    settings = UncertaintySettings(samples=8, tv_prior=False)
    one, other, fresh = (
        quantify_inversion(
            small_classifier(), found, settings, layers=layers, checkpoint=folder, resume=resume
        ).std
        for layers, folder, resume in (
            (LAYERS, tmp_path / "s", False),
            (("layer4",), tmp_path / "s", True),
            (("layer4",), None, False),
        )
    )
    assert np.array_equal(other, fresh)
    assert not np.array_equal(one, other)


def test_files_hold_deviation_and_samples(quantified, tmp_path):
    write_inversion(quantified, tmp_path / "cf.h5")
    again = read_counterfactual(tmp_path / "cf.h5")
    assert np.array_equal(again.std, quantified.std)
    assert np.array_equal(again.samples, quantified.samples)


def test_what_has_no_posterior_is_refused(found):
    (pixels,) = pre_image(small_classifier(), found.query, method="pixel-tv", steps=2)
    with pytest.raises(ConfigurationError, match="no network"):
        quantify_inversion(small_classifier(), pixels)
    other = replace(small_classifier(), model=make_classifier("small", classes=2).eval())
    with pytest.raises(ConfigurationError, match="not the classifier that was inverted"):
        quantify_inversion(other, found, layers=LAYERS)
    (in_pixels,) = counterfactual(
        small_classifier(), found.query, 1, method="iso-inr", **FAST | {"steps": 2}
    )
    with pytest.raises(ConfigurationError, match="give the layers"):
        quantify_inversion(small_classifier(), in_pixels)
    changed = replace(found, image=1 - found.image)
    with pytest.raises(ConfigurationError, match="does not make its image"):
        quantify_inversion(small_classifier(), changed, layers=LAYERS)
    with pytest.raises(ConfigurationError, match="give tv_prior false"):
        quantify_inversion(
            small_classifier(), found, UncertaintySettings(tv_prior=True), layers=LAYERS
        )
