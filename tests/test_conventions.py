"""Published objectives, written out literally, against ours after conversion."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from scipy import sparse

from dipct.errors import ConfigurationError, ShapeError
from dipct.generator import NETWORKS
from dipct.objective import (
    CONVENTIONS,
    PUBLISHED_SETTINGS,
    DataTerm,
    GaussianFidelity,
    Objective,
    PoissonFidelity,
    TotalVariation,
)
from dipct.operator import MatrixOperator

STD, PHOTONS = 0.13, 400.0
SIZES = [((1, 6, 6), (2, 3)), ((1, 9, 5), (4, 7)), ((1, 5, 8), (3, 11))]
CUBES = [((1, 3, 3, 3), (2, 3)), ((1, 4, 4, 4), (2, 3, 5))]
CASES = [
    (name, *size)
    for name, convention in CONVENTIONS.items()
    for size in (CUBES if convention.ndim == 3 else SIZES)
]
cases = pytest.mark.parametrize(("name", "image_shape", "range_shape"), CASES)


def problem(image_shape, range_shape, seed=0):
    """A random operator, image and data of order one."""
    rng = np.random.default_rng(seed)
    n, m = int(np.prod(image_shape)), int(np.prod(range_shape))
    matrix = sparse.csr_matrix(rng.random((m, n)) / n)
    operator = MatrixOperator(matrix, image_shape, range_shape, dtype=torch.float64)
    image = torch.from_numpy(rng.random(image_shape))
    data = operator(image) + STD * torch.from_numpy(rng.standard_normal(range_shape))
    return operator, image, data


def with_constant_border(image):
    """Zero in the last row and column, where the conventions may differ."""
    image = image.clone()
    image[..., -1, :] = 0
    image[..., :, -1] = 0
    return image


def size_of_difference(x, axis):
    return torch.diff(x, dim=axis).abs()


def published_variation(name, x):
    """Total variation as the publication's code computes it."""
    if name == "educated-dip-3d":
        return sum(size_of_difference(x, axis).mean() for axis in (-3, -2, -1))
    across, down = size_of_difference(x, -1), size_of_difference(x, -2)
    if name == "bayes-dip":
        return across.sum() + down.sum()
    rows, columns = x.shape[-2:]
    return across[..., : rows - 1, :].sum() + down[..., : columns - 1].sum()


def published_loss(name, operator, data, gamma, x):
    """The publication's whole loss."""
    if name == "otero-baguer-poisson":
        counts = PHOTONS * torch.exp(-data)
        log_expected = np.log(PHOTONS) - operator(x)
        misfit = (torch.exp(log_expected) - counts * log_expected).sum()
    else:
        misfit = (operator(x) - data).square().mean()
    return misfit + gamma * published_variation(name, x)


def our_objective(name, operator, data, tv_weight):
    poisson = CONVENTIONS[name].data_term == "poisson"
    fidelity = PoissonFidelity(data, PHOTONS) if poisson else GaussianFidelity(data, STD)
    weight = torch.tensor(tv_weight, dtype=torch.float64)
    variation = TotalVariation(operator.domain_shape)
    return Objective([(1.0, DataTerm(operator, fidelity)), (weight, variation)])


def noise(name):
    return {} if CONVENTIONS[name].data_term == "poisson" else {"std": STD}


def offset(name, data):
    """The constant between the two losses."""
    counts = PHOTONS * torch.exp(-data)
    poisson = CONVENTIONS[name].data_term == "poisson"
    return float((counts * (1 - torch.log(counts))).sum()) if poisson else 0.0


def value_and_gradient(function, image):
    image = image.clone().requires_grad_()
    value = function(image)
    (gradient,) = torch.autograd.grad(value, image)
    return float(value.detach()), gradient


def compared(name, image_shape, range_shape, gamma=0.37, wrong=1.0):
    """Relative differences of value and gradient, the weight multiplied by ``wrong``."""
    operator, image, data = problem(image_shape, range_shape)
    convention = CONVENTIONS[name]
    image = with_constant_border(image) if convention.drops_border else image
    sizes = {"n_measurements": data.numel(), **noise(name)}
    weight = wrong * convention.tv_weight(gamma, image_shape=image_shape, **sizes)
    objective, scale = our_objective(name, operator, data, weight), convention.loss_scale(**sizes)
    value, gradient = value_and_gradient(lambda x: scale * objective(x), image)
    expected, slope = value_and_gradient(
        lambda x: published_loss(name, operator, data, gamma, x), image
    )
    value += offset(name, data)
    return abs(value - expected) / abs(expected), float((gradient - slope).norm() / slope.norm())


