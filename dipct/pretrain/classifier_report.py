"""What the heads of a classifier are worth, measured on images that they have not seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipct.classifier import CentroidHead, LossEstimator, averaged_features
from dipct.errors import ShapeError
from dipct.evaluation import auroc
from dipct.operator import LOGITS, FeatureOperator

LEAST_SPEARMAN, LEAST_AUROC = 0.3, 0.7
"""A head below either is not to be trusted as manifold consistency."""

_AT_ONCE = 256
# Of grey values, and of the shorter side.
_NOISE_STD, _BLUR_STD, _CROPPED = 0.12, 0.0375, 0.3


@dataclass(frozen=True)
class HeadReport:
    """How well a loss estimator ranks.

    Attributes:
        accuracy: of the classifier.
        spearman: rank correlation of predicted and true losses.
        auroc_misclassified: of predictions as a detector of images that are classified wrongly;
            NaN where none is.
        auroc_shifted: of predictions as a detector of images that are noisy, blurred or cropped.
    """

    accuracy: float
    spearman: float
    auroc_misclassified: float
    auroc_shifted: float

    @property
    def is_usable(self) -> bool:
        """Whether it ranks well enough to serve as manifold consistency."""
        ranks = self.spearman >= LEAST_SPEARMAN
        detects = (self.auroc_misclassified, self.auroc_shifted)
        return ranks and any(value >= LEAST_AUROC for value in detects)


@dataclass(frozen=True)
class CentroidReport:
    """How well centroids of classes classify, and how well their certainty tells where not to.

    Attributes:
        accuracy: of the class with the largest kernel.
        auroc_misclassified: of a small largest kernel as a detector of images that this class is
            wrong for; NaN where none is.
        auroc_shifted: of a small largest kernel as a detector of images that are noisy, blurred
            or cropped.
    """

    accuracy: float
    auroc_misclassified: float
    auroc_shifted: float

    @property
    def is_usable(self) -> bool:
        """Whether it detects well enough to serve as manifold consistency."""
        return any(each >= LEAST_AUROC for each in (self.auroc_misclassified, self.auroc_shifted))


def report_head(
    model: nn.Module,
    estimator: LossEstimator,
    stages: Sequence[str],
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    noise: float = 0.0,
) -> HeadReport:
    """Measure a loss estimator, and calibrate its target, on held-out images.

    Args:
        model: the classifier.
        estimator: its loss estimator; gets the quantiles of its predictions.
        stages: names of the modules whose outputs it takes.
        images: from zero to one, [N C H W].
        labels: classes, int64 [N].
        seed: of the noise and of what is cropped.
        noise: standard deviation that the classifier was trained with.

    Raises:
        ShapeError: fewer than two images, or not one label for each.
    """
    # As long to load as a third of torch, and training asks for it once, at its end.
    from scipy.stats import spearmanr

    _check(images, labels)
    operator = FeatureOperator(model, [*stages, LOGITS], tuple(images.shape[1:]))
    logits, predicted = _predict(operator, estimator, stages, images)
    losses = F.cross_entropy(logits, labels, reduction="none")
    is_right = logits.argmax(1) == labels
    if bool(is_right.any()):
        estimator.calibrate(predicted[is_right])
    shifted = _predict(operator, estimator, stages, shifted_images(images, seed=seed, noise=noise))[
        1
    ]
    return HeadReport(
        accuracy=float(is_right.double().mean()),
        spearman=float(spearmanr(predicted.cpu(), losses.cpu()).statistic),
        auroc_misclassified=_auroc(predicted[~is_right], predicted[is_right]),
        auroc_shifted=_auroc(shifted, predicted),
    )


def report_centroids(
    model: nn.Module,
    head: CentroidHead,
    layer: str,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    noise: float = 0.0,
) -> CentroidReport:
    """Measure the centroids of a classifier on held-out images.

    Args:
        model: the classifier.
        head: its centroids.
        layer: whose features they take, averaged over pixels where there are some.
        images: from zero to one, [N C H W].
        labels: classes, int64 [N].
        seed: of the noise and of what is cropped.
        noise: standard deviation that the classifier was trained with.

    Raises:
        ShapeError: fewer than two images, or not one label for each.
    """
    _check(images, labels)
    operator = FeatureOperator(model, [layer], tuple(images.shape[1:]))
    kernels = _log_kernels(operator, head, layer, images)
    shifted = _log_kernels(operator, head, layer, shifted_images(images, seed=seed, noise=noise))
    is_right = kernels.argmax(1) == labels
    # Of the logarithm, which has an order where the kernels themselves are zero to rounding.
    doubt = -kernels.amax(1)
    return CentroidReport(
        accuracy=float(is_right.double().mean()),
        auroc_misclassified=_auroc(doubt[~is_right], doubt[is_right]),
        auroc_shifted=_auroc(-shifted.amax(1), doubt),
    )


def shifted_images(images: Tensor, *, seed: int, noise: float = 0.0) -> Tensor:
    """Images that a classifier was not made for: a third each noisy, blurred, partly cropped away.

    Args:
        images: from zero to one, [N C H W].
        seed: of noise and crops.
        noise: standard deviation that the classifier was made for; these have more.
    """
    random = torch.Generator().manual_seed(seed)
    found = images.clone()
    noisy, blurred, cropped = (slice(i, None, 3) for i in range(3))
    draw = torch.randn(found[noisy].shape, generator=random).to(images)
    found[noisy] = (found[noisy] + (_NOISE_STD + noise) * draw).clamp(0, 1)
    height, width = images.shape[-2:]
    std = _BLUR_STD * min(height, width)
    far = math.ceil(2.5 * std)
    reach = torch.arange(-far, far + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-reach.square() / (2 * std**2))
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    padded = F.pad(found[blurred], (far,) * 4, mode="replicate")
    across = kernel.expand(channels, 1, 1, len(kernel))
    found[blurred] = F.conv2d(F.conv2d(padded, across, groups=channels), across.mT, groups=channels)
    rows, columns = max(1, round(_CROPPED * height)), max(1, round(_CROPPED * width))
    for image in found[cropped]:
        side = int(torch.randint(4, (1,), generator=random))
        part = (
            image[:, :rows],
            image[:, height - rows :],
            image[..., :columns],
            image[..., width - columns :],
        )[side]
        part.zero_()
    return found


@torch.no_grad()
def _predict(
    operator: FeatureOperator, estimator: LossEstimator, stages: Sequence[str], images: Tensor
) -> tuple[Tensor, Tensor]:
    logits, predicted = [], []
    for part in images.split(_AT_ONCE):
        found = operator.split(operator(part))
        logits.append(found[LOGITS])
        predicted.append(estimator([found[name] for name in stages]))
    return torch.cat(logits), torch.cat(predicted)


@torch.no_grad()
def _log_kernels(
    operator: FeatureOperator, head: CentroidHead, layer: str, images: Tensor
) -> Tensor:
    found = []
    for part in images.split(_AT_ONCE):
        features = operator.split(operator(part))[layer]
        found.append(head.log_kernels(averaged_features(features)))
    return torch.cat(found)


def _auroc(positive: Tensor, negative: Tensor) -> float:
    """NaN where there is none of either."""
    if not len(positive) or not len(negative):
        return float("nan")
    return auroc(positive.cpu().numpy(), negative.cpu().numpy())


def _check(images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or len(images) < 2 or labels.shape != images.shape[:1]:
        raise ShapeError(
            "A report takes two or more images [N C H W] with one label each; got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}."
        )
