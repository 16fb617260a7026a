"""The image grid: where the pixels of a reconstruction lie."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dipct.errors import GeometryError


@dataclass(frozen=True)
class Grid:
    """A regular grid of square pixels or cubic voxels.

    Row 0 of an image is at the top: ``y`` falls as the row index grows, ``x`` grows with the
    column index and ``z`` with the slice index. An array shown with its first row at the top is
    therefore shown as it lies in the world.

    Attributes:
        shape: ``(H, W)`` of an image or ``(Z, H, W)`` of a volume, in pixels.
        pixel_size: edge of a pixel or voxel, mm.
        center: world coordinates of the grid's centre, ``(x, y)`` or ``(x, y, z)``, mm.

    Raises:
        GeometryError: an impossible shape, pixel size or centre.
    """

    shape: tuple[int, ...]
    pixel_size: float = 1.0
    center: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        """Validate and normalise the fields."""
        shape = tuple(int(n) for n in self.shape)
        if len(shape) not in (2, 3) or min(shape) < 1 or shape != tuple(self.shape):
            raise GeometryError(
                f"A grid has shape (H, W) or (Z, H, W) of positive integers; got {self.shape}."
            )
        if not (np.isfinite(self.pixel_size) and self.pixel_size > 0):
            raise GeometryError(f"pixel_size must be positive, in mm; got {self.pixel_size}.")
        center = tuple(float(c) for c in self.center) or (0.0,) * len(shape)
        if len(center) != len(shape) or not np.all(np.isfinite(center)):
            raise GeometryError(
                f"A grid of shape {shape} needs a finite centre of {len(shape)} coordinates "
                f"(x, y{', z' if len(shape) == 3 else ''}), in mm; got {self.center}."
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "pixel_size", float(self.pixel_size))
        object.__setattr__(self, "center", center)

    @property
    def ndim(self) -> int:
        """Number of image dimensions, 2 or 3."""
        return len(self.shape)

    @property
    def n_pixels(self) -> int:
        """Number of pixels or voxels."""
        return int(np.prod(self.shape))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image tensor on this grid, with its channel axis: ``(1, *shape)``."""
        return (1, *self.shape)

    @property
    def size(self) -> tuple[float, ...]:
        """Physical size along x, y (and z), mm."""
        return tuple(n * self.pixel_size for n in reversed(self.shape))

    @property
    def lower(self) -> np.ndarray:
        """Lowest world coordinate along x, y (and z), mm."""
        return np.asarray(self.center) - np.asarray(self.size) / 2

    @property
    def upper(self) -> np.ndarray:
        """Highest world coordinate along x, y (and z), mm."""
        return np.asarray(self.center) + np.asarray(self.size) / 2

    def axes(self) -> tuple[np.ndarray, ...]:
        """Pixel-centre coordinates along each array axis.

        Returns:
            ``(y [H], x [W])`` or ``(z [Z], y [H], x [W])``, mm; ``y`` is descending.
        """
        ascending = [
            low + (np.arange(n) + 0.5) * self.pixel_size
            for low, n in zip(self.lower, reversed(self.shape), strict=True)
        ]
        ascending[1] = ascending[1][::-1].copy()
        return tuple(reversed(ascending))

    def resized(self, n: int) -> "Grid":
        """The same field of view with ``n`` pixels along the longer in-plane side.

        Args:
            n: new number of pixels along the longer of H and W; other sizes follow, rounded.
        """
        if n < 1:
            raise GeometryError(f"The number of pixels must be positive; got {n}.")
        factor = n / max(self.shape[-2:])
        shape = tuple(max(1, round(size * factor)) for size in self.shape)
        return Grid(shape, self.pixel_size / factor, self.center)

    def to_dict(self) -> dict[str, Any]:
        """The grid as plain values, for files."""
        return {
            "shape": list(self.shape),
            "pixel_size": self.pixel_size,
            "center": list(self.center),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Grid":
        """Rebuild a grid from :meth:`to_dict`."""
        return cls(
            tuple(int(n) for n in values["shape"]),
            float(values["pixel_size"]),
            tuple(float(c) for c in values["center"]),
        )
