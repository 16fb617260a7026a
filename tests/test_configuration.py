import numpy as np
import pytest
from small_scans import small_scan

from dipct import write_scan
from dipct.configuration import METHODS, ReconstructionConfiguration, read_configuration_file
from dipct.errors import ConfigurationError
from dipct.run import read_run

SETTINGS = {
    "filter": ("hann", {"fbp", "fdk"}),
    "frequency_scaling": (0.5, {"fbp", "fdk"}),
    "projector": ("joseph", {"cgls", "sirt", "tv", "dip", "edip"}),
    "backend": ("traced", {"cgls", "sirt", "tv", "dip", "edip"}),
    "iterations": (7, {"cgls", "sirt", "tv", "dip", "edip"}),
    "tolerance": (0.01, {"cgls", "tv"}),
    "stopping": ("discrepancy", {"cgls", "sirt", "dip", "edip"}),
    "init": ("network.h5", {"edip"}),
    "fixed_encoder": (True, {"edip"}),
    "encoder_learning_rate": (1e-5, {"edip"}),
    "network": ("walnut", {"dip"}),
    "input": ("both", {"dip", "edip"}),
    "output": ("sigmoid", {"dip"}),
    "upsampling": ("nearest", {"dip"}),
    "precision": ("float32", {"dip", "edip"}),
    "learning_rate": (0.01, {"dip", "edip"}),
    "decay": (False, {"dip", "edip"}),
    "nonnegative": (False, {"sirt", "tv"}),
    "tv_weight": (3.0, {"tv", "dip", "edip"}),
    "isotropic": (True, {"tv", "dip", "edip"}),
}
WITHOUT_DEFAULT = {"network", "encoder_learning_rate"}
"""Settings whose default depends on the image or another setting."""


def configured(**values):
    if values.get("method") == "edip":
        values = {"init": "network.h5", **values}
    return ReconstructionConfiguration.from_values(values)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("tv_wieght", "tv_weight"),
        ("iteration", "iterations"),
        ("angularrange", "angular_range"),
        ("non_negative", "nonnegative"),
        ("Pixels", "pixels"),
    ],
)
def test_an_unknown_key_is_refused_with_near_names(key, near):
    with pytest.raises(ConfigurationError, match=f"no setting '{key}'.*Did you mean.*{near}"):
        configured(method="tv", **{key: 1})


def test_an_unknown_key_near_to_none_lists_all():
    with pytest.raises(ConfigurationError, match=r"no setting 'zzz'.*views.*method.*isotropic"):
        configured(method="tv", zzz=1)


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ConfigurationError) as caught:
        configured(method="tv", views=0, pixls=3, tv_weight="strong")
    message = str(caught.value)
    assert "views: " in message and "got 0" in message
    assert "'pixls'" in message and "pixels" in message
    assert message.count("tv_weight") == 1 and "got 'strong'" in message


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_a_setting_belongs_to_its_methods(method, name):
    value, methods = SETTINGS[name]
    if method in methods:
        assert getattr(configured(method=method, **{name: value}), name) == value
    else:
        with pytest.raises(ConfigurationError, match=f"{method} has no setting {name}; it belongs"):
            configured(method=method, **{name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"method": "art"},
        {"method": "tv", "views": 0},
        {"method": "tv", "views": 2.5},
        {"method": "tv", "bin": 0},
        {"method": "tv", "pixels": 1},
        {"method": "tv", "angular_range": 0},
        {"method": "tv", "angular_range": float("nan")},
        {"method": "tv", "seed": -1},
        {"method": "tv", "iterations": 0},
        {"method": "tv", "tolerance": 1.0},
        {"method": "tv", "tv_weight": -1.0},
        {"method": "tv", "tv_weight": float("nan")},
        {"method": "tv", "tv_weight": float("inf")},
        {"method": "fbp", "frequency_scaling": 1.5},
        {"method": "fbp", "filter": "ramp"},
        {"method": "cgls", "backend": "numpy"},
        {"method": "cgls", "projector": "bresenham"},
        {"method": "dip", "stopping": "early"},
        {"method": "dip", "stopping": "variance", "window": 1},
        {"method": "dip", "stopping": "variance", "patience": 0},
        {"method": "dip", "network": "64"},
        {"method": "dip", "input": "image"},
        {"method": "dip", "output": "relu"},
        {"method": "dip", "upsampling": "cubic"},
        {"method": "dip", "precision": "float16"},
        {"method": "dip", "learning_rate": 0.0},
        {"method": "dip", "learning_rate": 1.5},
        {"method": "dip", "decay": "slowly"},
        {"method": "dip", "tv_weight": "strong"},
        {},
    ],
    ids=str,
)
def test_impossible_values_are_refused(values):
    with pytest.raises(ConfigurationError, match=f"(?i){list(values)[-1] if values else 'method'}"):
        configured(**values)


@pytest.mark.parametrize("name", ["views", "pixels", "seed", "tv_weight", "iterations"])
@pytest.mark.parametrize("method", ["tv", "dip"])
def test_a_truth_value_is_no_number(method, name):
    with pytest.raises(ConfigurationError, match="true or false; got True"):
        configured(method=method, **{name: True})


@pytest.mark.parametrize("name", ["learning_rate", "network", "stopping", "window", "patience"])
def test_a_truth_value_is_no_setting_of_the_network(name):
    with pytest.raises(ConfigurationError, match=f"(?i){name} cannot be true or false"):
        configured(method="dip", **{name: True})


