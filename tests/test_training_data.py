"""Training images and pairs: functions of the index, folds, noise, scale, workers, bad folders."""

import contextlib
import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from itertools import combinations

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dipct import Grid, ParallelGeometry, RayTransform, Scan, reconstruct
from dipct.errors import (
    ConfigurationError,
    DataError,
    DeviceUnavailableError,
    FileFormatError,
    GeometryError,
    ShapeError,
)
from dipct.measurement import GaussianNoise
from dipct.operator import Identity, LinearOperator
from dipct.operator.filtered_backprojection import FilteredBackProjection
from dipct.phantom import seeded_phantom_names
from dipct.pretrain import FOLDS, FolderImages, PhantomImages, TrainingImages, TrainingPairs
from dipct.pretrain.image_files import read_normalised
from dipct.pretrain.images import orientation
from dipct.pretrain.seeds import sample_seed
from dipct.solver import CGLS, iterate
from dipct.solver.image_scale import image_scale, quantiles, quantiles_on_device

N = 16
GRID = Grid((N, N), 0.7)
GEOMETRY = ParallelGeometry(np.arange(10) * np.pi / 10, 23, 0.7)
ELLIPSES = PhantomImages("ellipses", GRID)


@pytest.fixture(scope="module")
def operator():
    return RayTransform(GEOMETRY, GRID)


@pytest.fixture(scope="module")
def fbp():
    return FilteredBackProjection(GEOMETRY, GRID)


def same_bits(one, other):
    return all(
        torch.equal(getattr(one, part), getattr(other, part))
        for part in ("inputs", "targets", "scales")
    )


def worker_processes(parent=None):
    """Processes that one, or this one, started with multiprocessing and that still run."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            running = child.status() != psutil.STATUS_ZOMBIE
            if running and any("spawn_main" in part for part in child.cmdline()):
                found.append(child.pid)
    return found


class Counting(TrainingImages):
    """Deliberately wrong: a new image at every call, whatever the index."""

    calls = 0

    def _draw(self, index):
        self.calls += 1
        return np.full(self.grid.shape, 1 / self.calls)

    def describe(self):
        return {"kind": "counting"}


class SameInEveryFold(PhantomImages):
    """Deliberately wrong: knows nothing of folds."""

    def _draw(self, index):
        return PhantomImages(self.rule, self.grid, "training", self.seed)(index)


class Interrupting(PhantomImages):
    """Sends the process that started this one an interrupt with its ninth image."""

    def _draw(self, index):
        if index == 8:
            os.kill(os.getppid(), signal.SIGINT)
        return super()._draw(index)


class Vanishing(PhantomImages):
    """Finds its third image unreadable."""

    def _draw(self, index):
        if index == 2:
            raise FileFormatError("third.png: the image cannot be read.")
        return super()._draw(index)


# ---------------------------------------------------------------- phantoms


def is_function_of_index(images):
    """Whether images depend on their index alone, also in another process's copy."""
    first = [images(i) for i in range(4)]
    again = [pickle.loads(pickle.dumps(images))(i) for i in (3, 1, 0, 2)]
    return all(
        np.array_equal(first[i], image) for i, image in zip((3, 1, 0, 2), again, strict=True)
    )


@pytest.mark.parametrize("rule", seeded_phantom_names())
def test_phantom_images(rule):
    images = PhantomImages(rule, GRID)
    drawn = [images(i) for i in range(4)]
    for image in drawn:
        assert image.shape == (N, N) and image.dtype == np.float32
        assert image.min() >= 0 and 0.4 < image.max() <= 1
    assert len({image.tobytes() for image in drawn}) == 4
    assert is_function_of_index(images)


def test_images_that_remember_are_noticed():
    assert not is_function_of_index(Counting(GRID, "training", 0))


def shared_images(images, n=12):
    """How many images two folds of a data set have in common."""
    drawn = [{images.of_fold(fold)(i).tobytes() for i in range(n)} for fold in FOLDS]
    return sum(len(one & other) for one, other in combinations(drawn, 2))


def test_folds_and_seeds_share_no_phantom():
    assert shared_images(ELLIPSES) == 0
    assert shared_images(SameInEveryFold("ellipses", GRID)) == 3 * 12
    other = PhantomImages("ellipses", GRID, seed=1)
    assert not {ELLIPSES(i).tobytes() for i in range(12)} & {other(i).tobytes() for i in range(12)}


def test_of_fold_is_the_fold_made_afresh():
    validation = PhantomImages("Ellipses_in disc", GRID, "validation", 5)
    training = PhantomImages("ellipses-in-disc", GRID, seed=5)
    np.testing.assert_array_equal(training.of_fold("validation")(7), validation(7))
    assert training.of_fold("validation").describe() == validation.describe()
    assert validation.describe()["rule"] == "ellipses-in-disc" and training.fold == "training"


def test_seeds_differ_in_every_argument():
    seeds = [
        sample_seed(purpose, seed, fold, index)
        for purpose in ("image", "projection noise", "network input")
        for seed in (0, 1, 2**32, 2**64 + 1)
        for fold in FOLDS
        for index in (0, 1, 2, 100_000)
    ]
    assert len(set(seeds)) == len(seeds) == 3 * 4 * 3 * 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("elipses", GRID), ConfigurationError, "Did you mean ellipses"),
        (("shepp-logan", GRID), ConfigurationError, "always the same"),
        (("ellipses", GRID, "train"), ConfigurationError, "training, validation, test"),
        (("ellipses", GRID, "training", -1), ConfigurationError, "seed"),
        (("ellipses", GRID, "training", 0.5), ConfigurationError, "seed"),
        (("ellipses", Grid((4, 8, 8))), GeometryError, "2-D"),
    ],
)
def test_impossible_phantom_images(arguments, error, message):
    with pytest.raises(error, match=message):
        PhantomImages(*arguments)


@pytest.mark.parametrize("index", [-1, 1.0, True])
def test_impossible_index(index):
    with pytest.raises(ConfigurationError, match="index"):
        ELLIPSES(index)


def test_images_of_another_shape_than_their_grid_are_refused():
    class Wrong(Counting):
        def _draw(self, index):
            return np.zeros((3, 3))

    with pytest.raises(ShapeError, match="training image"):
        Wrong(GRID, "training", 0)(0)


# ---------------------------------------------------------------- folders


