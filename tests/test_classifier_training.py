"""Training of classifiers with loss estimators, and what the latter are worth."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dipct.classifier import STAGES, LossEstimator, small_resnet
from dipct.errors import ConfigurationError, ShapeError
from dipct.phantom import FaceTask
from dipct.pretrain import (
    ClassifierTraining,
    ClassifierTrainingSettings,
    HeadReport,
    report_head,
    shifted_images,
)
from dipct.pretrain.labelled_batches import LabelledBatches, LabelledTrainingSettings
from dipct.solver import iterate


class Tiny(nn.Module):
    """Two stages."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(True))
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(True))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.two(self.one(x)).amax((2, 3)))


@pytest.fixture(scope="module")
def faces():
    task = FaceTask(16, attribute="bald")
    scenes = task.sample(240, seed=0)
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return images, torch.from_numpy(task.labels(scenes, seed=0))


def made(make=Tiny, *arguments):
    state = torch.get_rng_state()
    torch.manual_seed(0)
    module = make(*arguments)
    torch.set_rng_state(state)
    return module


def training(faces, **settings):
    settings = ClassifierTrainingSettings(**{"steps": 40, "batch": 32, "shift": 1, **settings})
    estimator = made(LossEstimator, (8, 8))
    return ClassifierTraining(made(), *faces, settings, estimator=estimator, stages=("one", "two"))


def part(method, tensors, module):
    parts = method._split(tensors["theta"])
    return torch.cat([v.flatten() for n, v in parts.items() if n.startswith(f"{module}.")])


