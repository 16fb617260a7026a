"""Which iterate of a fit is the result, and when to stop: rules that need no truth."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.solver.solution import Status


@dataclass(frozen=True)
class Iterate:
    """What a rule sees of an iterate.

    Attributes:
        step: completed steps.
        theta: parameters, [... P].
        image: [... *image_shape].
        objective: [...].
        discrepancy: ``2 fidelity / m`` of the first data term, [...].
        values: the objective's terms by name, [...] each.
        applied: what the operators of the terms made of the image, by their ``id``.
    """

    step: int
    theta: Tensor
    image: Tensor
    objective: Tensor
    discrepancy: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)
    applied: Mapping[int, Tensor] = field(default_factory=dict)


class Selection(ABC):
    """Keeps the iterate that is to be the result.

    What it keeps is in tensors, so that a run can be stopped and resumed: ``chosen`` [... P],
    ``chosen_step`` [...] and whatever the rule needs. Every element of a batch by itself.
    """

    def start(self, first: Iterate) -> dict[str, Tensor]:
        """Tensors before the first step."""
        return {
            "chosen": first.theta,
            "chosen_step": torch.full_like(first.objective, -1, dtype=torch.int64),
        }

    @abstractmethod
    def update(self, tensors: dict[str, Tensor], iterate: Iterate) -> dict[str, Tensor]:
        """The tensors after seeing another iterate; those given are not changed."""

    def figures(self, tensors: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Figures for the history, [...] each."""
        return {"chosen_step": tensors["chosen_step"].clamp(min=0)}

    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """A status once no later iterate of any batch element will be chosen."""
        return None


def choose(tensors: dict[str, Tensor], better: Tensor, iterate: Iterate) -> dict[str, Tensor]:
    """Take the iterate over where it is better, [...]."""
    if better.ndim == 0:
        chosen = iterate.theta if bool(better) else tensors["chosen"]
    else:
        chosen = torch.where(better[..., None], iterate.theta, tensors["chosen"])
    step = torch.where(better, iterate.step, tensors["chosen_step"])
    return {"chosen": chosen, "chosen_step": step}


class LowestObjective(Selection):
    """The iterate with the lowest objective; never stops by itself."""

    def start(self, first: Iterate) -> dict[str, Tensor]:
        """See :meth:`Selection.start`."""
        return super().start(first) | {"lowest": torch.full_like(first.objective, math.inf)}

    def update(self, tensors: dict[str, Tensor], iterate: Iterate) -> dict[str, Tensor]:
        """See :meth:`Selection.update`."""
        better = iterate.objective < tensors["lowest"]
        lowest = torch.where(better, iterate.objective, tensors["lowest"])
        return choose(tensors, better, iterate) | {"lowest": lowest}


class LastIterate(Selection):
    """The iterate before the last step, whatever it is."""

    def update(self, tensors: dict[str, Tensor], iterate: Iterate) -> dict[str, Tensor]:
        """See :meth:`Selection.update`."""
        return choose(tensors, torch.ones_like(iterate.objective, dtype=torch.bool), iterate)