def picture(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(path, array)
    else:
        Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    """Twelve images of all kinds and sizes, and what is not an image."""
    shapes = [(20, 20), (8, 8), (30, 17), (16, 16), (33, 40), (64, 64)]
    for i, shape in enumerate(shapes):
        save(tmp_path / f"picture {i}.png", picture(shape, i))
    save(tmp_path / "colour.PNG", picture((21, 19, 3), 6))
    save(tmp_path / "with transparency.png", picture((21, 19, 4), 7))
    save(tmp_path / "photo.jpg", picture((25, 25, 3), 8))
    save(tmp_path / "scan.tif", picture((18, 22), 9).astype(np.uint16) * 200)
    save(tmp_path / "slices" / "floating point.tiff", picture((18, 22), 10) / np.float32(7))
    save(tmp_path / "slices" / "array.npy", -1e-3 * picture((40, 9), 11).astype(np.float64))
    (tmp_path / "README.txt").write_text("pictures")
    save(tmp_path / ".cache" / "thumbnail.png", picture((4, 4)))
    return tmp_path


def test_folder_of_every_kind_and_size(folder):
    images = FolderImages(folder, GRID, validation_share=0.2)
    assert [len(images.of_fold(fold).files) for fold in FOLDS] == [8, 2, 2]
    assert is_function_of_index(images)
    for fold in FOLDS:
        part = images.of_fold(fold)
        for i in range(len(part.files)):
            image = part(i)
            assert image.shape == (N, N) and image.dtype == np.float32
            assert image.min() >= 0 and image.max() <= 1 and np.ptp(image) > 0.2


def test_folder_splits_its_files(folder):
    images = FolderImages(folder, GRID)
    parts = [set(images.of_fold(fold).files) for fold in FOLDS]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 12
    assert all(path.suffix != ".txt" and ".cache" not in path.parts for path in images.files)
    # The split knows nothing of the seed: the folds of two runs do not mix.
    assert FolderImages(folder, GRID, "validation", 3).files == images.of_fold("validation").files
    alone = FolderImages(folder, GRID, validation_share=0)
    assert len(alone.files) == 12
    with pytest.raises(ConfigurationError, match="larger validation_share"):
        alone.of_fold("validation")


def plain(path):
    """A file of the shape of the grid as it is used, without any turn."""
    image = np.asarray(Image.open(path)).astype(np.float64)
    return (image - image.min()) / np.ptp(image)


def test_every_pass_shows_every_file_once_in_some_orientation(tmp_path):
    for i in range(6):
        save(tmp_path / f"{i}.png", picture((N, N), i))
    images = FolderImages(tmp_path, GRID)
    known = {
        (path, which): orientation(plain(path), which)
        for path in images.files
        for which in range(8)
    }

    def shown(index, of):
        drawn = of(index)
        (found,) = [key for key, image in known.items() if np.abs(image - drawn).max() < 1e-6]
        return found

    n = len(images.files)
    passes = [[shown(k * n + i, images) for i in range(n)] for k in range(12)]
    for each in passes:
        assert {path for path, _ in each} == set(images.files)
    assert len({tuple(path for path, _ in each) for each in passes}) > 1
    assert {which for each in passes for _, which in each} == set(range(8))
    # Validation images lie as they are.
    validation = images.of_fold("validation")
    assert any(np.abs(plain(path) - validation(0)).max() < 1e-6 for path in validation.files)


def test_orientations_are_eight():
    image = picture((5, 5))
    assert len({orientation(image, which).tobytes() for which in range(8)}) == 8
    np.testing.assert_array_equal(orientation(image, 0), image)


def test_images_are_cropped_to_the_centre_and_resized_without_aliasing(tmp_path):
    stripes = np.zeros((40, 64), dtype=np.uint8)
    # Outside the centred square; it would rule the values otherwise.
    stripes[:, :10] = 255
    stripes[:, 12:52:2] = 100
    save(tmp_path / "stripes.png", stripes)
    full = read_normalised(tmp_path / "stripes.png", 1.0)
    assert full.shape == (40, 40) and full.max() == 1
    images = FolderImages(tmp_path, Grid((10, 10)), validation_share=0)
    # Every second column alone would be all light or all dark.
    assert np.abs(images(0)[:, 1:-1] - 0.5).max() < 0.1
    wide = FolderImages(tmp_path, Grid((8, 16)), validation_share=0)
    assert read_normalised(tmp_path / "stripes.png", 0.5).shape == (32, 64)
    assert wide(0)[:, :2].min() > 0.9


def test_colours_become_luminance(tmp_path):
    colours = picture((9, 9, 3))
    expected = colours @ np.array([0.2126, 0.7152, 0.0722])
    expected = (expected - expected.min()) / np.ptp(expected)
    for name in ("colour.png", "colour.tif", "colour.npy"):
        save(tmp_path / name, colours)
        np.testing.assert_allclose(read_normalised(tmp_path / name, 1.0), expected, atol=1e-6)
    palette = Image.fromarray(colours).quantize(16)
    palette.save(tmp_path / "palette.png")
    as_colours = np.asarray(palette.convert("RGB"))
    save(tmp_path / "as colours.png", as_colours)
    np.testing.assert_array_equal(
        read_normalised(tmp_path / "palette.png", 1.0),
        read_normalised(tmp_path / "as colours.png", 1.0),
    )


def truncate(path):
    save(path, picture((60, 60)))
    path.write_bytes(path.read_bytes()[:1000])


BAD = {
    "truncated.png": (truncate, FileFormatError, "cannot be read"),
    "truncated.tif": (truncate, FileFormatError, "cannot be read"),
    "truncated.npy": (truncate, FileFormatError, "cannot be read"),
    "empty.jpg": (lambda path: path.write_bytes(b""), FileFormatError, "cannot be read"),
    "empty.npy": (lambda path: path.write_bytes(b""), FileFormatError, "cannot be read"),
    "text.tiff": (lambda path: path.write_text("hello"), FileFormatError, "cannot be read"),
    "objects.npy": (
        lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
        FileFormatError,
        "cannot be read",
    ),
    "complex.npy": (lambda path: save(path, np.eye(9) * 1j), FileFormatError, "real grey"),
    "stack.npy": (lambda path: save(path, np.zeros((9, 9, 9))), FileFormatError, "one by one"),
    "stack.tif": (
        lambda path: save(path, picture((9, 20, 20))),
        FileFormatError,
        r"one image \[H W\]",
    ),
    "small.png": (lambda path: save(path, picture((7, 90))), FileFormatError, "7 x 90 pixels"),
    "nan.npy": (lambda path: save(path, np.eye(9) * np.nan), DataError, "NaN or infinite"),
    "infinite.npy": (lambda path: save(path, np.eye(9) / 1e-320), DataError, "NaN or infinite"),
    "constant.png": (
        lambda path: save(path, np.full((9, 9), 7, np.uint8)),
        DataError,
        "the image is constant",
    ),
    "constant middle.png": (
        lambda path: save(
            path, np.pad(np.zeros((9, 9), np.uint8), ((0, 0), (9, 9)), "edge") + MARK
        ),
        DataError,
        "the part of it that is used is constant",
    ),
}
MARK = np.pad(np.zeros((9, 25), np.uint8), ((0, 0), (2, 0)), constant_values=200)


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("name", BAD)
def test_unfit_files_are_named(tmp_path, name):
    for i in range(3):
        save(tmp_path / f"good {i}.png", picture((20, 20), i))
    FolderImages(tmp_path, GRID)
    make, error, message = BAD[name]
    make(tmp_path / name)
    with pytest.raises(error, match=message) as caught:
        FolderImages(tmp_path, GRID)
    text = str(caught.value)
    assert name in text and "1 of 4" in text and "remove or replace" in text
    assert "good" not in text


def test_all_unfit_files_are_named_up_to_ten(tmp_path):
    for i in range(13):
        save(tmp_path / f"small {i:02}.png", picture((5, 5), i))
    with pytest.raises(FileFormatError, match=r"13 of 13(.|\n)*small 09(.|\n)*and 3 more"):
        FolderImages(tmp_path, GRID)


def test_folders_without_images(tmp_path):
    with pytest.raises(FileFormatError, match="no images in this folder"):
        FolderImages(tmp_path, GRID)
    with pytest.raises(FileFormatError, match="no such folder"):
        FolderImages(tmp_path / "elsewhere", GRID)
    save(tmp_path / "only.png", picture((20, 20)))
    with pytest.raises(ConfigurationError, match="Add images"):
        FolderImages(tmp_path, GRID)
    with pytest.raises(ConfigurationError, match=r"below 0\.5"):
        FolderImages(tmp_path, GRID, validation_share=0.5)


def test_a_file_lost_after_the_check_is_named(folder):
    images = FolderImages(folder, GRID)
    for path in images.files:
        path.unlink()
    with pytest.raises(FileFormatError, match="cannot be read"):
        images(0)


def test_description_of_a_folder_knows_its_files(folder):
    before = FolderImages(folder, GRID).describe()
    assert before == FolderImages(folder, GRID).describe()
    save(folder / "one more.png", picture((20, 20)))
    assert FolderImages(folder, GRID).describe()["names_sha256"] != before["names_sha256"]


# ---------------------------------------------------------------- scale


def test_scale_of_a_batch_is_that_of_every_element(operator):
    images = torch.stack([torch.from_numpy(ELLIPSES(i)) * 10.0**i for i in range(4)])
    images[3] = 0
    data = operator(images[:, None]).reshape(2, 2, *operator.range_shape)
    for quantile in (0.99, 1.0):
        scales = image_scale(operator, data, quantile=quantile)
        alone = [
            [float(image_scale(operator, one, quantile=quantile)) for one in row] for row in data
        ]
        np.testing.assert_allclose(scales, alone, rtol=1e-5)
        assert scales.dtype == torch.float64 and scales.shape == (2, 2)
        assert scales[1, 1] == 1.0 and len(scales.unique()) == 4


def test_scale_is_the_quantile_of_a_blurred_image(operator):
    data = operator(torch.from_numpy(ELLIPSES(1))[None])
    image = iterate(CGLS(operator, data), max_iterations=5).value
    assert float(image_scale(operator, data)) == float(np.quantile(image.numpy(), 0.99))
    with pytest.raises(ConfigurationError, match="from 0 to 1"):
        image_scale(operator, data, quantile=99)


class InterruptedOperator(LinearOperator):
    """Is interrupted when it is applied for the fourth time, and never again."""

    def __init__(self, operator):
        self.domain_shape, self.range_shape = operator.domain_shape, operator.range_shape
        self.operator, self.calls = operator, 0

    def _apply(self, x):
        self.calls += 1
        if self.calls == 4:
            signal.raise_signal(signal.SIGINT)
        return self.operator(x)

    def _apply_adjoint(self, y):
        return self.operator.adjoint(y)


def test_an_interrupt_is_not_taken_for_a_scale(operator):
    data = operator(torch.from_numpy(ELLIPSES(1))[None])
    with pytest.raises(KeyboardInterrupt):
        image_scale(InterruptedOperator(operator), data)


@pytest.mark.parametrize("n", [1, 2, 100, 1001])
@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.99, 1.0])
def test_quantiles_are_the_same_on_a_device(n, quantile):
    values = torch.from_numpy(np.random.default_rng(n).standard_normal((3, 2, n))).float()
    expected = np.quantile(values.numpy(), quantile, axis=-1)
    np.testing.assert_allclose(quantiles(values, quantile), expected, rtol=1e-6)
    np.testing.assert_allclose(quantiles_on_device(values, quantile), expected, rtol=1e-4)


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize("kind", ["fbp", "noise", "both"])
def test_batch_is_its_pairs_one_by_one(operator, fbp, kind):
    pairs = TrainingPairs(ELLIPSES, operator, fbp, input=kind)
    batch = pairs.batch([5, 2, 9])
    assert batch.inputs.shape == (3, 2 if kind == "both" else 1, N, N)
    assert batch.inputs.shape[1] == pairs.channels
    assert batch.targets.shape == (3, 1, N, N) and batch.scales.shape == (3,)
    for row, index in enumerate([5, 2, 9]):
        alone = pairs.batch([index])
        for part in ("inputs", "targets", "scales"):
            found, expected = getattr(batch, part)[row], getattr(alone, part)[0]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert same_bits(batch, pairs.batch([5, 2, 9]))
    assert not same_bits(batch, pairs.batch([5, 2, 8]))


def test_targets_are_the_images_by_their_scale(operator, fbp):
    pair = TrainingPairs(ELLIPSES, operator, fbp).batch([3, 4])
    restored = pair.targets * pair.scales[:, None, None, None].float()
    expected = np.stack([ELLIPSES(3), ELLIPSES(4)])[:, None]
    np.testing.assert_allclose(restored, expected, atol=1e-6)
    assert pair.targets.dtype == pair.inputs.dtype == torch.float32
    assert 0.5 < pair.targets.max() < 3


@pytest.mark.parametrize("level", [0.0, 0.05, 0.5])
def test_noise_has_the_level_that_was_asked_for(level):
    grid = Grid((64, 64))
    images = PhantomImages("rectangles", grid)
    # Through the identity the input is the image with its noise.
    pairs = TrainingPairs(
        images, Identity(grid.image_shape), Identity(grid.image_shape), noise_level=level
    )
    pair = pairs.batch([0, 1, 2])
    noise = (pair.inputs - pair.targets)[:, 0].double() * pair.scales[:, None, None]
    for i in range(3):
        std = level * np.abs(images(i)).mean()
        assert float(noise[i].std()) == pytest.approx(std, rel=5 / np.sqrt(2 * 64**2), abs=1e-6)
        assert abs(float(noise[i].mean())) <= 5 * std / 64 + 1e-6
    if level:
        unit = noise / noise.std((1, 2), keepdim=True)
        products = [float((unit[i] * unit[j]).mean()) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert np.abs(products).max() < 5 / 64


def test_noise_differs_between_seeds_and_folds(operator, fbp):
    def first(seed, fold):
        images = SameInEveryFold("ellipses", GRID, fold)
        return TrainingPairs(images, operator, fbp, input="both", seed=seed).batch([0]).inputs

    drawn = [first(0, "training"), first(1, "training"), first(0, "validation")]
    for one, other in combinations(drawn, 2):
        differs = (one - other).abs().amax((0, 2, 3))
        assert (differs > 0.01).all()


@pytest.mark.parametrize("output", ["identity", "sigmoid"])
def test_inputs_and_scale_are_those_of_a_reconstruction(operator, fbp, output):
    pair = TrainingPairs(ELLIPSES, operator, fbp, input="both", seed=4).batch([6])
    truth = ELLIPSES(6)
    clean = operator(torch.from_numpy(truth)[None]).numpy()
    rng = np.random.default_rng(sample_seed("projection noise", 4, "training", 6))
    std = 0.05 * np.abs(clean).mean()
    noisy = clean + std * rng.standard_normal(clean.shape, dtype=np.float32)
    scan = Scan(noisy, GEOMETRY, GRID, noise=GaussianNoise(float(std)))
    run = reconstruct(
        scan,
        method="dip",
        network="small",
        output=output,
        input="fbp",
        iterations=1,
        tv_weight=4.0,
        stopping="none",
        precision="float32",
    )
    assert run.configuration["image_scale"] == pytest.approx(float(pair.scales), rel=1e-5)
    np.testing.assert_allclose(run.generator["input"][0], pair.inputs[0, 1], atol=1e-4)
    # The noise that the network is fed with is of the same kind.
    assert float(pair.inputs[0, 0].std()) == pytest.approx(0.1, rel=5 / np.sqrt(2 * N * N))


def test_an_image_of_nothing_is_no_trouble(operator, fbp):
    class Nothing(Counting):
        def _draw(self, index):
            return np.zeros(self.grid.shape)

    pair = TrainingPairs(Nothing(GRID, "training", 0), operator, fbp).batch([0, 1])
    assert not pair.inputs.any() and not pair.targets.any() and (pair.scales == 1).all()


def test_pairs_follow_the_type_of_the_operator(operator, fbp):
    fine = TrainingPairs(ELLIPSES, operator.to(dtype=torch.float64), fbp).batch([0, 1])
    coarse = TrainingPairs(ELLIPSES, operator, fbp).batch([0, 1])
    assert fine.inputs.dtype == torch.float64
    torch.testing.assert_close(fine.inputs.float(), coarse.inputs, rtol=1e-4, atol=1e-4)


def test_description_is_plain(operator, fbp, tmp_path):
    description = TrainingPairs(ELLIPSES, operator, fbp, noise_level=0.1, seed=2).describe()
    assert description["images"] == ELLIPSES.describe()
    assert (description["noise_level"], description["seed"], description["input"]) == (
        0.1,
        2,
        "fbp",
    )
    torch.save(description, tmp_path / "description.pt")
    assert torch.load(tmp_path / "description.pt", weights_only=True) == description


def test_objects_that_do_not_fit_are_refused(operator, fbp):
    other = Grid((N, N + 1), 0.7)
    with pytest.raises(ShapeError, match="grid of the scan"):
        TrainingPairs(PhantomImages("ellipses", other), operator, fbp)
    with pytest.raises(ShapeError, match="one scan"):
        TrainingPairs(ELLIPSES, operator, FilteredBackProjection(GEOMETRY, other))
    with pytest.raises(ShapeError, match="one scan"):
        TrainingPairs(ELLIPSES, operator, operator)
    with pytest.raises(ConfigurationError, match="input noise"):
        TrainingPairs(ELLIPSES, operator)
    assert TrainingPairs(ELLIPSES, operator, input="noise").batch([0]).inputs.shape == (1, 1, N, N)
    unmatched = copy.copy(operator)
    unmatched.matched = False
    with pytest.raises(ConfigurationError, match="exact transpose"):
        TrainingPairs(ELLIPSES, unmatched, fbp)
    with pytest.raises(DeviceUnavailableError, match="cuda:99"):
        TrainingPairs(ELLIPSES, operator, fbp, device="cuda:99")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_level", -0.1),
        ("noise_level", np.nan),
        ("input", "image"),
        ("seed", -1),
        ("workers", -1),
        ("workers", 1.5),
    ],
)
def test_impossible_settings(operator, fbp, name, value):
    with pytest.raises(ConfigurationError, match=name):
        TrainingPairs(ELLIPSES, operator, fbp, **{name: value})


@pytest.mark.parametrize("indices", [[], [-1], [0.5]])
def test_impossible_indices(operator, fbp, indices):
    with pytest.raises(ConfigurationError, match="index"):
        TrainingPairs(ELLIPSES, operator, fbp).batch(indices)


# ---------------------------------------------------------------- streams


def test_stream_is_the_batches_of_its_steps(operator, fbp):
    pairs = TrainingPairs(ELLIPSES, operator, fbp)
    whole = list(pairs.stream(0, 4, 3))
    assert len(whole) == 4
    for step, pair in enumerate(whole):
        assert same_bits(pair, pairs.batch(range(3 * step, 3 * step + 3)))
    resumed = list(pairs.stream(2, 4, 3))
    assert all(same_bits(one, other) for one, other in zip(whole[2:], resumed, strict=True))
    assert list(pairs.stream(4, 4, 3)) == []


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_joint_batch(operator, fbp, world):
    pairs = TrainingPairs(ELLIPSES, operator, fbp, input="both")
    ranks = [list(pairs.stream(1, 3, 2, rank=rank, world=world)) for rank in range(world)]
    joint = list(pairs.stream(1, 3, 2 * world))

    def agree(parts):
        return all(
            torch.allclose(
                torch.cat([getattr(part, name) for part in step]), getattr(whole, name), atol=1e-5
            )
            for name in ("inputs", "targets")
            for step, whole in zip(zip(*parts, strict=True), joint, strict=True)
        )

    assert agree(ranks)
    assert not agree(ranks[::-1])
    assert not agree([ranks[0]] * world)


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": -1},
        {"start": 3, "stop": 2},
        {"batch": 0},
        {"world": 0},
        {"rank": 2, "world": 2},
        {"rank": -1},
    ],
)
def test_impossible_streams_are_refused_at_once(operator, fbp, arguments):
    with pytest.raises(ConfigurationError):
        TrainingPairs(ELLIPSES, operator, fbp).stream(
            **{"start": 0, "stop": 1, "batch": 1} | arguments
        )


