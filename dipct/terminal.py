"""What the command line prints, and where it may write."""

import ast
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dipct.errors import ConfigurationError

if TYPE_CHECKING:
    from dipct.run import Run

OUT = Console(emoji=False)
"""Standard output."""
ERR = Console(stderr=True, emoji=False)
"""Standard error."""


class _StandardError(logging.Handler):
    """Log records as plain lines on standard error, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        ERR.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def log_to_terminal() -> None:
    """Show what dipct logs."""
    logger = logging.getLogger("dipct")
    logger.setLevel(logging.INFO)
    logger.handlers = [_StandardError()]


def check_output(path: Path, suffix: str, *inputs: str | Path | None) -> None:
    """Refuse an output that cannot be written, or would replace an input, before any work."""
    endings = {".h5": (".h5", ".hdf5"), ".png": (".png", ".pdf", ".svg"), ".tif": (".tif", ".tiff")}
    allowed = endings.get(suffix, (suffix,))
    if not path.name.lower().endswith(allowed):
        raise ConfigurationError(
            f"{path}: the name of the file to write must end in {' or '.join(allowed)}."
        )
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"{path}: the folder {path.parent} does not exist; create it first."
        )
    if not os.access(path.parent, os.W_OK):
        raise ConfigurationError(
            f"{path}: the folder {path.parent} cannot be written to; choose another one with --out."
        )
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a file to write.")
    if any(path.exists() and given is not None and _same(path, Path(given)) for given in inputs):
        raise ConfigurationError(f"{path} would replace an input; choose another name with --out.")


def _same(path: Path, other: Path) -> bool:
    return other.exists() and path.samefile(other)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """File names without ending, with as many folders as tell them apart."""
    for n in range(1, max(len(path.resolve().parts) for path in paths) + 1):
        names = ["/".join(path.resolve().with_suffix("").parts[-n:]) for path in paths]
        if len(set(names)) == len(set(path.resolve() for path in paths)):
            break
    return names


def number_or_word(text: str | None) -> float | str | None:
    """A number where the text is one."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def reader_options(pairs: list[str] | None) -> dict[str, Any]:
    """Options of a reader, see :func:`key_values`."""
    return key_values(pairs, "--reader", "axis_column=296")


def key_values(pairs: list[str] | None, option: str, example: str) -> dict[str, Any]:
    """Arguments from ``KEY=VALUE``; values are Python literals or words.

    Args:
        pairs: as given.
        option: that they were given with.
        example: of one.

    Raises:
        ConfigurationError: something without an equals sign.
    """
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not (name and equals and text):
            raise ConfigurationError(f"{option} takes KEY=VALUE, as {example}; got {pair!r}.")
        try:
            found[name.strip()] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name.strip()] = text
    return found


def say(text: str) -> None:
    """Print a line on standard output, in one piece whatever the width of the terminal."""
    OUT.print(text, markup=False, highlight=False, soft_wrap=True)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as text: ``2 x 3``."""
    return " x ".join(str(n) for n in shape)


def say_error(message: str) -> None:
    """Print an error on standard error."""
    ERR.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)


def print_rows(rows: Mapping[str, str]) -> None:
    """Print names and values as two columns."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(escape(name), escape(str(value)))
    OUT.print(table)


def print_run(run: "Run") -> None:
    """Print what a run is and how good."""
    rows = {
        "source": run.source,
        "method": run.method,
        "views": str(run.scan.geometry.n_views),
        "image": f"{shape_text(run.image.shape)} pixels of {run.scan.grid.pixel_size:.6g} "
        f"{run.scan.length_unit}, in {run.units}",
        "outcome": f"{run.status} after {run.iterations} iterations"
        if run.iterations
        else run.status,
        "time": f"{run.duration_s:.1f} s",
        **{name: f"{value:.4g}" for name, value in run.metrics.items()},
    }
    if run.scan.truth is not None:
        rows["truth"] = run.scan.truth_source
    if run.advice:
        rows["advice"] = run.advice
    print_rows(rows)
