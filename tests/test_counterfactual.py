"""The verb counterfactual, from a classifier and queries to results and files."""

import json
import logging
import math
import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from small_classifier import TASK, queries, small_classifier
from torch import nn

from dipct.classifier import CentroidHead
from dipct.errors import ConfigurationError, DataError, FileFormatError, Interrupted, ShapeError
from dipct.figures import classifier_figure, counterfactual_figure, save_figure
from dipct.inversion import (
    Counterfactual,
    read_counterfactual,
    read_pre_image,
    write_inversion,
)
from dipct.inversion_settings import COUNTERFACTUAL_METHODS, CounterfactualSettings
from dipct.objective import DataTerm, GaussianFidelity
from dipct.operator import LinearOperator
from dipct.pipeline import OtherClassifier, counterfactual, pre_image
from dipct.pipeline.counterfactual_problem import counterfactual_fit, counterfactual_problem
from dipct.pipeline.counterfactual_result import known_scores
from dipct.pipeline.inversion_terms import feature_operator, fidelity_layers
from dipct.pipeline.query_generator import query_generator
from dipct.pretrain import (
    CentroidReport,
    HeadReport,
    make_classifier,
    make_loss_estimator,
    read_trained_classifier,
    write_trained_classifier,
)
from dipct.solver import GeneratorFit, iterate

FAST_PIXELS = {"steps": 30}
FAST = {"steps": 30, "fit_steps": 20, "width": 8, "learning_rate": 5e-3, "class_weight": 0.3}


def explain(method="lso-inr", number=2, classifier=None, images=None, **settings):
    classifier = classifier or small_classifier()
    own = COUNTERFACTUAL_METHODS[method].get("generator", "inr")
    fast = FAST_PIXELS if own == "pixels" else FAST
    fast = {name: value for name, value in fast.items() if name != "width" or own != "unet"}
    images = queries()[1][:number] if images is None else images
    return counterfactual(classifier, images, 1, method=method, **fast | settings)


@pytest.fixture
def no_steps(monkeypatch):
    """Whatever is fitted fails."""

    def step(self, tensors):
        raise AssertionError("A step was made.")

    monkeypatch.setattr(GeneratorFit, "step", step)


class Colours(LinearOperator):
    """All pixels of all channels, as they are."""

    def __init__(self, shape):
        self.domain_shape = self.range_shape = shape

    def _apply(self, x):
        return x.clone()

    def _apply_adjoint(self, y):
        return y.clone()


def seen(images):
    with torch.no_grad():
        return small_classifier().model(torch.from_numpy(images)).softmax(-1)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lso-tv", {"learning_rate": 0.1}),
        ("lso-inr", {}),
        ("lso-dip-dep", {}),
        ("lso-deep-decoder", {}),
        ("iso-inr", {}),
        ("iso-inr-bn", {"manifold_weight": 1e-3}),
        ("disc", {}),
        ("wachter", {"learning_rate": 0.1, "class_weight": 1.0}),
        ("pgd", {"learning_rate": 0.02, "radius": 0.2, "class_weight": 1.0}),
        ("deep-dream", {"learning_rate": 0.1, "class_weight": 1.0}),
        ("deep-inversion", {"learning_rate": 0.1, "class_weight": 1.0}),
    ],
)
def test_every_kind_of_method_gives_what_it_says(method, settings):
    images = queries()[1][:2]
    for query, found in zip(images, explain(method, **settings), strict=True):
        assert np.array_equal(found.query, query)
        assert found.image.shape == query.shape
        assert found.image.min() >= 0
        assert found.image.max() <= 1
        probabilities = seen(found.image[None])[0]
        assert found.valid == (int(probabilities.argmax()) == 1)
        assert found.p_target == pytest.approx(float(probabilities[1]), abs=1e-4)
        assert found.confident == (found.valid and found.p_target >= 0.9)
        assert found.predicted == 0
        assert found.p_target_query == pytest.approx(float(seen(query[None])[0, 1]), abs=1e-5)
        assert found.reason
        assert found.scores["mse"] == pytest.approx(float(np.mean((found.image - query) ** 2)))
        assert set(found.history["iteration"]) == {0, 10, 20, 30}
        assert "class" in found.history


