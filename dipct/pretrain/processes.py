"""Training in several processes, started by ``torchrun``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from dipct.device import find_device
from dipct.errors import ConfigurationError


def place() -> tuple[int, int]:
    """This process's number, and how many train together."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextmanager
def joined_processes(device: str) -> Iterator[str]:
    """Join the other processes where ``torchrun`` has started some, and leave them at the end.

    Args:
        device: ``cpu``, or ``cuda`` for one GPU per process.

    Yields:
        This process's device.

    Raises:
        ConfigurationError: one GPU named for several processes.
        DeviceUnavailableError: fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.startswith("cuda:"):
        raise ConfigurationError(
            f"Several processes cannot share {device}; use --device cuda, which gives each a GPU "
            "of its own."
        )
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(find_device(device))
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()
