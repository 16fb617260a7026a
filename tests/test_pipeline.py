from dataclasses import replace

import numpy as np
import pytest
import tifffile
from small_scans import PIXELS, matrix_scan, pixel_scan, small_scan

from dipct import (
    ConeGeometry,
    FanGeometry,
    GaussianNoise,
    Grid,
    ParallelGeometry,
    PoissonNoise,
    RayTransform,
    ReconstructionConfiguration,
    Scan,
    VectorGeometry,
    reconstruct,
    simulate,
)
from dipct.errors import (
    ConfigurationError,
    DataError,
    DeviceUnavailableError,
    DipctError,
    FileFormatError,
    GeometryError,
    InsufficientMemoryError,
    ShapeError,
)
from dipct.evaluation import psnr, ssim
from dipct.measurement.digest import scan_digest
from dipct.measurement.preprocessing import estimate_noise_std
from dipct.pipeline import open_scan
from dipct.run import write_run

SETTINGS = {
    "fbp": {},
    "fdk": {},
    "cgls": {"iterations": 8},
    "sirt": {"iterations": 60},
    "tv": {"tv_weight": 4.0, "iterations": 300},
}


def vector_scan():
    """A fan scan told view by view."""
    scan = small_scan("fan")
    geometry = VectorGeometry(scan.geometry.vectors(), 1, scan.geometry.n_columns, "cone", True)
    return replace(scan, geometry=geometry)


SCANS = {
    **{kind: lambda kind=kind: small_scan(kind) for kind in PIXELS},
    "vectors": vector_scan,
    "matrix": lambda: matrix_scan(small_scan()),
    "pixel units": pixel_scan,
    "poisson": lambda: small_scan(noise=None, counts=1e5),
}
PLANAR = [name for name in SCANS if name != "cone"]


def correlation(image, truth):
    return float(np.corrcoef(image.ravel(), truth.ravel())[0, 1])


@pytest.fixture(scope="module")
def scans():
    return {name: make() for name, make in SCANS.items()}


# Every method on every kind of scan


@pytest.mark.parametrize("method", ["cgls", "sirt", "tv"])
@pytest.mark.parametrize("kind", SCANS)
def test_iterative_methods_reconstruct_every_kind(scans, kind, method):
    scan = scans[kind]
    run = reconstruct(scan, method=method, **SETTINGS[method])
    assert run.image.shape == scan.grid.shape and run.image.dtype == np.float32
    assert correlation(run.image, scan.truth) > 0.8
    assert run.metrics["relative_residual"] < 0.25
    assert run.iterations > 0 and run.history["iteration"][-1] == run.iterations
    assert run.status in ("CONVERGED", "MAX_ITERATIONS") and run.advice
    assert run.method == run.configuration["method"] == method
    assert all(len(values) == len(run.history["iteration"]) for values in run.history.values())
    expected = RayTransform(scan.geometry, scan.grid)(_tensor(run.image)).numpy()
    np.testing.assert_allclose(run.projections, expected, rtol=1e-4, atol=1e-4 * expected.max())
    if method != "cgls":
        assert run.image.min() >= 0


