"""Every operator keeps the laws of its kind, and the checks reject operators that do not."""

from dataclasses import replace

import catalogue
import numpy as np
import odl
import pytest
import torch
from catalogue import (
    DENSE,
    ENTRIES,
    F32,
    F64,
    GEOMETRIES,
    IMAGE,
    OTHER,
    SQUARE,
    Waves,
    build,
    matrix,
    names,
    one_thread,  # noqa: F401
    ray,
)
from scipy import sparse
from scipy.sparse.linalg import aslinearoperator

from dipct.errors import (
    BackendUnavailableError,
    ConfigurationError,
    DeviceUnavailableError,
    DtypeError,
    GeometryError,
    InsufficientMemoryError,
    ShapeError,
)
from dipct.measurement import Grid
from dipct.operator import (
    Gradient,
    Jacobian,
    LinearOperator,
    MatrixOperator,
    Operator,
    RayTransform,
    from_scipy,
    ray_transform,
    stack,
    to_scipy,
)
from dipct.operator.algebra import Adjoint
from dipct.operator.astra_ray import AstraRayTransform
from dipct.operator.base import apply_linear
from dipct.operator.checks import (
    adjoint_mismatch,
    derivative_mismatch,
    linearity_mismatch,
    random_tensor,
    taylor_slope,
)
from dipct.operator.odl_bridge import from_odl, to_odl

# Torch itself still uses what it deprecates, on the first forward-mode derivative in a process.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


CASES = [(name, dtype) for name, entry in ENTRIES.items() for dtype in entry.dtypes]
LINEAR_CASES = [case for case in CASES if case[0] in names(linear=True)]
ADJOINT_LIMIT = {F32: 1e-5, F64: 1e-12}
CLOSE = {F32: {"rtol": 1e-4, "atol": 1e-5}, F64: {"rtol": 1e-10, "atol": 1e-11}}


def label(value):
    return str(value).removeprefix("torch.")


# Laws of the structure, not of the arithmetic, need only one type.
ONE_TYPE = [(name, entry.dtypes[-1]) for name, entry in ENTRIES.items()]
every_operator = pytest.mark.parametrize(("name", "dtype"), ONE_TYPE, ids=label)
every_linear_operator = pytest.mark.parametrize(
    ("name", "dtype"), [case for case in ONE_TYPE if case in LINEAR_CASES], ids=label
)
every_case = pytest.mark.parametrize(("name", "dtype"), CASES, ids=label)
every_linear_case = pytest.mark.parametrize(("name", "dtype"), LINEAR_CASES, ids=label)
every_double = pytest.mark.parametrize("name", names(dtype=F64))


def point(operator, seed=0, batch=()):
    return random_tensor((*batch, *operator.domain_shape), operator, seed)


def data(operator, seed=50, batch=()):
    return random_tensor((*batch, *operator.range_shape), operator, seed)


# --- laws ---------------------------------------------------------------------------------------


@every_linear_case
def test_adjoint_is_the_transpose(name, dtype):
    operator = build(name, dtype)
    assert operator.matched
    assert adjoint_mismatch(operator) <= ADJOINT_LIMIT[dtype]
    assert adjoint_mismatch(operator.T, seed=9) <= ADJOINT_LIMIT[dtype]
    if not isinstance(operator, Adjoint):
        assert operator.T.T is operator
    assert operator.T.domain_shape == operator.range_shape
    assert operator.T.range_shape == operator.domain_shape


@every_linear_case
def test_linear(name, dtype):
    assert linearity_mismatch(build(name, dtype)) <= ADJOINT_LIMIT[dtype]


@pytest.mark.parametrize("name", names(linear=False))
def test_nonlinear_operators_are_not_called_linear(name):
    operator = build(name, F64)
    assert not isinstance(operator, LinearOperator)
    assert linearity_mismatch(operator) > 1e-3
    assert not hasattr(operator, "adjoint")


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.dense])
def test_matrix_equals_the_dense_twin(name):
    entry = ENTRIES[name]
    dtype = entry.dtypes[-1]
    found, expected = build(name, dtype).to_matrix().numpy(), entry.dense()
    # In float32 ASTRA's lengths near corners are differences of nearly equal numbers.
    limit = entry.rounding if dtype == F64 else 1e-4
    np.testing.assert_allclose(found, expected, atol=limit * np.abs(expected).max())


