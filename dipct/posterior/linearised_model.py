"""The linear model of the data around a trained network: what the posterior is made of."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, DtypeError, ShapeError
from dipct.generator import Generator, Kind, NetworkGenerator, Parameter
from dipct.operator.base import LinearOperator, Operator, apply_linear
from dipct.shapes import check_shape


@dataclass
class NetworkPasses:
    """How often the network was gone through, in vectors.

    Attributes:
        forward: directional derivatives, J v.
        backward: transposed ones, J^T w.
    """

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Both together."""
        return self.forward + self.backward


class WeightJacobian(LinearOperator):
    """Derivative of a generator's image with respect to some of its parameters, at a point.

    Exact, by forward and reverse mode; the values on the way through the network are kept, so
    that a transposed product costs one pass back. On CUDA devices convolutions are computed in
    full float32: in TF32 the two modes do not belong to one Jacobian any more.

    Args:
        generator: makes the image.
        theta_hat: where, [P].
        chosen: indices of the parameters that vary, [W].
        passes: counts the products; default: a counter of its own.

    Attributes:
        value: the image at theta_hat, [*generator.range_shape].
        passes: as given.
    """

    def __init__(
        self,
        generator: Generator,
        theta_hat: Tensor,
        chosen: Tensor,
        *,
        passes: NetworkPasses | None = None,
    ) -> None:
        if isinstance(generator, NetworkGenerator):
            # Directional derivatives in bfloat16 are off by several per cent.
            generator = generator.with_precision("float32")
        self.generator, self.theta_hat, self.chosen = generator, theta_hat.detach(), chosen
        self.domain_shape, self.range_shape = (len(chosen),), generator.range_shape
        self.passes = passes or NetworkPasses()
        self._transposed: Callable[[Tensor], tuple[Tensor]] | None = None
        with full_precision():
            self.value = generator(self.theta_hat)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "WeightJacobian":
        """See :meth:`dipct.operator.Operator.to`; its passes are counted anew."""
        return WeightJacobian(
            self.generator.to(device, dtype),
            self.theta_hat.to(device=device, dtype=dtype),
            self.chosen.to(device=device),
        )

    @property
    def weights(self) -> Tensor:
        """The parameters that vary, at the point, [W]."""
        return self.theta_hat[self.chosen]

    def _image(self, weights: Tensor) -> Tensor:
        return self.generator(self.theta_hat.index_copy(0, self.chosen, weights))

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._push, self._pull)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._pull, self._push)

    def _push(self, x: Tensor) -> Tensor:
        # One after the other: batches of whole networks are not faster, and need more memory.
        vectors, weights = x.reshape(-1, *self.domain_shape), self.weights
        self.passes.forward += len(vectors)
        images = vectors.new_empty(len(vectors), *self.range_shape)
        with full_precision():
            for i, vector in enumerate(vectors):
                images[i] = torch.func.jvp(self._image, (weights,), (vector,))[1]
        return images.reshape(*x.shape[: x.ndim - 1], *self.range_shape)

    def _pull(self, y: Tensor) -> Tensor:
        images = y.reshape(-1, *self.range_shape)
        self.passes.backward += len(images)
        vectors = images.new_empty(len(images), *self.domain_shape)
        with full_precision():
            if self._transposed is None:
                self._transposed = torch.func.vjp(self._image, self.weights)[1]
            for i, image in enumerate(images):
                vectors[i] = self._transposed(image)[0]
        return vectors.reshape(*y.shape[: y.ndim - len(self.range_shape)], *self.domain_shape)