@pytest.mark.parametrize("kind", ["parallel", "fan", "vectors", "pixel units", "poisson"])
def test_fbp_reconstructs_planar_scans(scans, kind):
    scan = scans[kind]
    run = reconstruct(scan, method="fbp")
    assert correlation(run.image, scan.truth) > 0.7
    assert (run.status, run.iterations, run.history, run.advice) == ("DONE", 0, {}, "")
    expected = RayTransform(scan.geometry, scan.grid)(_tensor(run.image)).numpy()
    np.testing.assert_allclose(run.projections, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_fdk_reconstructs_a_volume(scans):
    run = reconstruct(scans["cone"], method="fdk", filter="hann")
    assert run.image.shape == (13, 13, 13) and run.status == "DONE"
    assert correlation(run.image, scans["cone"].truth) > 0.7
    assert run.configuration["filter"] == "hann"


def _tensor(image):
    import torch

    return torch.from_numpy(image)[None]


@pytest.mark.parametrize("name", ["hann", "cosine", "ram-lak"])
def test_the_filter_is_used(scans, name):
    run = reconstruct(scans["parallel"], method="fbp", filter=name, frequency_scaling=0.8)
    default = reconstruct(scans["parallel"], method="fbp")
    assert np.abs(run.image - default.image).max() > 1e-4 * default.image.max()


def test_analytic_methods_fit_their_geometry(scans):
    with pytest.raises(ConfigurationError, match="reconstructs a volume: use method fdk"):
        reconstruct(scans["cone"], method="fbp")
    for kind in ("fan", "parallel"):
        with pytest.raises(ConfigurationError, match="reconstructs an image: use method fbp"):
            reconstruct(scans[kind], method="fdk")
    with pytest.raises(GeometryError, match=r"system matrix.*FBP"):
        reconstruct(scans["matrix"], method="fbp")


# Backends


# No view at 45 degrees, where a projector may walk along either axis.
@pytest.mark.parametrize(
    ("kind", "projector", "views"),
    [("parallel", "siddon", 18), ("parallel", "joseph", 18), ("fan", "siddon", 20)],
)
def test_backends_agree(kind, projector, views):
    scan = small_scan(kind, views=views)
    shared = {"method": "sirt", "iterations": 10, "projector": projector}
    images = {
        backend: reconstruct(scan, backend=backend, **shared).image
        for backend in ("matrix", "traced", "astra")
    }
    peak = images["matrix"].max()
    rounding = 1e-5
    np.testing.assert_allclose(images["traced"], images["matrix"], atol=rounding * peak)
    # ASTRA computes in single precision and lets rays through corners go either way.
    np.testing.assert_allclose(images["astra"], images["matrix"], atol=0.02 * peak)
    other = {"siddon": "joseph", "joseph": "siddon"}[projector]
    changed = reconstruct(scan, **shared | {"projector": other}).image
    assert np.abs(changed - images["matrix"]).max() > 1e-3 * peak


def test_a_backend_that_cannot_is_told(scans):
    with pytest.raises(ConfigurationError, match="ASTRA has no projector 'joseph'"):
        reconstruct(scans["fan"], method="sirt", backend="astra", projector="joseph")


@pytest.mark.parametrize("kind", ["cone", "cwi-walnut"])
def test_traced_rays_agree_with_the_matrix(scans, kind):
    shared = {"method": "sirt", "iterations": 4}
    one, other = (
        reconstruct(scans[kind], backend=backend, **shared).image
        for backend in ("matrix", "traced")
    )
    np.testing.assert_allclose(one, other, atol=1e-5 * one.max())


def test_the_cache_changes_nothing(scans, tmp_path):
    runs = [
        reconstruct(scans["fan"], method="cgls", cache=cache)
        for cache in (False, tmp_path, tmp_path)
    ]
    # A quadrant and the middle pixel, since the scan repeats itself every quarter turn.
    assert len(list(tmp_path.iterdir())) == 2
    for run in runs[1:]:
        np.testing.assert_array_equal(run.image, runs[0].image)


# Selections


def test_selections_are_those_of_the_scan(scans):
    scan = small_scan(views=36)
    run = reconstruct(scan, method="fbp", angular_range=90.0, views=6, bin=3, pixels=16)
    expected = scan.angular_range(90.0).equispaced_views(6).bin_detector(3)
    np.testing.assert_array_equal(run.scan.projections, expected.projections)
    np.testing.assert_array_equal(run.scan.geometry.angles, expected.geometry.angles)
    assert np.rad2deg(np.ptp(run.scan.geometry.angles)) <= 90
    assert run.scan.grid == scan.grid.resized(16) and run.image.shape == (16, 16)
    assert run.scan.grid.size == pytest.approx(scan.grid.size)
    assert run.input_sha256 == scan_digest(scan) != scan_digest(run.scan)
    assert "resampled from (25, 25)" in run.scan.truth_source
    assert run.metrics["psnr_db"] == psnr(run.image, run.scan.truth)


def test_a_coarser_truth_is_the_mean():
    scan = small_scan(pixels=24)
    run = reconstruct(scan, method="fbp", pixels=12)
    means = scan.truth.reshape(12, 2, 12, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(run.scan.truth, means, atol=1e-6 * means.max())
    finer = reconstruct(scan, method="fbp", pixels=48).scan.truth
    assert finer.shape == (48, 48) and finer.mean() == pytest.approx(scan.truth.mean(), rel=0.05)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"views": 17}, GeometryError, "16 views; cannot choose 17"),
        ({"bin": 1000}, GeometryError, "whole factor from 1 to"),
        ({"pixels": 10**5}, InsufficientMemoryError, "Use fewer pixels"),
        ({"pixels": 10**12}, InsufficientMemoryError, "Use fewer pixels"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["fbp", "tv"])
