"""Leading singular triplets of a linear map that is known only by its products."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.linalg.products import BlockMap, product_of_block
from dipct.linalg.subspaces import (
    check_dtype,
    inner_products,
    new_directions,
    orthonormal_rows,
    rotate_rows,
)


@dataclass(frozen=True)
class SingularTriplets:
    """Leading singular triplets of a linear map, with how well they are known.

    Attributes:
        left: left singular vectors, [m K].
        values: singular values, largest first, [K].
        right: right singular vectors, [n K]; the entry of largest magnitude is positive.
        residuals: ``sqrt(||A v - s u||^2 + ||A^T u - s v||^2) / s_1`` of each triplet, [K].
        tolerance: what the residuals had to reach.
        converged: whether all of them did.
        adjoint_error: largest ``||P (A^T u - s v)|| / s_1`` over the triplets, with P the
            projection on the vectors that the map has been applied to. It is zero but for
            rounding for an exact adjoint, converged or not.
        passes: products of the map or its adjoint with a block of vectors.
        products: products with single vectors in all of them.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    residuals: Tensor
    tolerance: float
    converged: bool
    adjoint_error: float
    passes: int
    products: int

    @property
    def advice(self) -> str:
        """What to do about triplets that did not converge; empty if they did."""
        if self.converged:
            return ""
        state = (
            f"After {self.passes} passes the largest residual is {float(self.residuals.max()):.1e} "
            f"of the largest singular value, and had to reach {self.tolerance:.1e}."
        )
        # Below a thousand roundings it can be rounding alone, above it is the adjoint.
        rounding = 1000 * torch.finfo(self.values.dtype).eps
        if self.adjoint_error > max(self.tolerance, rounding):
            return (
                f"{state} More passes cannot help: the adjoint is not the transpose of the map "
                f"(they differ by {self.adjoint_error:.1e}). Correct it."
            )
        return f"{state} Allow more passes, more oversampling, or a larger tolerance."


@dataclass
class _Products:
    """The map and its adjoint, every product checked, counted and cut into small blocks."""

    apply: BlockMap
    apply_adjoint: BlockMap
    n_rows: int
    n_columns: int
    block_size: int | None
    passes: int = 0
    products: int = 0

    def forward(self, block: Tensor) -> Tensor:
        return self._of_block(self.apply, "apply", block, self.n_rows)

    def adjoint(self, block: Tensor) -> Tensor:
        return self._of_block(self.apply_adjoint, "apply_adjoint", block, self.n_columns)

    def _of_block(self, function: BlockMap, name: str, block: Tensor, length: int) -> Tensor:
        result = block.new_empty(len(block), length)
        step = self.block_size or len(block)
        for start in range(0, len(block), step):
            part = slice(start, start + step)
            result[part] = product_of_block(function, name, block[part], length)
        self.passes += 1
        self.products += len(block)
        return result