@cases
def test_the_scaled_objective_is_the_published_loss(name, image_shape, range_shape):
    value, gradient = compared(name, image_shape, range_shape)
    assert value < 1e-12 and gradient < 1e-12


@cases
@pytest.mark.parametrize("wrong", [0.5, 1.05, 2.0])
def test_a_wrong_factor_is_noticed(name, image_shape, range_shape, wrong):
    gamma = 20.0 if CONVENTIONS[name].data_term == "poisson" else 0.37
    value, gradient = compared(name, image_shape, range_shape, gamma, wrong)
    assert value > 1e-4 and gradient > 1e-2


@cases
def test_without_total_variation_both_weights_are_zero(name, image_shape, range_shape):
    value, gradient = compared(name, image_shape, range_shape, gamma=0.0)
    assert value < 1e-12 and gradient < 1e-12


@cases
def test_there_and_back(name, image_shape, range_shape):
    convention = CONVENTIONS[name]
    sizes = {"n_measurements": int(np.prod(range_shape)), "image_shape": image_shape}
    sizes |= noise(name)
    for gamma in (0.0, 1e-6, 0.3, 40.0):
        weight = convention.tv_weight(gamma, **sizes)
        assert convention.gamma(weight, **sizes) == pytest.approx(gamma, rel=1e-13, abs=0)


def test_the_conversions_in_numbers():
    """lambda = gamma m / (2 sigma^2), by hand."""
    image = {"image_shape": (1, 28, 28)}
    bayes = CONVENTIONS["bayes-dip"]
    assert bayes.tv_weight(1e-5, n_measurements=205, std=0.1, **image) == pytest.approx(0.1025)
    # The published probabilistic model weighs by gamma m, that is, it has sigma^2 = 1/2.
    half = bayes.tv_weight(1e-5, n_measurements=205, std=0.5**0.5, **image)
    assert half == pytest.approx(1e-5 * 205)
    assert bayes.loss_scale(200, 0.1) == pytest.approx(1e-4)
    volume = CONVENTIONS["educated-dip-3d"]
    weight = volume.tv_weight(0.1, n_measurements=200, std=0.1, image_shape=(1, 5, 5, 5))
    assert weight == pytest.approx(0.1 * 200 / (2 * 0.01) / (4 * 5 * 5))
    poisson = CONVENTIONS["otero-baguer-poisson"]
    assert poisson.tv_weight(7.0, n_measurements=513_000, image_shape=(1, 362, 362)) == 7.0
    assert poisson.loss_scale(513_000) == 1.0


def test_one_gamma_is_another_weight_for_twice_the_data():
    for name in ("bayes-dip", "educated-dip"):
        sizes = {"std": STD, "image_shape": (1, 8, 8)}
        one = CONVENTIONS[name].tv_weight(1e-3, n_measurements=100, **sizes)
        two = CONVENTIONS[name].tv_weight(1e-3, n_measurements=200, **sizes)
        assert two == pytest.approx(2 * one)
    # Counts are summed, so there the same weight stays the same.
    poisson = CONVENTIONS["otero-baguer-poisson"]
    weights = {poisson.tv_weight(7.0, n_measurements=m, image_shape=(1, 8, 8)) for m in (100, 200)}
    assert weights == {7.0}


def test_a_mean_total_variation_weighs_less_in_a_larger_volume():
    convention = CONVENTIONS["educated-dip-3d"]
    sizes = {"n_measurements": 100, "std": STD}
    small, large = (
        convention.tv_weight(0.1, image_shape=(1, side, side, side), **sizes) for side in (5, 10)
    )
    assert small / large == pytest.approx(9 * 10 * 10 / (4 * 5 * 5))


def test_unit_of_the_image():
    """A weight for x / c is c times that for x, with the same loss."""
    operator, image, data = problem(*SIZES[0])
    sizes = {"n_measurements": data.numel(), "std": STD}
    weight = CONVENTIONS["bayes-dip"].tv_weight(0.2, image_shape=image.shape, **sizes)
    loss = our_objective("bayes-dip", operator, data, weight)(image)
    scaled = our_objective("bayes-dip", 14.0 * operator, data, 14.0 * weight)(image / 14.0)
    torch.testing.assert_close(scaled, loss)


BORDERED = [name for name, convention in CONVENTIONS.items() if convention.drops_border]


@pytest.mark.parametrize("name", BORDERED)
@pytest.mark.parametrize("shape", [(1, 6, 6), (1, 9, 5)])
def test_the_dropped_border_is_that_of_the_last_row_and_column(name, shape):
    image = problem(shape, (2, 3))[1]
    ours = TotalVariation(shape)
    border = size_of_difference(image[..., -1, :], -1).sum()
    border = border + size_of_difference(image[..., :, -1], -1).sum()
    assert float(border) > 0.1
    assert float(ours.value(image) - published_variation(name, image)) == pytest.approx(
        float(border), rel=1e-12
    )
    same = with_constant_border(image)
    assert float(published_variation(name, same)) == pytest.approx(float(ours.value(same)))


@pytest.mark.parametrize("name", BORDERED)
@pytest.mark.parametrize("n", [8, 28, 128])
def test_the_dropped_border_is_an_nth_of_a_checkerboard(name, n):
    """All differences are one, so total variation counts them."""
    image = (torch.arange(n)[:, None] + torch.arange(n))[None].remainder(2).double()
    dropped = 1 - float(published_variation(name, image) / TotalVariation((1, n, n)).value(image))
    assert dropped == pytest.approx(1 / n)


def test_conventions_without_a_border_to_drop_agree_everywhere():
    assert BORDERED == ["educated-dip", "otero-baguer-poisson"]
    image = problem((1, 9, 5), (2, 3))[1]
    ours = TotalVariation((1, 9, 5)).value(image)
    assert float(published_variation("bayes-dip", image)) == pytest.approx(float(ours))


@pytest.mark.parametrize("std", [torch.full((4,), 0.1), torch.ones(2, 3), torch.ones(0)])
def test_a_standard_deviation_per_value_has_no_counterpart(std):
    convention = CONVENTIONS["bayes-dip"]
    with pytest.raises(ConfigurationError, match="one number"):
        convention.loss_scale(4, std)
    with pytest.raises(ConfigurationError, match="one number"):
        convention.tv_weight(1e-3, n_measurements=4, std=std, image_shape=(1, 4, 4))
    with pytest.raises(ConfigurationError, match="one number"):
        convention.gamma(1e-3, n_measurements=4, std=std, image_shape=(1, 4, 4))


def test_weighted_squares_are_no_multiple_of_their_mean():
    """Why a standard deviation per value is refused."""
    data = torch.zeros(2, dtype=torch.float64)
    fidelity = GaussianFidelity(data, torch.tensor([0.1, 0.2]))
    ratios = []
    for residual in ([1.0, 0.0], [0.0, 1.0]):
        eta = torch.tensor(residual, dtype=torch.float64)
        ratios.append(float(fidelity.value(eta) / eta.square().mean()))
    assert ratios[0] == pytest.approx(4 * ratios[1])


def test_the_standard_deviation_of_a_fidelity_is_one_number():
    fidelity = GaussianFidelity(torch.zeros(2, 3, dtype=torch.float64), STD)
    scale = CONVENTIONS["bayes-dip"].loss_scale(fidelity.size, fidelity.std)
    assert scale == pytest.approx(2 * STD**2 / 6)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bayes-dip", {"std": None}, "needs std"),
        ("bayes-dip", {"std": 0.0}, "positive"),
        ("bayes-dip", {"std": float("nan")}, "positive"),
        ("bayes-dip", {"n_measurements": 0}, "n_measurements"),
        ("otero-baguer-poisson", {"std": 0.1}, "Leave it out"),
        ("otero-baguer-poisson", {"std": None, "n_measurements": -1}, "n_measurements"),
    ],
)
def test_impossible_data_is_refused(name, changes, message):
    settings = {"n_measurements": 10, "std": 0.1, "image_shape": (1, 4, 4)} | changes
    for method in (CONVENTIONS[name].tv_weight, CONVENTIONS[name].gamma):
        with pytest.raises(ConfigurationError, match=message):
            method(0.1, **settings)


