"""Labelled images from a folder in one of the layouts in which they are spread."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dipct.errors import ConfigurationError, FileFormatError
from dipct.pretrain.celeba import ATTRIBUTE_TABLES, list_celeba
from dipct.pretrain.folder_tables import first_of
from dipct.pretrain.ham10000 import GROUND_TRUTH, METADATA, list_ham10000
from dipct.pretrain.image_files import READABLE, image_files
from dipct.pretrain.labelled_images import LabelledImages
from dipct.pretrain.listed_images import FolderIndex, ListedImages

LAYOUTS = {
    "class-folders": "a subfolder of images for every class, two or more",
    "celeba": f"CelebA: {' or '.join(ATTRIBUTE_TABLES)}, and img_align_celeba with the images",
    "ham10000": f"HAM10000 or ISIC 2018 task 3: {' or '.join((*METADATA, GROUND_TRUTH))}, and the "
    "images",
}
"""The layouts that :func:`read_labelled` knows, and what a folder of each holds."""

AUTO = "auto"
# Subfolders of these names are parts of a data set and no classes.
_PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")


def read_labelled(
    folder: str | Path,
    side: int,
    *,
    layout: str = AUTO,
    attribute: str | None = None,
    classes: Sequence[str] | None = None,
    colour: bool = True,
    most: int | None = None,
    seed: int = 0,
    held_out_share: float | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> LabelledImages:
    """Read labelled images from a folder of any known layout.

    Args:
        folder: where the images are.
        side: rows and columns; the centre of each image is cropped to a square.
        layout: one of :data:`LAYOUTS`, or ``auto`` to go by what is in the folder.
        attribute: what makes the class, for CelebA alone.
        classes: those to keep, in the order of their numbers, for the other layouts; case matters
            where two differ in it alone; default: all.
        colour: three channels, or luminance alone.
        most: largest number of images, drawn in whole groups and by the same share of every class
            and of every part of an official partition; default: all.
        seed: of what is drawn.
        held_out_share: refuse what cannot be divided by it, before any image is read.
        progress: told, after every image, how many of how many are read.

    Returns:
        The images with their classes and groups, which :meth:`LabelledImages.split` divides.

    Raises:
        FileFormatError: a folder of no known layout or of several, missing files, tables of
            another layout, or images that are not readable.
        ConfigurationError: an unknown layout, class or attribute, or impossible settings.
        InsufficientMemoryError: the images are estimated not to fit into free memory.
        DataError: images whose values are not finite or out of range, or a person in more than one
            part of the official partition.
    """
    if layout != AUTO and layout not in LAYOUTS:
        raise ConfigurationError(f"layout must be {AUTO}, {', '.join(LAYOUTS)}; got {layout!r}.")
    found = find_layout(folder) if layout == AUTO else layout
    if found == "celeba":
        if attribute is None or classes is not None:
            raise ConfigurationError(
                f"{folder}: the classes of CelebA are made by an attribute, such as Smiling; give "
                "one, and no classes."
            )
        listed = list_celeba(folder, attribute)
    elif attribute is not None:
        raise ConfigurationError(
            f"{folder}: an attribute makes the classes of CelebA alone; the layout is {found}."
        )
    else:
        listed = list_ham10000(folder) if found == "ham10000" else list_class_folders(folder)
    return listed.read(
        side,
        classes=classes,
        colour=colour,
        most=most,
        seed=seed,
        held_out_share=held_out_share,
        progress=progress,
    )


def find_layout(folder: str | Path) -> str:
    """Which of the :data:`LAYOUTS` a folder has.

    Args:
        folder: where the images are.

    Raises:
        FileFormatError: no such folder, none of the layouts, or two of them.
    """
    index = FolderIndex(Path(folder))
    found = []
    if index.find(*ATTRIBUTE_TABLES):
        found.append("celeba")
    if index.find(*METADATA, GROUND_TRUTH):
        found.append("ham10000")
    if not found and len(_class_folders(index.folder)) > 1:
        found.append("class-folders")
    if len(found) != 1:
        known = "\n".join(f"  {name}: {text}" for name, text in LAYOUTS.items())
        what = f"holds {' and '.join(found)}" if found else "has no known layout"
        raise FileFormatError(
            f"{folder}: the folder {what}. Give a folder, or name the layout, of one of:\n{known}"
        )
    return found[0]


def list_class_folders(folder: str | Path) -> ListedImages:
    """The images of a folder in which every class has a subfolder with its name.

    Every image is a group of its own: nothing says which show the same thing. If some do, a
    division of the images puts it on both sides.

    Args:
        folder: where the subfolders are; images may be in subfolders of these.

    Returns:
        The images, not read yet; classes are by the alphabet.

    Raises:
        FileFormatError: no such folder, a class without images, images outside of the subfolders,
            or subfolders that are parts of a data set.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileFormatError(f"{folder}: no such folder of images; check the name.")
    subfolders = _class_folders(folder)
    names = tuple(subfolder.name for subfolder in subfolders)
    if names and all(name.lower() in _PARTS for name in names):
        raise FileFormatError(
            f"{folder}: the subfolders {', '.join(names)} look like parts of a data set and not "
            "like classes; give one of them."
        )
    outside = sorted(p.name for p in folder.iterdir() if _is_image(p))
    if outside:
        raise FileFormatError(
            f"{folder}: images outside of the subfolders have no class: {first_of(outside)}."
        )
    of_class = [image_files(subfolder) for subfolder in subfolders]
    return ListedImages(
        layout="class-folders",
        folder=folder,
        paths=[path for paths in of_class for path in paths],
        kinds=[name for name, paths in zip(names, of_class, strict=True) for _ in paths],
        classes=names,
    )


def _class_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_image(path: Path) -> bool:
    is_hidden = path.name.startswith(".")
    return path.suffix.lower() in READABLE and path.is_file() and not is_hidden
