"""Training of centroids of classes (deterministic uncertainty), as a method of the solver loop."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipct.classifier import (
    CentroidHead,
    averaged_features,
    gradient_penalty,
    kernel_loss,
    last_linear_input,
    with_centroids,
)
from dipct.errors import ConfigurationError
from dipct.operator import LOGITS, FeatureOperator
from dipct.operator.features import tap
from dipct.pretrain.labelled_batches import LabelledBatches, LabelledTrainingSettings
from dipct.pretrain.labelled_training import LabelledTraining
from dipct.solver import Adam, OneCycle

# After so many times 1 / (1 - decay) steps the first centroids count for five per cent.
_FORGETTING = 3.0
_HEAD = "head."
_NOT_LAST = (
    "To train the whole network the centroids take the place of the module that makes the "
    "logits; the one of {!r} does something else. Name the input of the last layer."
)


@dataclass(frozen=True)
class CentroidTrainingSettings(LabelledTrainingSettings):
    """How centroids are trained.

    Attributes:
        penalty_weight: of the gradient penalty; 0.5 in Thiagarajan et al. (arXiv 2109.14274,
            section 4).
        decay: of the moving averages; 0.999 as published takes thousands of steps.
        length_scale: of the kernels; 0.5 likewise.
        centroid_size: length of a centroid; default: that of the features.
        whole_network: train the classifier together with its centroids, which take the place of
            its last layer; otherwise it stays as it is.

    The others are those of :class:`LabelledTrainingSettings`.

    Raises:
        ConfigurationError: impossible values, or fewer steps than the moving averages need to
            forget the random centroids that they begin with.
    """

    penalty_weight: float = 0.5
    decay: float = 0.99
    length_scale: float = 0.5
    centroid_size: int | None = None
    whole_network: bool = False

    def __post_init__(self) -> None:
        """Validate what the head does not."""
        super().__post_init__()
        if not 0 <= self.penalty_weight < math.inf:
            raise ConfigurationError(
                f"penalty_weight must be zero or more; got {self.penalty_weight}."
            )
        if not 0 <= self.decay < 1:
            raise ConfigurationError(f"decay must be zero or more and below 1; got {self.decay}.")
        least = _FORGETTING / (1 - self.decay)
        # Of a decay in decimals the quotient is not quite whole.
        if self.steps < least * (1 - 1e-9):
            raise ConfigurationError(
                f"steps: {self.steps} are too few for a decay of {self.decay}. The random "
                f"centroids of the beginning still counted for {self.decay**self.steps:.0%}; take "
                f"{round(least)} steps or more, or a smaller decay."
            )


class CentroidTraining(LabelledTraining):
    """Fit a head of centroids to the features of a classifier, or both together, by Adam.

    Kernel loss and gradient penalty are minimised over the weights; after every step of the
    optimiser the centroids move towards the features of the batch in evaluation mode (van
    Amersfoort et al., ICML 2020, who descend with momentum in place of Adam). The classifier
    given is not changed; see :meth:`modules`.

    Figures: ``loss`` of the kernels, ``penalty`` and ``accuracy`` of the batches (running means).

    Attributes:
        layer: as given, or chosen.

    Args:
        model: the classifier, maps images [N C H W] to logits [N K].
        images: from zero to one, [N C H W].
        labels: classes, int64 [N].
        settings: how.
        layer: the features, averaged over pixels where there are some; default: the input of the
            last linear layer.

    Raises:
        ShapeError: not one label for each image, or images that the classifier does not take.
        ConfigurationError: fewer images than a batch, classes that the model does not have, or a
            layer that is not there or, where the whole network is trained, not the input of the
            module that makes the logits.
    """

    settings: CentroidTrainingSettings
    _module: "_Joint"

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        settings: CentroidTrainingSettings,
        *,
        layer: str | None = None,
    ) -> None:
        batches = LabelledBatches(images, labels, settings)
        self.layer = last_linear_input(model) if layer is None else layer
        psi = FeatureOperator(model, [self.layer, LOGITS], tuple(images.shape[1:]))
        (classes,) = psi.shapes[LOGITS]
        batches.check_classes(classes)
        # Torch initialises modules from its global stream.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            head = CentroidHead(
                psi.shapes[self.layer][0],
                classes,
                centroid_size=settings.centroid_size,
                length_scale=settings.length_scale,
                decay=settings.decay,
                batch=settings.batch,
            )
        joint = _Joint(model, head.to(psi.device, psi.dtype), self.layer)
        if settings.whole_network:
            _check_replaceable(joint, images[:1])
            trained = _names_used(joint, images[:1])
        else:
            joint.model.requires_grad_(False)
            trained = [name for name in joint.state_dict() if name.startswith(_HEAD)]
        adam = Adam(
            settings.learning_rate,
            schedule=OneCycle(settings.steps),
            weight_decay=settings.weight_decay,
        )
        figures = ("loss", "penalty", "accuracy")
        super().__init__(joint, batches, adam, figures=figures, trained=trained)

    def losses(
        self, theta: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`LabelledTraining.losses`."""
        weight = self.settings.penalty_weight
        self._module.train(self.settings.whole_network)
        images = images.detach().requires_grad_(weight > 0)
        kernels = self._call(theta, buffers, images)
        loss = kernel_loss(kernels, labels)
        penalty = gradient_penalty(images, kernels) if weight else loss.new_zeros(())
        right = (kernels.argmax(1) == labels).double().mean()
        return loss + weight * penalty, {"loss": loss, "penalty": penalty, "accuracy": right}

    def after_step(
        self, theta: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> None:
        """See :meth:`LabelledTraining.after_step`: moves the centroids."""
        self._module.eval()
        self._call(theta, buffers, images, {"labels": labels})

    def modules(self, tensors: dict[str, Tensor]) -> tuple[nn.Module, CentroidHead]:
        """Classifier and head as trained, in evaluation mode.

        Where the whole network was trained, the logits of the classifier are the logarithms of
        the kernels, see :func:`dipct.classifier.with_centroids`.

        Args:
            tensors: of the state of the iteration.
        """
        trained = self._trained(tensors)
        head, model = trained.head, trained.model
        if self.settings.whole_network:
            model = with_centroids(model, head, self.layer).eval()
        return model, head


class _Joint(nn.Module):
    """A classifier with the head that sees one of its layers."""

    def __init__(self, model: nn.Module, head: CentroidHead, layer: str) -> None:
        super().__init__()
        self.model, self.head, self._layer = copy.deepcopy(model), head, layer

    def forward(self, images: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """Kernels, after moving the centroids if there are labels."""
        features = self.features(images)
        if labels is not None:
            self.head.update(features, labels)
        return self.head(features)

    def features(self, images: Tensor) -> Tensor:
        found: list[Tensor] = []
        modules = dict(self.model.named_modules())
        handle = tap(modules, self._layer, lambda _, values: found.append(values.clone()))
        try:
            self.model(images)
        finally:
            handle.remove()
        return averaged_features(found[0])


def _names_used(joint: _Joint, images: Tensor) -> list[str]:
    """Names of all buffers, and of the parameters that the kernels depend on.

    Those of the layers after the features, which the head replaces, would only decay.
    """
    joint.eval().requires_grad_(True)
    names, parameters = zip(*joint.named_parameters(), strict=True)
    kernels = joint.head.log_kernels(joint.features(images))
    gradients = torch.autograd.grad(kernels.sum(), parameters, allow_unused=True)
    used = [name for name, each in zip(names, gradients, strict=True) if each is not None]
    return used + [name for name, _ in joint.named_buffers()]


@torch.no_grad()
def _check_replaceable(joint: _Joint, images: Tensor) -> None:
    """Raise unless a model with the head in it gives what the head says of its features."""
    joint.eval()
    whole = with_centroids(joint.model, joint.head, joint._layer)
    wanted = joint.head.log_kernels(joint.features(images))
    try:
        found = whole(images)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigurationError(_NOT_LAST.format(joint._layer)) from error
    if found.shape != wanted.shape or not torch.allclose(found, wanted):
        raise ConfigurationError(_NOT_LAST.format(joint._layer))