def test_more_weight_on_the_class_makes_it_valid_and_less_does_not():
    easy = explain("lso-tv", number=1, learning_rate=0.1, class_weight=3.0)[0]
    hard = explain("lso-tv", number=1, learning_rate=0.1, class_weight=0.0)[0]
    assert easy.confident
    assert "probability" in easy.reason
    assert not hard.valid
    assert "Not in the target class" in hard.reason
    assert hard.p_target < easy.p_target


GRADED = {"class_loss": "probability", "learning_rate": 0.1, "class_weight": 300.0, "steps": 60}


@pytest.mark.parametrize("wanted", [0.3, 0.6])
def test_what_lies_between_two_classes_has_the_probability_that_was_asked_for(wanted):
    (found,) = explain("lso-tv", number=1, class_probability=wanted, **GRADED)
    p = float(seen(found.image[None])[0, 1])
    assert found.p_target == pytest.approx(p, abs=1e-4)
    assert abs(p - wanted) <= 0.05
    assert found.valid and found.confident
    assert f"for the {wanted} that was asked for" in found.reason
    (far,) = explain("lso-tv", number=1, class_probability=wanted, **GRADED | {"class_weight": 0.0})
    assert not far.valid and not far.confident
    assert "not within 0.05 of it" in far.reason


# Convolutions of a batch round otherwise, which Adam carries on, the further the more steps.
FEW = {"steps": 6, "fit_steps": 6}


@pytest.mark.parametrize(
    ("method", "settings"),
    [("lso-tv", {}), ("lso-inr", {}), ("lso-dip-dep", FEW), ("lso-deep-decoder", {}), ("disc", {})],
)
def test_a_batch_is_its_queries_one_by_one(method, settings):
    together = explain(method, number=3, **settings)
    for i, found in enumerate(together):
        (alone,) = explain(method, images=queries()[1][i], **settings)
        assert np.abs(alone.image - found.image).max() < 5e-3
        assert alone.valid == found.valid
    assert np.abs(together[0].image - together[1].image).max() > 0.05


@pytest.mark.parametrize("method", ["lso-inr-dep", "lso-dip-dep", "lso-deep-decoder-dep", "disc"])
def test_a_batch_is_its_queries_one_by_one_to_the_last_digits(method):
    settings = CounterfactualSettings.of_method(method, {"steps": 10, "learning_rate": 1e-2})
    trained, images = small_classifier(), torch.from_numpy(queries()[1]).double()
    layers = fidelity_layers(trained, settings)
    cpu = torch.device("cpu")
    operator = feature_operator(trained, layers, settings, cpu).to(dtype=torch.float64)
    generator = query_generator(settings, operator.domain_shape).to(dtype=torch.float64)
    initial = generator.initial(0).double().expand(3, -1)

    def fitted(which):
        count = torch.full((len(which),), 1)
        problem = counterfactual_problem(
            trained, operator, images[which], 0 * count, count, settings
        )
        fit = counterfactual_fit(problem, generator, initial[which], images[which], settings)
        return generator(iterate(fit, max_iterations=10).state.tensors["theta"])

    together = fitted([0, 1, 2])
    for i in range(3):
        assert torch.allclose(fitted([i])[0], together[i], rtol=0, atol=1e-9)
        assert (together[i] - together[i - 1]).abs().max() > 1e-3


def test_the_figure_of_a_progressive_fit_has_the_weights_of_its_stages():
    (found,) = explain("disc", number=1, relaxation=0.5)
    relaxed = 0.5 ** (found.history["stage"] - 1)
    assert relaxed[0] == 1 and relaxed[-1] == 0.5**4
    (axes,) = [
        axes for axes in counterfactual_figure(found).axes if axes.get_ylabel() == "weighted terms"
    ]
    drawn = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    wanted = relaxed * found.history["features"]
    assert np.allclose(drawn["features"][wanted > 0], wanted[wanted > 0])
    assert np.allclose(drawn["class"], found.weights["class"] * found.history["class"])
    assert not any(name.startswith(("weight", "p target", "stage")) for name in drawn)


def test_nothing_changes_outside_a_region():
    region = np.zeros((16, 16), dtype=bool)
    region[:8] = True
    for found in explain(region=region):
        assert np.array_equal(found.image[:, ~region], found.query[:, ~region])
        assert not np.array_equal(found.image[:, region], found.query[:, region])
    free = explain()[0]
    assert not np.array_equal(free.image[:, ~region], free.query[:, ~region])


