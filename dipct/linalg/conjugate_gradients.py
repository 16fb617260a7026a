"""Conjugate gradients for many right-hand sides, each with its own steps and its own end."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, DataError, DtypeError, ShapeError
from dipct.linalg.krylov import KrylovBasis, Tridiagonal, row_products
from dipct.linalg.preconditioner import Preconditioner
from dipct.linalg.products import BlockMap, product_of_block
from dipct.linalg.subspaces import check_dtype
from dipct.shapes import check_shape


class Outcome(StrEnum):
    """How the iteration of one right-hand side ended."""

    CONVERGED = "converged"
    UNFINISHED = "more iterations needed"
    ROUNDING = "limit of rounding reached"
    INDEFINITE = "not positive definite"
    PRECONDITIONER = "preconditioner not positive definite"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class LinearSolution:
    """Solutions of ``K x = b`` for a block of right-hand sides, with how well they are known.

    Attributes:
        value: x, [k n]; the best that was checked where rounding or growth ended it.
        residuals: ``|b - K x| / |b|`` of each, from a product with x, [k]; zero where b is zero.
        iterations: of each, [k].
        outcomes: how each ended.
        tolerance: what the residuals had to reach.
        converged: whether all of them did.
        curvature: lowest ``p^T K p / p^T p`` over all directions p; infinite if there were none.
            K has an eigenvalue as low or lower.
        asymmetry: largest ``|p^T K q - q^T K p| / (|p| |K q| + |q| |K p|)`` with the first two
            directions p and q of each right-hand side.
        passes: products of K with a block of vectors.
        products: products with single vectors in all of them.
        lanczos: where asked for, the tridiagonal matrix of each right-hand side.
        rounding: relative rounding of the products.
    """

    value: Tensor
    residuals: Tensor
    iterations: Tensor
    outcomes: tuple[Outcome, ...]
    tolerance: float
    converged: bool
    curvature: float
    asymmetry: float
    passes: int
    products: int
    lanczos: tuple[Tridiagonal, ...] | None
    rounding: float

    @property
    def advice(self) -> str:
        """What to do about right-hand sides that did not converge; empty if they did."""
        if self.converged:
            return ""
        failed = sum(outcome != Outcome.CONVERGED for outcome in self.outcomes)
        state = (
            f"{failed} of {len(self.outcomes)} right-hand sides did not converge: the largest "
            f"relative residual is {float(self.residuals.max()):.1e}, and had to reach "
            f"{self.tolerance:.1e}."
        )
        if Outcome.INDEFINITE in self.outcomes:
            return (
                f"{state} The map is not positive definite: a direction has the curvature "
                f"{self.curvature:.3g}. Correct it, or add a positive diagonal larger than that."
            )
        if Outcome.PRECONDITIONER in self.outcomes:
            return f"{state} The preconditioner is not positive definite. Correct its solve."
        # Below a thousand roundings it can be rounding alone, above it is the map.
        if self.asymmetry > max(self.tolerance, 1000 * self.rounding):
            return (
                f"{state} More iterations cannot help: the map is not symmetric (inner products "
                f"differ by {self.asymmetry:.1e} when vectors are exchanged). Correct it."
            )
        if Outcome.DIVERGED in self.outcomes:
            return (
                f"{state} The residuals grew, which they cannot do for a symmetric positive "
                f"definite map and preconditioner. Check both."
            )
        if Outcome.ROUNDING in self.outcomes:
            return (
                f"{state} More iterations cannot help: the map is singular, or too "
                f"ill-conditioned for products with a rounding of {self.rounding:.1e}. Take a "
                f"more precise type, add to its diagonal, or allow a larger tolerance."
            )
        return f"{state} Allow more iterations, a better preconditioner, or a larger tolerance."


def conjugate_gradients(
    apply: BlockMap,
    right: Tensor,
    *,
    preconditioner: Preconditioner | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    initial: Tensor | None = None,
    reorthogonalise: bool = False,
    product_dtype: torch.dtype | None = None,
    keep_lanczos: bool = False,
    report: Callable[[int, float], None] | None = None,
) -> LinearSolution:
    """Solve ``K x = b`` for symmetric positive definite K, given by its products.

    Preconditioned conjugate gradients (Golub & Van Loan, Matrix Computations, 4th edition,
    algorithm 11.5.1) for each right-hand side of a block; one that has ended takes no further
    products. The recursive residual is replaced by ``b - K x`` where it has fallen by the square
    root of the rounding, before the two can part (Sleijpen & van der Vorst, "Reliable updated
    residuals in hybrid Bi-CG methods", Computing 56 (1996)), and where it claims convergence:
    only the latter residual decides. A right-hand side whose residuals parted starts anew from
    its x.

    Products of reduced precision lose the orthogonality of the residuals soon. Keeping them all
    and orthogonalising anew restores the convergence, at the cost of one vector for each step
    and right-hand side, two with a preconditioner: Maddox, Potapczynski & Wilson, "Low-precision
    arithmetic for fast Gaussian processes", UAI 2022, section 4.

    Args:
        apply: K on a block of vectors, [k n] -> [k n].
        right: b, [k n], float32 or float64; it sets type and device of everything.
        preconditioner: P near K.
        tolerance: largest ``|b - K x| / |b|``. No type reaches much less than its rounding times
            ``|K| |x| / |b|``, which is at most the rounding times the condition number.
        max_iterations: most steps of each right-hand side. Replacing residuals takes products
            beyond them.
        initial: first x, [k n]; default zero.
        reorthogonalise: orthogonalise each residual against all earlier ones, in the inner
            product of the preconditioner. The residual is then replaced at the end only.
        product_dtype: type in which K is applied. Each vector is scaled to length one and cast,
            and its product cast back. The residuals are then those of the map in that type, true
            to its rounding only; a second call, with ``initial`` and without this, improves on it.
        keep_lanczos: also return the tridiagonal matrices of the Lanczos recursion of
            ``P^-1/2 K P^-1/2`` from ``P^-1/2 (b - K x_0)``, whose eigenvalues approach those of
            the former (Golub & Van Loan, section 11.3.5), up to the first start anew.
        report: called with the number of each step and the largest relative residual.

    Returns:
        The solutions. That some did not converge is said there, and raises nothing.

    Raises:
        ConfigurationError: a setting is impossible.
        ShapeError: shapes that do not fit.
        DtypeError: types other than float32 and float64, or that do not fit.
        DataError: right-hand sides, initial vectors or products that are not finite.
    """
    right = _checked(right, "right", None)
    if max_iterations < 1:
        raise ConfigurationError(f"max_iterations must be at least 1; got {max_iterations}.")
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise ConfigurationError(f"tolerance must be positive and finite; got {tolerance}.")
    if product_dtype is not None and not product_dtype.is_floating_point:
        raise ConfigurationError(f"product_dtype must be a floating type; got {product_dtype}.")
    if initial is not None:
        initial = _checked(initial, "initial", right)
    run = _Run(apply, preconditioner, right, tolerance, product_dtype, keep_lanczos)
    run.begin(initial, KrylovBasis() if reorthogonalise else None)
    while len(run.rows.index) and run.iteration < max_iterations:
        run.step(report)
    return run.solution()


@dataclass
class _Rows:
    """Right-hand sides in progress, scaled to length one; leading axis = right-hand sides."""

    index: Tensor
    value: Tensor
    safe: Tensor
    residual: Tensor
    direction: Tensor
    energy: Tensor
    size: Tensor
    peak: Tensor
    checked: Tensor
    anew: Tensor


class _Run:
    """The iteration: the right-hand sides in progress, and what is known of the others."""

    def __init__(
        self,
        apply: BlockMap,
        preconditioner: Preconditioner | None,
        right: Tensor,
        tolerance: float,
        product_dtype: torch.dtype | None,
        keep_lanczos: bool,
    ) -> None:
        self.apply, self.preconditioner, self.tolerance = apply, preconditioner, tolerance
        self.product_dtype = product_dtype or right.dtype
        self.rounding = max(torch.finfo(t).eps for t in (right.dtype, self.product_dtype))
        self.passes = self.products = self.iteration = 0
        self.curvature, self.gain, self.asymmetry = math.inf, 0.0, 0.0
        self.first: tuple[Tensor, ...] = ()
        # Scaled twice: squares of very small or large numbers are no numbers of the type.
        largest = right.abs().amax(dim=1, keepdim=True)
        self.lengths = largest * (right / largest.where(largest > 0, 1)).norm(dim=1, keepdim=True)
        self.right = right / self.lengths.where(largest > 0, 1)
        self.value = torch.zeros_like(right)
        self.residuals = right.new_zeros(len(right))
        self.iterations = torch.zeros(len(right), dtype=torch.int64, device=right.device)
        self.outcomes = [Outcome.CONVERGED] * len(right)
        self.lanczos = [([], []) for _ in right] if keep_lanczos else None

    def begin(self, initial: Tensor | None, basis: KrylovBasis | None) -> None:
        """The first residuals and directions; right-hand sides of zero are done."""
        self.basis = basis
        index = self.lengths[:, 0].nonzero()[:, 0]
        value, residual = self.value[index], self.right[index]
        if initial is not None and len(index):
            value = initial[index] / self.lengths[index]
            residual = residual - self.multiply(value)
        size = residual.norm(dim=1)
        start = torch.zeros_like(residual), torch.ones_like(size)
        self.rows = _Rows(index, value, value.clone(), residual, *start, size, size, size, size < 0)
        self.end(size <= self.tolerance, Outcome.CONVERGED)
        self.turn()

    def multiply(self, block: Tensor) -> Tensor:
        """K on a block, in the type of the products."""
        self.passes += 1
        self.products += len(block)
        if self.product_dtype == block.dtype:
            return product_of_block(self.apply, "apply", block, block.shape[1])
        lengths = block.norm(dim=1, keepdim=True).clamp_min(torch.finfo(block.dtype).tiny)
        unit = (block / lengths).to(self.product_dtype)
        return product_of_block(self.apply, "apply", unit, block.shape[1]).to(block.dtype) * lengths

    def step(self, report: Callable[[int, float], None] | None) -> None:
        """One step of every right-hand side in progress."""
        rows = self.rows
        images = self.multiply(rows.direction)
        squared = row_products(rows.direction, rows.direction)
        quotients = row_products(rows.direction, images) / squared
        self.gain = max(self.gain, float((images.norm(dim=1) / squared.sqrt()).max()))
        self.curvature = min(self.curvature, float(quotients.min()))
        self.compare(images)
        usable, negative = quotients > 0, quotients < -10 * self.rounding * self.gain
        length, images = (rows.energy / (quotients * squared))[usable], images[usable]
        self.end(negative, Outcome.INDEFINITE)
        self.end(~usable[~negative], Outcome.ROUNDING)
        if not len(length):
            return
        self.iteration += 1
        rows.value += length[:, None] * rows.direction
        rows.residual -= length[:, None] * images
        if self.basis is not None:
            self.basis.orthogonalise(rows.residual)
        rows.size = rows.residual.norm(dim=1)
        rows.peak = torch.maximum(rows.peak, rows.size)
        if report is not None:
            report(self.iteration, float(rows.size.max()))
        if self.lanczos is not None:
            for index, each in zip(rows.index.tolist(), length.tolist(), strict=True):
                self.lanczos[index][0].append(each)
        grown = ~(rows.size <= 1 / torch.finfo(rows.size.dtype).eps)
        rows.value[grown] = rows.safe[grown]
        self.end(grown, Outcome.DIVERGED)
        due = rows.size <= self.tolerance
        if self.basis is None:
            due |= rows.size <= self.rounding**0.5 * rows.peak
        if due.any():
            self.replace(due)
        self.turn()

    def compare(self, images: Tensor) -> None:
        """How far from symmetric the map is, seen by the first two directions."""
        rows = self.rows
        if self.iteration == 0:
            self.first = rows.index, rows.direction, images.clone()
        elif self.first:
            index, direction, image = self.first
            direction, image = (x[torch.isin(index, rows.index)] for x in (direction, image))
            difference = row_products(rows.direction, image) - row_products(direction, images)
            scale = rows.direction.norm(dim=1) * image.norm(dim=1)
            scale += direction.norm(dim=1) * images.norm(dim=1)
            self.asymmetry = float((difference.abs() / scale).max())
            self.first = ()

    def replace(self, due: Tensor) -> None:
        """Replace some residuals by the true ones, and end what has converged or stands still."""
        rows = self.rows
        residual = self.right[rows.index[due]] - self.multiply(rows.value[due])
        drift = (residual - rows.residual[due]).norm(dim=1)
        promised, before, size = rows.size[due], rows.checked[due], residual.norm(dim=1)
        parted = drift > 0.25 * promised
        # Of its part along earlier residuals an orthogonalised one would never hear again.
        rows.anew[due] = parted | (self.basis is not None)
        rows.residual[due], rows.size[due], rows.peak[due] = residual, size, size
        done, stuck = torch.zeros_like(due), torch.zeros_like(due)
        done[due] = size <= self.tolerance
        stuck[due] = (size > self.tolerance) & parted & (size > 0.5 * before)
        kept = due & ~stuck
        rows.safe[kept], rows.checked[kept] = rows.value[kept], rows.size[kept]
        self.end(stuck, Outcome.ROUNDING)
        self.end(done[~stuck], Outcome.CONVERGED)

    def turn(self) -> None:
        """The next directions."""
        rows = self.rows
        if not len(rows.index):
            return
        solved = rows.residual
        if self.preconditioner is not None:
            solve = self.preconditioner.solve
            solved = product_of_block(solve, "preconditioner.solve", solved, solved.shape[1])
        energy = row_products(rows.residual, solved)
        usable = energy > 0
        energy, solved = energy[usable], solved[usable]
        self.end(~usable, Outcome.PRECONDITIONER)
        ratio = torch.where(rows.anew, 0.0, energy / rows.energy)
        if self.lanczos is not None and self.iteration:
            for index, each in zip(rows.index.tolist(), ratio.tolist(), strict=True):
                self.lanczos[index][1].append(each)
        rows.direction = solved + ratio[:, None] * rows.direction
        rows.energy = energy
        if self.basis is not None:
            self.basis.forget(rows.anew)
            scale = energy.rsqrt()[:, None]
            vectors = rows.residual * scale
            self.basis.append(vectors, vectors if self.preconditioner is None else solved * scale)
        rows.anew = torch.zeros_like(rows.anew)

    def end(self, chosen: Tensor, outcome: Outcome) -> None:
        """End some of the right-hand sides in progress; the others stay."""
        if not chosen.any():
            return
        rows = self.rows
        index, value, size = rows.index[chosen], rows.value[chosen], rows.size[chosen]
        if outcome != Outcome.CONVERGED:
            size = (self.right[index] - self.multiply(value)).norm(dim=1)
        if outcome == Outcome.ROUNDING:
            # What follows the loss of all precision can be worse than any x before it.
            worse = size > rows.checked[chosen]
            value = torch.where(worse[:, None], rows.safe[chosen], value)
            size = torch.where(worse, rows.checked[chosen], size)
        self.value[index], self.residuals[index] = value, size
        self.iterations[index] = self.iteration
        for each, reached in zip(index.tolist(), (size <= self.tolerance).tolist(), strict=True):
            self.outcomes[each] = Outcome.CONVERGED if reached else outcome
        for name in (entry.name for entry in fields(rows)):
            setattr(rows, name, getattr(rows, name)[~chosen])
        if self.basis is not None:
            self.basis.select(~chosen)

    def solution(self) -> LinearSolution:
        """What is known at the end."""
        self.end(torch.ones_like(self.rows.anew), Outcome.UNFINISHED)
        matrices = (Tridiagonal.of_steps(*steps) for steps in self.lanczos or ())
        return LinearSolution(
            value=self.value * self.lengths,
            residuals=self.residuals,
            iterations=self.iterations,
            outcomes=tuple(self.outcomes),
            tolerance=self.tolerance,
            converged=all(how == Outcome.CONVERGED for how in self.outcomes),
            curvature=self.curvature,
            asymmetry=self.asymmetry,
            passes=self.passes,
            products=self.products,
            lanczos=None if self.lanczos is None else tuple(matrices),
            rounding=self.rounding,
        )


def _checked(block: Tensor, name: str, like: Tensor | None) -> Tensor:
    """A block of vectors from outside, checked against another."""
    if not isinstance(block, Tensor):
        raise DtypeError(f"{name} must be a tensor; got {type(block).__name__}.")
    check_dtype(block.dtype, name)
    sizes = {} if like is None else {"k": like.shape[0], "n": like.shape[1]}
    check_shape(block, "k n", name=name, advice="Its rows are the vectors.", **sizes)
    if not block.numel():
        raise ShapeError(f"{name} must hold at least one vector; got {tuple(block.shape)}.")
    if like is not None and (block.dtype, block.device) != (like.dtype, like.device):
        raise DtypeError(
            f"{name} must have the type and device of right, {like.dtype} on {like.device}; got "
            f"{block.dtype} on {block.device}."
        )
    if not torch.isfinite(block).all():
        raise DataError(f"{name} must be finite; it holds NaN or infinite values.")
    return block.detach()
