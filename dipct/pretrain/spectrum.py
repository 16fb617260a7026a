"""Spectra of networks: which directions of the parameters the projections can see."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipct.generator import Kind, NetworkGenerator, ParameterLayout
from dipct.linalg import SingularTriplets, randomised_svd, subspace_overlap
from dipct.operator import Jacobian, LinearOperator


@dataclass(frozen=True, eq=False)
class NetworkSpectrum:
    """Leading singular triplets of the Jacobian of A o G at one parameter vector.

    Attributes:
        name: of the network.
        values: singular values, largest first, [K].
        residuals: of the triplets, relative to the largest value, [K].
        converged: whether all residuals reached the tolerance.
        advice: what to do where they did not.
        products: of the Jacobian or its adjoint with a vector.
        overlap: cosines of the principal angles between the span of the right singular vectors
            and that of the first network, [K].
        movement: relative distance of the parameters to the first network's, by block.
    """

    name: str
    values: np.ndarray
    residuals: np.ndarray
    converged: bool
    advice: str
    products: int
    overlap: np.ndarray
    movement: Mapping[str, float]


@dataclass(frozen=True)
class SpectrumSettings:
    """How exactly spectra are worked out.

    Attributes:
        rank: number K of singular values.
        tolerance: largest residual, relative to the largest singular value.
        max_passes: most products with a block of vectors.
        seed: of the random start.
    """

    rank: int = 50
    tolerance: float = 1e-2
    max_passes: int = 20
    seed: int = 0


def network_spectra(
    operator: LinearOperator,
    generator: NetworkGenerator,
    thetas: Mapping[str, Tensor],
    settings: SpectrumSettings,
) -> list[NetworkSpectrum]:
    """Compare the Jacobians of projections at several parameter vectors of one network.

    With respect to the convolutions' weights, biases and normalisation held fixed. Products are
    exact (forward and reverse differentiation), residuals are true ones.

    Args:
        operator: the scaled ray transform A.
        generator: the network with its input, G, in float32.
        thetas: parameters by name, [P] each; overlap and movement refer to the first.
        settings: how exactly.
    """
    layout = generator.layout
    weights = layout.mask(kinds=[Kind.CONVOLUTION], used=True).to(generator.z.device)
    reference = next(iter(thetas.values()))
    first: SingularTriplets | None = None
    found = []
    for name, theta in thetas.items():
        triplets = _triplets(Jacobian(operator @ generator, theta), weights, settings)
        first = first or triplets
        found.append(
            NetworkSpectrum(
                name=name,
                values=triplets.values.cpu().numpy(),
                residuals=triplets.residuals.cpu().numpy(),
                converged=triplets.converged,
                advice=triplets.advice,
                products=triplets.products,
                overlap=subspace_overlap(first.right, triplets.right).cpu().numpy(),
                movement=_movement(layout, reference, theta),
            )
        )
    return found


def _triplets(jacobian: Jacobian, weights: Tensor, settings: SpectrumSettings) -> SingularTriplets:
    """Of the Jacobian with respect to the convolution weights alone."""

    def push(block: Tensor) -> Tensor:
        full = block.new_zeros(len(block), len(weights))
        full[:, weights] = block
        return torch.stack([jacobian(v).flatten() for v in full])

    def pull(block: Tensor) -> Tensor:
        shaped = block.reshape(len(block), *jacobian.range_shape)
        return torch.stack([jacobian.adjoint(w)[weights] for w in shaped])

    return randomised_svd(
        push,
        pull,
        int(weights.sum()),
        settings.rank,
        tolerance=settings.tolerance,
        max_passes=settings.max_passes,
        seed=settings.seed,
        dtype=jacobian.point.dtype,
        device=jacobian.point.device,
    )


def _movement(layout: ParameterLayout, start: Tensor, end: Tensor) -> dict[str, float]:
    moved = {}
    for block in layout.blocks:
        mask = layout.mask(blocks=[block], kinds=[Kind.CONVOLUTION], used=True).to(start.device)
        if bool(mask.any()):
            size = torch.linalg.vector_norm(start[mask])
            moved[block] = float(torch.linalg.vector_norm((end - start)[mask]) / size)
    return moved
