"""Training of centroids, alone and with the whole network, what they are worth, and their files."""

import copy
import math
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from dipct.classifier import (
    TRUNK,
    CentroidHead,
    averaged_features,
    kernel_loss,
    last_linear_input,
    small_resnet,
    with_centroids,
)
from dipct.errors import ConfigurationError, DataError, FileFormatError, ShapeError
from dipct.objective import ClassKernel
from dipct.operator import LOGITS, FeatureOperator
from dipct.phantom import FaceTask
from dipct.pretrain import (
    CentroidReport,
    CentroidTraining,
    CentroidTrainingSettings,
    ClassifierTraining,
    ClassifierTrainingSettings,
    TrainedClassifier,
    read_trained_classifier,
    report_centroids,
    shifted_images,
    write_trained_classifier,
)
from dipct.solver import iterate


class Tiny(nn.Module):
    """A convolution, and an activation that writes into what the features were."""

    def __init__(self, classes=2):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(True))
        self.two = nn.Conv2d(8, 6, 3, stride=2)
        self.act = nn.ReLU(True)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.act(self.two(self.one(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def faces():
    task = FaceTask(16, attribute="bald", label_noise=0.0)
    scenes = task.sample(200, seed=0)
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return images, torch.from_numpy(task.labels(scenes, seed=0))


def made(make=Tiny, *arguments):
    state = torch.get_rng_state()
    torch.manual_seed(0)
    module = make(*arguments)
    torch.set_rng_state(state)
    return module


def training(faces, model=None, layer=None, **settings):
    values = {"steps": 12, "batch": 20, "shift": 1, "decay": 0.7, **settings}
    settings = CentroidTrainingSettings(**values)
    return CentroidTraining(model or made(), *faces, settings, layer=layer)


def run(method, steps=None, **options):
    return iterate(method, max_iterations=steps or method.settings.steps, every=4, **options)


def test_centroids_of_a_classifier_classify_like_it():
    task = FaceTask(32, attribute="bald", label_noise=0.0)
    scenes = task.sample(120, seed=1)
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    labels = torch.from_numpy(task.labels(scenes, seed=1))
    settings = ClassifierTrainingSettings(steps=30, batch=24, learning_rate=5e-3, shift=0)
    method = ClassifierTraining(made(small_resnet, 2), images, labels, settings)
    model, _ = method.modules(run(method).state.tensors)
    before = copy.deepcopy(model.state_dict())
    heads = training(
        (images, labels), model, steps=15, batch=24, decay=0.8, shift=0, penalty_weight=0.0
    )
    assert heads.layer == TRUNK
    solution = run(heads)
    assert solution.history["loss"][-1] < 0.7 * solution.history["loss"][1]
    trunk, head = heads.modules(solution.state.tensors)
    # Bit for bit, and so are the features.
    assert all(torch.equal(before[n], v) for n, v in trunk.state_dict().items())
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    psi, other = (FeatureOperator(m, [TRUNK], (3, 32, 32)) for m in (model, trunk))
    assert torch.equal(psi(images), other(images))
    with torch.no_grad():
        right = (head(psi(images)).argmax(1) == labels).double().mean()
        usual = (model(images).argmax(1) == labels).double().mean()
    assert right > 0.8
    assert right > usual - 0.1


@pytest.mark.parametrize("together", [False, True])
def test_centroids_are_moving_averages_after_each_step(faces, together):
    method = training(faces, whole_network=together)
    tensors = method.start()
    for step in range(3):
        images, labels = method.batches.batch(step)
        counts, sums = tensors["buffer head.counts"], tensors["buffer head.sums"]
        before, tensors = tensors, method.step(tensors)
        # With weights after the step, in evaluation mode.
        model, head = method.modules(tensors)
        psi = FeatureOperator(model, ["head:input"], (3, 16, 16))
        with torch.no_grad():
            features = psi(images)
        count, total = torch.zeros(2), torch.zeros_like(sums)
        for f, c in zip(features, labels, strict=True):
            count[c] += 1
            total[:, c] += head.weight[:, c].detach() @ f
        counts, sums = 0.7 * counts + 0.3 * count, 0.7 * sums + 0.3 * total
        assert torch.allclose(tensors["buffer head.counts"], counts)
        assert torch.allclose(tensors["buffer head.sums"], sums, atol=1e-5)
        # Those of the weights before it are others.
        _, old = method.modules(before)
        moved = torch.einsum("nmk,nk->mk", old.embedded(features), torch.eye(2)[labels])
        assert not torch.allclose(0.3 * moved, 0.3 * total, atol=1e-5)


def test_the_loss_is_that_of_the_kernels_and_the_penalty(faces):
    images, labels = faces[0][:20], faces[1][:20]
    weights = {}
    for weight in (0.0, 0.5, 2.0):
        method = training((images, labels), penalty_weight=weight, flip=False, shift=0)
        theta, buffers = method.start()["theta"].requires_grad_(), dict(method._buffers)
        loss, figures = method.losses(theta, buffers, images, labels, 0)
        loss, figures = loss.detach(), {n: v.detach() for n, v in figures.items()}
        assert float(loss) == pytest.approx(
            float(figures["loss"] + weight * figures["penalty"]), rel=1e-6
        )
        weights[weight] = float(figures["penalty"])
    assert weights[0.0] == 0
    assert weights[0.5] == weights[2.0] > 0
    # By hand, of the features before and the mean over pixels after the activation.
    model, head = method.modules(method.start())
    x = images.clone().requires_grad_()
    features = torch.relu(model.two(model.one(x))).mean((2, 3))
    kernels = head(features)
    (gradient,) = torch.autograd.grad(kernels.sum(), x)
    lengths = gradient.flatten(1).norm(dim=1)
    assert float(figures["penalty"]) == pytest.approx(float(((lengths - 1) ** 2).mean()), rel=1e-4)
    assert float(figures["loss"]) == pytest.approx(
        float(kernel_loss(kernels, labels).detach()), rel=1e-4
    )


@pytest.mark.parametrize("together", [False, True])
def test_training_resumes_exactly(faces, together):
    def method():
        return training(faces, whole_network=together)

    whole, half = run(method()), run(method(), 5)
    resumed = run(method(), 12, state=half.state)
    for name, value in whole.state.tensors.items():
        assert torch.equal(resumed.state.tensors[name], value), name
    assert not torch.equal(whole.state.tensors["theta"], half.state.tensors["theta"])
    other = run(training(faces, whole_network=together, seed=1))
    assert not torch.equal(whole.state.tensors["theta"], other.state.tensors["theta"])


def test_the_state_holds_what_changes_and_no_more(faces):
    alone, together = training(faces), training(faces, whole_network=True)
    assert alone.start()["theta"].numel() == 6 * 2 * 6
    assert {n for n in alone.start() if n.startswith("buffer")} == {
        "buffer head.counts",
        "buffer head.sums",
    }
    # Without the layer that the centroids replace: it would only decay.
    model = made()
    size = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in model.head.parameters()
    )
    assert together.start()["theta"].numel() == size + 6 * 2 * 6
    assert "buffer model.one.1.running_mean" in together.start()
    smaller = training(faces, centroid_size=3)
    assert smaller.start()["theta"].numel() == 3 * 2 * 6


def test_the_whole_network_learns_with_its_centroids(faces):
    given = made()
    before = copy.deepcopy(given.state_dict())
    method = training(
        faces, given, whole_network=True, steps=40, learning_rate=3e-2, decay=0.8, shift=0
    )
    solution = run(method)
    assert solution.history["loss"][-1] < 0.9 * solution.history["loss"][1]
    model, head = method.modules(solution.state.tensors)
    assert all(torch.equal(before[n], v) for n, v in given.state_dict().items())
    assert not torch.equal(model.two.weight, given.two.weight)
    assert not torch.equal(model.one[1].running_mean, given.one[1].running_mean)
    assert not model.training
    # Its logits are those of the head.
    psi = FeatureOperator(model, [method.layer, LOGITS], (3, 16, 16))
    found = psi.split(psi(faces[0]))
    assert torch.allclose(found[LOGITS].exp(), head(found[method.layer]), atol=1e-6)
    right = (found[LOGITS].argmax(1) == faces[1]).double().mean()
    first, _ = method.modules(method.start())
    with torch.no_grad():
        at_first = (first(faces[0]).argmax(1) == faces[1]).double().mean()
    assert right > 0.7
    assert right > at_first + 0.1


def test_features_may_have_pixels(faces):
    method = training(faces, layer="two")
    model, head = method.modules(run(method).state.tensors)
    psi = FeatureOperator(model, ["two"], (3, 16, 16))
    found = psi.split(psi(faces[0][:3]))["two"]
    assert found.ndim == 4
    assert torch.equal(averaged_features(found), found.mean((2, 3)))
    term = ClassKernel(psi, head, "two", source=0, target=1)
    assert torch.isfinite(term.value(faces[0][:3])).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 299, "decay": 0.99}, "counted for 5%; take 300 steps or more"),
        ({"steps": 2999, "decay": 0.999}, "take 3000 steps"),
        ({"steps": 29, "decay": 0.9}, "take 30 steps"),
        ({"decay": 1.0}, "decay"),
        ({"penalty_weight": -1.0}, "penalty_weight"),
        ({"penalty_weight": math.nan}, "penalty_weight"),
        ({"batch": 1}, "batch"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        CentroidTrainingSettings(**settings)


def test_as_many_steps_as_it_takes_are_enough():
    for steps, decay in ((300, 0.99), (3000, 0.999), (30, 0.9), (3, 0.0)):
        assert CentroidTrainingSettings(steps=steps, decay=decay).steps == steps


def test_what_cannot_be_trained_is_refused(faces):
    images, labels = faces
    with pytest.raises(ShapeError, match="one label each"):
        training((images, labels[1:]))
    with pytest.raises(ConfigurationError, match="fewer than a batch"):
        training((images[:8], labels[:8]))
    with pytest.raises(ConfigurationError, match="classes from 0 to 1"):
        training((images, labels + 1))
    with pytest.raises(ConfigurationError, match="no layer 'tow'"):
        training(faces, layer="tow")
    with pytest.raises(ConfigurationError, match="length_scale"):
        training(faces, length_scale=0.0)
    with pytest.raises(ConfigurationError, match="no linear layer"):
        last_linear_input(nn.Sequential(nn.Conv2d(3, 2, 3)))
    for layer in ("two", "two:input"):
        with pytest.raises(ConfigurationError, match="the module that makes the logits"):
            training(faces, layer=layer, whole_network=True)


def test_a_report_measures_what_it_says(faces):
    images, labels = faces
    model, head = made().eval(), made(CentroidHead, 6, 2)
    report = report_centroids(model, head, "head:input", images, labels, seed=3)
    with torch.no_grad():
        features = torch.relu(model.two(model.one(images))).mean((2, 3))
        other = shifted_images(images, seed=3)
        shifted = torch.relu(model.two(model.one(other))).mean((2, 3))
        certainty, found = head(features).max(1)
        below = head(shifted).amax(1)

    def share(low, high):
        less = (low[:, None] < high[None]).double() + 0.5 * (low[:, None] == high[None])
        return float(less.mean())

    right = found == labels
    assert report.accuracy == pytest.approx(float(right.double().mean()))
    assert report.auroc_misclassified == pytest.approx(
        share(certainty[~right], certainty[right]), abs=1e-3
    )
    assert report.auroc_shifted == pytest.approx(share(below, certainty), abs=1e-3)
    perfect = report_centroids(model, head, "head:input", images, found)
    assert perfect.accuracy == 1
    assert math.isnan(perfect.auroc_misclassified)
    with pytest.raises(ShapeError, match="two or more images"):
        report_centroids(model, head, "head:input", images[:1], labels[:1])


def test_a_report_has_an_order_where_kernels_are_zero(faces):
    model, head = made().eval(), made(CentroidHead, 6, 2)
    head.length_scale = 1e-3
    report = report_centroids(model, head, "head:input", *faces)
    head.length_scale = 0.5
    usual = report_centroids(model, head, "head:input", *faces)
    assert report == usual


def test_centroids_have_to_detect_to_be_used():
    assert CentroidReport(0.9, 0.8, 0.5).is_usable
    assert CentroidReport(0.9, math.nan, 0.8).is_usable
    assert not CentroidReport(0.9, 0.6, 0.6).is_usable
    assert not CentroidReport(0.9, math.nan, 0.6).is_usable


# Files


@pytest.fixture(params=[False, True], ids=["alone", "together"])
def trained(request):
    model = made(small_resnet, 2).eval()
    head = made(lambda: CentroidHead(128, 2, centroid_size=5, length_scale=0.3, decay=0.8))
    if request.param:
        model = with_centroids(model, head, TRUNK).eval()
    return TrainedClassifier(
        model=model,
        architecture={"name": "small", "classes": 2, "in_channels": 3},
        image_shape=(3, 16, 16),
        classes=("hair", "bald"),
        estimator=None,
        report=None,
        task={},
        settings={},
        history={},
        duration_s=1.0,
        created="2026-01-01T00:00:00+00:00",
        versions={},
        centroids=head.eval(),
        centroid_report=CentroidReport(0.9, math.nan, 0.8),
    )


def test_a_file_holds_centroids(trained, faces, tmp_path):
    path = tmp_path / "classifier.h5"
    write_trained_classifier(trained, path)
    state = torch.get_rng_state()
    read = read_trained_classifier(path)
    assert torch.equal(torch.get_rng_state(), state)
    images = faces[0][:4]
    one, other = (each.features([TRUNK, LOGITS]) for each in (trained, read))
    assert torch.equal(one(images), other(images))
    features = one.split(one(images))[TRUNK]
    assert torch.equal(trained.centroids(features), read.centroids(features))
    assert (read.centroids.length_scale, read.centroids.decay) == (0.3, 0.8)
    assert not read.centroids.training
    assert read.centroid_report.accuracy == 0.9
    assert math.isnan(read.centroid_report.auroc_misclassified)
    write_trained_classifier(replace(trained, centroid_report=None), path)
    assert read_trained_classifier(path).centroid_report is None


def test_files_without_centroids_are_read_as_before(trained, faces, tmp_path):
    path = tmp_path / "classifier.h5"
    plain = made(small_resnet, 2).eval()
    write_trained_classifier(replace(trained, model=plain, centroids=None), path)
    with h5py.File(path) as file:
        assert file.attrs["version"] == 1
        assert "centroids" not in file
    read = read_trained_classifier(path)
    assert read.centroids is None
    assert read.centroid_report is None
    assert torch.equal(read.model(faces[0][:2]), plain(faces[0][:2]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.__delitem__("centroids/sums"), FileFormatError, "1 are missing"),
        (lambda f: f["centroids"].attrs.__delitem__("decay"), FileFormatError, "decay"),
        (lambda f: f["centroids"].attrs.update(length_scale=-1.0), ConfigurationError, "positive"),
        (
            lambda f: f["centroids/sums"].write_direct(np.full((5, 2), np.nan, "f4")),
            DataError,
            "finite",
        ),
        (
            lambda f: (
                f.__delitem__("centroids/weight"),
                f["centroids"].create_dataset("weight", data=np.ones((5, 2, 64), "f4")),
            ),
            FileFormatError,
            "must have shape",
        ),
    ],
)
def test_damaged_centroids_are_refused(trained, tmp_path, change, error, message):
    path = tmp_path / "classifier.h5"
    write_trained_classifier(trained, path)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(error, match=message):
        read_trained_classifier(path)
