"""The verb pre_image: images with the features of a query, or that excite part of a classifier."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipct.device import find_device
from dipct.errors import ShapeError
from dipct.evaluation import psnr, ssim
from dipct.generator import PixelImage
from dipct.inversion import PreImage
from dipct.inversion_settings import PreImageSettings
from dipct.objective import FeatureActivation, FeatureFidelity, Objective
from dipct.operator import FeatureOperator
from dipct.pipeline.inversion import (
    digest_of,
    heads_and_model,
    record_of,
    solve_in_stage,
)
from dipct.pipeline.inversion_terms import (
    Weighted,
    adam_of,
    checked_images,
    feature_operator,
    fidelity_layers,
    image_priors,
    manifold_terms,
    warn_of_weak_head,
)
from dipct.pipeline.query_generator import query_generator
from dipct.pipeline.stages import Stages
from dipct.pretrain import TrainedClassifier
from dipct.settings import refuse_both
from dipct.solver import GeneratorFit, LowestObjective

_SMALLEST_FOR_SSIM = 7


def pre_image(
    classifier: TrainedClassifier,
    queries: np.ndarray | Tensor,
    settings: PreImageSettings | None = None,
    *,
    truth: np.ndarray | None = None,
    source: str = "",
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    **values: Any,
) -> list[PreImage]:
    """Recover images from their hidden features: what a layer of a classifier knows of them.

    Mahendran & Vedaldi (CVPR 2015) for pixels; Ulyanov et al. (CVPR 2018, section 3) for networks;
    with a loss estimator Narayanaswamy et al. (arXiv 2010.12046, eq. 4), which also repairs
    queries that are not natural. Every fit begins at random: nothing of the image is known but
    its features. With ``maximise`` the features of the query do not matter, and pixels begin at
    the query: activation maximisation.

    Args:
        classifier: whose features they are; it is not changed.
        queries: from zero to one, [C H W] or [B C H W].
        settings: how, or give the ``method`` (default: dip) and others by name.
        truth: images that the pre-images should be, where the queries are damaged, [C H W] or
            [B C H W]; default: the queries.
        source: what the queries were read from, for the record.
        checkpoint: see :func:`dipct.pipeline.counterfactual`.
        resume: likewise.
        progress: likewise.
        **values: fields of :class:`dipct.inversion_settings.PreImageSettings`.

    Returns:
        One result for each query.

    Raises:
        ShapeError: images of another shape than the classifier's.
        DataError: values outside zero to one.
        ConfigurationError: a layer or channel that the classifier does not have, or settings
            that ask for what is not there.
        Interrupted: stopped by the user; what is finished is kept.
    """
    began = time.perf_counter()
    refuse_both(settings, values)
    if settings is None:
        settings = PreImageSettings.of_method(values.pop("method", "dip"), values)
    device = find_device(settings.device)
    images = checked_images(classifier, torch.as_tensor(queries)).to(device)
    right = None
    if truth is not None:
        right = checked_images(classifier, torch.as_tensor(truth))
        if len(right) not in (1, len(images)):
            raise ShapeError(
                f"Give one truth, or one for each of {len(images)} queries; got {len(right)}."
            )
        right = right.expand(len(images), -1, -1, -1)
    layer, channel = _maximised(settings)
    layers = fidelity_layers(classifier, settings) if layer is None else (layer,)
    operator = feature_operator(classifier, layers, settings, device)
    warn_of_weak_head(classifier, settings)
    first: Weighted
    if layer is None:
        fidelity = FeatureFidelity(operator, images, layers=layers, distance=settings.distance)
        first = (settings.fidelity_weight, fidelity)
    else:
        first = (settings.fidelity_weight, FeatureActivation(operator, layer, channel=channel))
    objective = Objective(
        [
            first,
            *manifold_terms(classifier, operator, images, settings),
            *image_priors(operator.domain_shape, settings),
        ]
    )
    generator = query_generator(settings, operator.domain_shape).to(device)
    if isinstance(generator, PixelImage) and layer is not None:
        initial = generator.parameters_of(images)
    else:
        initial = generator.initial(settings.seed).to(images).expand(len(images), -1).contiguous()
    fit = GeneratorFit(
        generator,
        objective,
        initial,
        optimiser=adam_of(settings, settings.steps),
        selection=LowestObjective(),
        loss_scale=1.0,
    )
    stages = Stages(
        None if checkpoint is None else Path(checkpoint),
        digest_of(heads_and_model(classifier), [images, right], settings),
        resume=resume,
    )
    solution = solve_in_stage(
        "fit", fit, settings.steps, stages, device, title=settings.method, progress=progress
    )
    found = solution.value.detach().clamp(0, 1)
    seconds = time.perf_counter() - began + stages.saved_seconds
    distances = _distances(operator, layers, images, found)
    return [
        PreImage(
            query=images[i].cpu().numpy(),
            image=found[i].cpu().numpy(),
            truth=None if right is None else right[i].numpy(),
            scores={
                **_image_scores(images[i], found[i], "query"),
                **({} if right is None else _image_scores(right[i], found[i], "truth")),
                **{name: float(values[i]) for name, values in distances.items()},
            },
            **record_of(
                i,
                classifier,
                generator,
                solution,
                objective.terms,
                settings,
                source=source,
                seconds=seconds,
            ),
        )
        for i in range(len(images))
    ]


def _maximised(settings: PreImageSettings) -> tuple[str | None, int | None]:
    """Layer and channel whose activation is maximised."""
    if settings.maximise is None:
        return None, None
    layer, colon, channel = settings.maximise.rpartition(":")
    if colon and channel.isdecimal():
        return layer, int(channel)
    return settings.maximise, None


@torch.no_grad()
def _distances(
    operator: FeatureOperator, layers: tuple[str, ...], images: Tensor, found: Tensor
) -> dict[str, Tensor]:
    """Relative squared distance in every layer, [B] each."""
    return {
        f"distance_{name.replace(':', '_')}": FeatureFidelity(
            operator, images, layers=[name]
        ).value(found)
        for name in layers
    }


def _image_scores(one: Tensor, other: Tensor, title: str) -> dict[str, float]:
    wanted, found = one.cpu().numpy(), other.cpu().numpy()
    scores = {f"psnr_to_{title}_db": psnr(found, wanted, data_range=1.0)}
    if min(found.shape[1:]) >= _SMALLEST_FOR_SSIM:
        similarity = [ssim(a, b, data_range=1.0) for a, b in zip(found, wanted, strict=True)]
        scores[f"ssim_to_{title}"] = float(np.mean(similarity))
    return scores
