"""Images that a data set lists with their classes, and how they are chosen and read."""

import filecmp
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from dipct.errors import ConfigurationError, FileFormatError, InsufficientMemoryError
from dipct.pretrain.folder_tables import first_of
from dipct.pretrain.image_files import SHORTEST_SIDE, names_digest, read_squares
from dipct.pretrain.labelled_images import LabelledImages, check_partition, divide
from dipct.pretrain.seeds import check_whole
from dipct.pretrain.stratified_groups import draw_groups
from dipct.settings import unknown_name


class FolderIndex:
    """The files in a folder and its subfolders by name; hidden ones are left out.

    Args:
        folder: where to look.

    Raises:
        FileFormatError: no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileFormatError(f"{folder}: no such folder of images; check the name.")
        self.folder = folder
        self._paths: dict[str, list[Path]] = {}
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in files:
                if not name.startswith("."):
                    self._paths.setdefault(name, []).append(Path(place) / name)

    def find(self, *names: str) -> Path | None:
        """The file with the first of these names that there is; None if there is none.

        Raises:
            FileFormatError: several files of that name that differ.
        """
        for name in names:
            if name in self._paths:
                return _only(self._paths[name])
        return None

    def images(self, names: Sequence[str], listed_in: Path, *, under: str = "") -> list[Path]:
        """Where the images of a list are.

        Args:
            names: of the files.
            listed_in: the list, for the message.
            under: name of a folder that they are in; default: any.

        Raises:
            FileFormatError: images that are listed twice, missing, or there several times and
                different.
        """
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise FileFormatError(f"{listed_in}: listed more than once: {first_of(twice)}.")
        found = [self._inside(name, under) for name in names]
        missing = [name for name, paths in zip(names, found, strict=True) if not paths]
        if missing:
            place = f"in a folder {under} of {self.folder}" if under else f"in {self.folder}"
            raise FileFormatError(
                f"{listed_in}: {len(missing)} of the {len(names)} images that it lists are not "
                f"{place}: {first_of(missing)}. Unpack all images, or leave those that you do "
                "not have out of the list."
            )
        return [_only(paths) for paths in found]

    def _inside(self, name: str, under: str) -> list[Path]:
        paths = self._paths.get(name, [])
        if not under:
            return paths
        return [path for path in paths if under in path.relative_to(self.folder).parts[:-1]]


@dataclass(frozen=True, eq=False)
class ListedImages:
    """Images with classes that are not read yet.

    Attributes:
        layout: name of the layout of the data set.
        folder: where it is.
        paths: of the images, N of them.
        kinds: name of the class of each, N of them.
        classes: names of the classes in the order of their numbers.
        groups: what images that stay together have in common, N of them; None: nothing.
        grouped_by: what that is, in a word.
        fold: see :class:`LabelledImages`.
        options: what else was chosen, in plain values.
    """

    layout: str
    folder: Path
    paths: Sequence[Path]
    kinds: Sequence[str]
    classes: tuple[str, ...]
    groups: Sequence[str] | None = None
    grouped_by: str | None = None
    fold: np.ndarray | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def read(
        self,
        side: int,
        *,
        classes: Sequence[str] | None = None,
        colour: bool = True,
        most: int | None = None,
        seed: int = 0,
        held_out_share: float | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> LabelledImages:
        """Choose and read the images.

        Args:
            side: rows and columns; the centre of each image is cropped to a square.
            classes: those to keep, in the order of their new numbers; case matters where two
                differ in it alone; default: all.
            colour: three channels, or luminance alone.
            most: largest number of images, drawn in whole groups and by the same share of every
                class and of every part of an official partition; default: all.
            seed: of what is drawn.
            held_out_share: what :meth:`LabelledImages.split` with this share and seed would refuse
                is refused before any image is read; default: no division is meant.
            progress: told, after every image, how many of how many are read.

        Returns:
            The images that are chosen, with their classes and groups.

        Raises:
            ConfigurationError: impossible settings, an unknown class, or a class of which no image
                would be used, or none on one side of the division.
            InsufficientMemoryError: the images are estimated not to fit into free memory.
            FileFormatError: files that are not readable images, or too small.
            DataError: images whose values are not finite or out of range, or a group that the
                official partition splits.
        """
        check_whole(side, "side", least=SHORTEST_SIDE)
        check_whole(seed, "seed")
        chosen = self._chosen_classes(classes)
        numbers = {name: number for number, name in enumerate(chosen)}
        labels = np.array([numbers.get(kind, -1) for kind in self.kinds], dtype=np.int64)
        groups = np.arange(len(labels), dtype=np.int64)
        if self.groups is not None:
            groups = np.unique(self.groups, return_inverse=True)[1].astype(np.int64)
        if self.fold is not None:
            check_partition(groups, self.fold)
        kept = np.flatnonzero(labels >= 0)
        source: dict[str, Any] = {"kind": "folder", "layout": self.layout, **self.options}
        if most is not None:
            check_whole(most, "most", least=1)
            kept = self._drawn(kept, labels, groups, int(most), int(seed))
            source |= {"most": int(most), "seed": int(seed)}
        absent = np.setdiff1d(np.arange(len(chosen)), labels[kept])
        if len(absent):
            raise ConfigurationError(
                f"{self.folder}: no image of {chosen[absent[0]]!r} is among the {len(kept)} that "
                f"would be used. Leave the class out{'' if most is None else ', or raise most'}."
            )
        fold = None if self.fold is None else self.fold[kept]
        if held_out_share is not None:
            divide(
                labels[kept], groups[kept], fold, classes=chosen, share=held_out_share, seed=seed
            )
        paths = [self.paths[i] for i in kept]
        _check_memory(len(paths), side, colour)
        return LabelledImages(
            images=read_squares(paths, side, colour=colour, progress=progress),
            labels=labels[kept],
            classes=chosen,
            groups=groups[kept],
            source=source
            | {
                "folder": str(self.folder),
                "side": int(side),
                "colour": bool(colour),
                "grouped_by": self.grouped_by,
                "number": len(paths),
                "names_sha256": names_digest(paths, self.folder),
            },
            fold=fold,
        )

    def _chosen_classes(self, classes: Sequence[str] | None) -> tuple[str, ...]:
        chosen = self.classes if classes is None else tuple(map(self._spelled, classes))
        if len(chosen) < 2 or len(set(chosen)) < len(chosen):
            raise ConfigurationError(
                f"{self.folder}: expected two or more different classes; got "
                f"{', '.join(chosen) or 'none'}."
            )
        return chosen

    def _spelled(self, name: str) -> str:
        """A class as the data set spells it."""
        if name in self.classes:
            return name
        alike = [known for known in self.classes if known.casefold() == name.casefold()]
        if len(alike) != 1:
            raise ConfigurationError(f"{self.folder}: {unknown_name('class', name, self.classes)}")
        return alike[0]

    def _drawn(
        self, kept: np.ndarray, labels: np.ndarray, groups: np.ndarray, most: int, seed: int
    ) -> np.ndarray:
        strata = labels[kept]
        if self.fold is not None:
            # Every class of every part of an official partition counts for itself.
            strata = strata + (strata.max(initial=0) + 1) * self.fold[kept]
        share = min(1.0, most / max(1, len(kept)))
        return kept[draw_groups(strata, groups[kept], share, seed=seed, most=most)]


def _only(paths: Sequence[Path]) -> Path:
    """One of several files of one name, which have to be the same."""
    for other in paths[1:]:
        if not filecmp.cmp(paths[0], other, shallow=False):
            raise FileFormatError(
                f"{paths[0]} and {other} have the same name and different contents; keep one."
            )
    return paths[0]


def _check_memory(number: int, side: int, colour: bool) -> None:
    needed, free = 4 * number * (3 if colour else 1) * side**2, psutil.virtual_memory().available
    if needed > free:
        raise InsufficientMemoryError(
            f"{number} images of {side} x {side} pixels take {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free. Use a smaller side, or fewer images (most)."
        )
