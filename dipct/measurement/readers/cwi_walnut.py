"""CWI walnuts: cone-beam scans of 42 walnuts, each from three source heights ("orbits").

Der Sarkissian et al. (2019), Sci. Data 6, 215, https://doi.org/10.1038/s41597-019-0235-y; data
at https://doi.org/10.5281/zenodo.2686726, CC BY 4.0.

Layout of a walnut's folder, for orbits 1 to 3::

    Walnut1/Projections/tubeV1/scan_000000.tif ... scan_001200.tif    counts
    Walnut1/Projections/tubeV1/di000000.tif                           dark frame
    Walnut1/Projections/tubeV1/io000000.tif, io000001.tif             flats before and after
    Walnut1/Projections/tubeV1/scan_geom_corrected.geom               12 numbers for each view
    Walnut1/Reconstructions/full_AGD_50_000000.tiff ... 000500.tiff   published reconstruction

A picture is stored as (D, R) = (768, 972), because the scanner reads its detector out lying on
its side: turned upside down and transposed it becomes (R, D) = (972, 768). The pictures are in
reverse order: view k of the geometry file is picture 1200 - k. The last of the 1201 views
repeats the first direction and is not used.
"""

import re
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile

from dipct.errors import DataError, FileFormatError, GeometryError
from dipct.measurement.geometry import ConeSliceGeometry, VectorGeometry
from dipct.measurement.geometry.vectors import decimated_columns
from dipct.measurement.grid import Grid
from dipct.measurement.hdf5 import check_is_file, naming
from dipct.measurement.preprocessing import line_integrals, transmission
from dipct.measurement.readers.flats import check_flats
from dipct.measurement.scan import Scan

GEOMETRY_FILE = "scan_geom_corrected.geom"
PUBLISHED_ROWS = {("Walnut1", 2, 3, 972): (474, 482)}
"""First and last detector row chosen in published work, by walnut, orbit, slice and height."""


