import nibabel
import numpy as np
import pytest
import tifffile
from small_scans import pixel_scan, small_scan

from dipct import Grid, reconstruct
from dipct.errors import ConfigurationError
from dipct.export import FORMATS, export_run
from dipct.measurement.nominal import nominal_scan
from dipct.phantom.discs import disc_centers
from dipct.pipeline import simulate

N_PIXELS = {"parallel": 48, "cone": 24}


@pytest.fixture(params=["parallel", "cone"], scope="module")
def run(request):
    """A reconstruction on a grid that is neither square nor centred on the origin."""
    kind = request.param
    geometry, grid = nominal_scan(kind, pixels=N_PIXELS[kind], views=12)
    shape = (40, 48) if kind == "parallel" else (20, 24, 22)
    center = (2.0, -1.0, 1.5)[: grid.ndim]
    like = small_scan(kind, pixels=N_PIXELS[kind], views=12, noise=0)
    like = type(like)(
        like.projections, geometry, Grid(shape, grid.pixel_size, center), length_unit="mm"
    )
    scan = simulate("discs", geometry=like, noise=0, oversampling=1)
    return reconstruct(scan, method="cgls", iterations=2)


def truth_run(run):
    """The same run with the scanned object in place of the reconstruction."""
    return type(run)(**{**run.__dict__, "image": run.scan.truth})


def brightest_disc(values):
    """Index of the centre of the brightest disc."""
    return np.argwhere(values > 0.9 * values.max()).mean(axis=0)


def test_tiff_holds_the_image_as_it_is_shown(run, tmp_path):
    path = tmp_path / "image.tif"
    export_run(run, path, to="tiff")
    np.testing.assert_array_equal(tifffile.imread(path), run.image)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert page.dtype == np.float32
        for tag in ("XResolution", "YResolution"):
            numerator, denominator = page.tags[tag].value
            assert numerator / denominator == pytest.approx(1 / run.scan.grid.pixel_size, 1e-6)
        assert file.imagej_metadata["unit"] == "mm"
        if run.image.ndim == 3:
            assert len(file.pages) == len(run.image)
            assert file.imagej_metadata["spacing"] == pytest.approx(run.scan.grid.pixel_size)


def test_tiff_keeps_the_orientation(run, tmp_path):
    path = tmp_path / "image.tif"
    export_run(truth_run(run), path, to="tiff")
    picture = tifffile.imread(path)
    # Row 0 is at the top, so that the brightest disc, up and to the right, lies up right.
    place = brightest_disc(picture)
    axes = run.scan.grid.axes()
    x, y = disc_centers(run.scan.grid)[0][:2]
    pixel = run.scan.grid.pixel_size
    assert np.interp(place[-1], np.arange(len(axes[-1])), axes[-1]) == pytest.approx(x, abs=pixel)
    assert np.interp(place[-2], np.arange(len(axes[-2])), axes[-2]) == pytest.approx(y, abs=pixel)
    assert place[-2] < picture.shape[-2] / 2 and place[-1] > picture.shape[-1] / 2


def test_nifti_world_coordinates_are_those_of_the_scan(run, tmp_path):
    path = tmp_path / "image.nii.gz"
    export_run(truth_run(run), path, to="nifti")
    picture = nibabel.load(path)
    values = picture.get_fdata(dtype=np.float32)
    assert values.shape == (*run.image.shape[::-1], 1)[:3]
    assert picture.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(picture.header.get_zooms(), run.scan.grid.pixel_size, rtol=1e-6)
    world = picture.affine @ [*brightest_disc(values), 1]
    expected = disc_centers(run.scan.grid)[0]
    np.testing.assert_allclose(world[: len(expected)], expected, atol=run.scan.grid.pixel_size / 2)


def test_nifti_values_lie_where_the_axes_say(run, tmp_path):
    path = tmp_path / "image.nii.gz"
    export_run(run, path, to="nifti")
    picture = nibabel.load(path)
    values = np.asarray(picture.dataobj)
    axes = run.scan.grid.axes()
    index = tuple(int(n * 0.3) for n in run.image.shape)
    world = [axis[i] for axis, i in zip(axes, index, strict=True)][::-1]
    world = np.array([*world, 0.0, 1.0] if len(world) == 2 else [*world, 1.0])
    voxel = np.linalg.solve(picture.affine, world)[:3]
    np.testing.assert_allclose(voxel, np.round(voxel), atol=1e-4)
    assert values[tuple(np.round(voxel).astype(int))] == run.image[index]
    assert np.linalg.det(picture.affine) > 0


def test_a_scan_in_pixels_claims_no_millimetres(tmp_path):
    run = reconstruct(pixel_scan(), method="fbp")
    export_run(run, tmp_path / "a.tif", to="tiff")
    export_run(run, tmp_path / "a.nii.gz", to="nifti")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.imagej_metadata["unit"] == "pixel"
    assert nibabel.load(tmp_path / "a.nii.gz").header.get_xyzt_units()[0] == "unknown"


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_image_gives_the_same_file(run, tmp_path, to):
    for name in ("one", "two"):
        export_run(run, str(tmp_path / name), to=to)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_unknown_format_is_refused(run, tmp_path):
    with pytest.raises(ConfigurationError, match="tiff, nifti; got 'png'"):
        export_run(run, tmp_path / "a.png", to="png")
    assert not list(tmp_path.iterdir())
