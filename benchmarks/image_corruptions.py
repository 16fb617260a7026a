"""Corruptions of images, in three severities each; at severity zero they do nothing.

After Hendrycks & Dietterich (ICLR 2019); what each severity is, is dipct's own.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian."""
    return image + (0.0, 0.04, 0.08, 0.16)[severity] * rng.standard_normal(image.shape)


def blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """By a Gaussian."""
    std = (0.0, 0.4, 0.7, 1.0)[severity]
    return gaussian_filter(image, (0, std, std))


def contrast(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Less of it."""
    return image.mean() + (1.0, 0.75, 0.5, 0.3)[severity] * (image - image.mean())


def brightness(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """More of it."""
    return image + (0.0, 0.1, 0.2, 0.3)[severity]


def block(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Black, anywhere in the upper half."""
    size, found = (0, 4, 7, 10)[severity], image.copy()
    side = image.shape[-1]
    row, column = rng.integers(0, side // 2 - size // 2), rng.integers(0, side - size)
    found[:, row : row + size, column : column + size] = 0
    return found


def crop(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A random window, and black around it up to the old size."""
    lost, found = (0, 3, 6, 9)[severity], np.zeros_like(image)
    side = image.shape[-1] - lost
    row, column = rng.integers(0, lost + 1, size=2)
    window = np.s_[:, row : row + side, column : column + side]
    found[window] = image[window]
    return found


CORRUPTIONS: dict[str, Corruption] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "brightness": brightness,
    "missing block": block,
    "crop": crop,
}


def corrupted(images: np.ndarray, name: str, severity: int) -> np.ndarray:
    """Images [N C H W] with a corruption; the same noise for every arm."""
    rng = np.random.default_rng([list(CORRUPTIONS).index(name), severity])
    found = np.stack([CORRUPTIONS[name](image, severity, rng) for image in images])
    return found.clip(0, 1).astype(np.float32)