def read_cwi_walnut(
    folder: str | Path,
    *,
    orbit: int = 2,
    view_step: int = 10,
    column_step: int = 6,
    slice_offset: int = 3,
    rows: tuple[int, int] | None = None,
    mode: Literal["slice", "volume"] = "slice",
    n_voxels: int = 501,
    n_slices: int = 9,
    voxel_size: float = 0.1,
) -> Scan:
    """Read a sparse-view scan of one slice, or of the volume, of a CWI walnut.

    The defaults are the single-slice setting of Barbano et al. (2022),
    https://arxiv.org/abs/2203.00479: walnut 1, orbit 2, 120 views of 128 columns. Views and
    columns are left out, not averaged; the columns kept lie centred on the detector.

    Args:
        folder: ``Walnut1``, its ``Projections``, or one ``tubeV2`` (which then is the orbit).
        orbit: source height, 1, 2 or 3.
        view_step: keep every so-many-th view.
        column_step: keep every so-many-th detector column.
        slice_offset: slice of interest, in slices above the middle one.
        rows: first and last detector row to use, counted from 0. By default all rows of a
            volume; of a slice those that see it, or 474 and 482 for the published slice.
        mode: ``"slice"``: an image, by the rule of :class:`ConeSliceGeometry`; ``"volume"``.
        n_voxels: voxels along each side of the volume; odd, so that there is a middle slice.
        n_slices: slices of the stack through which the slice of interest is continued.
        voxel_size: edge of a voxel, mm.

    Returns:
        A scan with :class:`ConeSliceGeometry` or :class:`VectorGeometry`. The truth of a slice
        is the published reconstruction from all views of all orbits where its file is there; a
        volume has none.

    Raises:
        FileFormatError: a file is missing, truncated or foreign; the message names it.
        GeometryError: counts that disagree, or a choice that the scan does not allow.
        DataError: values that are not finite; zero or negative flats.
    """
    tube = _tube_folder(Path(folder), orbit)
    _check_choice(view_step, column_step, slice_offset, n_voxels, n_slices, mode)
    orbit = _orbit_of(tube, orbit)
    walnut = tube.parent.parent
    vectors = _read_vectors(tube)
    n_used = len(vectors) - 1
    views = np.arange(0, n_used, view_step)
    pictures = [tube / f"scan_{n_used - view:06d}.tif" for view in views]
    dark_file, *flat_files = (tube / f"{n}.tif" for n in ("di000000", "io000000", "io000001"))
    _check_files(tube, [*pictures, dark_file, *flat_files], len(vectors))

    n_rows, n_columns = _read_picture(dark_file).shape
    with naming(tube / GEOMETRY_FILE):
        detector = VectorGeometry(vectors[views], n_rows, n_columns)
    slice_z = slice_offset * voxel_size
    half = n_voxels * voxel_size / 2
    if rows is None:
        rows = (0, n_rows - 1)
        if mode == "slice":
            rows = PUBLISHED_ROWS.get((walnut.name, orbit, slice_offset, n_rows)) or _rows_seeing(
                detector, half, slice_z - voxel_size / 2, slice_z + voxel_size / 2
            )
    if not 0 <= rows[0] <= rows[1] < n_rows:
        raise GeometryError(
            f"rows must be the first and last of detector rows 0 to {n_rows - 1}; got {rows}."
        )
    columns = decimated_columns(n_columns, column_step)
    kept = (slice(rows[0], rows[1] + 1), columns)
    geometry = detector.crop_rows(rows[0], rows[1] + 1).decimate_columns(column_step)

    def read_kept(paths: list[Path]) -> np.ndarray:
        return np.stack([_read_picture(path, (n_rows, n_columns))[kept] for path in paths])

    with naming(tube):
        flats, darks = read_kept(flat_files), read_kept([dark_file])
        check_flats(flats, darks)
        projections = line_integrals(transmission(read_kept(pictures), flats, darks))
    metadata = {
        "source": f"{walnut.name}, orbit {orbit}",
        "views": f"1 in {view_step} of {n_used}",
        "columns": f"1 in {column_step} of {n_columns}, from column {columns.start}",
        "rows": f"{rows[0]} to {rows[1]} of {n_rows}",
    }
    if mode == "volume":
        grid = Grid((n_voxels,) * 3, voxel_size)
        return Scan(projections, geometry, grid, metadata=metadata)
    slice_geometry = ConeSliceGeometry.from_scan(
        geometry,
        voxel_size=voxel_size,
        slice_z=slice_z,
        n_slices=n_slices,
        volume_shape=(n_voxels,) * 3,
    )
    index = (n_voxels - 1) // 2 + slice_offset
    truth = _read_truth(walnut / "Reconstructions", index, n_voxels)
    return Scan(
        slice_geometry.select_measured(projections),
        slice_geometry,
        Grid((n_voxels, n_voxels), voxel_size),
        truth=truth,
        truth_source=""
        if truth is None
        else "published reconstruction from all orbits: 50 accelerated gradient steps, "
        f"slice {index}",
        metadata={**metadata, "slice": str(index)},
    )


def is_cwi_walnut(folder: str | Path) -> bool:
    """Whether a folder is laid out as a walnut's, or as a part that can be read."""
    return any(any(Path(folder).glob(f"{inner}{GEOMETRY_FILE}")) for inner in _INNER)


_INNER = ("", "tubeV[123]/", "Projections/tubeV[123]/")


def _tube_folder(folder: Path, orbit: int) -> Path:
    """The folder with the pictures of one orbit."""
    if not folder.is_dir():
        raise FileFormatError(f"{folder}: expected a CWI walnut folder; there is no such folder.")
    if (folder / GEOMETRY_FILE).exists():
        return folder.absolute()
    for candidate in (folder / "Projections" / f"tubeV{orbit}", folder / f"tubeV{orbit}"):
        if candidate.is_dir():
            return candidate.absolute()
    raise FileFormatError(
        f"{folder}: expected a CWI walnut folder with Projections/tubeV{orbit}, which is missing. "
        "Give the folder of one walnut and an orbit that was downloaded."
    )


def _orbit_of(tube: Path, orbit: int) -> int:
    named = re.fullmatch(r"tubeV(\d)", tube.name)
    return int(named.group(1)) if named else orbit


def _check_choice(
    view_step: int, column_step: int, slice_offset: int, n_voxels: int, n_slices: int, mode: str
) -> None:
    if mode not in ("slice", "volume"):
        raise GeometryError(f"mode must be 'slice' or 'volume'; got {mode!r}.")
    if view_step < 1 or column_step < 1:
        raise GeometryError(
            f"view_step and column_step must be at least 1; got {view_step} and {column_step}."
        )
    if n_voxels % 2 == 0 or n_slices % 2 == 0 or not 1 <= n_slices <= n_voxels:
        raise GeometryError(
            "n_voxels and n_slices must be odd, so that there is a middle slice, and n_slices no "
            f"larger than n_voxels; got {n_voxels} and {n_slices}."
        )
    if abs(slice_offset) > (n_slices - 1) // 2:
        raise GeometryError(
            f"slice_offset must lie in the stack of {n_slices} slices, at most "
            f"{(n_slices - 1) // 2} from the middle; got {slice_offset}. Enlarge n_slices."
        )


