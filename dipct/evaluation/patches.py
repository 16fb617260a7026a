"""The squares into which an image is divided, to be scored one by one."""

from itertools import product

from dipct.errors import ConfigurationError

Region = tuple[slice, slice]
"""Rows and columns of a rectangle of an image."""


def inside_image(region: Region | None, height: int, width: int) -> Region:
    """Rows and columns of a region; all of them where there is none.

    Args:
        region: a pair of slices without a step.
        height: of the image in pixels.
        width: of the image in pixels.

    Raises:
        ConfigurationError: anything else, or a region without a pixel.
    """
    if region is None:
        region = (slice(None), slice(None))
    pair = isinstance(region, tuple) and len(region) == 2
    if not pair or not all(isinstance(part, slice) and part.step in (None, 1) for part in region):
        raise ConfigurationError(
            f"region must be a pair of slices without a step, rows and columns; got {region!r}."
        )
    rows, columns = (
        slice(*part.indices(side)) for part, side in zip(region, (height, width), strict=True)
    )
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise ConfigurationError(
            f"The region {region!r} holds no pixel of an image of {height} x {width}."
        )
    return rows, columns


def patches(height: int, width: int, patch: int) -> list[Region]:
    """Squares that do not overlap; the last of each direction is enlarged to cover the image.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        patch: side of the squares in pixels.

    Raises:
        ConfigurationError: a side below 1 or above that of the image.
    """
    if not 1 <= patch <= min(height, width):
        raise ConfigurationError(
            f"patch must lie between 1 and {min(height, width)}, the shorter side of what is "
            f"evaluated; got {patch}."
        )
    return list(product(_intervals(height, patch), _intervals(width, patch)))


def _intervals(length: int, patch: int) -> list[slice]:
    """The last one takes what would not fill a further interval."""
    starts = range(0, length - patch + 1, patch)
    ends = [*starts[1:], length]
    return [slice(start, end) for start, end in zip(starts, ends, strict=True)]
