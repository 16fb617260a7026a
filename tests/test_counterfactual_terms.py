"""Terms on a classifier's features: fidelity, target class, manifold consistency."""

import math

import pytest
import torch
import torch.nn.functional as F
from catalogue import F64, SmoothClassifier

from dipct.classifier import STAGES, CentroidHead, LossEstimator, small_resnet
from dipct.errors import ConfigurationError, ShapeError
from dipct.objective import (
    AttributeTargets,
    BatchStatistics,
    ClassKernel,
    ClassProbabilities,
    ClassTarget,
    FeatureActivation,
    FeatureFidelity,
    ImageFidelity,
    LossEstimate,
    Objective,
    PixelNorm,
    TotalVariation,
    batch_norm_inputs,
)
from dipct.operator import LOGITS, FeatureOperator

SHAPE = (2, 6, 7)
LAYERS = ("norm:input", "norm", "second", LOGITS)


def images(number=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(number, *SHAPE, generator=random, dtype=F64)


@pytest.fixture(scope="module")
def psi():
    return FeatureOperator(SmoothClassifier().double(), LAYERS, SHAPE)


def seeded(make, *arguments, **settings):
    state = torch.get_rng_state()
    torch.manual_seed(1)
    made = make(*arguments, **settings).double()
    torch.set_rng_state(state)
    return made


@pytest.fixture(scope="module")
def estimator():
    head = seeded(LossEstimator, (4, 3), width=5)
    head.calibrate(torch.linspace(-1, 1, 101, dtype=F64))
    return head


def test_the_input_of_a_layer_is_what_goes_into_it(psi):
    model = SmoothClassifier().double().eval()
    found = psi.split(psi(images()))
    assert torch.allclose(found["norm:input"], model.first(images()))
    assert torch.allclose(found["norm"], model.norm(model.first(images())))


@pytest.mark.parametrize("distance", ["relative", "mean-square", "l2", "l1"])
def test_feature_fidelity_is_the_mean_of_the_layers_distances(psi, distance):
    query, image = images(seed=1), images(seed=2)
    term = FeatureFidelity(psi, query, layers=("norm", "second"), distance=distance)
    one, other = psi.split(psi(image)), psi.split(psi(query))
    each = []
    for name in ("norm", "second"):
        difference = (one[name] - other[name]).flatten(1)
        each.append(
            {
                "relative": difference.square().sum(1) / other[name].flatten(1).square().sum(1),
                "mean-square": difference.square().mean(1),
                "l2": difference.norm(dim=1),
                "l1": difference.abs().mean(1),
            }[distance]
        )
    assert torch.allclose(term.value(image), torch.stack(each).mean(0), atol=1e-6)
    assert torch.allclose(term.value(query), torch.zeros(2, dtype=F64), atol=1e-6)


def test_relative_fidelity_has_no_scale():
    model = SmoothClassifier().double()
    louder = SmoothClassifier().double()
    with torch.no_grad():
        louder.first.weight *= 7
        louder.first.bias *= 7
    values = [
        FeatureFidelity(FeatureOperator(m, ["first"], SHAPE), images(seed=1)).value(images())
        for m in (model, louder)
    ]
    assert torch.allclose(*values)


def test_a_batch_is_its_queries_one_by_one(psi, estimator):
    query, image = images(3, seed=1), images(3, seed=2)
    targets = torch.tensor([0, 3, 1])

    def terms(q, t):
        return (
            FeatureFidelity(psi, q),
            ImageFidelity(q),
            ClassTarget(psi, t),
            LossEstimate(psi, estimator, ("norm", "second")),
        )

    together = [term.value(image) for term in terms(query, targets)]
    for i in range(3):
        alone = [t.value(image[i]) for t in terms(query[i], int(targets[i]))]
        for whole, one in zip(together, alone, strict=True):
            assert torch.allclose(whole[i], one)


def test_pixels_that_may_change_do_not_count():
    query = images(1)[0]
    allowed = torch.zeros(6, 7, dtype=torch.bool)
    allowed[2:4, 3:5] = True
    term, changed = ImageFidelity(query, allowed=allowed), query.clone()
    changed[:, 2:4, 3:5] += 1
    assert float(term.value(changed)) == 0
    changed[:, 0, 0] += 1
    assert float(term.value(changed)) == pytest.approx(2 / float(query.square().sum()))
    with pytest.raises(ShapeError, match="true or false"):
        ImageFidelity(query, allowed=allowed.float())
    with pytest.raises(ShapeError, match="C H W"):
        ImageFidelity(query[0])


def test_the_mean_absolute_distance_has_a_gradient_everywhere():
    query = images(1)[0]
    term, image = ImageFidelity(query, distance="l1"), images(1, seed=3)[0]
    image[0] = query[0]
    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(term.value(x), x)
    wanted = (image - query).sign() / query.numel()
    assert torch.allclose(gradient, wanted, rtol=1e-6)
    assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
    # Unlike a squared distance, it does not care whether one pixel changes or many do.
    one, many = query.clone(), query + 1 / query.numel()
    one[0, 0, 0] += 1
    for distance, factor in (("l1", 1), ("mean-square", query.numel())):
        values = [ImageFidelity(query, distance=distance).value(changed) for changed in (one, many)]
        assert float(values[0] / values[1]) == pytest.approx(factor, rel=1e-3)


def test_the_pixel_norm_is_the_mean_power_of_what_is_not_grey():
    image = torch.tensor([[[0.5, 0.5], [0.7, 0.1]], [[1.0, 0.5], [0.5, 0.5]]], dtype=F64)
    by_hand = {2.0: 0.04 + 0.16 + 0.25, 6.0: 0.2**6 + 0.4**6 + 0.5**6, 1.0: 0.2 + 0.4 + 0.5}
    for exponent, total in by_hand.items():
        term = PixelNorm((2, 2, 2), exponent=exponent)
        assert float(term.value(image)) == pytest.approx(total / 8)
        batch = torch.stack([image, torch.full_like(image, 0.5)])
        assert term.value(batch).tolist() == pytest.approx([total / 8, 0])
    black = PixelNorm((2, 2, 2), centre=0.0).value(image)
    assert float(black) == pytest.approx(float(image.square().mean()))
    assert float(PixelNorm((2, 2, 2)).value(image)) != pytest.approx(float(black))
    channels = PixelNorm((2, 2, 2), centre=torch.tensor([0.5, 1.0]))
    assert float(channels.value(image)) == pytest.approx((0.04 + 0.16 + 3 * 0.25) / 8)
    assert float(PixelNorm((1, 2, 2, 2)).value(image[None])) == pytest.approx(by_hand[2.0] / 8)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 6.0])