@every_linear_operator
def test_matrix_equals_application(name, dtype):
    operator = build(name, dtype)
    x, y, dense = point(operator), data(operator), operator.to_matrix().to(F64)
    forward, backward = operator(x).flatten().to(F64), operator.adjoint(y).flatten().to(F64)
    # Operators without a type of their own give their matrix in float32.
    close = CLOSE[operator.dtype or F32]
    torch.testing.assert_close(dense @ x.flatten().to(F64), forward, **close)
    torch.testing.assert_close(dense.T @ y.flatten().to(F64), backward, **close)


def test_transpose_of_a_composition_runs_backwards():
    a, b = matrix(DENSE, F64), matrix(SQUARE, F64, range_=(1, 3, 4))
    torch.testing.assert_close((a @ b).T.to_matrix(), (b.T @ a.T).to_matrix())
    torch.testing.assert_close((a @ b).T.to_matrix(), (a @ b).to_matrix().T)
    assert (a @ b).T.T.outer is a


@every_case
def test_derivative_is_right(name, dtype):
    operator = build(name, dtype)
    assert taylor_slope(operator) >= 1.9
    assert derivative_mismatch(operator) <= ADJOINT_LIMIT[dtype]
    if not isinstance(operator, LinearOperator):
        assert taylor_slope(operator) < 2.5, "a nonlinear operator has a remainder"


@every_double
def test_autograd_in_both_modes_and_twice(name):
    operator = build(name, F64)
    x = point(operator).requires_grad_()
    forward = not ENTRIES[name].nested
    assert torch.autograd.gradcheck(operator, x, fast_mode=True, check_forward_ad=forward)
    if ENTRIES[name].twice:
        assert torch.autograd.gradgradcheck(operator, x, fast_mode=True)


@every_linear_operator
def test_autograd_runs_the_adjoint(name, dtype):
    operator = build(name, dtype)
    x, y = point(operator).requires_grad_(), data(operator)
    (gradient,) = torch.autograd.grad(operator(x), x, y)
    torch.testing.assert_close(gradient, operator.adjoint(y), **CLOSE[dtype])
    w = data(operator).requires_grad_()
    (gradient,) = torch.autograd.grad(operator.adjoint(w), w, x.detach())
    torch.testing.assert_close(gradient, operator(x.detach()), **CLOSE[dtype])


@every_operator
def test_torch_func_transforms(name, dtype):
    operator = build(name, dtype)
    x, v, w = point(operator, 1), point(operator, 2), data(operator, 3)
    value, pushed = torch.func.jvp(operator, (x,), (v,))
    torch.testing.assert_close(value, operator(x), **CLOSE[dtype])
    torch.testing.assert_close(pushed, operator.jvp(x, v), **CLOSE[dtype])
    value, pull = torch.func.vjp(operator, x)
    torch.testing.assert_close(value, operator(x), **CLOSE[dtype])
    torch.testing.assert_close(pull(w)[0], operator.vjp(x, w), **CLOSE[dtype])


@every_operator
def test_vmap_equals_a_loop(name, dtype):
    operator = build(name, dtype)
    x, v, w = (make(operator, 4, (3,)) for make in (point, point, data))
    v = v.flip(0)
    for mapped, looped in [
        (torch.vmap(operator)(x), [operator(a) for a in x]),
        (
            torch.vmap(operator, in_dims=-1, out_dims=-1)(x.movedim(0, -1)).movedim(-1, 0),
            [operator(a) for a in x],
        ),
        (torch.vmap(operator.jvp)(x, v), [operator.jvp(a, b) for a, b in zip(x, v, strict=True)]),
        (
            torch.vmap(operator.jvp, in_dims=(None, 0))(x[0], v),
            [operator.jvp(x[0], b) for b in v],
        ),
        (torch.vmap(operator.vjp)(x, w), [operator.vjp(a, b) for a, b in zip(x, w, strict=True)]),
        (
            torch.vmap(operator.vjp, in_dims=(None, 0))(x[0], w),
            [operator.vjp(x[0], b) for b in w],
        ),
        (torch.vmap(torch.vmap(operator))(x[None]), [torch.stack([operator(a) for a in x])]),
    ]:
        torch.testing.assert_close(mapped, torch.stack(list(looped)), **CLOSE[dtype])


