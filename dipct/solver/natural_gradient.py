"""Natural-gradient descent for generators of few parameters."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.objective.objective import DataTerm
from dipct.solver.loss import Evaluation, GeneratorLoss
from dipct.solver.optimiser import Optimiser

# The matrix of a network's own parameters, not of coefficients, would not fit in memory.
_MOST_PARAMETERS = 10_000
_LARGEST_DAMPING = 1e12
# Bounds of the ratio of actual to predicted reduction (Martens & Grosse 2015, section 6.5).
_GOOD_RATIO, _POOR_RATIO = 0.75, 0.25
_NUMBERS_AT_ONCE = 2**24
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, eq=False)
class NaturalGradient(Optimiser):
    """Natural gradient with estimated Fisher information, as in Subspace DIP.

    Barbano et al. (TMLR 2024, arXiv 2302.10279): the Fisher information of the data term is an
    exponentially decaying average of products of ``GeneratorLoss.whitened_gradients``. Step
    length and momentum minimise a quadratic model of the loss over the plane of the natural
    gradient and the change before, and the damping follows the ratio of the loss's actual to
    the model's reduction, as in Martens & Grosse (ICML 2015, arXiv 1503.05671, sections 6.5
    and 7). In the plane the model has the exact Fisher information, by forward-mode derivatives.

    Damping is in units of the Fisher matrix's mean eigenvalue, so that the path does not depend
    on the loss's scale. Other terms of the objective, such as total variation, are in the
    gradient and in the actual reduction, but not in the model's curvature. At their kinks, and
    those of the network, the fit may come to a halt above the minimum; :class:`LBFGS` then goes
    on from there.

    The loss never rises: a change that would raise it, or make it infinite, is tried again with
    more damping, and with that part of the gradient which the gradient there does not undo;
    after ``max_evaluations`` trials, or where the model promises less than rounding, the
    parameters stay for this step. If the loss was finite at no trial, or is not finite at the
    parameters themselves, these become NaN and the fit ends as diverged.

    The remembered ``network_passes`` count forward and backward passes through the network: one
    for the gradient, one for every probe, and one for each forward-mode derivative or trial.

    Attributes:
        probes: random vectors of one estimate of the Fisher matrix.
        every: steps between two estimates.
        decay: of the average of the estimates.
        damping: first value, relative.
        least_damping: relative.
        damping_factor: of the damping after a step that went as predicted; its inverse after
            one that went badly, and the inverse's square after one that is taken back.
        max_evaluations: most trials of one step.
        seed: of the probes.
    """

    probes: int = 100
    every: int = 10
    decay: float = 0.95
    damping: float = 100.0
    least_damping: float = 1e-8
    damping_factor: float = 0.5
    max_evaluations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.probes, self.every, self.max_evaluations) < 1 or self.seed < 0:
            raise ConfigurationError(
                "probes, every and max_evaluations must be at least 1 and seed at least 0; got "
                f"{self.probes}, {self.every}, {self.max_evaluations} and {self.seed}."
            )
        if not 0 <= self.decay < 1 or not 0 < self.damping_factor < 1:
            raise ConfigurationError(
                "decay must lie in [0, 1) and damping_factor in (0, 1); got "
                f"{self.decay} and {self.damping_factor}."
            )
        if not 0 < self.least_damping <= self.damping <= _LARGEST_DAMPING:
            raise ConfigurationError(
                "damping must lie between least_damping, which is positive, and "
                f"{_LARGEST_DAMPING:g}; got {self.damping} and {self.least_damping}."
            )

    def check(self, theta: Tensor) -> None:
        """See :meth:`Optimiser.check`."""
        if theta.ndim != 1:
            raise ShapeError(
                "The natural gradient fits one parameter vector [P], since it has one Fisher "
                f"matrix; got {tuple(theta.shape)}. Fit the elements of a batch one by one, or "
                "use Adam."
            )
        if theta.numel() > _MOST_PARAMETERS:
            raise ConfigurationError(
                f"The natural gradient stores a matrix of the number of parameters squared; got "
                f"{theta.numel()} parameters, at most {_MOST_PARAMETERS} are supported. Restrict "
                "the generator with dipct.generator.Subspace, or use Adam."
            )

    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """Nothing is known; see :meth:`Optimiser.start`."""
        size = theta.numel()
        # In single precision the matrix would not stay positive definite with little damping.
        zeros = theta.new_zeros((size, size), dtype=torch.float64)
        return {
            "fisher_mean": zeros,
            "fisher_estimates": torch.tensor(0),
            "damping": torch.tensor(self.damping, dtype=torch.float64),
            "last_change": theta.new_zeros(size, dtype=torch.float64),
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
        lost = torch.full_like(theta, math.nan)
        passes = int(kept["network_passes"]) + 1
        finite = bool(torch.isfinite(here.objective) & torch.isfinite(here.gradient).all())
        if finite and step % self.every == 0:
            estimate = self.fisher(theta, loss, step)
            passes += self.probes
            finite = bool(torch.isfinite(estimate).all())
            kept["fisher_mean"] = torch.lerp(estimate, kept["fisher_mean"], self.decay)
            kept["fisher_estimates"] = kept["fisher_estimates"] + 1
        kept["network_passes"] = torch.tensor(passes)
        if not finite:
            return lost, kept
        if not bool(here.gradient.any()):
            return theta, kept | {"last_change": torch.zeros_like(kept["last_change"])}

        fisher = kept["fisher_mean"] / (1 - self.decay ** int(kept["fisher_estimates"]))
        change, damping, any_finite, used = self._search(theta, kept, here, loss, fisher)
        kept |= {
            "damping": torch.full_like(kept["damping"], damping),
            "last_change": change,
            "network_passes": torch.tensor(passes + used),
        }
        return theta + change.to(theta) if any_finite else lost, kept

    def _search(
        self,
        theta: Tensor,
        kept: dict[str, Tensor],
        here: Evaluation,
        loss: GeneratorLoss,
        fisher: Tensor,
    ) -> tuple[Tensor, float, bool, int]:
        """A change that does not raise the loss.

        Returns:
            The change, zero if none was found or is worth a trial, the next damping, whether the
            loss was finite at any trial, and the network passes spent.
        """
        assert here.gradient is not None
        unit = float(fisher.diagonal().mean())
        # Where only terms without data depend on the parameters, any unit will do.
        unit = unit if unit > 0 else 1.0
        model = _Model(theta, here.gradient, loss)
        last = model.direction(kept["last_change"])
        rounding = torch.finfo(theta.dtype).eps * loss.scale * float(here.objective)
        damping, trials, accepted, any_finite = float(kept["damping"]), 0, False, False
        while not accepted and trials < self.max_evaluations:
            factor = _damped_factor(fisher, damping * unit)
            natural = model.direction(_solve(factor, model.gradient))
            change, predicted = model.minimise([natural, last], damping * unit)
            if -predicted < rounding:
                break
            trials += 1
            there = loss.differentiate(theta + change.to(theta))
            assert there.gradient is not None
            any_finite |= bool(torch.isfinite(there.objective))
            accepted = bool(there.objective <= here.objective)
            if accepted:
                reduction = loss.scale * (float(there.objective) - float(here.objective))
                damping *= self._factor(reduction, predicted)
            else:
                damping /= self.damping_factor**2
                model.join(there.gradient, factor)
            damping = min(max(damping, self.least_damping), _LARGEST_DAMPING)
        if not accepted:
            change = torch.zeros_like(change)
        return change, damping, any_finite or trials == 0, trials + model.derivatives

    def fisher(self, theta: Tensor, loss: GeneratorLoss, step: int) -> Tensor:
        """One estimate of the Fisher information of the data term, as the loss weighs it.

        Args:
            theta: [P].
            loss: with a data term.
            step: completed steps; every step has probes of its own.

        Returns:
            float64 [P P]; its expectation is ``w J^T A^T diag(1 / std^2) A J``, with the
            Jacobian J of the generator and w the weight of the data term times the loss's scale.
        """
        data = _data_term(loss)
        shape = data.fidelity.range_shape
        # Numbers that do not depend on the device, nor on those of other steps.
        seed = np.random.SeedSequence((self.seed, step)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed[0]))
        at_once = max(1, _NUMBERS_AT_ONCE // math.prod(shape))
        total = theta.new_zeros((theta.numel(), theta.numel()), dtype=torch.float64)
        for first in range(0, self.probes, at_once):
            count = min(at_once, self.probes - first)
            v = torch.randn(count, *shape, generator=generator, dtype=theta.dtype)
            rows = loss.whitened_gradients(theta, v.to(theta.device)).double()
            total += rows.T @ rows
        return total * (_data_weight(loss) / self.probes)

    def _factor(self, actual: float, predicted: float) -> float:
        """Of the damping, from the actual and the predicted change of the loss."""
        if actual < _GOOD_RATIO * predicted:
            return self.damping_factor
        return 1 / self.damping_factor if actual > _POOR_RATIO * predicted else 1.0


@dataclass(frozen=True, eq=False)
class _Direction:
    """A direction of unit length, or of length zero, with its effect.

    Attributes:
        vector: [P].
        effect: change of the data in units of their standard deviation, [m].
    """

    vector: Tensor
    effect: Tensor


class _Model:
    """``g^T d + d^T (F + damping) d / 2`` with the exact Fisher information F in few directions.

    Attributes:
        gradient: g, float64 [P].
        derivatives: forward-mode derivatives that were taken so far.
    """

    def __init__(self, theta: Tensor, gradient: Tensor, loss: GeneratorLoss) -> None:
        data = _data_term(loss)
        self._theta, self.gradient = theta, gradient.double()
        self._predictions = data.operator @ loss.generator
        self._std, self._weight = data.fidelity.std, _data_weight(loss)
        self.derivatives = 0

    def join(self, gradient: Tensor, factor: Tensor) -> None:
        """Take the shortest of the convex combinations with another gradient, [P].

        Length is that of the damped natural gradient. Two gradients from both sides of a kink
        combine to the slope along it (Wolfe, Math. Program. Study 3, 1975).
        """
        difference = self.gradient - gradient
        bent = _solve(factor, difference)
        share = float(self.gradient @ bent) / max(float(difference @ bent), _TINY)
        # Not a number where the other gradient is not.
        if math.isfinite(share):
            self.gradient = self.gradient - min(max(share, 0.0), 1.0) * difference

    def direction(self, vector: Tensor) -> _Direction:
        """A direction from any vector along it, [P]."""
        length = vector.norm()
        if not bool(length > 0):
            nothing = vector.new_zeros(math.prod(self._predictions.range_shape))
            return _Direction(torch.zeros_like(vector), nothing)
        unit = vector / length
        self.derivatives += 1
        effect = self._predictions.jvp(self._theta, unit.to(self._theta)) / self._std
        return _Direction(unit, effect.double().flatten())

    def minimise(self, directions: list[_Direction], damping: float) -> tuple[Tensor, float]:
        """The minimiser in the directions' span, [P], and the model's value there."""
        vectors = torch.stack([each.vector for each in directions])
        effects = torch.stack([each.effect for each in directions])
        curvature = self._weight * (effects @ effects.T) + damping * (vectors @ vectors.T)
        if not bool(torch.isfinite(curvature).all()):
            return torch.full_like(self.gradient, math.nan), math.nan
        # Directions may be zero or parallel.
        inverse = torch.linalg.pinv(curvature, rtol=1e-10, hermitian=True)
        change = -(inverse @ (vectors @ self.gradient)) @ vectors
        return change, float(self.gradient @ change) / 2


def _damped_factor(fisher: Tensor, damping: float) -> Tensor:
    """The Cholesky factor of ``fisher + damping``, [P P]."""
    identity = torch.eye(len(fisher), dtype=fisher.dtype, device=fisher.device)
    return torch.linalg.cholesky(fisher + damping * identity)


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right[:, None], factor)[:, 0]


def _data_term(loss: GeneratorLoss) -> DataTerm:
    if loss.data_term is None:
        raise ConfigurationError("The natural gradient needs an objective with a data term.")
    return loss.data_term


def _data_weight(loss: GeneratorLoss) -> float:
    """Of the data term in the loss."""
    (weight,) = [weight for weight, term in loss.objective.terms if term is loss.data_term]
    return loss.scale * float(weight)