def test_another_classifier_can_keep_its_mind():
    """Here the same one, which cannot change its mind and keep it: with a large weight it keeps."""
    weak = explain(others=[OtherClassifier(small_classifier(), None, 1e-6)])[0]
    strong = explain(others=[OtherClassifier(small_classifier(), None, 100.0)])[0]
    assert strong.history["p_target"][-1] < weak.history["p_target"][-1]
    name = "other 1: not bald or bald"
    # Its own class, of two.
    assert strong.scores["other_1_probability"] == pytest.approx(1 - strong.p_target, abs=1e-4)
    before = strong.scores["other_1_probability_query"]
    assert before == pytest.approx(1 - strong.p_target_query, abs=1e-4)
    two = [OtherClassifier(small_classifier(), None, 1.0)] * 2
    assert "other_2_probability" in explain(number=1, others=two, steps=2)[0].scores
    assert strong.history[name][-1] < weak.history[name][-1]
    helped = explain(others=[OtherClassifier(small_classifier(), 1, 10.0)])[0]
    assert helped.history["p_target"][-1] > weak.history["p_target"][-1]
    with pytest.raises(ConfigurationError, match="classes 0 to 1"):
        explain(others=[OtherClassifier(small_classifier(), 2)])


def test_a_measurement_holds_the_image_where_it_was_measured():
    """Of the identity with little noise: what was measured cannot be edited."""
    query = torch.from_numpy(queries()[1][0])
    measured = DataTerm(Colours(tuple(query.shape)), GaussianFidelity(query, 1e-3))
    options = {"number": 1, "learning_rate": 0.1, "class_weight": 1.0}
    bound = explain("lso-tv", measurement=measured, **options)[0]
    free = explain("lso-tv", **options)[0]
    assert bound.scores["mse"] < 0.05 * free.scores["mse"]
    assert "fidelity" in bound.history


def test_parameters_of_an_earlier_fit_are_the_start(tmp_path):
    (found,) = explain(number=1)
    theta = torch.from_numpy(found.generator["theta"])[None]
    folder = tmp_path / "stages"
    (again,) = explain(number=1, initial=theta, checkpoint=folder)
    assert not any(path.name.startswith("start") for path in folder.iterdir())
    assert again.history["class"][0] == pytest.approx(-math.log(found.p_target), abs=1e-4)
    (fitted,) = explain(number=1, checkpoint=folder)
    assert any(path.name.startswith("start") for path in folder.iterdir())
    assert np.array_equal(fitted.image, found.image)


def test_a_stopped_fit_goes_on_exactly(tmp_path, monkeypatch):
    from dipct.pipeline import inversion

    whole = explain(number=1)[0]
    calls = 0

    class Stop:
        def __init__(self, keep):
            self.keep = keep

        def __call__(self, state):
            nonlocal calls
            calls += 1
            if calls == 5:
                raise KeyboardInterrupt

    folder = tmp_path / "stages"
    with monkeypatch.context() as patched:
        patched.setattr(inversion, "_Keeper", Stop)
        with pytest.raises(Interrupted, match="--resume"):
            explain(number=1, checkpoint=folder)
    resumed = explain(number=1, checkpoint=folder, resume=True)[0]
    assert np.array_equal(resumed.image, whole.image)
    assert all(np.array_equal(resumed.history[n], whole.history[n]) for n in whole.history)
    with pytest.raises(ConfigurationError, match="nothing to resume"):
        explain(number=1, checkpoint=tmp_path / "none", resume=True)


def test_without_a_target_it_is_the_most_probable_other_class():
    values = {"method": "lso-tv", "steps": 3}
    found = counterfactual(small_classifier(), queries()[1], **values)
    assert [each.target for each in found] == [1, 1, 1]
    three = replace(small_classifier(), classes=("a", "b", "c"))
    model = torch.nn.Sequential(three.model, torch.nn.Linear(2, 3))
    with torch.no_grad():
        # The second of three classes is the third.
        model[1].weight.copy_(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [1.0, 0.0]]))
        model[1].bias.zero_()
        logits = three.model(torch.from_numpy(queries()[1]))
    assert (logits[:, 0] > 0).all()
    three = replace(three, model=model, estimator=None, report=None)
    found = counterfactual(three, queries()[1], layers=("0.layer1",), **values)
    assert [each.target for each in found] == [2, 2, 2]