@pytest.mark.parametrize("name", [n for n in names(dtype=F64) if ENTRIES[n].twice])
def test_forward_over_reverse_is_the_second_derivative(name):
    operator = build(name, F64)
    x, v, w = point(operator, 1), point(operator, 2), data(operator, 3)

    def gradient(z):
        value, pull = torch.func.vjp(operator, z)
        return pull(w * value)[0]

    found = torch.func.jvp(gradient, (x,), (v,))[1]
    step = 1e-4
    expected = (gradient(x + step * v) - gradient(x - step * v)) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    z = x.clone().requires_grad_()
    (first,) = torch.autograd.grad((operator(z).square() * w).sum() / 2, z, create_graph=True)
    (reverse,) = torch.autograd.grad(first, z, v)
    torch.testing.assert_close(found, reverse, **CLOSE[F64])


def test_missing_second_derivative_is_an_error_not_a_zero():
    operator = build("nonlinear through ODL", F64)
    x = point(operator).requires_grad_()
    (first,) = torch.autograd.grad(operator(x).square().sum(), x, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.autograd.grad(first.sum(), x)


@every_operator
@pytest.mark.parametrize("batch", [(3,), (2, 1)], ids=str)
def test_leading_axes_are_batch_axes(name, dtype, batch):
    operator = build(name, dtype)
    x = point(operator, 7, batch)
    value = operator(x)
    assert value.shape == (*batch, *operator.range_shape)
    items = x.reshape(-1, *operator.domain_shape)
    looped = torch.stack([operator(item) for item in items]).reshape(value.shape)
    torch.testing.assert_close(value, looped, **CLOSE[dtype])
    # Strided input, as from an expanded or transposed batch.
    strided = x.movedim(0, -1).contiguous().movedim(-1, 0)
    torch.testing.assert_close(operator(strided), looped, **CLOSE[dtype])
    if isinstance(operator, LinearOperator):
        y = data(operator, 8, batch)
        back = operator.adjoint(y)
        items = y.reshape(-1, *operator.range_shape)
        looped = torch.stack([operator.adjoint(item) for item in items]).reshape(back.shape)
        torch.testing.assert_close(back, looped, **CLOSE[dtype])


@pytest.mark.parametrize("name", ["siddon fan", "gradient 2-D", "composition", "nonlinear"])
def test_empty_batch(name):
    operator = build(name, F64)
    assert operator(point(operator, batch=(0,))).shape == (0, *operator.range_shape)


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e.dtypes == (F32, F64)])
def test_change_of_dtype(name):
    single, double = build(name, F32), build(name, F64)
    assert (single.dtype, double.dtype) == (F32, F64)
    moved = double.to(dtype=F32)
    assert (moved.dtype, double.dtype) == (F32, F64)
    assert type(moved) is type(double)
    x = point(double)
    torch.testing.assert_close(moved(x.float()), single(x.float()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved.to("cpu", F64)(x), double(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(DtypeError, match="stored in"):
        moved(x)


@pytest.mark.parametrize("name", [n for n in names(linear=True) if n in names(dtype=F64)])
def test_norm_is_the_largest_singular_value(name):
    operator = build(name, F64)
    exact = float(torch.linalg.matrix_norm(operator.to_matrix(), 2))
    assert operator.norm(iterations=3000, tolerance=1e-9) == pytest.approx(exact, rel=1e-4)
    quick = operator.norm()
    assert quick <= exact * (1 + 1e-6)
    assert quick == pytest.approx(exact, rel=0.01)
    assert operator.T.norm(iterations=3000, tolerance=1e-9) == pytest.approx(exact, rel=1e-4)


def test_norms_known_in_closed_form():
    for shape in ((1, 5, 4), (1, 3, 4, 5)):
        sizes = np.array(shape[1:])
        exact = np.sqrt(np.sum(4 * np.sin(np.pi * (sizes - 1) / (2 * sizes)) ** 2))
        gradient = Gradient(shape)
        assert gradient.norm(iterations=3000, tolerance=1e-9) == pytest.approx(exact, rel=1e-4)
        assert gradient.norm() <= np.sqrt(4 * len(sizes))
    assert matrix(np.zeros((6, 12)), F64).norm() == 0.0
    assert matrix(np.eye(12), F64, range_=(12,)).norm() == pytest.approx(1)


@every_operator
def test_linearisation(name, dtype):
    operator = build(name, dtype)
    x, v = point(operator, 5), point(operator, 6)
    value, jacobian = operator.linearize(x)
    torch.testing.assert_close(value, operator(x), **CLOSE[dtype])
    torch.testing.assert_close(jacobian(v), operator.jvp(x, v), **CLOSE[dtype])
    assert isinstance(jacobian, LinearOperator)
    assert (jacobian is operator) == isinstance(operator, LinearOperator)
    assert adjoint_mismatch(jacobian) <= ADJOINT_LIMIT[dtype]


@pytest.mark.parametrize("name", ["nonlinear", "siddon fan", "nonlinear through ODL"])
def test_linearisation_with_batch_axes_is_block_diagonal(name):
    operator = build(name, F64)
    x, v = point(operator, 5, (2, 3)), point(operator, 6, (2, 3))
    _, jacobian = operator.linearize(x)
    assert jacobian.domain_shape == (2, 3, *operator.domain_shape)
    blocks = [
        operator.jvp(a, b) for a, b in zip(x.flatten(end_dim=1), v.flatten(end_dim=1), strict=True)
    ]
    torch.testing.assert_close(
        jacobian(v), torch.stack(blocks).reshape(2, 3, *operator.range_shape)
    )
    assert adjoint_mismatch(jacobian) <= 1e-12


def test_operators_leave_their_input_alone():
    for name, dtype in CASES:
        operator = build(name, dtype)
        x = point(operator)
        kept = x.clone()
        operator(x)
        assert torch.equal(x, kept), name
        if isinstance(operator, LinearOperator):
            y = data(operator)
            kept = y.clone()
            operator.adjoint(y)
            assert torch.equal(y, kept), name


@pytest.mark.parametrize("given", ["csr", "csc", "coo", "unsorted", "duplicates"])
def test_any_sparse_matrix_is_stored_right(given):
    values = {
        "unsorted": sparse.csr_matrix(([1.0, 2, 3], [2, 0, 1], [0, 2, 3]), shape=(2, 3)),
        "duplicates": sparse.csr_matrix(([1.0, 2, 3], [0, 0, 1], [0, 2, 3]), shape=(2, 3)),
    }.get(given)
    if values is None:
        values = sparse.random(4, 3, 0.5, given, random_state=np.random.default_rng(0))
    kept = values.copy()
    operator = MatrixOperator(values, (3,), (values.shape[0],), dtype=F64)
    np.testing.assert_array_equal(operator.to_matrix().numpy(), kept.toarray())
    np.testing.assert_array_equal(operator.to_scipy().toarray(), kept.toarray())
    np.testing.assert_array_equal(values.data, kept.data)
    assert operator.matrix.col_indices().dtype == torch.int32
    assert operator.transpose.col_indices().dtype == torch.int32
    assert operator.n_nonzeros == np.count_nonzero(kept.toarray())


# --- bridges ------------------------------------------------------------------------------------


@every_linear_operator
def test_scipy_sees_the_same_operator(name, dtype):
    operator = build(name, dtype)
    bridged, dense = to_scipy(operator), operator.to_matrix().numpy()
    assert bridged.shape == dense.shape
    assert bridged.dtype == str(dtype)[6:]
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal((n, 2)).astype(bridged.dtype) for n in reversed(dense.shape))
    close = CLOSE[operator.dtype or F32]
    np.testing.assert_allclose(bridged @ x[:, 0], dense @ x[:, 0], **close)
    np.testing.assert_allclose(bridged @ x, dense @ x, **close)
    np.testing.assert_allclose(bridged.rmatvec(y[:, 0]), dense.T @ y[:, 0], **close)
    np.testing.assert_allclose(bridged.H @ y, dense.T @ y, **close)
    again = from_scipy(bridged, operator.domain_shape, operator.range_shape, dtype=dtype)
    z = point(operator)
    torch.testing.assert_close(again(z), operator(z), **close)


def test_odl_sees_the_same_operator_in_weighted_spaces():
    operator = ray("parallel")
    domain = odl.uniform_discr([0, 0], [8, 5], IMAGE.shape)
    space = odl.uniform_discr([0, 0], [1, 2], operator.range_shape)
    bridged = to_odl(operator, domain, space)
    assert bridged.is_linear
    x, y = domain.element(np.random.default_rng(0).random(IMAGE.shape)), space.one()
    expected = operator(torch.from_numpy(x.asarray())[None]).numpy()
    np.testing.assert_allclose(bridged(x).asarray(), expected)
    assert bridged(x).inner(y) == pytest.approx(x.inner(bridged.adjoint(y)), rel=1e-12)
    assert bridged.derivative(x) is bridged
    np.testing.assert_allclose(bridged.adjoint.adjoint(x).asarray(), expected, rtol=1e-12)


def test_odl_sees_the_derivative_of_a_nonlinear_operator():
    operator = Waves(F64)
    bridged = to_odl(operator)
    assert not bridged.is_linear
    x, v = point(operator, 1), point(operator, 2)
    derivative = bridged.derivative(bridged.domain.element(x.numpy()))
    found = derivative(bridged.domain.element(v.numpy())).asarray()
    np.testing.assert_allclose(found, operator.jvp(x, v).numpy())
    with pytest.raises(NotImplementedError, match="derivative"):
        bridged.adjoint  # noqa: B018


def test_odl_solves_with_the_bridged_operator():
    operator = ray("fan")
    bridged = to_odl(operator)
    truth = bridged.domain.element(np.random.default_rng(3).random(operator.domain_shape))
    solution = bridged.domain.zero()
    odl.solvers.conjugate_gradient_normal(bridged, solution, bridged(truth), niter=40)
    residual = (bridged(solution) - bridged(truth)).norm() / bridged(truth).norm()
    assert residual < 1e-3


def test_odl_spaces_with_uneven_weights_are_refused():
    uneven = odl.rn(12, weighting=np.arange(1.0, 13.0))
    with pytest.raises(BackendUnavailableError, match="one weight"):
        from_odl(odl.MatrixOperator(SQUARE, domain=uneven, range=uneven))
    even = odl.rn(12, weighting=2.0)
    assert adjoint_mismatch(from_odl(odl.MatrixOperator(SQUARE, domain=even, range=even))) < 1e-5


# --- the checks reject wrong operators ----------------------------------------------------------


class Mutant(LinearOperator):
    """One operator forward, another's adjoint backward."""

    def __init__(self, forward, backward):
        self.forward, self.backward = forward, backward
        self.domain_shape, self.range_shape = forward.domain_shape, forward.range_shape

    def _apply(self, x):
        return apply_linear(x, self.forward, self.backward.adjoint)

    def _apply_adjoint(self, y):
        return apply_linear(y, self.backward.adjoint, self.forward)


def shifted_by_half_a_pixel(dtype):
    geometry, grid = GEOMETRIES["parallel"]
    shifted = replace(geometry, column_offset=geometry.column_offset + grid.pixel_size / 2)
    return RayTransform(shifted, grid, dtype=dtype)


def mutants(dtype):
    right, dense = ray("parallel", dtype=dtype), matrix(DENSE, dtype)
    weights = np.linspace(1, 1.5, 6)[:, None]
    return {
        "half-pixel shifted adjoint": Mutant(right, shifted_by_half_a_pixel(dtype)),
        "weight missing in the adjoint": Mutant(matrix(weights * DENSE, dtype), dense),
        "adjoint of the other operator": Mutant(dense, matrix(OTHER, dtype)),
        "sign": Mutant(dense, -dense),
        "one per cent": Mutant(dense, 1.01 * dense),
    }


@pytest.mark.parametrize("dtype", [F32, F64], ids=label)
@pytest.mark.parametrize("name", list(mutants(F64)))
def test_wrong_adjoints_are_rejected(name, dtype):
    mutant = mutants(dtype)[name]
    assert adjoint_mismatch(mutant) > 10 * ADJOINT_LIMIT[dtype]
    assert derivative_mismatch(mutant) > 10 * ADJOINT_LIMIT[dtype]


@pytest.mark.parametrize("name", list(mutants(F64)))
def test_wrong_adjoints_fail_gradcheck(name):
    mutant = mutants(F64)[name]
    with pytest.raises(torch.autograd.gradcheck.__globals__["GradcheckError"]):
        torch.autograd.gradcheck(mutant, point(mutant).requires_grad_(), fast_mode=True)


class WrongForwardDerivative(Waves):
    """A tangent that is a little too long."""

    def jvp(self, x, v):
        return 1.1 * super().jvp(x, v)


class ForgottenFactor(Waves):
    """The derivative of one factor of the product is forgotten, forward and backward alike."""

    def jvp(self, x, v):
        return torch.func.jvp(self._partial(x), (x,), (v,))[1]

    def vjp(self, x, w):
        return torch.func.vjp(self._partial(x), x)[1](w)[0]

    def _partial(self, x):
        fixed = (x.flatten(-3) @ self.weights.T).flip(-1)

        def half(z):
            return (torch.sin(z.flatten(-3) @ self.weights.T) * fixed).unflatten(-1, (2, 3))

        return half


@pytest.mark.parametrize("cls", [WrongForwardDerivative, ForgottenFactor])
@pytest.mark.parametrize("dtype", [F32, F64], ids=label)
def test_wrong_derivatives_are_rejected(cls, dtype):
    assert taylor_slope(Waves(dtype)) > 1.9
    assert taylor_slope(cls(dtype)) < 1.5


def test_forward_and_backward_derivatives_that_differ_are_rejected():
    assert derivative_mismatch(WrongForwardDerivative(F64)) > 1e-3


class ClaimsLinearity(LinearOperator):
    """Absolute values, or a constant added: not linear."""

    def __init__(self, kind):
        self.domain_shape = self.range_shape = (4, 5)
        self.kind = kind

    def _apply(self, x):
        return x.abs() if self.kind == "absolute value" else x + 0.1

    def _apply_adjoint(self, y):
        return y


@pytest.mark.parametrize("kind", ["absolute value", "affine"])
def test_claimed_linearity_is_rejected(kind):
    assert linearity_mismatch(ClaimsLinearity(kind)) > 1e-3


class BatchSumming(Operator):
    """Mixes the items of a batch."""

    domain_shape = range_shape = (3,)

    def _apply(self, x):
        return x - x.mean(0) if x.ndim > 1 else x


def test_mixing_of_batch_items_is_seen_by_the_loop():
    operator = BatchSumming()
    x = point(operator, 1, (4,))
    assert not torch.allclose(operator(x), torch.stack([operator(item) for item in x]))


class Unmatched(Mutant):
    """Says honestly that its adjoint is not exact."""

    matched = False


def test_unmatched_adjoints_are_not_hidden_by_combination():
    right = matrix(SQUARE, F64, range_=(1, 3, 4))
    wrong = Unmatched(right, right)
    a, waves = matrix(DENSE, F64), Waves(F64)
    for combined in (
        a @ wrong,
        wrong @ right,
        wrong + right,
        right - wrong,
        2 * wrong,
        -wrong,
        wrong.T,
        stack([right, wrong]),
        (a @ wrong).T,
        (waves @ wrong).linearize(point(wrong))[1],
        (a + waves @ (2 * wrong)).linearize(point(wrong))[1],
        wrong.linearize(point(wrong, batch=(2,)))[1],
    ):
        assert not combined.matched, combined
    assert (waves @ right).linearize(point(right))[1].matched


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 10), (1, 8, 11), (2, 8, 10), (80,), (5, 9)], ids=str)
def test_wrong_shapes_are_named(shape):
    operator = ray("parallel")
    with pytest.raises(ShapeError) as error:
        operator(torch.zeros(shape, dtype=F64))
    text = str(error.value)
    assert "1 8 10" in text
    assert str(shape) in text
    assert "RayTransform" in text
    assert ("Add the channel axis: input[None]" in text) == (shape == (8, 10))