def test_impossible_selections_are_refused(scans, settings, error, message, method):
    with pytest.raises(error, match=message) as caught:
        reconstruct(scans["parallel"], method=method, **settings)
    assert isinstance(caught.value, DipctError)


def test_a_scan_by_matrix_keeps_its_grid(scans):
    with pytest.raises(GeometryError, match="Another grid cannot be used"):
        reconstruct(scans["matrix"], method="cgls", pixels=12)
    run = reconstruct(scans["matrix"], method="cgls", views=8)
    assert run.projections.shape[0] == 8


# Truth and figures of merit


@pytest.mark.parametrize("kind", ["parallel", "cone", "pixel units"])
def test_metrics_are_what_they_are_called(scans, kind):
    scan = scans[kind]
    run = reconstruct(scan, method="sirt", iterations=12)
    residual = run.projections.astype(np.float64) - scan.projections
    norm = np.linalg.norm(scan.projections.astype(np.float64))
    assert run.metrics["relative_residual"] == pytest.approx(np.linalg.norm(residual) / norm)
    chi = np.mean((residual / scan.noise.std) ** 2)
    assert run.metrics["reduced_chi_squared"] == pytest.approx(chi)
    error = np.mean((run.image.astype(np.float64) - scan.truth) ** 2)
    data_range = float(np.ptp(scan.truth))
    assert run.metrics["psnr_db"] == pytest.approx(10 * np.log10(data_range**2 / error), abs=1e-4)
    assert run.metrics["ssim"] == pytest.approx(ssim(run.image, scan.truth))
    assert -1 <= run.metrics["ssim"] <= 1


def test_photon_noise_weighs_the_residual(scans):
    scan = scans["poisson"]
    run = reconstruct(scan, method="sirt", iterations=12)
    std = np.exp(scan.projections / 2) / np.sqrt(1e5)
    chi = np.mean(((run.projections - scan.projections) / std) ** 2)
    assert run.metrics["reduced_chi_squared"] == pytest.approx(chi, rel=1e-4)


def test_without_truth_and_noise_only_the_residual_is_known(scans):
    scan = replace(scans["parallel"], truth=None, truth_source="", noise=None)
    run = reconstruct(scan, method="sirt", iterations=3)
    assert run.metrics.keys() == {"relative_residual"} and run.scan.noise is None


@pytest.mark.parametrize("name", ["truth.tif", "truth.npy", "truth.h5"])
def test_the_truth_may_come_from_a_file(scans, tmp_path, name):
    scan, path = scans["parallel"], tmp_path / name
    truth = np.float32(scan.truth * 1.1)
    if name.endswith("tif"):
        tifffile.imwrite(path, truth)
    elif name.endswith("npy"):
        np.save(path, truth)
    else:
        write_run(replace(reconstruct(scan, method="fbp"), image=truth), path)
    run = reconstruct(scan, method="fbp", truth=path)
    np.testing.assert_array_equal(run.scan.truth, truth)
    assert run.scan.truth_source == f"file {name}"
    assert run.metrics["psnr_db"] == psnr(run.image, truth)
    assert run.metrics["psnr_db"] != reconstruct(scan, method="fbp").metrics["psnr_db"]


def test_a_truth_that_cannot_be_compared_is_refused(scans, tmp_path):
    scan = scans["parallel"]
    np.save(tmp_path / "small.npy", np.ones((8, 8), np.float32))
    np.save(tmp_path / "picture.npy", np.ones((25, 25), np.uint8))
    np.save(tmp_path / "nan.npy", np.full((25, 25), np.nan))
    for name, error, message in (
        ("small.npy", ShapeError, r"shape \(8, 8\).*\(25, 25\).*--pixels"),
        ("picture.npy", DataError, "whole numbers"),
        ("nan.npy", DataError, "NaN"),
        ("missing.npy", FileFormatError, "no such image"),
    ):
        with pytest.raises(error, match=message) as caught:
            reconstruct(scan, method="fbp", truth=tmp_path / name)
        assert name in str(caught.value)


# Noise


def test_the_noise_is_estimated_where_the_scan_has_none():
    scan = small_scan(views=60, noise=0.05, pixels=32)
    std = scan.noise.std
    unknown = replace(scan, noise=None)
    run = reconstruct(unknown, method="tv", tv_weight=6.0)
    estimate = estimate_noise_std(scan.projections)
    assert run.scan.noise.std == pytest.approx(estimate.std)
    assert run.scan.noise.std == pytest.approx(std, rel=0.6)
    assert estimate.method in run.scan.metadata["noise"]
    given = reconstruct(
        replace(scan, noise=GaussianNoise(estimate.std)), method="tv", tv_weight=6.0
    )
    np.testing.assert_array_equal(run.image, given.image)
    assert reconstruct(unknown, method="cgls").scan.noise is None


