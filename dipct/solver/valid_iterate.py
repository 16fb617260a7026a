"""Which iterate of a counterfactual is the result: the best of those that are in its class."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.objective.class_target import ClassTarget
from dipct.solver.selection import Iterate, Selection, choose
from dipct.solver.solution import Status


class BestValidIterate(Selection):
    """The iterate in the target class that is nearest to the query and most natural.

    An iterate is valid if the classifier sees the target class, and confident if it does so with
    the wanted probability; of a graded target it is both where the target has the probability that
    was asked for, see :class:`dipct.objective.ClassTarget`. Confident iterates are preferred to
    valid ones and those to others; among iterates of one kind a weighted sum of terms decides, such
    as fidelity and manifold consistency, among those that are not valid how near the target's
    probability is. There is always a result, whatever it is worth.

    Figures: ``p_target`` of the iterate, and of what is kept ``chosen_p_target`` and ``standing``,
    which is 2 if it is confident, 1 if it is valid and 0 otherwise.

    Args:
        target: the term of the objective that asks for the class.
        costs: weights of other terms of the objective, by their names.
        probability: that makes an iterate confident, unless the target is graded.
        patience: confident iterates in a row after which to stop; default: never.

    Raises:
        ConfigurationError: a probability outside (0, 1), weights that are negative or not finite,
            the class term among them, or a patience below 1.
    """

    def __init__(
        self,
        target: ClassTarget,
        costs: Mapping[str, float],
        *,
        probability: float = 0.9,
        patience: int | None = None,
    ) -> None:
        is_right = all(0 <= weight < math.inf for weight in costs.values())
        if not 0 < probability < 1 or not is_right or not costs or target.name in costs:
            raise ConfigurationError(
                "probability must lie between 0 and 1, and costs be one or more weights of other "
                f"terms than {target.name!r}, zero or more; got {probability} and {dict(costs)}."
            )
        if patience is not None and patience < 1:
            raise ConfigurationError(f"patience must be 1 or more; got {patience}.")
        self.target, self.costs = target, dict(costs)
        self.probability, self.patience = probability, patience

    def start(self, first: Iterate) -> dict[str, Tensor]:
        """See :meth:`Selection.start`."""
        missing = [n for n in (self.target.name, *self.costs) if n not in first.values]
        if missing or id(self.target.operator) not in first.applied:
            raise ConfigurationError(
                f"The objective has the terms {', '.join(first.values)}; the selection asks for "
                f"{', '.join([self.target.name, *self.costs])}, on the operator of its own target."
            )
        zero = torch.zeros_like(first.objective)
        return super().start(first) | {
            "standing": zero - 1,
            "least_cost": zero + math.inf,
            "p_target": zero,
            "chosen_p_target": zero,
            "confident_in_a_row": zero,
        }

    def update(self, tensors: dict[str, Tensor], iterate: Iterate) -> dict[str, Tensor]:
        """See :meth:`Selection.update`."""
        is_valid, is_confident, probability, shortfall = self.target.standing(
            iterate.applied[id(self.target.operator)], confident_from=self.probability
        )
        standing = (is_valid.long() + is_confident.long()).to(iterate.objective)
        rest = sum(weight * iterate.values[name] for name, weight in self.costs.items())
        cost = torch.where(is_valid, rest, shortfall)
        better = (standing > tensors["standing"]) | (
            (standing == tensors["standing"]) & (cost < tensors["least_cost"])
        )
        in_a_row = tensors["confident_in_a_row"]
        if self.patience is not None:
            # Those that are done stay as they are, while others of a batch go on.
            better = better & (in_a_row < self.patience)
            counted = torch.where(is_confident, in_a_row + 1, 0.0)
            in_a_row = torch.where(in_a_row >= self.patience, in_a_row, counted)
        return choose(tensors, better, iterate) | {
            "standing": torch.where(better, standing, tensors["standing"]),
            "least_cost": torch.where(better, cost, tensors["least_cost"]),
            "p_target": probability,
            "chosen_p_target": torch.where(better, probability, tensors["chosen_p_target"]),
            "confident_in_a_row": in_a_row,
        }

    def figures(self, tensors: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """See :meth:`Selection.figures`."""
        names = ("p_target", "chosen_p_target", "confident_in_a_row")
        return super().figures(tensors, step) | {
            "standing": tensors["standing"].clamp(min=0),
            **{name: tensors[name] for name in names},
        }

    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """See :meth:`Selection.outcome`."""
        if self.patience is None:
            return None
        done = bool((figures["confident_in_a_row"] >= self.patience).all())
        return Status.TARGET_REACHED if done else None
