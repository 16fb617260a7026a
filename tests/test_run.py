import json
from dataclasses import fields, replace

import h5py
import numpy as np
import pytest
from small_scans import pixel_scan, small_scan

from dipct import read_run, reconstruct, write_run, write_scan
from dipct.errors import ConfigurationError, FileFormatError
from dipct.measurement.digest import scan_digest
from dipct.run import is_run_file

RUNS = {
    "2-D tv": lambda: reconstruct(small_scan(), method="tv", tv_weight=5.0, source="a file"),
    "2-D fbp": lambda: reconstruct(small_scan("fan"), method="fbp", views=8, bin=2),
    "3-D sirt": lambda: reconstruct(small_scan("cone", views=6), method="sirt", iterations=6),
    "pixel units": lambda: reconstruct(pixel_scan(), method="cgls", iterations=4, seed=7),
}


@pytest.fixture(params=RUNS, scope="module")
def run(request):
    return RUNS[request.param]()


def test_a_run_comes_back_as_it_was_written(run, tmp_path):
    path = tmp_path / "run.h5"
    write_run(run, path)
    found = read_run(path)
    arrays = {"image", "projections", "scan", "history"}
    for field in fields(run):
        if field.name not in arrays:
            assert getattr(found, field.name) == getattr(run, field.name), field.name
    np.testing.assert_array_equal(found.image, run.image)
    np.testing.assert_array_equal(found.projections, run.projections)
    assert scan_digest(found.scan) == scan_digest(run.scan)
    np.testing.assert_array_equal(found.scan.truth, run.scan.truth)
    assert found.history.keys() == run.history.keys()
    for name, values in run.history.items():
        np.testing.assert_array_equal(found.history[name], values)
    assert found.units == run.units and found.method == run.method


def test_the_file_is_laid_out_as_documented(run, tmp_path):
    path = tmp_path / "run.h5"
    write_run(run, path)
    with h5py.File(path) as file:
        attributes = dict(file.attrs)
        assert attributes.keys() == {
            "format",
            "version",
            "method",
            "status",
            "advice",
            "iterations",
            "seed",
            "duration_s",
            "created",
            "source",
            "input_sha256",
            "configuration",
            "versions",
        }
        assert (attributes["format"], attributes["version"]) == ("dipct-run", 1)
        assert json.loads(attributes["configuration"]) == dict(run.configuration)
        versions = json.loads(attributes["versions"])
        assert {"python", "torch", "numpy", "scipy", "h5py"} <= versions.keys()
        assert len(attributes["input_sha256"]) == 64
        assert attributes["created"].endswith("+00:00")
        image = file["reconstruction/image"]
        assert image.dtype == np.float32 and image.shape == run.scan.grid.shape
        unit = run.scan.length_unit
        assert image.attrs["units"] == f"1/{unit}" and image.attrs["length_unit"] == unit
        assert image.attrs["pixel_size"] == run.scan.grid.pixel_size
        assert image.attrs.get("pixel_size_mm") == (
            run.scan.grid.pixel_size if unit == "mm" else None
        )
        projections = file["reconstruction/projections"]
        assert projections.dtype == np.float32
        assert projections.shape == run.scan.projections.shape
        history = file["reconstruction/history"]
        assert bool(len(history)) == (run.method != "fbp")
        for name, values in history.items():
            expected = np.int64 if name == "iteration" else np.float64
            assert values.dtype == expected and values.shape == history["iteration"].shape, name
        assert dict(file["metrics"].attrs) == dict(run.metrics)
        assert len(run.input_sha256) == 64


def test_metrics_lie_beside_the_file_as_json(run, tmp_path):
    write_run(run, tmp_path / "run.h5")
    beside = json.loads((tmp_path / "run.json").read_text())
    assert beside["metrics"] == dict(run.metrics)
    assert beside["configuration"] == dict(run.configuration)
    for name in ("method", "status", "iterations", "seed", "source", "input_sha256"):
        assert beside[name] == getattr(run, name)
    assert {path.name for path in tmp_path.iterdir()} == {"run.h5", "run.json"}


