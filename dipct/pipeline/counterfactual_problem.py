"""The optimisation problem of counterfactuals: terms, selection and fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.generator import Generator
from dipct.inversion_settings import CounterfactualSettings
from dipct.objective import (
    ClassProbabilities,
    ClassTarget,
    DataTerm,
    FeatureFidelity,
    ImageFidelity,
    Objective,
    Term,
)
from dipct.operator import LOGITS, FeatureOperator
from dipct.pipeline.inversion_terms import (
    Weighted,
    adam_of,
    fidelity_layers,
    image_priors,
    manifold_terms,
    schedule_of,
)
from dipct.pretrain import TrainedClassifier
from dipct.solver import (
    BestValidIterate,
    GeneratorFit,
    Jittered,
    NormalisedStep,
    Optimiser,
    ProgressiveFit,
    ProjectedSignStep,
    progressive_stages,
)


@dataclass(frozen=True, eq=False)
class OtherClassifier:
    """Another classifier that has a say in a counterfactual.

    Attributes:
        classifier: of images of the same shape.
        target: class that it shall see; None keeps the probabilities that it gives the query, so
            that a smile does not make a face younger by the way.
        weight: of its term.
    """

    classifier: TrainedClassifier
    target: int | None = None
    weight: float = 0.1


@dataclass(frozen=True, eq=False)
class CounterfactualProblem:
    """What is to be solved.

    Attributes:
        operator: features and logits.
        target: the term that asks for the class.
        terms: weights and terms, the fidelity first.
    """

    operator: FeatureOperator
    target: ClassTarget
    terms: tuple[Weighted, ...]

    def objective(self, fidelity_weight: float) -> Objective:
        """The objective with another weight of the fidelity."""
        (_, fidelity), *others = self.terms
        return Objective([(fidelity_weight, fidelity), *others])

    @property
    def costs(self) -> dict[str, float]:
        """Weights of the terms that valid images are judged by: all but that of the target."""
        found = {term.name: w for w, term in self.terms if term is not self.target}
        # Where nothing else counts, the nearest image is the best.
        return found if any(found.values()) else {self.terms[0][1].name: 1.0}


def counterfactual_problem(
    classifier: TrainedClassifier,
    operator: FeatureOperator,
    queries: Tensor,
    predicted: Tensor,
    targets: Tensor,
    settings: CounterfactualSettings,
    *,
    others: Sequence[OtherClassifier] = (),
    measurement: DataTerm | None = None,
) -> CounterfactualProblem:
    """Terms and weights.

    Args:
        classifier: to be explained.
        operator: its features.
        queries: [B C H W].
        predicted: classes that the classifier sees in them, [B].
        targets: wanted classes, [B].
        settings: weights and kinds.
        others: see :class:`OtherClassifier`.
        measurement: misfit of images to a scan.

    Raises:
        ConfigurationError: settings that ask for what is not there.
        ShapeError: another classifier of images of another shape.
    """
    fidelity: Term
    if settings.space == "features":
        layers = fidelity_layers(classifier, settings)
        fidelity = FeatureFidelity(operator, queries, layers=layers, distance=settings.distance)
    else:
        fidelity = ImageFidelity(queries, distance=settings.distance)
    target = ClassTarget(
        operator,
        targets,
        loss=settings.class_loss,
        margin=settings.class_margin,
        probability=settings.class_probability,
    )
    terms: list[Weighted] = [(settings.fidelity_weight, fidelity), (settings.class_weight, target)]
    terms += manifold_terms(
        classifier, operator, queries, settings, predicted=predicted, targets=targets
    )
    terms += image_priors(operator.domain_shape, settings)
    if measurement is not None:
        terms.append((settings.measurement_weight / measurement.size, measurement))
    terms += [(other.weight, _of_other(i, other, queries)) for i, other in enumerate(others, 1)]
    return CounterfactualProblem(operator, target, tuple(terms))


def check_steps(generator: Generator, settings: CounterfactualSettings) -> None:
    """Raise a :class:`ConfigurationError` if a progressive fit has fewer steps than blocks.

    Args:
        generator: of images.
        settings: of the fit.
    """
    number = len(generator.layout.blocks)
    if settings.progressive and settings.steps < number:
        raise ConfigurationError(
            f"A progressive fit of {number} blocks needs {number} steps or more; got "
            f"{settings.steps}."
        )


def counterfactual_fit(
    problem: CounterfactualProblem,
    generator: Generator,
    initial: Tensor,
    queries: Tensor,
    settings: CounterfactualSettings,
) -> GeneratorFit:
    """The fit of a counterfactual.

    Args:
        problem: what is to be solved.
        generator: of images.
        initial: first parameters, [B P].
        queries: [B C H W], the centres of the balls of sign steps.
        settings: optimiser, schedule and what makes an image confident.
    """
    selection = BestValidIterate(
        problem.target,
        problem.costs,
        probability=settings.probability,
        patience=settings.patience,
    )
    common: dict[str, Any] = {"loss_scale": 1.0, "selection": selection}
    if settings.progressive:
        number = len(generator.layout.blocks)
        stages = progressive_stages(
            generator,
            problem.objective,
            weight=settings.fidelity_weight,
            relaxation=settings.relaxation,
            steps=settings.steps // number,
            learning_rate=settings.learning_rate,
            schedule=schedule_of(settings, settings.steps // number),
        )
        return ProgressiveFit(generator, stages, initial, **common)
    objective = problem.objective(settings.fidelity_weight)
    optimiser = _optimiser(settings, queries)
    return GeneratorFit(generator, objective, initial, optimiser=optimiser, **common)


def _optimiser(settings: CounterfactualSettings, queries: Tensor) -> Optimiser:
    image_shape = tuple(queries.shape[1:])
    found: Optimiser = adam_of(settings, settings.steps)
    if settings.optimiser == "sign":
        found = ProjectedSignStep(settings.learning_rate, settings.radius, queries.flatten(1))
    elif settings.optimiser == "normalised":
        found = NormalisedStep(settings.learning_rate, image_shape, scales=settings.scales)
    if settings.jitter:
        found = Jittered(found, image_shape, settings.jitter, seed=settings.seed)
    return found


def _of_other(number: int, other: OtherClassifier, queries: Tensor) -> ClassProbabilities:
    classifier = other.classifier
    if tuple(classifier.image_shape) != tuple(queries.shape[1:]):
        raise ShapeError(
            f"The other classifier takes images {classifier.image_shape} (channels, rows, "
            f"columns); the queries are {tuple(queries.shape[1:])}."
        )
    operator = classifier.features([LOGITS]).to(queries.device)
    count = len(classifier.classes)
    if other.target is None:
        with torch.no_grad():
            wanted = operator(queries).softmax(-1)
    elif 0 <= other.target < count:
        wanted = torch.nn.functional.one_hot(torch.tensor(other.target), count).to(queries)
    else:
        raise ConfigurationError(
            f"The other classifier has the classes 0 to {count - 1}; got {other.target}."
        )
    name = f"other {number}: {' or '.join(classifier.classes)}"
    return ClassProbabilities(operator, wanted, name=name)
