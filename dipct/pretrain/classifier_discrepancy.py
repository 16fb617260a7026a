"""Classifier discrepancy: what a classifier learns from counterfactuals in place of real images."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from dipct.errors import ConfigurationError, ConvergenceError, DataError, ShapeError
from dipct.operator import LOGITS, FeatureOperator
from dipct.pretrain.classifier_training import ClassifierTraining, ClassifierTrainingSettings
from dipct.pretrain.trained_classifier import make_classifier
from dipct.solver import Status, iterate

LEAST_COUNTERFACTUALS = 300
"""With fewer a classifier trained on them says more of their number than of them."""

_AT_ONCE = 256


@dataclass(frozen=True)
class OverSeeds:
    """A number that depends on the seed of a training.

    Attributes:
        mean: over seeds.
        std: sample standard deviation; NaN for one seed.
        values: one for each seed.
    """

    mean: float
    std: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Mean and standard deviation of one or more values."""
        std = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), std, tuple(values))


@dataclass(frozen=True)
class Discrepancy:
    """Accuracies on real test images of classifiers trained with and without counterfactuals.

    Attributes:
        full: accuracy of the classifier explained, less that of one trained from scratch on
            real images of the first class and counterfactuals of the second (Thiagarajan et al.,
            arXiv 2109.14274, section 3.5). Also counts that the former saw more images.
        matched: likewise less than one trained on as many real images of both classes.
        matched_reconstructed: likewise where also the images of the first class went through
            the generator; None without. Far below ``matched``, the classifier had learned to
            tell images of the generator from real ones.
        accuracy: of the classifier explained.
        accuracy_control: trained on as many real images.
        accuracy_counterfactual: trained on counterfactuals.
        accuracy_reconstructed: trained on reconstructions and counterfactuals; None without.
        seeds: of the trainings.
        counterfactuals: how many; so many images of the other class as well.
        test_images: how many.
    """

    full: OverSeeds
    matched: OverSeeds
    matched_reconstructed: OverSeeds | None
    accuracy: float
    accuracy_control: OverSeeds
    accuracy_counterfactual: OverSeeds
    accuracy_reconstructed: OverSeeds | None
    seeds: tuple[int, ...]
    counterfactuals: int
    test_images: int


def classifier_discrepancy(
    classifier: nn.Module,
    *,
    sources: Tensor,
    targets: Tensor,
    counterfactuals: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    settings: ClassifierTrainingSettings,
    pair: tuple[int, int] = (0, 1),
    reconstructions: Tensor | None = None,
    architecture: str = "small",
    seeds: Sequence[int] = (0, 1, 2),
    control: Sequence[float] | None = None,
    least: int = LEAST_COUNTERFACTUALS,
) -> Discrepancy:
    """Measure how far counterfactuals can replace real images in training.

    Every training is from scratch with the same settings; those of one seed begin with the same
    parameters and see the same batches. Of sources, targets and reconstructions as many are taken
    as there are counterfactuals, the first ones. A small discrepancy alone does not show that
    edits mean something: what fools a classifier can teach another one (Ilyas et al., NeurIPS
    2019).

    Args:
        classifier: the one explained, maps images [N C H W] to logits [N K].
        sources: real images of the first class, from zero to one, [N C H W].
        targets: real images of the second class.
        counterfactuals: of the second class.
        test_images: real images of both that none of the others are among.
        test_labels: their classes in the classifier's numbers, int64 [N].
        settings: of the trainings; its seed is replaced.
        pair: numbers of the first and the second class; the other logits are left out.
        reconstructions: the sources through the generator of the counterfactuals, in their order.
        architecture: of the classifiers trained, see :func:`dipct.pretrain.make_classifier`.
        seeds: of the trainings.
        control: ``accuracy_control.values`` of an earlier call, in which all was the same but
            counterfactuals and reconstructions; default: train the control too.
        least: fewest counterfactuals that this is computed for.

    Raises:
        ConfigurationError: too few images, a pair or seeds that are impossible, or labels that
            are not of the pair.
        ShapeError: images that do not fit together.
        DataError: values that are not finite.
        ConvergenceError: a training that diverged.
        KeyboardInterrupt: stopped by the user.
    """
    number = len(counterfactuals)
    given = {
        "counterfactuals": counterfactuals,
        "sources": sources,
        "targets": targets,
        "test_images": test_images,
    }
    if reconstructions is not None:
        given["reconstructions"] = reconstructions
    _check_images(given, number, least)
    _check_numbers(test_images, test_labels, pair, seeds)
    if control is not None and len(control) != len(seeds):
        raise ConfigurationError(
            f"control must have one accuracy for each of {len(seeds)} seeds; got {len(control)}."
        )
    labels = (test_labels == pair[1]).long()
    accuracy = _accuracy(classifier, test_images, labels, pair)

    def accuracies(zeros: Tensor, ones: Tensor) -> list[float]:
        models = (
            _trained(zeros[:number], ones[:number], replace(settings, seed=seed), architecture)
            for seed in seeds
        )
        return [_accuracy(model, test_images, labels, (0, 1)) for model in models]

    control = accuracies(sources, targets) if control is None else control
    other = accuracies(sources, counterfactuals)
    artefact = None if reconstructions is None else accuracies(reconstructions, counterfactuals)
    return Discrepancy(
        full=OverSeeds.of([accuracy - each for each in other]),
        matched=_difference(control, other),
        matched_reconstructed=None if artefact is None else _difference(control, artefact),
        accuracy=accuracy,
        accuracy_control=OverSeeds.of(control),
        accuracy_counterfactual=OverSeeds.of(other),
        accuracy_reconstructed=None if artefact is None else OverSeeds.of(artefact),
        seeds=tuple(seeds),
        counterfactuals=number,
        test_images=len(test_images),
    )


