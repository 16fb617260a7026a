"""Fidelities, total variation and their convex conjugates, and objectives made of them."""

import numpy as np
import pytest
import torch
from catalogue import Waves
from scipy import sparse
from scipy.optimize import minimize_scalar

from dipct.errors import ConfigurationError, DataError, DipctError, ShapeError
from dipct.objective import (
    DataTerm,
    Fidelity,
    GaussianFidelity,
    Objective,
    PoissonFidelity,
    Term,
    TotalVariation,
    gradient_norm,
    project_dual_ball,
    total_variation,
)
from dipct.operator import MatrixOperator
from dipct.operator.gradient import Gradient

SHAPE = (3, 4)


def draw(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def gaussian():
    return GaussianFidelity(1 + draw(*SHAPE), 0.3)


def weighted():
    return GaussianFidelity(1 + draw(*SHAPE), draw(*SHAPE, seed=1).abs() + 0.1)


def poisson():
    return PoissonFidelity(1 + 0.5 * draw(*SHAPE), 50.0)


KINDS = [gaussian, weighted, poisson]


class WrongConjugate(GaussianFidelity):
    """Forgets the factor one half."""

    def conjugate(self, p):
        return super().conjugate(p) + self._sum((self.std * p).square()) / 2


class WrongProx(GaussianFidelity):
    """Forgets to shift by the projections."""

    def prox_conjugate(self, p, step):
        return p / (1 + step * self.std.square())


def fenchel_young_violation(fidelity: Fidelity) -> float:
    """Largest violation of F(eta) + F*(p) >= <p, eta>, with equality at p = F'(eta)."""
    worst = 0.0
    for seed in range(5):
        eta = (1 + draw(*SHAPE, seed=seed)).requires_grad_()
        value = fidelity.value(eta)
        (slope,) = torch.autograd.grad(value, eta)
        eta, value = eta.detach(), value.detach()
        equality = value + fidelity.conjugate(slope) - (slope * eta).sum()
        worst = max(worst, abs(float(equality)) / max(1.0, float(value)))
        other = 1 + draw(*SHAPE, seed=seed + 50)
        inequality = fidelity.value(other) + fidelity.conjugate(slope) - (slope * other).sum()
        worst = max(worst, -float(inequality))
    return worst


def prox_violation(fidelity: Fidelity, step) -> float:
    """Largest distance of the proximal map from a brute-force minimiser, value by value."""
    p = draw(*SHAPE, seed=3, scale=20.0)
    q = fidelity.prox_conjugate(p, step)
    steps = torch.as_tensor(step, dtype=torch.float64).expand(SHAPE)
    worst = 0.0
    for i, j in [(0, 0), (1, 2), (2, 3)]:

        def cost(t, i=i, j=j):
            moved = q.clone()
            moved[i, j] = t
            penalty = (t - float(p[i, j])) ** 2 / (2 * float(steps[i, j]))
            # Only this value changes; the rest of the sum is constant.
            return float(fidelity.conjugate(moved)) + penalty

        upper = float(fidelity.counts[i, j]) if isinstance(fidelity, PoissonFidelity) else 200.0
        found = minimize_scalar(cost, bounds=(-400.0, upper), options={"xatol": 1e-7})
        worst = max(worst, abs(found.x - float(q[i, j])))
    return worst


@pytest.mark.parametrize("make", KINDS)
def test_value_is_zero_at_the_data_and_positive_elsewhere(make):
    fidelity = make()
    assert float(fidelity.value(fidelity.projections)) == 0.0
    assert float(fidelity.value(fidelity.projections + 0.1 * draw(*SHAPE, seed=7))) > 0


@pytest.mark.parametrize("make", KINDS)
def test_conjugate_obeys_fenchel_young(make):
    assert fenchel_young_violation(make()) < 1e-10


def test_fenchel_young_rejects_a_wrong_conjugate():
    assert fenchel_young_violation(WrongConjugate(1 + draw(*SHAPE), 0.3)) > 1e-3


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("step", [1e-3, 0.7, 300.0, "elementwise"])
def test_prox_of_conjugate_is_the_brute_force_minimiser(make, step):
    if step == "elementwise":
        step = draw(*SHAPE, seed=9).abs() + 0.01
    assert prox_violation(make(), step) < 1e-4


def test_brute_force_rejects_a_wrong_prox():
    assert prox_violation(WrongProx(1 + draw(*SHAPE), 0.3), 0.7) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poisson_prox_solves_its_equation_over_a_wide_range(dtype):
    fidelity = PoissonFidelity(torch.linspace(0, 12, 200, dtype=dtype).reshape(2, 100), 1e6)
    for step in (1e-6, 1.0, 1e9):
        for size in (1.0, 1e4, 1e8, -1e4, -1e8):
            p = torch.full((2, 100), size, dtype=dtype)
            q = fidelity.prox_conjugate(p, step).double()
            n, y = fidelity.counts.double(), fidelity.projections.double()
            assert bool(torch.isfinite(q).all() and (q <= n).all())
            # The condition q - p + step (y - log(1 - q / n)) = 0, where it can be evaluated.
            inside = q < n * (1 - 1e-3)
            residual = q - p.double() + step * (y - torch.log1p(-q / n))
            scale = q.abs() + p.double().abs() + step * (1 + y + n / (n - q))
            accuracy = 300 * torch.finfo(dtype).eps
            assert bool((residual.abs() <= accuracy * scale)[inside].all())


def test_poisson_value_matches_the_negative_log_likelihood():
    fidelity, counts = poisson(), poisson().counts
    eta = 1 + 0.3 * draw(*SHAPE, seed=4)
    mean = 50.0 * torch.exp(-eta)

    def negative_log_likelihood(m):
        return (m - counts * torch.log(m)).sum()

    expected = negative_log_likelihood(mean) - negative_log_likelihood(counts)
    assert float(fidelity.value(eta)) == pytest.approx(float(expected), rel=1e-12)


def test_poisson_conjugate_is_infinite_outside_its_domain():
    fidelity = poisson()
    assert float(fidelity.conjugate(fidelity.counts + 1e-6)) == np.inf
    assert np.isfinite(float(fidelity.conjugate(fidelity.counts)))


def test_discrepancy_is_one_for_the_true_line_integrals():
    truth = torch.rand(200, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = truth + 0.2 * draw(200, 300, seed=1)
    counts = torch.poisson(1e3 * torch.exp(-truth), torch.Generator().manual_seed(2))
    assert float(GaussianFidelity(noisy, 0.2).discrepancy(truth)) == pytest.approx(1, abs=0.02)
    fidelity = PoissonFidelity(-torch.log(counts / 1e3), 1e3)
    assert float(fidelity.discrepancy(truth)) == pytest.approx(1, abs=0.02)
    assert float(GaussianFidelity(noisy, 0.1).discrepancy(truth)) > 3


def test_poisson_is_gaussian_with_its_std_for_small_excess():
    fidelity = PoissonFidelity(1 + 0.1 * draw(*SHAPE), 1e8)
    other = GaussianFidelity(fidelity.projections, fidelity.std)
    eta = fidelity.projections + 1e-4 * draw(*SHAPE, seed=1)
    assert float(fidelity.value(eta)) == pytest.approx(float(other.value(eta)), rel=1e-3)


def test_batches_are_evaluated_element_by_element():
    y, eta = draw(2, *SHAPE), draw(2, *SHAPE, seed=1)
    fidelity = GaussianFidelity(y, 0.5, range_shape=SHAPE)
    single = torch.stack([GaussianFidelity(y[k], 0.5).value(eta[k]) for k in range(2)])
    assert fidelity.value(eta).shape == (2,)
    torch.testing.assert_close(fidelity.value(eta), single)
    assert fidelity.size == 12
    cone = GaussianFidelity(draw(2, 3, 4), 0.5)
    assert cone.value(draw(5, 2, 3, 4)).shape == (5,)


@pytest.mark.parametrize(
    ("projections", "std"),
    [
        (torch.tensor([[1.0, float("nan")]]), 1.0),
        (torch.ones(2, 3), 0.0),
        (torch.ones(2, 3), float("inf")),
        (torch.ones(2, 3), torch.ones(4)),
    ],
)
@pytest.mark.parametrize("kind", [GaussianFidelity, PoissonFidelity])
def test_impossible_data_is_refused(kind, projections, std):
    with pytest.raises(DataError):
        kind(projections, std)


def test_wrong_shapes_are_refused():
    with pytest.raises(ShapeError):
        gaussian().value(torch.ones(4, 3, dtype=torch.float64))
    with pytest.raises(DipctError):
        total_variation(torch.ones(4, 4))


def test_total_variation_of_a_square():
    image = torch.zeros(1, 8, 8)
    image[0, 2:5, 3:5] = 2.0
    assert float(total_variation(image)) == 2.0 * (3 + 3 + 2 + 2)
    # One corner has both differences in the same pixel.
    expected = 2.0 * (3 + 3 + 2 + 2 - 2 + 2**0.5)
    assert float(total_variation(image, isotropic=True)) == pytest.approx(expected)


def test_total_variation_is_homogeneous_and_blind_to_constants():
    image = draw(2, 1, 6, 5)
    for isotropic in (False, True):
        one = total_variation(image, isotropic=isotropic)
        assert one.shape == (2,)
        torch.testing.assert_close(total_variation(-3 * image + 7, isotropic=isotropic), 3 * one)


@pytest.mark.parametrize("isotropic", [False, True])
def test_total_variation_gradient(isotropic):
    image = draw(1, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: total_variation(x, isotropic=isotropic), (image,))
    flat = torch.ones(1, 5, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(total_variation(flat, isotropic=isotropic), flat)
    assert bool((gradient == 0).all())


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("shape", [(1, 6, 5), (1, 3, 4, 5)])
def test_dual_ball_is_the_polar_of_total_variation(isotropic, shape):
    """TV(x) = max of <q, D x> over the ball, and the projection is the nearest point."""
    gradient, ndim = Gradient(shape), len(shape) - 1
    difference = gradient(draw(*shape))
    kind = {"ndim": ndim, "isotropic": isotropic}
    variation = float(gradient_norm(difference, **kind))

    def project(q):
        return project_dual_ball(q, 1.0, **kind)

    best = float((project(1e9 * difference) * difference).sum())
    assert best == pytest.approx(variation, rel=1e-6)
    q = 3 * draw(*gradient.range_shape, seed=5)
    nearest = project(q)
    torch.testing.assert_close(project(nearest), nearest)
    for seed in range(20):
        other = project(3 * draw(*gradient.range_shape, seed=seed))
        assert float((other * difference).sum()) <= variation * (1 + 1e-12)
        assert float(((q - nearest) * (other - nearest)).sum()) <= 1e-12
    # The other ball fails one of the two laws.
    wrong = project_dual_ball(1e9 * difference, 1.0, ndim=ndim, isotropic=not isotropic)
    assert float((wrong * difference).sum()) != pytest.approx(variation, rel=1e-3)


def test_dual_ball_of_radius_zero_is_the_origin():
    for isotropic in (False, True):
        q = project_dual_ball(draw(2, 4, 4), 0.0, ndim=2, isotropic=isotropic)
        assert bool((q == 0).all())


# Terms and objectives

IMAGE = (1, 4, 5)
VOLUME = (1, 3, 4, 2)


class WrongTerm(DataTerm):
    """Loses the gradient of the operator."""

    def value_of(self, eta):
        return self.fidelity.value(eta.detach()) + 0 * eta.sum()


def linear(image_shape=IMAGE):
    rng = np.random.default_rng(2)
    matrix = sparse.csr_matrix(rng.standard_normal((12, int(np.prod(image_shape)))))
    return MatrixOperator(matrix, image_shape, SHAPE, dtype=torch.float64)


def nonlinear(image_shape=IMAGE):
    return Waves(torch.float64, image_shape, SHAPE)


def terms(operator, make=gaussian):
    return DataTerm(operator, make()), TotalVariation(operator.domain_shape)


def slope_violation(objective, image_shape, seed=0):
    """Largest distance of the gradient from central differences, all directions, relative."""
    image = draw(*image_shape, seed=seed).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(image), image)
    step, flat = 1e-5, image.detach().flatten()
    differences = torch.empty_like(flat)
    for i in range(flat.numel()):
        change = torch.zeros_like(flat)
        change[i] = step
        ahead, behind = (objective((flat + s * change).reshape(image_shape)) for s in (1, -1))
        differences[i] = (ahead - behind) / (2 * step)
    return float((gradient.flatten() - differences).abs().max() / differences.abs().max())


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("operator", [linear, nonlinear])
@pytest.mark.parametrize("image_shape", [IMAGE, VOLUME])
def test_a_data_term_is_the_fidelity_of_the_projections(make, operator, image_shape):
    fidelity, operator = make(), operator(image_shape)
    term = DataTerm(operator, fidelity)
    image = draw(*image_shape)
    torch.testing.assert_close(term.value(image), fidelity.value(operator(image)))
    assert term.name == "fidelity" and term.size == fidelity.size == 12
    assert DataTerm(operator, fidelity, "second scan").name == "second scan"


@pytest.mark.parametrize("isotropic", [False, True])
def test_the_total_variation_term_is_total_variation(isotropic):
    term = TotalVariation(IMAGE, isotropic=isotropic)
    images = draw(3, *IMAGE)
    torch.testing.assert_close(term.value(images), total_variation(images, isotropic=isotropic))
    assert term.name == "total_variation" and term.size == 0


def test_the_total_variation_of_a_box_in_a_volume():
    volume = torch.zeros(1, 5, 6, 7)
    volume[0, 1:3, 2:5, 3] = 2.0
    faces = 2 * (2 * 3 + 2 * 1 + 3 * 1)
    assert float(TotalVariation((1, 5, 6, 7)).value(volume)) == 2.0 * faces
    anisotropic = TotalVariation(VOLUME).value(draw(*VOLUME))
    isotropic = TotalVariation(VOLUME, isotropic=True).value(draw(*VOLUME))
    assert float(anisotropic) / 3**0.5 < float(isotropic) < float(anisotropic)


@pytest.mark.parametrize("image_shape", [IMAGE, VOLUME])
def test_the_breakdown_adds_up(image_shape):
    data, variation = terms(linear(image_shape))
    objective = Objective([(2.0, data), (0.5, variation)])
    image = draw(*image_shape, seed=3)
    values = objective.values(image)
    assert list(values) == ["fidelity", "total_variation"]
    torch.testing.assert_close(values["fidelity"], data.value(image))
    torch.testing.assert_close(values["total_variation"], variation.value(image))
    expected = 2.0 * data.value(image) + 0.5 * variation.value(image)
    torch.testing.assert_close(objective(image), expected)
    torch.testing.assert_close(objective.total(values), expected)
    assert objective(image).shape == () and objective.size == 12


def test_a_term_of_weight_zero_is_recorded_and_does_not_count():
    data, variation = terms(linear())
    objective, image = Objective([(1.0, data), (0.0, variation)]), draw(*IMAGE)
    assert float(objective.values(image)["total_variation"]) > 0
    assert float(objective(image)) == float(data.value(image))


def test_two_scans_of_one_object_count_all_their_values():
    first, second = (
        DataTerm(linear(), gaussian(), "first"),
        DataTerm(nonlinear(), poisson(), "second"),
    )
    objective, image = Objective([(1.0, first), (1.0, second)]), draw(*IMAGE)
    assert objective.size == 24 and set(objective.values(image)) == {"first", "second"}
    torch.testing.assert_close(objective(image), first.value(image) + second.value(image))
    assert Objective([(1.0, TotalVariation(IMAGE))]).size == 1


def test_a_batch_is_evaluated_element_by_element_with_its_own_weights():
    operator, data = linear(), draw(3, *SHAPE)
    weights = torch.tensor([0.0, 0.3, 7.0], dtype=torch.float64)
    fidelity = GaussianFidelity(data, 0.5, range_shape=SHAPE)
    variation = TotalVariation(IMAGE)
    objective = Objective([(1.0, DataTerm(operator, fidelity)), (weights, variation)])
    images = draw(3, *IMAGE, seed=4)
    single = [
        Objective([(1.0, DataTerm(operator, GaussianFidelity(y, 0.5))), (weight, variation)])(x)
        for y, weight, x in zip(data, weights, images, strict=True)
    ]
    torch.testing.assert_close(objective(images), torch.stack(single))
    assert objective.size == 12
    # The weights in another order are other objectives.
    other = Objective([(1.0, DataTerm(operator, fidelity)), (weights.flip(0), variation)])
    assert not torch.allclose(objective(images), other(images))


@pytest.mark.parametrize("image_shape", [IMAGE, VOLUME])
@pytest.mark.parametrize("batch", [(), (1,), (2,), (2, 3)])
def test_leading_axes_are_batch_axes(batch, image_shape):
    data, variation = terms(nonlinear(image_shape))
    objective = Objective([(1.0, data), (0.5, variation)])
    images = draw(*batch, *image_shape)
    assert objective(images).shape == batch
    flat = torch.stack([objective(x) for x in images.reshape(-1, *image_shape)])
    torch.testing.assert_close(objective(images).flatten(), flat)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("operator", [linear, nonlinear])
@pytest.mark.parametrize("image_shape", [IMAGE, VOLUME])
@pytest.mark.parametrize("isotropic", [False, True])
def test_the_gradient_is_that_of_central_differences(make, operator, image_shape, isotropic):
    variation = TotalVariation(image_shape, isotropic=isotropic)
    # A small operator keeps the exponential of the Poisson fidelity tame.
    term = DataTerm(0.2 * operator(image_shape), make())
    assert slope_violation(Objective([(1.0, term), (0.7, variation)]), image_shape) < 1e-5


def test_central_differences_reject_a_lost_gradient():
    wrong = Objective([(1.0, WrongTerm(linear(), gaussian())), (0.7, TotalVariation(IMAGE))])
    assert slope_violation(wrong, IMAGE) > 0.1


def test_the_total_keeps_the_type_of_the_values():
    operator = MatrixOperator(sparse.eye(20), IMAGE, IMAGE[1:], dtype=torch.float32)
    fidelity = GaussianFidelity(torch.zeros(4, 5), 0.1)
    for weight in (0.3, torch.tensor(0.3, dtype=torch.float64), 1):
        objective = Objective(
            [(1.0, DataTerm(operator, fidelity)), (weight, TotalVariation(IMAGE))]
        )
        assert objective(torch.ones(IMAGE)).dtype == torch.float32
        assert objective(torch.ones(IMAGE)).shape == ()


def test_a_number_as_weight_keeps_its_digits():
    term, image = TotalVariation(IMAGE), draw(*IMAGE)
    torch.testing.assert_close(
        Objective([(0.1, term)])(image), 0.1 * term.value(image), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize(
    "weight",
    [-1e-9, float("nan"), torch.tensor([1.0, -0.1]), torch.tensor([1.0, float("nan")])],
)
def test_weights_that_are_not_positive_are_refused(weight):
    with pytest.raises(ConfigurationError, match="total_variation"):
        Objective([(weight, TotalVariation(IMAGE))])


def test_objectives_need_terms_of_different_names():
    with pytest.raises(ConfigurationError, match="different names"):
        Objective([])
    with pytest.raises(ConfigurationError, match="different names"):
        Objective([(1.0, TotalVariation(IMAGE)), (2.0, TotalVariation(IMAGE, isotropic=True))])


def test_terms_refuse_images_of_another_shape():
    data, variation = terms(linear())
    for image in (torch.ones(1, 5, 4), torch.ones(4, 5), torch.ones(2, 4, 5)):
        for term in (data, variation):
            with pytest.raises(ShapeError):
                term.value(image.double())
    for shape in ((4, 5), (2, 3, 4, 5), (1, 1, 3, 4, 5)):
        with pytest.raises(ShapeError):
            TotalVariation(shape)
    # Projections of another shape than the operator's.
    with pytest.raises(ShapeError):
        DataTerm(linear(), GaussianFidelity(draw(4, 3), 0.1)).value(draw(*IMAGE))


def test_a_term_is_abstract():
    with pytest.raises(TypeError):
        Term()