def test_it_learns_to_see_who_is_bald(faces):
    settings = ClassifierTrainingSettings(steps=60, batch=40, learning_rate=5e-3)
    model = made(small_resnet, 2)
    estimator = made(LossEstimator, model.stage_channels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method = ClassifierTraining(model, *faces, settings, estimator=estimator, stages=STAGES)
    solution = iterate(method, max_iterations=60, every=10)
    assert solution.history["accuracy"][-1] > 0.85
    assert solution.history["loss"][-1] < 0.6 * solution.history["loss"][1]
    trained, head = method.modules(solution.state.tensors)
    with torch.no_grad():
        right = (trained(faces[0]).argmax(1) == faces[1]).float().mean()
    assert right > 0.85
    assert not trained.training
    # Those that were given are as they were.
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert math.isnan(float(estimator.low))
    report = report_head(trained, head, STAGES, *faces)
    assert report.accuracy == pytest.approx(float(right), abs=1e-6)
    assert -1 <= report.spearman <= 1
    assert math.isfinite(float(head.low))
    assert head.low < head.median < head.high


def test_training_resumes_exactly(faces):
    method = training(faces, steps=12)
    whole = iterate(method, max_iterations=12, every=4)
    half = iterate(training(faces, steps=12), max_iterations=5, every=4)
    resumed = iterate(training(faces, steps=12), max_iterations=12, every=4, state=half.state)
    for name, value in whole.state.tensors.items():
        assert torch.allclose(resumed.state.tensors[name], value, 0, 0, equal_nan=True), name
    assert not torch.equal(whole.state.tensors["theta"], method.start()["theta"])
    statistics = "buffer model.one.1.running_mean"
    assert not torch.equal(whole.state.tensors[statistics], method.start()[statistics])


def test_after_the_fact_the_classifier_stays_as_it_is(faces):
    method = training(faces, post_hoc=True)
    start = method.start()
    end = iterate(method, max_iterations=10, every=10).state.tensors
    assert torch.equal(part(method, start, "model"), part(method, end, "model"))
    assert not torch.equal(part(method, start, "estimator"), part(method, end, "estimator"))
    buffers = [name for name in start if name.startswith("buffer model")]
    assert buffers
    assert all(torch.equal(start[name], end[name]) for name in buffers)


def test_the_ranking_loss_shapes_the_classifier_until_it_is_detached(faces):
    def end_of(**settings):
        method = training(faces, steps=6, **settings)
        return part(method, iterate(method, max_iterations=6).state.tensors, "model")

    alone = end_of(ranking_weight=0.0)
    assert torch.equal(end_of(detach_after=0.0), alone)
    assert not torch.equal(end_of(), alone)
    assert not torch.equal(end_of(detach_after=0.5), end_of())


def test_the_ranking_gets_better(faces):
    method = training(faces, steps=150, post_hoc=True, learning_rate=1e-2, flip=False, shift=0)
    solution = iterate(method, max_iterations=150, every=10)
    assert solution.history["ranking"][-1] < 0.9 * solution.history["ranking"][1]
    model, head = method.modules(solution.state.tensors)
    untrained = training(faces, post_hoc=True)
    _, other = untrained.modules(untrained.start())
    after = report_head(model, head, ("one", "two"), *faces)
    before = report_head(model, other, ("one", "two"), *faces)
    assert after.spearman > before.spearman + 0.1
    assert after.accuracy == before.accuracy


def test_a_report_measures_what_it_says(faces):
    class Exact(LossEstimator):
        """Knows the loss: the first stage is made to hold it."""

        def forward(self, features):
            return features[0].flatten(1)[:, 0]

    images, labels = faces
    model = made().eval()
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
    table = {image.numpy().tobytes(): loss for image, loss in zip(images, losses, strict=True)}

    class Oracle(Tiny):
        def __init__(self):
            super().__init__()
            self.known = nn.Identity()

        def forward(self, x):
            found = [table.get(image.numpy().tobytes(), torch.tensor(9.0)) for image in x]
            self.known(torch.stack(found)[:, None, None, None].expand(-1, 8, 1, 1))
            return super().forward(x)

    oracle = Oracle().eval()
    oracle.load_state_dict(model.state_dict(), strict=False)
    report = report_head(oracle, Exact((8,)), ("known",), images, labels)
    assert report.spearman == pytest.approx(1)
    # With two classes the loss of what is wrong is the larger one.
    assert report.auroc_misclassified == pytest.approx(1)
    assert report.auroc_shifted == pytest.approx(1)
    assert report.is_usable


def test_a_head_has_to_rank_to_be_used():
    assert HeadReport(0.9, 0.4, 0.6, 0.8).is_usable
    assert HeadReport(0.9, 0.4, math.nan, 0.8).is_usable
    assert not HeadReport(0.9, 0.2, 0.9, 0.9).is_usable
    assert not HeadReport(0.9, 0.4, 0.6, 0.6).is_usable
    assert not HeadReport(0.9, math.nan, 0.9, 0.9).is_usable


def test_shifted_images_are_noisy_blurred_and_cropped(faces):
    images = faces[0][:6]
    other = shifted_images(images, seed=0)
    assert torch.equal(other, shifted_images(images, seed=0))
    assert other.min() >= 0
    assert other.max() <= 1
    rough = [float(x.diff(dim=-1).abs().mean()) for x in images]
    changed = [float(x.diff(dim=-1).abs().mean()) for x in other]
    assert changed[0] > rough[0]
    assert changed[1] < rough[1]
    assert (other[2] == 0).float().mean() > 0.25
    assert torch.equal(images, faces[0][:6])
    # More than a classifier was made for.
    noisier = shifted_images(images, seed=0, noise=0.3)
    assert (noisier[0] - images[0]).std() > (other[0] - images[0]).std()
    assert torch.equal(noisier[1:3], other[1:3])


def test_noise_is_of_a_size_of_its_own_in_each_image(faces):
    images, labels = faces
    flat = torch.full_like(images, 0.5)
    plain = {"batch": 64, "flip": False, "shift": 0, "seed": 3}
    batches = LabelledBatches(flat, labels, LabelledTrainingSettings(noise=0.4, **plain))
    stds = batches.batch(5)[0].flatten(1).std(1)
    assert torch.equal(stds, batches.batch(5)[0].flatten(1).std(1))
    assert stds.max() < 0.45
    assert stds.min() < 0.1 < 0.3 < stds.max()
    still = LabelledBatches(flat, labels, LabelledTrainingSettings(**plain))
    assert torch.equal(still.batch(5)[0], flat[:64])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"batch": 1}, "batch"),
        ({"classifier_weight": 0.0, "ranking_weight": 0.0}, "not both zero"),
        ({"detach_after": 1.5}, "detach_after"),
        ({"post_hoc": True, "ranking_weight": 0.0}, "post_hoc"),
        ({"noise": -0.1}, "noise"),
        ({"noise": math.inf}, "noise"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ClassifierTrainingSettings(**settings)


def test_wrong_data_are_refused(faces):
    images, labels = faces
    settings = ClassifierTrainingSettings(batch=32)
    with pytest.raises(ShapeError, match="one label each"):
        ClassifierTraining(made(), images, labels[1:], settings)
    with pytest.raises(ConfigurationError, match="fewer than a batch"):
        ClassifierTraining(made(), images[:8], labels[:8], settings)
    with pytest.raises(ConfigurationError, match="classes from 0 to 1"):
        ClassifierTraining(made(), images, labels + 1, settings)
    with pytest.raises(ConfigurationError, match="names of modules"):
        ClassifierTraining(made(), images, labels, settings, estimator=LossEstimator((8,)))
    with pytest.raises(ConfigurationError, match="no loss estimator"):
        ClassifierTraining(
            made(), images, labels, ClassifierTrainingSettings(batch=32, post_hoc=True)
        )
    with pytest.raises(ShapeError, match="two or more images"):
        report_head(made(), LossEstimator((8,)), ("one",), images[:1], labels[:1])
