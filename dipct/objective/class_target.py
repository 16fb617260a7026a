"""Which class an image shall be in."""

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.objective.objective import OperatorTerm
from dipct.operator import LOGITS, FeatureOperator

TargetLoss = Literal["cross-entropy", "margin", "probability", "logit"]

PROBABILITY_TOLERANCE = 0.05
"""How far from a probability between two classes the target's may be to count as reached."""


class Standing(NamedTuple):
    """How far images are with a target.

    Attributes:
        is_valid: whether the classifier sees the target class; of a graded target, whether its
            probability is within :data:`PROBABILITY_TOLERANCE` of that asked for; bool [...].
        is_confident: whether it does so with a wanted probability; of a graded target, the same
            as valid; bool [...].
        probability: of the target class, [...].
        shortfall: smaller where an image that is not valid is nearer to being it, [...].
    """

    is_valid: Tensor
    is_confident: Tensor
    probability: Tensor
    shortfall: Tensor


class ClassTarget(OperatorTerm):
    """How far a classifier is from a class: functional consistency.

    ``cross-entropy`` of the target class, as in Thiagarajan et al. (arXiv 2109.14274, eq. 5);
    ``margin``, by which the largest other logit exceeds the target's less so much, zero once it is
    reached (Carlini & Wagner, IEEE S&P 2017, f_6); ``probability``, the squared distance of the
    target's probability from a wanted one, which below one makes the target graded: what lies
    between two classes is asked for; or ``logit``, the negative of the target's, which has no lower
    bound: for activation maximisation.

    Args:
        operator: features with ``logits`` among its layers.
        target: class number, or one for each element of a batch, [...].
        loss: which of these.
        margin: wanted lead of the target's logit.
        probability: wanted probability of the target.

    Raises:
        ConfigurationError: no logits, a class that does not exist, another loss, or an impossible
            margin or probability.
    """

    name = "class"

    def __init__(
        self,
        operator: FeatureOperator,
        target: int | Tensor,
        *,
        loss: TargetLoss = "cross-entropy",
        margin: float = 0.0,
        probability: float = 1.0,
    ) -> None:
        super().__init__(operator)
        self.classes = number_of_classes(operator)
        self._split = operator.split
        if self.classes < 2:
            raise ConfigurationError(
                "The classifier has one logit, whose class is that of its sign: use "
                "AttributeTargets, or wrap it to give the logits -z / 2 and z / 2."
            )
        self.target = torch.as_tensor(target)
        is_class = not self.target.is_floating_point() and self.target.numel() > 0
        if not is_class or not bool(((self.target >= 0) & (self.target < self.classes)).all()):
            raise ConfigurationError(
                f"target must be a class from 0 to {self.classes - 1}; got {target}."
            )
        if loss not in get_args(TargetLoss):
            raise ConfigurationError(
                f"loss must be {', '.join(get_args(TargetLoss))}; got {loss!r}."
            )
        if not 0 <= margin < math.inf or not 0 <= probability <= 1:
            raise ConfigurationError(
                "margin must be zero or more and probability from zero to one; got "
                f"{margin} and {probability}."
            )
        self.target = self.target.long()
        self.loss, self.margin, self.probability = loss, margin, probability

    @property
    def is_graded(self) -> bool:
        """Whether what lies between two classes is asked for, and not a class."""
        return self.loss == "probability" and self.probability < 1

    def standing(self, eta: Tensor, *, confident_from: float) -> Standing:
        """How far images are with the target.

        Args:
            eta: [... *operator.range_shape].
            confident_from: probability of the target class from which on an image that is valid
                is confident; without meaning for a graded target.
        """
        logits = self._split(eta)[LOGITS]
        target = self.target.to(logits.device).expand(logits.shape[:-1])
        probability = logits.softmax(-1).gather(-1, target[..., None])[..., 0]
        if self.is_graded:
            distance = (probability - self.probability).abs()
            is_reached = distance <= PROBABILITY_TOLERANCE
            return Standing(is_reached, is_reached, probability, distance)
        is_valid = logits.argmax(-1) == target
        is_confident = is_valid & (probability >= confident_from)
        return Standing(is_valid, is_confident, probability, -probability)

    def value_of(self, eta: Tensor) -> Tensor:
        """See :meth:`OperatorTerm.value_of`."""
        logits = self._split(eta)[LOGITS]
        target = self.target.to(logits.device).expand(logits.shape[:-1])[..., None]
        if self.loss == "margin":
            own = logits.gather(-1, target)[..., 0]
            others = logits.scatter(-1, target, -math.inf).amax(-1)
            return torch.relu(others - own + self.margin)
        if self.loss == "logit":
            return -logits.gather(-1, target)[..., 0]
        log_probability = F.log_softmax(logits, dim=-1).gather(-1, target)[..., 0]
        if self.loss == "cross-entropy":
            return -log_probability
        return (log_probability.exp() - self.probability).square()


