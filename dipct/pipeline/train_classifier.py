"""The verb train_classifier: a classifier with the heads that counterfactuals need."""

import hashlib
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipct.checkpoint import stopped
from dipct.classifier import STAGES, LossEstimator
from dipct.classifier_settings import ClassifierSettings
from dipct.device import find_device
from dipct.errors import ConfigurationError
from dipct.operator import LOGITS
from dipct.pipeline.fit_centroids import centroid_settings, fit_centroids
from dipct.pipeline.labelled import gate_seed, task_of
from dipct.pipeline.training import TrainingCheckpoint, fit
from dipct.pretrain import (
    ClassifierTraining,
    ClassifierTrainingSettings,
    LabelledImages,
    TrainedClassifier,
    make_classifier,
    make_loss_estimator,
    report_head,
    scene_gate,
)
from dipct.run import installed_versions
from dipct.settings import refuse_both
from dipct.solver import Solution

_AT_ONCE = 256
_GATE_PICTURES = 300


def train_classifier(
    training: LabelledImages,
    held_out: LabelledImages,
    settings: ClassifierSettings | None = None,
    *,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    **values: Any,
) -> TrainedClassifier:
    """Train a classifier with a loss estimator, and report what both are worth.

    Args:
        training: images with labels to train on.
        held_out: others of the same classes, for the report and the target of the estimator.
        settings: how, or give them by name.
        checkpoint: keep the state of the training in this file, every minute and when
            interrupted; it stays until the caller removes it.
        resume: go on from the checkpoint.
        progress: show a progress display.
        **values: fields of :class:`dipct.classifier_settings.ClassifierSettings`.

    Returns:
        The classifier, in evaluation mode on the CPU.

    Raises:
        ConfigurationError: impossible settings, or sets of other classes or images.
        ConvergenceError: the training diverged.
        Interrupted: stopped by the user; the checkpoint is kept.
    """
    refuse_both(settings, values)
    settings = settings or ClassifierSettings.from_values(values)
    if training.classes != held_out.classes or training.image_shape != held_out.image_shape:
        raise ConfigurationError(
            "The images to train on and those held out must have the same classes and shape; got "
            f"{training.classes} of {training.image_shape} and {held_out.classes} of "
            f"{held_out.image_shape}."
        )
    if len(held_out) < 2:
        # What the report would say after the training.
        raise ConfigurationError("The report takes two held-out images or more; got one.")
    kept_in = TrainingCheckpoint(None if checkpoint is None else Path(checkpoint), resume)
    elapsed = kept_in.elapsed
    began, device = time.perf_counter() - elapsed, find_device(settings.device)
    architecture = {
        "name": settings.architecture,
        "classes": len(training.classes),
        "in_channels": training.image_shape[0],
    }
    if settings.centroids:
        # Refused before the training, not after it.
        centroid_settings(settings)
    method = _method(training, settings, architecture, device)
    problem = digest_of_training(training, settings)
    state, writer = kept_in.state(problem, device), kept_in.writer(problem, elapsed)
    solution = fit(method, "training", settings.steps, state, writer, progress=progress)
    if writer is not None:
        # What follows takes its time, and shall not cost the training when it is stopped.
        writer.keep(solution.state)
    was_finished = state is not None and state.iteration == settings.steps
    kept_fit = kept_in.of_centroids(resume=was_finished)
    began -= kept_fit.elapsed
    model, estimator = (m if m is None else m.cpu() for m in method.modules(solution.state.tensors))
    trained = _described(model, estimator, training, settings, architecture, solution)
    try:
        trained = _reported(trained, held_out, settings)
        if settings.centroids:
            trained = fit_centroids(
                trained, training, held_out, settings, kept_fit, problem, progress=progress
            )
    except KeyboardInterrupt:
        raise stopped("Stopped after the training", solution.state, writer) from None
    return replace(trained, duration_s=time.perf_counter() - began)


def _reported(
    trained: TrainedClassifier, held_out: LabelledImages, settings: ClassifierSettings
) -> TrainedClassifier:
    """With what the classifier and its loss estimator are worth."""
    trained = replace(trained, accuracy=_accuracy(trained, held_out))
    model, estimator = trained.model, trained.estimator
    if estimator is not None:
        images, labels = (torch.from_numpy(part) for part in (held_out.images, held_out.labels))
        report = report_head(
            model, estimator, STAGES, images, labels, seed=settings.seed, noise=settings.noise
        )
        trained = replace(trained, report=report)
    task = task_of(trained)
    if task is not None:
        gate = scene_gate(model, task, number=_GATE_PICTURES, seed=gate_seed(settings))
        trained = replace(trained, gate=gate)
    return trained


def _described(
    model: nn.Module,
    estimator: LossEstimator | None,
    training: LabelledImages,
    settings: ClassifierSettings,
    architecture: dict[str, Any],
    solution: Solution,
) -> TrainedClassifier:
    return TrainedClassifier(
        model=model,
        architecture=architecture,
        image_shape=training.image_shape,
        classes=training.classes,
        estimator=estimator,
        report=None,
        task=dict(training.source),
        settings=settings.to_values(),
        history={name: values.numpy() for name, values in solution.history.items()},
        duration_s=0.0,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=installed_versions(),
    )


def _method(
    training: LabelledImages,
    settings: ClassifierSettings,
    architecture: dict[str, Any],
    device: torch.device,
) -> ClassifierTraining:
    model = make_classifier(**architecture, seed=settings.seed).to(device)
    estimator: LossEstimator | None = None
    if settings.loss_estimator:
        estimator = make_loss_estimator(model, seed=settings.seed).to(device)
    return ClassifierTraining(
        model,
        torch.from_numpy(training.images).to(device),
        torch.from_numpy(training.labels).to(device),
        training_settings(settings),
        estimator=estimator,
        stages=STAGES,
    )


def training_settings(
    settings: ClassifierSettings, *, post_hoc: bool = False
) -> ClassifierTrainingSettings:
    """Those of the training itself.

    Args:
        settings: whole.
        post_hoc: train the loss estimator alone.
    """
    return ClassifierTrainingSettings(
        steps=settings.steps,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        ranking_weight=settings.ranking_weight,
        variant=settings.variant,
        detach_after=settings.detach_after,
        post_hoc=post_hoc,
        flip=settings.flip,
        shift=settings.shift,
        noise=settings.noise,
        seed=settings.seed,
    )


@torch.no_grad()
def _accuracy(trained: TrainedClassifier, images: LabelledImages) -> float:
    operator = trained.features([LOGITS])
    parts = torch.from_numpy(images.images).split(_AT_ONCE)
    seen = torch.cat([operator(part).argmax(-1) for part in parts]).numpy()
    return float((seen == images.labels).mean())


def digest_of_training(training: LabelledImages, settings: ClassifierSettings) -> str:
    """Digest of all that decides the course of a training.

    Args:
        training: images to train on.
        settings: whole.
    """
    values = settings.to_values() | {"classes": training.classes}
    values.pop("device")
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for array in (training.images, training.labels):
        digest.update(array.tobytes())
    return digest.hexdigest()
