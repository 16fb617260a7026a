"""Readers of public data sets: orientation, order and units; clear refusals."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
from scipy import sparse

from dipct.errors import DataError, DipctError, FileFormatError, GeometryError
from dipct.measurement.geometry import (
    ConeSliceGeometry,
    FanGeometry,
    MatrixGeometry,
    ParallelGeometry,
    VectorGeometry,
)
from dipct.measurement.noise import PoissonNoise
from dipct.measurement.readers import (
    read_cwi_walnut,
    read_data_exchange,
    read_fips,
    read_htc2022,
    read_htc2022_reference,
    read_scan,
)
from dipct.measurement.scan_file import write_scan

needs_data = pytest.mark.skipif(
    "DIPCT_DATA" not in os.environ, reason="DIPCT_DATA does not name the folder of public data"
)


def data(name):
    return Path(os.environ["DIPCT_DATA"]) / name


# --- CWI walnuts -----------------------------------------------------------------------------

N_ROWS, N_COLUMNS, N_VIEWS = 24, 32, 24
ATTENUATION = 0.03
# Off-centre in all directions, in the world of the data set (y not yet mirrored).
CENTRE, RADIUS = (5.0, 8.0), 6.0
WALNUT = {"n_voxels": 21, "n_slices": 9, "voxel_size": 2.0, "slice_offset": 3}
STACK = (-9.0, 9.0)
LYING = (-6.0, 14.0)


def cylinder_lengths(rays, centre, bounds):
    """Path of each ray through an upright cylinder between two heights."""
    origin, direction = rays.origins, rays.directions
    offset = origin[..., :2] - np.asarray(centre)
    a = np.sum(direction[..., :2] ** 2, -1)
    b = np.sum(offset * direction[..., :2], -1)
    root = b**2 - a * (np.sum(offset**2, -1) - RADIUS**2)
    half = np.sqrt(np.maximum(root, 0))
    with np.errstate(divide="ignore"):
        z = np.sort((np.array(bounds) - origin[..., 2:]) / direction[..., 2:], axis=-1)
    enter = np.maximum((-b - half) / a, z[..., 0])
    leave = np.minimum((-b + half) / a, z[..., 1])
    length = np.maximum(leave - enter, 0) * np.linalg.norm(direction, axis=-1)
    return np.where(root > 0, length, 0.0)


def walnut_vectors():
    """Per-view geometry, in the data set's world, not quite a circle; the last view repeats."""
    rng = np.random.default_rng(5)
    angles = np.arange(N_VIEWS + 1) * 2 * np.pi / N_VIEWS
    sin, cos, zero = np.sin(angles), np.cos(angles), np.zeros(N_VIEWS + 1)
    source = np.stack([66 * sin, -66 * cos, zero + 6], 1)
    detector = np.stack([-133 * sin, 133 * cos, zero + 5], 1)
    source += rng.normal(0, 0.5, source.shape)
    detector += rng.normal(0, 2, detector.shape)
    u = np.stack([5 * cos, 5 * sin, zero + 0.1], 1)
    v = np.stack([zero, zero + 0.1, zero + 4], 1)
    return np.concatenate([source, detector, u, v], 1)


def make_walnut(root, bounds=LYING, mistake=None):
    """A walnut folder in the published layout: counts of an off-centre cylinder."""
    tube = root / "Walnut1" / "Projections" / "tubeV2"
    tube.mkdir(parents=True)
    vectors = walnut_vectors()
    np.savetxt(tube / "scan_geom_corrected.geom", vectors)
    rays = VectorGeometry(vectors, N_ROWS, N_COLUMNS).rays()
    integrals = ATTENUATION * cylinder_lengths(rays, CENTRE, bounds)
    rng = np.random.default_rng(6)
    dark = rng.uniform(90, 110, (N_ROWS, N_COLUMNS))
    beam = rng.uniform(40000, 55000, (N_ROWS, N_COLUMNS))

    def write(name, picture):
        # The reader turns a stored picture upside down and transposes it: here the other way.
        stored = np.flipud(picture.T)
        if mistake == "not flipped":
            stored = picture.T
        elif mistake == "flipped sideways":
            stored = np.fliplr(picture.T)
        elif mistake == "shifted by a column":
            stored = np.flipud(np.roll(picture, 1, axis=1).T)
        elif mistake == "shifted by a row":
            stored = np.flipud(np.roll(picture, 1, axis=0).T)
        tifffile.imwrite(tube / name, np.round(stored).astype(np.uint16))

    write("di000000.tif", dark)
    write("io000000.tif", dark + 0.9 * beam)
    write("io000001.tif", dark + 1.1 * beam)
    for view in range(N_VIEWS + 1):
        number = {"in order": view, "one late": (N_VIEWS - 1 - view) % N_VIEWS}.get(
            mistake, N_VIEWS - view
        )
        write(f"scan_{number:06d}.tif", dark + beam * np.exp(-integrals[view]))
    if mistake == "one late":
        write(f"scan_{N_VIEWS:06d}.tif", dark + beam * np.exp(-integrals[-1]))
    # As published: a volume whose first row is at the smallest y.
    x = (np.arange(21) - 10) * 2.0
    inside = (x[None, :] - CENTRE[0]) ** 2 + (x[:, None] - CENTRE[1]) ** 2 < RADIUS**2
    reconstructions = root / "Walnut1" / "Reconstructions"
    reconstructions.mkdir()
    published = ATTENUATION * inside.astype(np.float32)
    if mistake == "picture upside down":
        published = published[::-1]
    tifffile.imwrite(reconstructions / "full_AGD_50_000013.tiff", published)
    return root / "Walnut1"


def mirrored_cylinder(scan, bounds):
    """What our geometry should measure of the cylinder: y points the other way in our world."""
    return ATTENUATION * cylinder_lengths(scan.geometry.rays(), (CENTRE[0], -CENTRE[1]), bounds)


def worst_error(scan, bounds):
    return np.abs(scan.projections - mirrored_cylinder(scan, bounds)).max()


# Rounding of counts to integers, at about 40000 x exp(-0.4) counts.
ROUNDING = 2e-4


@pytest.mark.parametrize(("view_step", "column_step"), [(1, 1), (3, 1), (5, 6), (24, 5)])
def test_walnut_volume_has_every_value_at_its_ray(tmp_path, view_step, column_step):
    folder = make_walnut(tmp_path)
    scan = read_cwi_walnut(
        folder, mode="volume", view_step=view_step, column_step=column_step, **WALNUT
    )
    assert isinstance(scan.geometry, VectorGeometry)
    assert scan.projections.shape == (
        -(-N_VIEWS // view_step),
        N_ROWS,
        -(-N_COLUMNS // column_step),
    )
    assert scan.grid.shape == (21, 21, 21)
    assert scan.projections.max() > 0.3
    assert worst_error(scan, LYING) < ROUNDING


MISTAKES = ["not flipped", "flipped sideways", "shifted by a column", "in order", "one late"]


# In the slice mode an upright cylinder looks nearly the same one row higher.
@pytest.mark.parametrize(
    ("mode", "mistake"),
    [(mode, mistake) for mode in ("volume", "slice") for mistake in MISTAKES]
    + [("volume", "shifted by a row")],
)
def test_a_wrong_order_or_flip_of_walnut_pictures_is_noticed(tmp_path, mode, mistake):
    bounds = LYING if mode == "volume" else STACK
    folder = make_walnut(tmp_path, bounds, mistake)
    scan = read_cwi_walnut(folder, mode=mode, view_step=1, column_step=1, **WALNUT)
    assert worst_error(scan, bounds) > 100 * ROUNDING


def test_walnut_slice_has_every_value_at_its_ray(tmp_path):
    folder = make_walnut(tmp_path, STACK)
    scan = read_cwi_walnut(folder, view_step=2, column_step=3, **WALNUT)
    assert isinstance(scan.geometry, ConeSliceGeometry)
    assert scan.projections.shape == (12, 11)
    assert scan.geometry.z_bounds == STACK
    assert scan.projections.max() > 0.3
    assert worst_error(scan, STACK) < ROUNDING
    # The rays chosen lie in the slice where they pass the axis.
    rays = scan.geometry.rays()
    length = np.sum(rays.directions[..., :2] ** 2, -1)
    t = -np.sum(rays.origins[..., :2] * rays.directions[..., :2], -1) / length
    z = rays.origins[..., 2] + t * rays.directions[..., 2]
    assert np.abs(z - 6.0)[scan.projections > 0.05].max() < 1.0


@pytest.mark.parametrize("mistake", [None, "picture upside down"])
def test_walnut_truth_lies_where_the_rays_find_it(tmp_path, mistake):
    scan = read_cwi_walnut(make_walnut(tmp_path, STACK, mistake), **WALNUT)
    assert "50 accelerated gradient steps, slice 13" in scan.truth_source
    y, x = scan.grid.axes()
    inside = np.hypot(x[None, :] - CENTRE[0], y[:, None] + CENTRE[1]) < RADIUS
    agree = np.array_equal(scan.truth, ATTENUATION * inside.astype(np.float32))
    assert agree == (mistake is None)


def test_walnut_rows_given_or_found_choose_the_same_rays(tmp_path):
    folder = make_walnut(tmp_path)
    options = {"view_step": 3, "column_step": 4, **WALNUT}
    found = read_cwi_walnut(folder, **options)
    every = read_cwi_walnut(folder, rows=(0, N_ROWS - 1), **options)
    assert int(found.metadata["rows"].split()[0]) > 0
    np.testing.assert_array_equal(found.projections, every.projections)
    np.testing.assert_allclose(
        found.geometry.rays().directions, every.geometry.rays().directions, atol=1e-12
    )
    assert read_cwi_walnut(folder, rows=(11, 13), **options).geometry.n_rows == 3


def test_walnut_folder_may_be_an_inner_one_and_only_needed_files_are_read(tmp_path):
    walnut = make_walnut(tmp_path)
    options = {"mode": "volume", "view_step": 6, **WALNUT}
    whole = read_cwi_walnut(walnut, **options)
    tube = walnut / "Projections" / "tubeV2"
    for number in range(N_VIEWS + 1):
        if number % 6 or number == 0:
            (tube / f"scan_{number:06d}.tif").unlink()
    for folder in (walnut, walnut / "Projections", tube):
        scan = read_cwi_walnut(folder, **options)
        np.testing.assert_array_equal(scan.projections, whole.projections)
        assert scan.metadata["source"] == "Walnut1, orbit 2"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def rewrite_geometry(change):
    def apply(tube):
        path = tube / "scan_geom_corrected.geom"
        np.savetxt(path, change(np.loadtxt(path)))

    return apply


def store(name, value):
    def apply(tube):
        picture = tifffile.imread(tube / name).astype(np.float32)
        tifffile.imwrite(tube / name, value(picture), photometric="minisblack")

    return apply


def with_nan(array):
    array = array.astype(np.float32)
    array.flat[5] = np.nan
    return array


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: (t / "scan_000014.tif").unlink(), FileFormatError, r"scan_000014\.tif"),
        (lambda t: (t / "di000000.tif").unlink(), FileFormatError, r"di000000\.tif"),
        (lambda t: (t / "io000001.tif").unlink(), FileFormatError, r"io000001\.tif"),
        (lambda t: truncate(t / "scan_000014.tif"), FileFormatError, r"scan_000014\.tif.*trunc"),
        (lambda t: truncate(t / "di000000.tif"), FileFormatError, r"di000000\.tif.*truncated"),
        (
            lambda t: (t / "scan_000014.tif").write_text("no picture"),
            FileFormatError,
            r"scan_000014\.tif: expected a TIFF",
        ),
        (store("scan_000014.tif", lambda p: p[1:]), FileFormatError, r"scan_000014\.tif"),
        (store("scan_000014.tif", lambda p: np.stack([p] * 3)), FileFormatError, "one grey"),
        (store("scan_000014.tif", with_nan), DataError, "NaN"),
        (store("io000000.tif", lambda p: -p), DataError, "flat"),
        (store("io000001.tif", np.zeros_like), DataError, "flat"),
        (
            lambda t: [store(f"io00000{i}.tif", np.zeros_like)(t) for i in (0, 1)],
            DataError,
            "flat",
        ),
        (rewrite_geometry(lambda g: g[:20]), GeometryError, "25 pictures.*20 views"),
        (rewrite_geometry(lambda g: np.vstack([g, g])), FileFormatError, r"scan_0000.*missing"),
        (rewrite_geometry(lambda g: g[:, :11]), FileFormatError, "12 numbers"),
        (rewrite_geometry(with_nan), GeometryError, r"geom: .*view 0"),
        (
            lambda t: (t / "scan_geom_corrected.geom").write_text("1 2 three"),
            FileFormatError,
            r"geom: expected lines of 12 numbers",
        ),
    ],
)
def test_damaged_walnut_folders_are_refused(tmp_path, change, error, message):
    walnut = make_walnut(tmp_path)
    tube = walnut / "Projections" / "tubeV2"
    change(tube)
    with pytest.raises(error, match=message) as caught:
        read_cwi_walnut(walnut, mode="volume", column_step=1, **WALNUT)
    assert isinstance(caught.value, DipctError)
    assert str(tube) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view_step": 0}, "view_step"),
        ({"column_step": -1}, "column_step"),
        ({"slice_offset": 5}, "at most 4"),
        ({"n_slices": 8}, "odd"),
        ({"n_slices": 23}, "no larger"),
        ({"rows": (20, 24)}, "0 to 23"),
        ({"mode": "film"}, "'slice' or 'volume'"),
    ],
)
def test_impossible_choices_of_a_walnut_are_refused(tmp_path, options, message):
    walnut = make_walnut(tmp_path)
    with pytest.raises(GeometryError, match=message):
        read_cwi_walnut(walnut, **WALNUT | options)


def test_missing_walnut_folders_are_named(tmp_path):
    walnut = make_walnut(tmp_path)
    with pytest.raises(FileFormatError, match="tubeV3, which is missing"):
        read_cwi_walnut(walnut, orbit=3, **WALNUT)
    with pytest.raises(FileFormatError, match=r"Walnut9: .*no such folder"):
        read_cwi_walnut(tmp_path / "Walnut9", **WALNUT)


def test_a_truth_of_the_wrong_size_is_refused(tmp_path):
    walnut = make_walnut(tmp_path)
    path = walnut / "Reconstructions" / "full_AGD_50_000013.tiff"
    tifffile.imwrite(path, np.zeros((21, 20), np.float32))
    with pytest.raises(FileFormatError, match="21 x 21"):
        read_cwi_walnut(walnut, **WALNUT)
    path.unlink()
    assert read_cwi_walnut(walnut, **WALNUT).truth is None


# --- FIPS ------------------------------------------------------------------------------------

HEIGHT, WIDTH, VIEWS, ELEMENTS = 5, 4, 6, 7


def weights():
    """What pixel (i, j) adds to element d of view a, [A D H W], and an image."""
    rng = np.random.default_rng(7)
    shape = (VIEWS, ELEMENTS, HEIGHT, WIDTH)
    values = rng.random(shape) * (rng.random(shape) < 0.4)
    return values, rng.random((HEIGHT, WIDTH))


def matlab_pair():
    """A and m as MATLAB has them: everything unrolled column by column."""
    values, image = weights()
    matrix = np.zeros((VIEWS * ELEMENTS, HEIGHT * WIDTH))
    for a, d, i, j in np.ndindex(values.shape):
        matrix[d + ELEMENTS * a, i + HEIGHT * j] = values[a, d, i, j]
    sinogram = np.einsum("adij,ij->da", values, image)
    return sparse.csc_matrix(matrix), sinogram


def write_v5(path, variables):
    scipy.io.savemat(path, variables)


def write_v73(path, variables):
    """The HDF5 form of MATLAB files, written by hand from its description."""

    def put(parent, name, value):
        if isinstance(value, dict):
            group = parent.create_group(name)
            group.attrs["MATLAB_class"] = np.bytes_("struct")
            for key, inner in value.items():
                put(group, key, inner)
        elif sparse.issparse(value):
            group = parent.create_group(name)
            group.attrs["MATLAB_class"] = np.bytes_("double")
            group.attrs["MATLAB_sparse"] = np.uint64(value.shape[0])
            group["data"] = value.data
            group["ir"] = value.indices.astype(np.uint64)
            group["jc"] = value.indptr.astype(np.uint64)
        elif isinstance(value, str):
            parent[name] = np.array([[ord(c)] for c in value], np.uint16)
            parent[name].attrs["MATLAB_class"] = np.bytes_("char")
        else:
            parent[name] = np.atleast_2d(value).T
            parent[name].attrs["MATLAB_class"] = np.bytes_("double")

    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            put(file, name, value)
    with open(path, "r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


both_versions = pytest.mark.parametrize("write", [write_v5, write_v73])


@both_versions
@pytest.mark.parametrize("vector", [False, True])
def test_fips_matrix_maps_the_image_as_matlab_shows_it(tmp_path, write, vector):
    matrix, sinogram = matlab_pair()
    stored = sinogram.ravel(order="F")[:, None] if vector else sinogram
    write(tmp_path / "lotus.mat", {"A": matrix, "m": stored})
    scan = read_fips(
        tmp_path / "lotus.mat",
        image_shape=(HEIGHT, WIDTH),
        n_columns=ELEMENTS if vector else None,
    )
    assert isinstance(scan.geometry, MatrixGeometry)
    assert scan.length_unit == "pixel"
    assert scan.projections.shape == (VIEWS, ELEMENTS)
    values, image = weights()
    expected = np.einsum("adij,ij->ad", values, image)
    np.testing.assert_allclose(scan.projections, expected, rtol=1e-6)
    ours = scan.geometry.matrix
    np.testing.assert_allclose((ours @ image.ravel()).reshape(VIEWS, ELEMENTS), expected)
    # The image read column by column, or upside down, does not explain the data.
    for wrong in (image.ravel(order="F"), image[::-1].ravel(), image[:, ::-1].ravel()):
        assert np.abs((ours @ wrong).reshape(VIEWS, ELEMENTS) - expected).max() > 0.1


def square_pair(scale=1.0):
    """A matrix of 3 x 3 pixels whose one view has three rays along the rows."""
    matrix = np.zeros((3, 9))
    for d in range(3):
        matrix[d, d::3] = scale
    return {"A": sparse.csc_matrix(matrix), "m": matrix @ np.arange(9.0)[:, None]}


def test_fips_matrix_of_square_images_in_mm(tmp_path):
    write_v5(tmp_path / "a.mat", square_pair(0.627))
    scan = read_fips(tmp_path / "a.mat", pixel_size=0.627, n_columns=3)
    assert (scan.grid.shape, scan.grid.pixel_size, scan.length_unit) == ((3, 3), 0.627, "mm")
    write_v5(tmp_path / "b.mat", square_pair(1.0))
    with pytest.raises(DataError, match="A is not in mm"):
        read_fips(tmp_path / "b.mat", pixel_size=0.627, n_columns=3)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({}, {}, DataError, "m is a vector of 3 values"),
        ({"m": np.ones((4, 1))}, {"n_columns": 2}, GeometryError, "A has 3 rows.*4 values"),
        ({}, {"n_columns": 2}, GeometryError, "2 detector elements"),
        ({"m": np.full((3, 1), np.nan)}, {"n_columns": 3}, DataError, "NaN or infinite"),
        ({"m": np.full((3, 1), np.inf)}, {"n_columns": 3}, DataError, "NaN or infinite"),
        (
            {"A": sparse.csc_matrix(np.full((3, 9), np.nan))},
            {"n_columns": 3},
            GeometryError,
            "not finite",
        ),
        (
            {"A": sparse.csc_matrix(np.ones((3, 8)))},
            {"n_columns": 3},
            GeometryError,
            r"8 columns.*image_shape",
        ),
        ({}, {"n_columns": 3, "image_shape": (3, 4)}, GeometryError, r"\(3, 4\)"),
    ],
)
def test_fips_matrices_that_do_not_fit_are_refused(tmp_path, change, options, error, message):
    write_v5(tmp_path / "a.mat", square_pair() | change)
    with pytest.raises(error, match=message) as caught:
        read_fips(tmp_path / "a.mat", **options)
    assert "a.mat" in str(caught.value)


def ct_struct(release=2, **changes):
    """A struct with the names of one of its two releases."""
    post = "Post" if release == 2 else ""
    parameters = {
        "distanceSourceOrigin": 400.0,
        "distanceSourceDetector": 500.0,
        "distanceUnit": "mm",
        "geometryType": "Cone",
        "angles": np.array([[0.0, 10.0, 20.0, 30.0]]),
        "pixelSize": 0.05,
        f"effectivePixelSize{post}": 0.16,
        f"numDetectors{post}": 6.0,
        "scanner": "a scanner",
    } | changes.pop("parameters", {})
    sinogram = np.random.default_rng(8).random((4, 6))
    parameters = {name: value for name, value in parameters.items() if value is not None}
    return {"type": "2D", "sinogram": sinogram, "parameters": parameters} | changes


@both_versions
@pytest.mark.parametrize("release", [1, 2])
def test_fips_struct_becomes_a_fan_beam(tmp_path, write, release):
    struct = ct_struct(release)
    write(tmp_path / "shell.mat", {"CtData": struct})
    scan = read_fips(tmp_path / "shell.mat")
    geometry = scan.geometry
    assert isinstance(geometry, FanGeometry)
    np.testing.assert_array_equal(scan.projections, struct["sinogram"].astype(np.float32))
    np.testing.assert_allclose(geometry.angles, np.deg2rad([0, 10, 20, 30]))
    assert geometry.column_spacing == pytest.approx(0.2)
    assert (geometry.source_origin, geometry.origin_detector) == (400.0, 100.0)
    assert (scan.grid.shape, scan.grid.pixel_size) == ((6, 6), 0.16)
    assert scan.metadata == {"source": "shell.mat", "scanner": "a scanner"}


STRUCT_FAULTS = [
    ({"type": "3D"}, FileFormatError, "two-dimensional"),
    ({"sinogram": np.full((4, 6), np.nan)}, DataError, "NaN or infinite"),
    ({"sinogram": np.full((4, 6), -np.inf)}, DataError, "NaN or infinite"),
    ({"sinogram": np.zeros((3, 6))}, GeometryError, r"4 angles and 6.*\(3, 6\)"),
    ({"sinogram": np.zeros((6, 4))}, GeometryError, r"4 angles and 6.*\(6, 4\)"),
    ({"parameters": {"angles": None}}, FileFormatError, "angles is missing"),
    ({"parameters": {"distanceSourceOrigin": None}}, FileFormatError, "distanceSourceOrigin"),
    ({"parameters": {"distanceSourceOrigin": "far"}}, FileFormatError, "one number"),
    ({"parameters": {"distanceUnit": "cm"}}, FileFormatError, "mm"),
    ({"parameters": {"geometryType": "Parallel"}}, FileFormatError, "geometryType"),
]


@pytest.mark.parametrize(("change", "error", "message"), STRUCT_FAULTS)
@pytest.mark.parametrize(("reader", "name"), [(read_fips, "CtData"), (read_htc2022, "CtDataFull")])
def test_structs_that_are_no_fan_beam_are_refused(tmp_path, reader, name, change, error, message):
    write_v5(tmp_path / "a.mat", {name: ct_struct(**change)})
    with pytest.raises(error, match=message) as caught:
        reader(tmp_path / "a.mat")
    assert str(caught.value).startswith(str(tmp_path / "a.mat"))


@both_versions
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_truncated_matlab_files_are_refused(tmp_path, write, share):
    path = tmp_path / "a.mat"
    for reader, name in ((read_fips, "CtData"), (read_htc2022, "CtDataFull"), (read_scan, "S")):
        write(path, {name: ct_struct()})
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(FileFormatError, match=r"a\.mat: "):
            reader(path)


def test_foreign_and_missing_matlab_files_are_refused(tmp_path):
    write_v5(tmp_path / "other.mat", {"x": np.ones(3)})
    (tmp_path / "text.mat").write_text("only words here, " * 50)
    for reader in (read_fips, read_htc2022):
        with pytest.raises(FileFormatError, match=r"other\.mat: expected.*got variables x"):
            reader(tmp_path / "other.mat")
        with pytest.raises(FileFormatError, match=r"text\.mat: expected a MATLAB"):
            reader(tmp_path / "text.mat")
        with pytest.raises(FileFormatError, match=r"none\.mat: no such file"):
            reader(tmp_path / "none.mat")


# --- HTC 2022 --------------------------------------------------------------------------------


def test_htc_scan_has_the_organisers_grid(tmp_path):
    write_v5(tmp_path / "a.mat", {"CtDataLimited": ct_struct()})
    scan = read_htc2022(tmp_path / "a.mat")
    assert (scan.grid.shape, scan.grid.pixel_size) == ((512, 512), 0.16)
    assert scan.truth is None


def test_htc_references_are_found_beside_the_scan(tmp_path):
    path = tmp_path / "htc_a_full.mat"
    write_v5(path, {"CtDataFull": ct_struct()})
    assert read_htc2022_reference(path) == (None, None)
    image = np.random.default_rng(9).random((512, 512))
    write_v5(tmp_path / "htc_a_full_recon_fbp.mat", {"reconFullFbp": image})
    write_v5(tmp_path / "htc_a_recon_fbp_seg.mat", {"reconFullFbpSeg": np.uint8(image > 0.5)})
    fbp, segmentation = read_htc2022_reference(path)
    np.testing.assert_allclose(fbp, image / 0.16, rtol=1e-6)
    np.testing.assert_array_equal(segmentation, image > 0.5)
    write_v5(tmp_path / "htc_a_full_recon_fbp.mat", {"reconFullFbp": image[1:]})
    with pytest.raises(FileFormatError, match="512 x 512"):
        read_htc2022_reference(path)


def filtered_backprojection(scan):
    """A plain backprojection of the ramp-filtered views, without distance weights."""
    response = np.abs(np.fft.rfftfreq(2048)) * np.hanning(2049)[1024:]
    spectrum = np.fft.rfft(scan.projections, 2048)
    filtered = np.fft.irfft(spectrum * response, 2048)[:, : scan.geometry.n_columns]
    vectors = scan.geometry.vectors()
    y, x = (axis.ravel() for axis in np.meshgrid(*scan.grid.axes(), indexing="ij"))
    image = np.zeros(x.size)
    columns = np.arange(scan.geometry.n_columns)
    for line, vector in zip(filtered, vectors, strict=True):
        source, centre, u = vector[0:2], vector[3:5], vector[6:8]
        dx, dy = x - source[0], y - source[1]
        # source + t d = centre + a u, solved for a.
        cross = dx * u[1] - dy * u[0]
        a = ((source[0] - centre[0]) * dy - (source[1] - centre[1]) * dx) / -cross
        image += np.interp(a + (columns.size - 1) / 2, columns, line)
    return image.reshape(scan.grid.shape)


@needs_data
@pytest.mark.parametrize("name", ["ta", "tc"])
def test_htc_scan_is_oriented_as_its_reference(name):
    path = data("htc2022") / f"htc2022_{name}_full.mat"
    scan = read_htc2022(path)
    assert scan.projections.shape == (721, 560)
    assert scan.grid.pixel_size == pytest.approx(0.14832232, abs=1e-8)
    assert scan.geometry.column_spacing == pytest.approx(0.2)
    assert scan.geometry.origin_detector == pytest.approx(143.08)
    fbp, segmentation = read_htc2022_reference(path)
    assert 0.03 < np.median(fbp[segmentation]) < 0.06
    small = scan.equispaced_views(90).with_grid(scan.grid.resized(128))
    ours = filtered_backprojection(small)
    reference = fbp.reshape(128, 4, 128, 4).mean((1, 3))

    def similarity(image):
        return np.corrcoef(image.ravel(), reference.ravel())[0, 1]

    best = similarity(ours)
    assert best > 0.95
    turned = [np.rot90(ours, k) for k in (1, 2, 3)]
    for wrong in (*turned, *(np.flipud(image) for image in (ours, *turned))):
        assert similarity(wrong) < best - 0.1


@needs_data
def test_htc_limited_scan_and_its_segmentation():
    path = data("htc2022") / "htc2022_01a_limited.mat"
    scan = read_scan(path)
    assert scan.projections.shape == (181, 560)
    assert np.rad2deg(scan.geometry.angles[-1]) == pytest.approx(90)
    fbp, segmentation = read_htc2022_reference(path)
    assert fbp is None
    assert segmentation.dtype == bool
    assert 0.3 < segmentation.mean() < 0.7


# --- Data Exchange ---------------------------------------------------------------------------

AXIS = 27.25


def exchange_arrays():
    """A scan of an off-centre disc, two detector rows, with the axis at column 27.25."""
    geometry = ParallelGeometry(np.linspace(0, np.pi, 61), 64, 1.0, 31.5 - AXIS)
    rays = geometry.rays()
    rng = np.random.default_rng(10)
    rows = []
    for centre in ((7.0, 3.0), (-4.0, 6.0)):
        distance = np.cross((np.array([*centre, 0.0]) - rays.origins), rays.directions)[..., 2]
        rows.append(0.05 * 2 * np.sqrt(np.maximum(64.0 - distance**2, 0)))
    integrals = np.stack(rows, 1)
    beam = 20000 * (1 + 0.2 * np.cos(np.linspace(-1, 1, 64)))
    dark = rng.normal(100, 2, (8, 2, 64))
    # Two detector counts for every photon.
    flats = 2 * rng.poisson(beam / 2, (40, 2, 64)) + rng.normal(100, 2, (40, 2, 64))
    return {
        "data": (beam * np.exp(-integrals) + 100).astype(np.float32),
        "data_white": flats,
        "data_dark": dark,
        "theta": np.rad2deg(geometry.angles),
    }, integrals


def write_exchange(path, **changes):
    arrays, _ = exchange_arrays()
    with h5py.File(path, "w") as file:
        for name, values in (arrays | changes).items():
            if values is not None:
                file[f"exchange/{name}"] = values
    return path


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("axis", [None, AXIS])
def test_data_exchange_scan_has_every_value_at_its_ray(tmp_path, row, axis):
    scan = read_data_exchange(write_exchange(tmp_path / "a.h5"), row=row, axis_column=axis)
    _, integrals = exchange_arrays()
    assert scan.length_unit == "pixel"
    assert scan.grid.shape == (64, 64)
    np.testing.assert_allclose(scan.projections, integrals[:, row], atol=0.01)
    # Column AXIS and no other looks at the axis.
    rays = scan.geometry.rays()
    along = np.stack([np.cos(scan.geometry.angles), np.sin(scan.geometry.angles)], 1)
    position = np.einsum("adk,ak->ad", rays.origins[..., :2], along)
    np.testing.assert_allclose(
        position, np.arange(64) - AXIS + np.zeros((61, 1)), atol=1e-9 if axis else 0.3
    )


def test_data_exchange_noise_is_that_of_the_flats(tmp_path):
    noise = read_data_exchange(write_exchange(tmp_path / "a.h5"), axis_column=AXIS).noise
    assert isinstance(noise, PoissonNoise)
    expected = 10000 * (1 + 0.2 * np.cos(np.linspace(-1, 1, 64)))
    np.testing.assert_allclose(noise.photons, expected, rtol=0.1)


@pytest.mark.parametrize("flats", [np.full((1, 2, 64), 2e4), np.full((9, 2, 64), 2e4)])
def test_flats_without_spread_tell_no_noise(tmp_path, flats):
    path = write_exchange(tmp_path / "a.h5", data_white=flats)
    assert read_data_exchange(path, axis_column=AXIS).noise is None


def one_flat_without_beam():
    flats = exchange_arrays()[0]["data_white"]
    flats[2] = 100.0
    return flats


def nan_view():
    values = exchange_arrays()[0]["data"]
    values[3, 0, 5] = np.nan
    return values


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({"theta": None}, {}, FileFormatError, "exchange/theta is missing"),
        ({"data": None}, {}, FileFormatError, "exchange/data is missing"),
        ({"data_white": None}, {}, FileFormatError, "exchange/data_white is missing"),
        ({"data_dark": None}, {}, FileFormatError, "exchange/data_dark is missing"),
        ({"theta": np.arange(60.0)}, {}, GeometryError, "60 angles.*61 views"),
        ({"theta": np.full(61, np.nan)}, {}, GeometryError, "angles"),
        ({"data": nan_view()}, {}, DataError, "NaN or infinite"),
        ({"data_white": np.zeros((4, 2, 64))}, {}, DataError, "flat"),
        ({"data_white": np.full((4, 2, 64), -5.0)}, {}, DataError, "flat"),
        ({"data_white": one_flat_without_beam()}, {}, DataError, "flat 2"),
        ({"data_white": np.ones((4, 2, 63))}, {}, GeometryError, r"\(4, 2, 63\)"),
        ({"data_dark": np.ones((0, 2, 64))}, {}, GeometryError, r"\(0, 2, 64\)"),
        ({"data": np.ones((61, 64))}, {}, FileFormatError, "frames, R, D"),
        ({}, {"row": 2}, GeometryError, "0 to 1; got 2"),
        ({}, {"axis_column": 64.0}, DataError, "0 to 63; got 64"),
        ({}, {"axis_column": float("nan")}, DataError, "0 to 63; got nan"),
    ],
)
def test_data_exchange_files_with_faults_are_refused(tmp_path, changes, options, error, message):
    path = write_exchange(tmp_path / "a.h5", **changes)
    with pytest.raises(error, match=message) as caught:
        read_data_exchange(path, **{"axis_column": AXIS} | options)
    assert str(caught.value).startswith(str(path))
    # The file was closed: HDF5 does not open one for writing that is still held open.
    with h5py.File(path, "r+") as file:
        assert "exchange" in file


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_data_exchange_files_are_refused(tmp_path, share):
    path = write_exchange(tmp_path / "a.h5")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    for reader in (read_data_exchange, read_scan):
        with pytest.raises(FileFormatError, match=r"a\.h5: "):
            reader(path)


