"""The verb train_classifier: a classifier with the heads that counterfactuals need."""

import copy
import hashlib
import json
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipct.checkpoint import stopped
from dipct.classifier import STAGES, TRUNK, CentroidHead, LossEstimator
from dipct.classifier_settings import ClassifierSettings
from dipct.device import find_device
from dipct.errors import ConfigurationError, ConvergenceError, Interrupted
from dipct.operator import LOGITS
from dipct.pipeline.labelled import gate_seed, task_of
from dipct.pipeline.training import TrainingCheckpoint
from dipct.pretrain import (
    CentroidReport,
    CentroidTraining,
    CentroidTrainingSettings,
    ClassifierTraining,
    ClassifierTrainingSettings,
    HeadReport,
    LabelledImages,
    TrainedClassifier,
    make_classifier,
    make_loss_estimator,
    report_centroids,
    report_head,
    scene_gate,
)
from dipct.progress import ProgressDisplay
from dipct.run import installed_versions
from dipct.solver import Solution, Status, iterate

_LOGGED = 20
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
    if settings is not None and values:
        raise ConfigurationError(
            f"Give settings or their values by name, not both; got {', '.join(values)} too."
        )
    settings = settings or ClassifierSettings.from_values(values)
    if training.classes != held_out.classes or training.image_shape != held_out.image_shape:
        raise ConfigurationError(
            "The images to train on and those held out must have the same classes and shape; got "
            f"{training.classes} of {training.image_shape} and {held_out.classes} of "
            f"{held_out.image_shape}."
        )
    kept_in = TrainingCheckpoint(None if checkpoint is None else Path(checkpoint), resume)
    elapsed = kept_in.elapsed
    began, device = time.perf_counter() - elapsed, find_device(settings.device)
    architecture = {
        "name": settings.architecture,
        "classes": len(training.classes),
        "in_channels": training.image_shape[0],
    }
    method = _method(training, settings, architecture, device)
    solution = _trained(method, training, settings, kept_in, elapsed, progress, device)
    model, estimator = (m if m is None else m.cpu() for m in method.modules(solution.state.tensors))
    report = None
    if estimator is not None:
        images, labels = (torch.from_numpy(part) for part in (held_out.images, held_out.labels))
        report = report_head(model, estimator, STAGES, images, labels, seed=settings.seed)
    trained = _described(model, estimator, report, training, settings, architecture, solution)
    trained = replace(trained, accuracy=_accuracy(trained, held_out))
    task = task_of(trained)
    if task is not None:
        gate = scene_gate(model, task, number=_GATE_PICTURES, seed=gate_seed(settings))
        trained = replace(trained, gate=gate)
    if settings.centroids:
        head, centroid_report = _centroids(trained, training, held_out, settings, progress)
        trained = replace(trained, centroids=head, centroid_report=centroid_report)
    return replace(trained, duration_s=time.perf_counter() - began)


def _described(
    model: nn.Module,
    estimator: LossEstimator | None,
    report: HeadReport | None,
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
        report=report,
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
        ClassifierTrainingSettings(
            steps=settings.steps,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            ranking_weight=settings.ranking_weight,
            variant=settings.variant,
            detach_after=settings.detach_after,
            flip=settings.flip,
            shift=settings.shift,
            seed=settings.seed,
        ),
        estimator=estimator,
        stages=STAGES,
    )


def _trained(
    method: ClassifierTraining,
    training: LabelledImages,
    settings: ClassifierSettings,
    kept_in: TrainingCheckpoint,
    elapsed: float,
    progress: bool,
    device: torch.device,
) -> Solution:
    problem = _digest(training, settings)
    state, writer = kept_in.state(problem, device), kept_in.writer(problem, elapsed)
    display = ProgressDisplay("training", settings.steps) if progress else nullcontext()
    with display as shown:
        solution = iterate(
            method,
            max_iterations=settings.steps,
            state=state,
            every=_LOGGED,
            callbacks=[each for each in (shown, writer) if each is not None],
        )
    if solution.status is Status.INTERRUPTED:
        raise stopped(f"Stopped after {solution.iterations} steps", solution.state, writer)
    if solution.status is Status.DIVERGED:
        raise ConvergenceError("The training diverged. Use a lower learning_rate.")
    return solution


def _centroids(
    trained: TrainedClassifier,
    training: LabelledImages,
    held_out: LabelledImages,
    settings: ClassifierSettings,
    progress: bool,
) -> tuple[CentroidHead, CentroidReport]:
    """Centroids of the features of a classifier that stays as it is, and what they are worth."""
    device = find_device(settings.device)
    method = CentroidTraining(
        copy.deepcopy(trained.model).to(device),
        torch.from_numpy(training.images).to(device),
        torch.from_numpy(training.labels).to(device),
        CentroidTrainingSettings(
            steps=settings.centroid_steps,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            flip=settings.flip,
            shift=settings.shift,
            seed=settings.seed,
        ),
    )
    display = ProgressDisplay("centroids", settings.centroid_steps) if progress else nullcontext()
    with display as shown:
        callbacks = [] if shown is None else [shown]
        steps = settings.centroid_steps
        solution = iterate(method, max_iterations=steps, every=_LOGGED, callbacks=callbacks)
    if solution.status is Status.INTERRUPTED:
        raise Interrupted("Stopped while the centroids were fitted.")
    if solution.status is Status.DIVERGED:
        raise ConvergenceError(
            "The fit of the centroids diverged. Use a lower learning_rate, or no centroids."
        )
    head = method.modules(solution.state.tensors)[1].cpu()
    images, labels = (torch.from_numpy(part) for part in (held_out.images, held_out.labels))
    report = report_centroids(trained.model, head, TRUNK, images, labels, seed=settings.seed)
    return head, report


@torch.no_grad()
def _accuracy(trained: TrainedClassifier, images: LabelledImages) -> float:
    operator = trained.features([LOGITS])
    parts = torch.from_numpy(images.images).split(_AT_ONCE)
    seen = torch.cat([operator(part).argmax(-1) for part in parts]).numpy()
    return float((seen == images.labels).mean())


def _digest(training: LabelledImages, settings: ClassifierSettings) -> str:
    """Of all that decides the course of the training."""
    values = settings.to_values() | {"classes": training.classes}
    values.pop("device")
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for array in (training.images, training.labels):
        digest.update(array.tobytes())
    return digest.hexdigest()
