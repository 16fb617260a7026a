"""A classifier's hidden features as an operator."""

import copy

import pytest
import torch
from catalogue import F64, SmoothClassifier
from torch import nn

from dipct.errors import ConfigurationError, ShapeError
from dipct.operator import LOGITS, FeatureOperator
from dipct.operator.checks import derivative_mismatch

SHAPE = (3, 8, 8)


class Classifier(nn.Module):
    """Convolutions with activations that write into what they are given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.block = nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(6 * 16, 4)
        self.passes = 0

    def forward(self, x):
        hidden = self.block(self.stem(x))
        self.passes += 1
        return self.head(self.pool(hidden).flatten(1))


@pytest.fixture(autouse=True)
def no_global_seed():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture
def model():
    model = Classifier().double()
    with torch.no_grad():
        model.block[1].running_var.uniform_(0.5, 2.0)
    return model


def images(number, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(number, *SHAPE, generator=random, dtype=F64)


def test_features_are_those_before_an_activation_writes_into_them(model):
    x = images(2)
    psi = FeatureOperator(model, ("stem.0", "block.1", LOGITS), SHAPE)
    found = psi.split(psi(x))
    model.eval()
    convolved = model.stem[0](x)
    assert convolved.min() < -0.1
    assert torch.allclose(found["stem.0"], convolved)
    normalised = model.block[1](model.block[0](torch.relu(convolved)))
    assert torch.allclose(found["block.1"], normalised)
    assert torch.allclose(found[LOGITS], model(x))
    assert psi.shapes == {"stem.0": (4, 8, 8), "block.1": (6, 8, 8), LOGITS: (4,)}
    assert psi.range_shape == (4 * 64 + 6 * 64 + 4,)


def test_layers_come_in_the_order_asked_for(model):
    one = FeatureOperator(model, (LOGITS, "pool"), SHAPE)
    other = FeatureOperator(model, ("pool", LOGITS), SHAPE)
    x = images(1)
    first, second = one.split(one(x)), other.split(other(x))
    assert list(first) == [LOGITS, "pool"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(one(x), other(x))


def test_the_normalisation_is_inside(model):
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    psi = FeatureOperator(model, [LOGITS], SHAPE, mean=mean.tolist(), std=std)
    x = images(2)
    model.eval()
    whitened = (x - mean.double()[:, None, None]) / std.double()[:, None, None]
    assert torch.allclose(psi(x), model(whitened))


def test_the_users_model_stays_as_it_is(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    psi = FeatureOperator(model, ("stem.1", LOGITS), SHAPE)
    torch.func.vjp(psi, images(2))[1](torch.ones(2, *psi.range_shape, dtype=F64))
    assert model.training
    assert model.passes == 0
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.stem[1].inplace
    # And the operator as the model was.
    x = images(2)
    value = psi(x)
    with torch.no_grad():
        model.head.weight.zero_()
    assert torch.equal(psi(x), value)


@pytest.mark.parametrize("training", [False, True])
def test_the_state_of_the_users_model_does_not_matter(model, training):
    usual = FeatureOperator(model, [LOGITS], SHAPE)(images(2))
    other = copy.deepcopy(model).train(training).requires_grad_(training)
    assert torch.equal(FeatureOperator(other, [LOGITS], SHAPE)(images(2)), usual)


def test_two_operators_do_not_disturb_each_other(model):
    one = FeatureOperator(model, ["stem.0"], SHAPE)
    other = FeatureOperator(model, ["block.2"], SHAPE)
    x = images(1)
    alone = one(x), other(x)
    assert torch.equal(torch.func.jvp(lambda v: (one(v), other(v)), (x,), (x,))[0][0], alone[0])
    assert torch.equal(other(x), alone[1])


def test_a_batch_is_its_images_one_by_one(model):
    psi, x = FeatureOperator(model, ("block.2", LOGITS), SHAPE), images(4)
    single = torch.stack([psi(image) for image in x])
    assert torch.allclose(psi(x), single, atol=1e-12)
    assert torch.allclose(psi(x.reshape(2, 2, *SHAPE)), single.reshape(2, 2, -1), atol=1e-12)
    assert torch.allclose(torch.func.vmap(psi)(x), single, atol=1e-12)
    assert psi(x[:0]).shape == (0, *psi.range_shape)


def test_the_pass_ends_where_nothing_more_is_needed(model):
    psi = FeatureOperator(model, ["stem.0"], SHAPE)
    inner, before = psi._model, psi._model.passes
    psi(images(1))
    assert inner.passes == before
    full = FeatureOperator(model, ["stem.0", LOGITS], SHAPE)
    before = full._model.passes
    full(images(1))
    assert full._model.passes == before + 1


def test_no_hooks_are_left_after_an_error(model):
    psi = FeatureOperator(model, ["block.2"], SHAPE)
    psi._model.pool.forward = None
    psi._model.block[1].forward = None
    with pytest.raises(TypeError):
        psi(images(1))
    assert not any(module._forward_hooks for module in psi._model.modules())


def test_derivatives_beside_the_kinks(model):
    psi = FeatureOperator(model, ("stem.1", "pool", LOGITS), SHAPE)
    assert derivative_mismatch(psi) < 1e-10
    x, v = images(1)[0], images(1, seed=1)[0] - 0.5
    step = 1e-6
    difference = (psi(x + step * v) - psi(x - step * v)) / (2 * step)
    assert torch.allclose(psi.jvp(x, v), difference, atol=1e-7)
    # Of the evaluation mode: statistics of a batch would have a derivative of their own.
    assert not torch.allclose(psi.jvp(x, v), psi.jvp(x + 0.5, v), atol=1e-7)


def test_another_type(model):
    psi = FeatureOperator(model, [LOGITS], SHAPE)
    single = psi.to(dtype=torch.float32)
    assert single.dtype == torch.float32
    assert psi.dtype == F64
    found = single(images(2).float())
    assert torch.allclose(found.double(), psi(images(2)), atol=1e-4)


class Overwriting(nn.Module):
    """Writes into what it is given, without saying so."""

    def forward(self, *, x):
        return x.relu_()


def test_the_input_of_a_layer_is_seen_before_it_is_overwritten():
    class Model(Classifier):
        def __init__(self):
            super().__init__()
            self.over = Overwriting()

        def forward(self, x):
            return super().forward(self.over(x=x - 0.5))

    psi = FeatureOperator(Model().double(), ["over:input", "over"], SHAPE)
    x = images(1)
    found = psi.split(psi(x))
    assert torch.allclose(found["over:input"], x - 0.5)
    assert torch.allclose(found["over"], torch.relu(x - 0.5))


class Twice(Classifier):
    def forward(self, x):
        return super().forward(self.stem[1](x))


class Unused(Classifier):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Tuples(Classifier):
    def __init__(self):
        super().__init__()
        self.two = nn.LSTM(4, 4)

    def forward(self, x):
        logits = super().forward(x)
        return self.two(logits)[0]


class Maps(Classifier):
    def forward(self, x):
        return super().forward(x)[:, :, None]


@pytest.mark.parametrize(
    ("model", "layers", "shape", "error", "message"),
    [
        (Classifier, ["blok.1"], SHAPE, ConfigurationError, "Near names: block"),
        (Classifier, [], SHAPE, ConfigurationError, "one or more layers"),
        (Classifier, ["pool", "pool"], SHAPE, ConfigurationError, "each once"),
        (Classifier, ["pool"], (1, 8, 8), ShapeError, "does not take images"),
        (Classifier, ["pool"], (3, 9, 4), ShapeError, "does not take images"),
        (Classifier, ["pool"], (8, 8), ShapeError, "channels, rows, columns"),
        (Twice, ["stem.1"], SHAPE, ConfigurationError, "2 times in one pass"),
        (Unused, ["spare"], SHAPE, ConfigurationError, "0 times in one pass"),
        (Tuples, ["two"], SHAPE, ConfigurationError, "gives a tuple"),
        (Maps, [LOGITS], SHAPE, ShapeError, "Wrap it in a module"),
        (lambda: torch.zeros(1), [LOGITS], SHAPE, ConfigurationError, "torch.nn.Module"),
    ],
)
def test_wrong_arguments_are_refused(model, layers, shape, error, message):
    with pytest.raises(error, match=message):
        FeatureOperator(model(), layers, shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": [0.5]}, "mean must have one finite number for each of the 3"),
        ({"std": [1.0, 0.0, 1.0]}, "above zero"),
        ({"std": [1.0, float("nan"), 1.0]}, "finite"),
    ],
)
def test_wrong_normalisations_are_refused(model, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        FeatureOperator(model, [LOGITS], SHAPE, **settings)


def test_a_module_named_as_the_output_is_refused():
    model = SmoothClassifier()
    model.logits = nn.Identity()
    with pytest.raises(ConfigurationError, match="Rename the module"):
        FeatureOperator(model, [LOGITS], (2, 6, 7))
