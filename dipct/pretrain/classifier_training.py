"""Training of a classifier with its loss estimator, as a method of the one solver loop."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipct.classifier import LossEstimator, ranking_loss
from dipct.classifier.loss_estimator import RankingVariant
from dipct.errors import ConfigurationError, ShapeError
from dipct.pretrain.seeds import check_whole
from dipct.solver import Adam, Method, OneCycle, Status

# Figures are averages over about so many steps.
_AVERAGED_STEPS = 20
_SEEDS_APART = 1_000_003


@dataclass(frozen=True)
class ClassifierTrainingSettings:
    """How a classifier and its loss estimator are trained.

    Attributes:
        steps: how many.
        batch: images in a step.
        learning_rate: highest rate of the one-cycle schedule of Adam.
        weight_decay: of Adam.
        classifier_weight: of the cross-entropy.
        ranking_weight: of the ranking loss; 0.5 in both papers (arXiv 2010.12046, section 3.1;
            arXiv 2109.14274, section 3.3).
        variant: of the ranking loss.
        detach_after: share of the steps after which the ranking loss no longer shapes the
            classifier, as in Yoo & Kweon (CVPR 2019); default: never.
        post_hoc: train the loss estimator alone, for a classifier that stays as it is.
        flip: mirror images at random from left to right.
        shift: move images at random by up to so many pixels.
        seed: of batches and of what is random in them.

    Raises:
        ConfigurationError: impossible values.
    """

    steps: int = 1000
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    classifier_weight: float = 1.0
    ranking_weight: float = 0.5
    variant: RankingVariant = "disc"
    detach_after: float | None = None
    post_hoc: bool = False
    flip: bool = True
    shift: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        check_whole(self.steps, "steps", least=1)
        check_whole(self.batch, "batch", least=2)
        check_whole(self.shift, "shift", least=0)
        check_whole(self.seed, "seed", least=0)
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


class ClassifierTraining(Method):
    """Minimise cross-entropy and ranking loss over batches, by Adam.

    The batch of a step is a function of the step's number and the seed, so that training resumes
    exactly, unless the model itself draws, as dropout does from torch's own stream. The modules
    given serve as architecture and first parameters and are not changed; see :meth:`modules`.

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
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ShapeError(
                "Training takes images [N C H W] with one label each; got "
                f"{tuple(images.shape)} and {tuple(labels.shape)}."
            )
        if len(images) < settings.batch:
            raise ConfigurationError(
                f"{len(images)} images are fewer than a batch of {settings.batch}."
            )
        if estimator is None and (settings.post_hoc or settings.classifier_weight == 0):
            raise ConfigurationError("There is no loss estimator to train; give one.")
        self.images, self.labels, self.settings = images, labels, settings
        self._joint = _Joint(model, estimator, stages)
        with torch.no_grad(), _evaluating(self._joint):
            logits, _ = self._joint(images[:1], detach=True)
        if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
            raise ConfigurationError(
                f"Labels must be classes from 0 to {logits.shape[1] - 1}; got "
                f"{int(labels.min())} to {int(labels.max())}."
            )
        self._names = [name for name, _ in self._joint.named_parameters()]
        self._shapes = [p.shape for p in self._joint.parameters()]
        rate: float | Tensor = settings.learning_rate
        if settings.post_hoc:
            # Zero freezes a parameter.
            rates = [
                torch.full((p.numel(),), 0.0 if name.startswith("model.") else rate)
                for name, p in self._joint.named_parameters()
            ]
            rate = torch.cat(rates).to(images)
        decay = 0.0 if settings.post_hoc else settings.weight_decay
        self._adam = Adam(rate, schedule=OneCycle(settings.steps), weight_decay=decay)

    def start(self) -> dict[str, Tensor]:
        """See :meth:`Method.start`."""
        theta = nn.utils.parameters_to_vector(self._joint.parameters()).detach().clone()
        zero = torch.tensor(0.0, dtype=torch.float64)
        return {
            "theta": theta,
            "step": torch.tensor(0),
            "loss": zero,
            "ranking": zero,
            "accuracy": zero,
            **{f"buffer {n}": b.detach().clone() for n, b in self._joint.named_buffers()},
            **self._adam.start(theta),
        }

    def step(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.step`."""
        settings, step = self.settings, int(tensors["step"])
        images, labels = self._batch(step)
        buffers = {n: tensors[f"buffer {n}"].clone() for n, _ in self._joint.named_buffers()}
        theta = tensors["theta"].detach().requires_grad_()
        share = settings.detach_after
        detach = settings.post_hoc or (share is not None and step >= share * settings.steps)
        self._joint.train()
        if settings.post_hoc:
            self._joint.model.eval()
        with torch.enable_grad():
            logits, estimate = torch.func.functional_call(
                self._joint, (self._split(theta), buffers), (images,), {"detach": detach}
            )
            losses = F.cross_entropy(logits, labels, reduction="none")
            ranking = logits.new_zeros(())
            if estimate is not None:
                ranking = ranking_loss(estimate, losses, variant=settings.variant)
            loss = settings.ranking_weight * ranking
            if not settings.post_hoc:
                loss = loss + settings.classifier_weight * losses.mean()
        (gradient,) = torch.autograd.grad(loss, theta)
        theta, averages = self._adam.update(theta.detach(), tensors, gradient, step)
        right = (logits.argmax(1) == labels).double().mean()
        weight = 1 / min(step + 1, _AVERAGED_STEPS)
        figures = {"loss": losses.mean(), "ranking": ranking, "accuracy": right}
        return {
            "theta": theta,
            "step": torch.tensor(step + 1),
            **{
                name: torch.lerp(tensors[name].cpu(), value.detach().double().cpu(), weight)
                for name, value in figures.items()
            },
            **{f"buffer {name}": value for name, value in buffers.items()},
            **averages,
        }

    def estimate(self, tensors: dict[str, Tensor]) -> Tensor:
        """The parameters of classifier and loss estimator, [P]."""
        return tensors["theta"]

    def figures(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.figures`."""
        return {name: tensors[name] for name in ("loss", "ranking", "accuracy")}

    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """Training goes on to its last step."""
        return None

    def modules(self, tensors: dict[str, Tensor]) -> tuple[nn.Module, LossEstimator | None]:
        """Classifier and loss estimator as trained, in evaluation mode.

        Args:
            tensors: of the state of the iteration.
        """
        state = {
            name: value.detach().clone() for name, value in self._split(tensors["theta"]).items()
        }
        state |= {n: tensors[f"buffer {n}"].clone() for n, _ in self._joint.named_buffers()}
        trained = copy.deepcopy(self._joint)
        trained.load_state_dict(state)
        trained.eval()
        return trained.model, trained.estimator

    def _split(self, theta: Tensor) -> dict[str, Tensor]:
        sizes = [shape.numel() for shape in self._shapes]
        parts = theta.split(sizes)
        return {
            name: part.reshape(shape)
            for name, part, shape in zip(self._names, parts, self._shapes, strict=True)
        }

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images of one pass over all after another, each pass in an order of its own."""
        number, batch, settings = len(self.images), self.settings.batch, self.settings
        per_pass = number // batch
        random = torch.Generator().manual_seed(settings.seed + _SEEDS_APART * (step // per_pass))
        order = torch.randperm(number, generator=random)
        chosen = order[(step % per_pass) * batch :][:batch].to(self.images.device)
        random.manual_seed(settings.seed + _SEEDS_APART * (step + 1) + 1)
        images = self.images[chosen]
        if settings.flip:
            mirrored = torch.rand(batch, generator=random).to(images.device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if settings.shift:
            images = _shifted(images, settings.shift, random)
        return images, self.labels[chosen]


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


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


def _shifted(images: Tensor, most: int, random: torch.Generator) -> Tensor:
    """Each image moved by whole pixels, its border repeated."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (most,) * 4, mode="replicate")
    moves = torch.randint(2 * most + 1, (len(images), 2), generator=random).tolist()
    return torch.stack(
        [p[:, r : r + height, c : c + width] for p, (r, c) in zip(padded, moves, strict=True)]
    )