def test_gradients_of_the_pixel_norm_are_differences(exponent):
    term = PixelNorm(SHAPE, exponent=exponent, centre=torch.tensor([0.4, 0.55]))
    x = images(2).requires_grad_()
    assert torch.autograd.gradcheck(term.value, x, eps=1e-6, atol=1e-8)
    grey = torch.full(SHAPE, 0.5, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(PixelNorm(SHAPE, exponent=exponent).value(grey), grey)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_large_exponents_only_mind_what_is_far_from_grey():
    near, far = (torch.full(SHAPE, value, dtype=F64) for value in (0.6, 1.0))
    ratios = []
    for exponent in (2.0, 6.0):
        term = PixelNorm(SHAPE, exponent=exponent)
        ratios.append(float(term.value(far) / term.value(near)))
    assert ratios == pytest.approx([5.0**2, 5.0**6])


def test_activations_are_of_a_layer_a_channel_or_a_logit(psi):
    image = images()
    found = psi.split(psi(image))
    whole = FeatureActivation(psi, "second").value(image)
    assert torch.allclose(whole, -found["second"].mean((1, 2, 3)))
    for channel in range(3):
        value = FeatureActivation(psi, "second", channel=channel).value(image)
        assert torch.allclose(value, -found["second"][:, channel].mean((1, 2)))
        others = [-found["second"][:, k].mean((1, 2)) for k in range(3) if k != channel]
        assert not any(torch.allclose(value, other) for other in others)
    assert torch.allclose(FeatureActivation(psi).value(image), -found[LOGITS].mean(1))
    classes = torch.tensor([4, 1])
    value = FeatureActivation(psi, channel=classes).value(image)
    assert torch.allclose(value, -found[LOGITS][torch.arange(2), classes])
    for i in range(2):
        alone = FeatureActivation(psi, channel=int(classes[i])).value(image[i])
        assert torch.allclose(alone, value[i])


def test_an_activation_grows_against_its_gradient_and_no_other_as_much(psi):
    x = images(1)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(FeatureActivation(psi, channel=3).value(x), x)
    with torch.no_grad():
        change = psi.split(psi(x - 1e-4 * gradient))[LOGITS] - psi.split(psi(x))[LOGITS]
    assert int(change.argmax()) == 3
    assert float(change[3]) == pytest.approx(1e-4 * float(gradient.square().sum()), rel=1e-3)


def test_target_classes(psi):
    image, targets = images(), torch.tensor([1, 4])
    logits = psi.split(psi(image))[LOGITS]
    exact = F.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(ClassTarget(psi, targets).value(image), exact)
    probability = logits.softmax(1)[torch.arange(2), targets]
    term = ClassTarget(psi, targets, loss="probability", probability=0.3)
    assert torch.allclose(term.value(image), (probability - 0.3).square())
    margin = ClassTarget(psi, targets, loss="margin", margin=0.2).value(image)
    for i, target in enumerate(targets):
        others = torch.cat([logits[i, :target], logits[i, target + 1 :]])
        wanted = max(0.0, float(others.max() - logits[i, target]) + 0.2)
        assert float(margin[i]) == pytest.approx(wanted)
    best = logits.argmax(1)
    assert torch.equal(
        ClassTarget(psi, best, loss="margin").value(image), torch.zeros(2, dtype=F64)
    )


def test_a_logit_is_minimised_without_bound(psi):
    logits = psi.split(psi(images()))[LOGITS]
    target = ClassTarget(psi, 1, loss="logit")
    assert torch.equal(target.value(images()), -logits[:, 1])


def test_probabilities_of_the_query_are_the_minimum(psi):
    probabilities = psi.split(psi(images()))[LOGITS].softmax(-1)
    term = ClassProbabilities(psi, probabilities, name="class of another")
    assert torch.allclose(term.value(images()), torch.zeros(2, dtype=F64), atol=1e-12)
    assert (term.value(images(seed=1)) > 0).all()
    certain = F.one_hot(torch.tensor(1), probabilities.shape[-1]).to(F64)
    of_class = ClassProbabilities(psi, certain, name="one class")
    wanted = ClassTarget(psi, 1).value(images())
    assert torch.allclose(of_class.value(images()), wanted)


@pytest.mark.parametrize(
    ("probabilities", "error", "message"),
    [
        ([0.5, 0.6, 0.2, 0.0, 0.0], ConfigurationError, "add up to one"),
        ([1.5, -0.5, 0.0, 0.0, 0.0], ConfigurationError, "zero or more"),
        ([0.5, 0.5], ShapeError, "has 5 classes"),
    ],
)
def test_wrong_probabilities_are_refused(psi, probabilities, error, message):
    with pytest.raises(error, match=message):
        ClassProbabilities(psi, torch.tensor(probabilities), name="other")


def test_attributes_that_are_pinned_are_drawn_back(psi):
    image = images(1)[0]
    own = psi.split(psi(image))[LOGITS].sigmoid()
    pinned = AttributeTargets(psi, own)
    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pinned.value(x), x)
    assert gradient.abs().max() < 1e-12
    wanted = own.clone()
    wanted[2] = 1 - wanted[2].round()
    moved = AttributeTargets(psi, wanted)
    assert moved.value(image) > pinned.value(image)
    weights = torch.tensor([1.0, 1, 0, 1, 1], dtype=F64)
    free = AttributeTargets(psi, wanted, weights=weights).value(image)
    assert torch.allclose(free, AttributeTargets(psi, own, weights=weights).value(image))
    with pytest.raises(ShapeError, match="5 attributes"):
        AttributeTargets(psi, own[:3])
    with pytest.raises(ConfigurationError, match="between zero and one"):
        AttributeTargets(psi, own + 2)


