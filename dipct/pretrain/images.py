"""Where training images come from: phantoms drawn from seeds, or a folder of images."""

import copy
import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np

from dipct.errors import ConfigurationError, GeometryError
from dipct.measurement.grid import Grid
from dipct.phantom import find_phantom, make_phantom, seeded_phantom_names
from dipct.pretrain.image_files import (
    check_image_files,
    image_files,
    names_digest,
    read_normalised,
)
from dipct.pretrain.seeds import Fold, check_fold, check_whole, sample_seed
from dipct.shapes import check_shape

_ORIENTATIONS = 8


class TrainingImages(ABC):
    """An endless sequence of images, each a function of its index alone.

    Sources are picklable: worker processes draw the images.

    Attributes:
        grid: the image grid, 2-D.
        fold: which part of the data set.
        seed: of the data set; the folds of one seed share no image.
    """

    def __init__(self, grid: Grid, fold: Fold, seed: int) -> None:
        if grid.ndim != 2:
            raise GeometryError(f"Training images are 2-D; got a grid of shape {grid.shape}.")
        check_fold(fold)
        check_whole(seed, "seed")
        self.grid, self.fold, self.seed = grid, fold, int(seed)

    @abstractmethod
    def _draw(self, index: int) -> np.ndarray:
        """The image of an index, [H W], in [0, 1]."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the images are, in plain values, for a checkpoint."""

    def __call__(self, index: int) -> np.ndarray:
        """The image of an index.

        Args:
            index: 0 or larger.

        Returns:
            [H W], float32, in [0, 1].

        Raises:
            ConfigurationError: an impossible index.
        """
        check_whole(index, "index")
        image = np.asarray(self._draw(int(index)), dtype=np.float32)
        height, width = self.grid.shape
        check_shape(image, "H W", name=f"A training image of {self!r}", H=height, W=width)
        return image

    def of_fold(self, fold: Fold) -> Self:
        """The images of another part of the same data set.

        Args:
            fold: which part.

        Raises:
            ConfigurationError: no such fold, or an empty one.
        """
        check_fold(fold)
        other = copy.copy(self)
        other.fold = fold
        return other

    def __repr__(self) -> str:
        """Class, fold and seed."""
        return f"{type(self).__name__}(fold={self.fold!r}, seed={self.seed})"


class PhantomImages(TrainingImages):
    """Phantoms drawn at random, a new one for every index.

    Attributes:
        rule: name of the phantom.
    """

    def __init__(self, rule: str, grid: Grid, fold: Fold = "training", seed: int = 0) -> None:
        """Choose the phantom.

        Args:
            rule: one of :func:`dipct.phantom.seeded_phantom_names`.
            grid: the image grid, 2-D.
            fold: which part of the data set.
            seed: of the data set.

        Raises:
            ConfigurationError: an unknown phantom or one that is always the same, an unknown
                fold, or an impossible seed.
            GeometryError: a 3-D grid.
        """
        super().__init__(grid, fold, seed)
        self.rule = find_phantom(rule)
        if self.rule not in seeded_phantom_names():
            raise ConfigurationError(
                f"The phantom {self.rule} is always the same image; to train on, choose one of "
                f"{', '.join(seeded_phantom_names())}."
            )

    def _draw(self, index: int) -> np.ndarray:
        seed = sample_seed("image", self.seed, self.fold, index)
        return make_phantom(self.rule, self.grid, seed=seed, peak=1.0)

    def describe(self) -> dict[str, Any]:
        """See :meth:`TrainingImages.describe`."""
        return {
            "kind": "phantom",
            "rule": self.rule,
            "fold": self.fold,
            "seed": self.seed,
            "grid": self.grid.to_dict(),
        }