class LinearisedModel:
    """Data as a linear function of the weights, around a trained generator.

    ``h(w) = A f(theta_hat) + A J (w - w_hat)`` with w the convolution weights that the image
    depends on (Antoran et al., arXiv 2203.00479, eq. 8); A may be nonlinear, and is then
    linearised at the image as well.

    Args:
        operator: the forward operator A.
        generator: makes the image.
        theta_hat: its trained parameters, [P].
        data: what was measured, [*operator.range_shape].
        noise_variance: of each datum, up to one common factor that the evidence may choose: one
            number, or one per datum in the shape of the data.
        passes: counts the passes through the network.

    Attributes:
        parameters: the convolution weights, in the order of w.
        jacobian: J, from weights to images.
        operator: A, or its derivative at the image.
        noise_variance: [m].
        residual: ``y - A (f(theta_hat) - J w_hat)``, the data that the linear model explains by
            weights of mean zero, [m].
        misfit: ``y - A f(theta_hat)``, [m].
        image_at_zero: ``f(theta_hat) - J w_hat``, the linear model's image without weights,
            [*generator.range_shape].

    Raises:
        ConfigurationError: the generator has no convolutions, or the operator's adjoint is not
            its transpose.
        ShapeError: shapes that do not fit.
        DtypeError: parameters in less than single precision.
    """

    def __init__(
        self,
        operator: Operator,
        generator: Generator,
        theta_hat: Tensor,
        data: Tensor,
        noise_variance: Tensor | float,
        *,
        passes: NetworkPasses | None = None,
    ) -> None:
        check_shape(theta_hat, "P", name="theta_hat", P=generator.n_parameters)
        if theta_hat.dtype not in (torch.float32, torch.float64):
            raise DtypeError(f"theta_hat must be float32 or float64; got {theta_hat.dtype}.")
        if tuple(data.shape) != operator.range_shape:
            raise ShapeError(
                f"The data must have the shape {operator.range_shape} of what the operator makes; "
                f"got {tuple(data.shape)}."
            )
        layout = generator.layout
        is_weight = layout.mask(kinds={Kind.CONVOLUTION}, used=True)
        if not is_weight.any():
            raise ConfigurationError(
                f"{generator!r} has no convolution weights, which the prior is for."
            )
        self.parameters: tuple[Parameter, ...] = tuple(
            p for p in layout.parameters if p.kind is Kind.CONVOLUTION and p.used
        )
        chosen = is_weight.nonzero()[:, 0].to(theta_hat.device)
        self.jacobian = WeightJacobian(generator, theta_hat, chosen, passes=passes)
        self.data = data
        value, self.operator = operator.linearize(self.jacobian.value)
        if not self.operator.matched:
            raise ConfigurationError(
                f"The adjoint of {operator!r} is not its transpose: a covariance made with it "
                "would not be one. Use the backend matrix or traced."
            )
        variance = torch.as_tensor(noise_variance, dtype=data.dtype, device=data.device)
        self.noise_variance = variance.broadcast_to(data.shape).flatten()
        if not bool((torch.isfinite(self.noise_variance) & (self.noise_variance > 0)).all()):
            raise ConfigurationError("The noise variance must be positive and finite everywhere.")
        self.misfit = (data - value).flatten()
        of_weights = self.jacobian(self.jacobian.weights)
        self.image_at_zero = self.image - of_weights
        self.residual = self.misfit + self.operator(of_weights).flatten()

    @property
    def image(self) -> Tensor:
        """The generator's image, [*generator.range_shape]."""
        return self.jacobian.value

    @property
    def n_data(self) -> int:
        """Number of data m."""
        return self.residual.numel()

    @property
    def n_weights(self) -> int:
        """Number of weights W."""
        return int(self.jacobian.domain_shape[0])

    def to_data(self, block: Tensor) -> Tensor:
        """``A J`` times weights.

        Args:
            block: [k W].

        Returns:
            [k m].
        """
        return self.operator(self.jacobian(block)).flatten(1)

    def to_weights(self, block: Tensor) -> Tensor:
        """``J^T A^T`` times data.

        Args:
            block: [k m].

        Returns:
            [k W].
        """
        return self.jacobian.adjoint(self.operator.adjoint(self.shaped_data(block)))

    def shaped_data(self, block: Tensor) -> Tensor:
        """Data as vectors [k m] in the shape of the operator's range, [k *range_shape]."""
        return block.reshape(-1, *self.operator.range_shape)


def full_precision() -> AbstractContextManager[None]:
    """Float32 convolutions on CUDA devices as float32, not TF32, within a block."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )
