"""Executable shape checks for public boundaries."""

from typing import Any

from dipct.errors import ShapeError


def check_shape(array: Any, pattern: str, *, name: str, advice: str = "", **sizes: int) -> None:
    """Check the shape of an array or tensor against a pattern of axis letters.

    Args:
        array: anything with a ``shape``.
        pattern: blank-separated axes: letters, integers, and at most one leading ``...`` for
            any number of batch axes, as in ``"... 1 H W"``.
        name: what the array is, for the message.
        advice: what to do about a mismatch; a sentence.
        **sizes: required sizes of the letters; letters not named here only have to agree with
            themselves.

    Raises:
        ShapeError: the shape does not fit the pattern.
    """
    axes = pattern.split()
    shape = tuple(array.shape)
    batched = axes[0] == "..."
    core = axes[1:] if batched else axes
    fits = len(shape) >= len(core) if batched else len(shape) == len(core)
    known = dict(sizes)
    if fits and core:
        for axis, size in zip(core, shape[-len(core) :], strict=True):
            wanted = int(axis) if axis.isdigit() else known.setdefault(axis, size)
            fits = fits and size == wanted
    if fits:
        return
    symbols = ", ".join(f"{letter}={size}" for letter, size in sizes.items())
    expected = f"[{pattern}]" + (f" with {symbols}" if symbols else "")
    message = f"{name} must have shape {expected}; got {shape}."
    raise ShapeError(f"{message} {advice}".strip())
