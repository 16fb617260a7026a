"""Several attributes of one model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dipct.errors import ConfigurationError
from dipct.objective import AttributeTargets, ClassProbabilities
from dipct.operator import LOGITS
from dipct.pipeline import attribute_targets, counterfactual, quantify_inversion
from dipct.pretrain import TrainedClassifier, write_trained_classifier
from dipct.uncertainty import UncertaintySettings

SHAPE = (3, 8, 8)
NAMES = ("red", "green", "blue")
SETTINGS = {
    "method": "lso-tv",
    "layers": ("model.stem",),
    "steps": 80,
    "learning_rate": 0.1,
    "class_weight": 3.0,
}


class Colours(nn.Module):
    """Whether an image is red, green and blue; red pulls green with it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.stem.weight.copy_(torch.eye(3)[:, :, None, None])
            self.stem.bias.zero_()
            self.head.weight.copy_(torch.tensor([[14.0, 0, 0], [8, 14, 0], [0, 0, 14]]))
            self.head.bias.copy_(torch.tensor([-7.0, -11, -7]))

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))


@pytest.fixture(scope="module")
def colours():
    return TrainedClassifier(
        model=Colours().eval(),
        architecture={"name": "colours"},
        image_shape=SHAPE,
        classes=NAMES,
        estimator=None,
        report=None,
        task={"kind": "own"},
        settings={},
        history={},
        duration_s=0.0,
        created="",
        versions={},
    )


def image():
    random = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    return np.float32(0.1) * random + np.float32([0.25, 0.45, 0.3])[:, None, None]


def probabilities(classifier, of):
    with torch.no_grad():
        return torch.sigmoid(classifier.model(torch.from_numpy(of)[None])[0]).tolist()


def test_the_softmax_of_an_attribute_is_its_sigmoid(colours):
    for number, name in enumerate(NAMES):
        one = colours.attribute(name)
        assert one.classes == (f"not {name}", name)
        with torch.no_grad():
            found = one.model(torch.from_numpy(image())[None]).softmax(-1)[0, 1]
        assert float(found) == pytest.approx(probabilities(colours, image())[number], abs=1e-6)


def test_to_keep_an_attribute_is_to_pin_its_probability(colours):
    """The divergence of one is its binary cross-entropy, but for a constant."""
    psi, own = (c.features([LOGITS]) for c in (colours, colours.attribute("green")))
    x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    wanted = torch.sigmoid(psi(torch.from_numpy(image())))
    pinned = AttributeTargets(psi, wanted, weights=torch.tensor([0.0, 1.0, 0.0])).value(x)
    p = torch.stack([1 - wanted[1], wanted[1]])
    kept = ClassProbabilities(own, p, name="green").value(x)
    entropy = F.binary_cross_entropy(wanted[1], wanted[1])
    assert torch.allclose(kept, pinned - entropy, atol=1e-5)


def test_one_attribute_changes_and_another_stays(colours):
    before = probabilities(colours, image())
    assert before[0] < 0.2 and before[2] < 0.3
    explained, others = attribute_targets(colours, "red", keep=["green"], also=["blue"], weight=3.0)
    (alone,) = counterfactual(explained, image(), 1, **SETTINGS)
    (found,) = counterfactual(explained, image(), 1, others=others, **SETTINGS)
    free, after = (probabilities(colours, each.image) for each in (alone, found))
    assert alone.valid and found.valid and after[0] > 0.5
    assert free[2] < 0.5 < after[2]
    assert abs(after[1] - before[1]) < 0.5 * abs(free[1] - before[1])
    assert found.class_name(found.target) == "red"


def test_attributes_are_named_once_and_rightly(colours):
    _, others = attribute_targets(colours, "red", also=["not blue"])
    assert [other.target for other in others] == [0]
    for wrong in ({"also": ["red"]}, {"also": ["blue"], "keep": ["blue"]}, {"keep": ["0"]}):
        with pytest.raises(ConfigurationError, match="to change or to stay, once"):
            attribute_targets(colours, "red", **wrong)
    with pytest.raises(ConfigurationError, match="no class 'yellow'"):
        attribute_targets(colours, "red", also=["not yellow"])


def test_the_uncertainty_is_that_of_the_attribute(colours):
    explained, _ = attribute_targets(colours, "red")
    fast = {"layers": ("model.stem",), "width": 8, "fit_steps": 60, "steps": 20}
    (found,) = counterfactual(explained, image(), 1, method="lso-inr", **fast)
    settings = UncertaintySettings(samples=4, iterations=2)
    one, other = (quantify_inversion(each, found, settings) for each in (colours, explained))
    assert one.uncertainty["layers"] == ["model.stem"]
    assert one.scores["samples_in_target"] == other.scores["samples_in_target"]
    assert np.array_equal(one.std, other.std)
    with pytest.raises(ConfigurationError, match="not the classifier that was inverted"):
        quantify_inversion(colours.attribute("green"), found, settings)


def test_what_was_kept_of_one_attribute_is_not_resumed_for_another(colours, tmp_path):
    kept = {"checkpoint": tmp_path, **SETTINGS}
    counterfactual(colours.attribute("red"), image(), 1, **kept)
    with pytest.raises(ConfigurationError, match="belongs to other data or options"):
        counterfactual(colours.attribute("blue"), image(), 1, resume=True, **kept)


def test_attributes_may_be_named_by_digits(colours):
    named = replace(colours, classes=("2", "0", "1"))
    explained = named.attribute("0")
    fast = {"layers": ("model.stem",), "width": 8, "fit_steps": 20, "steps": 5}
    (found,) = counterfactual(explained, image(), 1, method="lso-inr", **fast)
    settings = UncertaintySettings(samples=4, iterations=2)
    one, other = (quantify_inversion(each, found, settings) for each in (named, explained))
    assert np.array_equal(one.std, other.std)


def test_files_hold_whole_models(colours, tmp_path):
    with pytest.raises(ConfigurationError, match="write the classifier that this attribute is of"):
        write_trained_classifier(colours.attribute("red"), tmp_path / "red.h5")
