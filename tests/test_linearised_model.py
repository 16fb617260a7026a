"""The linear model of the data around a network, and its Jacobian and Gram matrices kept."""

import pytest
import torch
from small_posterior import F64, SmallProblem

from dipct.errors import ConfigurationError, DtypeError, InsufficientMemoryError, ShapeError
from dipct.generator import NetworkGenerator, PixelImage, UNet
from dipct.operator import Identity, Operator
from dipct.posterior import (
    GPrior,
    LinearisedModel,
    StoredJacobian,
    gram_matrices,
    recomputed_gram_matrices,
)


@pytest.fixture(scope="module")
def problem():
    return SmallProblem()


def changed(problem, **new):
    """The model of a problem with other arguments."""
    arguments = {
        "operator": problem.operator,
        "generator": problem.generator,
        "theta_hat": problem.theta_hat,
        "data": problem.data,
        "noise_variance": problem.variance,
    }
    return LinearisedModel(**arguments | new)


def test_jacobian_is_that_of_the_image(problem):
    jacobian, chosen = problem.model.jacobian, problem.model.jacobian.chosen

    def image(weights):
        return problem.generator(problem.theta_hat.index_copy(0, chosen, weights)).flatten()

    exact = torch.func.jacrev(image)(jacobian.weights)
    assert torch.allclose(problem.jacobian_matrix, exact, atol=1e-12)
    assert torch.allclose(jacobian.T.to_matrix(), exact.T, atol=1e-12)


def test_only_convolution_weights_that_matter_vary(problem):
    names = [p.name for p in problem.model.parameters]
    assert all(name.endswith("weight") for name in names)
    network = UNet((4, 4), (0, 0), normalisation=False)
    generator = NetworkGenerator(network, problem.generator.z, (10, 10))
    model = changed(problem, generator=generator, theta_hat=generator.initial(0).double())
    assert not any(p.block.startswith("skip") for p in model.parameters)
    assert model.n_weights == sum(p.size for p in model.parameters)


def test_residual_is_what_weights_of_mean_zero_have_to_explain(problem):
    model = problem.model
    image = problem.generator(problem.theta_hat).flatten()
    at_zero = image - problem.jacobian_matrix @ model.jacobian.weights
    expected = problem.data.flatten() - problem.operator_matrix @ at_zero
    assert torch.allclose(model.residual, expected, atol=1e-12)
    assert torch.allclose(
        model.misfit, problem.data.flatten() - problem.operator_matrix @ image, atol=1e-12
    )


class Squares(Operator):
    """A nonlinear forward operator."""

    def __init__(self, operator):
        self.operator = operator
        self.domain_shape, self.range_shape = operator.domain_shape, operator.range_shape

    def _apply(self, x):
        return self.operator(x).square()


def test_nonlinear_operators_are_linearised_at_the_image(problem):
    operator = Squares(problem.operator)
    model = changed(problem, operator=operator)

    def data(weights):
        theta = problem.theta_hat.index_copy(0, model.jacobian.chosen, weights)
        return operator(problem.generator(theta)).flatten()

    exact = torch.func.jacrev(data)(model.jacobian.weights)
    identity = torch.eye(model.n_data, dtype=F64)
    assert torch.allclose(model.to_weights(identity), exact, atol=1e-10)
    misfit = problem.data.flatten() - data(model.jacobian.weights)
    assert torch.allclose(model.misfit, misfit, atol=1e-12)


def test_passes_are_counted(problem):
    model = changed(problem)
    before = model.jacobian.passes.total
    model.to_data(torch.zeros(3, model.n_weights, dtype=F64))
    model.to_weights(torch.zeros(5, model.n_data, dtype=F64))
    assert model.jacobian.passes.total == before + 8
    assert model.jacobian.passes.backward == 5


def test_reduced_precision_is_not_linearised(problem):
    network = UNet((4, 4), (0, 2))
    z, theta = (
        problem.generator.z.float(),
        NetworkGenerator(network, problem.generator.z.float(), (10, 10)).initial(0),
    )
    try:
        generator = NetworkGenerator(network, z, (10, 10), precision="bfloat16")
    except RuntimeError:
        pytest.skip("this processor has no bfloat16")
    operator = problem.operator.to(dtype=torch.float32)
    model = LinearisedModel(operator, generator, theta, problem.data.float(), 0.1)
    assert model.jacobian.generator.precision == "float32"
    model.to_data(torch.ones(1, model.n_weights))