def test_loss_estimates_are_measured_from_their_target(psi, estimator):
    image = images()
    found = psi.split(psi(image))
    estimate = estimator([found["norm"], found["second"]]).detach()
    stages = ("norm", "second")
    between = float(estimate.mean())
    one_sided = LossEstimate(psi, estimator, stages, target=between).value(image)
    assert torch.allclose(one_sided, torch.relu(estimate - between))
    assert sorted((one_sided > 0).tolist()) == [False, True]
    both = LossEstimate(psi, estimator, stages, target=between, one_sided=False).value(image)
    assert torch.allclose(both, (estimate - between).abs())
    assert LossEstimate(psi, estimator, stages).target == pytest.approx(-0.9)
    assert all(p.requires_grad for p in estimator.parameters())
    with pytest.raises(ConfigurationError, match="has not been calibrated"):
        LossEstimate(psi, LossEstimator((4, 3)), stages)
    with pytest.raises(ConfigurationError, match="made for another classifier"):
        LossEstimate(psi, estimator, stages[::-1])
    with pytest.raises(ConfigurationError, match="lack the layers pool"):
        LossEstimate(psi, estimator, ("pool", "second"))


def test_centroids_ask_for_the_target_by_a_margin(psi):
    head = seeded(CentroidHead, 3, 5, centroid_size=3)
    image = images()
    features = psi.split(psi(image))["second"].mean((2, 3))
    source, target = torch.tensor([0, 1]), 3
    with torch.no_grad():
        logs = head.log_kernels(features)
    for space, values in (("log", logs), ("kernel", logs.exp())):
        term = ClassKernel(
            psi, head, "second", source=source, target=target, margin=0.5, space=space
        )
        wanted = torch.relu(values[[0, 1], [0, 1]] - values[:, 3] + 0.5)
        assert torch.allclose(term.value(image), wanted)
    with pytest.raises(ConfigurationError, match="different classes"):
        ClassKernel(psi, head, "second", source=2, target=2)
    with pytest.raises(ConfigurationError, match="made for another classifier"):
        ClassKernel(psi, head, "norm", source=0, target=2)
    with pytest.raises(ConfigurationError, match="of 4 classes and the model has 5"):
        ClassKernel(psi, seeded(CentroidHead, 3, 4), "second", source=0, target=2)


