"""A loss estimator for a classifier that stays as it is."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small_classifier import TASK, queries, small_classifier

from dipct.classifier import STAGES
from dipct.classifier_settings import ClassifierSettings
from dipct.errors import ConfigurationError, ShapeError
from dipct.phantom import FaceTask
from dipct.pipeline import (
    counterfactual,
    open_classifier,
    open_labelled,
    train_loss_estimator,
)
from dipct.pretrain import (
    read_trained_classifier,
    scene_images,
    write_trained_classifier,
)

SOURCE = "from dipct.classifier import small_resnet\n\n\ndef model():\n    return small_resnet(2)\n"
FAST = {"steps": 30, "batch": 16, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A module that makes a model, and weights of it."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "their_faces.py").write_text(SOURCE)
    torch.save(small_classifier().model.state_dict(), folder / "weights.pt")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("their_faces", None)


@pytest.fixture(scope="module")
def own(package):
    return open_classifier(
        "their_faces:model", weights=package / "weights.pt", image_shape=(3, 16, 16)
    )


@pytest.fixture(scope="module")
def images():
    return [
        scene_images(TASK, number, seed=seed, labels_seed=None)
        for number, seed in ((60, 5), (40, 6))
    ]


@pytest.fixture(scope="module")
def trained(own, images):
    return train_loss_estimator(own, *images, **FAST)


def test_the_model_stays_and_the_estimator_learns_to_rank(own, images, trained):
    for one, other in zip(own.model.parameters(), trained.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(own.model.buffers(), trained.model.buffers(), strict=True):
        assert torch.equal(one, other)
    assert own.estimator is None
    assert trained.stages == STAGES
    assert trained.classes == ("not bald", "bald")
    assert trained.accuracy == trained.report.accuracy > 0.9
    assert np.isfinite(float(trained.estimator.low))
    untrained = train_loss_estimator(own, *images, **FAST | {"steps": 1})
    assert trained.history["ranking"][-1] < untrained.history["ranking"][-1]


def test_its_file_needs_the_code_of_the_model_and_nothing_else(trained, package):
    path = package / "explained.h5"
    write_trained_classifier(trained, path)
    with pytest.raises(ConfigurationError, match="a model of your own, their_faces:model"):
        read_trained_classifier(path)
    again = open_classifier(str(path), model="their_faces:model")
    x = torch.from_numpy(queries()[1])
    stages = again.features(again.stages)
    features = list(stages.split(stages(x)).values())
    with torch.no_grad():
        assert torch.equal(again.model(x), trained.model(x))
        assert torch.equal(again.estimator(features), trained.estimator(features))
    assert again.report.spearman == trained.report.spearman
    (found,) = counterfactual(again, queries()[1][0], 1, method="lso-tv-dep", steps=2)
    assert "loss estimate" in found.history
    write_trained_classifier(small_classifier(), path)
    with pytest.raises(ConfigurationError, match="a classifier of dipct, whole"):
        open_classifier(str(path), model="their_faces:model")


def test_layers_by_name_are_those_that_it_takes(own, images, package):
    made = train_loss_estimator(own, *images, layers=("layer2", "layer4.1"), **FAST | {"steps": 1})
    assert [layer.in_features for layer in made.estimator.stages] == [32, 128]
    write_trained_classifier(made, package / "two.h5")
    again = open_classifier(str(package / "two.h5"), model="their_faces:model")
    assert again.stages == ("layer2", "layer4.1")
    (found,) = counterfactual(again, queries()[1][0], 1, method="lso-tv-dep", steps=2)
    assert "loss estimate" in found.history


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"centroids": True}, ConfigurationError, "centroids belong to the training"),
        ({"side": 32}, ConfigurationError, "16 pixels along a side; got side 32"),
        ({"layers": ("fc",)}, ShapeError, "fc has .* Name layers with channels and pixels"),
        ({"layers": ("layer9",)}, ConfigurationError, "Near names: layer"),
    ],
)
def test_what_cannot_be_is_refused(own, images, values, error, message):
    with pytest.raises(error, match=message):
        train_loss_estimator(own, *images, **FAST | values)


def test_other_images_are_refused(own, images, trained):
    large = scene_images(FaceTask(20, attribute="bald"), 20, seed=0, labels_seed=None)
    with pytest.raises(ShapeError, match=r"takes images \(3, 16, 16\); got \(3, 20, 20\)"):
        train_loss_estimator(own, large, large, **FAST)
    smiling = scene_images(FaceTask(16), 20, seed=0, labels_seed=None)
    with pytest.raises(ConfigurationError, match="classes not bald, bald, in this order"):
        train_loss_estimator(trained, smiling, smiling, **FAST)
    with pytest.raises(ConfigurationError, match="two or more"):
        train_loss_estimator(own, images[0], images[1].subset(np.arange(1)), **FAST)


def test_images_of_a_folder_are_read_as_the_classifier_takes_them(tmp_path):
    for name, level in (("dark", 50), ("light", 200)):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = np.full((20, 20, 3), level + i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    settings = ClassifierSettings()
    for channels in (1, 3):
        shape = (channels, 16, 16)
        for part in open_labelled(settings, folder=tmp_path, image_shape=shape):
            assert part.image_shape == shape
    for shape in ((1, 16, 20), (2, 16, 16)):
        with pytest.raises(ShapeError, match="as squares, grey or in colours"):
            open_labelled(settings, folder=tmp_path / "unread", image_shape=shape)
    with pytest.raises(ShapeError, match=r"those of the task are \(3, 32, 32\)"):
        open_labelled(settings, task="faces", image_shape=(1, 32, 32))