@pytest.mark.parametrize("folder", [False, True], ids=["memory", "disk"])
def test_stored_products_are_those_of_the_network(problem, folder, tmp_path):
    model, random = problem.model, torch.Generator().manual_seed(0)
    told = []
    where = {"folder": tmp_path} if folder else {}
    stored = StoredJacobian.of_data(
        model, problem.prior.groups, report=lambda *of: told.append(of), **where
    )
    weights = torch.randn(3, model.n_weights, generator=random, dtype=F64)
    data = torch.randn(3, model.n_data, generator=random, dtype=F64)
    assert torch.allclose(stored.to_data(weights), model.to_data(weights), atol=1e-11)
    assert torch.allclose(stored.to_weights(data), model.to_weights(data), atol=1e-11)
    assert told[-1] == (model.n_data, model.n_data)
    assert not list(tmp_path.iterdir())


def test_gram_matrices_are_products_of_the_jacobian_and_cost_one_pass_a_datum(problem):
    model = changed(problem)
    before = model.jacobian.passes.total
    stored = StoredJacobian.of_data(model, problem.prior.groups)
    gram = gram_matrices(stored, problem.prior.groups)
    assert model.jacobian.passes.total - before == model.n_data
    jacobian, k = problem.operator_matrix @ problem.jacobian_matrix, 0
    for group in problem.prior.groups:
        part = jacobian[:, group.weights].unflatten(1, (group.filters, group.positions))
        for structure in group.structures:
            exact = torch.einsum("afi,ij,bfj->ab", part, structure, part)
            assert torch.allclose(gram[k], exact, atol=1e-10)
            assert torch.equal(gram[k], gram[k].T)
            k += 1
    assert k == len(gram)


def test_gram_matrices_in_parts_are_the_same(problem, monkeypatch):
    from dipct.posterior import gram

    whole = gram_matrices(problem.stored, problem.prior.groups)
    monkeypatch.setattr(gram, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(gram, "_BYTES_AT_ONCE", 8 * 9 * 5 * len(whole[0]))
    assert torch.allclose(gram_matrices(problem.stored, problem.prior.groups), whole, atol=1e-11)


def test_gram_matrices_leave_the_jacobian_as_it_is(problem):
    squares = torch.linspace(0.5, 2, problem.model.n_weights, dtype=F64)
    groups = GPrior(problem.model.parameters, squares).groups
    stored = StoredJacobian.of_data(problem.model, groups)
    before = [stored.columns(group).clone() for group in groups]
    first = gram_matrices(stored, groups)
    assert all(torch.equal(stored.columns(g), b) for g, b in zip(groups, before, strict=True))
    assert torch.equal(gram_matrices(stored, groups), first)
    scaled = torch.cat(before, dim=1) / squares.sqrt()
    assert torch.allclose(first.sum(0), scaled @ scaled.T, rtol=1e-8)


def test_recomputed_gram_matrices_are_the_same_and_cost_more_passes(problem):
    model = changed(problem)
    row = 8 * model.n_data
    largest = max(group.size for group in problem.prior.groups)
    before = model.jacobian.passes.total
    gram = recomputed_gram_matrices(model, problem.prior.groups, bytes_at_once=row * largest)
    passes = model.jacobian.passes.total - before
    assert torch.allclose(gram, gram_matrices(problem.stored, problem.prior.groups), atol=1e-11)
    assert passes % model.n_data == 0
    assert passes > model.n_data
    with pytest.raises(InsufficientMemoryError, match="Keep it on disk"):
        recomputed_gram_matrices(model, problem.prior.groups, bytes_at_once=row * (largest - 1))


def test_wrong_arguments_are_refused(problem):
    with pytest.raises(ShapeError, match="theta_hat"):
        changed(problem, theta_hat=problem.theta_hat[1:])
    with pytest.raises(ShapeError, match="data must have the shape"):
        changed(problem, data=problem.data[1:])
    with pytest.raises(DtypeError, match="float32 or float64"):
        changed(problem, theta_hat=problem.theta_hat.to(torch.bfloat16))
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="noise variance"):
            changed(problem, noise_variance=wrong)
    pixels = PixelImage((1, 10, 10))
    with pytest.raises(ConfigurationError, match="no convolution weights"):
        changed(problem, generator=pixels, theta_hat=pixels.initial(0).double())


def test_an_adjoint_that_is_not_the_transpose_is_refused(problem):
    class Unmatched(type(problem.operator)):
        matched = False

    operator = problem.operator.to(dtype=F64)
    operator.__class__ = Unmatched
    with pytest.raises(ConfigurationError, match="not its transpose"):
        changed(problem, operator=operator)


def test_identity_as_operator(problem):
    image = problem.model.image
    model = changed(problem, operator=Identity(tuple(image.shape)), data=image, noise_variance=1.0)
    assert torch.allclose(model.misfit, torch.zeros(100, dtype=F64))
