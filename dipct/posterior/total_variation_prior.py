"""A prior on length scales that knows about total variation: PredCP in closed form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.posterior.edge_variances import EdgeVariances
from dipct.posterior.evidence import Valued
from dipct.posterior.matern_prior import MaternPrior

Convention = Literal["length-scale", "bayes-dip"]

# A difference that no weight of a block changes is as it is in the image; its square must not
# underflow.
_TINY = 1e-100


@dataclass(frozen=True)
class ExpectedTotalVariation:
    """Mean total variation of the images of one block of weights.

    Attributes:
        value: kappa.
        slope: its derivative with respect to the logarithm of the length scale.
        value_error: standard error of kappa from the probes; 0 if exact.
        slope_error: likewise of the slope.
    """

    value: float
    slope: float
    value_error: float
    slope_error: float


class TotalVariationPrior:
    """Hyperprior that prefers length scales whose images have a small total variation.

    The predictive complexity prior of Nalisnick et al. (AISTATS 2021) as Antoran et al. (arXiv
    2203.00479, section 3.3) use it: for block d with length scale l_d

        ``p(l_d) proportional to exp(-lambda kappa_d) |d kappa_d / d l_d|``,

    with kappa_d the mean total variation of the linear model's image when only the weights of
    block d vary around theta_hat. Each difference of neighbouring pixels is then Gaussian, so that
    kappa is a sum of means of folded normal variables (Leone, Nelson & Nottingham, Technometrics
    3, 1961): no samples, exact derivatives, no pass through the network.

    Args:
        prior: of the weights.
        edges: the variances of the differences.
        tv_weight: lambda, that of the reconstruction.
        convention: ``length-scale`` as above, or ``bayes-dip``: lambda also multiplies the
            logarithm, and the derivative is taken with respect to log l_d, as the authors' code
            does.

    Attributes:
        blocks: names of the blocks with a length scale.

    Raises:
        ConfigurationError: a prior without length scales, or an impossible weight or convention.
    """

    def __init__(
        self,
        prior: MaternPrior,
        edges: EdgeVariances,
        tv_weight: float,
        *,
        convention: Convention = "length-scale",
    ) -> None:
        if not isinstance(prior, MaternPrior) or not prior.length_scales:
            raise ConfigurationError(
                "The total variation prior is a prior of length scales; this prior of the weights "
                "has none. Leave it out, or use the Matern prior."
            )
        if not 0 < tv_weight < math.inf:
            raise ConfigurationError(
                f"The weight of total variation must be positive and finite; got {tv_weight}."
            )
        if convention not in ("length-scale", "bayes-dip"):
            raise ConfigurationError(
                f"convention must be length-scale or bayes-dip; got {convention!r}."
            )
        self.prior, self.edges, self.tv_weight = prior, edges, tv_weight
        self.convention = convention
        self._groups = {
            group.name: (i, prior.length_scales[group.name])
            for i, group in enumerate(prior.groups)
            if group.name in prior.length_scales
        }
        self.blocks = tuple(self._groups)

    def __call__(self, phi: Tensor) -> Valued:
        """The log-density of the hyper-parameters up to its constant, and its gradient.

        Args:
            phi: hyper-parameters of the prior, and that of the noise, [H].
        """
        variable = phi.detach().double().cpu().requires_grad_()
        total, parts = variable.new_zeros(()), {}
        scale = self.tv_weight if self.convention == "bayes-dip" else 1.0
        for block, (value, slope) in self._expected(variable).items():
            logarithm = slope.abs().log()
            if self.convention == "length-scale":
                # d kappa / d l = (d kappa / d log l) / l.
                logarithm = logarithm - variable[self._groups[block][1]]
            total = total - self.tv_weight * value + scale * logarithm
            parts[f"{block} total variation"] = float(value.detach())
        (gradient,) = torch.autograd.grad(total, variable)
        density = float(total.detach())
        return Valued(density, gradient, {"log hyperprior": density, **parts})

    def slopes(self, phi: Tensor) -> dict[str, float]:
        """``d kappa / d log l`` of each block; where its sign changes the density vanishes."""
        phi = phi.detach().double().cpu()
        return {block: float(slope) for block, (_, slope) in self._expected(phi).items()}

    def expected(self, phi: Tensor) -> Mapping[str, ExpectedTotalVariation]:
        """Mean total variation of every block, with the errors that probes leave.

        Kappa is concave in the variances: from few probes it comes out a little low.

        Args:
            phi: as for calling.
        """
        phi = phi.detach().double().cpu()
        whole = self._expected(phi)
        if self.edges.is_exact:
            return {
                block: ExpectedTotalVariation(float(v), float(s), 0.0, 0.0)
                for block, (v, s) in whole.items()
            }
        sets = len(self.edges.variances[0])
        parts = [self._expected(phi, without=i) for i in range(sets)]
        found = {}
        for block, (value, slope) in whole.items():
            each = torch.tensor([[float(p) for p in part[block]] for part in parts])
            # The jackknife (Quenouille, Biometrika 43, 1956).
            errors = (sets - 1) / sets**0.5 * each.std(dim=0)
            found[block] = ExpectedTotalVariation(
                float(value), float(slope), float(errors[0]), float(errors[1])
            )
        return found

    def _expected(
        self, phi: Tensor, without: int | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean total variation and its slope of every block, differentiable in phi."""
        coefficients = self.prior.group_coefficients(phi[:-1])
        found = {}
        for block, (group, place) in self._groups.items():
            sets = self.edges.variances[group]
            if without is not None:
                sets = torch.cat([sets[:without], sets[without + 1 :]])
            per_edge = sets.mean(dim=0).to(coefficients[group])
            variance = per_edge @ coefficients[group]
            change = per_edge @ self._coefficient_slope(group, place, phi)
            mean = self.edges.differences.to(variance)
            found[block] = (
                folded_normal_mean(mean, variance).sum(),
                (folded_normal_slope(mean, variance) * change).sum(),
            )
        return found

    def _coefficient_slope(self, group: int, place: int, phi: Tensor) -> Tensor:
        """Derivative of a group's coefficients along the logarithm of its length scale."""
        direction = torch.zeros_like(phi[:-1])
        direction[place] = 1.0
        return torch.func.jvp(
            lambda at: self.prior.group_coefficients(at)[group], (phi[:-1],), (direction,)
        )[1]


def folded_normal_mean(mean: Tensor, variance: Tensor) -> Tensor:
    """``E|d|`` of ``d ~ N(mean, variance)``, differentiable; variances must be positive."""
    std = variance.clamp(min=_TINY).sqrt()
    ratio = mean / (std * math.sqrt(2))
    return std * math.sqrt(2 / math.pi) * torch.exp(-ratio.square()) + mean * torch.erf(ratio)


def folded_normal_slope(mean: Tensor, variance: Tensor) -> Tensor:
    """Derivative of :func:`folded_normal_mean` with respect to the variance."""
    variance = variance.clamp(min=_TINY)
    return torch.exp(-mean.square() / (2 * variance)) / torch.sqrt(2 * math.pi * variance)