def test_what_was_kept_for_other_options_or_another_measurement_is_refused(tmp_path):
    query = torch.from_numpy(queries()[1][0])
    measured, other = (
        DataTerm(Colours(tuple(query.shape)), GaussianFidelity(data, 0.1))
        for data in (query, 1 - query)
    )
    common = {"number": 1, "learning_rate": 0.1, "checkpoint": tmp_path / "s"}
    (found,) = explain("lso-tv", measurement=measured, steps=10, **common)
    for change in ({"measurement": other}, {"measurement": measured, "class_weight": 0.5}):
        with pytest.raises(ConfigurationError, match="belongs to other data or options"):
            explain("lso-tv", steps=10, resume=True, **change, **common)
    (again,) = explain("lso-tv", measurement=measured, steps=10, resume=True, **common)
    assert np.array_equal(again.image, found.image)


def test_patience_ends_each_query_by_itself():
    options = {"method": "lso-tv", "patience": 1, "learning_rate": 0.1, "class_weight": 1.0}
    together = explain(number=3, **options)
    for i, found in enumerate(together):
        (alone,) = counterfactual(small_classifier(), queries()[1][i], 1, **FAST_PIXELS | options)
        assert alone.chosen_step == found.chosen_step
        # Adam steps by signs at first, those of tiny gradients too.
        assert np.abs(alone.image - found.image).mean() < 1e-3
        assert np.abs(alone.image - alone.query).mean() > 1e-2


def test_the_ball_of_sign_steps_is_around_the_query():
    query = queries()[1][0]
    inside = torch.from_numpy(query).flatten()[None].clamp(0.1, 0.9)
    (found,) = explain("pgd", number=1, radius=0.15, learning_rate=0.05, initial=inside)
    assert np.abs(found.image - query).max() <= 0.15 + 1e-6


def test_low_frequencies_make_smooth_edits():
    smooth, rough = (
        explain(number=1, frequency_std=std, steps=10, fit_steps=40)[0].image for std in (0.5, 4.0)
    )
    step = [np.abs(np.diff(image, axis=2)).mean() for image in (smooth, rough)]
    assert step[0] < step[1]


