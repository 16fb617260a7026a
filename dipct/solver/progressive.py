"""Progressive optimisation: more and more of a generator is fitted, ever more freely."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.generator.base import Generator
from dipct.objective.objective import Objective
from dipct.solver.adam import Adam, Schedule
from dipct.solver.descent import GeneratorFit, Measure, Part
from dipct.solver.loss import GeneratorLoss
from dipct.solver.optimiser import Optimiser
from dipct.solver.selection import Selection


@dataclass(frozen=True, eq=False)
class FitStage:
    """A part of a fit with an objective and an optimiser of its own.

    Attributes:
        objective: of images.
        optimiser: begins anew with the stage; the same kind in all stages.
        steps: how many.
    """

    objective: Objective
    optimiser: Optimiser
    steps: int


class ProgressiveFit(GeneratorFit):
    """A fit in stages, each from where the one before has ended.

    The selection sees all of them as one sequence of iterates, and the state says how far it is:
    a fit that is stopped in any stage goes on exactly.

    Args:
        generator: G.
        stages: in order; the last goes on for as long as it is asked to.
        initial: first parameters, [... P].
        selection: as for :class:`GeneratorFit`; one that compares objectives would compare those
            of different stages.
        loss_scale: likewise.
        measure: likewise.

    Raises:
        ConfigurationError: no stage, one without steps, or stages with other terms or another
            kind of optimiser than the first.
    """

    def __init__(
        self,
        generator: Generator,
        stages: Sequence[FitStage],
        initial: Tensor,
        selection: Selection,
        *,
        loss_scale: float | None = None,
        measure: Measure | None = None,
    ) -> None:
        if not stages or any(stage.steps < 1 for stage in stages):
            raise ConfigurationError(
                "A progressive fit needs stages of one step or more; got steps "
                f"{[stage.steps for stage in stages]}."
            )
        first = stages[0]
        super().__init__(
            generator,
            first.objective,
            initial,
            optimiser=first.optimiser,
            selection=selection,
            loss_scale=loss_scale,
            measure=measure,
        )
        terms = {term.name for _, term in first.objective.terms}
        for number, stage in enumerate(stages[1:], 2):
            stage.optimiser.check(initial)
            others = {term.name for _, term in stage.objective.terms}
            if others != terms or type(stage.optimiser) is not type(first.optimiser):
                raise ConfigurationError(
                    f"Stage {number} has the terms {', '.join(sorted(others))} and "
                    f"{type(stage.optimiser).__name__}; the first has {', '.join(sorted(terms))} "
                    f"and {type(first.optimiser).__name__}. Give a term that shall not count the "
                    "weight zero, or fit in two calls."
                )
        self.stages = tuple(stages)
        self._relaxed = _relaxed(self.stages)
        self._losses = [GeneratorLoss(generator, s.objective, loss_scale) for s in stages]
        ends = torch.tensor([stage.steps for stage in stages]).cumsum(0).tolist()
        self._starts = [0, *ends[:-1]]

    def stage_at(self, step: int) -> int:
        """Number of the stage in which a step is made."""
        return max(i for i, start in enumerate(self._starts) if start <= step)

    def figures(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.figures`; also ``stage``, counted from one.

        Of a term whose weight is not the same in all stages also ``weight of`` its name.
        """
        found, number = super().figures(tensors), self.stage_at(int(tensors["step"]))
        like = found["objective"]
        weights = {
            f"weight of {term.name}": torch.as_tensor(weight).to(like).expand_as(like)
            for weight, term in self.stages[number].objective.terms
            if term.name in self._relaxed
        }
        return found | {"stage": torch.full_like(like, number + 1), **weights}

    def _part(self, step: int) -> Part:
        number = self.stage_at(step)
        optimiser = self.stages[number].optimiser
        return Part(self._losses[number], optimiser, step - self._starts[number])


def _relaxed(stages: Sequence[FitStage]) -> set[str]:
    """Names of the terms whose weight is not the same in all stages."""
    first = {term.name: torch.as_tensor(weight) for weight, term in stages[0].objective.terms}
    return {
        term.name
        for stage in stages[1:]
        for weight, term in stage.objective.terms
        if not torch.equal(torch.as_tensor(weight), first[term.name])
    }


def progressive_stages(
    generator: Generator,
    objective_of: Callable[[Any], Objective],
    *,
    weight: float | Tensor,
    relaxation: float = 0.7,
    steps: int = 300,
    learning_rate: float = 1e-3,
    schedule: Schedule | None = None,
    order: Sequence[str] | None = None,
) -> list[FitStage]:
    """Stages that free one block of a generator after another and relax a weight.

    Stage i trains the first i blocks, the others stay as they are; with each stage the weight
    of the fidelity falls by a factor (Thiagarajan et al., arXiv 2109.14274, section 3.4, after
    Daras et al., arXiv 2102.07364). The blocks that are not yet trained should be those of a
    network that makes the query: from random ones the first stages lead nowhere.

    Args:
        generator: its blocks, in the order in which they are applied, are the groups.
        objective_of: makes the objective from the weight of the fidelity.
        weight: in the first stage, one number or one for each element of a batch.
        relaxation: its factor from stage to stage.
        steps: of each stage.
        learning_rate: of Adam.
        schedule: factor of the learning rate, from the first step of each stage on.
        order: names of the blocks, in another order.

    Raises:
        ConfigurationError: impossible numbers, or names that are not the generator's blocks.
    """
    blocks = list(generator.layout.blocks)
    order = blocks if order is None else list(order)
    if sorted(order) != sorted(blocks):
        raise ConfigurationError(
            f"order must name each of the blocks {', '.join(blocks)} once; got {', '.join(order)}."
        )
    weights = torch.as_tensor(weight)
    is_possible = bool(((weights >= 0) & torch.isfinite(weights)).all())
    if not 0 < relaxation <= 1 or not is_possible:
        raise ConfigurationError(
            "relaxation must lie in (0, 1] and weight be zero or more; got "
            f"{relaxation} and {weight}."
        )
    stages = []
    for i in range(len(order)):
        free = generator.layout.mask(blocks=set(order[: i + 1]))
        rates = torch.where(free, learning_rate, 0.0)
        stages.append(
            FitStage(objective_of(weight * relaxation**i), Adam(rates, schedule=schedule), steps)
        )
    return stages
