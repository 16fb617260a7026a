"""Projected sign steps, steps of one size, and jitter."""

import itertools
import math

import numpy as np
import pytest
import torch
from catalogue import F64, SmoothClassifier
from scipy import ndimage

from dipct.classifier import small_resnet
from dipct.errors import ConfigurationError, ShapeError
from dipct.generator import PixelImage
from dipct.objective import ClassTarget, FeatureActivation, Objective, PixelNorm, TotalVariation
from dipct.operator import LOGITS, FeatureOperator
from dipct.phantom import FaceTask
from dipct.solver import (
    Adam,
    Evaluation,
    GeneratorFit,
    GeneratorLoss,
    Jittered,
    NormalisedStep,
    ProjectedSignStep,
    iterate,
)

SHAPE = (2, 6, 7)
SIZE = math.prod(SHAPE)
RADIUS, RATE = 0.1, 0.03
TARGETS = torch.tensor([1, 4, 2])


def images(*batch, seed=0, dtype=F64):
    """Pixels of the whole range, so that the bounds matter too."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand(*batch, SIZE, generator=random, dtype=dtype)


def vectors(*batch, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, SIZE, generator=random, dtype=F64)


@pytest.fixture(scope="module")
def psi():
    return FeatureOperator(SmoothClassifier().double(), ["second", LOGITS], SHAPE)


def asking_for(psi, target):
    """A loss that knows where in the image it looks."""
    terms = [(1.0, ClassTarget(psi, target)), (0.01, TotalVariation(SHAPE, isotropic=True))]
    return Objective(terms)


def fit(objective, initial, optimiser, **settings):
    return GeneratorFit(PixelImage(SHAPE), objective, initial, optimiser=optimiser, **settings)


def path(objective, initial, optimiser, steps=12, **settings):
    """Parameters after every step, [steps ... P]."""
    found = []
    iterate(
        fit(objective, initial, optimiser, **settings),
        max_iterations=steps,
        observers=[lambda state: found.append(state.tensors["theta"])],
    )
    return torch.stack(found)


def step_along(optimiser, gradient, theta):
    """One step from a gradient."""
    nothing = torch.zeros(theta.shape[:-1], dtype=theta.dtype)
    here = Evaluation(theta, {}, nothing, nothing, gradient)
    loss = GeneratorLoss(PixelImage(SHAPE), Objective([(1.0, PixelNorm(SHAPE))]))
    return optimiser.step(theta, optimiser.start(theta), here, loss, 0)[0]


MAKERS = {
    "projected": lambda theta: ProjectedSignStep(RATE, RADIUS, theta),
    "normalised": lambda theta: NormalisedStep(RATE, SHAPE),
    "scales": lambda theta: NormalisedStep(RATE, SHAPE, scales=(0, 0.7, 2)),
    "jittered steps": lambda theta: Jittered(NormalisedStep(RATE, SHAPE), SHAPE, 2, seed=3),
    "jittered Adam": lambda theta: Jittered(Adam(RATE), SHAPE, 2, seed=3),
}
every_optimiser = pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))


class Together(NormalisedStep):
    """Steps of which the whole batch has one mean size."""

    def direction(self, gradient):
        return gradient / gradient.abs().mean()


class Counting(Jittered):
    """Jitter that depends on what was evaluated before."""

    calls = 0

    def _shift(self, step):
        self.calls += 1
        return super()._shift(self.calls)


class Uphill(NormalisedStep):
    """Steps the wrong way."""

    def direction(self, gradient):
        return -super().direction(gradient)


def apart(psi, make):
    """Largest difference between the fits of a batch and those of its elements."""
    initial = images(3)
    together = path(asking_for(psi, TARGETS), initial, make(initial))
    alone = [
        path(asking_for(psi, int(t)), x, make(x)) for t, x in zip(TARGETS, initial, strict=True)
    ]
    return float((together - torch.stack(alone, 1)).abs().max())


@every_optimiser
def test_a_batch_is_its_elements_one_by_one(psi, make):
    assert apart(psi, make) < 1e-9


def differs_when_resumed(psi, make):
    """Names of tensors and histories that a stopped fit does not end with to the same bits."""
    initial, objective = images(2), asking_for(psi, TARGETS[:2])

    def run(steps, state=None):
        fitted = fit(objective, initial, make(initial))
        return iterate(fitted, max_iterations=steps, every=4, state=state)

    whole, rest = run(11), run(11, run(5).state)
    assert rest.state.iteration == 11
    found = whole.state.tensors | whole.history
    resumed = rest.state.tensors | rest.history
    return [name for name, values in found.items() if not torch.equal(values, resumed[name])]


@every_optimiser
def test_a_stopped_fit_goes_on_to_the_same_bits(psi, make):
    assert differs_when_resumed(psi, make) == []


def lowers(psi, make):
    """Whether the loss of every element is lower after some steps."""
    initial, objective = images(3), asking_for(psi, TARGETS)
    ends = (initial, path(objective, initial, make(initial))[-1])
    before, after = (objective(theta.unflatten(-1, SHAPE)) for theta in ends)
    return bool((after < before).all())


@every_optimiser
def test_the_loss_falls(psi, make):
    assert lowers(psi, make)


def test_wrong_optimisers_break_these_laws(psi):
    assert apart(psi, lambda theta: Together(RATE, SHAPE)) > 1e-3
    counting = differs_when_resumed(psi, lambda theta: Counting(Adam(RATE), SHAPE, 2, seed=3))
    assert "theta" in counting
    assert not lowers(psi, lambda theta: Uphill(RATE, SHAPE))


@every_optimiser
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_steps_keep_the_type_and_what_they_are_given(psi, make, dtype):
    initial = images(2, dtype=dtype)
    kept, optimiser = initial.clone(), make(initial)
    moved = path(asking_for(psi.to(dtype=dtype), TARGETS[:2]), initial, optimiser, steps=2)
    assert moved.dtype == dtype
    assert torch.equal(initial, kept)


@every_optimiser
def test_a_gradient_that_is_not_a_number_is_not_hidden(make):
    theta, slopes = images(2), vectors(2)
    slopes[0, 5] = math.nan
    moved = step_along(make(theta), slopes, theta)
    assert bool(moved[0].isnan().any())
    # What the sign of torch would make of it.
    assert float(slopes.sign()[0, 5]) == 0
    assert bool(moved[1].isfinite().all())


@every_optimiser
def test_a_gradient_of_zero_moves_nothing(make):
    theta, slopes = images(2), vectors(2)
    slopes[0] = 0
    moved = step_along(make(theta), slopes, theta)
    assert torch.equal(moved[0], theta[0])
    assert not torch.equal(moved[1], theta[1])


# Projected sign steps


class Unprojected(ProjectedSignStep):
    """Steps that nothing keeps near the centre."""

    def project(self, theta):
        return theta


class Unsigned(ProjectedSignStep):
    """The same with steps along the gradient itself."""

    def step(self, theta, memory, here, loss, step):
        return self.project(theta - self.learning_rate * here.gradient), {}


def best_of_linear(make, steps=10):
    """Largest distance from the closed form, for logits that are linear functions."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIZE, 5)).double()
    with torch.no_grad():
        model[1].weight.copy_(vectors(5))
        model[1].bias.zero_()
    term = FeatureActivation(FeatureOperator(model, [LOGITS], SHAPE), channel=TARGETS)
    centre = images(3)
    found = path(Objective([(1.0, term)]), centre, make(RATE, RADIUS, centre), steps)[-1]
    # The loss is minus a logit: its gradient has the signs of minus the weights.
    loss_weights = -vectors(5)[TARGETS]
    wanted = (centre - RADIUS * loss_weights.sign()).clamp(0, 1)
    return float((found - wanted).abs().max())


def test_on_a_linear_classifier_they_end_at_the_closed_form():
    assert best_of_linear(ProjectedSignStep) < 1e-12
    # Three steps of 0.03 do not reach 0.1 yet.
    assert best_of_linear(ProjectedSignStep, steps=3) == pytest.approx(0.01)
    assert best_of_linear(Unprojected) > 0.1
    assert best_of_linear(Unsigned) > 0.05


def farthest(psi, make, bounds=(0.0, 1.0)):
    """How far pixels are from the centre, and beyond the bounds, in any iterate."""
    centre = images(3).clamp(*bounds)
    iterates = path(asking_for(psi, TARGETS), centre, make(RATE, RADIUS, centre, bounds))
    outside = torch.maximum(bounds[0] - iterates, iterates - bounds[1])
    return float((iterates - centre).abs().max()), float(outside.max())


def test_all_iterates_are_in_the_ball_and_the_bounds(psi):
    away, outside = farthest(psi, ProjectedSignStep)
    assert away == pytest.approx(RADIUS)
    assert outside == 0
    assert farthest(psi, ProjectedSignStep, (0.2, 0.7))[1] == 0
    away, outside = farthest(psi, Unprojected)
    assert away > 2 * RADIUS
    assert outside > 0.1


def test_a_start_within_the_ball_may_be_anywhere_in_it(psi):
    centre = images(2)
    optimiser = ProjectedSignStep(RATE, RADIUS, centre)
    start = centre + RADIUS * (2 * images(2, seed=5) - 1)
    with pytest.raises(ConfigurationError, match="Begin at the centre"):
        fit(asking_for(psi, TARGETS[:2]), start, optimiser)
    inside = optimiser.project(start)
    assert torch.equal(optimiser.project(inside), inside)
    assert not torch.equal(inside, centre)
    assert bool((path(asking_for(psi, TARGETS[:2]), inside, optimiser) >= 0).all())


def random_network(faces):
    """A residual network of random weights that has seen what faces are like on average."""
    state = torch.get_rng_state()
    torch.manual_seed(1)
    model = small_resnet(4)
    torch.set_rng_state(state)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model(faces)
    return model


def test_a_random_network_is_flipped_within_eight_grey_levels():
    task = FaceTask(32)
    faces = torch.from_numpy(np.stack([scene.image for scene in task.sample(60, seed=0)]))
    psi = FeatureOperator(random_network(faces[12:]), [LOGITS], task.image_shape)
    faces, radius = faces[:12], 8 / 255
    logits = psi(faces)
    seen, second = logits.topk(2).indices.unbind(-1)
    generator = PixelImage(task.image_shape)
    centre = generator.parameters_of(faces)
    optimiser = ProjectedSignStep(radius / 8, radius, centre)
    objective = Objective([(1.0, ClassTarget(psi, second))])
    fitted = GeneratorFit(generator, objective, centre, optimiser=optimiser)
    found = iterate(fitted, max_iterations=20, every=20).value
    assert float((found - faces).abs().max()) <= radius + 1e-6

    def flipped(changed):
        return int((psi(changed).argmax(-1) != seen).sum())

    # Signs that are drawn instead of found flip far fewer: 3 of 12 here, against all 12.
    signs = torch.randn(faces.shape, generator=torch.Generator().manual_seed(0)).sign()
    assert flipped(found) >= 10
    assert flipped((faces + radius * signs).clamp(0, 1)) <= 6


# Steps of one size


class Plain(NormalisedStep):
    """Steps along the gradient as it is."""

    def direction(self, gradient):
        return gradient


def same_path_for(psi, make, *, loss_scale=1.0, weights=1.0):
    """Whether factors of the loss leave the iterates as they are."""
    initial = images(3)
    term = ClassTarget(psi, TARGETS)
    paths = [
        path(Objective([(weight, term)]), initial, make(RATE, SHAPE), loss_scale=scale)
        for weight, scale in ((1.0, 1.0), (weights, loss_scale))
    ]
    return torch.allclose(*paths, rtol=0, atol=1e-9)


def test_a_factor_of_the_loss_changes_nothing(psi):
    weights = torch.tensor([1e-3, 1.0, 1e2], dtype=F64)
    assert same_path_for(psi, NormalisedStep, loss_scale=1e4)
    assert same_path_for(psi, NormalisedStep, weights=weights)
    assert not same_path_for(psi, Plain, loss_scale=1e4)
    assert same_path_for(psi, Together, loss_scale=1e4)
    assert not same_path_for(psi, Together, weights=weights)