def randomised_svd(
    apply: BlockMap,
    apply_adjoint: BlockMap,
    n_columns: int,
    rank: int,
    *,
    oversampling: int = 10,
    tolerance: float = 1e-3,
    max_passes: int = 20,
    block_size: int | None = None,
    basis_blocks: int = 3,
    seed: int = 0,
    dtype: torch.dtype,
    device: torch.device | str,
    report: Callable[[int, float], None] | None = None,
) -> SingularTriplets:
    """Leading singular triplets of a linear map A of size [m n] given by its products.

    A block Krylov method started from a Gaussian block: Halko, Martinsson & Tropp, "Finding
    structure with randomness", SIAM Review 53 (2011), algorithms 4.1 and 5.1, for the start and
    the extraction from a subspace; Musco & Musco, "Randomized block Krylov methods for stronger
    and faster approximate singular value decomposition", NeurIPS 2015, for keeping earlier
    blocks; Goldenberg, Stathopoulos & Romero, "A Golub-Kahan Davidson method for accurately
    computing a few singular triplets of large sparse matrices", SIAM J. Sci. Comput. 41 (2019),
    for the expansion by residuals and the restart that bounds the memory.

    The singular value decomposition of ``A V``, V the orthonormal search basis, gives triplets
    with ``A v = s u``; one product with the adjoint then gives their true residuals
    ``A^T u - s v``. While some are above the tolerance, their parts orthogonal to V join V.
    Where the basis is full, its least singular directions are dropped. No product with
    ``A^T A`` is ever decomposed, so that small singular values keep the precision of the type.

    Memory: ``(basis_blocks + 2) (rank + oversampling)`` vectors of length n, as many of
    length m, and what the map needs itself for ``block_size`` vectors.

    Args:
        apply: A on a block of vectors, [k n] -> [k m].
        apply_adjoint: its transpose, [k m] -> [k n].
        n_columns: n.
        rank: number K of triplets.
        oversampling: vectors beyond K in the first block. They make it unlikely that a leading
            triplet is missed.
        tolerance: largest residual relative to the largest singular value.
        max_passes: most products of A or its transpose with a block: 3 for the first residuals,
            2 for each further sweep. The later blocks are smaller: only residuals above the
            tolerance get new vectors.
        block_size: most vectors handed to the map at a time; default: no limit.
        basis_blocks: most vectors in the search basis, in multiples of K + oversampling; more
            need fewer passes and more memory.
        seed: of the Gaussian block.
        dtype: of the vectors, float32 or float64.
        device: of the vectors.
        report: called with the number of each sweep and its largest residual.

    Returns:
        The triplets. That they did not converge is said there, and raises nothing.

    Raises:
        ConfigurationError: a setting is impossible; among them a rank above min(m, n).
        ShapeError: a product has the wrong shape.
        DtypeError: a product has another type or device than its vectors; or ``dtype`` is
            neither float32 nor float64.
        DataError: a product is not finite.
    """
    _check_settings(
        n_columns, rank, oversampling, tolerance, max_passes, block_size, basis_blocks, dtype
    )
    generator = torch.Generator().manual_seed(seed)

    def gaussian(vectors: int, length: int) -> Tensor:
        return torch.randn(vectors, length, generator=generator, dtype=dtype).to(device)

    # One vector tells the number of rows, and finds a map that does not fit before long work.
    image = product_of_block(apply, "apply", gaussian(1, n_columns))
    product_of_block(apply_adjoint, "apply_adjoint", image, n_columns)
    n_rows = image.shape[1]
    shortest = min(n_rows, n_columns)
    if rank > shortest:
        raise ConfigurationError(
            f"rank must be at most min(m, n) = min({n_rows}, {n_columns}) = {shortest}, the "
            f"number of singular values of the map; got {rank}."
        )
    products = _Products(apply, apply_adjoint, n_rows, n_columns, block_size, products=2)
    width = min(rank + oversampling, shortest)
    limit = min(basis_blocks * width, shortest)
    basis = torch.empty(limit, n_columns, dtype=dtype, device=device)
    images = torch.empty(limit, n_rows, dtype=dtype, device=device)
    basis[:width] = orthonormal_rows(products.adjoint(gaussian(width, n_rows)))[0]
    images[:width] = products.forward(basis[:width])
    size = width

    for sweep in count(1):
        used, used_images = basis[:size], images[:size]
        left, values, coordinates = _decompose(used_images)
        left, leading, weights = left[:rank], values[:rank], coordinates[:rank]
        outside = products.adjoint(left)
        inside = inner_products(outside, used).to(outside)
        outside.addmm_(inside, used, alpha=-1)
        scale = values[0].clamp_min(torch.finfo(dtype).tiny)
        # The basis is orthonormal: the parts of A^T u - s v inside and outside add as squares.
        unmatched = (inside - leading[:, None] * weights).norm(dim=1) / scale
        missing = outside.norm(dim=1) / scale
        forward = (weights @ used_images - leading[:, None] * left).norm(dim=1) / scale
        residuals = torch.stack([unmatched, missing, forward]).norm(dim=0)
        if report is not None:
            report(sweep, float(residuals.max()))
        converged = bool((residuals <= tolerance).all())
        if converged or products.passes + 2 > max_passes:
            break
        active = (residuals > tolerance).nonzero()[: limit - width, 0]
        outside = outside[active]
        added = new_directions(outside, used)
        del outside
        if not len(added):
            break
        kept = min(size, limit - len(added))
        if kept < size:
            rotate_rows(used, coordinates[:kept])
            rotate_rows(used_images, coordinates[:kept])
        size = kept + len(added)
        basis[kept:size] = added
        del added
        images[kept:size] = products.forward(basis[kept:size])

    right = weights @ used
    signs = torch.where(right.amax(dim=1) < -right.amin(dim=1), -1.0, 1.0).to(dtype)[:, None]
    return SingularTriplets(
        left=(left * signs).mT,
        values=leading,
        right=right.mul_(signs).mT,
        residuals=residuals,
        tolerance=tolerance,
        converged=converged,
        adjoint_error=float(unmatched.max()),
        passes=products.passes,
        products=products.products,
    )


def _check_settings(
    n_columns: int,
    rank: int,
    oversampling: int,
    tolerance: float,
    max_passes: int,
    block_size: int | None,
    basis_blocks: int,
    dtype: torch.dtype,
) -> None:
    least = {
        "n_columns": (n_columns, 1),
        "rank": (rank, 1),
        "oversampling": (oversampling, 0),
        "max_passes": (max_passes, 3),
        "block_size": (1 if block_size is None else block_size, 1),
        "basis_blocks": (basis_blocks, 2),
    }
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ConfigurationError(f"{name} must be at least {smallest}; got {value}.")
    if rank > n_columns:
        raise ConfigurationError(
            f"rank must be at most the number of columns, {n_columns}; got {rank}."
        )
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise ConfigurationError(f"tolerance must be positive and finite; got {tolerance}.")
    check_dtype(dtype, "dtype")


def _decompose(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition of the images [k m] of an orthonormal basis, k <= m.

    Returns:
        Left vectors as rows [k m], singular values [k], and the coordinates of the right
        vectors in the basis as rows [k k].
    """
    left, r = orthonormal_rows(images)
    p, values, coordinates = torch.linalg.svd(r)
    rotate_rows(left, p.mT.to(left))
    return left, values.to(left), coordinates.to(left)
