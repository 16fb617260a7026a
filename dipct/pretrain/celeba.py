"""Faces with attributes: CelebA.

Liu, Luo, Wang and Tang, Deep Learning Face Attributes in the Wild, ICCV 2015,
https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html; for research that is not commercial. Nothing of
it comes with this package.
"""

from pathlib import Path

import numpy as np

from dipct.errors import ConfigurationError, FileFormatError
from dipct.pretrain.folder_tables import (
    check_values,
    look_up,
    read_columns,
    read_lines,
    read_positions,
    table_columns,
)
from dipct.pretrain.listed_images import FolderIndex, ListedImages
from dipct.settings import unknown_name

ATTRIBUTE_TABLES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
_PARTITION_TABLES = ("list_eval_partition.txt", "list_eval_partition.csv")
_IDENTITY_TABLE = "identity_CelebA.txt"
_IMAGES = "img_align_celeba"


def list_celeba(folder: str | Path, attribute: str) -> ListedImages:
    """The aligned faces of a folder, with one attribute as the class.

    ``list_attr_celeba.txt`` is looked for anywhere in the folder, the images in a folder
    ``img_align_celeba``. If ``list_eval_partition.txt`` is there it becomes the official partition
    (0 training, 1 validation, 2 test; no person is in two of them), and if ``identity_CelebA.txt``
    is there images of one person are a group. Without either, a division of the images puts the
    same people on both sides. The first two may be ``.csv`` with a column ``image_id``, as they
    are also spread; of both, the text counts.

    Args:
        folder: where the files are.
        attribute: name of one of the attributes, such as ``Smiling``; case does not matter.

    Returns:
        The images, not read yet; class 0 is without the attribute, class 1 with it.

    Raises:
        FileFormatError: missing files, or tables of another layout.
        ConfigurationError: an unknown attribute.
    """
    index = FolderIndex(Path(folder))
    table = index.find(*ATTRIBUTE_TABLES)
    if table is None:
        raise FileFormatError(
            f"{folder}: expected CelebA with {' or '.join(ATTRIBUTE_TABLES)}; neither is there."
        )
    name, names, values = _read_attribute(table, attribute)
    classes = (f"not {name}", name)
    partition, identity = index.find(*_PARTITION_TABLES), index.find(_IDENTITY_TABLE)
    return ListedImages(
        layout="celeba",
        folder=index.folder,
        paths=index.images(names, table, under=_IMAGES),
        kinds=[classes[value == "1"] for value in values],
        classes=classes,
        groups=None if identity is None else _in_order(identity, names),
        grouped_by=None if identity is None else "person",
        fold=None if partition is None else _read_partition(partition, names),
        options={"attribute": name, "official_partition": partition is not None},
    )


def _read_attribute(table: Path, attribute: str) -> tuple[str, list[str], list[str]]:
    """Name of the attribute as the table spells it, names of the images, and values."""
    is_text = table.suffix == ".txt"
    known = _text_attributes(table) if is_text else table_columns(table)[1:]
    spelled = [name for name in known if name.lower() == attribute.lower()]
    if not spelled:
        raise ConfigurationError(f"{table}: {unknown_name('attribute', attribute, known)}")
    name = spelled[0]
    if is_text:
        columns = [0, 1 + known.index(name)]
        names, values = read_positions(table, columns, width=1 + len(known), skipped=2)
        number = int(read_lines(table)[0])
        if number != len(names):
            raise FileFormatError(
                f"{table}: the first line says {number} images; {len(names)} are listed. The file "
                "may be truncated."
            )
    else:
        names, values = read_columns(table, ["image_id", name])
    check_values(table, names, values, ("-1", "1"))
    return name, names, values


def _text_attributes(table: Path) -> list[str]:
    lines = read_lines(table)
    if len(lines) < 2 or not lines[0].strip().isdecimal():
        raise FileFormatError(
            f"{table}: expected the number of images in the first line and the names of the "
            f"attributes in the second; the first is {lines[0][:40]!r}."
        )
    return lines[1].split()


def _in_order(table: Path, names: list[str]) -> list[str]:
    """Second column of a text, in the order of the images."""
    return look_up(table, *read_positions(table, [0, 1], width=2), names)


def _read_partition(table: Path, names: list[str]) -> np.ndarray:
    if table.suffix == ".txt":
        values = _in_order(table, names)
    else:
        values = look_up(table, *read_columns(table, ["image_id", "partition"]), names)
    check_values(table, names, values, ("0", "1", "2"))
    return np.array(values).astype(np.int64)