def test_far_from_all_centroids_only_the_logarithm_has_a_gradient(psi):
    head = seeded(CentroidHead, 3, 5, centroid_size=3, length_scale=0.5)
    with torch.no_grad():
        head.sums += 1e3
    gradients = {}
    for space in ("log", "kernel"):
        x = images(1)[0].requires_grad_()
        term = ClassKernel(psi, head, "second", source=0, target=1, margin=1e6, space=space)
        (gradients[space],) = torch.autograd.grad(term.value(x), x)
    assert gradients["kernel"].abs().max() == 0
    assert gradients["log"].abs().max() > 0


def test_batch_statistics_are_those_of_the_inputs_of_normalisations(psi):
    model = SmoothClassifier().double()
    assert batch_norm_inputs(model) == ("norm:input",)
    image = images()
    pixels = psi.split(psi(image))["norm:input"].flatten(2)
    mean = (pixels.mean(2) - model.norm.running_mean).norm(dim=1)
    variance = (pixels.var(2, correction=0) - model.norm.running_var).norm(dim=1)
    wanted = 10 * (mean + variance)
    assert torch.allclose(BatchStatistics(psi, model).value(image), wanted)
    # A query is as it is.
    query = images(seed=4)
    own = BatchStatistics(psi, model, query)
    assert torch.equal(own.value(query), torch.zeros(2, dtype=F64))
    base = BatchStatistics(psi, model).value(query)
    assert torch.allclose(own.value(image), torch.relu(wanted - base))
    with pytest.raises(ConfigurationError, match="no batch normalisation"):
        batch_norm_inputs(torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(ConfigurationError, match="lack the layers norm:input"):
        BatchStatistics(FeatureOperator(model, ["second"], SHAPE), model)


def test_every_term_of_an_objective_is_of_one_pass(psi, estimator):
    query = images(1)[0]
    terms = [
        (1.0, FeatureFidelity(psi, query, layers=["norm"])),
        (0.1, ClassTarget(psi, 2)),
        (0.02, LossEstimate(psi, estimator, ("norm", "second"))),
        (0.01, TotalVariation(SHAPE, isotropic=True)),
    ]
    objective, calls = Objective(terms), []
    handle = psi._model.register_forward_pre_hook(lambda *_: calls.append(None))
    image = images(1, seed=3)[0].requires_grad_()
    total = objective(image)
    handle.remove()
    assert len(calls) == 1
    alone = sum(weight * term.value(image) for weight, term in terms)
    assert torch.allclose(total, alone)
    (gradient,) = torch.autograd.grad(total, image)
    assert torch.isfinite(gradient).all()


def test_all_of_it_on_a_residual_network():
    model = seeded(small_resnet, 3)
    shape = (3, 16, 16)
    psi = FeatureOperator(model, [*STAGES, LOGITS, *batch_norm_inputs(model)], shape)
    head = seeded(LossEstimator, model.stage_channels)
    random = torch.Generator().manual_seed(0)
    query = torch.rand(shape, generator=random, dtype=F64)
    objective = Objective(
        [
            (1.0, FeatureFidelity(psi, query, layers=STAGES[:2])),
            (0.1, ClassTarget(psi, 1)),
            (0.02, LossEstimate(psi, head, STAGES, target=-10.0)),
            (0.02, BatchStatistics(psi, model)),
        ]
    )
    values = objective.values(query)
    assert float(values["features"]) == pytest.approx(0, abs=1e-12)
    assert all(math.isfinite(float(v)) for v in values.values())
    assert float(values["loss estimate"]) > 0
    assert float(values["batch statistics"]) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 5}, "a class from 0 to 4"),
        ({"target": -1}, "a class from 0 to 4"),
        ({"target": 0.5}, "a class from 0 to 4"),
        ({"target": 1, "loss": "entropy"}, "loss must be"),
        ({"target": 1, "margin": -1.0}, "margin"),
        ({"target": 1, "probability": 1.5}, "probability"),
    ],
)
def test_wrong_targets_are_refused(psi, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ClassTarget(psi, **settings)


def test_wrong_fidelities_are_refused(psi):
    with pytest.raises(ConfigurationError, match="layers norm:input, norm"):
        FeatureFidelity(psi, images(), layers=["first"])
    with pytest.raises(ConfigurationError, match="distance must be"):
        FeatureFidelity(psi, images(), distance="l0")
    hidden = FeatureOperator(SmoothClassifier().double(), ["norm"], SHAPE)
    with pytest.raises(ConfigurationError, match="needs the logits"):
        ClassTarget(hidden, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exponent": 0.5}, "exponent must be"),
        ({"exponent": math.inf}, "exponent must be"),
        ({"exponent": math.nan}, "exponent must be"),
        ({"centre": math.nan}, "centre must be finite"),
    ],
)
def test_wrong_pixel_norms_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        PixelNorm(SHAPE, **settings)


