"""Deterministic uncertainty: how near the features of an image are to those of a class."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from dipct.errors import ConfigurationError, ShapeError
from dipct.operator import INPUT

# Standard deviation of the first centroids.
_INITIAL_STD = 0.05


class CentroidHead(nn.Module):
    """Distances of features from a centroid of each class: deterministic uncertainty (DUQ).

    ``K_c = exp(-|W_c f - e_c|^2 / (2 n sigma^2))`` with n the length of a centroid (van
    Amersfoort et al., ICML 2020, eq. 1). The class is that of the largest kernel, whose value is
    the certainty. Centroids are moving averages of the features of each class.

    Args:
        features: length d of a feature vector.
        classes: number of classes K.
        centroid_size: n; default: d.
        length_scale: sigma.
        decay: of the moving averages.
        batch: images of a batch in training; the first centroids count as much as those of one.

    Raises:
        ConfigurationError: numbers that are not positive, or a decay outside [0, 1).
    """

    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        centroid_size: int | None = None,
        length_scale: float = 0.5,
        decay: float = 0.999,
        batch: int = 128,
    ) -> None:
        super().__init__()
        size = features if centroid_size is None else centroid_size
        if min(features, classes, size, batch) < 1 or not length_scale > 0 or not 0 <= decay < 1:
            raise ConfigurationError(
                "features, classes, centroid_size and batch must be at least one, length_scale "
                f"positive and decay in [0, 1); got {features}, {classes}, {size}, {batch}, "
                f"{length_scale} and {decay}."
            )
        self.length_scale, self.decay = length_scale, decay
        self.weight = nn.Parameter(torch.empty(size, classes, features))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        count = batch / classes
        self.register_buffer("counts", torch.full((classes,), count))
        self.register_buffer("sums", _INITIAL_STD * count * torch.randn(size, classes))

    @property
    def centroids(self) -> Tensor:
        """[n K]."""
        return self.sums / self.counts

    def embedded(self, features: Tensor) -> Tensor:
        """``W_c f`` for every class, [N d] to [N n K].

        Raises:
            ShapeError: features of another length.
        """
        if features.ndim != 2 or features.shape[1] != self.weight.shape[2]:
            raise ShapeError(
                f"This head takes features [N {self.weight.shape[2]}]; got "
                f"{tuple(features.shape)}. It was made for another classifier."
            )
        return torch.einsum("nd,mkd->nmk", features, self.weight)

    def log_kernels(self, features: Tensor) -> Tensor:
        """``log K_c``, [N d] to [N K]: falls on where the kernel itself is zero to rounding."""
        distance = (self.embedded(features) - self.centroids).square().mean(1)
        return -distance / (2 * self.length_scale**2)

    def forward(self, features: Tensor) -> Tensor:
        """Kernels between zero and one, [N d] to [N K]."""
        return self.log_kernels(features).exp()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> Self:
        """Move the centroids towards the features of a batch.

        Args:
            features: [N d], of the network as it is after the step of the optimiser.
            labels: [N].
        """
        one_hot = nn.functional.one_hot(labels, self.counts.numel()).to(features)
        sums = torch.einsum("nmk,nk->mk", self.embedded(features), one_hot)
        self.counts.mul_(self.decay).add_((1 - self.decay) * one_hot.sum(0))
        self.sums.mul_(self.decay).add_((1 - self.decay) * sums)
        return self


def averaged_features(features: Tensor) -> Tensor:
    """Features averaged over pixels where there are some, [N d ...] to [N d]."""
    return features.flatten(2).mean(2) if features.ndim > 2 else features


class CentroidLogits(nn.Module):
    """Logarithms of the kernels as logits, in place of a classifier's last layer.

    The largest is that of the class of :class:`CentroidHead`, and their softmax are the kernels
    divided by their sum.

    Args:
        head: the centroids; not copied.
    """

    def __init__(self, head: CentroidHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """[N d ...] to [N K]."""
        return self.head.log_kernels(averaged_features(features))


def last_linear_input(model: nn.Module) -> str:
    """The usual features for centroids: what goes into a classifier's last linear layer.

    Last among its modules, which is where classifiers make their logits.

    Returns:
        A name for :class:`dipct.operator.FeatureOperator`.

    Raises:
        ConfigurationError: there is no linear layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names or not names[-1]:
        raise ConfigurationError(
            "The classifier has no linear layer by name; name the layer whose features are to be "
            "compared with centroids."
        )
    return f"{names[-1]}{INPUT}"


def with_centroids(model: nn.Module, head: CentroidHead, layer: str) -> nn.Module:
    """A classifier whose logits are the logarithms of the kernels (:class:`CentroidLogits`).

    Args:
        model: is not changed.
        head: the centroids; not copied.
        layer: its features, the input of the module that makes the logits.

    Raises:
        ConfigurationError: not the input of a module of the model.
    """
    name = layer.removesuffix(INPUT)
    if not layer.endswith(INPUT) or name not in dict(model.named_modules()) or not name:
        raise ConfigurationError(
            "Centroids replace the module that makes the logits: the layer must be its name and "
            f"{INPUT!r}, such as {last_linear_input(model)!r}; got {layer!r}."
        )
    replaced = copy.deepcopy(model)
    replaced.set_submodule(name, CentroidLogits(head))
    return replaced


def kernel_loss(kernels: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of every kernel with whether that is the class.

    Args:
        kernels: [N K].
        labels: [N].
    """
    one_hot = nn.functional.one_hot(labels, kernels.shape[1]).to(kernels)
    return nn.functional.binary_cross_entropy(kernels.clamp(0, 1), one_hot)


def gradient_penalty(images: Tensor, kernels: Tensor) -> Tensor:
    """``mean (|d sum_c K_c / d x| - 1)^2``: keeps features as sensitive as images, on both sides.

    Args:
        images: with a gradient, [N C H W].
        kernels: made of them, [N K].
    """
    (gradient,) = torch.autograd.grad(kernels.sum(), images, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