def test_wrong_shapes_of_derivatives_and_adjoints_are_named():
    operator, waves = ray("parallel"), Waves(F64)
    good = point(operator)
    with pytest.raises(ShapeError, match="input of the adjoint"):
        operator.adjoint(good)
    with pytest.raises(ShapeError, match="direction"):
        waves.jvp(point(waves), torch.zeros(3, dtype=F64))
    with pytest.raises(ShapeError, match="cotangent"):
        waves.vjp(point(waves), torch.zeros(3, dtype=F64))
    with pytest.raises(ShapeError):
        operator.jvp(torch.zeros(3, dtype=F64), good)


class Total(Operator):
    """A number from an image."""

    domain_shape, range_shape = (1, 2, 3), ()

    def _apply(self, x):
        return x.square().sum((-3, -2, -1))


def test_operators_may_map_to_single_numbers():
    operator = Total()
    x = point(operator)
    torch.testing.assert_close(operator.vjp(x, torch.tensor(2.0, dtype=F64)), 4 * x)
    assert operator(point(operator, batch=(3,))).shape == (3,)
    assert derivative_mismatch(operator) < 1e-12
    with pytest.raises(ShapeError):
        Gradient((1, 2, 3))(torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.complex128])
def test_wrong_dtypes_are_named(dtype):
    with pytest.raises(DtypeError, match=r"stored in torch.float64.*operator.to\(dtype") as error:
        ray("parallel")(torch.zeros(IMAGE.image_shape, dtype=dtype))
    assert isinstance(error.value, TypeError)
    assert str(dtype) in str(error.value)


