"""Figures to files."""

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dipct.errors import ConfigurationError
from dipct.measurement.hdf5 import write_bytes_whole

# The time of writing is left out, so that the same figure gives the same file.
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": "dipct"},
    ".pdf": {"Creator": "dipct", "CreationDate": None},
    ".svg": {"Creator": "dipct", "Date": None},
}

DOTS_PER_INCH = 150
"""Resolution of PNG files."""


def save_figure(figure: Figure, path: str | Path, *, dots_per_inch: float = DOTS_PER_INCH) -> None:
    """Write a figure as PNG, PDF or SVG, whole or not at all.

    Args:
        figure: the figure.
        path: the file; its suffix says the format. An existing file is replaced.

        dots_per_inch: resolution of a png.

    Raises:
        ConfigurationError: another suffix.
        OSError: the file cannot be written; nothing is left half-written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _METADATA:
        raise ConfigurationError(
            f"{path}: a figure is saved as {', '.join(_METADATA)}; got the suffix "
            f"{path.suffix!r}. Choose one of these."
        )
    contents = io.BytesIO()
    figure.savefig(contents, format=suffix[1:], dpi=dots_per_inch, metadata=_METADATA[suffix])
    write_bytes_whole(path, contents.getbuffer())