@needs_data
def test_the_tooth():
    scan = read_scan(data("tooth_aps") / "tooth.h5")
    assert scan.projections.shape == (181, 640)
    stored = np.load(data("tooth_aps") / "tooth_sino_row0.npz")
    sinogram = next(v for v in stored.values() if v.shape == (181, 640))
    np.testing.assert_allclose(scan.projections, sinogram, atol=2e-5)
    axis = 319.5 - scan.geometry.column_offset
    assert 294 <= axis <= 297
    # Two adjacent rows see nearly, but not quite, the same.
    other = read_data_exchange(data("tooth_aps") / "tooth.h5", row=1, axis_column=296)
    assert 319.5 - other.geometry.column_offset == 296
    assert 0 < np.abs(other.projections - scan.projections).mean() < 0.02
    # About 27800 counts above the dark with a spread of about 124, the flicker included.
    assert np.median(scan.noise.photons) == pytest.approx(27800**2 / 124**2, rel=0.3)


# --- Any of them -----------------------------------------------------------------------------


def make_each(folder):
    """One of everything that can be read, under names that mislead."""
    write_exchange(folder / "exchange.mat")
    write_scan(read_data_exchange(folder / "exchange.mat", axis_column=AXIS), folder / "own.tif")
    write_v5(folder / "htc.h5", {"CtDataFull": ct_struct()})
    write_v73(folder / "htc73.h5", {"CtDataFull": ct_struct()})
    write_v5(folder / "struct.h5", {"CtData": ct_struct()})
    matrix, sinogram = matlab_pair()
    wide = sparse.hstack([matrix, matrix[:, :5]]).tocsc()
    write_v5(folder / "matrix.hdf5", {"A": wide, "m": sinogram})
    write_v73(folder / "matrix73", {"A": wide, "m": sinogram})


@pytest.mark.parametrize(
    ("name", "kind", "n_pixels"),
    [
        ("exchange.mat", "parallel", 64),
        ("own.tif", "parallel", 64),
        ("htc.h5", "fan", 512),
        ("htc73.h5", "fan", 512),
        ("struct.h5", "fan", 6),
        ("matrix.hdf5", "matrix", 5),
        ("matrix73", "matrix", 5),
    ],
)
def test_files_are_told_apart_by_content(tmp_path, name, kind, n_pixels):
    make_each(tmp_path)
    scan = read_scan(tmp_path / name)
    assert (scan.geometry.kind, scan.grid.shape) == (kind, (n_pixels, n_pixels))


def test_walnut_folders_are_recognised(tmp_path):
    walnut = make_walnut(tmp_path)
    # The default grid is that of the real walnuts, 50.1 mm wide; the published truth is absent.
    assert read_scan(walnut).grid.shape == (501, 501)
    assert read_scan(walnut / "Projections" / "tubeV2").geometry.kind == "cone-slice"


def write_picture(path):
    tifffile.imwrite(path, np.zeros((4, 4), np.float32))


def write_plain_hdf5(path):
    with h5py.File(path, "w") as file:
        file["x"] = 1


@pytest.mark.parametrize(
    "write",
    [
        write_picture,
        write_plain_hdf5,
        lambda path: path.write_text("words"),
        lambda path: path.write_bytes(b""),
        lambda path: path.mkdir(),
        lambda path: None,
    ],
)
def test_what_cannot_be_read_is_answered_with_what_can(tmp_path, write):
    path = tmp_path / "thing"
    write(path)
    with pytest.raises(FileFormatError, match=r"thing: .*can be read from") as caught:
        read_scan(path)
    for known in ("dipct scan file", "Data Exchange", "HTC 2022", "FIPS", "CWI walnut"):
        assert known in str(caught.value)
