"""The evidence where the covariance of the data is known only by its products."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dipct.linalg import (
    LinearSolution,
    Preconditioner,
    StochasticLogDeterminant,
    conjugate_gradients,
    log_determinant,
    low_rank_plus_diagonal,
)
from dipct.posterior.hyperparameter_space import HyperparameterSpace
from dipct.posterior.posterior import DataJacobian
from dipct.posterior.weight_prior import WeightPrior
from dipct.shapes import check_shape

_VALUE_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class GradientEstimate:
    """An estimate of the gradient of the evidence.

    Attributes:
        gradient: with respect to the hyper-parameters, float64 [H].
        standard_error: of each component, from the scatter over the probes, float64 [H].
        misfit: ``r^T K^-1 r``, which takes no probes.
        solution: of the linear systems, with how well they are solved.
    """

    gradient: Tensor
    standard_error: Tensor
    misfit: float
    solution: LinearSolution


@dataclass(frozen=True, eq=False)
class EvidenceEstimate:
    """An estimate of the evidence.

    Attributes:
        value: [nat].
        standard_error: of the value, from that of the log-determinant.
        log_det: the log-determinant, with its error and how well it has converged.
        solution: of the linear system.
    """

    value: float
    standard_error: float
    log_det: StochasticLogDeterminant
    solution: LinearSolution


class StochasticEvidence(HyperparameterSpace):
    """``log N(residual; 0, K)`` and its gradient from products with ``K`` alone.

    Traces are estimated with probes drawn from a preconditioner P of K, ``tr K^-1 dK = E[(K^-1
    v)^T dK P^-1 v]`` for ``v ~ N(0, P)`` (Gardner et al., NeurIPS 2018, section 4), all systems
    solved together by preconditioned conjugate gradients. Solutions are taken to weight space once
    and differentiated there: the derivative of the prior's covariance is a few numbers per block,
    so that no derivative goes through the network.

    Args:
        prior: of the weights.
        products: of ``A J``.
        residual: what the linear model has to explain, [m].
        noise_variance: V, the diagonal, [m].
        probes: random vectors for each trace.
        rank: of the preconditioner.
        tolerance: relative residual of the linear systems.
        max_iterations: most steps for them.
        product_dtype: type in which K is multiplied, everything else in that of the residual;
            residuals are then kept orthogonal, see
            :func:`dipct.linalg.conjugate_gradients`.
    """

    def __init__(
        self,
        prior: WeightPrior,
        products: DataJacobian,
        residual: Tensor,
        noise_variance: Tensor,
        *,
        probes: int = 10,
        rank: int = 200,
        tolerance: float = 1e-2,
        max_iterations: int = 100,
        product_dtype: torch.dtype | None = None,
    ) -> None:
        check_shape(residual, "m", name="The residual")
        check_shape(noise_variance, "m", name="The noise variance", m=len(residual))
        super().__init__(prior)
        self.products = products
        self.residual, self.noise_variance = residual, noise_variance.to(residual)
        self.probes, self.rank = probes, min(rank, max(1, len(residual) // 2))
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.product_dtype = product_dtype

    def scaled_initial(self, *, seed: int) -> Tensor:
        """:meth:`initial` with all variances scaled so that the signal is as large as the data.

        From the prior's own beginning signals may be so much larger than the noise that products
        in single precision do not resolve it.

        Args:
            seed: of the random signs that estimate the size of the signal.
        """
        phi = self.initial()
        random = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (self.probes, len(self.residual)), generator=random) * 2 - 1
        block = signs.to(self.residual)
        signal = float((block * self.signal(phi, block)).double().sum()) / self.probes
        wanted = float(self.residual.double().square().sum())
        # Never larger than the prior begins.
        change = min(0.0, math.log(max(wanted, 1e-300) / max(signal, 1e-300)))
        for i, (name, (low, _)) in enumerate(zip(self.names, self.bounds(), strict=True)):
            if name.endswith("variance") or name == "g":
                phi[i] = max(float(phi[i]) + change, low)
        return phi

    def _noise(self, phi: Tensor) -> Tensor:
        return phi[-1].exp().to(self.residual) * self.noise_variance

    def signal(self, phi: Tensor, block: Tensor) -> Tensor:
        """Covariance of the data without noise times rows, [k m] to [k m]."""
        weights = self.products.to_weights(block)
        return self.products.to_data(self.prior.apply(phi[:-1], weights))

    def apply(self, phi: Tensor, block: Tensor) -> Tensor:
        """Covariance K of the data times rows, [k m] to [k m]."""
        return self.signal(phi, block) + block * self._noise(phi).to(block)

    def preconditioner(self, phi: Tensor, *, seed: int) -> Preconditioner:
        """A randomised low-rank approximation of K, exact in its diagonal of noise."""
        return low_rank_plus_diagonal(
            lambda block: self.signal(phi, block),
            len(self.residual),
            self.rank,
            self._noise(phi),
            seed=seed,
            dtype=self.residual.dtype,
            device=self.residual.device,
        )

    def solve(
        self,
        phi: Tensor,
        block: Tensor,
        preconditioner: Preconditioner | None,
        *,
        tolerance: float | None = None,
    ) -> LinearSolution:
        """``K^-1`` times rows, [k m], with how well it is known."""
        return conjugate_gradients(
            lambda rows: self.apply(phi, rows),
            block,
            preconditioner=preconditioner,
            tolerance=self.tolerance if tolerance is None else tolerance,
            max_iterations=self.max_iterations,
            reorthogonalise=self.product_dtype is not None,
            product_dtype=self.product_dtype,
        )

    def gradient(
        self, phi: Tensor, *, seed: int, preconditioner: Preconditioner | None = None
    ) -> GradientEstimate:
        """Estimate the gradient of the evidence.

        Args:
            phi: hyper-parameters, [H].
            seed: of the probes.
            preconditioner: near K, of this phi or an earlier one: it changes the variance of the
                estimate, never its mean. Default: made for this phi.
        """
        check_shape(phi, "H", name="The hyper-parameters", H=len(self.names))
        near = preconditioner or self.preconditioner(phi, seed=seed)
        probes = near.sample(self.probes, seed)
        right = torch.cat([probes, self.residual[None]])
        found = self.solve(phi, right, near)
        whitened = near.solve(probes)
        alpha = found.value[-1:]
        left, back = torch.cat([found.value[:-1], alpha]), torch.cat([whitened, alpha])
        slopes = self._component_products(
            self.products.to_weights(left), self.products.to_weights(back)
        )
        at_noise = ((left * back).double() * self._noise(phi).double()).sum(1)
        # d value / d c_k = (alpha^T G_k alpha - tr K^-1 G_k) / 2, likewise for the noise.
        samples = (slopes[-1:] - slopes[:-1]) / 2
        of_noise = (at_noise[-1:] - at_noise[:-1]) / 2
        variable = phi.detach().double().cpu()
        jacobian = torch.func.jacrev(self.prior.coefficients)(variable[:-1])
        each = torch.cat([samples.cpu() @ jacobian, of_noise[:, None].cpu()], dim=1)
        return GradientEstimate(
            gradient=each.mean(0),
            standard_error=each.std(0) / math.sqrt(len(each)),
            misfit=float((self.residual.double() * alpha[0].double()).sum()),
            solution=found,
        )

    def _component_products(self, left: Tensor, right: Tensor) -> Tensor:
        """``u^T S_k w`` for rows u and w and every structure, float64 [rows K]."""
        found = []
        for group in self.prior.groups:
            shape = (group.filters, group.positions)
            one, other = (
                group.scaled(block[:, group.weights]).unflatten(1, shape) for block in (left, right)
            )
            # Summed over the filters first: what is left is small.
            outer = torch.einsum("kfi,kfj->kij", one, other).double()
            found.append(torch.einsum("kij,rij->kr", outer, group.structures.to(outer)))
        return torch.cat(found, dim=1)

    def log_density(
        self,
        phi: Tensor,
        *,
        seed: int,
        preconditioner: Preconditioner | None = None,
        probes: int | None = None,
    ) -> EvidenceEstimate:
        """Estimate the evidence, its log-determinant by stochastic Lanczos quadrature.

        Args:
            phi: hyper-parameters, [H].
            seed: of the probes.
            preconditioner: near K; default: made for this phi.
            probes: random vectors; default: as for the gradient.
        """
        near = preconditioner or self.preconditioner(phi, seed=seed)
        # Conjugate gradients approach r^T K^-1 r from below, by the squared error in the norm of
        # K: what is left of a signal far above the noise counts in units of the noise.
        tolerance = min(self.tolerance, _VALUE_TOLERANCE)
        found = self.solve(phi, self.residual[None], near, tolerance=tolerance)
        misfit = float((self.residual.double() * found.value[0].double()).sum())
        determinant = log_determinant(
            lambda rows: self.apply(phi, rows),
            len(self.residual),
            probes=probes or self.probes,
            preconditioner=near,
            max_iterations=self.max_iterations,
            seed=seed,
            dtype=self.residual.dtype,
            device=self.residual.device,
        )
        constant = len(self.residual) * math.log(2 * math.pi)
        return EvidenceEstimate(
            value=-(misfit + determinant.value + constant) / 2,
            standard_error=determinant.standard_error / 2,
            log_det=determinant,
            solution=found,
        )
