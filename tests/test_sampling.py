"""Denoising, inpainting and super-resolution: what their operators measure, and solving them."""

import catalogue
import numpy as np
import pytest
import torch
from catalogue import one_thread  # noqa: F401

from dipct.errors import ConfigurationError, DtypeError, ShapeError
from dipct.evaluation import psnr
from dipct.measurement import Grid
from dipct.objective import GaussianFidelity
from dipct.operator import Identity, Mask, PixelAverage
from dipct.operator.checks import adjoint_mismatch
from dipct.phantom import make_phantom
from dipct.solver import PrimalDualTV, Status, deep_image_prior, iterate

SHAPE = (1, 4, 6)
IMAGE = torch.arange(24.0, dtype=torch.float64).reshape(SHAPE)
PROBLEMS = {
    "identity": lambda shape, known: Identity(shape),
    "mask": lambda shape, known: Mask(known),
    "average": lambda shape, known: PixelAverage(shape, 2),
}


def problem(name, shape, std, seed=0):
    """An operator, an image and its noisy data."""
    rng = np.random.default_rng(seed)
    operator = PROBLEMS[name](shape, rng.uniform(size=shape) < 0.5)
    truth = make_phantom("ellipses", Grid(shape[1:], 1.0), peak=1.0)[None]
    clean = operator(torch.from_numpy(truth))
    noise = torch.from_numpy(rng.standard_normal(tuple(clean.shape), dtype=np.float32))
    return operator, truth, clean + std * noise


# --- what they measure --------------------------------------------------------------------------


def test_the_identity_measures_the_image():
    operator = Identity(SHAPE)
    assert operator.domain_shape == operator.range_shape == SHAPE
    assert torch.equal(operator(IMAGE), IMAGE) and torch.equal(operator.adjoint(IMAGE), IMAGE)


def test_the_data_of_the_identity_do_not_share_memory_with_the_image():
    operator = Identity(SHAPE)
    for made in (operator(IMAGE), operator.adjoint(IMAGE)):
        made.zero_()
    assert IMAGE.sum() == 276


