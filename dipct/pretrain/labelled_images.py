"""Images with classes, and their division into parts that share nothing."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from dipct.errors import ConfigurationError, DataError, DtypeError, ShapeError
from dipct.pretrain.seeds import check_whole
from dipct.pretrain.stratified_groups import draw_groups
from dipct.shapes import check_shape


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images to train and test a classifier on.

    Attributes:
        images: from zero to one, float32 [N C H W].
        labels: number of the class of each, int64 [N].
        classes: names of the classes, two or more; a part of a data set may lack some.
        groups: images with the same number show the same thing, such as one lesion or one person,
            and stay together, int64 [N].
        source: where the images come from, in plain values.
        fold: number of the part of an official partition that each image belongs to, int64 [N];
            None without one. No group is in two parts.

    Raises:
        ShapeError: arrays of other shapes, or no image.
        DtypeError: arrays of other types.
        DataError: values that are not finite or not from zero to one, labels without a class, or
            a group that the official partition splits.
        ConfigurationError: fewer than two classes, equal names, or a source that is not plain.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray
    source: Mapping[str, Any]
    fold: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Validate."""
        check_shape(self.images, "N C H W", name="images")
        if not self.images.size:
            raise ShapeError(f"images must hold something; got shape {self.images.shape}.")
        _check_type(self.images, np.float32, "images")
        low, high = float(self.images.min()), float(self.images.max())
        if not (low >= 0 and high <= 1):
            raise DataError(f"images must lie between 0 and 1; got {low:g} to {high:g}.")
        for name in ("labels", "groups", "fold"):
            values = getattr(self, name)
            if values is not None:
                check_shape(values, "N", name=name, N=len(self.images))
                _check_type(values, np.int64, name)
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ConfigurationError(
                "classes must be two or more different names; got "
                f"{', '.join(self.classes) or 'none'}."
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise DataError(
                f"labels must be classes from 0 to {len(self.classes) - 1}; got "
                f"{self.labels.min()} to {self.labels.max()}."
            )
        if self.fold is not None:
            check_partition(self.groups, self.fold)
        try:
            json.dumps(dict(self.source))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"source must be plain values: {error}.") from None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image, [C H W]."""
        _, channels, height, width = self.images.shape
        return (channels, height, width)

    def subset(self, indices: np.ndarray) -> Self:
        """Some of the images.

        Args:
            indices: which, whole numbers [M].

        Returns:
            Those in this order; the source says how many of how many, with a digest of the
            indices.

        Raises:
            ConfigurationError: none, or other numbers than those of images.
        """
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not len(chosen):
            raise ConfigurationError(
                "indices must be one or more whole numbers [M]; got shape "
                f"{chosen.shape} of type {chosen.dtype}."
            )
        chosen = chosen.astype(np.int64)
        if chosen.min() < 0 or chosen.max() >= len(self):
            raise ConfigurationError(
                f"indices must lie between 0 and {len(self) - 1}; got {chosen.min()} to "
                f"{chosen.max()}."
            )
        digest = hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()
        return self._part(chosen, {"indices_sha256": digest})

    def split(self, share: float, *, seed: int) -> tuple[Self, Self]:
        """Divide the images into two parts, such as one to train with and one to test on.

        Every class is divided by about the same share, and images of one group are never on both
        sides, so that the second part holds nothing that was seen in the first. Where there is an
        official partition it is followed, and neither share nor seed matters: the first side is
        the part with the lowest number, the second all others; divided again, these come apart
        likewise. Where images of a single part are left they are divided by share and seed.

        Args:
            share: of the images on the second side, between 0 and 1.
            seed: of what is drawn.

        Returns:
            The two sides, each with the images in their order.

        Raises:
            ConfigurationError: an impossible share or seed, or a class that has no image on one
                of the sides.
        """
        is_second, how = divide(
            self.labels, self.groups, self.fold, classes=self.classes, share=share, seed=seed
        )
        first, second = (
            self._part(np.flatnonzero(is_in), {**how, "side": side})
            for side, is_in in (("first", ~is_second), ("second", is_second))
        )
        return first, second

    def _part(self, indices: np.ndarray, how: Mapping[str, Any]) -> Self:
        parts = [*self.source.get("parts", []), {**how, "number": len(indices)}]
        return type(self)(
            self.images[indices],
            self.labels[indices],
            self.classes,
            self.groups[indices],
            {**self.source, "parts": parts},
            None if self.fold is None else self.fold[indices],
        )


def divide(
    labels: np.ndarray,
    groups: np.ndarray,
    fold: np.ndarray | None,
    *,
    classes: Sequence[str],
    share: float,
    seed: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Which images are on the second side of :meth:`LabelledImages.split`; none has to be read.

    Args:
        labels: class of each image, int64 [N].
        groups: group of each image, int64 [N].
        fold: part of each in an official partition, int64 [N]; None without one.
        classes: names of the classes.
        share: of the images on the second side, between 0 and 1; without a meaning where an
            official partition is followed.
        seed: of what is drawn.

    Returns:
        Which they are, bool [N], and how they were chosen, in plain values.

    Raises:
        ConfigurationError: an impossible share or seed, or a class that has no image on one of the
            sides.
    """
    if not 0 < share < 1:
        raise ConfigurationError(f"share must lie between 0 and 1; got {share}.")
    check_whole(seed, "seed")
    how: dict[str, Any]
    if fold is not None and np.ptp(fold) > 0:
        is_second, how = fold > fold.min(), {"split": "official"}
        advice = "Leave the class out, or read more of the images."
    else:
        is_second = draw_groups(labels, groups, share, seed=int(seed))
        how = {"split": "stratified", "share": float(share), "seed": int(seed)}
        advice = "Leave the class out, or divide with another share or seed, or add images."
    for side, is_in in (("first", ~is_second), ("second", is_second)):
        missing = np.setdiff1d(np.arange(len(classes)), labels[is_in])
        if len(missing):
            of_class = labels == missing[0]
            raise ConfigurationError(
                f"The {side} side would have no image of {classes[missing[0]]!r}, of which there "
                f"are {of_class.sum()} images in {len(np.unique(groups[of_class]))} groups. "
                f"{advice}"
            )
    return is_second, how


def check_partition(groups: np.ndarray, fold: np.ndarray) -> None:
    """Raise a :class:`DataError` if a group is in more than one part of a partition.

    Args:
        groups: group of each image, int64 [N].
        fold: part of each image, int64 [N].
    """
    pairs = np.unique(np.stack([groups, fold], axis=1), axis=0)
    numbers, parts = np.unique(pairs[:, 0], return_counts=True)
    if (parts > 1).any():
        raise DataError(
            f"Group {numbers[parts > 1][0]} is in more than one part of the official partition; "
            "images of one group must stay together."
        )


def _check_type(array: np.ndarray, kind: type[np.generic], name: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != kind:
        found = getattr(array, "dtype", type(array).__name__)
        raise DtypeError(f"{name} must be a NumPy array of {kind.__name__}; got {found}.")
