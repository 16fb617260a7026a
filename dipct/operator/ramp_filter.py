"""The ramp filter of analytic reconstruction and its windows.

Reference:
    A. C. Kak and M. Slaney, Principles of Computerized Tomographic Imaging, IEEE Press (1988),
    chapter 3.
"""

from typing import Literal

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from dipct.errors import ConfigurationError

Filter = Literal["ram-lak", "shepp-logan", "cosine", "hamming", "hann"]
FILTERS: tuple[str, ...] = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")


def check_filter(filter: str, frequency_scaling: float) -> None:
    """Raise a :class:`ConfigurationError` for an unknown filter or an impossible cut-off."""
    if filter not in FILTERS:
        raise ConfigurationError(f"filter must be one of {FILTERS}; got {filter!r}.")
    if not 0 < frequency_scaling <= 1:
        raise ConfigurationError(
            "frequency_scaling is the cut-off as a share of the Nyquist frequency, above 0 and "
            f"at most 1; got {frequency_scaling}."
        )


def padded_length(n_columns: int) -> int:
    """Shortest length with a fast Fourier transform that keeps rows of columns from wrapping."""
    return next_fast_len(2 * n_columns - 1, real=True)


def ramp_response(
    n_columns: int,
    filter: Filter = "ram-lak",
    frequency_scaling: float = 1.0,
) -> np.ndarray:
    """Frequency response of the windowed ramp filter for columns at unit distance.

    The ramp is the transform of its band-limited kernel in space (Kak and Slaney, eq. 61 of
    chapter 3): a ramp sampled in frequency would be exactly zero at frequency zero and lower
    the whole image. For columns at distance ``s`` divide by ``s``.

    Args:
        n_columns: detector columns D.
        filter: window on the ramp; ``"ram-lak"`` is none.
        frequency_scaling: cut-off as a share of the Nyquist frequency; the window is stretched
            to it and zero beyond.

    Returns:
        [n // 2 + 1] with ``n`` the padded length; about ``f`` at ``f`` cycles per column,
        from 0 to 0.5.

    Raises:
        ConfigurationError: unknown filter or impossible cut-off.
    """
    check_filter(filter, frequency_scaling)
    n = padded_length(n_columns)
    lag = np.minimum(np.arange(n), n - np.arange(n))
    kernel = np.zeros(n)
    kernel[0] = 0.25
    odd = lag % 2 == 1
    kernel[odd] = -1 / (np.pi * lag[odd]) ** 2
    return np.fft.rfft(kernel).real * _window(np.fft.rfftfreq(n), filter, frequency_scaling)


def _window(frequency: np.ndarray, filter: str, frequency_scaling: float) -> np.ndarray:
    """Window by frequency in cycles per column."""
    share = frequency / (0.5 * frequency_scaling)
    window = {
        "ram-lak": np.ones_like(share),
        "shepp-logan": np.sinc(share / 2),
        "cosine": np.cos(np.pi / 2 * share),
        "hamming": 0.54 + 0.46 * np.cos(np.pi * share),
        "hann": 0.5 + 0.5 * np.cos(np.pi * share),
    }[filter]
    return np.where(share <= 1 + 1e-12, window, 0.0)


def filter_columns(projections: Tensor, response: Tensor) -> Tensor:
    """Filter along the detector columns; the map is its own adjoint.

    Args:
        projections: [... D].
        response: of :func:`ramp_response`, in the type and on the device of the projections.

    Returns:
        [... D].
    """
    d = projections.shape[-1]
    n = padded_length(d)
    spectrum = torch.fft.rfft(projections, n=n) * response
    return torch.fft.irfft(spectrum, n=n)[..., :d]
