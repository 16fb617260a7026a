"""A user's own classifier: from a reference with weights, or exported; and its normalisation."""

import math
import sys

import pytest
import torch
from torch import nn

from dipct.classifier import load_model
from dipct.errors import ConfigurationError, DataError, FileFormatError, ShapeError
from dipct.operator import LOGITS, FeatureOperator, Normalised, with_normalisation

SHAPE = (3, 8, 8)
SOURCE = '''
"""A model as users write them."""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=4, classes=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels))
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        return self.head(self.drop(self.act(self.stem(x)).mean((2, 3))))

class Makers:
    wide = lambda: Net(6)

def seeded(classes=3):
    torch.manual_seed(7)
    return Net(classes=classes)

def breaks(): raise RuntimeError("no such data")
def gives_text(): return "model"
instance = Net()
number = 3
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Modules of a user in a folder on the path."""
    (tmp_path / "their_net.py").write_text(SOURCE)
    (tmp_path / "their_gaps.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "their_slip.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("their_net", "their_gaps", "their_slip"):
        sys.modules.pop(name, None)


@pytest.fixture
def trained(package):
    """A model after some training, in training mode."""
    model = load_model("their_net:Net").train()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1)
        model.stem[1].running_mean += 0.3
    return model


def images(number=4, seed=0):
    return torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(seed))


def save(state, folder, name="weights.pt"):
    torch.save(state, folder / name)
    return folder / name


def test_a_class_a_function_or_an_attribute_makes_the_model(package):
    model = load_model("their_net:Net")
    assert not model.training
    assert model.head.out_features == 3
    wider = load_model("their_net:Net", arguments={"channels": 5, "classes": 2})
    assert wider.head.weight.shape == (2, 5)
    assert load_model("their_net:Makers.wide").head.in_features == 6
    state = torch.get_rng_state()
    assert torch.equal(
        load_model("their_net:seeded").head.weight, load_model("their_net:seeded").head.weight
    )
    assert torch.equal(torch.get_rng_state(), state)


def wrapped(state):
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "saved",
    [
        lambda s: s,
        wrapped,
        lambda s: {"epoch": 3, "state_dict": wrapped(s)},
        lambda s: {"model": s, "optimizer": {"state": {}}},
        lambda s: {"model_state_dict": s},
        # As files from before there were counters.
        lambda s: {n: v for n, v in s.items() if not n.endswith("num_batches_tracked")},
        lambda s: {n: v.double() for n, v in s.items()},
    ],
    ids=["plain", "parallel", "lightning", "model", "model_state", "old", "double"],
)
def test_weights_as_they_are_commonly_saved(trained, package, saved):
    path = save(saved(trained.state_dict()), package)
    read = load_model("their_net:Net", path)
    x = images()
    assert torch.equal(read(x), trained.eval()(x))
    assert not torch.equal(read(x), load_model("their_net:Net")(x))
    assert read.head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("reference", "arguments", "message"),
    [
        ("their_net.Net", {}, "package.module:attribute"),
        ("their net:Net", {}, "package.module:attribute"),
        ("their_net:", {}, "package.module:attribute"),
        ("nowhere_to_be_found:Net", {}, "no module nowhere_to_be_found.*PYTHONPATH"),
        ("their_gaps:Net", {}, "no module not_installed_anywhere"),
        ("their_slip:Net", {}, "ZeroDivisionError"),
        ("their_net:Nett", {}, "no 'Nett'. Near names: Net"),
        ("their_net:Makers.none_of_them", {}, "It has wide"),
        ("their_net:instance", {}, "is a Net; name a class or function"),
        ("their_net:number", {}, "is a int; name a class or function"),
        ("their_net:breaks", {}, r"breaks\(\) raised RuntimeError: no such data"),
        ("their_net:gives_text", {}, "must make a torch.nn.Module; it gave a str"),
        ("their_net:Net", {"depth": 3}, r"Net\(depth=3\) raised TypeError"),
    ],
)
def test_what_makes_no_model_is_refused(package, reference, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        load_model(reference, arguments=arguments)


def without(state, name):
    return {n: v for n, v in state.items() if n != name}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: without(s, "head.bias"), ConfigurationError, "Missing: head.bias. Unexp.*none"),
        (lambda s: {**s, "fc.bias": torch.ones(1)}, ConfigurationError, "Unexpected: fc.bias"),
        (
            lambda s: {**s, "head.bias": torch.ones(2)},
            ConfigurationError,
            r"head.bias \(2,\) instead of \(3,\)",
        ),
        (lambda s: {**s, "head.bias": torch.full((3,), math.nan)}, DataError, "in head.bias"),
        (lambda s: {"epoch": 3}, FileFormatError, "holds epoch"),
        (lambda s: {}, FileFormatError, "holds none"),
        (lambda s: [1, 2], FileFormatError, "holds list"),
    ],
)
def test_weights_that_do_not_fit_are_refused(trained, package, change, error, message):
    path = save(change(trained.state_dict()), package)
    with pytest.raises(error, match=message):
        load_model("their_net:Net", path)


def test_many_missing_names_are_counted(trained, package):
    path = save({"a": torch.ones(1)}, package)
    with pytest.raises(ConfigurationError, match=r"stem.1.bias, stem.1.running_mean and 3 more"):
        load_model("their_net:Net", path)


def test_files_that_are_no_weights_are_refused(trained, package):
    whole = save(trained, package, "whole.pt")
    with pytest.raises(FileFormatError, match=r"executed. Save the weights alone.*state_dict"):
        load_model("their_net:Net", whole)
    (package / "text.pt").write_text("no")
    with pytest.raises(FileFormatError, match=r"text.pt"):
        load_model("their_net:Net", package / "text.pt")
    with pytest.raises(FileFormatError, match="no such file"):
        load_model("their_net:Net", package / "none.pt")
    (package / "weights.safetensors").write_text("no")
    with pytest.raises(FileFormatError, match="safetensors"):
        load_model("their_net:Net", package / "weights.safetensors")


def test_a_model_of_ones_own_has_features(trained, package):
    path = save(trained.state_dict(), package)
    psi = FeatureOperator(load_model("their_net:Net", path), ["stem", "head:input"], SHAPE)
    found = psi.split(psi(images()))
    stem = trained.eval().stem(images())
    assert torch.allclose(found["stem"], stem, atol=1e-6)
    assert torch.allclose(found["head:input"], torch.relu(stem).mean((2, 3)), atol=1e-6)


# Exported programs


def export(model, path, number=2, dynamic=True):
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(model, (images(number),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return str(path)


@pytest.fixture
def exported(trained, package):
    return export(trained.eval(), package / "net.pt2")


def test_an_exported_program_is_the_model(trained, exported):
    model = load_model(exported)
    x = images(5)
    assert torch.allclose(model(x), trained(x), atol=1e-6)
    assert torch.allclose(model(x[:1]), trained(x[:1]), atol=1e-6)


def test_layers_of_an_exported_program_have_their_names(trained, exported):
    layers = ["stem.0", "stem", "head:input", LOGITS]
    psi = FeatureOperator(load_model(exported), layers, SHAPE)
    usual = FeatureOperator(trained, layers, SHAPE)
    x, v = images(3), images(3, seed=1)
    assert psi.shapes == usual.shapes
    assert torch.allclose(psi(x), usual(x), atol=1e-6)
    assert torch.allclose(psi.jvp(x, v), usual.jvp(x, v), atol=1e-6)
    w = torch.ones(3, *psi.range_shape)
    assert torch.allclose(psi.vjp(x, w), usual.vjp(x, w), atol=1e-6)
    assert torch.allclose(torch.func.vmap(psi)(x), usual(x), atol=1e-6)
    double = psi.to(dtype=torch.float64)
    assert torch.allclose(double(x.double()).float(), usual(x), atol=1e-5)
    with pytest.raises(ConfigurationError, match="Near names: stem"):
        FeatureOperator(load_model(exported), ["stm"], SHAPE)


def test_an_exported_program_takes_images_of_its_sizes(trained, exported, package):
    with pytest.raises(ShapeError, match=r"takes images \[N 3 8 8\]; got \(2, 3, 9, 8\)"):
        FeatureOperator(load_model(exported), [LOGITS], (3, 9, 8))
    with pytest.raises(ShapeError, match="got"):
        load_model(exported)(images()[0])
    sizes = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("rows", min=4)},)
    program = torch.export.export(trained.eval(), (images(2),), dynamic_shapes=sizes)
    torch.export.save(program, package / "tall.pt2")
    x = torch.cat([images(), images()], 2)
    model = load_model(str(package / "tall.pt2"))
    assert torch.allclose(model(x), trained(x), atol=1e-6)
    with pytest.raises(ShapeError, match=r"\[N 3 \* 8\]"):
        model(x[..., :4])


@pytest.mark.filterwarnings("ignore:`isinstance.treespec:FutureWarning")
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
def test_the_module_of_a_program_has_no_layers_to_see(exported):
    plain = torch.export.load(exported).module()
    assert FeatureOperator(plain, [LOGITS], SHAPE).range_shape == (3,)
    with pytest.raises(ConfigurationError, match=r"0 times.*unflatten"):
        FeatureOperator(plain, ["stem"], SHAPE)


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return (x + y).mean((2, 3))


class Noisy(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x.mean((2, 3)), 0.5, training=True)


def test_programs_that_cannot_serve_are_refused(trained, exported, package):
    path = export(trained.train(), package / "training.pt2")
    with pytest.raises(ConfigurationError, match=r"exported in training mode.*batch_norm.*dropout"):
        load_model(path)
    with pytest.raises(ConfigurationError, match="in training mode"):
        load_model(export(Noisy().eval(), package / "noisy.pt2"))
    path = export(trained.eval(), package / "one.pt2", 1, dynamic=False)
    with pytest.raises(ConfigurationError, match=r"takes 1 images at a time.*dynamic_shapes"):
        load_model(path)
    two = torch.export.export(TwoInputs(), (images(2), images(2)))
    torch.export.save(two, package / "two.pt2")
    with pytest.raises(ConfigurationError, match="nothing else"):
        load_model(str(package / "two.pt2"))
    with pytest.raises(ConfigurationError, match="has its weights"):
        load_model(exported, package / "weights.pt")
    with pytest.raises(FileFormatError, match="no such file"):
        load_model(str(package / "none.pt2"))
    (package / "text.pt2").write_text("no")
    with pytest.raises(FileFormatError, match=r"torch.export.save"):
        load_model(str(package / "text.pt2"))


# Normalisation


def test_a_normalised_model_takes_images_from_zero_to_one(trained):
    model = trained.eval()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    x = images()
    wanted = model((x - mean[:, None, None]) / std[:, None, None])
    inside = Normalised(model, mean.tolist(), std)
    assert torch.equal(inside(x), wanted)
    assert not torch.allclose(inside(x), model(x), atol=1e-3)
    psi = FeatureOperator(inside, ["model.stem", LOGITS], SHAPE)
    outside = FeatureOperator(model, ["stem", LOGITS], SHAPE, mean=mean, std=std)
    assert torch.equal(psi(x), outside(x))
    assert torch.equal(psi.split(psi(x))[LOGITS], wanted)


def test_normalisations_by_name(trained):
    imagenet = with_normalisation(trained, "imagenet")
    assert imagenet.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert imagenet.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert with_normalisation(trained, "none") is trained
    assert with_normalisation(trained.double(), "imagenet").mean.dtype == torch.float64
    with pytest.raises(ConfigurationError, match="imagenet or none; got 'cifar'"):
        with_normalisation(trained, "cifar")


def test_an_exported_program_can_be_normalised(exported, trained):
    psi = FeatureOperator(with_normalisation(load_model(exported), "imagenet"), [LOGITS], SHAPE)
    usual = FeatureOperator(with_normalisation(trained, "imagenet"), [LOGITS], SHAPE)
    assert torch.allclose(psi(images()), usual(images()), atol=1e-6)


def test_nothing_is_normalised_twice(trained):
    inside = with_normalisation(trained, "imagenet")
    for numbers in ({"mean": (0.5, 0.5, 0.5)}, {"std": (1.0, 1.0, 1.0)}):
        with pytest.raises(ConfigurationError, match="normalises images already"):
            FeatureOperator(inside, [LOGITS], SHAPE, **numbers)
    with pytest.raises(ConfigurationError, match="normalises images already"):
        with_normalisation(nn.Sequential(inside), "imagenet")


def test_impossible_normalisations_are_refused(trained):
    for mean, std in (((0.5,) * 3, (1.0, 0.0, 1.0)), ((0.5,) * 3, (1.0,) * 2), ((math.nan,), (1,))):
        with pytest.raises(ConfigurationError, match="one finite number for each"):
            Normalised(trained, mean, std)
    one = Normalised(trained, (0.5,), (0.2,))
    # Three channels would come of it.
    with pytest.raises(ShapeError, match="the 1 channels"):
        one(images())
    with pytest.raises(ShapeError, match="the 3 channels"):
        with_normalisation(trained, "imagenet")(images()[:, :1])
