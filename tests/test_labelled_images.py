"""Labelled images: what they hold, how they are divided, and the folders they are read from."""

import json

import numpy as np
import pytest
from labelled_folders import (
    ISIC,
    LESIONS,
    flat,
    lesion_rows,
    numbers,
    part,
    person,
    save,
    smiles,
    write_celeba,
    write_class_folders,
    write_ham10000,
    write_rows,
)

from dipct.errors import (
    ConfigurationError,
    DataError,
    DtypeError,
    FileFormatError,
    InsufficientMemoryError,
    ShapeError,
)
from dipct.phantom import FaceTask, LesionTask, describe_task, make_task, task_names
from dipct.pretrain import (
    LAYOUTS,
    LabelledImages,
    ListedImages,
    find_layout,
    list_celeba,
    list_class_folders,
    list_ham10000,
    read_labelled,
    scene_images,
)
from dipct.pretrain.image_files import read_square
from dipct.pretrain.stratified_groups import draw_groups

SIDE = 8


def made(labels, groups=None, fold=None, classes=("a", "b", "c")):
    """Images whose first pixel is their number by a thousand."""
    count = len(labels)
    images = np.zeros((count, 1, 2, 2), dtype=np.float32)
    images[:, 0, 0, 0] = np.arange(count) / 1000
    return LabelledImages(
        images,
        np.array(labels, dtype=np.int64),
        classes,
        np.arange(count) if groups is None else np.array(groups, dtype=np.int64),
        {"kind": "made"},
        None if fold is None else np.array(fold, dtype=np.int64),
    )


def which(part):
    return np.rint(part.images[:, 0, 0, 0] * 1000).astype(int)