def test_pixels_move_by_the_learning_rate_on_average():
    theta = images(3)
    change = step_along(NormalisedStep(RATE, SHAPE), vectors(3), theta) - theta
    assert change.abs().mean(-1).tolist() == pytest.approx([RATE] * 3)
    assert torch.equal(change.sign(), -vectors(3).sign())


@pytest.mark.parametrize("shape", [SHAPE, (1, 4, 3, 7)])
def test_gradients_are_smoothed_at_every_scale(shape):
    slopes, scales = vectors(3), (0, 0.7, 2.0)
    wanted = np.zeros((3, SIZE))
    for i, slope in enumerate(slopes.numpy().reshape(3, *shape)):
        for width in scales:
            sigma = (0, *(width,) * (len(shape) - 1))
            smooth = ndimage.gaussian_filter(slope, sigma, mode="nearest").reshape(-1)
            wanted[i] += smooth / np.abs(smooth).mean() / len(scales)
    found = NormalisedStep(RATE, shape, scales=scales).direction(slopes).numpy()
    assert np.allclose(found, wanted, rtol=0, atol=1e-12)
    fewer = NormalisedStep(RATE, shape, scales=scales[:2]).direction(slopes).numpy()
    assert not np.allclose(fewer, wanted, atol=0.1)


class Darkened(NormalisedStep):
    """Smoothing that takes the outside of the image for zero."""

    def _matrices(self, width):
        sides = self._pixels.range_shape[1:]
        filtered = (ndimage.gaussian_filter1d(np.eye(s), width, 0, mode="constant") for s in sides)
        return [torch.from_numpy(matrix) for matrix in filtered]