@pytest.mark.parametrize("given", [np.zeros((1, 8, 10)), [[1.0]], None, 3.0], ids=type)
def test_anything_but_a_tensor_is_refused(given):
    for call in (ray("parallel"), ray("parallel").adjoint, Gradient((1, 8, 10))):
        with pytest.raises(DtypeError, match=r"needs a torch tensor.*torch.as_tensor"):
            call(given)


def test_other_floating_point_types_cannot_be_stored():
    geometry, grid = GEOMETRIES["parallel"]
    for dtype in (torch.float16, torch.bfloat16, torch.int32):
        with pytest.raises(DtypeError, match="float32 or float64"):
            RayTransform(geometry, grid, dtype=dtype)
        with pytest.raises(DtypeError, match="float32 or float64"):
            ray("parallel").to(dtype=dtype)
    with pytest.raises(DtypeError, match="float32"):
        AstraRayTransform(geometry, grid).to(dtype=F64)


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "cuda:99", "mps"])
def test_impossible_devices_are_named(device):
    geometry, grid = GEOMETRIES["parallel"]
    for call in (
        lambda: RayTransform(geometry, grid, device=device),
        lambda: ray_transform(geometry, grid, device=device),
        lambda: ray_transform(geometry, grid, backend="astra", device=device),
        lambda: ray_transform(geometry, grid, backend="traced", device=device),
        lambda: ray("parallel").to(device),
        lambda: (ray("parallel") @ ray("parallel").T).to(device=device),
        lambda: build("jacobian", F64).to(device),
    ):
        with pytest.raises((ConfigurationError, DeviceUnavailableError), match=device):
            call()


def test_meta_tensors_are_on_another_device():
    with pytest.raises(DtypeError, match=r"on device cpu.*meta.*operator.to\(device"):
        ray("parallel")(torch.zeros(IMAGE.image_shape, dtype=F64, device="meta"))


@pytest.mark.parametrize(
    ("combine", "what"),
    [
        (lambda a, b: a @ b, "compose"),
        (lambda a, b: a + b.T, "add"),
        (lambda a, b: a - b.T, "add"),
        (lambda a, b: stack([a, b.T]), "stack"),
        (lambda a, b: stack([a, Gradient(a.domain_shape)]), "stack"),
    ],
)
def test_operators_that_do_not_fit_are_not_combined(combine, what):
    a, b = matrix(DENSE, F64), matrix(OTHER, F64)
    with pytest.raises(ShapeError, match=what) as error:
        combine(a, b)
    assert "(1, 3, 4)" in str(error.value)


def test_operators_of_different_types_are_not_combined():
    a, b = matrix(DENSE, F64), matrix(OTHER, F32)
    for combine in (lambda: a + b, lambda: a @ b.T, lambda: stack([a, b]), lambda: a.T @ b):
        with pytest.raises(DtypeError, match=r"share one dtype.*operator.to\(dtype"):
            combine()
    gradient_follows = Gradient((1, 3, 4)) @ a.T
    assert gradient_follows.dtype == F64