def _read_vectors(tube: Path) -> np.ndarray:
    """Geometry of all views, [V 12], mm, in the world of our images."""
    path = tube / GEOMETRY_FILE
    check_is_file(path, "the walnut's geometry file")
    try:
        vectors = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise FileFormatError(
            f"{path}: expected lines of 12 numbers ({error}). Download the file again."
        ) from error
    if vectors.shape[1:] != (12,) or len(vectors) < 2:
        raise FileFormatError(
            f"{path}: expected at least 2 lines of 12 numbers; got shape {vectors.shape}."
        )
    # The published volumes are ASTRA's, whose first row lies at the smallest y; our first row
    # lies at the largest. Mirroring the world, not the image, makes both arrays the same.
    vectors[:, 1::3] *= -1
    return vectors


def _check_files(tube: Path, needed: list[Path], n_vectors: int) -> None:
    """Raise for missing pictures, or more pictures than views, before any is read."""
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileFormatError(
            f"{tube}: file {missing[0]}{more} is missing. {GEOMETRY_FILE} has {n_vectors} views, "
            "so that many pictures are expected; download the folder again."
        )
    surplus = tube / f"scan_{n_vectors:06d}.tif"
    if surplus.exists():
        n_pictures = sum(1 for _ in tube.glob("scan_[0-9]*.tif"))
        raise GeometryError(
            f"{tube}: there are {n_pictures} pictures, but {GEOMETRY_FILE} has {n_vectors} views. "
            "They do not belong together; download the folder again."
        )


def _read_picture(path: Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """A detector picture as (R, D)."""
    picture = np.flipud(_read_tiff(path)).T
    if shape is not None and picture.shape != shape:
        raise FileFormatError(
            f"{path}: expected a picture of {shape[::-1]} pixels as the others; got "
            f"{picture.shape[::-1]}."
        )
    return picture


def _read_tiff(path: Path) -> np.ndarray:
    try:
        picture = tifffile.imread(path)
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise FileFormatError(
            f"{path}: expected a TIFF picture, but it cannot be read as such ({error}). The file "
            "may be truncated; download it again."
        ) from error
    if picture.ndim != 2 or picture.size == 0:
        raise FileFormatError(f"{path}: expected one grey picture; got shape {picture.shape}.")
    return picture


def _rows_seeing(geometry: VectorGeometry, half: float, low: float, high: float) -> tuple[int, int]:
    """First and last detector row that some view has rays through a flat box on.

    Args:
        geometry: the scan.
        half: half the width of the box along x and y, mm.
        low: lower ``z`` of the box, mm.
        high: upper ``z`` of the box, mm.
    """
    corners = np.array(
        [[x, y, z] for x in (-half, half) for y in (-half, half) for z in (low, high)]
    )
    vectors = geometry.vectors()
    source, centre, u_step, v_step = (vectors[:, None, i : i + 3] for i in (0, 3, 6, 9))
    direction = corners - source
    # source + t direction = centre + a u + b v: b by Cramer's rule.
    normal = np.cross(direction, u_step)
    row = np.sum((source - centre) * normal, -1) / np.sum(v_step * normal, -1)
    row = row + (geometry.n_rows - 1) / 2
    first, last = int(np.floor(row.min())), int(np.ceil(row.max()))
    if last < 0 or first > geometry.n_rows - 1:
        raise GeometryError(
            f"no detector row sees the slice from z = {low:g} to {high:g} mm. Choose another "
            "slice_offset."
        )
    return max(first, 0), min(last, geometry.n_rows - 1)


def _read_truth(folder: Path, index: int, n_voxels: int) -> np.ndarray | None:
    path = folder / f"full_AGD_50_{index:06d}.tiff"
    if not path.is_file():
        return None
    truth = _read_tiff(path)
    if truth.shape != (n_voxels, n_voxels):
        raise FileFormatError(
            f"{path}: expected {n_voxels} x {n_voxels} pixels; got {truth.shape}."
        )
    with naming(path):
        if not np.all(np.isfinite(truth)):
            raise DataError("the published reconstruction holds values that are not finite.")
    return truth