def test_json_has_no_infinities(run, tmp_path):
    write_run(replace(run, metrics={"psnr_db": float("inf")}), tmp_path / "run.h5")
    text = (tmp_path / "run.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["metrics"] == {"psnr_db": None}
    assert read_run(tmp_path / "run.h5").metrics == {"psnr_db": float("inf")}


def test_scan_and_settings_in_the_file_make_the_same_image_again(run, tmp_path):
    write_run(run, tmp_path / "run.h5")
    found = read_run(tmp_path / "run.h5")
    again = reconstruct(found.scan, **found.settings)
    np.testing.assert_array_equal(again.image, run.image)
    np.testing.assert_array_equal(again.projections, run.projections)
    assert again.metrics == run.metrics
    assert again.seed == run.seed


@pytest.mark.parametrize("method", ["tv", "cgls"])
def test_a_run_with_selections_and_a_chosen_weight_is_made_again(tmp_path, method):
    scan = small_scan(views=24, noise=0.05)
    extra = {"tv_weight": "discrepancy"} if method == "tv" else {"pixels": 20}
    run = reconstruct(scan, method=method, views=12, angular_range=150.0, **extra)
    write_run(run, tmp_path / "run.h5")
    found = read_run(tmp_path / "run.h5")
    assert found.scan.geometry.n_views == 12
    assert found.image.shape == ((25, 25) if method == "tv" else (20, 20))
    again = reconstruct(found.scan, **found.settings)
    np.testing.assert_array_equal(again.image, run.image)
    if method == "tv":
        assert found.configuration["tv_weight_chosen_by"] == "discrepancy"
        assert isinstance(found.configuration["tv_weight"], float)


def test_binning_is_not_done_twice(tmp_path):
    run = reconstruct(small_scan(), method="fbp", bin=2)
    assert run.configuration["bin"] == 2 and "bin" not in run.settings
    np.testing.assert_array_equal(reconstruct(run.scan, **run.settings).image, run.image)
    assert reconstruct(run.scan, **run.settings, bin=2).projections.shape != run.projections.shape


def test_the_input_digest_tells_scans_apart():
    scan = small_scan()
    changed = scan.projections.copy()
    changed[3, 4] = np.nextafter(changed[3, 4], 9)
    moved = replace(scan, grid=replace(scan.grid, center=(0.1, 0)), truth=None)
    turned = scan.select_views(np.arange(scan.geometry.n_views)[::-1])
    others = [replace(scan, projections=changed), moved, turned]
    assert scan_digest(small_scan()) == scan_digest(scan)
    assert len({scan_digest(each) for each in [scan, *others]}) == 4


def test_a_run_file_has_a_fitting_name(run, tmp_path):
    with pytest.raises(ConfigurationError, match=r"end in \.h5"):
        write_run(run, tmp_path / "run.json")
    assert not list(tmp_path.iterdir())


def test_names_may_be_text(run, tmp_path):
    write_run(run, str(tmp_path / "run.hdf5"))
    assert read_run(str(tmp_path / "run.hdf5")).seed == run.seed


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "run.h5"
    write_run(reconstruct(small_scan(), method="fbp"), path)
    return path


@pytest.mark.parametrize("kept", [0, 100, 4000, -1])
def test_a_truncated_file_is_refused(written, kept):
    written.write_bytes(written.read_bytes()[:kept])
    with pytest.raises(FileFormatError, match=r"run\.h5"):
        read_run(written)
    assert not is_run_file(written)


def test_foreign_files_are_refused(tmp_path):
    text, scan, other = tmp_path / "a.h5", tmp_path / "b.h5", tmp_path / "c.h5"
    text.write_text("no HDF5")
    write_scan(small_scan(), scan)
    with h5py.File(other, "w") as file:
        file["x"] = 1
    for path, message in ((text, "truncated or of another kind"), (scan, "dipct scan info")):
        with pytest.raises(FileFormatError, match=message):
            read_run(path)
    with pytest.raises(FileFormatError, match="another one"):
        read_run(other)
    with pytest.raises(FileFormatError, match="no such file"):
        read_run(tmp_path / "missing.h5")
    assert not any(is_run_file(path) for path in (text, scan, other, tmp_path, tmp_path / "no"))


def test_a_newer_version_is_refused(written):
    with h5py.File(written, "a") as file:
        file.attrs["version"] = 2
    with pytest.raises(FileFormatError, match=r"version 2.*up to 1.*Upgrade"):
        read_run(written)


@pytest.mark.parametrize(
    "name", ["scan", "metrics", "reconstruction/image", "reconstruction/history"]
)
def test_a_missing_part_is_named(written, name):
    assert is_run_file(written)
    with h5py.File(written, "a") as file:
        del file[name]
    with pytest.raises(FileFormatError, match=name.split("/")[-1]):
        read_run(written)


def test_an_image_of_another_scan_is_refused(written):
    with h5py.File(written, "a") as file:
        del file["reconstruction/image"]
        file["reconstruction/image"] = np.zeros((3, 4), np.float32)
    with pytest.raises(FileFormatError, match="do not belong to the scan"):
        read_run(written)
