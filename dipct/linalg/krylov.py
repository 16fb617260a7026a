"""Krylov spaces: their orthonormal bases, and the tridiagonal matrices of their recursions."""

from dataclasses import dataclass

import torch
from torch import Tensor


class KrylovBasis:
    """Blocks of vectors, orthonormal in each row in the inner product of a preconditioner.

    For each row of the block, ``q_i^T P^-1 q_j`` is one for i = j and zero otherwise. Both q and
    ``P^-1 q`` are kept; they are the same tensors without a preconditioner.
    """

    def __init__(self) -> None:
        self.vectors: list[Tensor] = []
        self.solved: list[Tensor] = []

    def append(self, vectors: Tensor, solved: Tensor) -> None:
        """Add q and ``P^-1 q``, both [k n]."""
        self.vectors.append(vectors)
        self.solved.append(solved)

    def orthogonalise(self, block: Tensor) -> Tensor:
        """Take their parts along the basis out of some vectors, in place.

        Modified Gram-Schmidt, twice: once more than the first is always enough (Giraud, Langou,
        Rozloznik & van den Eshof, Numerische Mathematik 101 (2005)).

        Args:
            block: one vector for each row, [k n].

        Returns:
            The parts, newest last, [size k].
        """
        parts = block.new_zeros(len(self.vectors), len(block))
        for _ in range(2):
            for part, vectors, solved in zip(parts, self.vectors, self.solved, strict=True):
                share = row_products(solved, block)
                block -= share[:, None] * vectors
                part += share
        return parts

    def select(self, chosen: Tensor) -> None:
        """Keep some of the rows, [k] of booleans."""
        shared = all(q is s for q, s in zip(self.vectors, self.solved, strict=True))
        self.vectors = [vectors[chosen] for vectors in self.vectors]
        self.solved = list(self.vectors) if shared else [solved[chosen] for solved in self.solved]

    def forget(self, chosen: Tensor) -> None:
        """Forget the vectors of some rows, [k] of booleans."""
        for vectors, solved in zip(self.vectors, self.solved, strict=True):
            vectors[chosen] = 0
            solved[chosen] = 0


def row_products(one: Tensor, other: Tensor) -> Tensor:
    """Inner product of each row of a block with that of another, [k n], [k n] -> [k]."""
    return (one * other).sum(dim=1)


@dataclass(frozen=True)
class Tridiagonal:
    """A symmetric tridiagonal matrix, that of a Lanczos recursion.

    Attributes:
        diagonal: its diagonal, [... m], in double precision.
        off_diagonal: the entries next to it, [... m - 1].
    """

    diagonal: Tensor
    off_diagonal: Tensor

    @classmethod
    def of_steps(cls, lengths: list[float], ratios: list[float]) -> "Tridiagonal":
        """The matrix of a run of conjugate gradients.

        Saad, Iterative Methods for Sparse Linear Systems, 2nd edition, equation 6.82.

        Args:
            lengths: step lengths.
            ratios: of the energies ``r^T P^-1 r`` after each step to those before; a zero ends
                the recursion.
        """
        known = ratios.index(0.0) if 0.0 in ratios else len(ratios)
        size = min(known + 1, len(lengths))
        inverse = 1 / torch.tensor(lengths[:size], dtype=torch.float64)
        between = torch.tensor(ratios[: max(size - 1, 0)], dtype=torch.float64)
        diagonal = inverse.clone()
        diagonal[1:] += between * inverse[:-1]
        return cls(diagonal, between.sqrt() * inverse[:-1])

    def nodes_and_weights(self) -> tuple[Tensor, Tensor]:
        """Gauss quadrature: eigenvalues, and squared first entries of their vectors, both [... m].

        Golub & Meurant, Matrices, Moments and Quadrature with Applications, Princeton 2010,
        theorem 6.2.
        """
        matrix = torch.diag_embed(self.diagonal) + torch.diag_embed(self.off_diagonal, -1)
        nodes, vectors = torch.linalg.eigh(matrix)
        return nodes, vectors[..., 0, :] ** 2