def test_shapes_that_do_not_fit_the_pixel_norm_are_refused():
    for shape in (SHAPE[1:], (2, *SHAPE)):
        with pytest.raises(ShapeError, match="needs a shape"):
            PixelNorm(shape)
    with pytest.raises(ShapeError, match="The centre must have shape"):
        PixelNorm(SHAPE, centre=torch.zeros(3))
    with pytest.raises(ShapeError, match="The image must have shape"):
        PixelNorm(SHAPE).value(images()[..., :-1])


@pytest.mark.parametrize(
    ("layer", "channel", "message"),
    [
        ("first", None, "layers norm:input, norm"),
        ("second", 3, "from 0 to 2 for layer second"),
        (LOGITS, 5, "from 0 to 4 for layer logits"),
        (LOGITS, -1, "from 0 to 4"),
        (LOGITS, 1.0, "whole number"),
        (LOGITS, True, "whole number"),
        (LOGITS, torch.tensor([0, 7]), "from 0 to 4"),
    ],
)
def test_activations_that_do_not_exist_are_refused(psi, layer, channel, message):
    with pytest.raises(ConfigurationError, match=message):
        FeatureActivation(psi, layer, channel=channel)


def test_heads_are_taken_to_the_type_of_the_operator(psi):
    state = torch.get_rng_state()
    torch.manual_seed(1)
    head, centroids = LossEstimator((4, 3)), CentroidHead(3, 5)
    torch.set_rng_state(state)
    image = images()
    assert LossEstimate(psi, head, ("norm", "second"), target=0.0).value(image).dtype == F64
    target = torch.tensor([2, 3], dtype=torch.int32)
    term = ClassKernel(psi, centroids, "second", source=0, target=target)
    assert term.value(image).dtype == F64
    assert head.last.weight.dtype == torch.float32
    assert ClassTarget(psi, target).value(image).shape == (2,)


def test_a_single_logit_has_no_other_class():
    model = SmoothClassifier().double()
    model.head = torch.nn.Linear(3, 1).double()
    operator = FeatureOperator(model, [LOGITS], SHAPE)
    with pytest.raises(ConfigurationError, match="use AttributeTargets"):
        ClassTarget(operator, 0)
    assert AttributeTargets(operator, torch.ones(1)).value(images()).shape == (2,)
