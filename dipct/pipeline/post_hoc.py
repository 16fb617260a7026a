"""The verb train_loss_estimator: a loss estimator for a classifier that stays as it is."""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dipct.checkpoint import stopped
from dipct.classifier import STAGES, LossEstimator
from dipct.classifier_settings import ClassifierSettings
from dipct.device import find_device
from dipct.errors import ConfigurationError, ShapeError
from dipct.pipeline.inversion import digest_of_models
from dipct.pipeline.train_classifier import digest_of_training, training_settings
from dipct.pipeline.training import TrainingCheckpoint, fit
from dipct.pretrain import (
    ClassifierTraining,
    LabelledImages,
    TrainedClassifier,
    report_head,
)
from dipct.run import installed_versions
from dipct.settings import refuse_both

# What belongs to the training of the classifier itself.
_OF_THE_CLASSIFIER = ("architecture", "weight_decay", "detach_after", "loss_estimator", "centroids")


def train_loss_estimator(
    classifier: TrainedClassifier,
    training: LabelledImages,
    held_out: LabelledImages,
    settings: ClassifierSettings | None = None,
    *,
    layers: Sequence[str] = (),
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    **values: Any,
) -> TrainedClassifier:
    """Train a loss estimator for a classifier that stays as it is, and report what it is worth.

    Post hoc, in place of joint training (arXiv 2010.12046, section 3.1): the loss estimator learns
    to rank the losses that the classifier has. Images that the classifier was trained with have
    losses near zero, whose order is noise: take others.

    Args:
        classifier: such as a model of one's own; it is not changed.
        training: images with labels to train on, of the classifier's shape and classes.
        held_out: others, for the report and the target of the estimator.
        settings: how, or give them by name.
        layers: whose features it takes, each with channels and pixels; default: the four stages of
            a residual network.
        checkpoint: see :func:`dipct.pipeline.train_classifier`.
        resume: likewise.
        progress: likewise.
        **values: fields of :class:`dipct.classifier_settings.ClassifierSettings`.

    Returns:
        The classifier, in float32, with its loss estimator and the report.

    Raises:
        ConfigurationError: images of other classes, settings that are of the training of a
            classifier, or layers that it does not have.
        ShapeError: images of another shape, or layers without pixels.
        ConvergenceError: the training diverged.
        Interrupted: stopped by the user; the checkpoint is kept.
    """
    refuse_both(settings, values)
    settings = settings or ClassifierSettings.from_values(values)
    settings = post_hoc_settings(classifier, settings, layers)
    _check_images(classifier, training, held_out)
    kept_in = TrainingCheckpoint(None if checkpoint is None else Path(checkpoint), resume)
    elapsed = kept_in.elapsed
    began, device = time.perf_counter() - elapsed, find_device(settings.device)
    model = copy.deepcopy(classifier.model).float().eval()
    shapes = _shapes_of_stages(classifier, layers)
    stages = tuple(shapes)
    # Torch initialises modules from its global stream.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        estimator = LossEstimator([shapes[name][0] for name in stages])
    method = ClassifierTraining(
        model.to(device),
        torch.from_numpy(training.images).to(device),
        torch.from_numpy(training.labels).to(device),
        training_settings(settings, post_hoc=True),
        estimator=estimator.to(device),
        stages=stages,
    )
    problem = f"{digest_of_training(training, settings)} {digest_of_models([model])} {stages}"
    state, writer = kept_in.state(problem, device), kept_in.writer(problem, elapsed)
    title = "training of the loss estimator"
    solution = fit(method, title, settings.steps, state, writer, progress=progress)
    if writer is not None:
        # The report takes its time, and shall not cost the training when it is stopped.
        writer.keep(solution.state)
    _, found = method.modules(solution.state.tensors)
    assert found is not None
    images, labels = (torch.from_numpy(part) for part in (held_out.images, held_out.labels))
    model, found = model.cpu(), found.cpu()
    try:
        report = report_head(
            model, found, stages, images, labels, seed=settings.seed, noise=settings.noise
        )
    except KeyboardInterrupt:
        raise stopped("Stopped after the training", solution.state, writer) from None
    return replace(
        classifier,
        model=model,
        classes=training.classes,
        estimator=found,
        stages=stages,
        report=report,
        accuracy=report.accuracy,
        task=dict(training.source),
        settings=settings.to_values(),
        history={name: values.numpy() for name, values in solution.history.items()},
        duration_s=time.perf_counter() - began,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=installed_versions(),
    )


def post_hoc_settings(
    classifier: TrainedClassifier, settings: ClassifierSettings, layers: Sequence[str]
) -> ClassifierSettings:
    """Settings for a classifier that stays as it is, with the side of its images.

    Args:
        classifier: that stays as it is.
        settings: as given.
        layers: whose features the loss estimator shall take; may be none.

    Raises:
        ConfigurationError: settings that are of the training of a classifier, another side than
            that of its images, or layers that it does not have.
        ShapeError: layers without pixels.
    """
    fields = type(settings).model_fields
    changed = [n for n in _OF_THE_CLASSIFIER if getattr(settings, n) != fields[n].default]
    if changed:
        raise ConfigurationError(
            f"{', '.join(changed)} belong to the training of a classifier, and this one stays as "
            "it is; leave them out."
        )
    side = classifier.image_shape[1]
    if settings.side not in (None, side):
        raise ConfigurationError(
            f"The classifier takes images of {side} pixels along a side; got side {settings.side}. "
            "Leave it out."
        )
    _shapes_of_stages(classifier, layers)
    return settings.model_copy(update={"side": side})


def _shapes_of_stages(
    classifier: TrainedClassifier, layers: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Of the features that the loss estimator takes, by layer."""
    stages = _stages(classifier.model, layers)
    shapes = classifier.features(stages).shapes
    flat = [name for name in stages if len(shapes[name]) != 3]
    if flat:
        raise ShapeError(
            f"The loss estimator averages features over pixels; {', '.join(flat)} has "
            f"{shapes[flat[0]]}. Name layers with channels and pixels."
        )
    return {name: shapes[name] for name in stages}


def _check_images(
    classifier: TrainedClassifier, training: LabelledImages, held_out: LabelledImages
) -> None:
    numbered = tuple(map(str, range(len(classifier.classes))))
    for images in (training, held_out):
        if images.image_shape != tuple(classifier.image_shape):
            raise ShapeError(
                f"The classifier takes images {tuple(classifier.image_shape)}; got "
                f"{images.image_shape}."
            )
        # Without names of its own a classifier has numbers, in the order of the images' classes.
        named = images.classes if classifier.classes == numbered else classifier.classes
        if images.classes != named or len(images.classes) != len(classifier.classes):
            raise ConfigurationError(
                f"The classifier has the classes {', '.join(classifier.classes)}, in this order; "
                f"the images have {', '.join(images.classes)}."
            )
    if training.classes != held_out.classes or len(held_out) < 2:
        raise ConfigurationError(
            "The images held out must be two or more, of the classes of those to train on; got "
            f"{len(held_out)} of {', '.join(held_out.classes)}."
        )


def _stages(model: torch.nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """Layers as given, or the usual stages, also of a model within another."""
    if layers:
        return tuple(layers)
    names = [name for name, _ in model.named_modules()]
    for prefix in ("", "model."):
        stages = tuple(f"{prefix}{stage}" for stage in STAGES)
        if all(stage in names for stage in stages):
            return stages
    raise ConfigurationError(
        "Name the layers whose features the loss estimator shall take; the model has "
        f"{', '.join(filter(None, names))}."
    )
