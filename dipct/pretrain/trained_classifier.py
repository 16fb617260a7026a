"""Files of trained classifiers, with their heads and what those are worth.

Layout (HDF5), version 1. Nothing in it is ever executed.

==================  ===============================================================================
``/`` attributes    ``format`` = "dipct-classifier", ``version``, ``duration_s``, ``created`` (ISO
                    8601, UTC); as JSON ``architecture`` (name and options), ``image_shape``,
                    ``classes``, ``task``, ``settings``, ``report``, ``gate``, ``versions``,
                    ``stages`` (of the loss estimator); ``accuracy``
``model/*``         the state of the classifier by name, float32 (counters int64)
``estimator/*``     that of the loss estimator, where there is one
``centroids/*``     that of the centroids, where there are some; attributes ``length_scale``,
                    ``decay``, ``is_classifier`` (they make the logits) and as JSON ``report``
``history/*``       (records,): what was recorded in training
==================  ===============================================================================
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

from dipct.classifier import (
    STAGES,
    TRUNK,
    AttributeLogits,
    CentroidHead,
    CentroidLogits,
    LossEstimator,
    ResNet,
    halved_resnet,
    resnet18,
    small_resnet,
    with_centroids,
)
from dipct.classifier.loss_estimator import QUANTILES
from dipct.errors import ConfigurationError, DataError, FileFormatError
from dipct.measurement.hdf5 import (
    check_format,
    get_attribute,
    get_dataset,
    get_group,
    open_hdf5,
    write_whole,
)
from dipct.operator import FeatureOperator, with_normalisation
from dipct.pretrain.classifier_report import CentroidReport, HeadReport
from dipct.pretrain.scene_gate import SceneGate

FORMAT, VERSION = "dipct-classifier", 1
_EXPECTED = "a classifier, as written by dipct"
_JSON = ("architecture", "image_shape", "classes", "task", "settings", "versions")
_ARCHITECTURES = {"resnet18": resnet18, "small": small_resnet, "small-halved": halved_resnet}
ARCHITECTURES = tuple(_ARCHITECTURES)
"""Names of the networks :func:`make_classifier` knows."""


@dataclass(frozen=True, eq=False)
class TrainedClassifier:
    """A classifier after training.

    Attributes:
        model: maps images [N C H W] to logits, in evaluation mode.
        architecture: arguments of :func:`make_classifier`; of a model of one's own the ``name`` of
            what makes it and the ``normalisation`` that it expects.
        image_shape: [C H W] of the images that it was trained with.
        classes: their names.
        estimator: its loss estimator; None without one.
        report: what the loss estimator is worth; None without one.
        task: what it was trained on.
        settings: of the training.
        history: what was recorded on the way, by name.
        duration_s: seconds of training.
        created: when, ISO 8601 in UTC.
        versions: of Python and the packages.
        centroids: of the classes among its features :data:`dipct.classifier.TRUNK`; None without.
            If it was trained together with them, its logits are the logarithms of their kernels
            (:func:`dipct.classifier.with_centroids`).
        centroid_report: what the centroids are worth; None without.
        accuracy: on held-out images; NaN where there were none.
        gate: of a drawn task, what makes its predictions change; None for others.
        stages: layers whose features the loss estimator takes.
    """

    model: nn.Module
    architecture: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    estimator: LossEstimator | None
    report: HeadReport | None
    task: Mapping[str, Any]
    settings: Mapping[str, Any]
    history: Mapping[str, np.ndarray]
    duration_s: float
    created: str
    versions: Mapping[str, str]
    centroids: CentroidHead | None = None
    centroid_report: CentroidReport | None = None
    accuracy: float = math.nan
    gate: SceneGate | None = None
    stages: tuple[str, ...] = STAGES

    def features(self, layers: Sequence[str]) -> FeatureOperator:
        """Features of images as an operator of float32, whatever the model computes in.

        Args:
            layers: see :class:`dipct.operator.FeatureOperator`.
        """
        operator = FeatureOperator(self.model, layers, self.image_shape)
        is_single = operator.dtype == torch.float32
        return operator if is_single else operator.to(dtype=torch.float32)

    def attribute(self, name: str) -> "TrainedClassifier":
        """The classifier of one attribute, of a model that has a logit for each of several.

        Its classes are absence and presence; layers have ``model.`` before their names. Several
        attributes are explained at once by that of one, and those of others as
        :class:`dipct.pipeline.OtherClassifier`.

        Args:
            name: of the attribute among the classes, or its number.

        Raises:
            ConfigurationError: there is no such attribute, or a classifier of dipct, whose logits
                say something of classes together, and not one by one.
        """
        if self.architecture.get("name") in ARCHITECTURES:
            raise ConfigurationError(
                "An attribute is of a model with a logit for each of several, each by itself; the "
                f"logits of this {self.architecture['name']} are of classes that exclude each "
                "other. Name one of them as the target."
            )
        number = self.class_number(name)
        of = self.classes[number]
        return replace(
            self,
            model=AttributeLogits(self.model, number).eval(),
            architecture={**self.architecture, "attribute": number},
            classes=(f"not {of}", of),
            # What was drawn or read has other classes.
            task={},
            estimator=None,
            report=None,
            centroids=None,
            centroid_report=None,
            gate=None,
        )

    def class_number(self, name: str) -> int:
        """Number of a class from its name, or from itself in digits.

        Raises:
            ConfigurationError: there is no such class.
        """
        if name in self.classes:
            return self.classes.index(name)
        if name.isdecimal() and int(name) < len(self.classes):
            return int(name)
        named = ", ".join(f"{i} {each}" for i, each in enumerate(self.classes))
        raise ConfigurationError(f"There is no class {name!r}; there are: {named}.")


def make_classifier(name: str, *, classes: int, in_channels: int = 3, seed: int = 0) -> ResNet:
    """A classifier with its first parameters.

    Args:
        name: ``resnet18``, ``small`` for images of 32 to 64 pixels, or ``small-halved``, which
            halves them first.
        classes: number of classes.
        in_channels: channels of the images.
        seed: of the parameters.

    Raises:
        ConfigurationError: an unknown name or impossible numbers.
    """
    if name not in _ARCHITECTURES:
        raise ConfigurationError(
            f"The classifier must be one of {', '.join(ARCHITECTURES)}; got {name!r}."
        )
    # Torch initialises modules from its global stream.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _ARCHITECTURES[name](classes, in_channels=in_channels)


def make_loss_estimator(model: ResNet, *, seed: int = 0) -> LossEstimator:
    """The loss estimator of a classifier, with its first parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LossEstimator(model.stage_channels)