class ClassProbabilities(OperatorTerm):
    """How far the probabilities of a classifier are from wanted ones.

    The Kullback-Leibler divergence of the classifier's from those wanted. With the probabilities
    of the query it keeps what a classifier sees as it is, while another one's class changes.

    Args:
        operator: features with ``logits`` among its layers.
        probabilities: wanted, [... K], adding up to one.
        name: in histories; unique among several such terms.

    Raises:
        ConfigurationError: no logits, or numbers that are not probabilities.
        ShapeError: other numbers of classes.
    """

    def __init__(self, operator: FeatureOperator, probabilities: Tensor, *, name: str) -> None:
        super().__init__(operator)
        self.name = name
        count = number_of_classes(operator)
        if probabilities.shape[-1:] != (count,):
            raise ShapeError(
                f"The classifier has {count} classes; got probabilities "
                f"{tuple(probabilities.shape)}."
            )
        total = probabilities.sum(-1)
        if not bool((probabilities >= 0).all()) or not torch.allclose(
            total, torch.ones_like(total), atol=1e-4
        ):
            raise ConfigurationError("Probabilities must be zero or more and add up to one.")
        self.probabilities, self._split = probabilities, operator.split

    def value_of(self, eta: Tensor) -> Tensor:
        """See :meth:`OperatorTerm.value_of`."""
        logits = self._split(eta)[LOGITS]
        wanted = self.probabilities.to(logits).expand(logits.shape)
        return F.kl_div(logits.log_softmax(-1), wanted, reduction="none").sum(-1)


class AttributeTargets(OperatorTerm):
    """Several attributes at once, each with a probability of its own.

    Weighted binary cross-entropies of the sigmoids of the logits: attributes that shall not
    change keep the probability that they have in the query, so that a smile does not make a face
    younger by the way.

    Args:
        operator: features with ``logits`` among its layers, one for each attribute.
        probabilities: wanted, [K] or [... K] from zero to one.
        weights: of the attributes, [K]; zero leaves one free. Default: ones.

    Raises:
        ConfigurationError: no logits, or impossible probabilities or weights.
        ShapeError: other numbers of attributes.
    """

    name = "attributes"

    def __init__(
        self,
        operator: FeatureOperator,
        probabilities: Tensor,
        *,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__(operator)
        count = number_of_classes(operator)
        self._split = operator.split
        weights = torch.ones(count) if weights is None else weights
        if probabilities.shape[-1:] != (count,) or weights.shape != (count,):
            raise ShapeError(
                f"The classifier has {count} attributes; got probabilities "
                f"{tuple(probabilities.shape)} and weights {tuple(weights.shape)}."
            )
        is_right = bool(((probabilities >= 0) & (probabilities <= 1)).all())
        if not is_right or not bool(((weights >= 0) & torch.isfinite(weights)).all()):
            raise ConfigurationError(
                "Probabilities must lie between zero and one and weights be zero or more."
            )
        self.probabilities, self.weights = probabilities, weights

    def value_of(self, eta: Tensor) -> Tensor:
        """See :meth:`OperatorTerm.value_of`."""
        logits = self._split(eta)[LOGITS]
        wanted = self.probabilities.to(logits).expand(logits.shape)
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return (self.weights.to(logits) * each).sum(-1)


def number_of_classes(operator: FeatureOperator) -> int:
    """Length of the logits.

    Raises:
        ConfigurationError: the operator does not have them.
    """
    if LOGITS not in operator.layers:
        raise ConfigurationError(
            f"The target needs the logits; give the operator the layer {LOGITS!r} beside "
            f"{', '.join(operator.layers)}."
        )
    return operator.shapes[LOGITS][0]
