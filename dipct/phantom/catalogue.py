"""All phantoms by name."""

from collections.abc import Callable
from difflib import get_close_matches

import numpy as np

from dipct.errors import ConfigurationError
from dipct.measurement.grid import Grid
from dipct.phantom.discs import discs
from dipct.phantom.ellipses import ellipses, ellipses_in_disc
from dipct.phantom.noise_masks import noise_disc
from dipct.phantom.rectangles import rectangles
from dipct.phantom.shepp_logan import shepp_logan
from dipct.phantom.walnut import walnut

# A value of 1 spread over the whole field of view then attenuates by exp(-3.5); for a walnut in
# 50.1 mm this gives about 0.07 1/mm, as was measured.
PEAK_TIMES_FIELD_OF_VIEW = 3.5

_FIXED: dict[str, Callable[[Grid], np.ndarray]] = {
    "discs": discs,
    "shepp-logan": shepp_logan,
}
_SEEDED: dict[str, Callable[..., np.ndarray]] = {
    "ellipses": ellipses,
    "ellipses-in-disc": ellipses_in_disc,
    "noise-disc": noise_disc,
    "rectangles": rectangles,
    "walnut": walnut,
}


def phantom_names() -> tuple[str, ...]:
    """The names that :func:`make_phantom` knows, in alphabetical order."""
    return tuple(sorted([*_FIXED, *_SEEDED]))


def seeded_phantom_names() -> tuple[str, ...]:
    """The names of the phantoms that are drawn at random, in alphabetical order."""
    return tuple(sorted(_SEEDED))


def find_phantom(name: str) -> str:
    """A phantom's name as :func:`phantom_names` spells it.

    Args:
        name: case and ``_`` or blank for ``-`` do not matter.

    Raises:
        ConfigurationError: an unknown name.
    """
    key = str(name).strip().lower().replace("_", "-").replace(" ", "-")
    if key not in phantom_names():
        close = get_close_matches(key, phantom_names(), n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ConfigurationError(
            f"There is no phantom called {name!r}.{hint} Known: {', '.join(phantom_names())}."
        )
    return key


def default_peak(grid: Grid) -> float:
    """Attenuation of a phantom's brightest material: 3.5 over the field of view, 1/mm.

    Args:
        grid: the image grid; its field of view is the longer in-plane side.
    """
    return PEAK_TIMES_FIELD_OF_VIEW / max(grid.size[:2])


def make_phantom(name: str, grid: Grid, *, seed: int = 0, peak: float | None = None) -> np.ndarray:
    """Draw a phantom by name.

    Args:
        name: one of :func:`phantom_names`; case and ``_`` or blank for ``-`` do not matter.
        grid: the image grid, 2-D or 3-D.
        seed: another seed, another image, for the phantoms drawn at random. The Shepp-Logan
            phantom and the discs are always the same.
        peak: attenuation where the dimensionless phantom is 1, 1/mm; by default 3.5 over the
            field of view.

    Returns:
        Attenuation ``[*grid.shape]``, float32, 1/mm.

    Raises:
        ConfigurationError: an unknown name, a negative or fractional seed, or a peak that is not
            positive.
    """
    key = find_phantom(name)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigurationError(f"seed must be a whole number, 0 or larger; got {seed!r}.")
    scale = default_peak(grid) if peak is None else float(peak)
    if not (np.isfinite(scale) and scale > 0):
        raise ConfigurationError(f"peak must be a positive attenuation in 1/mm; got {peak!r}.")
    image = _FIXED[key](grid) if key in _FIXED else _SEEDED[key](grid, seed=int(seed))
    return image * np.float32(scale)
