"""Total variation of images and volumes, and its dual ball."""

import torch
from torch import Tensor

from dipct.errors import ShapeError
from dipct.operator.gradient import Gradient
from dipct.shapes import check_shape


def total_variation(image: Tensor, *, isotropic: bool = False) -> Tensor:
    """Total variation: summed size of the differences between neighbouring pixels.

    Forward differences, zero across the border, not divided by the pixel size: the value has
    the units of the image. Differentiable; where a difference is zero the subgradient 0 is used.

    Args:
        image: [... C H W].
        isotropic: Euclidean length of the differences of each pixel, of all channels together
            (Rudin, Osher & Fatemi, Physica D 60, 1992; Bresson & Chan, Inverse Probl. Imaging 2,
            2008, for colours), instead of the sum of their absolute values, the default for
            tomography.

    Returns:
        [...].

    Raises:
        ShapeError: the image has no channel axis.
    """
    if image.ndim < 3:
        raise ShapeError(
            f"total_variation needs an image [... C H W]; got shape {tuple(image.shape)}. "
            "Add the channel axis: image[None]."
        )
    differences = channel_differences(image, tuple(image.shape[-3:]))
    return gradient_norm(differences, ndim=2, isotropic=isotropic)


def channel_differences(image: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    """Differences of neighbouring pixels of all channels.

    Args:
        image: [... *image_shape].
        image_shape: [C H W] or [1 Z H W].

    Returns:
        [... C * ndim *axes] with the ndim image axes.

    Raises:
        ShapeError: an image of another shape.
    """
    if tuple(image.shape[-len(image_shape) :]) != image_shape:
        check_shape(image, " ".join(["...", *map(str, image_shape)]), name="The image")
    ndim = len(image_shape) - 1
    gradient = Gradient((1, *image_shape[1:]))
    return gradient(image.unsqueeze(-ndim - 1)).flatten(-ndim - 2, -ndim - 1)


def gradient_norm(differences: Tensor, *, ndim: int, isotropic: bool) -> Tensor:
    """Total variation from the differences, for images and volumes.

    Args:
        differences: [... components *image], as from
            :class:`dipct.operator.gradient.Gradient` or :func:`channel_differences`.
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