def test_combination_with_other_things_is_a_type_error():
    a = matrix(DENSE, F64)
    for combine in (
        lambda: a @ np.eye(12),
        lambda: a + 1,
        lambda: a - 1,
        lambda: "2" * a,
        lambda: a @ torch.eye(3),
        lambda: np.eye(12) @ a,
        lambda: np.ones(3) * a,
        lambda: a * 2j,
    ):
        with pytest.raises(TypeError):
            combine()
    with pytest.raises(ShapeError, match="at least one"):
        stack([])


@pytest.mark.parametrize("factor", [2, 2.0, np.float32(2), np.float64(2), np.int64(2)], ids=type)
def test_any_real_number_is_a_factor(factor):
    a = matrix(DENSE, F64)
    torch.testing.assert_close((factor * a).to_matrix(), 2 * a.to_matrix())


def test_constructors_refuse_what_does_not_fit():
    with pytest.raises(ShapeError, match=r"has shape \(6, 12\); got \(12, 6\)"):
        matrix(DENSE.T, F64)
    with pytest.raises(ShapeError, match=r"\(6, 12\)"):
        from_scipy(aslinearoperator(DENSE.T), (1, 3, 4), (2, 3))
    for shape in ((4, 5), (2, 4, 5), (1, 1, 2, 3, 4)):
        with pytest.raises(ShapeError, match="Gradient needs"):
            Gradient(shape)
    with pytest.raises(ShapeError, match="ODL space"):
        to_odl(matrix(DENSE, F64), odl.rn((4, 3)))
    with pytest.raises(ConfigurationError, match="backend must be"):
        ray_transform(*GEOMETRIES["fan"], backend="cuda")
    with pytest.raises(ConfigurationError, match="projector"):
        RayTransform(*GEOMETRIES["fan"], projector="line")


def test_astra_says_what_it_cannot_do():
    with pytest.raises(ConfigurationError, match="joseph"):
        AstraRayTransform(*GEOMETRIES["fan"], projector="joseph")
    for name in ("matrix", "cone slice"):
        with pytest.raises(BackendUnavailableError, match="backend='matrix'"):
            AstraRayTransform(*GEOMETRIES[name])
    with pytest.raises(BackendUnavailableError, match="backend='matrix'"):
        AstraRayTransform(*GEOMETRIES["cone"])
    with pytest.raises(GeometryError, match="2-D grid"):
        AstraRayTransform(GEOMETRIES["fan"][0], catalogue.VOLUME)
    with pytest.raises(GeometryError, match="inside the image grid"):
        AstraRayTransform(GEOMETRIES["fan"][0], Grid((80, 80)))


def test_dense_matrices_too_large_are_refused():
    with pytest.raises(InsufficientMemoryError, match=r"2\^28"):
        Gradient((1, 300, 300)).to_matrix()


def test_jacobian_follows_a_change_of_dtype():
    jacobian = build("jacobian", F64).to(dtype=F32)
    assert isinstance(jacobian, Jacobian)
    assert jacobian.value.dtype == F32