# Stopping where the images change least


@pytest.mark.parametrize("name", ["window", "patience"])
def test_window_and_patience_belong_to_stopping_by_the_variance(name):
    values = {"method": "dip", "stopping": "variance", name: 7}
    assert getattr(configured(**values).resolved(), name) == 7
    for other in ({"stopping": "none"}, {"stopping": "discrepancy"}, {"stopping": None}):
        with pytest.raises(ConfigurationError, match=r"(?i)window and patience belong"):
            configured(**values | other)
    with pytest.raises(ConfigurationError, match=f"sirt has no setting {name}; it belongs to dip"):
        configured(**values | {"method": "sirt", "stopping": "none"})


def test_stopping_by_the_variance_brings_its_own_defaults():
    resolved = configured(method="dip", stopping="variance").resolved()
    assert (resolved.window, resolved.patience) == (100, 1000)
    for stopping in ("none", "discrepancy"):
        resolved = configured(method="dip", stopping=stopping).resolved()
        assert resolved.window is None and resolved.patience is None
    assert resolved.resolved() == resolved == configured(**resolved.to_values())


@pytest.mark.parametrize("method", ["cgls", "sirt"])
def test_only_dip_stops_by_the_variance(method):
    with pytest.raises(ConfigurationError, match=r"(?i)stopping by the variance belongs to .* dip"):
        configured(method=method, stopping="variance")


def test_whole_numbers_of_numpy_are_numbers():
    assert configured(method="tv", views=np.int64(60)).views == 60


@pytest.mark.parametrize("method", METHODS)
def test_resolution_fills_exactly_the_settings_of_the_method(method):
    resolved = configured(method=method).resolved()
    own = {name for name, (_, methods) in SETTINGS.items() if method in methods} - WITHOUT_DEFAULT
    if method == "edip":
        own -= {"input"}
    assert {name for name in SETTINGS if getattr(resolved, name) is not None} == own
    assert resolved.resolved() == resolved
    assert configured(**resolved.to_values()) == resolved


@pytest.mark.parametrize("name", SETTINGS)
def test_resolution_keeps_what_is_given(name):
    value, methods = SETTINGS[name]
    for method in methods:
        assert getattr(configured(method=method, **{name: value}).resolved(), name) == value


def test_the_defaults_are_those_documented():
    tv = configured(method="tv").resolved()
    assert (tv.tv_weight, tv.nonnegative, tv.isotropic) == (2.0, True, False)
    assert (tv.backend, tv.projector, tv.bin, tv.seed, tv.device) == (
        "matrix",
        "siddon",
        1,
        0,
        "cpu",
    )
    assert configured(method="fbp").resolved().filter == "ram-lak"
    assert configured(method="cgls").resolved().stopping == "none"
    dip = configured(method="dip").resolved()
    assert (dip.iterations, dip.tv_weight, dip.input) == (3000, "auto", "fbp")
    assert dip.stopping == "discrepancy"
    assert (dip.learning_rate, dip.decay, dip.precision) == (1e-3, True, "auto")
    assert (dip.upsampling, dip.isotropic, dip.backend) == ("bilinear", False, "matrix")
    assert dip.network is None and dip.output == "sigmoid"


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        configured(method="tv").views = 3


def test_a_file_gives_its_values(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('method = "tv"\ntv_weight = 4\nviews = 30\nisotropic = true\n')
    values = read_configuration_file(path)
    assert values == {"method": "tv", "tv_weight": 4, "views": 30, "isotropic": True}
    assert configured(**values).tv_weight == 4.0


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "cannot be read"),
        (b"method = ", "not a TOML file"),
        (b"method tv", "not a TOML file"),
        (b"\xff\xfe\x00", "not a TOML file"),
        (b"tv_wieght = 3", "'tv_wieght'. Did you mean tv_weight"),
        (b"[tv]\nweight = 3", "no setting 'tv'"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, contents, message):
    path = tmp_path / "settings.toml"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_configuration_file(path)
    assert str(caught.value).startswith(str(path))


def test_a_folder_is_no_configuration_file(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_configuration_file(tmp_path)


def test_options_override_the_file(tmp_path, dipct_command):
    scan, settings = tmp_path / "scan.h5", tmp_path / "settings.toml"
    write_scan(small_scan(), scan)
    settings.write_text('method = "sirt"\niterations = 3\nviews = 8\nnonnegative = false\n')
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    assert dipct_command("reconstruct", scan, "--config", settings, "--out", first).code == 0
    options = ("--iterations", 4, "--nonnegative", "--config", settings)
    assert dipct_command("reconstruct", scan, *options, "--out", second).code == 0
    from_file, overridden = read_run(first).configuration, read_run(second).configuration
    expected = {"method": "sirt", "iterations": 3, "views": 8, "nonnegative": False}
    assert {name: from_file[name] for name in expected} == expected
    expected |= {"iterations": 4, "nonnegative": True}
    assert {name: overridden[name] for name in expected} == expected
    assert read_run(second).iterations == 4


def test_a_falling_rate_and_the_moving_variance_exclude_each_other():
    assert configured(method="dip", stopping="variance").resolved().decay is False
    with pytest.raises(ConfigurationError, match="exclude each other"):
        configured(method="dip", stopping="variance", decay=True)
