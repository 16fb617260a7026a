"""The Gaussian process of pixels."""

import numpy as np
import pytest
import torch

from dipct import Grid, ParallelGeometry, ray_transform
from dipct.errors import ShapeError
from dipct.operator import Identity
from dipct.posterior import PixelProcess

F64 = torch.float64


@pytest.fixture(scope="module")
def operator():
    angles = np.arange(6) * np.pi / 6
    return ray_transform(ParallelGeometry(angles, 13), Grid((9, 9))).to(dtype=F64)


def drawn(operator, variance=0.5, length=2.0, noise=0.1, seed=0):
    """An image of the process, and its noisy data."""
    random = torch.Generator().manual_seed(seed)
    at = torch.cartesian_prod(torch.arange(9), torch.arange(9)).double()
    covariance = variance * torch.exp(-torch.cdist(at, at) / length)
    factor = torch.linalg.cholesky(covariance)
    image = (factor @ torch.randn(81, generator=random, dtype=F64)).reshape(1, 9, 9)
    clean = operator(image)
    return image, clean + noise * torch.randn(clean.shape, generator=random, dtype=F64)


def test_evidence_and_posterior_are_those_of_dense_gaussians(operator):
    _, data = drawn(operator)
    process = PixelProcess(operator, data, 0.01)
    assert process.tuning.converged
    variance, length, factor = process.tuning.phi.exp().tolist()
    at = torch.cartesian_prod(torch.arange(9), torch.arange(9)).double()
    prior = variance * torch.exp(-torch.cdist(at, at) / length)
    matrix = operator.to_matrix()
    of_data = matrix @ prior @ matrix.T + 0.01 * factor * torch.eye(len(matrix), dtype=F64)
    density = torch.distributions.MultivariateNormal(torch.zeros(len(matrix), dtype=F64), of_data)
    exact = float(density.log_prob(data.flatten()))
    assert process.tuning.log_evidence == pytest.approx(exact, rel=1e-8)
    gain = torch.linalg.solve(of_data, matrix @ prior).T
    assert torch.allclose(process.mean.flatten(), gain @ data.flatten(), atol=1e-8)
    assert torch.allclose(process.covariance, prior - gain @ matrix @ prior, atol=1e-8)
    draws = process.sample(4000, seed=0) - process.mean
    assert draws.std(0).square().mean() == pytest.approx(float(process.variance().mean()), rel=0.05)


def test_tuning_finds_the_process_that_made_the_data(operator):
    found = torch.stack(
        [PixelProcess(operator, drawn(operator, seed=s)[1], 0.01).tuning.phi for s in range(8)]
    )
    exact = torch.tensor([np.log(0.5), np.log(2.0), 0.0])
    error = found.std(0) / 8**0.5
    assert ((found.mean(0) - exact).abs() < 4 * error + 0.2).all()


def test_truths_are_as_far_as_they_should_be(operator):
    standardised = []
    for seed in range(20):
        image, data = drawn(operator, seed=seed)
        process = PixelProcess(operator, data, 0.01)
        standardised.append(((image - process.mean) / process.variance().sqrt()).flatten())
    assert float(torch.cat(standardised).square().mean()) == pytest.approx(1.0, abs=0.25)


def test_wrong_shapes_are_refused(operator):
    with pytest.raises(ShapeError, match="data of the shape"):
        PixelProcess(operator, torch.zeros(3, dtype=F64), 0.1)
    volume = Identity((1, 2, 3, 4))
    with pytest.raises(ShapeError, match="images"):
        PixelProcess(volume, torch.zeros(1, 2, 3, 4, dtype=F64), 0.1)
