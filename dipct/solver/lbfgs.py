"""Limited-memory BFGS with a line search that also works where the loss has kinks."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.solver.loss import Evaluation, GeneratorLoss
from dipct.solver.optimiser import Optimiser

# Shares of the first slope that the loss must fall by and that may be left (Nocedal & Wright,
# section 3.1).
_DECREASE, _CURVATURE = 1e-4, 0.9
# A trial in a bracket stays away from both ends by this share, so that every bracket shrinks.
_MARGIN = 0.1
_LEAST_GROWTH, _LARGEST_GROWTH = 2.0, 10.0


@dataclass(frozen=True, eq=False)
class LBFGS(Optimiser):
    """L-BFGS (Nocedal & Wright, Numerical Optimization, 2006, algorithms 7.4 and 7.5).

    The line search looks for the weak Wolfe conditions (sufficient decrease, and a slope that
    has risen), for which a bracket shrinks around a step as in Lewis & Overton (Math. Program.
    141, 2013, algorithm 2.6): there are such steps also where the loss has kinks, as with total
    variation. Inside a bracket the zero of the slope's secant is tried instead of the middle.

    The loss never rises. Where no step lowers it the parameters stay and the pairs are
    forgotten, so that the next step is one of steepest descent; where that fails, too, they stay
    for good. A trial at which the loss is not finite is too far. If it is finite at no trial,
    or not at the parameters themselves, these become NaN and the fit ends as diverged.

    The remembered ``network_passes`` count forward and backward passes through the network.

    Attributes:
        memory: most pairs of changes that are remembered.
        learning_rate: first trial length of a step; without pairs, in units of the gradient or
            of its direction, whichever is shorter.
        max_evaluations: most trials of one step.
    """

    memory: int = 10
    learning_rate: float = 1.0
    max_evaluations: int = 20

    def __post_init__(self) -> None:
        if self.memory < 1 or self.max_evaluations < 1:
            raise ConfigurationError(
                "memory and max_evaluations must be at least 1; got "
                f"{self.memory} and {self.max_evaluations}."
            )
        if not 0 < self.learning_rate < math.inf:
            raise ConfigurationError(
                f"learning_rate must be positive and finite; got {self.learning_rate}."
            )

    def check(self, theta: Tensor) -> None:
        """See :meth:`Optimiser.check`."""
        if theta.ndim != 1:
            raise ShapeError(
                "L-BFGS fits one parameter vector [P], since every step has a length of its own; "
                f"got {tuple(theta.shape)}. Fit the elements of a batch one by one, or use Adam."
            )

    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """No pairs; see :meth:`Optimiser.start`."""
        return {
            "parameter_changes": theta.new_zeros(self.memory, theta.numel()),
            "gradient_changes": theta.new_zeros(self.memory, theta.numel()),
            "n_pairs": torch.tensor(0),
            "stays": torch.tensor(False),
            "network_passes": torch.tensor(0),
        }

    def step(
        self,
        theta: Tensor,
        memory: dict[str, Tensor],
        here: Evaluation,
        loss: GeneratorLoss,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Optimiser.step`."""
        assert here.gradient is not None
        kept = {name: memory[name] for name in self.start(theta[:0])}
        passes, gradient = int(kept["network_passes"]) + 1, here.gradient
        kept["network_passes"] = torch.tensor(passes)
        if not bool(torch.isfinite(here.objective) & torch.isfinite(gradient).all()):
            return torch.full_like(theta, math.nan), kept
        if bool(kept["stays"]):
            return theta, kept

        direction = self._direction(gradient, kept)
        length, slope = self.learning_rate, float(direction @ gradient)
        if int(kept["n_pairs"]) == 0 or not -math.inf < slope < 0:
            kept["n_pairs"] = torch.tensor(0)
            direction, slope = -gradient, -float(gradient.double().square().sum())
            length *= min(1.0, 1 / max(math.sqrt(-slope), torch.finfo(theta.dtype).tiny))
        if slope == 0:
            return theta, kept | {"stays": torch.tensor(True)}

        first = _Trial(0.0, theta, gradient, loss.scale * float(here.objective), slope)
        found, trials, any_finite = self._search(first, direction, length, loss)
        kept["network_passes"] = torch.tensor(passes + trials)
        if not any_finite:
            return torch.full_like(theta, math.nan), kept
        if found is first:
            kept["stays"] = kept["n_pairs"] == 0
            return theta, kept | {"n_pairs": torch.tensor(0)}
        return found.theta, self._remember(kept, found.theta - theta, found.gradient - gradient)

    def _direction(self, gradient: Tensor, kept: dict[str, Tensor]) -> Tensor:
        """Minus the inverse Hessian's estimate times the gradient (algorithm 7.4)."""
        count = int(kept["n_pairs"])
        if count == 0:
            return -gradient
        changes = kept["parameter_changes"][self.memory - count :]
        responses = kept["gradient_changes"][self.memory - count :]
        products = (changes * responses).sum(-1)
        rest, shares = gradient, []
        for i in reversed(range(count)):
            shares.append(changes[i] @ rest / products[i])
            rest = rest - shares[-1] * responses[i]
        result = rest * (products[-1] / responses[-1].square().sum())
        for i, share in enumerate(reversed(shares)):
            result = result + changes[i] * (share - responses[i] @ result / products[i])
        return -result

    def _search(
        self, first: "_Trial", direction: Tensor, length: float, loss: GeneratorLoss
    ) -> tuple["_Trial", int, bool]:
        """A point with the weak Wolfe conditions, or the last one of sufficient decrease.

        Returns:
            The point, the first one if there is no other, the number of trials, and whether the
            loss was finite at any of them.
        """
        low, high, any_finite = first, None, False
        for count in range(1, self.max_evaluations + 1):
            trial = _Trial.at(first.theta, direction, length, loss)
            any_finite |= trial.is_finite
            wanted = first.loss + _DECREASE * length * first.slope
            # In rounding the wanted loss is the first one, where steps get small.
            if not trial.is_finite or trial.loss > wanted or trial.loss >= first.loss:
                high = trial
                length = _inside(low, high)
            elif trial.slope < _CURVATURE * first.slope:
                length = _beyond(low, trial) if high is None else _inside(trial, high)
                low = trial
            else:
                return trial, count, True
        return low, self.max_evaluations, any_finite

    def _remember(
        self, kept: dict[str, Tensor], change: Tensor, response: Tensor
    ) -> dict[str, Tensor]:
        """The memory with one more pair, if the estimated Hessian stays positive definite."""
        size = change.norm() * response.norm()
        if not bool(change @ response > torch.finfo(change.dtype).eps * size):
            return kept
        added = {
            name: torch.cat([kept[name][1:], last[None]])
            for name, last in (("parameter_changes", change), ("gradient_changes", response))
        }
        count = min(int(kept["n_pairs"]) + 1, self.memory)
        return kept | added | {"n_pairs": torch.tensor(count)}


