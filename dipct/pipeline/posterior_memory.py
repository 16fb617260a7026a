"""How the covariance of the data can be computed on a machine, before work starts."""

import shutil
import tempfile
from typing import Literal

import psutil
import torch

from dipct.errors import InsufficientMemoryError
from dipct.pipeline.hyperparameters import matern_of
from dipct.pipeline.memory import free_on
from dipct.posterior import LinearisedModel
from dipct.uncertainty import UncertaintySettings

# Images whose covariance is kept as a matrix.
_LARGEST_DENSE_IMAGE = 2048
SHARE = 0.7
"""Of what is free: the estimates are not exact, and others work too."""
# Products of which the Gram matrices of one block of 3 x 3 filters are made, in double precision:
# more than the covariance, its inverse and copies that are needed afterwards.
_COVARIANCES_AT_ONCE = 16

Storage = Literal["dense", "memory", "disk", "recompute"]


def choose_storage(model: LinearisedModel, settings: UncertaintySettings) -> Storage:
    """How the Gram matrices are computed.

    Args:
        model: the linear model.
        settings: resolved.

    Raises:
        InsufficientMemoryError: the exact evidence does not fit in any way that is allowed.
    """
    device, on_disk = model.residual.device, shutil.disk_usage(tempfile.gettempdir()).free
    free, jacobian = free_memory(device), jacobian_bytes(model)
    needed = gram_bytes(model, settings, gram_dtype(model, settings)) + working_bytes(model)
    largest = max(group.size for group in matern_of(model, settings).groups)
    of_largest = model.residual.element_size() * model.n_data * largest
    n, components = model.image.numel(), n_components(model, settings)
    dense = 8 * components * (n**2 + model.n_data**2) + working_bytes(model)
    dense += model.residual.element_size() * n * model.n_weights
    # Expectation maximisation needs products of the Jacobian of the data.
    is_small = n <= _LARGEST_DENSE_IMAGE and settings.evidence != "em"
    fits: dict[Storage, bool] = {
        "dense": is_small and dense <= SHARE * free,
        "memory": jacobian + needed <= SHARE * free,
        "disk": needed <= SHARE * free and jacobian <= SHARE * on_disk,
        "recompute": needed + of_largest <= SHARE * free,
    }
    allowed = [settings.storage] if settings.storage != "auto" else list(fits)
    for storage in allowed:
        if fits[storage]:
            return storage
    raise InsufficientMemoryError(
        f"For {model.n_data} data and {model.n_weights} weights the exact evidence needs "
        f"{needed / 2**30:.3g} GiB of memory for Gram matrices and covariances, and "
        f"{jacobian / 2**30:.3g} GiB for the Jacobian in memory or on disk; "
        f"{free / 2**30:.3g} GiB of memory and {on_disk / 2**30:.0f} GiB on disk are free. Use "
        "--evidence stochastic, fewer views, or bin the detector."
    )


def choose_product_storage(model: LinearisedModel, settings: UncertaintySettings) -> Storage:
    """Where the Jacobian is kept whose products stochastic estimates need, if anywhere.

    Args:
        model: the linear model.
        settings: resolved.

    Raises:
        InsufficientMemoryError: it was asked for and does not fit.
    """
    free, jacobian = free_memory(model.residual.device), jacobian_bytes(model)
    on_disk = shutil.disk_usage(tempfile.gettempdir()).free
    fits = {"memory": jacobian <= SHARE * free, "disk": jacobian <= SHARE * on_disk}
    if settings.storage in fits:
        if fits[settings.storage]:
            return settings.storage
        raise InsufficientMemoryError(
            f"The Jacobian of the data takes {jacobian / 2**30:.3g} GiB; {free / 2**30:.3g} GiB of "
            f"memory and {on_disk / 2**30:.0f} GiB on disk are free. Use --storage recompute."
        )
    return "memory" if settings.storage == "auto" and fits["memory"] else "recompute"


def free_memory(device: torch.device) -> int:
    """Bytes free on a device."""
    return free_on(device) if device.type == "cuda" else psutil.virtual_memory().available


def jacobian_bytes(model: LinearisedModel) -> int:
    """Size of ``A J``."""
    return model.residual.element_size() * model.n_data * model.n_weights


def n_components(model: LinearisedModel, settings: UncertaintySettings) -> int:
    """Number of Gram matrices."""
    prior = matern_of(model, settings)
    return len(prior.groups) if settings.prior == "g" else prior.n_components


def gram_bytes(model: LinearisedModel, settings: UncertaintySettings, dtype: torch.dtype) -> int:
    """Size of the Gram matrices."""
    return dtype.itemsize * n_components(model, settings) * model.n_data**2


def gram_dtype(model: LinearisedModel, settings: UncertaintySettings) -> torch.dtype:
    """Double precision where it fits beside the Jacobian: the noise may be far below the signal."""
    needed = gram_bytes(model, settings, torch.float64) + working_bytes(model)
    fits = needed + jacobian_bytes(model) <= SHARE * free_memory(model.residual.device)
    return torch.float64 if fits else model.residual.dtype


def working_bytes(model: LinearisedModel) -> int:
    """Size of what is needed beside the Gram matrices: products, or the covariance's factors."""
    return _COVARIANCES_AT_ONCE * 8 * model.n_data**2
