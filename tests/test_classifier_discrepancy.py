"""Classifier discrepancy: what can be learned from counterfactuals."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dipct.errors import ConfigurationError, ConvergenceError, DataError, ShapeError
from dipct.phantom import FaceTask
from dipct.pretrain import (
    ClassifierTrainingSettings,
    OverSeeds,
    classifier_discrepancy,
    make_classifier,
)

SIDE = 8
SETTINGS = ClassifierTrainingSettings(steps=30, batch=24, learning_rate=8e-3, flip=False, shift=0)


@pytest.fixture(scope="module")
def faces():
    """Images of both classes, and test images with labels."""
    task = FaceTask(2 * SIDE, attribute="bald", label_noise=0.0)
    scenes = task.sample(260, seed=0)
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    images = torch.nn.functional.avg_pool2d(images, 2)
    labels = torch.from_numpy(task.labels(scenes, seed=0))
    first, test = slice(0, 180), slice(180, None)
    return {
        "sources": images[first][labels[first] == 0],
        "targets": images[first][labels[first] == 1],
        "test_images": images[test],
        "test_labels": labels[test],
    }


class Knowing(torch.nn.Module):
    """Bald heads are bright on top: right more often than not, in the second of three classes."""

    def forward(self, x):
        top = x[:, :, 1:3, 3:5].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(top), top - 0.4, torch.full_like(top, 99.0)], 1)


def measured(faces, **changes):
    values = {"least": 40, "seeds": (0, 1), "settings": SETTINGS, **faces, **changes}
    return classifier_discrepancy(values.pop("classifier", Knowing()), **values)


def test_real_images_of_the_class_leave_no_gap(faces):
    targets = faces["targets"]
    found = measured(faces, counterfactuals=targets.clone(), reconstructions=faces["sources"])
    assert found.matched.values == (0.0, 0.0)
    assert found.matched_reconstructed.values == (0.0, 0.0)
    assert found.accuracy_control == found.accuracy_counterfactual == found.accuracy_reconstructed
    # The seeds are of other trainings.
    assert found.accuracy_control.std > 0
    assert found.accuracy_control.mean > 0.7
    assert found.counterfactuals == len(targets)
    assert found.test_images == len(faces["test_images"])
    assert found.seeds == (0, 1)
    for gap, other in zip(found.full.values, found.accuracy_counterfactual.values, strict=True):
        assert gap == pytest.approx(found.accuracy - other)


def test_noise_teaches_nothing(faces):
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(faces["targets"].shape, generator=random)
    found = measured(faces, counterfactuals=noise, seeds=(0,))
    assert found.matched.mean > 0.2
    assert found.matched_reconstructed is None
    assert found.accuracy_reconstructed is None
    # Every face is of the first class to it.
    share = float((faces["test_labels"] == 0).double().mean())
    assert found.accuracy_counterfactual.mean == pytest.approx(share, abs=0.1)


def test_what_the_generator_leaves_on_images_is_seen_with_reconstructions(faces):
    def marked(images):
        found = images.clone()
        found[:, :, -2:, -2:] = 1.0
        return found

    # Right edits that a mark tells from real images.
    found = measured(
        faces,
        counterfactuals=marked(faces["targets"]),
        reconstructions=marked(faces["sources"]),
        seeds=(0,),
    )
    assert found.matched_reconstructed.mean < found.matched.mean - 0.1
    assert math.isnan(found.matched.std)


def test_only_the_logits_of_the_pair_count(faces):
    values = {"counterfactuals": faces["targets"], "seeds": (0,)}
    settings = replace(SETTINGS, steps=1)
    found = measured(faces, settings=settings, **values)
    top = faces["test_images"][:, :, 1:3, 3:5].mean((1, 2, 3))
    is_right = (top > 0.4) == (faces["test_labels"] == 1)
    assert found.accuracy == pytest.approx(float(is_right.double().mean()))
    other = measured(
        {**faces, "test_labels": 1 - faces["test_labels"]}, settings=settings, pair=(1, 0), **values
    )
    assert other.accuracy == pytest.approx(1 - found.accuracy)


def test_the_control_of_an_earlier_call_stands_for_its_training(faces):
    values = {"counterfactuals": faces["targets"], "settings": replace(SETTINGS, steps=3)}
    found = measured(faces, **values)
    control = found.accuracy_control.values
    assert measured(faces, **values, control=control) == found
    wrong = measured(faces, **values, control=[each + 0.1 for each in control])
    assert wrong.matched.mean == pytest.approx(found.matched.mean + 0.1)


def test_seeds_give_mean_and_standard_deviation():
    found = OverSeeds.of([0.25, 0.5, 0.75])
    assert (found.mean, found.std) == (0.5, 0.25)
    assert math.isnan(OverSeeds.of([0.5]).std)


def test_the_classifier_explained_stays_as_it_is(faces):
    model = make_classifier("small", classes=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = replace(SETTINGS, steps=1)
    values = {"counterfactuals": faces["targets"], "seeds": (0,), "settings": settings}
    measured(faces, classifier=model, **values)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"least": 300}, ConfigurationError, "needs 300 counterfactuals or more; got 50"),
        ({"counterfactuals": torch.zeros(50, 1, SIDE, SIDE)}, ShapeError, "like the"),
        ({"targets": torch.zeros(49, 3, SIDE, SIDE)}, ConfigurationError, "as many targets"),
        ({"reconstructions": torch.zeros(9, 3, SIDE, SIDE)}, ConfigurationError, "as many recon"),
        ({"sources": torch.full((50, 3, SIDE, SIDE), math.nan)}, DataError, "sources hold"),
        ({"test_labels": torch.zeros(3).long()}, ShapeError, "one label each"),
        ({"test_labels": torch.zeros(80).long()}, ConfigurationError, "of both classes"),
        ({"pair": (0, 3)}, ConfigurationError, "of both classes 0 and 3"),
        ({"pair": (1, 1)}, ConfigurationError, "two classes"),
        ({"seeds": ()}, ConfigurationError, "each once"),
        ({"seeds": (1, 1)}, ConfigurationError, "each once"),
        ({"control": (0.5,)}, ConfigurationError, "each of 2 seeds; got 1"),
        ({"architecture": "large"}, ConfigurationError, "one of resnet18, small"),
    ],
)
def test_what_cannot_be_measured_is_refused(faces, changes, error, message):
    with pytest.raises(error, match=message):
        measured(faces, **{"counterfactuals": faces["targets"][:50], **changes})


def test_a_pair_that_the_classifier_does_not_have_is_refused(faces):
    labels = 3 * faces["test_labels"]
    with pytest.raises(ConfigurationError, match="classes from 0 to 2"):
        measured(
            {**faces, "test_labels": labels}, counterfactuals=faces["targets"][:50], pair=(0, 3)
        )


def test_a_training_that_diverges_is_no_result(faces):
    settings = replace(SETTINGS, learning_rate=1e30, steps=4)
    with pytest.raises(ConvergenceError, match="smaller learning_rate"):
        measured(faces, counterfactuals=faces["targets"], settings=settings)
