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
    "parameters": ("subspace", {"edip"}),
    "optimiser": ("l-bfgs", {"edip"}),
    "network": ("walnut", {"dip"}),
    "input": ("both", {"dip", "edip"}),
    "output": ("sigmoid", {"dip"}),
    "upsampling": ("nearest", {"dip"}),
    "precision": ("float32", {"dip", "edip"}),
    "learning_rate": (0.01, {"dip", "edip"}),
    "warm_up": (7, {"dip", "edip"}),
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
        {"method": "dip", "warm_up": -1},
        {"method": "edip", "iterations": -1},
        {"method": "edip", "parameters": "some"},
        {"method": "edip", "optimiser": "sgd"},
        {"method": "edip", "parameters": "subspace", "dimension": 0},
        {"method": "edip", "parameters": "subspace", "dimension": 2.5},
        {"method": "edip", "parameters": "subspace", "dimension": True},
        {"method": "edip", "parameters": "subspace", "kept_share": 0.0},
        {"method": "edip", "parameters": "subspace", "kept_share": 1.1},
        {"method": "edip", "parameters": "subspace", "kept_share": float("nan")},
        {"method": "edip", "parameters": "singular-values", "rank": 0},
        {"method": "edip", "parameters": "singular-values", "rank": True},
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


# Few parameters and other optimisers


SUBSPACE, SINGULAR = {"parameters": "subspace"}, {"parameters": "singular-values"}
LBFGS, NATURAL = {"optimiser": "l-bfgs"}, {"optimiser": "natural-gradient"}


@pytest.mark.parametrize(
    ("values", "says", "better"),
    [
        *(
            ({"parameters": other} | {name: 1}, f"{name} belongs to parameters {owner}", instead)
            for name, owner, instead in (
                ("dimension", "subspace", SUBSPACE),
                ("kept_share", "subspace", SUBSPACE),
                ("rank", "singular-values", SINGULAR),
            )
            for other in (None, "all", "subspace", "singular-values")
            if other != owner
        ),
        *(
            (other | {name: value}, f"{name} belongs to parameters all and optimiser adam", better)
            for name, value in (("fixed_encoder", True), ("encoder_learning_rate", 1e-5))
            for other, better in (
                (SUBSPACE, {"parameters": "all"}),
                (SINGULAR, {"parameters": None}),
                (LBFGS, {"optimiser": "adam"}),
            )
        ),
        *(
            (SUBSPACE | other | {name: value}, f"{name} belongs to optimiser adam", better)
            for name, value in (
                *(("learning_rate", 0.1), ("warm_up", 0), ("decay", True), ("decay", False)),
            )
            for other, better in ((LBFGS, {"optimiser": "adam"}), (NATURAL, {"optimiser": None}))
        ),
        *(
            (
                SUBSPACE | {"optimiser": name, "precision": precision},
                f"{name} needs precision float32",
                {"precision": "float32"},
            )
            for name in ("l-bfgs", "natural-gradient")
            for precision in ("auto", "bfloat16")
        ),
        *(
            (
                SUBSPACE | other | {"stopping": "variance"},
                "stopping by the variance belongs to optimiser adam",
                {"optimiser": "adam"},
            )
            for other in (LBFGS, NATURAL)
        ),
        *(
            (NATURAL | {"parameters": free}, "natural-gradient stores a matrix", better)
            for free in (None, "all")
            for better in (SUBSPACE, SINGULAR, {"optimiser": "l-bfgs"})
        ),
    ],
    ids=str,
)
def test_contradictions_of_the_fine_tuning_are_refused(values, says, better):
    with pytest.raises(ConfigurationError, match=f"(?i){says}"):
        configured(method="edip", **values)
    configured(method="edip", **values | better)


def test_an_encoder_that_is_not_fixed_contradicts_nothing():
    for other in (SUBSPACE, SINGULAR, LBFGS):
        assert configured(method="edip", fixed_encoder=False, **other).resolved()


@pytest.mark.parametrize(
    ("free", "own"),
    [
        ({}, {"parameters": "all", "learning_rate": 1e-3}),
        (SUBSPACE, {"learning_rate": 1e-2, "dimension": 200, "kept_share": 1.0}),
        (SINGULAR, {"learning_rate": 1e-3}),
    ],
    ids=str,
)
def test_defaults_of_the_fine_tuning_follow_what_is_free(free, own):
    resolved = configured(method="edip", **free).resolved()
    names = ("parameters", "learning_rate", "dimension", "kept_share", "rank")
    expected = {**dict.fromkeys(names), **free, **own}
    assert {name: getattr(resolved, name) for name in names} == expected
    assert resolved.optimiser == "adam"


@pytest.mark.parametrize(
    ("optimiser", "own"),
    [
        ("adam", {"iterations": 1000, "precision": "auto", "warm_up": 100, "decay": True}),
        ("l-bfgs", {"iterations": 250, "precision": "float32"}),
        ("natural-gradient", {"iterations": 100, "precision": "float32"}),
    ],
)
@pytest.mark.parametrize("free", [SUBSPACE, SINGULAR], ids=str)
def test_defaults_of_the_fine_tuning_follow_the_optimiser(optimiser, own, free):
    resolved = configured(method="edip", optimiser=optimiser, **free).resolved()
    names = ("iterations", "precision", "warm_up", "decay")
    expected = {**dict.fromkeys(names), **own}
    assert {name: getattr(resolved, name) for name in names} == expected
    assert (resolved.learning_rate is None) == (optimiser != "adam")


@pytest.mark.parametrize(
    ("optimiser", "stopping"),
    [
        *(("adam", stopping) for stopping in ("none", "discrepancy", "variance")),
        *(("l-bfgs", stopping) for stopping in ("none", "discrepancy")),
        *(("natural-gradient", stopping) for stopping in ("none", "discrepancy")),
    ],
)
@pytest.mark.parametrize("free", [SUBSPACE, SINGULAR], ids=str)
def test_what_is_resolved_can_be_given_again(free, optimiser, stopping):
    """A run is made again from its settings."""
    values = {"optimiser": optimiser, "stopping": stopping, **free}
    resolved = configured(method="edip", **values).resolved()
    assert configured(**resolved.to_values()) == resolved == resolved.resolved()
    falls = {"none": True, "discrepancy": True, "variance": False}[stopping]
    assert resolved.decay == (falls if optimiser == "adam" else None)


@pytest.mark.parametrize("method", ["dip", "edip"])
def test_the_warm_up_is_shorter_than_the_run(method):
    for values, iterations in (({"iterations": 30}, 30), ({}, {"dip": 3000, "edip": 1000}[method])):
        assert configured(method=method, warm_up=iterations - 1, **values).resolved()
        for longer in (iterations, iterations + 1):
            says = rf"warm_up must be shorter than the {iterations} iterations; got {longer}"
            with pytest.raises(ConfigurationError, match=says):
                configured(method=method, warm_up=longer, **values)
    # A short run has the default, and can be made again from its settings.
    short = configured(method=method, iterations=30).resolved()
    assert short.warm_up == 100 and configured(**short.to_values()) == short


@pytest.mark.parametrize("method", METHODS)
def test_only_a_pretrained_network_has_an_image_before_any_iteration(method):
    if method == "edip":
        assert configured(method=method, iterations=0).resolved().iterations == 0
        return
    analytic = method in ("fbp", "fdk")
    least = "iterations must be at least 1, got 0; only edip"
    says = "has no setting iterations" if analytic else least
    with pytest.raises(ConfigurationError, match=says):
        configured(method=method, iterations=0)
