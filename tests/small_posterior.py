"""A linearised model small enough to be compared with dense linear algebra."""

from functools import cached_property

import numpy as np
import torch
from scipy.linalg import block_diag

from dipct import Grid, ParallelGeometry, ray_transform
from dipct.generator import NetworkGenerator, UNet
from dipct.posterior import (
    ExactEvidence,
    LinearisedModel,
    MaternPrior,
    StoredJacobian,
    edge_variances_of_gram,
    gram_matrices,
)

F64 = torch.float64


class SmallProblem:
    """A network trained on nothing, its linear model of a scan, and all of it densely."""

    def __init__(self, n=10, views=4, noise=0.3, seed=0, dtype=F64, **prior):
        random = torch.Generator().manual_seed(seed)
        network = UNet((4, 4), (0, 2), normalisation=False, output="sigmoid")
        z = torch.randn(1, n, n, generator=random, dtype=F64)
        self.generator = NetworkGenerator(network, z.to(dtype), (n, n))
        self.theta_hat = (3 * self.generator.initial(seed).double()).to(dtype)
        angles = np.arange(views) * np.pi / views + 0.1
        geometry = ParallelGeometry(angles, 2 * (n // 2) + 3)
        self.operator = ray_transform(geometry, Grid((n, n))).to(dtype=dtype)
        clean = self.operator(self.generator(self.theta_hat))
        deviation = noise * torch.randn(clean.shape, generator=random, dtype=F64).to(dtype)
        # Not the same for every datum, as for counted photons.
        self.variance = noise**2 * (0.5 + torch.rand(clean.shape, generator=random, dtype=F64))
        self.data = clean + deviation
        self.model = LinearisedModel(
            self.operator, self.generator, self.theta_hat, self.data, self.variance.to(dtype)
        )
        self.prior = MaternPrior(self.model.parameters, **prior)
        self.stored = StoredJacobian.of_data(self.model, self.prior.groups)
        self.evidence = ExactEvidence(
            self.prior,
            gram_matrices(self.stored, self.prior.groups),
            self.model.residual,
            self.model.noise_variance,
        )

    def phi(self, seed=0):
        """Hyper-parameters at which nothing is special."""
        first = self.evidence.initial()
        lengths = torch.tensor([name.endswith("length scale") for name in self.evidence.names])
        random = torch.Generator().manual_seed(100 + seed)
        change = 0.5 * torch.randn(len(first), generator=random, dtype=F64)
        return torch.where(lengths, 0.3, first - 1) + change

    @cached_property
    def image_gram(self):
        """Gram matrices of the Jacobian of the image."""
        stored = StoredJacobian.of_image(self.model, self.prior.groups)
        return gram_matrices(stored, self.prior.groups, dtype=F64)

    @cached_property
    def edges(self):
        return edge_variances_of_gram(self.image_gram, self.model.image, self.prior.groups)

    @cached_property
    def jacobian_matrix(self):
        """J by columns, [n W]."""
        return self.model.jacobian.to_matrix()

    @cached_property
    def operator_matrix(self):
        return self.operator.to_matrix()

    def weight_covariance(self, phi):
        """Sigma from its definition."""
        values = dict(zip(self.evidence.names, phi.exp().tolist(), strict=True))
        blocks = []
        for parameter in self.model.parameters:
            outputs, inputs, rows, columns = parameter.shape
            at = np.array([(i, j) for i in range(rows) for j in range(columns)])
            distance = np.linalg.norm(at[:, None] - at[None], axis=-1)
            correlation = np.eye(len(at))
            if len(at) > 1:
                length = values[f"{parameter.block} length scale"]
                correlation = np.exp(-distance / length) + 1e-6 * np.eye(len(at))
            variance = values[f"{parameter.block} variance"]
            blocks.append(np.kron(np.eye(outputs * inputs), variance * correlation))
        return torch.from_numpy(block_diag(*blocks))

    def data_covariance(self, phi):
        """K by dense products."""
        jacobian = self.operator_matrix @ self.jacobian_matrix
        signal = jacobian @ self.weight_covariance(phi) @ jacobian.T
        return signal + phi[-1].exp() * torch.diag(self.variance.flatten())