def test_the_mask_measures_known_pixels_in_row_major_order():
    known = torch.zeros(SHAPE, dtype=torch.bool)
    known[0, 0, 5] = known[0, 2, 1] = known[0, 1, 0] = True
    operator = Mask(known)
    assert operator.range_shape == (3,)
    assert operator(IMAGE).tolist() == [5, 6, 13]
    filled = operator.adjoint(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert filled[0, 0, 5] == 1 and filled[0, 1, 0] == 2 and filled[0, 2, 1] == 3
    assert filled.count_nonzero() == 3
    assert torch.equal(operator(IMAGE), IMAGE[known])


def test_an_array_and_a_tensor_give_the_same_mask():
    known = np.random.default_rng(0).uniform(size=SHAPE) < 0.5
    assert torch.equal(Mask(known)(IMAGE), Mask(torch.from_numpy(known))(IMAGE))


def test_a_changed_array_does_not_change_the_mask():
    known = np.ones(SHAPE, dtype=bool)
    operator = Mask(known)
    known[:] = False
    assert torch.equal(operator(IMAGE), IMAGE.flatten())


def test_the_average_is_that_of_the_pixels_in_a_square():
    operator = PixelAverage(SHAPE, 2)
    assert operator.range_shape == (1, 2, 3)
    expected = IMAGE.numpy().reshape(1, 2, 2, 3, 2).mean((2, 4))
    np.testing.assert_allclose(operator(IMAGE), expected)
    spread = operator.adjoint(torch.ones((1, 2, 3), dtype=torch.float64))
    assert torch.equal(spread, torch.full(SHAPE, 0.25, dtype=torch.float64))


@pytest.mark.parametrize(("shape", "factor"), [((1, 6, 6), 3), ((1, 4, 6, 8), 2)])
def test_averaging_keeps_constants_and_means(shape, factor):
    operator = PixelAverage(shape, factor)
    image = torch.from_numpy(np.random.default_rng(0).uniform(size=shape))
    torch.testing.assert_close(operator(image).mean(), image.mean())
    constant = torch.full(shape, 0.7, dtype=torch.float64)
    torch.testing.assert_close(
        operator(constant), torch.full(operator.range_shape, 0.7, dtype=torch.float64)
    )
    ndim = len(shape) - 1
    assert operator.norm() == pytest.approx(factor ** (-ndim / 2), rel=1e-5)


def test_a_wrong_adjoint_of_the_average_is_rejected():
    class Unweighted(PixelAverage):
        def _apply_adjoint(self, y):
            return self.factor**2 * super()._apply_adjoint(y)

    assert adjoint_mismatch(PixelAverage(SHAPE, 2)) < 1e-6
    assert adjoint_mismatch(Unweighted(SHAPE, 2)) > 1e-2


def test_a_wrong_dense_twin_of_the_average_is_rejected():
    # One row of pixels further: a mistake by one would be seen.
    shifted = np.roll(catalogue.averaging_matrix((4, 6), 2), 6, axis=1)
    found = PixelAverage(SHAPE, 2).to_matrix().numpy()
    np.testing.assert_allclose(found, catalogue.averaging_matrix((4, 6), 2))
    assert not np.allclose(found, shifted)


def test_all_follow_the_type_of_their_input_and_move():
    known = np.random.default_rng(0).uniform(size=SHAPE) < 0.5
    for operator in (Identity(SHAPE), Mask(known), PixelAverage(SHAPE, 2)):
        assert operator.dtype is None
        assert operator(IMAGE.float()).dtype == torch.float32
        assert operator(IMAGE).dtype == torch.float64
        moved = operator.to("cpu", torch.float32)
        assert torch.equal(moved(IMAGE), operator(IMAGE))


# --- the problems -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_data_term_counts_the_measured_values(name):
    operator, truth, data = problem(name, (1, 64, 64), 0.1)
    fidelity = GaussianFidelity(data, 0.1)
    measured = {"identity": 64 * 64, "mask": operator.range_shape[0], "average": 32 * 32}[name]
    assert fidelity.size == measured
    discrepancy = float(fidelity.discrepancy(operator(torch.from_numpy(truth))))
    # Standard deviation of chi^2 / m: sqrt(2 / m).
    assert discrepancy == pytest.approx(1, abs=5 * np.sqrt(2 / measured))


@pytest.mark.parametrize("name", PROBLEMS)
def test_total_variation_solves_them(name):
    operator, truth, data = problem(name, (1, 32, 32), 0.05)
    method = PrimalDualTV(operator, GaussianFidelity(data, 0.05), 3.0, tolerance=1e-3)
    solution = iterate(method, max_iterations=1000)
    assert solution.status is Status.CONVERGED
    # Adjoint times factor^2 repeats each mean over its square.
    scale = 4 if name == "average" else 1
    degraded = scale * operator.adjoint(data)
    result, before = (psnr(x[0].numpy(), truth[0]) for x in (solution.value, degraded))
    assert result > before + 0.7


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_deep_image_prior_fits_them(name):
    operator, _, data = problem(name, (1, 28, 28), 0.1)
    fidelity = GaussianFidelity(data, 0.1)
    solution = deep_image_prior(
        operator, fidelity, network="small", iterations=200, warm_up=10, learning_rate=1e-2
    )
    history = solution.history["discrepancy"]
    assert solution.value.shape == (1, 28, 28)
    assert float(fidelity.discrepancy(operator(solution.value))) < 0.5 * float(history[0])


def test_a_batch_of_noisy_images_is_denoised_one_by_one():
    operator, _, data = problem("identity", (1, 28, 28), 0.1)
    batch = torch.stack([data, data.flip(-1)])
    settings = {"network": "small", "iterations": 5, "precision": "float32"}
    fidelity = GaussianFidelity(batch, 0.1, range_shape=operator.range_shape)
    both = deep_image_prior(operator, fidelity, seed=3, **settings).value
    for k in range(2):
        alone = deep_image_prior(operator, GaussianFidelity(batch[k], 0.1), seed=3 + k, **settings)
        torch.testing.assert_close(both[k], alone.value)


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (1, 1, 1, 4, 6), (6,), (1, 0, 6)], ids=str)
def test_shapes_that_are_no_images_are_named(shape):
    known = np.ones(shape, dtype=bool)
    for make in (lambda: Identity(shape), lambda: Mask(known), lambda: PixelAverage(shape, 2)):
        with pytest.raises(ShapeError, match=r"needs an image shape \(1, H, W\)") as error:
            make()
        assert str(shape) in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
def test_masks_of_numbers_are_refused(dtype):
    with pytest.raises(DtypeError, match="mask > 0"):
        Mask(np.ones(SHAPE, dtype=dtype))


def test_a_mask_without_known_pixels_is_refused():
    with pytest.raises(ConfigurationError, match="~mask"):
        Mask(np.zeros(SHAPE, dtype=bool))


@pytest.mark.parametrize(("shape", "factor"), [((1, 4, 6), 4), ((1, 5, 6), 2), ((1, 3, 4, 4), 2)])
def test_sizes_that_do_not_divide_are_named(shape, factor):
    with pytest.raises(ShapeError, match=f"not multiples of {factor}"):
        PixelAverage(shape, factor)


@pytest.mark.parametrize("factor", [0, -2, 2.0, 1.5, "2", True, None])
def test_impossible_factors_are_named(factor):
    with pytest.raises(ConfigurationError, match="whole number"):
        PixelAverage(SHAPE, factor)


def test_inputs_that_do_not_fit_are_named():
    known = np.zeros(SHAPE, dtype=bool)
    known[0, :2] = True
    with pytest.raises(ShapeError, match="input of the adjoint"):
        Mask(known).adjoint(IMAGE)
    with pytest.raises(ShapeError, match="Add the channel axis"):
        PixelAverage(SHAPE, 2)(IMAGE[0])
