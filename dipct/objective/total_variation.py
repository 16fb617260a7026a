"""Total variation of images and volumes, and its dual ball."""

import torch
from torch import Tensor

from dipct.errors import ShapeError
from dipct.operator.gradient import Gradient


def total_variation(image: Tensor, *, isotropic: bool = False) -> Tensor:
    """Total variation: summed size of the differences between neighbouring pixels.

    Forward differences, zero across the border, not divided by the pixel size: the value has
    the units of the image. Differentiable; where a difference is zero the subgradient 0 is used.

    Args:
        image: [... 1 H W].
        isotropic: Euclidean length of the difference vector of each pixel (Rudin, Osher &
            Fatemi, Physica D 60, 1992) instead of the sum of its absolute components, the
            default for tomography.

    Returns:
        [...].

    Raises:
        ShapeError: the image has no channel axis of size 1.
    """
    if image.ndim < 3:
        raise ShapeError(
            f"total_variation needs an image [... 1 H W]; got shape {tuple(image.shape)}. "
            "Add the channel axis: image[None]."
        )
    gradient = Gradient(tuple(image.shape[-3:]))
    return gradient_norm(gradient(image), ndim=2, isotropic=isotropic)


def gradient_norm(differences: Tensor, *, ndim: int, isotropic: bool) -> Tensor:
    """Total variation from the differences, for images and volumes.

    Args:
        differences: [... ndim *image], as from :class:`dipct.operator.gradient.Gradient`.
        ndim: number of image axes, 2 or 3.
        isotropic: see :func:`total_variation`.

    Returns:
        [...].
    """
    if isotropic:
        return _length(differences, ndim).flatten(-ndim).sum(-1)
    return differences.abs().flatten(-ndim - 1).sum(-1)


def project_dual_ball(q: Tensor, radius: Tensor | float, *, ndim: int, isotropic: bool) -> Tensor:
    """Project onto the domain of the conjugate of ``radius * TV`` as a function of differences.

    Args:
        q: dual variable, [... ndim *image].
        radius: largest absolute component, or largest length of a vector if isotropic.
        ndim: number of image axes, 2 or 3.
        isotropic: see :func:`total_variation`.

    Returns:
        [... ndim *image].
    """
    if isotropic:
        length = _length(q, ndim).unsqueeze(-ndim - 1)
        tiny = torch.finfo(q.dtype).tiny
        return q * (radius / torch.clamp(length, min=radius).clamp(min=tiny))
    return torch.clamp(q, min=-radius, max=radius)


def _length(differences: Tensor, ndim: int) -> Tensor:
    """Euclidean length along the component axis; its gradient at zero is zero, not NaN."""
    squared = differences.square().sum(-ndim - 1)
    positive = squared > 0
    return torch.where(positive, squared, 1.0).sqrt() * positive
