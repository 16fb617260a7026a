"""The project's own scan file: exact round trips, whole or absent, clear refusals."""

import subprocess
import sys
from dataclasses import fields, replace

import h5py
import numpy as np
import pytest
from scipy import sparse

from dipct.errors import DataError, DipctError, FileFormatError, GeometryError, ShapeError
from dipct.measurement.geometry import (
    KINDS,
    ConeGeometry,
    ConeSliceGeometry,
    FanGeometry,
    MatrixGeometry,
    ParallelGeometry,
    VectorGeometry,
)
from dipct.measurement.grid import Grid
from dipct.measurement.noise import GaussianNoise, PoissonNoise
from dipct.measurement.scan import Scan
from dipct.measurement.scan_file import (
    read_scan_file,
    read_scan_group,
    write_scan,
    write_scan_group,
)

ANGLES = np.linspace(0.1, 3.3, 5)


def geometries():
    cone = ConeGeometry(ANGLES, 4, 7, 0.3, 0.25, 60.0, 41.1, 0.07, -0.03)
    vectors = VectorGeometry(cone.vectors() * 1.0000001, 4, 7)
    matrix = sparse.random(5 * 7, 6 * 9, 0.2, "csr", np.float32, np.random.default_rng(3))
    return {
        "parallel": ParallelGeometry(ANGLES, 7, 0.3, -0.11),
        "fan": FanGeometry(ANGLES, 7, 0.2, 410.66, 143.08, 0.013),
        "cone": cone,
        "vectors": vectors,
        "vectors planar": VectorGeometry(
            ParallelGeometry(ANGLES, 7, 0.3).vectors(), 1, 7, "parallel", True
        ),
        "cone-slice": ConeSliceGeometry(
            vectors.view_vectors, 4, 7, np.random.default_rng(4).uniform(0, 3, (5, 7)), (-0.4, 0.5)
        ),
        "matrix": MatrixGeometry(matrix, 7, ANGLES),
    }


NOISES = {
    "none": lambda shape: None,
    "gaussian": lambda shape: GaussianNoise(0.0123456789012345),
    "gaussian per column": lambda shape: GaussianNoise(np.linspace(0.1, 0.2, shape[-1])),
    "poisson": lambda shape: PoissonNoise(4096),
    "poisson per value": lambda shape: PoissonNoise(np.full(shape, 1e4, np.float32)),
}


def make_scan(kind="fan", noise="poisson per value", truth=True):
    geometry = geometries()[kind]
    rng = np.random.default_rng(1)
    grid = Grid((6, 9), 0.1 / 3, (0.1, -0.2))
    if not geometry.is_planar:
        grid = Grid((3, 6, 9), 0.1 / 3, (0.1, -0.2, 0.3))
    return Scan(
        rng.normal(size=geometry.projection_shape).astype(np.float32),
        geometry,
        grid,
        NOISES[noise](geometry.projection_shape),
        rng.random(grid.shape).astype(np.float32) if truth else None,
        "drawn at random" if truth else "",
        {"operator": "Ωμέγα/ä", "note": ""} if truth else {},
        "mm" if truth else "pixel",
    )


def identical(first, second):
    """Whether two objects agree to the last bit and in their types."""
    if type(first) is not type(second):
        return False
    if sparse.issparse(first):
        parts = ("data", "indices", "indptr", "shape")
        return all(identical(getattr(first, p), getattr(second, p)) for p in parts)
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if hasattr(first, "__dataclass_fields__"):
        names = [f.name for f in fields(first)]
        return all(identical(getattr(first, n), getattr(second, n)) for n in names)
    return first == second


@pytest.mark.parametrize("kind", geometries())
@pytest.mark.parametrize("truth", [True, False])
def test_every_geometry_comes_back_exactly(tmp_path, kind, truth):
    scan = make_scan(kind, truth=truth)
    write_scan(scan, tmp_path / "scan.h5")
    assert identical(read_scan_file(tmp_path / "scan.h5"), scan)


