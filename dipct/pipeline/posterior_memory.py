"""How the covariance of the data can be computed on a machine, before work starts."""

import shutil
import tempfile
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from dipct.errors import InsufficientMemoryError
from dipct.pipeline.hyperparameters import matern_of
from dipct.pipeline.memory import free_on
from dipct.posterior import LinearisedModel, gram_working_bytes
from dipct.uncertainty import UncertaintySettings

# Images whose covariance is kept as a matrix.
_LARGEST_DENSE_IMAGE = 2048
SHARE = 0.7
"""Of what is free: the estimates are not exact, and others work too."""
# Covariance of the data, its inverse and copies on the way, in double precision.
_COVARIANCES_AT_ONCE = 6

Storage = Literal["dense", "memory", "host", "disk", "recompute"]


@dataclass(frozen=True)
class GramPlan:
    """How the Gram matrices are computed.

    Attributes:
        storage: where the Jacobian is kept: that of the image (``dense``), or that of the data in
            the memory of the device, in that of its host, on disk, or nowhere.
        dtype: of the Gram matrices: double precision where it fits, for the noise may be far
            below the signal.
        free: bytes free on the device before it began.
    """

    storage: Storage
    dtype: torch.dtype
    free: int


def plan_gram_matrices(model: LinearisedModel, settings: UncertaintySettings) -> GramPlan:
    """How the Gram matrices are computed: the first way that fits.

    In double precision wherever the Jacobian is kept, before single precision is tried, and
    computed anew for every block only then.

    Args:
        model: the linear model.
        settings: resolved.

    Raises:
        InsufficientMemoryError: the exact evidence does not fit in any way that is allowed.
    """
    device, single = model.residual.device, model.residual.dtype
    ways: list[tuple[Storage, torch.dtype]] = [("dense", torch.float64)]
    for dtype in dict.fromkeys((torch.float64, single)):
        ways += [(storage, dtype) for storage in ("memory", "host", "disk")]
    ways += [("recompute", torch.float64), ("recompute", single)]
    free = free_memory(device)
    for storage, dtype in ways:
        is_allowed = settings.storage in ("auto", storage)
        if is_allowed and _fits(model, settings, storage, dtype):
            return GramPlan(storage, dtype, free)
    on_disk, jacobian = shutil.disk_usage(tempfile.gettempdir()).free, jacobian_bytes(model)
    needed = gram_bytes(model, settings, single) + working_bytes(model, settings, model.n_data)
    raise InsufficientMemoryError(
        f"For {model.n_data} data and {model.n_weights} weights the exact evidence needs "
        f"{needed / 2**30:.3g} GiB of memory for Gram matrices and covariances, and "
        f"{jacobian / 2**30:.3g} GiB for the Jacobian in memory or on disk; "
        f"{free / 2**30:.3g} GiB of memory and {on_disk / 2**30:.0f} GiB on disk are free. Use "
        "--evidence stochastic, fewer views, or bin the detector."
    )


def _fits(
    model: LinearisedModel, settings: UncertaintySettings, storage: Storage, dtype: torch.dtype
) -> bool:
    device = model.residual.device
    free, jacobian = SHARE * free_memory(device), jacobian_bytes(model)
    needed = gram_bytes(model, settings, dtype) + working_bytes(model, settings, model.n_data)
    if storage == "dense":
        n, components = model.image.numel(), n_components(model, settings)
        matrices = 8 * components * (n**2 + model.n_data**2) + working_bytes(model, settings, n)
        of_image = model.residual.element_size() * n * model.n_weights
        # Expectation maximisation needs products of the Jacobian of the data.
        is_possible = n <= _LARGEST_DENSE_IMAGE and settings.evidence != "em"
        return is_possible and matrices + of_image <= free
    if storage == "memory":
        return needed + jacobian <= free
    if storage == "host":
        on_host = SHARE * psutil.virtual_memory().available
        # Expectation maximisation would move all of it in every iteration.
        is_possible = device.type != "cpu" and settings.evidence != "em"
        return is_possible and needed <= free and jacobian <= on_host
    if storage == "disk":
        on_disk = SHARE * shutil.disk_usage(tempfile.gettempdir()).free
        return needed <= free and jacobian <= on_disk
    largest = max(group.size for group in matern_of(model, settings).groups)
    return needed + model.residual.element_size() * model.n_data * largest <= free


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


def working_bytes(model: LinearisedModel, settings: UncertaintySettings, n_rows: int) -> int:
    """Size of what is needed beside the Gram matrices: products, then the covariance's factors.

    Args:
        model: the linear model.
        settings: resolved.
        n_rows: of the Jacobian whose Gram matrices they are.
    """
    products = gram_working_bytes(matern_of(model, settings).groups, n_rows)
    return max(products, _COVARIANCES_AT_ONCE * 8 * model.n_data**2)
