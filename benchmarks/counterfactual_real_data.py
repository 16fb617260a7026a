"""Real images for the benchmark of counterfactuals: digits of MNIST, blood cells of BCCD.

Both lie below the folder that DIPCT_DATA names, see data/README.md.
"""

import gzip
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dipct.pretrain import LabelledImages


@dataclass(frozen=True)
class Parts:
    """A data set in three parts.

    Attributes:
        training: of the classifier.
        others: of the independent classifier.
        queries: seen by neither.
    """

    training: LabelledImages
    others: LabelledImages
    queries: LabelledImages


DIGIT_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
CELL_FILE = "bccd_crops_48.npz"


def digits() -> Parts:
    """Six of the ten digits of the test set of MNIST, with a border to 32 pixels."""
    folder = data_folder() / "mnist"
    with gzip.open(folder / DIGIT_FILES[0]) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / DIGIT_FILES[1]) as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    numbers = np.array([3, 4, 5, 6, 8, 9])
    kept = np.isin(labels, numbers)
    padded = np.pad(images[kept], ((0, 0), (2, 2), (2, 2)))[:, None]
    classes = tuple(str(number) for number in numbers)
    whole = labelled(padded, np.searchsorted(numbers, labels[kept]), classes, "MNIST")
    fifth = len(whole.labels) // 5
    return Parts(*(part(whole, np.s_[a * fifth : b * fifth]) for a, b in ((0, 2), (2, 4), (4, 5))))


def cells() -> Parts:
    """Crops of single blood cells of 48 pixels in colour, divided by the image they are from."""
    with np.load(data_folder() / "bccd" / CELL_FILE) as file:
        images, labels = file["images"].transpose(0, 3, 1, 2), file["labels"].astype(np.int64)
        split, classes = file["split"], tuple(str(name) for name in file["class_names"])
    whole = labelled(images, labels, classes, "BCCD")
    training = np.flatnonzero(split == "train")
    return Parts(
        part(whole, training),
        part(whole, np.flatnonzero(split != "test")),
        part(whole, np.flatnonzero(split == "test")),
    )


def data_folder() -> Path:
    """The folder of measured data, which is no part of the project."""
    if not os.environ.get("DIPCT_DATA"):
        raise SystemExit(
            "This benchmark reads real images: set DIPCT_DATA to the folder that holds mnist and "
            "bccd, as data/README.md describes them."
        )
    return Path(os.environ["DIPCT_DATA"])


def refuse_missing(files: Iterable[str]) -> None:
    """Stop before any work where a file of the data sets is not there."""
    missing = [str(path) for path in map(data_folder().joinpath, files) if not path.is_file()]
    if missing:
        raise SystemExit(
            f"DIPCT_DATA lacks {', '.join(missing)}; data/README.md says where these come from."
        )


def labelled(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], name: str
) -> LabelledImages:
    values = (images / np.float32(255)).astype(np.float32)
    return LabelledImages(values, labels, classes, np.arange(len(labels)), {"kind": name})


def part(whole: LabelledImages, which: slice | np.ndarray) -> LabelledImages:
    return LabelledImages(
        np.ascontiguousarray(whole.images[which]),
        whole.labels[which],
        whole.classes,
        whole.groups[which],
        whole.source,
    )