def test_a_scan_without_any_noise_has_no_total_variation_weight():
    scan = small_scan(noise=0)
    flat = replace(scan, projections=np.zeros_like(scan.projections), truth=None, truth_source="")
    with pytest.raises(DataError, match=r"does not describe its noise.*cgls or sirt"):
        reconstruct(flat, method="tv", tv_weight=1.0)


@pytest.mark.parametrize("method", ["cgls", "sirt"])
def test_iterations_stop_at_the_noise_level(method):
    scan = small_scan(noise=0.1, views=24)
    run = reconstruct(scan, method=method, iterations=500, stopping="discrepancy")
    assert run.status == "DISCREPANCY_REACHED"
    assert 0.5 < run.metrics["reduced_chi_squared"] <= 1.001
    last = reconstruct(scan, method=method, iterations=500)
    assert run.iterations < last.iterations
    assert last.metrics["reduced_chi_squared"] < run.metrics["reduced_chi_squared"]


@pytest.mark.parametrize("noise", [{"noise": 0.05}, {"noise": None, "counts": 3000.0}], ids=str)
def test_the_weight_is_chosen_by_the_discrepancy(noise):
    scan = small_scan(views=24, **noise)
    run = reconstruct(scan, method="tv", tv_weight="discrepancy")
    assert run.status == "CONVERGED"
    assert run.metrics["reduced_chi_squared"] == pytest.approx(1, abs=0.05)
    assert run.configuration["tv_weight_chosen_by"] == "discrepancy"
    assert run.configuration["data_term"] == scan.noise.kind
    assert run.metrics["psnr_db"] > reconstruct(scan, method="cgls").metrics["psnr_db"]
    weight = run.configuration["tv_weight"]
    for other in (weight / 5, 5 * weight):
        changed = reconstruct(scan, method="tv", tv_weight=other)
        assert changed.configuration["tv_weight_chosen_by"] == "setting"
        assert abs(changed.metrics["reduced_chi_squared"] - 1) > 0.05


def test_a_noise_level_that_cannot_be_reached_is_told_and_replaced_by_one_that_can(caplog):
    scan = small_scan(noise=0.05)
    honest = reconstruct(scan, method="tv", tv_weight="discrepancy")
    wrong = replace(scan, noise=GaussianNoise(scan.noise.std / 20))
    with caplog.at_level("INFO", logger="dipct"):
        run = reconstruct(wrong, method="tv", tv_weight="discrepancy")
    target = run.configuration["discrepancy_target"]
    assert target > 20
    assert run.metrics["reduced_chi_squared"] == pytest.approx(target, rel=0.05)
    assert "more noise than assumed" in caplog.text
    assert run.metrics["psnr_db"] > honest.metrics["psnr_db"] - 3


def test_noise_larger_than_all_structure_is_told_with_the_way_out():
    scan = small_scan(noise=0.05)
    with pytest.raises(ConfigurationError, match=r"larger than all structure.*tv_weight, a number"):
        loud = replace(scan, noise=GaussianNoise(100 * scan.noise.std))
        reconstruct(loud, method="tv", tv_weight="discrepancy")


# Units


def in_centimetres(scan):
    """The same scan with all lengths a tenth: the same numbers in another unit."""
    geometry, grid = scan.geometry, scan.grid
    lengths = ("column_spacing", "source_origin", "origin_detector", "row_spacing")
    lengths += ("column_offset", "row_offset")
    if isinstance(geometry, VectorGeometry):
        scaled = replace(geometry, view_vectors=0.1 * geometry.view_vectors)
    else:
        values = geometry.to_dict()
        # Offsets are in the unit of the other lengths only where they are no column numbers.
        scaled = replace(geometry, **{k: 0.1 * v for k, v in values.items() if k in lengths})
    center = tuple(0.1 * c for c in grid.center)
    return Scan(
        scan.projections,
        scaled,
        Grid(grid.shape, 0.1 * grid.pixel_size, center),
        noise=scan.noise,
        truth=10 * scan.truth,
        truth_source=scan.truth_source,
    )


