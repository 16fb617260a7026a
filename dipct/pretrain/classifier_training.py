"""Training of a classifier with its loss estimator, as a method of the one solver loop."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipct.classifier import LossEstimator, ranking_loss
from dipct.classifier.loss_estimator import RankingVariant
from dipct.errors import ConfigurationError
from dipct.pretrain.labelled_batches import LabelledBatches, LabelledTrainingSettings
from dipct.pretrain.labelled_training import LabelledTraining, evaluating
from dipct.solver import Adam, OneCycle


@dataclass(frozen=True)
class ClassifierTrainingSettings(LabelledTrainingSettings):
    """How a classifier and its loss estimator are trained.

    Attributes:
        classifier_weight: of the cross-entropy.
        ranking_weight: of the ranking loss; 0.5 in both papers (arXiv 2010.12046, section 3.1;
            arXiv 2109.14274, section 3.3).
        variant: of the ranking loss.
        detach_after: share of the steps after which the ranking loss no longer shapes the
            classifier, as in Yoo & Kweon (CVPR 2019); default: never.
        post_hoc: train the loss estimator alone, for a classifier that stays as it is.

    The others are those of :class:`LabelledTrainingSettings`.

    Raises:
        ConfigurationError: impossible values.
    """

    classifier_weight: float = 1.0
    ranking_weight: float = 0.5
    variant: RankingVariant = "disc"
    detach_after: float | None = None
    post_hoc: bool = False

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        weights = (self.classifier_weight, self.ranking_weight)
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ConfigurationError(
                "classifier_weight and ranking_weight must be zero or more and not both zero; got "
                f"{weights[0]} and {weights[1]}."
            )
        if self.detach_after is not None and not 0 <= self.detach_after <= 1:
            raise ConfigurationError(
                f"detach_after must lie between 0 and 1; got {self.detach_after}."
            )
        if self.post_hoc and not self.ranking_weight:
            raise ConfigurationError("post_hoc trains the loss estimator: ranking_weight is zero.")


class ClassifierTraining(LabelledTraining):
    """Minimise cross-entropy and ranking loss over batches, by Adam.

    The modules given serve as architecture and first parameters and are not changed; see
    :meth:`modules`.

    Figures: ``loss``, ``ranking`` and ``accuracy`` of the batches (running means).

    Args:
        model: maps images [N C H W] to logits [N K].
        images: from zero to one, [N C H W].
        labels: classes, int64 [N].
        settings: how.
        estimator: the loss estimator; None trains the classifier alone.
        stages: names of the modules of the model whose outputs it takes.

    Raises:
        ShapeError: not one label for each image.
        ConfigurationError: fewer images than a batch, classes that the model does not have, or
            settings that ask for a loss estimator where there is none.
    """

    settings: ClassifierTrainingSettings
    _module: "_Joint"

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        settings: ClassifierTrainingSettings,
        *,
        estimator: LossEstimator | None = None,
        stages: Sequence[str] = (),
    ) -> None:
        batches = LabelledBatches(images, labels, settings)
        if estimator is None and (settings.post_hoc or settings.classifier_weight == 0):
            raise ConfigurationError("There is no loss estimator to train; give one.")
        joint = _Joint(model, estimator, stages)
        with torch.no_grad(), evaluating(joint):
            logits, _ = joint(images[:1], detach=True)
        batches.check_classes(logits.shape[1])
        rate: float | Tensor = settings.learning_rate
        if settings.post_hoc:
            # Zero freezes a parameter.
            rates = [
                torch.full((p.numel(),), 0.0 if name.startswith("model.") else rate)
                for name, p in joint.named_parameters()
            ]
            rate = torch.cat(rates).to(images)
        decay = 0.0 if settings.post_hoc else settings.weight_decay
        adam = Adam(rate, schedule=OneCycle(settings.steps), weight_decay=decay)
        super().__init__(joint, batches, adam, figures=("loss", "ranking", "accuracy"))

    def losses(
        self, theta: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`LabelledTraining.losses`."""
        settings = self.settings
        share = settings.detach_after
        detach = settings.post_hoc or (share is not None and step >= share * settings.steps)
        self._module.train()
        if settings.post_hoc:
            self._module.model.eval()
        logits, estimate = self._call(theta, buffers, images, {"detach": detach})
        losses = F.cross_entropy(logits, labels, reduction="none")
        ranking = logits.new_zeros(())
        if estimate is not None:
            ranking = ranking_loss(estimate, losses, variant=settings.variant)
        loss = settings.ranking_weight * ranking
        if not settings.post_hoc:
            loss = loss + settings.classifier_weight * losses.mean()
        right = (logits.argmax(1) == labels).double().mean()
        return loss, {"loss": losses.mean(), "ranking": ranking, "accuracy": right}

    def modules(self, tensors: dict[str, Tensor]) -> tuple[nn.Module, LossEstimator | None]:
        """Classifier and loss estimator as trained, in evaluation mode.

        Args:
            tensors: of the state of the iteration.
        """
        trained = self._trained(tensors)
        return trained.model, trained.estimator


class _Joint(nn.Module):
    """A classifier with the loss estimator that sees its stages."""

    def __init__(
        self, model: nn.Module, estimator: LossEstimator | None, stages: Sequence[str]
    ) -> None:
        super().__init__()
        known = dict(model.named_modules())
        missing = [name for name in stages if name not in known]
        if missing or (estimator is not None and not stages):
            raise ConfigurationError(
                "The loss estimator needs the names of modules of the classifier; "
                f"{', '.join(missing) if missing else 'none given'}."
            )
        self.model, self.estimator = copy.deepcopy(model), copy.deepcopy(estimator)
        self._stages = tuple(stages)

    def forward(self, images: Tensor, *, detach: bool) -> tuple[Tensor, Tensor | None]:
        found: dict[str, Tensor] = {}

        def keep(name: str):  # noqa: ANN202
            return lambda module, inputs, output: found.__setitem__(name, output.clone())

        modules = dict(self.model.named_modules())
        handles = [modules[name].register_forward_hook(keep(name)) for name in self._stages]
        try:
            logits = self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        if self.estimator is None:
            return logits, None
        stages = [found[name].detach() if detach else found[name] for name in self._stages]
        return logits, self.estimator(stages)
