"""Published networks by name."""

from typing import Any

from dipct.errors import ConfigurationError
from dipct.generator.unet import Output, UNet, Upsampling

_PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "channels": (32,) * 3,
        "skip_channels": (0, 4, 4),
        "normalisation": False,
        "output": "sigmoid",
    },
    "128": {"channels": (64,) * 4, "skip_channels": (0, 0, 4, 4)},
    "walnut": {"channels": (128,) * 6, "skip_channels": (0, 0, 0, 0, 4, 4)},
}
NETWORKS = tuple(_PRESETS)
"""Names of the networks :func:`make_network` knows."""


def make_network(
    name: str,
    *,
    in_channels: int = 1,
    output: Output | None = None,
    ceiling: float = 1.0,
    upsampling: Upsampling = "bilinear",
) -> UNet:
    """A published network.

    ``small`` (76 905 parameters) is that of Antoran et al. (arXiv 2203.00479) for 28 x 28 pixels,
    ``128`` (451 694) that of Nittscher et al. (arXiv 2302.10279) for 128 x 128, ``walnut``
    (2 973 880) that of Barbano et al. (arXiv 2111.11926) for 501 x 501.

    Args:
        name: small, 128 or walnut.
        in_channels: channels of the input.
        output: what follows the last convolution; default: as published (a sigmoid for small).
        ceiling: largest value of a sigmoid.
        upsampling: see :class:`UNet`.

    Raises:
        ConfigurationError: an unknown name.
    """
    if name not in _PRESETS:
        raise ConfigurationError(f"network must be {', '.join(NETWORKS)}; got {name!r}.")
    settings = _PRESETS[name] | ({} if output is None else {"output": output})
    return UNet(in_channels=in_channels, ceiling=ceiling, upsampling=upsampling, **settings)
