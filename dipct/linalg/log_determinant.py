"""Log-determinants of maps known by their products, by stochastic Lanczos quadrature."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.linalg.krylov import KrylovBasis, Tridiagonal, row_products
from dipct.linalg.preconditioner import Preconditioner
from dipct.linalg.products import BlockMap, product_of_block
from dipct.linalg.subspaces import check_dtype


@dataclass(frozen=True)
class StochasticLogDeterminant:
    """An estimate of ``log det K``, with how well it is known.

    Attributes:
        value: the estimate: the mean of the samples; NaN if the map proved not to be positive
            definite.
        standard_error: of the mean, from the spread of the samples.
        samples: the estimate by each probe, [probes], in double precision.
        iterations: Lanczos steps of each probe, [probes].
        change: largest relative change of a sample over the last quarter of its steps.
        tolerance: what that had to reach.
        converged: whether it did, and the map is symmetric and positive definite as far as seen.
        indefinite: what proved not to be positive definite to the precision of the type, "map"
            or "preconditioner"; empty if nothing did.
        lowest: lowest eigenvalue of a Lanczos matrix. ``P^-1/2 K P^-1/2`` has one as low or lower.
        asymmetry: largest entry of a Lanczos basis that symmetry makes zero, relative to the
            largest eigenvalue.
        passes: products of K with a block of vectors.
        products: products with single vectors in all of them.
    """

    value: float
    standard_error: float
    samples: Tensor
    iterations: Tensor
    change: float
    tolerance: float
    converged: bool
    indefinite: str
    lowest: float
    asymmetry: float
    passes: int
    products: int

    @property
    def advice(self) -> str:
        """What to do about an estimate that did not converge; empty if it did."""
        if self.converged:
            return ""
        if self.indefinite == "preconditioner":
            return "The preconditioner is not positive definite. Correct its solve."
        if self.indefinite:
            return (
                f"The map is not positive definite to the precision of the type: it has an "
                f"eigenvalue of {self.lowest:.3g} or less, relative to its preconditioner if there "
                f"is one. Correct it, add a larger diagonal, or take a more precise type."
            )
        if self.change <= self.tolerance:
            return (
                f"The map is not symmetric, or its products are too inexact: what symmetry makes "
                f"zero is {self.asymmetry:.1e} of its largest eigenvalue. Correct it, take a more "
                f"precise type, or allow a larger tolerance."
            )
        return (
            f"After {int(self.iterations.max())} steps a sample still changes by "
            f"{self.change:.1e}, and had to by less than {self.tolerance:.1e}; too few steps give "
            f"too large a value. Allow more iterations, a better preconditioner, or a larger "
            f"tolerance."
        )


def log_determinant(
    apply: BlockMap,
    n: int,
    *,
    probes: int = 16,
    preconditioner: Preconditioner | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 100,
    seed: int = 0,
    dtype: torch.dtype,
    device: torch.device | str,
) -> StochasticLogDeterminant:
    """Estimate ``log det K`` of a symmetric positive definite map from its products.

    ``log det K = tr log K``, estimated by the mean of ``z^T log(K) z`` over random z: Ubaru, Chen
    & Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J. Matrix Anal.
    Appl. 38 (2017), algorithm 1. Each quadratic form is the Gauss quadrature of the matrix T of
    a Lanczos recursion from z, ``|z|^2 e_1^T log(T) e_1``; every vector is orthogonalised
    against all earlier ones. The derivatives of the logarithm of even order are negative, so
    that each sample falls with every step towards its limit (Golub & Meurant, Matrices, Moments
    and Quadrature with Applications, Princeton 2010, theorem 6.3).

    With a preconditioner P near K, ``log det K = log det P + tr log(P^-1/2 K P^-1/2)``: few
    steps, and a second term that is small and varies little (Gardner, Pleiss, Bindel, Weinberger
    & Wilson, "GPyTorch: blackbox matrix-matrix Gaussian process inference with GPU
    acceleration", NeurIPS 2018, section 4.1). The recursion runs on ``P^1/2`` times its
    vectors: v = ``P^1/2 z`` is drawn from N(0, P), and inner products are those of ``P^-1``.

    The weight ``|z|^2 = v^T P^-1 v`` is replaced by its mean n. Length and direction of a normal
    vector are independent, so that the mean of the sample stays the same; it is the expectation
    given the direction, of smaller variance, by ``2 n (var q + (mean q)^2)`` for the quadrature
    q. Without a preconditioner the entries of z are random signs and ``|z|^2`` is n.

    Memory: one vector for each step and probe, two with a preconditioner.

    Args:
        apply: K on a block of vectors, [k n] -> [k n].
        n: length of the vectors.
        probes: number of random vectors; the standard error falls with its square root.
        preconditioner: P near K, with a true ``log_det`` and samples from N(0, P).
        tolerance: largest change of a sample over the last quarter of its steps, relative to
            ``|log det P| + n q`` with q the quadrature of the modulus of the logarithm. What is
            still missing is of the same size or smaller; keep it well below the standard error.
        max_iterations: most steps, and so most passes.
        seed: of the probes.
        dtype: of the vectors, float32 or float64.
        device: of the vectors.

    Returns:
        The estimate. That it did not converge is said there, and raises nothing.

    Raises:
        ConfigurationError: a setting is impossible.
        ShapeError: a product has the wrong shape.
        DtypeError: a product has another type or device than its vectors; or ``dtype`` is
            neither float32 nor float64.
        DataError: a product is not finite.
    """
    for name, value, least in (
        ("n", n, 1),
        ("probes", probes, 2),
        ("max_iterations", max_iterations, 1),
    ):
        if value < least:
            raise ConfigurationError(f"{name} must be at least {least}; got {value}.")
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise ConfigurationError(f"tolerance must be positive and finite; got {tolerance}.")
    check_dtype(dtype, "dtype")
    if preconditioner is None:
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (probes, n), generator=generator) * 2 - 1
        start = signs.to(device, dtype)
        offset = 0.0
    else:
        like = torch.empty(probes, n, dtype=dtype, device=device)
        start = product_of_block(
            lambda _: preconditioner.sample(probes, seed), "preconditioner.sample", like, n
        )
        offset = preconditioner.log_det()
    run = _Quadrature(apply, preconditioner, start, offset, tolerance)
    while len(run.index) and not run.indefinite and run.iteration < max_iterations:
        run.step()
    return run.estimate()


class _Quadrature:
    """The Lanczos recursions of all probes; those that have settled take no further products."""

    def __init__(
        self,
        apply: BlockMap,
        preconditioner: Preconditioner | None,
        start: Tensor,
        offset: float,
        tolerance: float,
    ) -> None:
        self.apply, self.preconditioner = apply, preconditioner
        self.offset, self.tolerance = offset, tolerance
        probes, self.n = start.shape
        self.rounding = torch.finfo(start.dtype).eps
        self.index = torch.arange(probes)
        self.diagonal = self.off_diagonal = self.history = torch.empty(probes, 0).double()
        self.samples = torch.full((probes,), math.nan, dtype=torch.float64)
        self.changes = torch.full((probes,), math.inf, dtype=torch.float64)
        self.iterations = torch.zeros(probes, dtype=torch.int64)
        self.lowest, self.asymmetry, self.indefinite = math.inf, 0.0, ""
        self.iteration = self.passes = self.products = 0
        self.basis = KrylovBasis()
        squared, solved = self.squares(start)
        self.extend(start, solved, squared, squared > 0)
        if len(self.index) < probes:
            self.indefinite = "preconditioner"

    def squares(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Squared lengths in the inner product of ``P^-1``, and ``P^-1`` times the block."""
        if self.preconditioner is None:
            return row_products(block, block), block
        solved = product_of_block(self.preconditioner.solve, "preconditioner.solve", block, self.n)
        return row_products(block, solved), solved

    def extend(self, block: Tensor, solved: Tensor, squared: Tensor, kept: Tensor) -> None:
        """Go on with some probes, and with new vectors of their bases."""
        if not kept.all():
            self.basis.select(kept)
            block, solved, squared = block[kept], solved[kept], squared[kept]
            here = kept.cpu()
            self.index, self.diagonal = self.index[here], self.diagonal[here]
            self.off_diagonal, self.history = self.off_diagonal[here], self.history[here]
        scale = squared.rsqrt()[:, None]
        vectors = block * scale
        self.basis.append(vectors, vectors if self.preconditioner is None else solved * scale)

    def step(self) -> None:
        """One step of every probe that has not settled."""
        # A copy: the map may hand back its own vectors, which stay.
        images = product_of_block(self.apply, "apply", self.basis.solved[-1], self.n).clone()
        self.passes += 1
        self.products += len(images)
        self.iteration += 1
        self.iterations[self.index] = self.iteration
        parts = self.basis.orthogonalise(images).mT.to("cpu", torch.float64)
        squared, solved = self.squares(images)
        going_on = self.assess(parts, squared.to("cpu", torch.float64))
        self.extend(images, solved, squared, going_on.to(images.device))

    def assess(self, parts: Tensor, squared: Tensor) -> Tensor:
        """Add a row to the matrices; which probes have to go on, [k].

        Args:
            parts: of the images along the bases, [k m].
            squared: squared lengths of what is left of them, [k].
        """
        self.diagonal = torch.cat([self.diagonal, parts[:, -1:]], dim=1)
        nodes, weights = Tridiagonal(self.diagonal, self.off_diagonal).nodes_and_weights()
        highest = nodes.abs().amax(dim=1).clamp_min(torch.finfo(nodes.dtype).tiny)
        self.lowest = min(self.lowest, float(nodes.min()))
        # Symmetry makes all parts zero but the last two, the last but one of which is known.
        excess = parts[:, :-1].clone()
        excess[:, -1:] -= self.off_diagonal[:, -1:]
        largest = (excess.abs() / highest[:, None]).amax() if excess.numel() else 0.0
        self.asymmetry = max(self.asymmetry, float(largest))
        positive = nodes[:, 0] > self.rounding * highest
        logarithms = self.n * weights * nodes.clamp_min(torch.finfo(nodes.dtype).tiny).log()
        samples = self.offset + logarithms.sum(dim=1)
        self.history = torch.cat([self.history, samples[:, None]], dim=1)
        back = max(1, self.iteration // 4)
        changes = torch.full_like(samples, math.inf)
        if self.iteration > back:
            scale = abs(self.offset) + logarithms.abs().sum(dim=1)
            differences = (samples - self.history[:, -1 - back]).abs()
            changes = differences / scale.clamp_min(torch.finfo(scale.dtype).tiny)
        # Nothing but rounding is left outside the basis: the quadrature is exact.
        whole = squared.abs() <= (10 * self.rounding * highest) ** 2
        changes[whole | (self.iteration == self.n)] = 0
        self.samples[self.index], self.changes[self.index] = samples, changes
        negative = (squared < 0) & ~whole
        if not positive.all():
            self.indefinite = "map"
        elif negative.any():
            self.indefinite = "preconditioner"
        self.off_diagonal = torch.cat([self.off_diagonal, squared[:, None].clamp_min(0).sqrt()], 1)
        return positive & ~negative & (changes > self.tolerance)

    def estimate(self) -> StochasticLogDeterminant:
        """What is known at the end."""
        samples = torch.full_like(self.samples, math.nan) if self.indefinite else self.samples
        change = float(self.changes.max())
        exact = self.asymmetry <= max(self.tolerance, self.rounding**0.5)
        return StochasticLogDeterminant(
            value=float(samples.mean()),
            standard_error=float(samples.std() / len(samples) ** 0.5),
            samples=samples,
            iterations=self.iterations,
            change=change,
            tolerance=self.tolerance,
            converged=change <= self.tolerance and exact and not self.indefinite,
            indefinite=self.indefinite,
            lowest=self.lowest,
            asymmetry=self.asymmetry,
            passes=self.passes,
            products=self.products,
        )
