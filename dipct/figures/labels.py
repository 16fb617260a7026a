"""Names and numbers as people read them."""

import textwrap
from collections.abc import Mapping

_NAMES = {
    "psnr_db": "PSNR [dB]",
    "ssim": "SSIM",
    "tv": "total variation",
    "gap": "duality gap",
    "discrepancy": "squared residual / noise variance",
}


def quantity_name(key: str) -> str:
    """The name of a recorded quantity, as in a legend."""
    return _NAMES.get(key, key.replace("_", " "))


def metrics_text(metrics: Mapping[str, float]) -> list[str]:
    """Image quality and data fit, each as a short phrase; those that are not known are left out.

    Args:
        metrics: figures of merit by name.
    """
    phrases = {
        "psnr_db": "PSNR {:.2f} dB",
        "ssim": "SSIM {:.3f}",
        "relative_residual": "relative residual {:.3g}",
    }
    return [text.format(metrics[key]) for key, text in phrases.items() if key in metrics]


def shape_text(shape: tuple[int, ...]) -> str:
    """``128 x 96``."""
    return " x ".join(str(n) for n in shape)


def wrapped(text: str, width: float, font_size: float) -> str:
    """Break text into lines that fit.

    Args:
        text: one paragraph.
        width: of the space, inches.
        font_size: points; an average letter is a little more than half as wide.
    """
    letters = max(12, int(width * 72 / (0.56 * font_size)))
    return textwrap.fill(text, letters)