@dataclass(frozen=True, eq=False)
class _Trial:
    """A point on the line of the search.

    Attributes:
        length: how far along the direction.
        theta: parameters, [P].
        gradient: of the loss, [P].
        loss: value.
        slope: derivative along the direction.
    """

    length: float
    theta: Tensor
    gradient: Tensor
    loss: float
    slope: float

    @classmethod
    def at(cls, theta: Tensor, direction: Tensor, length: float, loss: GeneratorLoss) -> Self:
        """The point ``theta + length * direction``."""
        moved = theta + length * direction
        there = loss.differentiate(moved)
        assert there.gradient is not None
        value, slope = loss.scale * float(there.objective), float(there.gradient @ direction)
        return cls(length, moved, there.gradient, value, slope)

    @property
    def is_finite(self) -> bool:
        """Whether loss and slope are."""
        return math.isfinite(self.loss) and math.isfinite(self.slope)


def _inside(low: _Trial, high: _Trial) -> float:
    """A length in a bracket: where the slope's secant is zero, but not next to an end."""
    share = _MARGIN
    if high.is_finite:
        bend = high.slope - low.slope
        share = -low.slope / bend if bend > 0 else 0.5
    return low.length + min(max(share, _MARGIN), 1 - _MARGIN) * (high.length - low.length)


def _beyond(before: _Trial, last: _Trial) -> float:
    """A length beyond all so far, by the slope's secant within limits."""
    bend, growth = last.slope - before.slope, _LARGEST_GROWTH
    if bend > 0:
        growth = 1 - last.slope / bend * (last.length - before.length) / last.length
    return last.length * min(max(growth, _LEAST_GROWTH), _LARGEST_GROWTH)
