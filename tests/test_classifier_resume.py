"""A training of a classifier that is stopped, at any time, goes on to the same bits."""

from importlib import import_module

import h5py
import numpy as np
import pytest
import torch
from small_classifier import TASK

from dipct.errors import ConfigurationError, Interrupted
from dipct.pipeline import remove_checkpoint, train_classifier
from dipct.pretrain import CentroidTraining, ClassifierTraining, scene_images

PLAIN = {"steps": 25, "batch": 4, "side": 16, "architecture": "small-halved"}
SETTINGS = PLAIN | {"centroids": True}


@pytest.fixture(scope="module")
def images():
    return [scene_images(TASK, 40, seed=seed, labels_seed=None) for seed in (0, 1)]


@pytest.fixture(scope="module")
def whole(images):
    return train_classifier(*images, **SETTINGS)


@pytest.fixture
def stop(monkeypatch):
    """Make a training raise KeyboardInterrupt after so many more steps; undone by the result."""

    def prepare(kind, steps):
        original, done = kind.step, []

        def step(self, tensors):
            if len(done) == steps:
                raise KeyboardInterrupt
            done.append(None)
            return original(self, tensors)

        monkeypatch.setattr(kind, "step", step)
        return lambda: monkeypatch.setattr(kind, "step", original)

    return prepare


def same(one, other, parts=("model", "estimator", "centroids")):
    for part in parts:
        states = [getattr(each, part).state_dict() for each in (one, other)]
        assert states[0].keys() == states[1].keys()
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name]), f"{part}.{name}"
    assert one.history.keys() == other.history.keys()
    for name in one.history:
        np.testing.assert_array_equal(one.history[name], other.history[name])
    assert (one.accuracy, one.report, one.gate) == (other.accuracy, other.report, other.gate)


def test_stopped_in_the_training(images, whole, stop, tmp_path):
    path = tmp_path / "state"
    undo = stop(ClassifierTraining, 13)
    with pytest.raises(Interrupted, match=r"13 steps of the training; .* kept in .*--resume"):
        train_classifier(*images, checkpoint=path, **PLAIN)
    undo()
    found = train_classifier(*images, checkpoint=path, resume=True, **PLAIN)
    same(found, whole, ("model", "estimator"))


def test_stopped_in_the_fit_of_centroids(images, whole, stop, tmp_path):
    path = tmp_path / "state"
    for done in (0, 7, 150):
        undo = stop(CentroidTraining, done)
        with pytest.raises(Interrupted, match=r"steps of the fit of centroids; .*--resume"):
            train_classifier(*images, checkpoint=path, resume=done > 0, **SETTINGS)
        undo()
        # Not one step of the classifier is made again.
        stop(ClassifierTraining, 0)
    assert {each.name for each in tmp_path.iterdir()} == {"state", "state.centroids"}
    for name in ("state", "state.centroids"):
        with h5py.File(tmp_path / name, "a") as file:
            file.attrs["elapsed"] = 1000.0
    # Nor of the centroids.
    stop(CentroidTraining, 300 - 157)
    found = train_classifier(*images, checkpoint=path, resume=True, **SETTINGS)
    same(found, whole)
    assert repr(found.centroid_report) == repr(whole.centroid_report)
    # The time of all parts is counted.
    assert 2000 < found.duration_s < 2100
    remove_checkpoint(path)
    assert not list(tmp_path.iterdir())


def test_stopped_in_the_report(images, whole, stop, tmp_path, monkeypatch):
    def interrupting(*_, **__):
        raise KeyboardInterrupt

    path = tmp_path / "state"
    # The function has the name of its module.
    verb = import_module("dipct.pipeline.train_classifier")
    for checkpoint, message in ((None, "no checkpoint was asked for"), (path, "Go on with")):
        with monkeypatch.context() as patch:
            patch.setattr(verb, "report_head", interrupting)
            with pytest.raises(Interrupted, match=f"Stopped after the training; .*{message}"):
                train_classifier(*images, checkpoint=checkpoint, **PLAIN)
    stop(ClassifierTraining, 0)
    found = train_classifier(*images, checkpoint=path, resume=True, **PLAIN)
    same(found, whole, ("model", "estimator"))


def test_centroids_of_an_earlier_training_are_not_used(images, whole, stop, tmp_path):
    path = tmp_path / "state"
    undo = stop(CentroidTraining, 5)
    with pytest.raises(Interrupted):
        train_classifier(*images, checkpoint=path, **SETTINGS, seed=1)
    undo()
    undo = stop(ClassifierTraining, 13)
    with pytest.raises(Interrupted):
        train_classifier(*images, checkpoint=path, **SETTINGS)
    undo()
    same(train_classifier(*images, checkpoint=path, resume=True, **SETTINGS), whole)


def test_what_cannot_be_is_refused_before_the_training(images, stop):
    stop(ClassifierTraining, 0)
    with pytest.raises(ConfigurationError, match="299 are too few"):
        train_classifier(*images, **SETTINGS, centroid_steps=299)
    with pytest.raises(ConfigurationError, match="needs the name of the checkpoint"):
        train_classifier(*images, **SETTINGS, resume=True)
    with pytest.raises(ConfigurationError, match="two held-out images or more"):
        train_classifier(images[0], images[1].subset(np.arange(1)), **PLAIN)
