"""The verb counterfactual: images like a query that a classifier sees in another class."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipct.device import find_device
from dipct.errors import ConfigurationError, ShapeError
from dipct.generator import Generator, PixelImage, RegionGenerator
from dipct.inversion import Counterfactual
from dipct.inversion_settings import CounterfactualSettings
from dipct.objective import PROBABILITY_TOLERANCE, DataTerm
from dipct.operator import LOGITS
from dipct.pipeline.counterfactual_problem import (
    OtherClassifier,
    check_steps,
    counterfactual_fit,
    counterfactual_problem,
)
from dipct.pipeline.counterfactual_result import counterfactual_results
from dipct.pipeline.inversion import digest_of, heads_and_model, solve_in_stage
from dipct.pipeline.inversion_terms import (
    checked_images,
    feature_operator,
    fidelity_layers,
    warn_of_weak_head,
)
from dipct.pipeline.query_generator import fit_to_queries, query_generator
from dipct.pipeline.stages import Stages
from dipct.pretrain import TrainedClassifier
from dipct.settings import refuse_both
from dipct.shapes import check_shape


def counterfactual(
    classifier: TrainedClassifier,
    queries: np.ndarray | Tensor,
    targets: int | Sequence[int] | None = None,
    settings: CounterfactualSettings | None = None,
    *,
    region: np.ndarray | None = None,
    others: Sequence[OtherClassifier] = (),
    measurement: DataTerm | None = None,
    initial: Tensor | None = None,
    source: str = "",
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    **values: Any,
) -> list[Counterfactual]:
    """Find images like queries that a classifier sees in other classes.

    Deep inversion of the classifier (Narayanaswamy et al., arXiv 2010.12046; Thiagarajan et al.,
    arXiv 2109.14274): the image of a generator, whose hidden features or pixels are near those of
    the query, consistent with the manifold of images, and in the target class. Several queries are
    solved at once, each as if it were alone.

    Args:
        classifier: to be explained; it is not changed.
        queries: from zero to one, [C H W] or [B C H W].
        targets: wanted class, or one for each query; default: of each the most probable of the
            classes that the classifier does not see.
        settings: how, or give the ``method`` (default: disc) and others by name.
        region: where the images may differ from the queries, bool [H W] or [B H W]; default:
            everywhere.
        others: further classifiers, whose classes are to change too or to stay.
        measurement: misfit of an image to a scan, for queries that come from one: what a scan
            determines cannot be changed. See :func:`dipct.pipeline.measurement_of`.
        initial: parameters of the generator that make the queries, [B P], from an earlier fit.
        source: what the queries were read from, for the record.
        checkpoint: folder to keep finished parts and the state of the fit in; it stays until the
            caller removes it with :func:`dipct.pipeline.stages.remove_stages`.
        resume: go on from there.
        progress: show a progress display.
        **values: fields of :class:`dipct.inversion_settings.CounterfactualSettings`.

    Returns:
        One result for each query, valid or not.

    Raises:
        ShapeError: queries of another shape than the classifier's images, or not one target each.
        DataError: values outside zero to one.
        ConfigurationError: a target that does not exist or that is reached already, or
            settings that ask for what the classifier does not have.
        Interrupted: stopped by the user; what is finished is kept.
    """
    began = time.perf_counter()
    refuse_both(settings, values)
    if settings is None:
        settings = CounterfactualSettings.of_method(values.pop("method", "disc"), values)
    weight = type(settings).model_fields["measurement_weight"].default
    if measurement is None and settings.measurement_weight != weight:
        raise ConfigurationError(
            "measurement_weight has no effect without a measurement; give one, or leave it out."
        )
    device = find_device(settings.device)
    images = checked_images(classifier, torch.as_tensor(queries)).to(device)
    layers = fidelity_layers(classifier, settings) if settings.space == "features" else ()
    operator = feature_operator(classifier, layers, settings, device)
    with torch.no_grad():
        before = operator.split(operator(images))[LOGITS].softmax(-1)
    if before.shape[-1] < 2:
        raise ConfigurationError(
            "The classifier has one logit z, and a counterfactual needs another class. Wrap it in "
            "a module that gives the logits -z / 2 and z / 2."
        )
    predicted = before.argmax(-1)
    wanted = _checked_targets(classifier, targets, before).to(device)
    _check_not_there(classifier, before, wanted, settings)
    allowed = _checked_region(region, images)
    if settings.jitter and (allowed is not None or measurement is not None):
        raise ConfigurationError(
            "Under jitter the moved image is seen, and neither a region nor a measurement moves "
            "with it. Leave them out, or give jitter 0."
        )
    warn_of_weak_head(classifier, settings)
    problem = counterfactual_problem(
        classifier,
        operator,
        images,
        predicted,
        wanted,
        settings,
        others=others,
        measurement=measurement,
    )
    if initial is not None:
        initial = torch.as_tensor(initial)
    generator = query_generator(
        settings,
        operator.domain_shape,
        pixel_output="identity" if settings.optimiser == "sign" else "sigmoid",
    ).to(device)
    check_steps(generator, settings)
    if initial is not None:
        check_shape(
            initial,
            "B P",
            name="The initial parameters",
            B=len(images),
            P=generator.n_parameters,
        )
    stages = Stages(
        None if checkpoint is None else Path(checkpoint),
        digest_of(
            [*heads_and_model(classifier), *(other.classifier.model for other in others)],
            [images, wanted, allowed, initial, *_measured(measurement, images)],
            settings,
            others=[(other.target, other.weight) for other in others],
        ),
        resume=resume,
    )
    if initial is None:
        initial = _initial(generator, images, settings, stages, progress)
    whole = generator if allowed is None else RegionGenerator(generator, images, allowed)
    fit = counterfactual_fit(problem, whole, initial.to(images), images, settings)
    solution = solve_in_stage(
        "fit", fit, settings.steps, stages, device, title=settings.method, progress=progress
    )
    return counterfactual_results(
        classifier,
        problem,
        generator,
        images,
        before,
        solution,
        settings,
        others=others,
        measurement=measurement,
        allowed=allowed,
        source=source,
        seconds=time.perf_counter() - began + stages.saved_seconds,
    )


def _checked_targets(
    classifier: TrainedClassifier, targets: int | Sequence[int] | None, before: Tensor
) -> Tensor:
    """Wanted classes, [B], from probabilities of the queries [B K]."""
    number = len(before)
    if targets is None:
        return before.topk(2, dim=-1).indices[:, 1]
    try:
        wanted = torch.as_tensor(targets).flatten()
    except (TypeError, ValueError, RuntimeError):
        wanted = torch.zeros(0)
    if wanted.is_floating_point() or wanted.dtype == torch.bool:
        raise ConfigurationError(
            f"target must be numbers of classes; got {targets!r}. The number of a name is "
            "classifier.class_number(name)."
        )
    wanted = wanted.long()
    wanted = wanted.expand(number).clone() if len(wanted) == 1 else wanted
    if len(wanted) != number:
        raise ShapeError(f"Give one target, or one for each of {number} queries; got {targets}.")
    count = len(classifier.classes)
    if not bool(((wanted >= 0) & (wanted < count)).all()):
        named = ", ".join(f"{i} {name}" for i, name in enumerate(classifier.classes))
        raise ConfigurationError(f"target must be one of {named}; got {targets}.")
    return wanted


def _check_not_there(
    classifier: TrainedClassifier, before: Tensor, wanted: Tensor, settings: CounterfactualSettings
) -> None:
    """Refuse targets that the queries, of probabilities [B K], have reached."""
    if settings.is_graded:
        distance = before.gather(-1, wanted[:, None])[:, 0] - settings.class_probability
        is_there = distance.abs() <= PROBABILITY_TOLERANCE
    else:
        is_there = before.argmax(-1) == wanted
    there = is_there.nonzero().flatten().tolist()
    if not there:
        return
    name = classifier.classes[int(wanted[there[0]])]
    which = "the query" if len(wanted) == 1 else f"queries {', '.join(map(str, there))}"
    if settings.is_graded:
        raise ConfigurationError(
            f"The classifier gives {name!r} a probability within {PROBABILITY_TOLERANCE} of "
            f"{settings.class_probability} in {which} already; choose another class_probability "
            "or target."
        )
    raise ConfigurationError(
        f"The classifier sees {name!r} in {which} already; choose another target."
    )


def _checked_region(region: np.ndarray | None, images: Tensor) -> Tensor | None:
    """Where each image may change, bool [B H W]."""
    if region is None:
        return None
    allowed = torch.as_tensor(region).to(images.device)
    plane = tuple(images.shape[-2:])
    shapes = (plane, (len(images), *plane))
    if allowed.dtype != torch.bool or tuple(allowed.shape) not in shapes:
        raise ShapeError(
            f"region must hold true or false, {shapes[0]} or {shapes[1]}; got "
            f"{tuple(allowed.shape)} of {allowed.dtype}."
        )
    allowed = allowed.expand(shapes[1])
    empty = (~allowed.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ConfigurationError(
            f"region must be true somewhere for every query; it is nowhere for {empty}."
        )
    return allowed


def _measured(measurement: DataTerm | None, images: Tensor) -> list[Tensor]:
    """What tells one measurement from another."""
    if measurement is None:
        return []
    with torch.no_grad():
        made = measurement.operator(images)
        fidelity = measurement.fidelity
        return [made, fidelity.projections, fidelity.value(made), fidelity.value(0.5 * made)]


def _initial(
    generator: Generator,
    images: Tensor,
    settings: CounterfactualSettings,
    stages: Stages,
    progress: bool,
) -> Tensor:
    """First parameters, [B P]: those of the queries, unless random ones are asked for."""
    if isinstance(generator, PixelImage):
        return generator.parameters_of(images)
    # All from the same network, so that a batch is the same as one query after another.
    first = generator.initial(settings.seed).to(images).expand(len(images), -1).contiguous()
    if settings.start == "random":
        return first
    solution = solve_in_stage(
        "start",
        fit_to_queries(generator, images, first, learning_rate=settings.fit_learning_rate),
        settings.fit_steps,
        stages,
        images.device,
        title="fitting the query",
        progress=progress,
    )
    return solution.state.tensors["chosen"]