def test_workers_change_nothing_and_end_when_the_stream_is_closed(operator, fbp):
    global_state = torch.get_rng_state()
    alone = TrainingPairs(ELLIPSES, operator, fbp, input="both")
    helped = TrainingPairs(ELLIPSES, operator, fbp, input="both", workers=2)
    expected = list(alone.stream(3, 7, 3))
    with contextlib.closing(helped.stream(3, 1000, 3)) as stream:
        for pair in expected:
            assert same_bits(next(stream), pair)
        assert len(worker_processes()) == 2
    assert worker_processes() == []
    assert torch.equal(torch.get_rng_state(), global_state)


def test_an_error_in_a_worker_arrives_as_it_was(operator, fbp):
    pairs = TrainingPairs(Vanishing("ellipses", GRID), operator, fbp, workers=1)
    stream = pairs.stream(0, 3, 2)
    next(stream)
    with pytest.raises(FileFormatError) as caught:
        next(stream)
    assert str(caught.value) == "third.png: the image cannot be read."
    assert worker_processes() == []


def test_an_interrupt_leaves_no_workers(operator, fbp):
    pairs = TrainingPairs(Interrupting("ellipses", GRID), operator, fbp, workers=1)
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        contextlib.closing(pairs.stream(0, 30, 2)) as stream,
    ):
        for _ in stream:
            pass
    # The traceback still refers to all that was there.
    assert caught.value.__traceback__ is not None
    assert worker_processes() == []


SCRIPT = """
import numpy as np
from dipct import Grid, ParallelGeometry, RayTransform
from dipct.pretrain import PhantomImages, TrainingPairs

if __name__ == "__main__":
    grid = Grid((16, 16))
    operator = RayTransform(ParallelGeometry(np.arange(4) * np.pi / 4, 23, 1.0), grid)
    images = PhantomImages("ellipses", grid)
    pairs = TrainingPairs(images, operator, input="noise", workers=2)
    print("starting", flush=True)
    try:
        for pair in pairs.stream(0, 10**6, 2):
            print("step", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting", "at work"])
def test_ctrl_c_in_a_terminal_ends_all_processes_without_a_word(tmp_path, moment):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    # A terminal sends the interrupt to the whole group.
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "starting\n"
        while len(worker_processes(process.pid)) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        if moment == "at work":
            assert process.stdout.readline() == "step\n"
        else:
            # They are loading libraries, and do not expect an interrupt yet.
            time.sleep(0.3)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert out.endswith("interrupted\n") and err == "" and process.returncode == 0
    deadline = time.monotonic() + 20
    while any(child.is_running() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(child.is_running() for child in children)
