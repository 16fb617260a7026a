"""Operator and terms that pre-images and counterfactuals have in common."""

import logging
import math

import torch
from torch import Tensor

from dipct.classifier import STAGES, TRUNK
from dipct.errors import ConfigurationError, DataError, ShapeError
from dipct.inversion_settings import InversionSettings
from dipct.objective import (
    BatchStatistics,
    ClassKernel,
    LossEstimate,
    PixelNorm,
    Term,
    TotalVariation,
    batch_norm_inputs,
)
from dipct.operator import LOGITS, FeatureOperator
from dipct.pretrain import CentroidReport, HeadReport, TrainedClassifier
from dipct.solver import Adam, CosineDecay

_LOG = logging.getLogger(__name__)
# Fidelity to layers near the image leaves the class free; the last stages are about the class.
_FIDELITY_LAYERS = STAGES[:2]
_WARM_UP_SHARE = 10

Weighted = tuple[float, Term]


def fidelity_layers(classifier: TrainedClassifier, settings: InversionSettings) -> tuple[str, ...]:
    """Layers whose features shall be like those of the query.

    Raises:
        ConfigurationError: none are given for a user's own model.
    """
    known = dict(classifier.model.named_modules())
    if settings.layers or all(name in known for name in _FIDELITY_LAYERS):
        return settings.layers or _FIDELITY_LAYERS
    raise ConfigurationError(
        f"Name the layers whose features shall stay; the model has {', '.join(filter(None, known))}"
        "."
    )


def feature_operator(
    classifier: TrainedClassifier,
    layers: tuple[str, ...],
    settings: InversionSettings,
    device: torch.device,
) -> FeatureOperator:
    """The layers that are asked for, those of the manifold term, and the logits, from one pass.

    Args:
        classifier: whose features they are.
        layers: of the fidelity; may be none.
        settings: which manifold term there is.
        device: where to compute.

    Raises:
        ConfigurationError: a layer that the classifier does not have, or a manifold term that it
            has nothing for.
        ShapeError: a model whose logits are not one for each class.
    """
    needed = list(layers)
    if settings.manifold == "loss-estimator":
        if classifier.estimator is None:
            raise ConfigurationError(
                "This classifier has no loss estimator. Train it with one (`dipct classifier "
                "train`), or use manifold batch-statistics or none."
            )
        needed += classifier.stages
    elif settings.manifold == "centroids":
        if classifier.centroids is None:
            raise ConfigurationError(
                "This classifier has no centroids. Train it with --centroids, or use another "
                "manifold term."
            )
        needed += [TRUNK]
    elif settings.manifold == "batch-statistics":
        needed += batch_norm_inputs(classifier.model)
    operator = classifier.features([*dict.fromkeys([*needed, LOGITS])]).to(device)
    (logits,) = operator.shapes[LOGITS]
    if logits != len(classifier.classes):
        raise ShapeError(
            f"The model gives {logits} logits, and the classifier has the "
            f"{len(classifier.classes)} classes {', '.join(classifier.classes)}; give one logit "
            "for each."
        )
    return operator


def adam_of(settings: InversionSettings, steps: int) -> Adam:
    """Adam, with the schedule that the settings ask for.

    Args:
        settings: rate and whether it decays.
        steps: after which it is zero.
    """
    return Adam(settings.learning_rate, schedule=schedule_of(settings, steps))


def schedule_of(settings: InversionSettings, steps: int) -> CosineDecay | None:
    """Factor of the learning rate over so many steps, if it is not constant."""
    return CosineDecay(steps, warm_up=steps // _WARM_UP_SHARE) if settings.decay else None


def warn_of_weak_head(classifier: TrainedClassifier, settings: InversionSettings) -> None:
    """Log a warning where the manifold term rests on a head that does not tell images apart."""
    if settings.manifold not in ("loss-estimator", "centroids") or not settings.manifold_weight:
        return
    report: HeadReport | CentroidReport | None
    if settings.manifold == "loss-estimator":
        head, report = "loss estimator has", classifier.report
    else:
        head, report = "centroids have", classifier.centroid_report
    if report is not None and report.is_usable:
        return
    found = "no report"
    if report is not None:
        found = (
            f"AUROC {report.auroc_misclassified:.2f} (misclassified) and "
            f"{report.auroc_shifted:.2f} (shifted) on held-out images"
        )
    if isinstance(report, HeadReport):
        found = f"rank correlation {report.spearman:.2f} and {found}"
    _LOG.warning(
        "The %s %s: that cannot tell natural images from others well enough to be trusted as "
        "manifold consistency. Train longer or on more images.",
        head,
        found,
    )


def manifold_terms(
    classifier: TrainedClassifier,
    operator: FeatureOperator,
    queries: Tensor,
    settings: InversionSettings,
    *,
    predicted: Tensor | None = None,
    targets: Tensor | None = None,
) -> list[Weighted]:
    """The manifold term, if there is one.

    Args:
        classifier: with the head.
        operator: as of :func:`feature_operator`.
        queries: [B C H W].
        settings: which term, and its weight.
        predicted: classes of the queries, [B]; and
        targets: wanted classes, [B]; None for pre-images.
    """
    if settings.manifold == "none":
        return []
    term: Term
    if settings.manifold == "loss-estimator":
        assert classifier.estimator is not None
        term = LossEstimate(operator, classifier.estimator, classifier.stages)
    elif settings.manifold == "centroids":
        assert classifier.centroids is not None
        assert predicted is not None
        assert targets is not None
        term = ClassKernel(operator, classifier.centroids, TRUNK, source=predicted, target=targets)
    else:
        # A counterfactual is to be as natural as its query, a pre-image more so: it may repair.
        is_edit = targets is not None
        term = BatchStatistics(operator, classifier.model, queries, excess=is_edit)
    return [(settings.manifold_weight, term)]


def image_priors(image_shape: tuple[int, ...], settings: InversionSettings) -> list[Weighted]:
    """Total variation and norm of pixels, where they have a weight."""
    found: list[Weighted] = []
    if settings.tv_weight:
        variation = TotalVariation(image_shape, isotropic=True)
        found.append((settings.tv_weight / math.prod(image_shape[1:]), variation))
    if settings.norm_weight:
        norm = PixelNorm(image_shape, exponent=settings.norm_exponent)
        found.append((settings.norm_weight, norm))
    return found


def checked_images(classifier: TrainedClassifier, images: Tensor) -> Tensor:
    """Images for a classifier as a batch [B C H W], float32.

    Raises:
        ShapeError: another shape than the classifier's images.
        DataError: values that are not finite or outside zero to one.
    """
    found = torch.as_tensor(images).float()
    if found.ndim == 3:
        found = found[None]
    if found.ndim != 4 or len(found) == 0 or tuple(found.shape[1:]) != classifier.image_shape:
        raise ShapeError(
            f"The classifier takes images {classifier.image_shape} (channels, rows, columns); got "
            f"{tuple(torch.as_tensor(images).shape)}."
        )
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise DataError(
            "Images must have finite values from zero to one; got "
            f"{float(found.min()):.4g} to {float(found.max()):.4g}. Divide bytes by 255."
        )
    return found