def test_all_kinds_are_tried():
    assert {geometry.kind for geometry in geometries().values()} == set(KINDS)


@pytest.mark.parametrize("noise", NOISES)
def test_every_noise_model_comes_back_exactly(tmp_path, noise):
    scan = make_scan(noise=noise)
    write_scan(scan, tmp_path / "scan.h5")
    back = read_scan_file(tmp_path / "scan.h5").noise
    # A whole number of photons may have been given as int or float; the file keeps which.
    assert identical(back, scan.noise)


def test_the_comparison_notices_the_smallest_change():
    scan = make_scan("fan")
    for wrong in (
        replace(scan, projections=np.nextafter(scan.projections, np.float32(9))),
        replace(scan, geometry=replace(scan.geometry, column_offset=0.0130000001)),
        replace(scan, grid=Grid((6, 9), 0.0333)),
        replace(scan, noise=PoissonNoise(np.full((5, 7), 1e4))),
        replace(scan, metadata={}),
    ):
        assert not identical(wrong, scan)


def test_a_scan_embedded_in_another_file(tmp_path):
    scan = make_scan("cone")
    with h5py.File(tmp_path / "run.h5", "w") as file:
        write_scan_group(scan, file.create_group("input/scan"))
    with h5py.File(tmp_path / "run.h5") as file:
        assert identical(read_scan_group(file["input/scan"]), scan)
        with pytest.raises(FileFormatError, match="expected a scan"):
            read_scan_group(file["input"])


def test_the_layout_is_the_documented_one(tmp_path):
    write_scan(make_scan("matrix"), tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5") as file:
        assert file.attrs["format"] == "dipct-scan"
        assert file.attrs["version"] == 1
        assert file.attrs["length_unit"] == "mm"
        assert file["projections"].compression == "gzip"
        assert file["projections"].dtype == np.float32
        assert file["geometry"].attrs["kind"] == "matrix"
        assert set(file["geometry/matrix"]) == {"data", "indices", "indptr"}
        assert list(file["grid"].attrs["shape"]) == [6, 9]
        assert file["noise"].attrs["kind"] == "poisson"
        assert file["truth"].attrs["source"] == "drawn at random"
        assert file["metadata"].asstr()[0].tolist() == ["operator", "Ωμέγα/ä"]


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "scan.h5"
    path.write_text("something older")
    write_scan(make_scan(), path)
    assert identical(read_scan_file(path), make_scan())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95, 0.999])
def test_truncated_files_are_refused(tmp_path, share):
    path = tmp_path / "scan.h5"
    write_scan(make_scan(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FileFormatError, match=r"expected a dipct scan file.*download it again"):
        read_scan_file(path)


def test_damaged_contents_are_refused_and_the_file_is_closed(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(make_scan(), path)
    with h5py.File(path) as file:
        chunk = file["projections"].id.get_chunk_info(0)
    contents = bytearray(path.read_bytes())
    contents[chunk.byte_offset : chunk.byte_offset + 40] = b"\xff" * 40
    path.write_bytes(contents)
    with pytest.raises(FileFormatError, match="expected a dipct scan file"):
        read_scan_file(path)
    # HDF5 does not open a file for writing that the same process still holds open.
    with h5py.File(path, "r+") as file:
        assert "projections" in file


def foreign_text(path):
    path.write_text("not a scan at all " * 100)


def foreign_hdf5(path):
    with h5py.File(path, "w") as file:
        file["projections"] = np.zeros((3, 4))


@pytest.mark.parametrize("write", [foreign_text, foreign_hdf5])
def test_foreign_files_are_refused(tmp_path, write):
    write(tmp_path / "scan.h5")
    with pytest.raises(FileFormatError, match=r"scan\.h5: expected a"):
        read_scan_file(tmp_path / "scan.h5")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"nowhere\.h5: no such file"):
        read_scan_file(tmp_path / "nowhere.h5")
    with pytest.raises(FileFormatError, match="this is a folder"):
        read_scan_file(tmp_path)
    with pytest.raises(OSError, match=r"could not write.*scan\.h5.*No such file or directory"):
        write_scan(make_scan(), tmp_path / "no folder" / "scan.h5")


def remove(name):
    def change(file):
        del file[name]

    return change


def set_attribute(where, name, value):
    def change(file):
        file[where].attrs[name] = value

    return change


def remove_attribute(where, name):
    def change(file):
        del file[where].attrs[name]

    return change


def overwrite(name, value):
    def change(file):
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = value
        file[name].attrs.update(attributes)

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (set_attribute("/", "version", 2), FileFormatError, "version 2.*Update dipct"),
        (remove_attribute("/", "version"), FileFormatError, "attribute version of / is missing"),
        (remove("projections"), FileFormatError, "dataset /projections is missing"),
        (remove("geometry"), FileFormatError, "group /geometry is missing"),
        (remove("geometry/angles"), FileFormatError, "angles of /geometry is missing"),
        (remove_attribute("grid", "pixel_size"), FileFormatError, "pixel_size of /grid"),
        (set_attribute("geometry", "kind", "helix"), FileFormatError, "unknown geometry 'helix'"),
        (set_attribute("noise", "kind", "pink"), FileFormatError, "unknown noise model 'pink'"),
        (set_attribute("/", "length_unit", "inch"), DataError, "length_unit"),
        (set_attribute("geometry", "n_columns", 8), ShapeError, r"\(5, 8\).*got.*\(5, 7\)"),
        (overwrite("geometry/angles", ANGLES[:4]), ShapeError, r"\(4, 7\)"),
        (set_attribute("geometry", "source_origin", -1.0), GeometryError, "source_origin"),
        (set_attribute("grid", "shape", [4, 6, 9]), GeometryError, "centre"),
        (overwrite("projections", np.full((5, 7), np.nan)), DataError, "NaN or infinite"),
        (overwrite("projections", np.full((5, 7), np.inf)), DataError, "NaN or infinite"),
        (overwrite("truth", np.full((6, 9), np.nan)), DataError, "truth"),
        (overwrite("truth", np.zeros((9, 6))), ShapeError, "truth"),
    ],
)
def test_contents_that_are_no_scan_are_refused(tmp_path, change, error, message):
    path = tmp_path / "scan.h5"
    write_scan(make_scan(), path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(error, match=message) as caught:
        read_scan_file(path)
    assert isinstance(caught.value, DipctError)
    assert str(caught.value).startswith(str(path))


def test_a_matrix_whose_indices_leave_the_image_is_refused(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(make_scan("matrix"), path)
    with h5py.File(path, "r+") as file:
        file["geometry/matrix/indices"][0] = 6 * 9
    with pytest.raises(FileFormatError, match="expected a dipct scan file"):
        read_scan_file(path)


FULL_DISK = """
import resource, sys
import numpy as np
from dipct.measurement.geometry import ParallelGeometry
from dipct.measurement.grid import Grid
from dipct.measurement.scan import Scan
from dipct.measurement.scan_file import write_scan

views, path = int(sys.argv[1]), sys.argv[2]
# A limit on the size of files makes a write fail half-way, as a full disk does.
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
projections = np.random.default_rng(0).normal(size=(views, 300))
scan = Scan(projections, ParallelGeometry(np.linspace(0, 3, views), 300), Grid((9, 9)))
try:
    write_scan(scan, path)
except OSError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
@pytest.mark.parametrize("before", [None, b"the older file"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, before):
    path = tmp_path / "scan.h5"
    if before is not None:
        path.write_bytes(before)

    def write(views):
        command = [sys.executable, "-c", FULL_DISK, str(views), str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    done = write(300)
    assert "refused:" in done.stdout
    assert str(path) in done.stdout
    assert "Nothing was left half-written" in done.stdout
    assert done.stderr == ""
    assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else ["scan.h5"])
    if before is not None:
        assert path.read_bytes() == before
    # The same script writes a scan that fits.
    assert write(20).stdout == ""
    assert read_scan_file(path).projections.shape == (20, 300)
