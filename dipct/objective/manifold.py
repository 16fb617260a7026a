"""Manifold consistency: how natural an image looks to a classifier."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dipct.classifier import CentroidHead, LossEstimator, averaged_features
from dipct.errors import ConfigurationError
from dipct.objective.objective import OperatorTerm
from dipct.operator import INPUT, LOGITS, FeatureOperator

Space = Literal["log", "kernel"]

# As published: the first layer with statistics counts ten times.
_FIRST_LAYER = 10.0
# Below it a length has no direction.
_TINY = 1e-12


class LossEstimate(OperatorTerm):
    """What a loss estimator says of an image, above a target.

    Narayanaswamy et al. (arXiv 2010.12046, eq. 4) and Thiagarajan et al. (arXiv 2109.14274, eq. 8)
    take the distance from the target; one-sided, an image that is more natural than the target
    is not drawn back to it.

    Args:
        operator: features with the stages among its layers.
        head: the loss estimator.
        stages: the layers that it takes, in its order.
        target: default: ``low`` of the head, which 5 per cent of right images stay below.
        one_sided: see above.

    Raises:
        ConfigurationError: layers that are missing or do not fit the head, or a head without a
            calibrated target.
    """

    name = "loss estimate"

    def __init__(
        self,
        operator: FeatureOperator,
        head: LossEstimator,
        stages: Sequence[str],
        *,
        target: float | None = None,
        one_sided: bool = True,
    ) -> None:
        super().__init__(operator)
        _check_layers(operator, stages)
        channels = [operator.shapes[name][0] for name in stages]
        wanted = [layer.in_features for layer in head.stages]
        if channels != wanted:
            raise ConfigurationError(
                f"The loss estimator takes stages of {wanted} channels; the layers "
                f"{', '.join(stages)} have {channels}. It was made for another classifier."
            )
        self.target = float(head.low) if target is None else target
        if not math.isfinite(self.target):
            raise ConfigurationError(
                "The loss estimator has not been calibrated, so that there is no target for it: "
                "give one, or calibrate it with images."
            )
        self.stages, self.one_sided = tuple(stages), one_sided
        self._head, self._split = _frozen(head, operator), operator.split

    def value_of(self, eta: Tensor) -> Tensor:
        """See :meth:`OperatorTerm.value_of`."""
        found, batch = self._split(eta), eta.shape[:-1]
        stages = [found[name].reshape(-1, *self.operator.shapes[name]) for name in self.stages]
        above = (self._head(stages) - self.target).reshape(batch)
        return torch.relu(above) if self.one_sided else above.abs()


class ClassKernel(OperatorTerm):
    """How much nearer an image is to the centroid of its first class than to that of the target.

    ``max(K_source - K_target + margin, 0)`` (Thiagarajan et al., arXiv 2109.14274, eq. 9). Far from
    all centroids kernels are zero and so is their gradient; in ``log`` space it is not.

    Args:
        operator: features with the layer among its layers.
        head: the centroids.
        layer: the features that it takes, averaged over pixels.
        source: class of the query, a number or one for each element of a batch.
        target: wanted class, likewise.
        margin: tau.
        space: ``log`` of the kernels, or the ``kernel`` as published.

    Raises:
        ConfigurationError: a layer that is missing or does not fit, classes that do not exist or
            are the same, or another space.
    """

    name = "centroids"

    def __init__(
        self,
        operator: FeatureOperator,
        head: CentroidHead,
        layer: str,
        *,
        source: int | Tensor,
        target: int | Tensor,
        margin: float = 0.5,
        space: Space = "log",
    ) -> None:
        super().__init__(operator)
        _check_layers(operator, [layer])
        length = operator.shapes[layer][0]
        if length != head.weight.shape[2]:
            raise ConfigurationError(
                f"The centroids are of {head.weight.shape[2]} features and layer {layer} has "
                f"{length}: they were made for another classifier."
            )
        classes = head.counts.numel()
        (logits,) = operator.shapes.get(LOGITS, (classes,))
        if logits != classes:
            raise ConfigurationError(
                f"The centroids are of {classes} classes and the model has {logits}: they were "
                "made for another classifier."
            )
        self.source, self.target = torch.as_tensor(source).long(), torch.as_tensor(target).long()
        both = (self.source, self.target)
        if not all(bool(((c >= 0) & (c < classes)).all()) for c in both) or bool(
            (self.source == self.target).any()
        ):
            raise ConfigurationError(
                f"source and target must be different classes from 0 to {classes - 1}; got "
                f"{source} and {target}."
            )
        if space not in ("log", "kernel") or not 0 <= margin < math.inf:
            raise ConfigurationError(
                f"space must be log or kernel and margin zero or more; got {space!r} and {margin}."
            )
        self.layer, self.margin, self.space = layer, margin, space
        self._head, self._split = _frozen(head, operator), operator.split

    def value_of(self, eta: Tensor) -> Tensor:
        """See :meth:`OperatorTerm.value_of`."""
        batch = eta.shape[:-1]
        found = self._split(eta)[self.layer].reshape(-1, *self.operator.shapes[self.layer])
        kernels = self._head.log_kernels(averaged_features(found))
        kernels = (kernels if self.space == "log" else kernels.exp()).reshape(*batch, -1)
        source, target = (
            kernels.gather(-1, c.to(eta.device).expand(batch)[..., None])[..., 0]
            for c in (self.source, self.target)
        )
        return torch.relu(source - target + self.margin)


class BatchStatistics(OperatorTerm):
    """How far the statistics of an image are from those that batch normalisation has stored.

    For each such layer the distances of mean and variance over pixels from the running ones, the
    first layer ten times (Yin et al., CVPR 2020, eq. 4). A single image has statistics of its own,
    which are not held against it where only what exceeds those of the query counts. A query that
    is to be repaired is itself not natural: then all counts, as a share of the query's.

    Args:
        operator: features with the inputs of the layers among its layers, see
            :func:`batch_norm_inputs`.
        model: the classifier whose layers they are.
        query: [... C H W]; default: distances as they are.
        excess: whether only what exceeds the distances of the query counts, layer by layer;
            otherwise the sum of all is divided by that of the query.

    Raises:
        ConfigurationError: a classifier without batch normalisation, or layers that are missing.
    """

    name = "batch statistics"

    def __init__(
        self,
        operator: FeatureOperator,
        model: nn.Module,
        query: Tensor | None = None,
        *,
        excess: bool = True,
    ) -> None:
        super().__init__(operator)
        self.layers = batch_norm_inputs(model)
        _check_layers(operator, self.layers)
        modules = dict(model.named_modules())
        like = torch.zeros((), dtype=operator.dtype, device=operator.device)
        self._running = [
            tuple(
                getattr(modules[name.removesuffix(INPUT)], f"running_{part}").detach().to(like)
                for part in ("mean", "var")
            )
            for name in self.layers
        ]
        self._split, self.excess = operator.split, excess
        self._of_query: list[Tensor] | None = None
        if query is not None:
            with torch.no_grad():
                self._of_query = self._deviations(operator(query))

    def value_of(self, eta: Tensor) -> Tensor:
        """See :meth:`OperatorTerm.value_of`."""
        found = self._deviations(eta)
        if self._of_query is None:
            return _total(found)
        if not self.excess:
            return _total(found) / _total(self._of_query)
        pairs = zip(found, self._of_query, strict=True)
        return _total([torch.relu(one - other) for one, other in pairs])

    def _deviations(self, eta: Tensor) -> list[Tensor]:
        found, result = self._split(eta), []
        for name, (mean, variance) in zip(self.layers, self._running, strict=True):
            pixels = found[name].flatten(-2)
            parts = (pixels.mean(-1) - mean, pixels.var(-1, correction=0) - variance)
            result.append(sum((part.square().sum(-1) + _TINY).sqrt() for part in parts))
        return result


def _total(deviations: Sequence[Tensor]) -> Tensor:
    first, *others = deviations
    return _FIRST_LAYER * first + sum(others, torch.zeros_like(first))


def batch_norm_inputs(model: nn.Module) -> tuple[str, ...]:
    """Names of the inputs of a classifier's batch normalisations, for a feature operator.

    Raises:
        ConfigurationError: it has none.
    """
    names = tuple(
        f"{name}{INPUT}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    )
    if not names:
        raise ConfigurationError(
            "The classifier has no batch normalisation with stored statistics, which this term "
            "compares with. Use a loss estimator or centroids."
        )
    return names


def _frozen(head: Any, operator: FeatureOperator) -> Any:
    """A copy that only maps, where the operator is: the user's stays as it is."""
    found = copy.deepcopy(head).eval().requires_grad_(False)
    return found.to(device=operator.device, dtype=operator.dtype)


def _check_layers(operator: FeatureOperator, layers: Sequence[str]) -> None:
    missing = [name for name in layers if name not in operator.layers]
    if missing or not layers:
        raise ConfigurationError(
            f"The features lack the layers {', '.join(missing)}; give them to the operator beside "
            f"{', '.join(operator.layers)}."
        )