def lesions(seed=0, count=400):
    """Labels and groups of a data set in which groups have one to six images of one class."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 2, 3, 6], size=count, p=[0.6, 0.25, 0.1, 0.05])
    classes = rng.choice(3, size=count, p=[0.7, 0.25, 0.05])
    mixed = rng.permutation(sizes.sum())
    return np.repeat(classes, sizes)[mixed], np.repeat(np.arange(count), sizes)[mixed]


def groups_on_both_sides(groups, is_drawn):
    return np.intersect1d(groups[is_drawn], groups[~is_drawn])


VALUES = {
    "images": np.full((3, 1, 2, 2), 0.5, dtype=np.float32),
    "labels": np.array([0, 1, 1]),
    "classes": ("a", "b"),
    "groups": np.arange(3),
    "source": {},
}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"images": VALUES["images"][0]}, ShapeError, r"images must have shape \[N C H W\]"),
        ({"images": VALUES["images"][:0], "labels": np.arange(0)}, ShapeError, "hold something"),
        ({"images": VALUES["images"].astype(float)}, DtypeError, "array of float32; got float64"),
        ({"images": VALUES["images"] * 3}, DataError, r"between 0 and 1; got 1\.5"),
        ({"images": VALUES["images"] * np.float32(np.nan)}, DataError, "between 0 and 1; got nan"),
        ({"labels": np.array([0, 1])}, ShapeError, r"labels must have shape \[N\] with N=3"),
        ({"labels": np.array([0, 1, 1.0])}, DtypeError, "labels must be a NumPy array of int64"),
        ({"labels": np.array([0, 1, 2])}, DataError, "classes from 0 to 1; got 0 to 2"),
        ({"labels": np.array([0, -1, 1])}, DataError, "got -1 to 1"),
        ({"classes": ("a",)}, ConfigurationError, "two or more different names; got a"),
        ({"classes": ("a", "a")}, ConfigurationError, "two or more different names"),
        ({"groups": np.arange(4)}, ShapeError, "groups must have shape"),
        ({"fold": np.arange(2)}, ShapeError, "fold must have shape"),
        ({"groups": np.array([0, 7, 7]), "fold": np.arange(3)}, DataError, "Group 7 is in more"),
        ({"source": {"folder": np.arange(2)}}, ConfigurationError, "plain values"),
    ],
)
def test_what_cannot_be_labelled_images_is_refused(changed, error, message):
    LabelledImages(**VALUES)
    with pytest.raises(error, match=message):
        LabelledImages(**VALUES | changed)


def test_a_subset_is_in_the_order_asked_for():
    images = made([0, 1, 2, 0], groups=[5, 6, 6, 7], fold=[0, 1, 1, 2])
    some = images.subset([2, 0])
    assert len(images) == 4 and len(some) == 2
    assert which(some).tolist() == [2, 0]
    assert some.labels.tolist() == [2, 0] and some.groups.tolist() == [6, 5]
    assert some.fold.tolist() == [1, 0] and some.classes == images.classes
    (how,) = some.source["parts"]
    assert how["number"] == 2 and len(how["indices_sha256"]) == 64
    assert images.subset([0, 2]).source != some.source
    for wrong in ([], [[0]], [0.0], [True, False, True, False], [4], [-1]):
        with pytest.raises(ConfigurationError, match="indices must"):
            images.subset(wrong)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_class_is_divided_by_the_share_and_no_group(share, seed):
    labels, groups = lesions(seed)
    first, second = made(labels, groups).split(share, seed=seed)
    assert not np.intersect1d(first.groups, second.groups).size
    assert sorted([*which(first), *which(second)]) == list(range(len(labels)))
    for side in (first, second):
        assert (np.diff(which(side)) > 0).all()
        np.testing.assert_array_equal(side.labels, labels[which(side)])
        np.testing.assert_array_equal(side.groups, groups[which(side)])
    # Groups of one image come last and make up for the large ones.
    for number in range(3):
        wanted = share * (labels == number).sum()
        assert abs((second.labels == number).sum() - wanted) <= 1


def test_a_division_that_knows_nothing_of_groups_is_noticed():
    labels, groups = lesions()
    # Wrong: image by image.
    is_drawn = np.random.default_rng(0).random(len(labels)) < 0.1
    assert len(groups_on_both_sides(groups, is_drawn)) > 20
    assert len(groups_on_both_sides(groups, draw_groups(labels, groups, 0.1, seed=0))) == 0


def test_groups_of_several_classes_stay_together():
    """People smile in some pictures and not in others."""
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, 600), rng.integers(0, 60, 600)
    first, second = made(labels, groups, classes=("a", "b")).split(0.2, seed=0)
    assert not np.intersect1d(first.groups, second.groups).size
    for number in range(2):
        assert abs((second.labels == number).mean() - (labels == number).mean()) < 0.05
    assert abs(len(second) - 120) < 12


def test_large_groups_are_on_both_sides():
    """Else one side would hold all lesions of which there are many pictures."""
    groups = np.append(np.repeat(np.arange(40), 10), np.arange(40, 440))
    is_drawn = draw_groups(np.zeros(800, dtype=int), groups, 0.25, seed=0)
    assert is_drawn[:400].sum() == is_drawn[400:].sum() == 100


def test_divisions_repeat_and_depend_on_the_seed():
    images = made(*lesions())
    sides = [which(images.split(0.3, seed=seed)[1]).tolist() for seed in (0, 0, 1)]
    assert sides[0] == sides[1] != sides[2]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9, 1.0])
def test_single_images_are_drawn_by_the_share(share):
    for count in range(1, 30):
        drawn = draw_groups(np.zeros(count, dtype=int), np.arange(count), share, seed=count)
        assert abs(drawn.sum() - share * count) <= 0.5 + 1e-9


def test_no_more_than_the_most_are_drawn():
    labels, groups = lesions()
    for most in (1, 10, 57, len(labels)):
        share = most / len(labels)
        drawn = draw_groups(labels, groups, share, seed=0, most=most)
        assert most - 2 <= drawn.sum() <= most
        assert len(groups_on_both_sides(groups, drawn)) == 0


def test_a_division_says_where_its_parts_are_from():
    first, second = made(*lesions()).split(0.3, seed=4)
    assert first.source["kind"] == "made"
    how = {"split": "stratified", "share": 0.3, "seed": 4}
    assert second.source["parts"] == [{**how, "side": "second", "number": len(second)}]
    inner, _ = first.split(0.5, seed=1)
    assert [each["side"] for each in inner.source["parts"]] == ["first", "first"]
    assert json.loads(json.dumps(inner.source)) == inner.source


def test_an_official_partition_is_followed():
    fold = np.array([2, 0, 1, 0, 0, 1, 2, 0, 0])
    images = made([0, 0, 1, 1, 0, 0, 1, 1, 0], fold=fold, classes=("a", "b"))
    training, rest = images.split(0.01, seed=0)
    assert which(training).tolist() == np.flatnonzero(fold == 0).tolist()
    assert which(rest).tolist() == np.flatnonzero(fold > 0).tolist()
    assert training.source["parts"] == [{"split": "official", "side": "first", "number": 5}]
    validation, test = rest.split(0.9, seed=7)
    assert which(validation).tolist() == [2, 5] and which(test).tolist() == [0, 6]
    # Of one part nothing official is left to go by.
    inner, outer = training.split(0.4, seed=0)
    assert len(outer) == 2 and set(outer.labels.tolist()) == {0, 1}
    assert outer.source["parts"][-1]["split"] == "stratified" and len(inner) == 3


def test_classes_that_would_be_missing_on_a_side_are_named():
    with pytest.raises(ConfigurationError, match=r"second side .* 'c', .* 4 images in 1 groups"):
        made([0, 0, 1, 1, 2, 2, 2, 2], groups=[0, 1, 2, 3, 4, 4, 4, 4]).split(0.4, seed=0)
    with pytest.raises(ConfigurationError, match=r"'c', of which there are 0 images"):
        made([0, 1] * 10).split(0.5, seed=0)
    official = made([0, 1, 0, 0], fold=[0, 0, 1, 1], classes=("a", "b"))
    with pytest.raises(ConfigurationError, match=r"second side .* 'b'.* read more"):
        official.split(0.5, seed=0)


def test_impossible_divisions_are_refused():
    images = made([0, 1, 2] * 4)
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(ConfigurationError, match="share must lie between 0 and 1"):
            images.split(share, seed=0)
    for seed in (-1, 0.5):
        with pytest.raises(ConfigurationError, match="seed"):
            images.split(0.5, seed=seed)


def test_squares_are_the_centre_without_aliasing(tmp_path):
    stripes = np.zeros((40, 64, 3), dtype=np.uint8)
    stripes[:, :12] = stripes[:, 52:] = 255
    stripes[:, 12:52:2, 1] = 200
    save(tmp_path / "stripes.png", stripes)
    image = read_square(tmp_path / "stripes.png", 10, colour=True)
    assert image.shape == (3, 10, 10) and image.dtype == np.float32
    assert image[[0, 2]].max() == 0
    np.testing.assert_allclose(image[1, :, 1:-1], 100 / 255, atol=0.02)
    # A picture of the size asked for is itself.
    full = read_square(tmp_path / "stripes.png", 40, colour=True)
    np.testing.assert_allclose(full * 255, stripes[:, 12:52].transpose(2, 0, 1), atol=1e-4)


def test_values_are_not_stretched_and_grey_is_luminance(tmp_path):
    colours = np.random.default_rng(0).integers(60, 200, (9, 9, 3), dtype=np.uint8)
    weights = np.array([0.2126, 0.7152, 0.0722])
    alpha = np.full((9, 9, 1), 3, dtype=np.uint8)
    save(tmp_path / "colour.png", colours)
    save(tmp_path / "transparent.png", np.concatenate([colours, alpha], axis=2))
    np.save(tmp_path / "float.npy", colours / 255)
    for name in ("colour.png", "transparent.png", "float.npy"):
        found = read_square(tmp_path / name, 9, colour=True)
        np.testing.assert_allclose(found, colours.transpose(2, 0, 1) / 255, atol=1e-6)
        grey = read_square(tmp_path / name, 9, colour=False)
        np.testing.assert_allclose(grey[0], colours @ weights / 255, atol=1e-6)
    deep = colours[..., 0].astype(np.uint16) * 257
    save(tmp_path / "grey.png", colours[..., 0])
    save(tmp_path / "sixteen bits.png", deep)
    for name in ("grey.png", "sixteen bits.png"):
        found = read_square(tmp_path / name, 9, colour=True)
        np.testing.assert_allclose(found, np.stack([colours[..., 0] / 255] * 3), atol=1e-6)


COUNTS = {"cat": 4, "dog": 6, "owl": 10}


def test_class_folders_have_their_labels(tmp_path):
    write_class_folders(tmp_path, COUNTS)
    save(tmp_path / ".cache" / "thumbnail.png", flat(0))
    images = list_class_folders(tmp_path).read(SIDE)
    assert images.images.shape == (20, 3, SIDE, SIDE) and images.fold is None
    assert images.classes == ("cat", "dog", "owl")
    labels = np.repeat([0, 1, 2], [4, 6, 10])
    assert images.labels.tolist() == labels[numbers(images.images)].tolist()
    assert sorted(numbers(images.images)) == list(range(20))
    assert len(set(images.groups.tolist())) == 20
    assert images.source["number"] == 20 and images.source["layout"] == "class-folders"
    assert list_class_folders(tmp_path).read(SIDE, colour=False).images.shape == (20, 1, SIDE, SIDE)
    training, test = images.split(0.5, seed=0)
    assert np.bincount(test.labels).tolist() == [2, 3, 5]
    assert json.loads(json.dumps(training.source)) == training.source


def test_classes_are_chosen_in_an_order(tmp_path):
    write_class_folders(tmp_path, COUNTS)
    images = list_class_folders(tmp_path).read(SIDE, classes=["owl", "cat"])
    assert images.classes == ("owl", "cat") and np.bincount(images.labels).tolist() == [10, 4]
    assert images.labels.tolist() == [int(n < 4) for n in numbers(images.images)]
    for wrong, message in (
        (["owl", "dgo"], "no class 'dgo'. Did you mean dog"),
        (["owl"], "two or more different classes; got owl"),
        (["owl", "owl"], "two or more different"),
        ([], "got none"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            list_class_folders(tmp_path).read(SIDE, classes=wrong)


def test_case_of_a_class_matters_only_where_two_differ_in_it_alone(tmp_path):
    save(tmp_path / "0.png", flat(0, (SIDE, SIDE)))
    kinds = ["Ab", "aB", "Cd"]
    listed = ListedImages("own", tmp_path, [tmp_path / "0.png"] * 3, kinds, tuple(kinds))
    assert listed.read(SIDE, classes=["cD", "aB"]).classes == ("Cd", "aB")
    with pytest.raises(ConfigurationError, match="no class 'ab'"):
        listed.read(SIDE, classes=["cd", "ab"])


def test_a_part_is_drawn_by_the_same_share_of_every_class(tmp_path):
    write_class_folders(tmp_path, COUNTS)
    half = list_class_folders(tmp_path).read(SIDE, most=10, seed=1)
    assert np.bincount(half.labels).tolist() == [2, 3, 5]
    again = list_class_folders(tmp_path).read(SIDE, most=10, seed=1)
    other = list_class_folders(tmp_path).read(SIDE, most=10, seed=2)
    assert np.array_equal(half.images, again.images) and half.source == again.source
    assert not np.array_equal(half.images, other.images) and half.source != other.source
    assert half.source["most"] == 10 and half.source["names_sha256"] != other.source["names_sha256"]
    assert len(list_class_folders(tmp_path).read(SIDE, most=1000)) == 20
    with pytest.raises(ConfigurationError, match=r"no image of 'cat' .* raise most"):
        list_class_folders(tmp_path).read(SIDE, most=2)


def test_wrong_class_folders_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="no such folder"):
        list_class_folders(tmp_path / "elsewhere").read(SIDE)
    write_class_folders(tmp_path / "only", {"one": 2})
    with pytest.raises(ConfigurationError, match="two or more different classes; got one"):
        list_class_folders(tmp_path / "only").read(SIDE)
    write_class_folders(tmp_path / "parts" / "train", COUNTS)
    write_class_folders(tmp_path / "parts" / "Test", COUNTS)
    with pytest.raises(FileFormatError, match="Test, train look like parts"):
        list_class_folders(tmp_path / "parts").read(SIDE)
    write_class_folders(tmp_path / "loose", COUNTS)
    save(tmp_path / "loose" / "overview.png", flat(0))
    with pytest.raises(FileFormatError, match=r"outside of the subfolders .* overview\.png"):
        list_class_folders(tmp_path / "loose").read(SIDE)
    write_class_folders(tmp_path / "empty", COUNTS)
    (tmp_path / "empty" / "bat").mkdir()
    with pytest.raises(FileFormatError, match="bat: no images in this folder"):
        list_class_folders(tmp_path / "empty").read(SIDE)


def test_all_unfit_images_are_named_in_one_error(tmp_path):
    write_class_folders(tmp_path, COUNTS)
    (tmp_path / "cat" / "text.png").write_text("no image")
    save(tmp_path / "dog" / "small.png", flat(0, (7, 30)))
    np.save(tmp_path / "owl" / "counts.npy", np.arange(100).reshape(10, 10))
    np.save(tmp_path / "owl" / "stretched.npy", np.linspace(0, 255, 100).reshape(10, 10))
    np.save(tmp_path / "owl" / "nan.npy", np.full((10, 10), np.nan))
    with pytest.raises(FileFormatError, match="5 of 25 images cannot be trained on") as caught:
        list_class_folders(tmp_path).read(SIDE)
    text = str(caught.value)
    for name, why in (
        ("text.png", "cannot be read"),
        ("small.png", "7 x 30 pixels"),
        ("counts.npy", "got type int64"),
        ("stretched.npy", "between 0 and 1; got 0 to 255"),
        ("nan.npy", "NaN or infinite"),
    ):
        assert any(name in line and why in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"side": 7}, ConfigurationError, "side must be a whole number, 8 or larger"),
        ({"side": 9.5}, ConfigurationError, "side"),
        ({"most": 0}, ConfigurationError, "most"),
        ({"seed": -1}, ConfigurationError, "seed"),
        ({"side": 10**6}, InsufficientMemoryError, r"20 images .* GiB are free.* fewer images"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, changed, error, message):
    write_class_folders(tmp_path, COUNTS)
    with pytest.raises(error, match=message):
        list_class_folders(tmp_path).read(**{"side": SIDE} | changed)


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_celeba_has_its_attribute_partition_and_people(tmp_path, kind):
    write_celeba(tmp_path, kind=kind)
    # The same names with other pictures, as they were taken.
    save(tmp_path / "Img" / "img_celeba" / "000001.jpg", flat(99))
    images = list_celeba(tmp_path, "smiling").read(SIDE)
    assert images.classes == ("not Smiling", "Smiling")
    assert numbers(images.images) == list(range(36))
    assert images.labels.tolist() == [smiles(n) for n in range(36)]
    assert images.fold.tolist() == [part(n) for n in range(36)]
    groups = [person(n) for n in range(36)]
    assert len(set(images.groups.tolist())) == 12
    assert len(set(zip(images.groups.tolist(), groups, strict=True))) == 12
    assert images.source["grouped_by"] == "person" and images.source["attribute"] == "Smiling"
    training, rest = images.split(0.1, seed=0)
    assert {part(n) for n in numbers(training.images)} == {0}
    validation, test = rest.split(0.1, seed=0)
    assert {part(n) for n in numbers(validation.images)} == {1}
    assert {part(n) for n in numbers(test.images)} == {2}


def test_celeba_without_a_partition_keeps_people_together(tmp_path):
    write_celeba(tmp_path, partition=False)
    images = list_celeba(tmp_path, "Smiling").read(SIDE)
    assert images.fold is None and not images.source["official_partition"]
    sides = [{person(n) for n in numbers(side.images)} for side in images.split(0.3, seed=0)]
    assert not sides[0] & sides[1]
    write_celeba(tmp_path / "alone", partition=False, identity=False)
    alone = list_celeba(tmp_path / "alone", "Smiling").read(SIDE)
    assert len(set(alone.groups.tolist())) == 36 and alone.source["grouped_by"] is None


def test_a_part_of_celeba_keeps_people_and_parts(tmp_path):
    write_celeba(tmp_path)
    images = list_celeba(tmp_path, "Smiling").read(SIDE, most=18)
    found = numbers(images.images)
    assert len(found) == 18 and np.bincount(images.fold).tolist() == [12, 3, 3]
    assert all({person(n), person(n) + 12, person(n) + 24} <= set(found) for n in found)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


ANNO = "Anno/list_attr_celeba.txt"
WRONG_CELEBA = {
    "no table": (lambda f: (f / ANNO).unlink(), "neither is there"),
    "no number": (lambda f: edit(f / ANNO, "36\n", ""), "number of images in the first line"),
    "cut": (lambda f: edit(f / ANNO, "36\n", "37\n"), "says 37 images; 36 are listed"),
    "cut row": (
        lambda f: edit(f / ANNO, "000036.jpg 1", "000036.jpg"),
        "line 38: expected 5 values",
    ),
    "value": (
        lambda f: edit(f / ANNO, "000002.jpg 1 -1", "000002.jpg 1 0"),
        "000002.jpg must be -1 or 1",
    ),
    "twice": (lambda f: edit(f / ANNO, "000002.jpg", "000001.jpg"), "more than once: 000001.jpg"),
    "empty": (lambda f: (f / ANNO).write_text(""), "table is empty"),
    "binary": (lambda f: (f / ANNO).write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "no image": (
        lambda f: (f / "Img/img_align_celeba/000003.jpg").unlink(),
        "1 of the 36 images .* not in a folder img_align_celeba .*: 000003.jpg",
    ),
    "part": (
        lambda f: edit(f / "Eval/list_eval_partition.txt", "1.jpg 0", "1.jpg 3"),
        "0 or 1 or 2",
    ),
    "partition": (
        lambda f: edit(f / "Eval/list_eval_partition.txt", "000004.jpg 0\n", ""),
        "1 of the 36 images are not listed: 000004.jpg",
    ),
    "identity": (
        lambda f: edit(f / "Anno/identity_CelebA.txt", "000004.jpg", "4.jpg"),
        "not listed: 000004.jpg",
    ),
    "two tables": (
        lambda f: write_rows(f / "old" / "list_attr_celeba.txt", [["1"]]),
        "same name and different contents",
    ),
}


@pytest.mark.parametrize("name", WRONG_CELEBA)
def test_wrong_celeba_is_refused(tmp_path, name):
    write_celeba(tmp_path)
    spoil, message = WRONG_CELEBA[name]
    spoil(tmp_path)
    with pytest.raises(FileFormatError, match=message):
        list_celeba(tmp_path, "Smiling").read(SIDE)


def test_unknown_attributes_have_near_names(tmp_path):
    write_celeba(tmp_path)
    with pytest.raises(ConfigurationError, match=r"no attribute 'smile'\. Did you mean Smiling"):
        list_celeba(tmp_path, "smile").read(SIDE)
    with pytest.raises(ConfigurationError, match="Known are Bald, Smiling, Smirking, Young"):
        list_celeba(tmp_path, "Hat").read(SIDE)


def test_people_in_two_parts_are_noticed(tmp_path):
    write_celeba(tmp_path)
    edit(tmp_path / "Eval/list_eval_partition.txt", "000001.jpg 0", "000001.jpg 2")
    with pytest.raises(DataError, match="more than one part of the official partition"):
        list_celeba(tmp_path, "Smiling").read(SIDE)


def test_a_spoilt_csv_of_celeba_is_refused(tmp_path):
    write_celeba(tmp_path, kind="csv")
    edit(tmp_path / "list_attr_celeba.csv", "image_id", "name")
    with pytest.raises(FileFormatError, match="expected the columns image_id, Smiling; image_id"):
        list_celeba(tmp_path, "Smiling").read(SIDE)


@pytest.mark.parametrize("kind", ["csv", "none", "tab", "isic"])
def test_ham10000_keeps_lesions_together(tmp_path, kind):
    write_ham10000(tmp_path, kind)
    rows = lesion_rows()
    images = list_ham10000(tmp_path).read(SIDE)
    assert images.classes == ("bkl", "mel", "nv")
    assert numbers(images.images) == list(range(len(rows)))
    assert [images.classes[label] for label in images.labels] == [row[2] for row in rows]
    lesions = {row[0]: group for row, group in zip(rows, images.groups.tolist(), strict=True)}
    assert [lesions[row[0]] for row in rows] == images.groups.tolist()
    assert len(set(lesions.values())) == len(LESIONS) == 14
    assert images.source["grouped_by"] == "lesion"
    first, second = images.split(0.4, seed=0)
    assert not set(first.groups.tolist()) & set(second.groups.tolist())


def test_ham10000_of_chosen_classes_and_size(tmp_path):
    write_ham10000(tmp_path)
    images = list_ham10000(tmp_path).read(SIDE, classes=["NV", "MEL"])
    assert images.classes == ("nv", "mel") and np.bincount(images.labels).tolist() == [12, 8]
    with pytest.raises(ConfigurationError, match=r"no class 'vas'\. Known are bkl, mel, nv"):
        list_ham10000(tmp_path).read(SIDE, classes=["nv", "vas"])
    few = list_ham10000(tmp_path).read(SIDE, classes=["nv", "mel"], most=10)
    assert len(few) <= 10
    counts = {row[0]: sum(row[0] == other[0] for other in lesion_rows()) for row in lesion_rows()}
    found = [lesion_rows()[n][0] for n in numbers(few.images)]
    assert all(found.count(lesion) == counts[lesion] for lesion in found)


def test_images_that_are_there_twice_must_be_the_same(tmp_path):
    write_ham10000(tmp_path)
    save(tmp_path / "ham10000_images_part_1" / "ISIC_0000000.jpg", flat(0))
    assert len(list_ham10000(tmp_path).read(SIDE)) == 24
    save(tmp_path / "ham10000_images_part_1" / "ISIC_0000000.jpg", flat(1))
    with pytest.raises(FileFormatError, match="same name and different contents"):
        list_ham10000(tmp_path).read(SIDE)


META, TRUTH = "HAM10000_metadata.csv", f"{ISIC}_GroundTruth/{ISIC}_GroundTruth.csv"
WRONG_HAM = {
    "no table": ("csv", lambda f: (f / META).unlink(), "none of them is there"),
    "no column": ("csv", lambda f: edit(f / META, "dx", "diagnosis"), "dx cannot be found"),
    "no lesion": ("csv", lambda f: edit(f / META, "HAM_0000003", ""), "value 1 is missing"),
    "no rows": ("csv", lambda f: write_rows(f / META, [["lesion_id,image_id,dx"]]), "no row"),
    "no image": (
        "csv",
        lambda f: (f / "HAM10000_images_part_2" / "ISIC_0000003.jpg").unlink(),
        "1 of the 24 images that it lists are not in .* ISIC_0000003.jpg. Unpack all",
    ),
    "two ones": ("isic", lambda f: edit(f / TRUTH, "0.0", "1.0"), "a 1 for one diagnosis"),
    "no one": ("isic", lambda f: edit(f / TRUTH, "1.0", "0.0"), "a 1 for one diagnosis"),
    "shares": ("isic", lambda f: edit(f / TRUTH, "1.0", "0.9"), "a 1 for one diagnosis"),
    "no lesions": (
        "isic",
        lambda f: (f / f"{ISIC}_LesionGroupings.csv").unlink(),
        "cannot be kept together",
    ),
    "a lesion": (
        "isic",
        lambda f: edit(f / f"{ISIC}_LesionGroupings.csv", "ISIC_0000005", "ISIC_0000999"),
        "not listed: ISIC_0000005",
    ),
}


@pytest.mark.parametrize("name", WRONG_HAM)
def test_wrong_ham10000_is_refused(tmp_path, name):
    kind, spoil, message = WRONG_HAM[name]
    write_ham10000(tmp_path, kind)
    spoil(tmp_path)
    with pytest.raises(FileFormatError, match=message):
        list_ham10000(tmp_path).read(SIDE)


def test_layouts_are_told_apart_and_read(tmp_path):
    write_class_folders(tmp_path / "class-folders", COUNTS)
    write_celeba(tmp_path / "celeba")
    write_ham10000(tmp_path / "ham10000")
    for name in LAYOUTS:
        assert find_layout(tmp_path / name) == name
        attribute = "Smiling" if name == "celeba" else None
        found = read_labelled(tmp_path / name, SIDE, attribute=attribute, most=20)
        named = read_labelled(tmp_path / name, SIDE, attribute=attribute, most=20, layout=name)
        assert found.source == named.source and found.source["layout"] == name
    images = read_labelled(tmp_path / "ham10000", SIDE, classes=["nv", "mel"], colour=False)
    assert images.classes == ("nv", "mel") and images.images.shape[1] == 1


def test_folders_of_no_or_of_two_layouts_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="no such folder"):
        read_labelled(tmp_path / "elsewhere", SIDE)
    save(tmp_path / "one" / "0.png", flat(0))
    with pytest.raises(FileFormatError, match=r"no known layout(.|\n)*class-folders(.|\n)*celeba"):
        read_labelled(tmp_path, SIDE)
    write_celeba(tmp_path)
    write_ham10000(tmp_path)
    with pytest.raises(FileFormatError, match="holds celeba and ham10000"):
        read_labelled(tmp_path, SIDE)
    with pytest.raises(ConfigurationError, match="layout must be auto, class-folders, celeba"):
        read_labelled(tmp_path, SIDE, layout="folders")


def test_options_of_other_layouts_are_refused(tmp_path):
    write_celeba(tmp_path / "celeba")
    write_class_folders(tmp_path / "folders", COUNTS)
    for options in ({}, {"attribute": "Smiling", "classes": ["a", "b"]}):
        with pytest.raises(ConfigurationError, match="made by an attribute, such as Smiling"):
            read_labelled(tmp_path / "celeba", SIDE, **options)
    with pytest.raises(ConfigurationError, match="CelebA alone; the layout is class-folders"):
        read_labelled(tmp_path / "folders", SIDE, attribute="Smiling")


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (lambda folder: write_class_folders(folder, {"cat": 3, "dog": 4}), {}),
        (write_celeba, {"attribute": "Smiling"}),
        (write_ham10000, {}),
    ],
    ids=["class-folders", "celeba", "ham10000"],
)
def test_reading_tells_how_far_it_is(tmp_path, write, options):
    write(tmp_path)
    told = []
    images = read_labelled(tmp_path, SIDE, progress=lambda *of: told.append(of), **options)
    assert told == [(n + 1, len(images)) for n in range(len(images))]
    again = read_labelled(tmp_path, SIDE, **options)
    assert np.array_equal(again.images, images.images)


def test_what_cannot_be_divided_is_refused_before_it_is_read(tmp_path):
    write_class_folders(tmp_path / "folders", {"cat": 1, "dog": 9})
    write_ham10000(tmp_path / "lesions")
    told = []
    for folder in ("folders", "lesions"):
        # A share that leaves nothing on the second side.
        with pytest.raises(ConfigurationError, match=r"side would have no image of '"):
            read_labelled(
                tmp_path / folder,
                SIDE,
                held_out_share=0.01,
                progress=lambda *of: told.append(of),
            )
    assert not told
    images = read_labelled(tmp_path / "lesions", SIDE, held_out_share=0.4)
    assert len(images.split(0.4, seed=0)[1])


def test_drawing_tells_how_far_it_is():
    told = []
    scene_images(FaceTask(16), 3, seed=0, labels_seed=None, progress=lambda *of: told.append(of))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_scenes_become_labelled_images():
    task = make_task("lesions:4", 16, label_noise=0.3)
    images = scene_images(task, 40, seed=5, labels_seed=None)
    scenes = task.sample(40, seed=5)
    assert images.images.shape == (40, *task.image_shape)
    assert all(np.array_equal(a, b.image) for a, b in zip(images.images, scenes, strict=True))
    assert images.labels.tolist() == [task.label(scene.causes) for scene in scenes]
    assert images.classes == task.classes and images.groups.tolist() == list(range(40))
    noisy = scene_images(task, 40, seed=5, labels_seed=1)
    assert np.array_equal(noisy.images, images.images)
    assert np.array_equal(noisy.labels, task.labels(scenes, seed=1))
    assert 0.1 < (noisy.labels != images.labels).mean() < 0.5
    source = json.loads(json.dumps(noisy.source))
    again = scene_images(
        make_task(**source["task"]), **{n: source[n] for n in ("number", "seed", "labels_seed")}
    )
    assert np.array_equal(again.images, noisy.images) and again.source == noisy.source
    assert np.array_equal(again.labels, noisy.labels)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"number": 0}, "number"), ({"seed": -1}, "seed"), ({"labels_seed": 0.5}, "labels_seed")],
)
def test_impossible_scenes_are_refused(changed, message):
    settings = {"number": 2, "seed": 0, "labels_seed": None} | changed
    with pytest.raises(ConfigurationError, match=f"^{message} must be"):
        scene_images(FaceTask(16), **settings)


def test_tasks_have_names():
    assert task_names() == (
        "faces",
        "faces:smile",
        "faces:glasses",
        "faces:bald",
        "faces:old",
        "lesions",
        "lesions:2",
        "lesions:4",
        "walnuts",
    )
    for name in task_names():
        task = make_task(name, 32)
        assert task.side == 32
        described = describe_task(task)
        assert described["name"].startswith(name)
        assert describe_task(make_task(**described)) == described
    assert make_task("faces:glasses").classes == ("not glasses", "glasses")
    assert make_task("faces").attribute == "smile" and make_task("faces").side == 32
    assert len(make_task("lesions:4").classes) == 4 and make_task("lesions").side == 64
    hard = make_task("lesions", 32, difficulty=3, shortcut=0.9, label_noise=0.0)
    assert isinstance(hard, LesionTask)
    assert (hard.difficulty, hard.shortcut, hard.label_noise) == (3, 0.9, 0.0)


def test_a_task_of_no_name_is_described_by_its_class():
    class Other(FaceTask):
        """One that is not in the catalogue."""

    assert describe_task(Other(20)) == {"name": "Other", "side": 20}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("houses", {}, r"no task 'houses'. Known are faces, faces:smile, .* lesions:4"),
        ("faces:hat", {}, "no task 'faces:hat'"),
        ("faces:", {}, "no task 'faces:'"),
        ("lesions:3", {}, "no task 'lesions:3'"),
        ("faces", {"difficulty": 2}, "no option of faces 'difficulty'. Known are label_noise"),
        ("lesions", {"dificulty": 2}, "Did you mean difficulty"),
        ("faces", {"attribute": "bald"}, "part of its name: faces:bald"),
        ("lesions", {"difficulty": 9}, "difficulty 1, 2 or 3"),
        ("faces", {"side": 3}, "16 pixels or more"),
        ("faces", {"side": 32.5}, r"16 pixels or more .* got 32\.5"),
    ],
)
def test_impossible_tasks_are_refused(name, options, message):
    with pytest.raises(ConfigurationError, match=message):
        make_task(name, **options)