def test_the_seed_decides():
    one, same, other = (explain(number=1, seed=seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(one.image, same.image)
    assert not np.array_equal(one.image, other.image)


def test_the_classifier_is_left_as_it_was():
    model = small_classifier().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    explain("lso-inr-dep")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(module._forward_hooks for module in model.modules())


def test_known_counterfactuals_score_best():
    scenes, images = queries()
    for scene, query in zip(scenes, images, strict=True):
        true = TASK.counterfactual(scene, 1, seed=0).image
        truth = TASK.true_counterfactuals(scene, 1, draws=4)
        scores, nearest = known_scores(query, true, truth)
        assert scores["normalised_mass_accuracy"] > 0.95
        assert scores["direction"] == pytest.approx(1)
        assert scores["psnr_gain_db"] == math.inf
        assert np.array_equal(nearest, true)
        assert truth.may.any()
        noise = np.random.default_rng(0).standard_normal((20, *query.shape)).astype(np.float32)
        wrong = [known_scores(query, query + 0.05 * each, truth)[0] for each in noise]
        for name, most in (("normalised_mass_accuracy", 0.05), ("direction", 0.1)):
            assert abs(np.mean([each[name] for each in wrong])) < most


def test_an_adversarial_image_scores_far_below_the_true_counterfactual():
    scenes, images = queries(6)
    attacked = explain("pgd", images=images, radius=0.1, learning_rate=0.01, steps=40)
    pairs = list(zip(scenes, attacked, strict=True))
    # The classifier is fooled, so that its probability does not tell the two apart.
    fooled = [(scene, found) for scene, found in pairs if found.confident]
    assert len(fooled) > len(pairs) / 2
    for scene, found in fooled:
        right = TASK.true_counterfactuals(scene, 1, draws=4)
        true = TASK.counterfactual(scene, 1, seed=0).image
        of_attack, of_truth = (
            known_scores(found.query, image, right)[0] for image in (found.image, true)
        )
        name = "normalised_mass_accuracy"
        assert of_attack[name] < 0.25 < 0.95 < of_truth[name]
        assert of_attack["direction"] < 0.25 < 0.95 < of_truth["direction"]
        assert of_attack["psnr_gain_db"] < 0 < of_truth["psnr_gain_db"]


def test_files_hold_all_of_it(tmp_path):
    found = replace(
        explain(number=1)[0], truth=queries()[1][1], region=np.ones((16, 16), dtype=bool)
    )
    path = tmp_path / "cf.h5"
    write_inversion(found, path)
    again = read_counterfactual(path)
    for name in ("query", "image", "truth", "region", "difference"):
        assert np.array_equal(getattr(again, name), getattr(found, name)), name
    for name in (*Counterfactual.attributes, "source", "created", "duration_s"):
        assert getattr(again, name) == getattr(found, name), name
    assert dict(again.scores) == pytest.approx(dict(found.scores), nan_ok=True)
    assert np.array_equal(again.generator["theta"], found.generator["theta"])
    with h5py.File(path) as file:
        assert file["counterfactual"].attrs["valid"] == found.valid
        assert np.allclose(file["counterfactual/difference"], found.image - found.query)
    summary = json.loads(path.with_suffix(".json").read_text())
    assert summary["p_target"] == found.p_target
    with pytest.raises(FileFormatError, match="pre-image"):
        read_pre_image(path)
    path.write_bytes(b"nothing")
    with pytest.raises(FileFormatError):
        read_counterfactual(path)


def test_names_of_classes_may_hold_any_letters(tmp_path):
    classes = ("not/bald, 10%2F", "a $x^$/../bald")
    named = replace(small_classifier(), classes=classes)
    (found,) = explain("lso-tv", 1, named, others=[OtherClassifier(named)], steps=3)
    path = tmp_path / "cf.h5"
    write_inversion(found, path)
    again = read_counterfactual(path)
    assert f"other 1: {' or '.join(classes)}" in again.history
    assert set(again.history) == set(found.history)
    assert again.class_name(1) == classes[1]
    assert json.loads(path.with_suffix(".json").read_text())["valid"] == found.valid
    save_figure(counterfactual_figure(again), tmp_path / "cf.png")
    assert (tmp_path / "cf.png").stat().st_size > 0
    write_trained_classifier(named, tmp_path / "clf.h5")
    assert read_trained_classifier(tmp_path / "clf.h5").classes == classes
    save_figure(classifier_figure(named), tmp_path / "clf.png")
    assert {each.name for each in tmp_path.iterdir()} == {
        *("cf.h5", "cf.json", "cf.png", "clf.h5", "clf.png")
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": np.zeros((3, 8, 8), np.float32)}, ShapeError, r"images \(3, 16, 16\)"),
        ({"queries": np.zeros((1, 16, 16), np.float32)}, ShapeError, r"got \(1, 16, 16\)"),
        ({"queries": np.full((3, 3, 16, 16), 99.0)}, DataError, "Divide bytes by 255"),
        ({"queries": np.full((3, 16, 16), np.nan)}, DataError, "finite"),
        ({"measurement_weight": 2.0}, ConfigurationError, "without a measurement"),
        ({"targets": 1.7}, ConfigurationError, "numbers of classes"),
        ({"targets": "bald"}, ConfigurationError, "numbers of classes"),
        ({"initial": torch.zeros(5)}, ShapeError, "initial parameters"),
        ({"region": np.ones((2, 16, 16), bool)}, ShapeError, "true or false"),
        (
            {"method": "deep-inversion", "region": np.ones((16, 16), bool)},
            ConfigurationError,
            "moves with it",
        ),
        ({"targets": 2}, ConfigurationError, "0 not bald, 1 bald"),
        ({"targets": 0}, ConfigurationError, "sees 'not bald' in queries 0, 1, 2 already"),
        (
            {"targets": 0, "class_loss": "probability", "class_probability": 0.99},
            ConfigurationError,
            "'not bald' a probability within 0.05 of 0.99 in queries 0, 1, 2 already",
        ),
        ({"targets": [1, 1]}, ShapeError, "one for each of 3"),
        ({"method": "disc", "steps": 2}, ConfigurationError, "5 blocks needs 5 steps"),
        ({"layers": ("layer9",)}, ConfigurationError, "Near names: layer"),
        ({"method": "lso-inr-duq"}, ConfigurationError, "no centroids"),
        ({"region": np.zeros((16, 16), bool)}, ConfigurationError, "nowhere for \\[0, 1, 2\\]"),
    ],
)
def test_wrong_input_is_refused_before_any_work(change, error, message, no_steps):
    values = {"queries": queries()[1], "targets": 1, "method": "lso-inr", **change}
    with pytest.raises(error, match=message):
        counterfactual(small_classifier(), **values)


class Wrapped(nn.Module):
    """The classifier, with something done to its logits."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = small_classifier().model, change

    def forward(self, x):
        return self.change(self.inner(x))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda y: y[:, :, None, None], ShapeError, r"logits \[N K\].* gave \(2, 2, 1, 1\)"),
        (lambda y: y[:, 0], ShapeError, r"gave \(2,\)"),
        (lambda y: {"logits": y}, ShapeError, "gave dict"),
        (lambda y: y[:, [0, 1, 1]], ShapeError, "3 logits, .* the 2 classes not bald, bald"),
        (lambda y: y[:, :1], ShapeError, "1 logits"),
    ],
    ids=["maps", "one number", "a dictionary", "a class too many", "a class too few"],
)
@pytest.mark.parametrize("verb", ["counterfactual", "pre_image"])
def test_logits_of_another_shape_are_refused(change, error, message, verb, no_steps):
    wrapped = replace(small_classifier(), model=Wrapped(change).eval(), estimator=None)
    with pytest.raises(error, match=message):
        if verb == "counterfactual":
            explain("lso-tv", classifier=wrapped, layers=("inner.layer1",))
        else:
            pre_image(wrapped, queries()[1], method="pixel-tv", layers=("inner.layer1",), steps=9)


@pytest.mark.parametrize(
    ("method", "head", "message"),
    [
        (
            "lso-inr-dep",
            {"estimator": lambda: make_loss_estimator(make_classifier("resnet18", classes=2))},
            r"takes stages of \[64.* made for another classifier",
        ),
        (
            "lso-inr-duq",
            {"centroids": lambda: CentroidHead(64, 2)},
            r"of 64 features and layer .* has 128: they were made for another classifier",
        ),
        (
            "lso-inr-duq",
            {"centroids": lambda: CentroidHead(128, 3)},
            "of 3 classes and the model has 2: they were made for another classifier",
        ),
    ],
)
def test_a_head_of_another_classifier_is_refused(method, head, message, no_steps):
    other = replace(small_classifier(), **{name: make() for name, make in head.items()})
    with pytest.raises(ConfigurationError, match=message):
        explain(method, classifier=other)


def test_another_classifier_of_other_images_is_refused(no_steps):
    grey = replace(
        small_classifier(),
        model=make_classifier("small", classes=2, in_channels=1).eval(),
        image_shape=(1, 16, 16),
    )
    with pytest.raises(ShapeError, match=r"takes images \(1, 16, 16\).*queries are \(3, 16, 16\)"):
        explain("lso-tv", others=[OtherClassifier(grey)])


def test_heads_that_are_missing_or_weak_are_told(caplog):
    headless = replace(small_classifier(), estimator=None, report=None)
    with pytest.raises(ConfigurationError, match="no loss estimator"):
        explain("lso-inr-dep", classifier=headless)
    weak = replace(small_classifier(), report=HeadReport(0.9, 0.1, 0.5, 0.5))
    strong = replace(small_classifier(), report=HeadReport(0.9, 0.8, 0.8, 0.8))
    with caplog.at_level(logging.WARNING, logger="dipct"):
        explain("lso-inr-dep", number=1, classifier=strong, steps=5)
        assert "rank correlation" not in caplog.text
        explain("lso-inr-dep", number=1, classifier=weak, steps=5)
    assert "rank correlation 0.10" in caplog.text


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (None, "no report"),
        (CentroidReport(0.9, 0.5, 0.6), r"AUROC 0\.50 .* and 0\.60"),
        (CentroidReport(0.9, 0.8, 0.6), ""),
    ],
    ids=["none", "weak", "strong"],
)
def test_centroids_that_are_weak_are_told(report, message, caplog):
    torch.manual_seed(0)
    trained = replace(
        small_classifier(), centroids=CentroidHead(128, 2).eval(), centroid_report=report
    )
    with caplog.at_level(logging.WARNING, logger="dipct"):
        explain("lso-tv-duq", number=1, classifier=trained, steps=1)
    assert ("The centroids have" in caplog.text) == bool(message)
    assert re.search(message, caplog.text)
