"""What is known of the image after the scan: mean, variance, samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.posterior.evidence import factorise
from dipct.posterior.linearised_model import LinearisedModel, full_precision
from dipct.posterior.weight_prior import WeightPrior

Mean = Literal["reconstruction", "linear"]


class DataJacobian(Protocol):
    """Products of ``A J``: those of the model itself, or of a stored matrix."""

    def to_data(self, block: Tensor) -> Tensor:
        """[k W] to [k m]."""
        ...

    def to_weights(self, block: Tensor) -> Tensor:
        """[k m] to [k W]."""
        ...


class Posterior(ABC):
    """Gaussian posterior of the image in the linearised model.

    Attributes:
        mean: the image it is centred on, [1 H W]: the reconstruction, as in Antoran et al. (arXiv
            2203.00479), or the linear model's own mean, which belongs to the covariance.
    """

    mean: Tensor

    @abstractmethod
    def sample(self, number: int, *, seed: int) -> Tensor:
        """Draw images.

        Args:
            number: of images.
            seed: of the draws.

        Returns:
            [number 1 H W].
        """

    @abstractmethod
    def patch_covariance(self, rows: slice, columns: slice) -> Tensor:
        """Covariance of the pixels of a rectangle, such as a region that is to be judged.

        Args:
            rows: of the image.
            columns: likewise.

        Returns:
            Float64 [k k], pixels row after row.

        Raises:
            ConfigurationError: no pixel is in it.
        """

    def _pixels(self, rows: slice, columns: slice) -> Tensor:
        """Numbers of the pixels of a rectangle, [k]."""
        numbers = torch.arange(self.mean.numel(), device=self.mean.device).reshape(self.mean.shape)
        found = numbers[0, rows, columns].flatten()
        if len(found) == 0:
            raise ConfigurationError(
                f"Rows {rows} and columns {columns} hold no pixel of an image of "
                f"{self.mean.shape[-2]} x {self.mean.shape[-1]}."
            )
        return found


class GaussianImage(Posterior):
    """A posterior whose covariance is kept as a matrix.

    Attributes:
        covariance: of the pixels, float64 [n n].
    """

    covariance: Tensor

    def variance(self) -> Tensor:
        """Variance of every pixel, [1 H W]."""
        return self.covariance.diagonal().reshape(self.mean.shape).to(self.mean)

    def patch_covariance(self, rows: slice, columns: slice) -> Tensor:
        """See :meth:`Posterior.patch_covariance`."""
        pixels = self._pixels(rows, columns).to(self.covariance.device)
        return self.covariance[pixels[:, None], pixels]

    def sample(self, number: int, *, seed: int) -> Tensor:
        """See :meth:`Posterior.sample`."""
        random = torch.Generator(self.covariance.device).manual_seed(seed)
        # The covariance may be singular, as where a network makes fewer images than pixels.
        values, vectors = torch.linalg.eigh(self.covariance)
        white = torch.randn(
            number, len(values), generator=random, dtype=values.dtype, device=values.device
        )
        draws = (white * values.clamp(min=0).sqrt()) @ vectors.mT
        return self.mean + draws.reshape(number, *self.mean.shape).to(self.mean)


class DensePosterior(GaussianImage):
    """Posterior by dense linear algebra on pixels: exact, for small images.

    Args:
        prior: of the weights.
        phi: hyper-parameters with that of the noise, [H].
        gram: ``J S_k J^T`` of the prior's structures, [K n n].
        model: the linear model.
        mean: where it is centred.

    Attributes:
        covariance: of the image, float64 [n n].
        prior_covariance: before the scan, float64 [n n].

    Raises:
        ShapeError: Gram matrices of another prior or image.
        ConvergenceError: the covariance of the data is not positive definite.
    """

    def __init__(
        self,
        prior: WeightPrior,
        phi: Tensor,
        gram: Tensor,
        model: LinearisedModel,
        *,
        mean: Mean = "reconstruction",
    ) -> None:
        n = model.image.numel()
        if gram.shape != (prior.n_components, n, n):
            raise ShapeError(
                f"For {n} pixels and this prior the Gram matrices must have shape "
                f"({prior.n_components}, {n}, {n}); got {tuple(gram.shape)}."
            )
        check_mean(mean)
        coefficients = prior.coefficients(phi[:-1].double()).to(gram)
        self.prior_covariance = torch.einsum("k,kij->ij", coefficients, gram).double()
        matrix = model.operator.to_matrix().double()
        to_data = matrix @ self.prior_covariance
        data = to_data @ matrix.mT
        noise = phi[-1].exp() * model.noise_variance.double()
        found = factorise(data + torch.diag(noise))
        self.covariance = self.prior_covariance - to_data.mT @ found.solve(to_data.mT).mT
        self.mean = model.image
        if mean == "linear":
            gain = found.solve(model.residual.double()[None]) @ to_data
            self.mean = (model.image_at_zero + gain.reshape(model.image.shape)).to(model.image)


class PathwisePosterior(Posterior):
    """Posterior by conditioning draws of the prior on the data: Matheron's rule.

    A draw w of the prior becomes one of the posterior, ``w - Sigma J^T A^T K^-1 (A J w + e)`` with
    e a draw of the noise (Journel & Huijbregts, "Mining geostatistics", 1978; Wilson et al., J.
    Mach. Learn. Res. 22, 2021). No covariance of images is formed.

    Args:
        prior: of the weights.
        phi: hyper-parameters with that of the noise, [H].
        model: the linear model.
        solve: inverse covariance of the data times rows, [k m] to [k m].
        products: of ``A J``; default: by passes through the network.
        mean: where it is centred.
        at_once: draws made together.
    """

    def __init__(
        self,
        prior: WeightPrior,
        phi: Tensor,
        model: LinearisedModel,
        solve: Callable[[Tensor], Tensor],
        *,
        products: DataJacobian | None = None,
        mean: Mean = "reconstruction",
        at_once: int = 64,
    ) -> None:
        check_mean(mean)
        self.prior, self.phi, self.model, self._solve = prior, phi, model, solve
        self._products: DataJacobian = model if products is None else products
        self._at_once = at_once
        self.mean = model.image
        if mean == "linear":
            weights = self._conditioned(model.residual[None])
            self.mean = model.image_at_zero + model.jacobian(weights)[0]

    def _conditioned(self, data: Tensor) -> Tensor:
        """Mean of the weights given data that the linear model explains, [k m] to [k W]."""
        back = self._products.to_weights(self._solve(data))
        return self.prior.apply(self.phi[:-1], back)

    def patch_covariance(self, rows: slice, columns: slice) -> Tensor:
        """See :meth:`Posterior.patch_covariance`; as exact as ``solve``, and without draws.

        One pass back through the network for every pixel, and its row of the Jacobian is kept.
        """
        pixels = self._pixels(rows, columns)
        units = self.mean.new_zeros(len(pixels), self.mean.numel())
        units[torch.arange(len(pixels)), pixels] = 1
        jacobian = self.model.jacobian.adjoint(units.reshape(-1, *self.mean.shape))
        covariant = self.prior.apply(self.phi[:-1], jacobian)
        to_data = self._products.to_data(covariant)
        found = -to_data.double() @ self._solve(to_data).double().mT
        for group in self.prior.groups:
            part = group.weights
            found += jacobian[:, part].double() @ covariant[:, part].double().mT
        return (found + found.mT) / 2

    def sample_weights(self, number: int, *, seed: int) -> Tensor:
        """Draw weights around their posterior mean, as differences from it, [number W]."""
        random = torch.Generator(self.mean.device).manual_seed(seed)
        return torch.cat([self._weights(k, random) for k in self._parts(number)])

    def sample(self, number: int, *, seed: int) -> Tensor:
        """See :meth:`Posterior.sample`."""
        return self._images(number, seed, self.model.jacobian, self.mean)

    def sample_nonlinear(self, number: int, *, seed: int) -> Tensor:
        """Draw images of the network itself with drawn weights, not of its linearisation.

        Args:
            number: of images.
            seed: of the draws.

        Returns:
            [number 1 H W], not centred on the mean.
        """
        jacobian = self.model.jacobian

        def images(weights: Tensor) -> Tensor:
            thetas = jacobian.theta_hat.repeat(len(weights), 1)
            thetas[:, jacobian.chosen] += weights
            with full_precision():
                return jacobian.generator(thetas)

        return self._images(number, seed, images, None)

    def _images(
        self,
        number: int,
        seed: int,
        images: Callable[[Tensor], Tensor],
        mean: Tensor | None,
    ) -> Tensor:
        random = torch.Generator(self.mean.device).manual_seed(seed)
        found = torch.cat([images(self._weights(k, random)) for k in self._parts(number)])
        return found if mean is None else mean + found

    def _parts(self, number: int) -> list[int]:
        return [min(self._at_once, number - i) for i in range(0, number, self._at_once)]

    def _weights(self, number: int, random: torch.Generator) -> Tensor:
        model, dtype = self.model, self.mean.dtype
        weights = self.prior.sample(self.phi[:-1], number, random, dtype=dtype)
        white = torch.randn(
            number, model.n_data, generator=random, dtype=dtype, device=random.device
        )
        noise = white * (self.phi[-1].exp() * model.noise_variance).sqrt().to(white)
        return weights - self._conditioned(self._products.to_data(weights) + noise)


def check_mean(mean: str) -> None:
    """Raise a :class:`ConfigurationError` unless a posterior can be centred so."""
    if mean not in ("reconstruction", "linear"):
        raise ConfigurationError(f"mean must be reconstruction or linear; got {mean!r}.")
