"""The compute device a user asks for."""

import torch

from dipct.errors import ConfigurationError, DeviceUnavailableError


def find_device(name: str) -> torch.device:
    """The device of a name such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        ConfigurationError: not a device's name.
        DeviceUnavailableError: this machine, or the installed torch, has no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigurationError(
            f"device must be a name such as cpu, cuda or cuda:1; got {name!r}."
        ) from None
    if device.type == "cpu":
        return device
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
        return device
    raise DeviceUnavailableError(
        f"The device {name!r} is not available: torch {torch.__version__} sees "
        f"{torch.cuda.device_count()} CUDA devices. Use device cpu, or install a driver and a "
        "CUDA build of torch."
    )
