import json
import re
import subprocess

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
from terminals import DIPCT, Terminal, environment
from test_datasets import CONTENT, NAME, Repository
from typer.main import get_command

from dipct import ReconstructionConfiguration, generator_of, read_run
from dipct.cli import app
from dipct.measurement.datasets import fetch, list_data_sets
from dipct.measurement.scan_file import read_scan_file

COMMANDS = (
    (),
    ("simulate",),
    ("reconstruct",),
    ("show",),
    ("compare",),
    ("export",),
    ("scan",),
    ("scan", "info"),
    ("data",),
    ("data", "list"),
    ("data", "fetch"),
)
PNG = b"\x89PNG\r\n"


@pytest.fixture
def work(tmp_path, monkeypatch, dipct_command):
    """Work in an empty folder; commands must succeed and print no escape codes."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = dipct_command(*arguments)
        assert result.code == code, result
        assert "\x1b" not in result.out + result.err
        return result

    run.folder = tmp_path
    return run


def _dip(*options):
    return ("reconstruct", "none.h5", "--out", "a.h5", "--method", "dip", *options)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_from_a_phantom_to_exported_images(work):
    made = work("simulate", "discs", "--pixels", 32, "--views", 30, "--out", "scan.h5")
    assert made.out == "Wrote scan.h5: 30 x 47 projections.\n"
    assert read_scan_file("scan.h5").metadata["object"] == "discs phantom, seed 0"

    info = work("scan", "info", "scan.h5").out
    for text in ("parallel", "30 views, 0.00 to 174.00 degrees", "47 columns", "32 x 32 pixels"):
        assert text in info
    for text in ("Gaussian, standard deviation", "simulated object", "Wrote scan-scan.png."):
        assert text in info
    assert names(work.folder) == {"scan.h5", "scan-scan.png"}

    options = {
        "fbp": ("--filter", "hann"),
        "cgls": ("--iterations", 6),
        "sirt": ("--iterations", 20),
        "tv": ("--tv-weight", 3, "--iterations", 100),
        "dip": ("--network", "small", "--tv-weight", 3, "--iterations", 25),
    }
    for method, extra in options.items():
        result = work("reconstruct", "scan.h5", "--method", method, "--out", f"{method}.h5", *extra)
        assert f"Wrote {method}.h5, {method}.json and {method}.png." in result.out
        run = read_run(f"{method}.h5")
        assert (run.method, run.source) == (method, "scan.h5")
        assert f"{run.metrics['psnr_db']:.4g}" in result.out and run.status in result.out
        with open(f"{method}.json") as file:
            assert json.load(file)["metrics"] == dict(run.metrics)
        with open(f"{method}.png", "rb") as file:
            assert file.read(6) == PNG

    (work.folder / "tv.png").unlink()
    shown = work("show", "tv.h5").out
    assert "tv" in shown and "Wrote tv.png." in shown and (work.folder / "tv.png").exists()
    work("show", "tv.h5", "--out", "figure.pdf")
    assert (work.folder / "figure.pdf").read_bytes().startswith(b"%PDF")

    compared = work("compare", *(f"{method}.h5" for method in options)).out
    for text in ("psnr_db", "ssim", *options, "Wrote compare.png."):
        assert text in compared
    for run in map(read_run, ("fbp.h5", "tv.h5")):
        assert f"{run.metrics['ssim']:.4g}" in compared

    assert work("export", "tv.h5", "--to", "tiff").out == "Wrote tv.tif.\n"
    assert work("export", "tv.h5", "--to", "nifti").out == "Wrote tv.nii.gz.\n"
    np.testing.assert_array_equal(tifffile.imread("tv.tif"), read_run("tv.h5").image)
    assert nibabel.load("tv.nii.gz").shape == (32, 32, 1)
    assert not [name for name in names(work.folder) if name.endswith((".part", ".checkpoint"))]


def test_a_volume_from_end_to_end(work):
    work(
        *("simulate", "ellipses", "--geometry", "cone", "--pixels", 12, "--views", 20),
        *("--out", "scan.h5"),
    )
    work("scan", "info", "scan.h5", "--out", "look.png")
    work("reconstruct", "scan.h5", "--method", "fdk", "--out", "fdk.h5")
    work("reconstruct", "scan.h5", "--method", "sirt", "--iterations", 5, "--out", "sirt.h5")
    work("compare", "fdk.h5", "sirt.h5", "--out", "both.png")
    work("export", "fdk.h5", "--to", "nifti", "--out", "volume.nii.gz")
    assert nibabel.load("volume.nii.gz").shape == (12, 12, 12)
    work("export", "fdk.h5", "--to", "tiff")
    assert tifffile.imread("fdk.tif").shape == (12, 12, 12)


def test_the_example(work):
    command = ("reconstruct", "example:walnut", "--pixels", 32, "--method", "fbp", "--seed", 2)
    work(*command, "--out", "walnut.h5")
    run = read_run("walnut.h5")
    assert (run.source, run.seed) == ("example:walnut", 2) and run.image.shape == (32, 32)
    assert "seed 2" in run.scan.truth_source
    work("simulate", "example:walnut", "--pixels", 32, "--seed", 2, "--out", "scan.h5")
    np.testing.assert_array_equal(read_scan_file("scan.h5").projections, run.scan.projections)
    assert "Wrote example-walnut-scan.png." in work("scan", "info", "example:walnut").out


def test_selections(work):
    work("simulate", "discs", "--pixels", 32, "--views", 36, "--out", "scan.h5", "--counts", 1e5)
    options = ("--views", 9, "--angular-range", 90, "--bin", 2, "--pixels", 20)
    work("reconstruct", "scan.h5", "--method", "fbp", "--out", "run.h5", *options)
    run = read_run("run.h5")
    assert run.scan.geometry.n_views == 9 and run.image.shape == (20, 20)
    assert run.projections.shape == (9, 23) and run.scan.noise.kind == "poisson"
    assert np.rad2deg(run.scan.geometry.angles.max()) <= 90


def test_another_scan_lends_its_geometry(work):
    work("simulate", "discs", "--geometry", "fan", "--pixels", 16, "--views", 8, "--out", "a.h5")
    work("simulate", "ellipses", "--like", "a.h5", "--out", "b.h5", "--noise", 0)
    one, other = read_scan_file("a.h5"), read_scan_file("b.h5")
    np.testing.assert_array_equal(one.geometry.angles, other.geometry.angles)
    assert one.grid == other.grid and other.noise is None and other.geometry.kind == "fan"


def test_a_configuration_file(work):
    work("simulate", "discs", "--pixels", 16, "--views", 8, "--out", "scan.h5")
    (work.folder / "settings.toml").write_text('method = "cgls"\niterations = 4\nviews = 5\n')
    work("reconstruct", "scan.h5", "--config", "settings.toml", "--out", "run.h5")
    run = read_run("run.h5")
    assert (run.method, run.iterations, run.scan.geometry.n_views) == ("cgls", 4, 5)


def test_total_variation_is_the_default(work):
    work(
        *("simulate", "discs", "--pixels", 25, "--views", 20, "--oversampling", 1),
        *("--out", "scan.h5"),
    )
    result = work("reconstruct", "scan.h5", "--out", "run.h5")
    run = read_run("run.h5")
    assert run.method == "tv" and run.configuration["tv_weight_chosen_by"] == "setting"
    assert run.configuration["tv_weight"] == 2.0 and "discrepancy" not in result.err
    result = work("reconstruct", "scan.h5", "--tv-weight", "discrepancy", "--out", "run.h5")
    assert read_run("run.h5").configuration["tv_weight_chosen_by"] == "discrepancy"
    assert "discrepancy principle" in result.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            (*("--stopping", "variance", "--window", 4, "--patience", 9), "--no-decay"),
            {"stopping": "variance", "window": 4, "patience": 9, "decay": False},
        ),
        (
            (*("--stopping", "discrepancy", "--input", "both", "--isotropic"), "--decay"),
            {"stopping": "discrepancy", "input": "both", "isotropic": True, "decay": True},
        ),
        (
            (
                *("--stopping", "none", "--output", "identity", "--upsampling", "nearest"),
                *("--learning-rate", 0.01, "--tv-weight", "discrepancy", "--seed", 3),
            ),
            {
                **{"stopping": "none", "output": "identity", "upsampling": "nearest"},
                **{"learning_rate": 0.01, "tv_weight_chosen_by": "discrepancy", "seed": 3},
            },
        ),
    ],
    ids=["variance", "discrepancy", "none"],
)
def test_the_deep_image_prior(work, options, expected):
    work(
        *("simulate", "ellipses", "--geometry", "fan", "--pixels", 17, "--views", 14),
        *("--oversampling", 1, "--noise", 0.3, "--out", "small.h5"),
    )
    result = work(
        *("reconstruct", "small.h5", "--method", "dip", "--network", "small"),
        *("--iterations", 40, "--precision", "float32", *options, "--out", "x.h5"),
    )
    assert "Wrote x.h5, x.json and x.png." in result.out
    assert names(work.folder) == {"small.h5", "x.h5", "x.json", "x.png"}
    run = read_run("x.h5")
    recorded = run.configuration
    assert {name: recorded[name] for name in expected} == expected
    assert (recorded["network"], recorded["precision"]) == ("small", "float32")
    assert run.status in result.out and run.iterations <= 40
    # That is the default too.
    assert "Choosing the total-variation weight" in result.err
    generator, theta, scale = generator_of(run)
    np.testing.assert_array_equal((scale * generator(theta))[0].numpy(), run.image)
    with open("x.json") as file:
        assert json.load(file)["configuration"] == recorded
    assert "Wrote x.png." in work("show", "x.h5").out
    work("export", "x.h5", "--to", "tiff")
    np.testing.assert_array_equal(tifffile.imread("x.tif"), run.image)


def test_a_configuration_file_for_the_network(work):
    work("simulate", "discs", "--pixels", 16, "--views", 8, "--out", "scan.h5")
    (work.folder / "settings.toml").write_text(
        'method = "dip"\niterations = 3\nnetwork = "small"\ntv_weight = 1\ninput = "noise"\n'
    )
    command = ("reconstruct", "scan.h5", "--config", "settings.toml", "--out", "run.h5")
    work(*command)
    first = read_run("run.h5")
    assert (first.method, first.iterations) == ("dip", 3)
    assert (first.configuration["input"], first.configuration["tv_weight"]) == ("noise", 1.0)
    work(*command, "--input", "fbp", "--iterations", 2)
    second = read_run("run.h5")
    assert (second.iterations, second.configuration["input"]) == (2, "fbp")


def test_a_volume_has_no_deep_image_prior(work):
    work(
        *("simulate", "ellipses", "--geometry", "cone", "--pixels", 6, "--views", 5),
        *("--out", "scan.h5"),
    )
    result = work("reconstruct", "scan.h5", "--method", "dip", "--out", "run.h5", code=1)
    assert "this scan is of a volume" in result.err and names(work.folder) == {"scan.h5"}


def test_a_seed_belongs_to_examples(work, tmp_path):
    work("simulate", "discs", "--pixels", 25, "--views", 20, "--out", "scan.h5")
    result = work("reconstruct", "scan.h5", "--seed", 7, "--out", "run.h5", code=1)
    assert "nothing about scan.h5 is random" in result.err
    network = ("--method", "dip", "--network", "small", "--tv-weight", 0, "--iterations", 2)
    images = []
    for seed in (7, 7, 8):
        work("reconstruct", "scan.h5", "--seed", seed, "--out", "run.h5", *network)
        images.append(read_run("run.h5").image)
        assert read_run("run.h5").seed == seed
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_a_diverged_run_fails_but_keeps_what_it_has(work):
    work("simulate", "discs", "--pixels", 25, "--views", 20, "--out", "scan.h5")
    with h5py.File("scan.h5", "r+") as file:
        file["projections"][...] = 1e30 * file["projections"][...]
    result = work("reconstruct", "scan.h5", "--method", "cgls", "--out", "run.h5", code=1)
    assert "diverged" in result.err and read_run("run.h5").status == "DIVERGED"


def test_unmeasured_directions_are_told(work):
    work("simulate", "discs", "--pixels", 25, "--views", 36, "--out", "scan.h5")
    command = ("reconstruct", "scan.h5", "--method", "fbp", "--out", "run.h5")
    assert "unmeasured" not in work(*command).err
    assert "90 of 180 degrees unmeasured" in work(*command, "--angular-range", 85).err


def test_awkward_names(work):
    folder = work.folder / "my [red] scäns %d"
    folder.mkdir()
    scan, run = folder / "scan [1] é.h5", folder / "run [bold] ü.h5"
    result = work("simulate", "discs", "--pixels", 16, "--views", 8, "--out", scan)
    assert str(scan) in result.out
    result = work("reconstruct", scan, "--method", "fbp", "--out", run)
    assert f"Wrote {run}," in result.out and "scan [1] é.h5" in "".join(result.out.split("\n"))
    work("show", run)
    copy = work.folder / run.name
    copy.write_bytes(run.read_bytes())
    compared = work("compare", run, copy).out
    # Two files of one name are told apart by their folders.
    assert "[red]" in "".join(compared.split()) and work.folder.name[:6] in "".join(
        compared.split()
    )
    work("reconstruct", scan, "--method", "fbp", "--out", "../" + work.folder.name + "/up.h5")
    assert (work.folder / "up.h5").exists()


def test_existing_results_are_replaced(work):
    work("simulate", "discs", "--pixels", 16, "--views", 8, "--out", "scan.h5")
    for name in ("hann", "cosine"):
        work("reconstruct", "scan.h5", "--method", "fbp", "--filter", name, "--out", "run.h5")
        assert read_run("run.h5").configuration["filter"] == name
    assert names(work.folder) == {"scan.h5", "run.h5", "run.json", "run.png"}


def test_the_run_file_may_be_called_hdf5(work):
    work("simulate", "discs", "--pixels", 16, "--views", 8, "--out", "scan.HDF5")
    work("reconstruct", "scan.HDF5", "--method", "fbp", "--out", "run.hdf5")
    assert h5py.is_hdf5("run.hdf5") and (work.folder / "run.json").exists()


# Help and errors


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(dipct_command, command):
    result = dipct_command(*command, "--help")
    assert result.code == 0 and result.err == ""
    text = " ".join(re.sub(r"[^\w\s:.,()'-]", " ", result.out).split())
    assert " ".join(("Usage: dipct", *command)) in text.replace("pytest", "dipct")
    assert "Show this message and exit." in text


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "reconstruct",
            "method out views angular-range bin pixels tv-weight isotropic nonnegative iterations "
            "tolerance stopping window patience network input output upsampling precision "
            "learning-rate decay filter frequency-scaling projector backend seed device truth "
            "reader config resume",
        ),
        ("simulate", "out geometry pixels views noise counts seed like"),
        ("export", "to out"),
    ],
)
def test_every_option_is_explained(dipct_command, command, options, monkeypatch):
    # Narrow terminals cut long names.
    monkeypatch.setenv("COLUMNS", "160")
    text = dipct_command(command, "--help").out
    for option in options.split():
        assert f"--{option}" in text


def test_every_setting_has_an_option_with_a_help_text():
    command = get_command(app).commands["reconstruct"]
    options = {parameter.name: parameter.help for parameter in command.params}
    assert set(ReconstructionConfiguration.model_fields) <= set(options)
    assert all(help and help.endswith(".") for help in options.values()), options


def test_the_version(dipct_command):
    assert re.fullmatch(r"dipct \d+\.\d+\.\d+\n", dipct_command("--version").out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("frobnicate",), "No such command 'frobnicate'"),
        (("reconstruct", "scan.h5"), "Missing option '--out'"),
        (("reconstruct", "--out", "a.h5"), "Missing argument"),
        (("reconstruct", "scan.h5", "--out", "a.h5", "--method", "art"), "'art' is not one of"),
        (("reconstruct", "scan.h5", "--out", "a.h5", "--network", "64"), "'64' is not one of"),
        (("reconstruct", "scan.h5", "--out", "a.h5", "--input", "zero"), "'zero' is not one of"),
        (("reconstruct", "scan.h5", "--out", "a.h5", "--stopping", "now"), "'now' is not one of"),
        (("reconstruct", "scan.h5", "--out", "a.h5", "--precision", "16"), "'16' is not one of"),
        (("reconstruct", "scan.h5", "--out", "a.h5", "--window", "wide"), "--window"),
        (("reconstruct", "scan.h5", "--out", "a.h5", "--views", "many"), "--views"),
        (("simulate", "discs", "--out", "a.h5", "--geometry", "helix"), "'helix' is not one of"),
        (("simulate", "discs", "--out", "a.h5", "--viewz", "3"), "--view"),
        (("export", "run.h5", "--to", "png"), "'png' is not one of"),
        (("compare",), "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_exits_with_two(work, dipct_command, arguments, says):
    result = dipct_command(*arguments)
    assert result.code == 2 and says in result.err and "Traceback" not in result.err
    assert not names(work.folder)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("simulate", "wallnut", "--out", "a.h5"), "Did you mean walnut"),
        (("simulate", "discs", "--noise", "-1", "--out", "a.h5"), "noise level"),
        (
            ("simulate", "discs", "--noise", "0.1", "--counts", "9", "--out", "a.h5"),
            "not both",
        ),
        (
            ("simulate", "discs", "--geometry", "fan", "--like", "b.h5", "--out", "a.h5"),
            "not both",
        ),
        (("reconstruct", "none.h5", "--out", "a.h5"), "no such file"),
        (("reconstruct", "none.h5", "--out", "a.h5", "--resume"), "no checkpoint a.h5.checkpoint"),
        (("reconstruct", "example:nut", "--out", "a.h5"), "no example 'nut'"),
        (("reconstruct", "none.h5", "--out", "a.h5", "--tv-weight", "big"), "got 'big'"),
        (
            ("reconstruct", "none.h5", "--out", "a.h5", "--method", "fbp", "--iterations", "3"),
            "fbp has no setting iterations",
        ),
        (_dip("--window", "9"), "and patience belong to stopping variance"),
        (_dip("--stopping", "discrepancy", "--patience", "9"), "belong to stopping variance"),
        (_dip("--stopping", "variance", "--window", "1"), "window"),
        (_dip("--nonnegative"), "dip has no setting nonnegative"),
        (_dip("--tolerance", "0.1"), "dip has no setting tolerance"),
        (_dip("--filter", "hann"), "dip has no setting filter"),
        (_dip("--output", "relu"), "'identity' or 'sigmoid'; got 'relu'"),
        (_dip("--upsampling", "cubic"), "'bilinear' or 'nearest'; got 'cubic'"),
        (_dip("--tv-weight", "-1"), "zero or positive; got -1"),
        (_dip("--tv-weight", "nan"), "zero or positive; got nan"),
        (_dip("--learning-rate", "0"), "greater than 0; got 0"),
        (_dip("--iterations", "0"), "got 0"),
        (_dip("--seed", "-1"), "seed"),
        (_dip(), "no such file"),
        (
            ("reconstruct", "none.h5", "--out", "a.h5", "--stopping", "variance"),
            "tv has no setting stopping; it belongs to cgls, sirt, dip",
        ),
        (
            ("reconstruct", "none.h5", "--out", "a.h5", "--network", "small"),
            "tv has no setting network; it belongs to dip",
        ),
        (("show", "none.h5"), "no such file"),
        (("compare", "none.h5", "nix.h5"), "no such file"),
        (("export", "none.h5", "--to", "tiff"), "no such file"),
        (("scan", "info", "none.h5"), "no such file"),
        (("data", "fetch", "nothing"), "no data set 'nothing'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors_exit_with_one_and_a_message(work, dipct_command, arguments, says):
    result = dipct_command(*arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ") and says in result.err
    assert len(result.err.splitlines()) == 1 and not names(work.folder)


def test_files_of_the_wrong_kind_are_named(work, dipct_command):
    work("simulate", "discs", "--pixels", 16, "--views", 8, "--out", "scan.h5")
    work("reconstruct", "scan.h5", "--method", "fbp", "--out", "run.h5")
    for command in (("show",), ("export", "--to", "tiff"), ("compare", "run.h5")):
        result = dipct_command(*command, "scan.h5")
        assert result.code == 1 and "scan.h5: expected a dipct run file" in result.err
    for command in (("scan", "info", "run.h5"), ("reconstruct", "run.h5", "--out", "new.h5")):
        result = dipct_command(*command)
        assert result.code == 1 and "run.h5: this is a run file" in result.err
    result = dipct_command("compare", "run.h5")
    assert result.code == 1 and "at least two" in result.err


def test_debug_shows_where_an_error_came_from(work, dipct_command):
    from dipct.errors import FileFormatError

    for arguments in (("--debug", "show", "none.h5"), ("show", "none.h5", "--debug")):
        with pytest.raises(FileFormatError, match="no such file"):
            dipct_command(*arguments)


# As a program of its own


def test_a_program_of_its_own(work):
    work("simulate", "discs", "--pixels", 16, "--views", 8, "--out", "scan.h5")

    def program(*arguments):
        command = [*DIPCT, *arguments]
        return subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=120
        )

    command = ("reconstruct", "scan.h5", "--method", "sirt", "--iterations", "9", "--out", "run.h5")
    finished = program(*command)
    assert finished.returncode == 0 and "\x1b" not in finished.stdout + finished.stderr
    assert "Wrote run.h5" in finished.stdout and "\r" not in finished.stderr
    failed = program("show", "scan.h5", "--debug")
    assert failed.returncode == 1 and "Traceback (most recent call last)" in failed.stderr


def test_a_bar_on_a_terminal(work):
    work("simulate", "discs", "--pixels", 16, "--views", 8, "--out", "scan.h5")
    command = ("reconstruct", "scan.h5", "--method", "sirt", "--iterations", 400, "--out", "run.h5")
    with Terminal(*command, cwd=work.folder) as terminal:
        assert terminal.wait() == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.output)
    assert plain != terminal.output
    assert re.search(r"sirt .*400/400 residual 0\.\d+ +\d+:\d\d:\d\d left", plain)
    assert "Wrote run.h5" in plain


# Data sets


def test_the_list_of_data_sets(work):
    printed = "".join(work("data", "list").out.split())
    for data_set in list_data_sets():
        assert data_set.name in printed


def test_fetching_from_a_server(work, monkeypatch):
    import threading

    server = Repository()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(fetch, "ZENODO", server.url)
    try:
        result = work("data", "fetch", "fips-lotus", "--folder", "lotus", "--file", NAME)
    finally:
        server.shutdown()
        server.server_close()
    assert result.out == f"lotus/{NAME}\n" and "MB fetched" in result.err
    assert (work.folder / "lotus" / NAME).read_bytes() == CONTENT


def test_options_reach_the_reader(work, tmp_path):
    counts = np.full((12, 2, 21), 500.0)
    with h5py.File("exchange.h5", "w") as file:
        for name, values in (
            ("data", counts),
            ("data_white", 2 * counts[:3]),
            ("data_dark", np.zeros((3, 2, 21))),
            ("theta", np.linspace(0, 165, 12)),
        ):
            file[f"exchange/{name}"] = values
    command = ("reconstruct", "exchange.h5", "--method", "fbp", "--out", "run.h5", "--reader")
    work(*command, "axis_column=8.5", "--reader", "row=1")
    run = read_run("run.h5")
    assert run.scan.geometry.column_offset == 10 - 8.5
    assert run.source == "exchange.h5 axis_column=8.5 row=1"
    refused = work(*command, "axis=8", code=1).err
    assert "no option 'axis'; it has row, axis_column" in refused
    assert "KEY=VALUE" in work(*command, "axis_column", code=1).err
    work("scan", "info", "exchange.h5", "--reader", "axis_column=8.5")
