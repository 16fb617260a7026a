"""The part of an image's error that noise makes whatever the prior says."""

import torch

from dipct.linalg import randomised_svd
from dipct.operator.base import LinearOperator

_RANK = 100
# Singular values of smaller operators are found densely.
_LARGEST_DENSE = 2**22
_TOLERANCE = 1e-2


def noise_correction(
    operator: LinearOperator, noise_variance: torch.Tensor, *, rank: int = _RANK, seed: int = 0
) -> float:
    """Variance per pixel of a least-squares image in the directions that the data know best.

    ``mean diag (A^T V^-1 A)^+`` with the pseudo-inverse cut off after the leading singular
    vectors (as the code of Antoran et al., arXiv 2203.00479, stabilises densities): added to the
    diagonal of a posterior covariance it makes the density of images exist where the network
    makes no variation at all.

    Args:
        operator: A.
        noise_variance: V, the diagonal, [m].
        rank: singular vectors that count.
        seed: of their randomised computation.

    Returns:
        Variance, in squared units of the image.
    """
    deviation = noise_variance.sqrt()
    n = int(torch.Size(operator.domain_shape).numel())
    if n * len(deviation) <= _LARGEST_DENSE:
        matrix = operator.to_matrix().double() / deviation.double()[:, None]
        values = torch.linalg.svdvals(matrix)[:rank]
        # What is not measured at all has no variance to correct.
        values = values[values > values[0] * 1e-10]
    else:
        values = randomised_svd(
            lambda block: (
                operator(block.reshape(-1, *operator.domain_shape)).flatten(1) / deviation
            ),
            lambda block: operator.adjoint(
                (block / deviation).reshape(-1, *operator.range_shape)
            ).flatten(1),
            n,
            min(rank, n, len(deviation)),
            tolerance=_TOLERANCE,
            seed=seed,
            dtype=noise_variance.dtype,
            device=noise_variance.device,
        ).values
    return float(values.double().square().reciprocal().sum()) / n