@pytest.mark.parametrize("kind", ["parallel", "fan", "cone"])
@pytest.mark.parametrize("weight", [5.0, "discrepancy"])
def test_total_variation_knows_no_unit_of_length(kind, weight):
    small = {"pixels": 9, "views": 12} if kind == "cone" else {"pixels": 21, "views": 20}
    scan = small_scan(kind, noise=0.05, **small)
    assert isinstance(scan.geometry, ParallelGeometry | FanGeometry | ConeGeometry)
    run = reconstruct(scan, method="tv", tv_weight=weight)
    other = reconstruct(in_centimetres(scan), method="tv", tv_weight=weight)
    np.testing.assert_allclose(other.image / 10, run.image, atol=2e-3 * run.image.max())
    chosen = [each.configuration["tv_weight"] for each in (run, other)]
    assert chosen[1] == pytest.approx(chosen[0], rel=1e-3)
    scales = [each.configuration["image_scale"] for each in (run, other)]
    assert scales[1] == pytest.approx(10 * scales[0], rel=1e-5)
    assert other.metrics["psnr_db"] == pytest.approx(run.metrics["psnr_db"], abs=0.02)


@pytest.mark.parametrize("method", ["fbp", "cgls", "sirt"])
def test_other_methods_know_no_unit_of_length(method):
    scan = small_scan("fan", noise=0.05)
    run, other = (reconstruct(each, method=method) for each in (scan, in_centimetres(scan)))
    np.testing.assert_allclose(other.image / 10, run.image, atol=1e-3 * run.image.max())


# The call


def test_settings_or_a_configuration(scans):
    configuration = ReconstructionConfiguration(method="cgls", iterations=3)
    one = reconstruct(scans["parallel"], configuration)
    other = reconstruct(scans["parallel"], method="cgls", iterations=3)
    np.testing.assert_array_equal(one.image, other.image)
    with pytest.raises(ConfigurationError, match="not both; got views"):
        reconstruct(scans["parallel"], configuration, views=3)
    with pytest.raises(ConfigurationError, match="method: field required"):
        reconstruct(scans["parallel"])
    with pytest.raises(ConfigurationError, match="Did you mean iterations"):
        reconstruct(scans["parallel"], method="cgls", iteration=3)


def test_the_scan_is_left_as_it_was(scans):
    scan = scans["parallel"]
    before = scan_digest(scan), scan.truth.copy()
    reconstruct(scan, method="tv", tv_weight=3.0, iterations=20)
    assert scan_digest(scan) == before[0]
    np.testing.assert_array_equal(scan.truth, before[1])


def test_a_missing_device_is_told(scans):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    for name in ("cuda", "cuda:7", "mps"):
        with pytest.raises(DeviceUnavailableError, match=f"{name}.*not available"):
            reconstruct(scans["parallel"], method="cgls", device=name)
    with pytest.raises(ConfigurationError, match="cpu, cuda or cuda:1; got 'gpu'"):
        reconstruct(scans["parallel"], method="cgls", device="gpu")


def test_results_do_not_depend_on_what_was_run_before(scans):
    one = reconstruct(scans["fan"], method="tv", tv_weight=3.0, iterations=40)
    reconstruct(scans["parallel"], method="sirt", iterations=3)
    other = reconstruct(scans["fan"], method="tv", tv_weight=3.0, iterations=40)
    np.testing.assert_array_equal(one.image, other.image)


def test_open_scan_knows_files_and_examples(tmp_path):
    from dipct import write_scan

    scan = small_scan("fan", noise=None, counts=1e4)
    write_scan(scan, tmp_path / "a b é.h5")
    for name in (tmp_path / "a b é.h5", str(tmp_path / "a b é.h5")):
        found = open_scan(name)
        assert scan_digest(found) == scan_digest(scan) and isinstance(found.noise, PoissonNoise)
    settings = ReconstructionConfiguration(method="tv", pixels=16, seed=3)
    example = open_scan("example:walnut", settings)
    expected = simulate("example:walnut", pixels=16, seed=3)
    assert scan_digest(example) == scan_digest(expected)
    with pytest.raises(InsufficientMemoryError):
        open_scan("example:walnut", ReconstructionConfiguration(method="tv", pixels=10**7))


def test_a_run_file_is_no_scan(scans, tmp_path):
    write_run(reconstruct(scans["parallel"], method="fbp"), tmp_path / "run.h5")
    with pytest.raises(FileFormatError, match=r"run file.*dipct show"):
        open_scan(tmp_path / "run.h5")
