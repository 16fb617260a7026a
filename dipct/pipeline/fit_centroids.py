"""Centroids of the classes for a classifier that is trained, and what they are worth."""

import copy
from dataclasses import replace

import torch

from dipct.classifier import TRUNK
from dipct.classifier_settings import ClassifierSettings
from dipct.device import find_device
from dipct.pipeline.inversion import digest_of_models
from dipct.pipeline.training import TrainingCheckpoint, fit
from dipct.pretrain import (
    CentroidTraining,
    CentroidTrainingSettings,
    LabelledImages,
    TrainedClassifier,
    report_centroids,
)


def centroid_settings(settings: ClassifierSettings) -> CentroidTrainingSettings:
    """Those of the fit of centroids.

    Raises:
        ConfigurationError: fewer steps than it needs.
    """
    return CentroidTrainingSettings(
        steps=settings.centroid_steps,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        flip=settings.flip,
        shift=settings.shift,
        noise=settings.noise,
        seed=settings.seed,
    )


def fit_centroids(
    trained: TrainedClassifier,
    training: LabelledImages,
    held_out: LabelledImages,
    settings: ClassifierSettings,
    kept_in: TrainingCheckpoint,
    problem: str,
    *,
    progress: bool,
) -> TrainedClassifier:
    """Fit centroids of its features to a classifier, which stays as it is.

    Args:
        trained: the classifier.
        training: images to fit to.
        held_out: others, for the report.
        settings: how.
        kept_in: where to keep the state of the fit.
        problem: digest of all that decided the training of the classifier.
        progress: show a progress display.

    Returns:
        The classifier with centroids and their report.

    Raises:
        ConvergenceError: the fit diverged.
        Interrupted: stopped by the user; the checkpoint is kept.
    """
    device = find_device(settings.device)
    method = CentroidTraining(
        copy.deepcopy(trained.model).to(device),
        torch.from_numpy(training.images).to(device),
        torch.from_numpy(training.labels).to(device),
        centroid_settings(settings),
    )
    # The same settings may have led to another classifier, on another device.
    problem = f"{problem} {digest_of_models([trained.model])}"
    solution = fit(
        method,
        "fit of centroids",
        settings.centroid_steps,
        kept_in.state(problem, device),
        kept_in.writer(problem, kept_in.elapsed),
        progress=progress,
    )
    head = method.modules(solution.state.tensors)[1].cpu()
    images, labels = (torch.from_numpy(part) for part in (held_out.images, held_out.labels))
    report = report_centroids(
        trained.model, head, TRUNK, images, labels, seed=settings.seed, noise=settings.noise
    )
    return replace(trained, centroids=head, centroid_report=report)
