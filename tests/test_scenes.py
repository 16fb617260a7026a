"""Drawn pictures whose counterfactuals are known."""

import numpy as np
import pytest

from dipct.errors import ConfigurationError
from dipct.phantom import ATTRIBUTES, FaceTask, edit_region


@pytest.fixture(scope="module")
def task():
    return FaceTask(32)


@pytest.fixture(scope="module")
def scenes(task):
    return task.sample(60, seed=3)


def test_pictures_repeat_and_depend_on_their_number_alone(task, scenes):
    again = task.sample(5, seed=3)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(again, scenes, strict=False))
    assert not np.array_equal(task.sample(1, seed=4)[0].image, scenes[0].image)
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_pictures_are_colours_between_zero_and_one(task, scenes):
    for scene in scenes:
        assert scene.image.shape == task.image_shape == (3, 32, 32)
        assert scene.image.dtype == np.float32
        assert scene.image.min() >= 0
        assert scene.image.max() <= 1
        assert scene.image.std() > 0.05


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_the_counterfactual_differs_in_one_cause_only(attribute):
    task = FaceTask(32, attribute=attribute)
    for scene in task.sample(10, seed=0):
        source = task.label(scene.causes)
        other = task.counterfactual(scene, 1 - source)
        assert task.label(other.causes) == 1 - source
        assert other.nuisances is scene.nuisances
        unchanged = [name for name in ATTRIBUTES if name != attribute]
        assert all(other.causes[name] == scene.causes[name] for name in unchanged)
        assert not np.array_equal(other.image, scene.image)


def test_edits_lie_where_the_attribute_is(task, scenes):
    """A smile is in the lower half of the face and small, hair is in the upper half."""
    hair = FaceTask(32, attribute="bald")
    rows = np.arange(32)[:, None]
    for scene in scenes[:20]:
        may, must = task.edit_regions(scene, 1 - task.label(scene.causes), valid=6)
        assert not (must & ~may).any()
        assert 0 < must.sum() <= may.sum() < 0.25 * may.size
        middle = 16 + 16 * scene.nuisances["shift"][1]
        assert (rows * may).sum() / may.sum() > middle
        may, _ = hair.edit_regions(scene, 1 - hair.label(scene.causes), valid=6)
        assert (rows * may).sum() / may.sum() < middle


def test_the_edit_region_holds_every_change(task, scenes):
    for scene in scenes[:10]:
        target = 1 - task.label(scene.causes)
        other = task.counterfactual(scene, target, seed=2)
        region = edit_region(scene.image, other.image)
        assert np.abs(other.image - scene.image).max(0)[~region].max() <= 0.02
    assert not edit_region(scene.image, scene.image).any()


def test_no_picture_is_between_two_classes(scenes):
    values = np.array([list(scene.causes.values()) for scene in scenes])
    assert np.abs(values).min() >= 0.12
    assert (0.3 < (values > 0).mean(0)).all()
    assert ((values > 0).mean(0) < 0.7).all()


def test_other_nuisances_leave_the_class(task, scenes):
    other = task.with_other_nuisances(scenes[0], seed=5)
    assert other.causes is scenes[0].causes
    assert np.abs(other.image - scenes[0].image).mean() > 0.05


def test_some_labels_are_wrong_if_asked_for():
    task = FaceTask(16, label_noise=0.2)
    scenes = task.sample(400, seed=0)
    right, noisy = task.labels(scenes), task.labels(scenes, seed=1)
    assert right.tolist() == [task.label(scene.causes) for scene in scenes]
    assert 0.13 < (right != noisy).mean() < 0.27
    assert set(noisy.tolist()) == {0, 1}
    assert np.array_equal(noisy, task.labels(scenes, seed=1))


def test_wrong_settings_are_refused(task, scenes):
    with pytest.raises(ConfigurationError, match="16 pixels or more"):
        FaceTask(8)
    with pytest.raises(ConfigurationError, match="attribute must be"):
        FaceTask(attribute="hat")
    with pytest.raises(ConfigurationError, match="label_noise"):
        FaceTask(label_noise=0.5)
    same = task.label(scenes[0].causes)
    for target in (same, 2, -1):
        with pytest.raises(ConfigurationError, match="target must be another class"):
            task.counterfactual(scenes[0], target)
