"""How the covariance of the data can be computed on a machine, before work starts."""

import shutil
import tempfile
from typing import Literal

import psutil
import torch

from dipct.errors import InsufficientMemoryError
from dipct.pipeline.hyperparameters import matern_of
from dipct.posterior import LinearisedModel
from dipct.uncertainty import UncertaintySettings

# Images whose covariance is kept as a matrix.
_LARGEST_DENSE_IMAGE = 2048
SHARE = 0.7
"""Of what is free: the estimates are not exact, and others work too."""
# On CPUs products in double precision take twice as long.
_FEW_DATA = 2048
# Covariance, its inverse and copies on the way, in double precision.
_COVARIANCES_AT_ONCE = 6

Storage = Literal["dense", "memory", "disk", "recompute"]


def choose_storage(model: LinearisedModel, settings: UncertaintySettings) -> Storage:
    """How the Gram matrices are computed.

    Args:
        model: the linear model.
        settings: resolved.

    Raises:
        InsufficientMemoryError: exact evidence was asked for and does not fit in any way.
    """
    small = model.image.numel() <= _LARGEST_DENSE_IMAGE
    # Expectation maximisation needs products of the Jacobian of the data.
    if settings.storage == "auto" and small and settings.evidence != "em":
        return "dense"
    device, size = model.residual.device, model.residual.element_size()
    free = free_memory(device)
    jacobian, gram = jacobian_bytes(model), gram_bytes(model, settings)
    working = working_bytes(model)
    largest = max(group.size for group in matern_of(model, settings).groups)
    on_disk = shutil.disk_usage(tempfile.gettempdir()).free
    fits: dict[Storage, bool] = {
        "memory": jacobian + gram + working <= SHARE * free,
        "disk": gram + working <= SHARE * free and jacobian <= SHARE * on_disk,
        "recompute": gram + working + size * model.n_data * largest <= SHARE * free,
    }
    if settings.storage != "auto":
        if fits[settings.storage]:
            return settings.storage
    else:
        for storage, does in fits.items():
            if does:
                return storage
    raise InsufficientMemoryError(
        f"For {model.n_data} data and {model.n_weights} weights the exact evidence needs "
        f"{(gram + working) / 2**30:.1f} GiB of memory for Gram matrices and covariances, and "
        f"{jacobian / 2**30:.1f} GiB for the Jacobian in memory or on disk; "
        f"{free / 2**30:.1f} GiB of memory and {on_disk / 2**30:.0f} GiB on disk are free. Use "
        "fewer views, bin the detector, or another storage."
    )


def free_memory(device: torch.device) -> int:
    """Bytes free on a device."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return psutil.virtual_memory().available


def jacobian_bytes(model: LinearisedModel) -> int:
    """Size of ``A J``."""
    return model.residual.element_size() * model.n_data * model.n_weights


def gram_bytes(model: LinearisedModel, settings: UncertaintySettings) -> int:
    """Size of the Gram matrices in the type of the Jacobian."""
    components = 1 if settings.prior == "g" else matern_of(model, settings).n_components
    return model.residual.element_size() * components * model.n_data**2


def gram_dtype(model: LinearisedModel, settings: UncertaintySettings) -> torch.dtype:
    """Double precision where it costs little, for covariances of data that are nearly noiseless."""
    device = model.residual.device
    fits = 2 * gram_bytes(model, settings) + working_bytes(model) <= SHARE * free_memory(device) / 2
    cheap = device.type == "cuda" or model.n_data <= _FEW_DATA
    return torch.float64 if fits and cheap else model.residual.dtype


def working_bytes(model: LinearisedModel) -> int:
    """Size of the covariance of the data with what it is factorised into."""
    return _COVARIANCES_AT_ONCE * 8 * model.n_data**2
