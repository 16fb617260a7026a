"""Settings of counterfactuals and pre-images."""

import pytest

from dipct.errors import ConfigurationError
from dipct.inversion_settings import (
    COUNTERFACTUAL_METHODS,
    PRE_IMAGE_METHODS,
    CounterfactualSettings,
    PreImageSettings,
)


@pytest.mark.parametrize("method", COUNTERFACTUAL_METHODS)
def test_every_method_is_possible(method):
    settings = CounterfactualSettings.of_method(method)
    assert settings.method == method
    again = CounterfactualSettings.from_values(settings.to_values())
    assert again == settings


@pytest.mark.parametrize("method", PRE_IMAGE_METHODS)
def test_every_method_of_pre_images_is_possible(method):
    settings = PreImageSettings.of_method(method)
    assert PreImageSettings.from_values(settings.to_values()) == settings


def test_published_settings():
    s1 = CounterfactualSettings.of_method("s1")
    assert (s1.fidelity_weight, s1.manifold_weight, s1.class_weight) == (1, 0.02, 0.1)
    assert (s1.layers, s1.generator, s1.steps, s1.start) == (("layer1",), "unet", 5000, "random")
    disc = CounterfactualSettings.of_method("disc")
    assert disc.progressive
    assert (disc.generator, disc.manifold) == ("inr", "loss-estimator")


def test_arms_differ_in_what_their_names_say():
    dip, inr = (CounterfactualSettings.of_method(f"lso-{name}") for name in ("dip", "inr"))
    assert (dip.generator, inr.generator) == ("unet", "inr")
    manifolds = {
        name: CounterfactualSettings.of_method(f"iso-inr{name}").manifold
        for name in ("", "-dep", "-duq", "-bn")
    }
    assert manifolds == {
        "": "none",
        "-dep": "loss-estimator",
        "-duq": "centroids",
        "-bn": "batch-statistics",
    }
    spaces = [CounterfactualSettings.of_method(f"{s}-tv").space for s in ("lso", "iso")]
    assert spaces == ["features", "image"]


def test_given_values_take_the_place_of_the_methods():
    settings = CounterfactualSettings.of_method("lso-inr", {"steps": 7, "generator": "unet"})
    assert (settings.steps, settings.generator, settings.method) == (7, "unet", "lso-inr")


@pytest.mark.parametrize(
    ("kind", "method", "values", "rate"),
    [
        (CounterfactualSettings, "lso-tv", {}, 5e-2),
        (CounterfactualSettings, "lso-tv", {"generator": "inr"}, 3e-4),
        (CounterfactualSettings, "lso-inr", {}, 3e-4),
        (CounterfactualSettings, "lso-inr", {"generator": "pixels"}, 5e-2),
        (CounterfactualSettings, "lso-inr", {"start": "random"}, 1e-3),
        (CounterfactualSettings, "lso-inr", {"generator": "pixels", "learning_rate": 0.2}, 0.2),
        (CounterfactualSettings, "disc", {}, 3e-4),
        (CounterfactualSettings, "s1", {}, 1e-3),
        (CounterfactualSettings, "s1", {"start": "fit"}, 3e-4),
        (CounterfactualSettings, "wachter", {}, 5e-2),
        (CounterfactualSettings, "pgd", {}, 2 / 255),
        (PreImageSettings, "dip", {}, 1e-3),
        (PreImageSettings, "dip", {"generator": "pixels"}, 5e-2),
        (PreImageSettings, "pixel-tv", {}, 5e-2),
        (PreImageSettings, "pixel-tv", {"generator": "inr"}, 1e-3),
    ],
)
def test_the_learning_rate_is_that_of_the_generator(kind, method, values, rate):
    assert kind.of_method(method, values).learning_rate == rate


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("lso", {}, "There is no method 'lso'"),
        ("lso-tv", {"progressive": True}, "pixels have one block"),
        ("lso-inr", {"optimiser": "sign"}, "for the generator pixels"),
        ("lso-inr", {"jitter": 2}, "jitter is for the generator pixels"),
        ("iso-tv", {"jitter": 2}, "give fidelity_weight 0"),
        ("lso-inr", {"manifold_weight": 1.0}, "without a manifold term"),
        ("lso-inr", {"radius": 0.5}, "but on optimiser sign"),
        ("lso-inr", {"class_probability": 0.5}, "but on class_loss probability"),
        (
            "wachter",
            {"class_probability": 0.5, "probability": 0.8},
            "probability has no effect where class_probability asks for what lies between",
        ),
        ("lso-inr", {"relaxation": 0.5}, "unless the fit is progressive"),
        ("lso-tv", {"fit_steps": 9}, "unless a network is fitted"),
        ("lso-tv", {"start": "random"}, "begin at the query"),
        ("lso-dip", {"width": 9}, "no such width"),
        ("lso-dip", {"frequency_std": 2.0}, "but on an implicit network"),
        ("lso-inr", {"norm_exponent": 6.0}, "without norm_weight"),
        ("lso-inr", {"seed": 10**20}, "seed"),
        ("iso-inr", {"layers": ("layer1",)}, "no meaning in image space"),
        ("lso-inr", {"distance": "l1"}, "give space image"),
        ("lso-inr", {"steps": 0}, "steps"),
        ("lso-inr", {"probability": 1.0}, "probability"),
        ("lso-inr", {"class_wight": 1.0}, "class_weight"),
    ],
)
def test_impossible_settings_are_refused(method, values, message):
    with pytest.raises(ConfigurationError, match=message):
        CounterfactualSettings.of_method(method, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distance": "l1"}, "features have"),
        ({"manifold": "centroids"}, "no target"),
        ({"maximise": "logits:1", "layers": ("layer1",)}, "activation is maximised"),
        ({"class_weight": 1.0}, "no setting 'class_weight'"),
    ],
)
def test_impossible_settings_of_pre_images_are_refused(values, message):
    with pytest.raises(ConfigurationError, match=message):
        PreImageSettings.of_method("dip", values)
