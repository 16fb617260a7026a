"""Dermatoscopic images of skin lesions: HAM10000, which is also task 3 of ISIC 2018.

Tschandl, Rosendahl and Kittler, Scientific Data 5, 180161 (2018), doi:10.7910/DVN/DBW86T, and
Codella et al., arXiv 1902.03368; CC BY-NC. Nothing of it comes with this package.
"""

from pathlib import Path

from dipct.errors import FileFormatError
from dipct.pretrain.folder_tables import look_up, read_columns, table_columns
from dipct.pretrain.listed_images import FolderIndex, ListedImages

METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
GROUND_TRUTH = "ISIC2018_Task3_Training_GroundTruth.csv"
_GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"


def list_ham10000(folder: str | Path) -> ListedImages:
    """The images of skin lesions of a folder; those of one lesion are a group.

    The data set has several images of many lesions, and a division by images puts the same lesion
    on both sides (Abhishek, Jain and Hamarneh, arXiv 2401.14497).

    Two layouts are known. ``HAM10000_metadata.csv`` (or without an ending, or ``.tab``) with the
    columns ``lesion_id``, ``image_id`` and ``dx``; or, where that is not there,
    ``ISIC2018_Task3_Training_GroundTruth.csv`` with a column for each diagnosis, one of which is 1
    in each row, and ``ISIC2018_Task3_Training_LesionGroupings.csv`` with the lesions. Both are
    looked for anywhere in the folder, and so are the images, ``.jpg``. Diagnoses are told in small
    letters, as in the first layout: akiec, bcc, bkl, df, mel, nv, vasc.

    Args:
        folder: where the files are.

    Returns:
        The images, not read yet; the diagnoses are the classes, by the alphabet.

    Raises:
        FileFormatError: missing files, or tables of another layout.
    """
    index = FolderIndex(Path(folder))
    metadata, truth = index.find(*METADATA), index.find(GROUND_TRUTH)
    if metadata is not None:
        table = metadata
        names, lesions, kinds = read_columns(table, ["image_id", "lesion_id", "dx"])
        kinds = [kind.lower() for kind in kinds]
    elif truth is not None:
        table = truth
        names, kinds = _read_ground_truth(table)
        groupings = index.find(_GROUPINGS)
        if groupings is None:
            raise FileFormatError(
                f"{folder}: {_GROUPINGS} is not there; without it images of one lesion cannot be "
                "kept together. It is published beside the ground truth of task 3 of ISIC 2018."
            )
        lesions = look_up(groupings, *read_columns(groupings, ["image", "lesion_id"]), names)
    else:
        raise FileFormatError(
            f"{folder}: expected HAM10000 with {' or '.join(METADATA)}, or task 3 of ISIC 2018 "
            f"with {GROUND_TRUTH}; none of them is there."
        )
    return ListedImages(
        layout="ham10000",
        folder=index.folder,
        paths=index.images([f"{name}.jpg" for name in names], table),
        kinds=kinds,
        classes=tuple(sorted(set(kinds))),
        groups=lesions,
        grouped_by="lesion",
        options={"table": table.name},
    )


def _read_ground_truth(table: Path) -> tuple[list[str], list[str]]:
    """Names of the images and their diagnoses, of a table with a column for each diagnosis."""
    diagnoses = [name for name in table_columns(table) if name != "image"]
    names, *columns = read_columns(table, ["image", *diagnoses])
    kinds = []
    for name, *values in zip(names, *columns, strict=True):
        is_there = [_is_one(value) for value in values]
        if None in is_there or is_there.count(True) != 1:
            raise FileFormatError(
                f"{table}: expected a 1 for one diagnosis of {name} and 0 for the others; got "
                f"{', '.join(values)}."
            )
        kinds.append(diagnoses[is_there.index(True)].lower())
    return names, kinds


def _is_one(value: str) -> bool | None:
    """Whether it is one or zero; None if neither."""
    return {"1": True, "1.0": True, "0": False, "0.0": False}.get(value)
