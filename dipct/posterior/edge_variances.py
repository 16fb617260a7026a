"""How much each block of weights makes neighbouring pixels differ, for every hyper-parameter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.posterior.linearised_model import WeightJacobian
from dipct.posterior.weight_prior import FilterGroup

Report = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class EdgeVariances:
    """Variances of differences of neighbouring pixels under a prior on the weights.

    The variance of difference e that the weights of a block cause is linear in the prior's
    coefficients: ``sum over r of c_r v_er``.

    Attributes:
        differences: of the image at theta_hat, float64 [E].
        variances: v of each group of the prior, from independent sets of probes, float64
            [Q E R] each; Q = 1 where they are exact.
    """

    differences: Tensor
    variances: tuple[Tensor, ...]

    @property
    def is_exact(self) -> bool:
        """Whether they are known but for rounding."""
        return len(self.variances[0]) == 1


def edge_variances_of_gram(
    gram: Tensor, image: Tensor, groups: Sequence[FilterGroup]
) -> EdgeVariances:
    """All variances, from the Gram matrices of the Jacobian of the image.

    Args:
        gram: ``J S_k J^T`` for every structure of the groups, float64 [K n n]: differences of
            neighbouring pixels cancel most of their digits.
        image: at theta_hat, [1 H W].
        groups: of the prior.

    Raises:
        ShapeError: shapes that do not fit.
    """
    n, total = image.numel(), sum(len(group.structures) for group in groups)
    if gram.shape != (total, n, n):
        raise ShapeError(
            f"For an image of {n} pixels and these groups the Gram matrices must have shape "
            f"({total}, {n}, {n}); got {tuple(gram.shape)}."
        )
    pixels = torch.arange(n, device=gram.device).reshape(image.shape[-2:])
    first = torch.cat([pixels[1:].flatten(), pixels[:, 1:].flatten()])
    second = torch.cat([pixels[:-1].flatten(), pixels[:, :-1].flatten()])
    own = gram.diagonal(dim1=1, dim2=2)
    variances = own[:, first] + own[:, second] - 2 * gram[:, first, second]
    parts = variances.T.double().split([len(group.structures) for group in groups], dim=1)
    return EdgeVariances(_of_image(image), tuple(part[None].contiguous() for part in parts))


def probed_edge_variances(
    jacobian: WeightJacobian,
    groups: Sequence[FilterGroup],
    *,
    probes: int,
    seed: int,
    sets: int = 2,
    report: Report | None = None,
) -> EdgeVariances:
    """Unbiased estimates: random signs over the filters of a block instead of all of them.

    For signs s the differences that the weights ``s_f`` at position i of all filters f make,
    ``a_i = sum over f of s_f g_fi``, have ``E[a_i a_j] = sum over f of g_fi g_fj``. A probe of a
    block costs one pass for each position of a filter.

    Args:
        jacobian: of the image.
        groups: of the prior.
        probes: for each block, shared out among the sets.
        seed: of the signs.
        sets: independent sets of probes, whose scatter tells the error.
        report: called with passes done and passes in all.

    Raises:
        ConfigurationError: fewer than one probe for a set, or one set.
    """
    if sets < 2 or probes < sets:
        raise ConfigurationError(
            f"At least two sets of one probe are needed to know the error; got {probes} probes in "
            f"{sets} sets."
        )
    random, like = torch.Generator().manual_seed(seed), jacobian.value
    total, done, found = probes * sum(group.positions for group in groups), 0, []
    for group in groups:
        sums: list[Tensor | float] = [0.0] * sets
        for probe in range(probes):
            signs = (torch.randint(2, (group.filters,), generator=random) * 2 - 1).to(like)
            each = torch.eye(group.positions, dtype=like.dtype, device=like.device)
            weights = like.new_zeros(group.positions, jacobian.domain_shape[0])
            spread = torch.einsum("f,ij->ifj", signs, each).flatten(1)
            weights[:, group.weights] = group.scaled(spread)
            gradients = _differences(jacobian(weights)).double()
            outer = torch.einsum("ie,je->eij", gradients, gradients)
            sums[probe % sets] += torch.einsum("eij,rij->er", outer, group.structures.to(outer))
            done += group.positions
            if report is not None:
                report(done, total)
        counts = [len(range(i, probes, sets)) for i in range(sets)]
        means = [s / count for s, count in zip(sums, counts, strict=True)]
        found.append(torch.stack([m for m in means if isinstance(m, Tensor)]))
    return EdgeVariances(_of_image(like), tuple(found))


def _of_image(image: Tensor) -> Tensor:
    return _differences(image.double()[None])[0]


def _differences(images: Tensor) -> Tensor:
    """Differences of neighbouring pixels of images [k 1 H W]: down, then to the right, [k E]."""
    images = images[:, 0]
    return torch.cat([images.diff(dim=-2).flatten(1), images.diff(dim=-1).flatten(1)], dim=1)