def write_trained_classifier(trained: TrainedClassifier, path: str | Path) -> None:
    """Write a classifier, whole or not at all.

    Raises:
        ConfigurationError: the classifier of one attribute of a model.
        OSError: the file cannot be written; nothing is left half-written.
    """
    if "attribute" in trained.architecture:
        raise ConfigurationError(
            "Files hold whole models: write the classifier that this attribute is of, and take the "
            "attribute of what is read."
        )

    def fill(file: h5py.File) -> None:
        file.attrs.update(format=FORMAT, version=VERSION)
        file.attrs.update(duration_s=trained.duration_s, created=trained.created)
        file.attrs["accuracy"] = trained.accuracy
        file.attrs["stages"] = json.dumps(list(trained.stages))
        if trained.gate is not None:
            file.attrs["gate"] = json.dumps(asdict(trained.gate), sort_keys=True)
        for name in _JSON:
            value = getattr(trained, name)
            plain = dict(value) if isinstance(value, Mapping) else list(value)
            file.attrs[name] = json.dumps(plain, sort_keys=True)
        if trained.report is not None:
            file.attrs["report"] = json.dumps(asdict(trained.report), sort_keys=True)
        _write_state(file, "model", trained.model)
        if trained.estimator is not None:
            _write_state(file, "estimator", trained.estimator)
        if trained.centroids is not None:
            _write_centroids(file, trained)
        history = file.create_group("history")
        for name, values in trained.history.items():
            history.create_dataset(name, data=np.asarray(values))

    write_whole(path, fill)


def read_trained_classifier(path: str | Path, model: nn.Module | None = None) -> TrainedClassifier:
    """Read a classifier.

    Args:
        path: the file.
        model: of a file with a loss estimator for a model of one's own, that model, without the
            normalisation; its parameters become those of the file.

    Raises:
        ConfigurationError: no model of one's own where the file needs one, or one where not.
        FileFormatError: missing, truncated, foreign, of a newer version, or with parameters that
            do not belong to its architecture.
        DataError: parameters that are not finite.
    """
    with open_hdf5(path, _EXPECTED) as file:
        check_format(file, FORMAT, VERSION, _EXPECTED)
        values = {name: json.loads(get_attribute(file, name)) for name in _JSON}
        is_own = values["architecture"]["name"] not in ARCHITECTURES
        _check_own(values["architecture"], is_own, model)
        stages = tuple(json.loads(file.attrs.get("stages", json.dumps(STAGES))))
        if is_own:
            assert model is not None
            model = with_normalisation(model, values["architecture"]["normalisation"])
            centroids, centroid_report = None, None
        else:
            model = make_classifier(**values["architecture"])
            centroids, centroid_report = _read_centroids(file, model)
        if centroids is not None and get_attribute(file["centroids"], "is_classifier"):
            model = with_centroids(model, centroids, TRUNK)
        _load(model, get_group(file, "model"))
        estimator, report = None, None
        if "estimator" in file:
            estimator = _read_estimator(get_group(file, "estimator"), len(stages))
            if "report" in file.attrs:
                report = HeadReport(**json.loads(get_attribute(file, "report")))
        history = get_group(file, "history")
        return TrainedClassifier(
            model=model,
            estimator=estimator,
            report=report,
            history={name: get_dataset(history, name)[()] for name in history},
            duration_s=float(get_attribute(file, "duration_s")),
            created=str(get_attribute(file, "created")),
            centroids=centroids,
            centroid_report=centroid_report,
            accuracy=float(file.attrs.get("accuracy", math.nan)),
            gate=_read_gate(file),
            stages=stages,
            **values
            | {
                "image_shape": tuple(values["image_shape"]),
                "classes": tuple(values["classes"]),
            },
        )


