"""Small folders in the layouts in which labelled images are spread."""

import numpy as np
from PIL import Image

DIAGNOSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
LESIONS = (("nv", 3), ("nv", 1), ("nv", 2), ("mel", 2), ("mel", 1), ("mel", 1), ("bkl", 2)) * 2
"""Diagnosis and number of images of each lesion."""
PEOPLE = 12
ATTRIBUTES = ("Bald", "Smiling", "Smirking", "Young")


def flat(number, shape=(20, 24)):
    """An image of one colour, which tells its number up to 215, after JPEG too."""
    digits = [number // 36 % 6, number // 6 % 6, number % 6]
    return np.broadcast_to(np.array(digits, dtype=np.uint8) * 40, (*shape, 3))


def numbers(images):
    """Which images these are, by their colours."""
    digits = np.rint(images.mean((2, 3)) * 255 / 40).astype(int)
    return (digits @ np.array([36, 6, 1])).tolist()


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95} if path.suffix == ".jpg" else {}
    Image.fromarray(np.ascontiguousarray(array)).save(path, **options)


def write_rows(path, rows, separator=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))


def write_class_folders(folder, counts):
    """Images numbered on from class to class; the first of each lies in a subfolder."""
    number = 0
    for name, count in counts.items():
        for i in range(count):
            place = folder / name / "more" if i == 0 else folder / name
            save(place / f"{i}.{'jpg' if i % 2 else 'png'}", flat(number))
            number += 1


def smiles(number):
    return (number // PEOPLE) % 2 == 1


def person(number):
    return number % PEOPLE


def part(number):
    """Of the official partition: two thirds of the people train, a sixth validate and test."""
    return max(0, person(number) // 2 - 3)


def write_celeba(folder, count=36, *, kind="txt", partition=True, identity=True):
    """Faces; image n shows person n modulo 12."""
    names = [f"{n + 1:06}.jpg" for n in range(count)]
    rows = [
        [name, *(1 if (a == "Smiling") == smiles(n) else -1 for a in ATTRIBUTES)]
        for n, name in enumerate(names)
    ]
    parts = [[name, part(n)] for n, name in enumerate(names)]
    if kind == "txt":
        text = [[count], ATTRIBUTES, *rows]
        write_rows(folder / "Anno" / "list_attr_celeba.txt", text, " ")
        if partition:
            write_rows(folder / "Eval" / "list_eval_partition.txt", parts, " ")
    else:
        write_rows(folder / "list_attr_celeba.csv", [["image_id", *ATTRIBUTES], *rows])
        if partition:
            table = [["image_id", "partition"], *parts]
            write_rows(folder / "list_eval_partition.csv", table)
    if identity:
        people = [[name, 100 + person(n)] for n, name in enumerate(names)]
        write_rows(folder / "Anno" / "identity_CelebA.txt", people, " ")
    for n, name in enumerate(names):
        save(folder / "Img" / "img_align_celeba" / name, flat(n))


def lesion_rows():
    """Lesion, image and diagnosis of every image; those of a lesion are not side by side."""
    rows = [
        [f"HAM_{lesion:07}", dx] for lesion, (dx, count) in enumerate(LESIONS) for _ in range(count)
    ]
    mixed = np.random.default_rng(0).permutation(len(rows))
    return [[rows[i][0], f"ISIC_{n:07}", rows[i][1]] for n, i in enumerate(mixed)]


def write_ham10000(folder, kind="csv"):
    """Lesions with the metadata of HAM10000, or the tables of ISIC 2018; image n is row n."""
    rows = lesion_rows()
    if kind == "isic":
        write_rows(
            folder / "ISIC2018_Task3_Training_GroundTruth" / f"{ISIC}_GroundTruth.csv",
            [
                ["image", *DIAGNOSES],
                *([image, *(float(d.lower() == dx) for d in DIAGNOSES)] for _, image, dx in rows),
            ],
        )
        write_rows(
            folder / f"{ISIC}_LesionGroupings.csv",
            [
                ["image", "lesion_id", "diagnosis_confirm_type"],
                *([image, lesion, "histopathology"] for lesion, image, _ in reversed(rows)),
            ],
        )
    else:
        table = [["lesion_id", "image_id", "dx", "age"], *([*row, ""] for row in rows)]
        ending, separator = {"csv": (".csv", ","), "none": ("", ","), "tab": (".tab", "\t")}[kind]
        write_rows(folder / f"HAM10000_metadata{ending}", table, separator)
    for n, (_, image, _) in enumerate(rows):
        save(folder / f"HAM10000_images_part_{1 + n % 2}" / f"{image}.jpg", flat(n))


ISIC = "ISIC2018_Task3_Training"