class FirstAtNoiseLevel(Selection):
    """The first iterate whose residual is as large as the noise (Morozov 1966).

    Until one is, that of the lowest objective.

    Args:
        target: wanted ``2 fidelity / m``; slightly above 1 is safer.

    Raises:
        ConfigurationError: a target that is not positive.
    """

    def __init__(self, target: float = 1.0) -> None:
        if not target > 0:
            raise ConfigurationError(f"target must be positive; got {target}.")
        self.target = target

    def start(self, first: Iterate) -> dict[str, Tensor]:
        """See :meth:`Selection.start`."""
        return super().start(first) | {
            "reached": torch.zeros_like(first.objective),
            "lowest": torch.full_like(first.objective, math.inf),
        }

    def update(self, tensors: dict[str, Tensor], iterate: Iterate) -> dict[str, Tensor]:
        """See :meth:`Selection.update`."""
        waiting, reaches = tensors["reached"] == 0, iterate.discrepancy <= self.target
        better = waiting & (reaches | (iterate.objective < tensors["lowest"]))
        lowest = torch.where(better, iterate.objective, tensors["lowest"])
        reached = torch.where(waiting & reaches, 1.0, tensors["reached"]).to(lowest)
        return choose(tensors, better, iterate) | {"reached": reached, "lowest": lowest}

    def figures(self, tensors: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """See :meth:`Selection.figures`."""
        return super().figures(tensors, step) | {"reached_noise_level": tensors["reached"]}

    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """See :meth:`Selection.outcome`."""
        done = bool((figures["reached_noise_level"] > 0).all())
        return Status.DISCREPANCY_REACHED if done else None


class LeastMovingVariance(Selection):
    """The iterate at the minimum of the windowed moving variance of the images.

    Signal is fitted first and noise later; between the two the images hardly change (Wang et
    al., Early Stopping for Deep Image Prior, TMLR 2023, algorithm 1). The variance of the last
    ``window`` images, summed over pixels, is followed until it has found no new minimum for
    ``patience`` steps.

    Args:
        window: images of which the variance is taken.
        patience: steps without a new minimum after which to stop.
        warm_up: steps before the first window begins: images that hardly change because the
            fit has not begun to move are not the minimum that is looked for.

    Raises:
        ConfigurationError: a window below 2, or a patience or warm-up below 0.
    """

    def __init__(self, window: int = 100, patience: int = 1000, warm_up: int = 0) -> None:
        if window < 2 or patience < 1 or warm_up < 0:
            raise ConfigurationError(
                "The moving variance needs a window of 2 or more, a patience of 1 or more and a "
                f"warm-up of 0 or more steps; got {window}, {patience} and {warm_up}."
            )
        self.window, self.patience, self.warm_up = window, patience, warm_up

    def start(self, first: Iterate) -> dict[str, Tensor]:
        """See :meth:`Selection.start`."""
        images = first.image.new_zeros((self.window, *first.image.shape))
        infinite = torch.full_like(first.objective, math.inf)
        return super().start(first) | {
            "window": images,
            "moving_variance": infinite,
            "least_variance": infinite,
        }

    def update(self, tensors: dict[str, Tensor], iterate: Iterate) -> dict[str, Tensor]:
        """See :meth:`Selection.update`."""
        seen = iterate.step - self.warm_up
        always = torch.ones_like(iterate.objective, dtype=torch.bool)
        own = ("window", "moving_variance", "least_variance")
        unchanged = {name: tensors[name] for name in own}
        if seen < 0:
            return unchanged | choose(tensors, always, iterate)
        window = tensors["window"].clone()
        window[seen % self.window] = iterate.image
        if seen + 1 < self.window:
            return unchanged | choose(tensors, always, iterate) | {"window": window}
        batch_ndim = iterate.objective.ndim
        spread = window.var(dim=0, correction=0).flatten(batch_ndim).sum(-1)
        # Beyond its patience an element is done, also where others, or the next record, are
        # waited for: later minima are those of a learning rate that has fallen.
        waiting = iterate.step - tensors["chosen_step"] <= self.patience
        better = waiting & (spread < tensors["least_variance"])
        least = torch.where(better, spread, tensors["least_variance"])
        kept = {"window": window, "moving_variance": spread, "least_variance": least}
        return choose(tensors, better, iterate) | kept

    def figures(self, tensors: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """See :meth:`Selection.figures`."""
        # Before the window is full there is no variance; histories hold finite numbers only.
        variance = tensors["moving_variance"]
        variance = torch.where(torch.isinf(variance), 0.0, variance)
        since = step - 1 - tensors["chosen_step"]
        return super().figures(tensors, step) | {
            "moving_variance": variance,
            "steps_since_minimum": since.to(variance),
        }

    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """See :meth:`Selection.outcome`."""
        done = bool((figures["steps_since_minimum"] >= self.patience).all())
        return Status.SETTLED if done else None