@pytest.mark.parametrize("weight", [-1e-9, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight):
    settings = {"n_measurements": 10, "std": 0.1, "image_shape": (1, 4, 4)}
    with pytest.raises(ConfigurationError, match="gamma"):
        CONVENTIONS["bayes-dip"].tv_weight(weight, **settings)
    with pytest.raises(ConfigurationError, match="tv_weight"):
        CONVENTIONS["bayes-dip"].gamma(weight, **settings)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("bayes-dip", (4, 4)),
        ("bayes-dip", (1, 4, 4, 4)),
        ("bayes-dip", (3, 4, 4)),
        ("bayes-dip", (1, 1, 4)),
        ("educated-dip-3d", (1, 4, 4)),
        ("educated-dip-3d", (1, 4, 4, 5)),
    ],
)
def test_images_of_another_kind_are_refused(name, shape):
    with pytest.raises(ShapeError):
        CONVENTIONS[name].tv_weight(0.1, n_measurements=10, std=0.1, image_shape=shape)


def test_a_mean_along_unequal_sides_is_no_multiple_of_the_sum():
    """Why a volume that is no cube is refused."""
    ratios = []
    for axis in (1, 3):
        volume = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
        volume.select(axis, 0).fill_(1.0)
        ours = TotalVariation((1, 3, 4, 5)).value(volume)
        ratios.append(float(published_variation("educated-dip-3d", volume) / ours))
    assert ratios[0] != pytest.approx(ratios[1], rel=0.1)


# The settings


def test_every_setting_names_its_convention_and_converts():
    assert {settings.convention for settings in PUBLISHED_SETTINGS.values()} == set(CONVENTIONS)
    for name, settings in PUBLISHED_SETTINGS.items():
        convention = CONVENTIONS[settings.convention]
        assert settings.name == name and settings.source and settings.views
        assert (convention.data_term == "poisson") == (settings.photons is not None)
        assert (convention.data_term == "poisson") == (settings.mu_max is not None)
        assert settings.network is None or settings.network in NETWORKS
        for views in settings.views:
            weight = convention.tv_weight(
                settings.gamma,
                n_measurements=views * settings.rays_per_view,
                image_shape=settings.image_shape,
                **noise(convention.name),
            )
            assert weight > 0
    assert {name for name, convention in CONVENTIONS.items() if convention.name != name} == set()


@pytest.mark.parametrize(
    ("name", "gamma", "iterations", "measurements"),
    [
        ("kmnist-5-views-5-percent", 1e-5, 14_000, 205),
        ("kmnist-10-views-5-percent", 3e-5, 29_000, 410),
        ("kmnist-20-views-5-percent", 1e-4, 41_000, 820),
        ("kmnist-30-views-5-percent", 1e-4, 50_000, 1230),
        ("kmnist-5-views-10-percent", 3e-5, 7_400, 205),
        ("kmnist-10-views-10-percent", 1e-4, 13_000, 410),
        ("kmnist-20-views-10-percent", 3e-4, 17_000, 820),
        ("kmnist-30-views-10-percent", 3e-4, 22_000, 1230),
        ("walnut-60", 6.5e-6, 1_500, 7_680),
        ("walnut-120", 4e-6, 2_500, 15_360),
        ("lotus", 1e-4, 10_000, 8_580),
        ("walnut-3d", 1e-1, 30_000, 20 * 82_944),
        ("rectangles", 3e-3, 30_000, 915),
        ("rectangles-35-views", 1e-3, 30_000, 6_405),
        ("lodopab", 7.0, 17_000, 513_000),
    ],
)
def test_the_published_numbers(name, gamma, iterations, measurements):
    settings = PUBLISHED_SETTINGS[name]
    assert (settings.gamma, settings.iterations) == (gamma, iterations)
    assert settings.views[0] * settings.rays_per_view == measurements
    assert settings.learning_rate == (5e-4 if name == "lodopab" else 1e-4)


def test_there_are_eight_settings_for_kmnist():
    kmnist = [s for s in PUBLISHED_SETTINGS.values() if s.name.startswith("kmnist")]
    assert len(kmnist) == 8 and len(PUBLISHED_SETTINGS) == 15
    # More views or more noise: a larger weight.
    for noise_level in (0.05, 0.1):
        gammas = [s.gamma for s in kmnist if s.relative_noise == noise_level]
        assert gammas == sorted(gammas)


def test_published_facts_cannot_be_changed():
    with pytest.raises(TypeError):
        CONVENTIONS["mine"] = CONVENTIONS["bayes-dip"]
    with pytest.raises(FrozenInstanceError):
        PUBLISHED_SETTINGS["lotus"].gamma = 1.0