def _difference(one: Sequence[float], other: Sequence[float]) -> OverSeeds:
    """Seed by seed."""
    return OverSeeds.of([a - b for a, b in zip(one, other, strict=True)])


def _trained(
    zeros: Tensor, ones: Tensor, settings: ClassifierTrainingSettings, architecture: str
) -> nn.Module:
    """A new classifier of two kinds of images."""
    model = make_classifier(
        architecture, classes=2, in_channels=zeros.shape[1], seed=settings.seed
    ).to(zeros)
    labels = torch.arange(2, device=zeros.device).repeat_interleave(len(ones))
    method = ClassifierTraining(model, torch.cat([zeros, ones]), labels, settings)
    solution = iterate(method, max_iterations=settings.steps, every=settings.steps)
    if solution.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    if solution.status is Status.DIVERGED:
        raise ConvergenceError(
            f"The training with seed {settings.seed} diverged; take a smaller learning_rate than "
            f"{settings.learning_rate}."
        )
    trained, _ = method.modules(solution.state.tensors)
    return trained


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor, pair: tuple[int, int]) -> float:
    """Share of images of a pair of classes that are told apart rightly."""
    operator = FeatureOperator(model, [LOGITS], tuple(images.shape[1:]))
    (classes,) = operator.range_shape
    if not all(0 <= number < classes for number in pair):
        raise ConfigurationError(f"pair must be classes from 0 to {classes - 1}; got {pair}.")
    logits = torch.cat([operator(part) for part in images.split(_AT_ONCE)])
    return float((logits[:, list(pair)].argmax(1) == labels).double().mean())


def _check_images(given: dict[str, Tensor], number: int, least: int) -> None:
    if number < max(least, 1):
        raise ConfigurationError(
            f"Classifier discrepancy needs {max(least, 1)} counterfactuals or more; got {number}. "
            "A classifier trained on fewer says more of their number than of what they show."
        )
    shape = given["counterfactuals"].shape[1:]
    for name, images in given.items():
        if images.ndim != 4 or images.shape[1:] != shape:
            raise ShapeError(
                f"{name} must be images [N C H W] like the counterfactuals, "
                f"{tuple(given['counterfactuals'].shape)}; got {tuple(images.shape)}."
            )
        if name != "test_images" and len(images) < number:
            raise ConfigurationError(
                f"There must be as many {name} as counterfactuals, {number}; got {len(images)}."
            )
        if not bool(torch.isfinite(images).all()):
            raise DataError(f"{name} hold values that are not finite.")


def _check_numbers(
    images: Tensor, labels: Tensor, pair: tuple[int, int], seeds: Sequence[int]
) -> None:
    if labels.shape != images.shape[:1] or len(images) == 0:
        raise ShapeError(
            "There must be test images with one label each; got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}."
        )
    if len(pair) != 2 or pair[0] == pair[1]:
        raise ConfigurationError(f"pair must be two classes; got {pair}.")
    found = sorted(set(labels.tolist()))
    if found != sorted(pair):
        raise ConfigurationError(
            f"The test images must be of both classes {pair[0]} and {pair[1]} and no other; got "
            f"those of {found}."
        )
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigurationError(f"seeds must be one or more, each once; got {list(seeds)}.")
