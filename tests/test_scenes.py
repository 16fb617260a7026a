"""Drawn pictures whose counterfactuals are known."""

import numpy as np
import pytest

from dipct.errors import ConfigurationError
from dipct.phantom import ATTRIBUTES, SIGNS, FaceTask, LesionTask, edit_region


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
        known = task.true_counterfactuals(scene, 1 - task.label(scene.causes), draws=6)
        may, must = known.may, known.must
        assert not (must & ~may).any()
        assert 0 < must.sum() <= may.sum() < 0.25 * may.size
        middle = 16 + 16 * scene.nuisances["shift"][1]
        assert (rows * may).sum() / may.sum() > middle
        may = hair.true_counterfactuals(scene, 1 - hair.label(scene.causes), draws=6).may
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
    assert np.abs(values).min() >= 0.3
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


EVERY_LESION = [(n, d) for n in (2, 4) for d in (1, 2, 3)]


@pytest.mark.parametrize(("number_of_classes", "difficulty"), EVERY_LESION)
def test_lesions_change_into_every_other_class(number_of_classes, difficulty):
    task = LesionTask(32, number_of_classes=number_of_classes, difficulty=difficulty)
    labels = set()
    for scene in task.sample(40, seed=1):
        source = task.label(scene.causes)
        labels.add(source)
        for target in set(range(number_of_classes)) - {source}:
            for seed in range(3):
                other = task.counterfactual(scene, target, seed=seed)
                assert task.label(other.causes) == target
                assert other.nuisances is scene.nuisances
                assert edit_region(scene.image, other.image).any()
    assert labels == set(range(number_of_classes))


def melanoma(**causes):
    return {name: -0.5 for name in (*SIGNS, "vascular", "scale")} | causes


def test_what_makes_a_melanoma_depends_on_the_difficulty():
    easy, middle, hard = (LesionTask(16, difficulty=d) for d in (1, 2, 3))
    for causes, labels in (
        (melanoma(), (0, 0, 0)),
        (melanoma(blotch=0.5), (1, 1, 0)),
        (melanoma(border=0.5), (0, 1, 0)),
        (melanoma(size=0.5, asymmetry=0.5), (0, 0, 1)),
        (melanoma(blotch=0.5, border=0.5), (1, 1, 1)),
    ):
        assert tuple(task.label(causes) for task in (easy, middle, hard)) == labels


def test_lesions_are_edited_inside_them_and_in_one_place_for_one_sign():
    task = LesionTask(48)
    for scene in task.sample(12, seed=0):
        known = task.true_counterfactuals(scene, 1 - task.label(scene.causes), draws=4)
        may, must = known.may, known.must
        # A blotch at a place that is given: all counterfactuals agree.
        assert must.sum() > 0.5 * may.sum()
        assert may.mean() < 0.15
        at = (np.arange(48) + 0.5) / 24 - 1
        centre = [float((at[:, None] * may).sum()), float((at[None] * may).sum())]
        x, y = scene.nuisances["centre"]
        assert np.hypot(centre[1] / may.sum() - x, centre[0] / may.sum() - y) < 0.45


def test_the_size_shows_whatever_the_nuisances():
    diameters = {scene.causes["size"] > 0: [] for scene in LesionTask(16).sample(40, seed=0)}
    for scene in LesionTask(16).sample(200, seed=0):
        size = scene.nuisances["radius"] * (1 + 0.3 * scene.causes["size"])
        diameters[scene.causes["size"] > 0].append(size)
    assert max(diameters[False]) < min(diameters[True])


def test_counterfactuals_of_pictures_differ(task, scenes):
    causes = {
        abs(task.counterfactual(s, 1 - task.label(s.causes)).causes["smile"]) for s in scenes[:20]
    }
    assert len(causes) == 20


def test_several_counterfactuals_leave_more_than_they_need():
    task = LesionTask(48, difficulty=3)
    scenes = [s for s in task.sample(60, seed=2) if task.label(s.causes) == 0]
    known = [task.true_counterfactuals(s, 1, draws=8) for s in scenes[:10]]
    sizes = [[each.may.sum(), each.must.sum()] for each in known]
    assert np.mean([must < 0.8 * may for may, must in sizes]) > 0.5


def test_the_tag_goes_with_melanoma_and_is_no_cause():
    task = LesionTask(16, shortcut=0.9)
    scenes = task.sample(300, seed=0)
    tagged = np.array([scene.nuisances["tag"] > 0 for scene in scenes])
    agrees = tagged == (task.labels(scenes) == 1)
    assert 0.84 < agrees.mean() < 0.96
    scene = scenes[0]
    region = task.tag_region(scene)
    assert 0 < region.mean() < 0.15
    other = task.counterfactual(scene, 1 - task.label(scene.causes))
    assert other.nuisances["tag"] == scene.nuisances["tag"]
    moved = [task.with_other_nuisances(s, seed=1).nuisances["tag"] > 0 for s in scenes[:30]]
    assert moved == [s.nuisances["tag"] > 0 for s in scenes[:30]]
    assert not any(s.nuisances["tag"] > 0 for s in LesionTask(16).sample(20, seed=0))


def test_wrong_settings_are_refused(task, scenes):
    for wrong in ({"number_of_classes": 3}, {"difficulty": 4}):
        with pytest.raises(ConfigurationError, match="2 or 4 and difficulty"):
            LesionTask(**wrong)
    with pytest.raises(ConfigurationError, match="shortcut"):
        LesionTask(shortcut=0.3)
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


def test_the_gap_says_how_near_to_the_border_of_its_class_a_lesion_may_be():
    def least(task):
        scenes = task.sample(200, seed=0)
        return min(abs(scene.causes["blotch"]) for scene in scenes)

    assert 0.05 <= least(LesionTask(16, gap=0.05)) < 0.1
    assert least(LesionTask(16, gap=0.4)) >= 0.4
    with pytest.raises(ConfigurationError, match="gap"):
        LesionTask(gap=1.0)