def test_a_constant_gradient_is_the_same_at_every_scale():
    slopes = torch.tensor([3.0, -1.0], dtype=F64)[:, None].expand(2, SIZE // 2).flatten()
    wanted = slopes / 2
    for scales in ((1.0,), (0.0, 0.5, 4.0)):
        found = NormalisedStep(RATE, SHAPE, scales=scales).direction(slopes)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    wrong = Darkened(RATE, SHAPE, scales=(1.0,)).direction(slopes)
    assert float((wrong - wanted).abs().max()) > 0.1


# Jitter


class NotMovedBack(Jittered):
    """Jitter that leaves the gradient where the moved image was."""

    def evaluate(self, theta, loss, step):
        return loss.differentiate(self._moved(theta, self._shift(step)))


def shifts(psi, make, reach, steps=30):
    """By how much the image was moved for each gradient; None where by nothing that explains it."""
    theta = images(2)
    loss = GeneratorLoss(PixelImage(SHAPE), asking_for(psi, TARGETS[:2]))
    wanted = {}
    for shift in itertools.product(range(-3, 4), repeat=2):
        moved = torch.roll(theta.unflatten(-1, SHAPE), shift, (-2, -1)).flatten(-3)
        slopes = loss.differentiate(moved).gradient.unflatten(-1, SHAPE)
        wanted[shift] = torch.roll(slopes, (-shift[0], -shift[1]), (-2, -1)).flatten(-3)
    optimiser, found = make(Adam(), SHAPE, reach, seed=0), []
    for step in range(steps):
        gradient = optimiser.evaluate(theta, loss, step).gradient
        fitting = [s for s, slopes in wanted.items() if torch.allclose(slopes, gradient, rtol=1e-9)]
        found.append(fitting[0] if len(fitting) == 1 else None)
    return found


def test_the_gradient_is_that_of_the_moved_image_moved_back(psi):
    found = shifts(psi, Jittered, 2)
    assert None not in found
    rows, columns = ({shift[axis] for shift in found} for axis in range(2))
    assert rows == columns == {-2, -1, 0, 1, 2}
    assert set(itertools.chain(*shifts(psi, Jittered, 1))) == {-1, 0, 1}
    wrong = shifts(psi, NotMovedBack, 2)
    assert all(shift in (None, (0, 0)) for shift in wrong)
    assert None in wrong


def test_values_are_those_of_the_image_where_it_is(psi):
    theta = images(2)
    loss = GeneratorLoss(PixelImage(SHAPE), asking_for(psi, TARGETS[:2]))
    plain, optimiser = loss.evaluate(theta), Jittered(Adam(), SHAPE, 2, seed=0)
    here = optimiser.evaluate(theta, loss, 1)
    assert torch.equal(here.image, plain.image)
    assert torch.equal(here.objective, plain.objective)
    assert all(torch.equal(here.values[name], plain.values[name]) for name in plain.values)
    assert torch.equal(here.applied[id(psi)], plain.applied[id(psi)])
    moved = NotMovedBack(Adam(), SHAPE, 2, seed=0).evaluate(theta, loss, 1)
    assert not torch.allclose(moved.objective, plain.objective)


def test_a_loss_without_place_does_not_see_jitter(psi):
    initial = images(2)
    plain, objective = Adam(RATE), Objective([(1.0, PixelNorm(SHAPE))])
    moved = Jittered(plain, SHAPE, 2, seed=0)
    assert torch.equal(path(objective, initial, moved), path(objective, initial, plain))
    placed = asking_for(psi, TARGETS[:2])
    assert not torch.allclose(path(placed, initial, moved), path(placed, initial, plain))


def test_the_seed_alone_tells_the_movements(psi):
    initial, objective = images(2), asking_for(psi, TARGETS[:2])
    one, again, other = (
        path(objective, initial, Jittered(Adam(RATE), SHAPE, 2, seed=seed)) for seed in (7, 7, 8)
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


# Impossible settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate and radius"),
        ({"learning_rate": math.nan}, "learning_rate and radius"),
        ({"radius": -0.1}, "learning_rate and radius"),
        ({"radius": math.inf}, "learning_rate and radius"),
        ({"bounds": (1.0, 0.0)}, "a lower and a higher value"),
        ({"bounds": (0.0, math.nan)}, "a lower and a higher value"),
        ({"bounds": (0.4, 0.6)}, "within the bounds, 0.4 to 0.6"),
        ({"centre": 255 * images()}, "Scale or clip"),
        ({"centre": images() * math.nan}, "within the bounds"),
    ],
)
def test_impossible_projected_steps_are_refused(settings, message):
    given = {"learning_rate": RATE, "radius": RADIUS, "centre": images()} | settings
    with pytest.raises(ConfigurationError, match=message):
        ProjectedSignStep(**given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"scales": ()}, "scales must be"),
        ({"scales": (1.0, -1.0)}, "scales must be"),
        ({"scales": (math.nan,)}, "scales must be"),
    ],
)
def test_impossible_normalised_steps_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        NormalisedStep(**{"learning_rate": RATE, "shape": SHAPE} | settings)


@pytest.mark.parametrize("pixels", [0, -1, 1.5, True])
def test_impossible_jitter_is_refused(pixels):
    with pytest.raises(ConfigurationError, match="pixels must be a whole number"):
        Jittered(Adam(), SHAPE, pixels, seed=0)


def test_shapes_that_do_not_fit_are_refused(psi):
    objective = asking_for(psi, TARGETS[:2])
    for make in (NormalisedStep, lambda rate, shape: Jittered(Adam(rate), shape, 1, seed=0)):
        with pytest.raises(ShapeError, match="image_shape must be"):
            make(RATE, SHAPE[1:])
        with pytest.raises(ShapeError, match="The parameters must have shape"):
            fit(objective, images(2), make(RATE, (2, 6, 8)))
    for centre in (images(), images(3), images(2)[:, :-1]):
        with pytest.raises(ShapeError, match="The centre of the projected steps"):
            fit(objective, images(2), ProjectedSignStep(RATE, RADIUS, centre))
    with pytest.raises(ShapeError, match="The centre of the projected steps"):
        fit(
            objective,
            images(2),
            Jittered(ProjectedSignStep(RATE, RADIUS, images()), SHAPE, 1, seed=0),
        )
