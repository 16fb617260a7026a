"""Files of classifiers."""

import math
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from dipct.classifier import STAGES
from dipct.errors import ConfigurationError, DataError, FileFormatError
from dipct.operator import LOGITS
from dipct.pretrain import (
    HeadReport,
    SceneGate,
    TrainedClassifier,
    make_classifier,
    make_loss_estimator,
    read_trained_classifier,
    write_trained_classifier,
)


@pytest.fixture
def trained():
    architecture = {"name": "small", "classes": 3, "in_channels": 1}
    model = make_classifier(**architecture, seed=4).eval()
    with torch.no_grad():
        model.bn1.running_mean += 0.3
    estimator = make_loss_estimator(model).eval()
    estimator.calibrate(torch.arange(11.0))
    return TrainedClassifier(
        model=model,
        architecture=architecture,
        image_shape=(1, 16, 16),
        classes=("nevus", "melanoma", "keratosis"),
        estimator=estimator,
        report=HeadReport(0.9, 0.5, math.nan, 0.8),
        task={"name": "lesions", "side": 16},
        settings={"steps": 10},
        history={"iteration": np.arange(3), "loss": np.array([1.0, 0.5, 0.2])},
        duration_s=1.5,
        created="2026-01-01T00:00:00+00:00",
        versions={"torch": torch.__version__},
        accuracy=0.9,
        gate=SceneGate(0.95, 0.97, 0.01),
    )


def test_a_file_holds_all_of_it(trained, tmp_path):
    path = tmp_path / "classifier.h5"
    write_trained_classifier(trained, path)
    read = read_trained_classifier(path)
    image = torch.rand(2, 1, 16, 16)
    for one, other in ((trained, read),):
        psi, again = one.features([*STAGES, LOGITS]), other.features([*STAGES, LOGITS])
        assert torch.equal(psi(image), again(image))
        features = [psi.split(psi(image))[name] for name in STAGES]
        assert torch.equal(one.estimator(features), other.estimator(features))
    assert not read.model.training
    assert float(read.estimator.low) == 0.5
    assert read.report.spearman == 0.5
    assert (read.accuracy, read.gate) == (0.9, SceneGate(0.95, 0.97, 0.01))
    assert math.isnan(read.report.auroc_misclassified)
    for name in ("architecture", "image_shape", "classes", "task", "settings", "created"):
        assert getattr(read, name) == getattr(trained, name)
    assert read.history["loss"].tolist() == [1.0, 0.5, 0.2]


def test_a_classifier_needs_no_estimator(trained, tmp_path):
    path = tmp_path / "alone.h5"
    write_trained_classifier(replace(trained, estimator=None, report=None), path)
    read = read_trained_classifier(path)
    assert read.estimator is None
    assert read.report is None
    write_trained_classifier(replace(trained, report=None), path)
    assert read_trained_classifier(path).report is None


def test_classes_by_name_or_number(trained):
    assert trained.class_number("melanoma") == 1
    assert trained.class_number("2") == 2
    for wrong in ("3", "wart", "-1"):
        with pytest.raises(ConfigurationError, match="0 nevus, 1 melanoma, 2 keratosis"):
            trained.class_number(wrong)


def test_first_parameters_come_from_a_seed():
    state = torch.get_rng_state()
    one, same, other = (make_classifier("small", classes=2, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.fc.weight, same.fc.weight)
    assert not torch.equal(one.fc.weight, other.fc.weight)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ConfigurationError, match="one of resnet18, small, small-halved"):
        make_classifier("resnet50", classes=2)


def changed(path, change):
    with h5py.File(path, "a") as file:
        change(file)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.attrs.update(format="dipct-run"), FileFormatError, "another one"),
        (lambda f: f.attrs.update(version=99), FileFormatError, "Upgrade dipct"),
        (lambda f: f.__delitem__("model/conv1.weight"), FileFormatError, "1 are missing"),
        (lambda f: f.attrs.__delitem__("classes"), FileFormatError, "classes"),
        (lambda f: f["model/fc.bias"].write_direct(np.full(3, np.nan, "f4")), DataError, "finite"),
        (
            lambda f: f["model/bn1.running_var"].write_direct(np.full(16, np.nan, "f4")),
            DataError,
            "finite",
        ),
        (
            lambda f: f.attrs.update(architecture='{"name": "small", "classes": 4}'),
            FileFormatError,
            "must have shape",
        ),
    ],
)
def test_damaged_files_are_refused(trained, tmp_path, change, error, message):
    path = tmp_path / "classifier.h5"
    write_trained_classifier(trained, path)
    changed(path, change)
    with pytest.raises(error, match=message):
        read_trained_classifier(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="no such file"):
        read_trained_classifier(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_trained_classifier(tmp_path / "text.h5")
