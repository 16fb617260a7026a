"""The posterior of a counterfactual: that of tomography, on hidden features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_classifier import TASK, queries, small_classifier

from dipct.errors import ConfigurationError
from dipct.figures import inversion_uncertainty_figure
from dipct.inversion import is_inversion, read_counterfactual, read_inversion, write_inversion
from dipct.inversion_settings import CounterfactualSettings
from dipct.operator import LOGITS
from dipct.pipeline import (
    counterfactual,
    generator_of_inversion,
    pre_image,
    quantify_inversion,
)
from dipct.pipeline.query_generator import query_generator
from dipct.posterior import (
    DensePosterior,
    LinearisedModel,
    MaternPrior,
    StoredJacobian,
    SufficientModel,
    gram_matrices,
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


def test_more_features_leave_less_uncertainty(found):
    """At the same hyper-parameters data cannot widen a posterior."""
    generator, theta = generator_of_inversion(found)

    def variance(layers):
        operator = small_classifier().features(list(layers))
        data = operator(torch.from_numpy(found.query))
        model = SufficientModel(LinearisedModel(operator, generator, theta, data, 1.0))
        prior = MaternPrior(model.parameters)
        of_image = StoredJacobian.of_image(model, prior.groups)
        gram = gram_matrices(of_image, prior.groups, dtype=torch.float64)
        phi = torch.cat([prior.initial(), torch.zeros(1, dtype=torch.float64)])
        return DensePosterior(prior, phi, gram, model).variance()

    few, many = variance(["layer4"]), variance(["layer3", "layer4"])
    assert (many < few * (1 + 1e-5)).all()
    assert many.mean() < 0.9 * few.mean()


def test_more_features_than_pixels_say_what_all_of_them_do(found):
    """With those it was fitted with by default; in single precision."""
    generator, theta = generator_of_inversion(found)
    operator = small_classifier().features(["layer1", "layer2"])
    data = operator(torch.from_numpy(found.query))
    model = LinearisedModel(operator, generator, theta, data, 1.0)
    smaller = SufficientModel(model)
    assert model.n_data == 6144 and smaller.n_data <= found.image.size == 768
    # Products of the data and of the residual with themselves, seen from the image.
    images = torch.randn(4, *found.image.shape, generator=torch.Generator().manual_seed(0))
    there_and_back, exact = (m.operator.adjoint(m.operator(images)) for m in (smaller, model))
    assert torch.allclose(there_and_back, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
    seen, exact = (m.operator.adjoint(m.shaped_data(m.residual[None])) for m in (smaller, model))
    assert torch.allclose(seen, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


def test_by_default_the_data_are_what_it_was_fitted_with(found):
    settings = UncertaintySettings(samples=8, iterations=3)
    quantified = quantify_inversion(small_classifier(), found, settings)
    how = quantified.uncertainty
    assert how["layers"] == ["layer1", "layer2"] and how["features"] == 6144
    assert how["settings"]["evidence"] == "exact" and how["settings"]["samples"] == 8
    assert how["hyperparameters"]["noise"] == pytest.approx(quantified.scores["noise"] ** 2)


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


def test_what_was_kept_for_other_layers_is_refused(found, tmp_path):
    settings = UncertaintySettings(samples=8, tv_prior=False)
    options = {"settings": settings, "checkpoint": tmp_path / "s"}
    kept = quantify_inversion(small_classifier(), found, layers=LAYERS, **options)
    with pytest.raises(ConfigurationError, match="belongs to other data or options"):
        quantify_inversion(small_classifier(), found, layers=("layer4",), resume=True, **options)
    again = quantify_inversion(small_classifier(), found, layers=LAYERS, resume=True, **options)
    assert np.array_equal(again.std, kept.std)


def test_files_hold_deviation_and_samples(quantified, tmp_path):
    write_inversion(quantified, tmp_path / "cf.h5")
    again = read_counterfactual(tmp_path / "cf.h5")
    assert np.array_equal(again.std, quantified.std)
    assert np.array_equal(again.samples, quantified.samples)
    assert again.uncertainty == quantified.uncertainty
    assert again.uncertainty["layers"] == list(LAYERS)
    assert read_inversion(tmp_path / "cf.h5").kind == "counterfactual"
    assert is_inversion(tmp_path / "cf.h5")


def test_the_figure_shows_deviation_and_samples(found, quantified):
    figure = inversion_uncertainty_figure(quantified)
    titles = [axes.get_title() for axes in figure.axes]
    assert [title for title in titles if title.startswith("sample")] == [
        f"sample {number} of 64" for number in (1, 2, 3, 4)
    ]
    words = " ".join([*(t.get_text() for t in figure.texts), figure.get_suptitle()])
    assert f"{quantified.scores['samples_in_target']:.0%} of the samples" in words
    (spread,) = [axes for axes in figure.axes if axes.get_xlabel() == "standard deviation"]
    shown = " ".join(text.get_text() for text in spread.get_legend().get_texts())
    assert f"inside the region, mean {quantified.scores['std_inside']:.3g}" in shown
    few = replace(quantified, samples=quantified.samples[:1], region=None)
    (spread,) = [
        axes
        for axes in inversion_uncertainty_figure(few).axes
        if axes.get_xlabel() == "standard deviation"
    ]
    assert "all pixels" in spread.get_legend().get_texts()[0].get_text()
    with pytest.raises(ConfigurationError, match="not quantified"):
        inversion_uncertainty_figure(found)


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


def test_an_image_of_rounded_products_is_that_of_its_network(found):
    """As of a GPU, which rounds factors to ten bits."""
    rounding = 2e-3 * np.random.default_rng(0).uniform(-1, 1, found.image.shape)
    rounded = replace(found, image=(found.image + rounding).clip(0, 1).astype(np.float32))
    settings = UncertaintySettings(samples=2, iterations=1)
    quantified = quantify_inversion(small_classifier(), rounded, settings, layers=("layer4",))
    assert np.array_equal(quantified.image, rounded.image)
    values = CounterfactualSettings.from_values(dict(found.settings) | {"seed": 1})
    other = query_generator(values, found.image.shape).z.numpy()
    of_another = replace(found, generator={**found.generator, "input": other})
    with pytest.raises(ConfigurationError, match="does not make its image"):
        quantify_inversion(small_classifier(), of_another, settings, layers=("layer4",))


@pytest.mark.parametrize(
    "settings",
    [
        {"tv_prior": True},
        {"tv_prior_weight": 1.0},
        {"tv_prior_convention": "bayes-dip"},
        {"mean": "linear"},
        {"fixed_noise": True},
        {"score_margin": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_reconstructions_are_refused(found, settings):
    with pytest.raises(ConfigurationError, match="reconstructions from scans alone"):
        quantify_inversion(small_classifier(), found, UncertaintySettings(**settings))