def _check_own(architecture: Mapping[str, Any], is_own: bool, model: nn.Module | None) -> None:
    """Nothing that a file names is executed: the code of a model is named by the user."""
    if is_own and model is None:
        raise ConfigurationError(
            f"it holds the loss estimator of a model of your own, {architecture['name']}: give "
            "that with --model (in Python: model) too."
        )
    if not is_own and model is not None:
        raise ConfigurationError("it holds a classifier of dipct, whole; name no model with it.")


def _read_estimator(group: h5py.Group, stages: int) -> LossEstimator:
    # Torch initialises modules from its global stream.
    with torch.random.fork_rng(devices=[]):
        weights = [get_dataset(group, f"stages.{i}.weight") for i in range(stages)]
        width, _ = weights[0].shape
        estimator = LossEstimator([each.shape[1] for each in weights], width=width)
    _load(estimator, group)
    return estimator


def _read_gate(file: h5py.File) -> SceneGate | None:
    if "gate" not in file.attrs:
        return None
    return SceneGate(**json.loads(get_attribute(file, "gate")))


def _write_state(file: h5py.File, name: str, module: nn.Module) -> h5py.Group:
    group = file.create_group(name)
    for key, value in module.state_dict().items():
        group.create_dataset(key, data=value.cpu().numpy())
    return group


def _write_centroids(file: h5py.File, trained: TrainedClassifier) -> None:
    head = trained.centroids
    assert head is not None
    group = _write_state(file, "centroids", head)
    group.attrs.update(
        is_classifier=isinstance(trained.model.fc, CentroidLogits),
        length_scale=head.length_scale,
        decay=head.decay,
    )
    if trained.centroid_report is not None:
        group.attrs["report"] = json.dumps(asdict(trained.centroid_report), sort_keys=True)


def _read_centroids(
    file: h5py.File, model: ResNet
) -> tuple[CentroidHead | None, CentroidReport | None]:
    if "centroids" not in file:
        return None, None
    group = get_group(file, "centroids")
    # Torch initialises modules from its global stream.
    with torch.random.fork_rng(devices=[]):
        head = CentroidHead(
            model.fc.in_features,
            model.fc.out_features,
            centroid_size=get_dataset(group, "weight").shape[0],
            length_scale=get_attribute(group, "length_scale"),
            decay=get_attribute(group, "decay"),
        )
    _load(head, group)
    report = None
    if "report" in group.attrs:
        report = CentroidReport(**json.loads(get_attribute(group, "report")))
    return head, report


def _load(module: nn.Module, group: h5py.Group) -> None:
    wanted = module.state_dict()
    if set(group) != set(wanted):
        missing, unknown = sorted(set(wanted) - set(group)), sorted(set(group) - set(wanted))
        raise FileFormatError(
            f"the parameters of {group.name} are not those of the architecture: "
            f"{len(missing)} are missing and {len(unknown)} unknown."
        )
    state = {}
    for name, tensor in wanted.items():
        values = torch.from_numpy(np.asarray(get_dataset(group, name)[()]))
        if values.shape != tensor.shape:
            raise FileFormatError(
                f"{group.name}/{name} must have shape {tuple(tensor.shape)}; the file holds "
                f"{tuple(values.shape)}."
            )
        # A loss estimator that was not calibrated has no quantiles.
        if name not in QUANTILES and not bool(torch.isfinite(values).all()):
            raise DataError(f"{group.name}/{name} holds values that are not finite; train again.")
        state[name] = values.to(tensor.dtype)
    module.load_state_dict(state)
    module.eval()