class FolderImages(TrainingImages):
    """The images in a folder and its subfolders, in a new order in every pass.

    PNG, JPEG, BMP and TIFF files and NumPy arrays; colours become luminance. Of each image the
    largest centred part of the grid's shape is used, its values are stretched from its least and
    largest to [0, 1], and it is resized with anti-aliasing.

    In the training fold of a square grid every image is seen in one of its 8 orientations
    (turns and mirror images), chosen anew in every pass.

    Which fold a file belongs to depends on its name and the number of files, not on the seed.
    The same image under two names may be in two folds.

    Attributes:
        folder: where the images are.
        validation_share: share of the files in the validation fold, and in the test fold.
    """

    def __init__(
        self,
        folder: str | Path,
        grid: Grid,
        fold: Fold = "training",
        seed: int = 0,
        validation_share: float = 0.1,
    ) -> None:
        """List the files and read them all once, to find those that are unfit before any work.

        Args:
            folder: where the images are.
            grid: the image grid, 2-D.
            fold: which part of the data set.
            seed: of order and orientations.
            validation_share: share of the files, below a half, in the validation fold and in the
                test fold, one at least each; 0 for training alone.

        Raises:
            FileFormatError: no images, or files that are not readable or too small.
            DataError: images with values that are not finite or all the same.
            ConfigurationError: impossible settings, or too few files for the folds.
            GeometryError: a 3-D grid.
        """
        super().__init__(grid, fold, seed)
        if not 0 <= validation_share < 0.5:
            raise ConfigurationError(
                f"validation_share must be at least 0 and below 0.5; got {validation_share}."
            )
        self.folder, self.validation_share = Path(folder), float(validation_share)
        paths = image_files(self.folder)
        self._folds = self._split(paths)
        self._check_fold_not_empty()
        check_image_files(paths, self._aspect)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the fold."""
        return self._folds[self.fold]

    @property
    def _aspect(self) -> float:
        return self.grid.shape[0] / self.grid.shape[1]

    def of_fold(self, fold: Fold) -> Self:
        """See :meth:`TrainingImages.of_fold`; the files are not read again."""
        other = super().of_fold(fold)
        other._check_fold_not_empty()
        return other

    def describe(self) -> dict[str, Any]:
        """See :meth:`TrainingImages.describe`; files are told by a digest of their names."""
        return {
            "kind": "folder",
            "folder": str(self.folder),
            "fold": self.fold,
            "seed": self.seed,
            "validation_share": self.validation_share,
            "files": len(self.files),
            "names_sha256": names_digest(self.files, self.folder),
            "grid": self.grid.to_dict(),
        }

    def _draw(self, index: int) -> np.ndarray:
        from skimage.transform import resize

        pass_, position = divmod(index, len(self.files))
        order = np.random.default_rng(sample_seed("order", self.seed, self.fold, pass_))
        path = self.files[order.permutation(len(self.files))[position]]
        image = read_normalised(path, self._aspect)
        if image.shape != self.grid.shape:
            image = resize(image, self.grid.shape, order=1, mode="edge", anti_aliasing=True)
        if self.fold == "training" and self.grid.shape[0] == self.grid.shape[1]:
            rng = np.random.default_rng(sample_seed("augmentation", self.seed, self.fold, index))
            image = orientation(image, int(rng.integers(_ORIENTATIONS)))
        return np.ascontiguousarray(image, dtype=np.float32).clip(0, 1)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _split(self, paths: list[Path]) -> dict[Fold, tuple[Path, ...]]:
        # By a digest of the name: neighbours, often alike, are spread, and a file that is added
        # leaves most others where they are.
        mixed = sorted(
            paths, key=lambda path: hashlib.sha256(self._name(path).encode()).hexdigest()
        )
        held_out = max(1, round(self.validation_share * len(paths))) if self.validation_share else 0
        return {
            "validation": tuple(mixed[:held_out]),
            "test": tuple(mixed[held_out : 2 * held_out]),
            "training": tuple(mixed[2 * held_out :]),
        }

    def _check_fold_not_empty(self) -> None:
        if not self.files:
            n = sum(len(files) for files in self._folds.values())
            raise ConfigurationError(
                f"{self.folder}: no image is left for the {self.fold} fold: {n} files with "
                f"validation_share {self.validation_share:g}. Add images, or "
                + (
                    "use validation_share 0 and validate on other images."
                    if self.validation_share
                    else "use a larger validation_share."
                )
            )


def orientation(image: np.ndarray, which: int) -> np.ndarray:
    """A square image turned by a multiple of 90 degrees, and mirrored.

    Args:
        image: [N N].
        which: 0 to 7; 0 is the image itself, from 4 on they are mirrored.
    """
    turned = np.rot90(image, which % 4)
    return turned[:, ::-1] if which >= 4 else turned
