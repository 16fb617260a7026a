"""The generator made of a network and its fixed input: the Deep Image Prior."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, DeviceUnavailableError, DtypeError, ShapeError
from dipct.generator.base import Generator
from dipct.generator.parameters import Kind, Parameter, ParameterLayout

Precision = Literal["float32", "bfloat16"]
Batching = Literal["loop", "vmap"]


class Network(ABC):
    """An architecture: which parameters there are and what is computed with them.

    It holds no parameters itself, so that one network serves any number of parameter vectors,
    inputs, types and devices.

    Attributes:
        parameters: its parameters, in the order of the flat vector.
        in_channels: channels of the input.
        out_channels: channels of the image.
        last_block: name of the block that makes the image.
    """

    parameters: tuple[Parameter, ...]
    in_channels: int
    out_channels: int = 1
    last_block: str

    @abstractmethod
    def __call__(self, parameters: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """Apply the network.

        Args:
            parameters: tensors by name.
            z: inputs, [N C *input].

        Returns:
            [N out_channels H W].
        """

    @abstractmethod
    def input_shape(self, image_shape: tuple[int, int]) -> tuple[int, int, int]:
        """Shape [C *input] of the input that gives an image of a size.

        Raises:
            ShapeError: the network cannot make such an image.
        """

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Initial parameters by name: PyTorch's default for convolutions, from a seed.

        Weights and biases of a convolution are uniform in ``±1 / sqrt(fan in)`` (He et al.,
        ICCV 2015, with the gain PyTorch takes); normalisations begin as the identity.
        """
        generator = torch.Generator().manual_seed(seed)
        values: dict[str, Tensor] = {}
        fan_in = 1
        for parameter in self.parameters:
            if parameter.kind is Kind.NORMALISATION:
                is_weight = parameter.name.endswith("weight")
                values[parameter.name] = torch.full(parameter.shape, float(is_weight))
                continue
            if parameter.kind is Kind.CONVOLUTION:
                fan_in = parameter.size // parameter.shape[0]
            draw = torch.rand(parameter.shape, generator=generator)
            values[parameter.name] = (2 * draw - 1) / fan_in**0.5
        return values


class NetworkGenerator(Generator):
    """A network with a fixed input: ``theta -> network(theta, z)`` (Ulyanov et al., CVPR 2018).

    In bfloat16 the network but for its last block is computed in that type, channels last, from
    parameters that stay in float32; the image is float32 again. That is for fitting: directional
    derivatives are refused, since those of bfloat16 are off by several per cent.

    Args:
        network: the architecture.
        z: input, [C *input], or one for each element of a batch, [*batch C *input].
        image_shape: rows and columns of the image.
        precision: floating-point type of the computation.
        batching: how a batch of parameters is computed, one network after another or all at once.
            All at once is faster where a device waits for calls rather than for numbers, and
            differs by rounding.

    Raises:
        ShapeError: an input that does not give such an image.
        DtypeError: an input that is no tensor, or bfloat16 for one that is not float32.
        DeviceUnavailableError: bfloat16 on a device without instructions for it.
        ConfigurationError: another precision or batching, or bfloat16 all at once.
    """

    def __init__(
        self,
        network: Network,
        z: Tensor,
        image_shape: tuple[int, int],
        *,
        precision: Precision = "float32",
        batching: Batching = "loop",
    ) -> None:
        wanted = network.input_shape(image_shape)
        if not isinstance(z, Tensor):
            raise DtypeError(f"The input must be a torch tensor; got {type(z).__name__}.")
        if tuple(z.shape[-len(wanted) :]) != wanted:
            raise ShapeError(
                f"For images of {image_shape[0]} x {image_shape[1]} pixels this network needs an "
                f"input [... {' '.join(map(str, wanted))}]; got {tuple(z.shape)}."
            )
        self.network, self.z, self.precision, self.batching = network, z, precision, batching
        self._set_spaces(network.parameters, (network.out_channels, *image_shape))
        self._check_precision()

    def _check_precision(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigurationError(
                f"precision must be float32 or bfloat16; got {self.precision!r}."
            )
        if self.batching not in ("loop", "vmap"):
            raise ConfigurationError(f"batching must be loop or vmap; got {self.batching!r}.")
        if self.precision == "float32":
            return
        if self.batching == "vmap":
            raise ConfigurationError("bfloat16 has no vmap; use batching loop or float32.")
        if self.z.dtype != torch.float32:
            raise DtypeError(
                f"bfloat16 is a way to compute with float32 parameters; the input is {self.z.dtype}"
                ". Use precision float32 with it."
            )
        check_bfloat16(self.z.device)

    def with_precision(self, precision: Precision) -> "NetworkGenerator":
        """The same generator computed in another type."""
        return NetworkGenerator(
            self.network,
            self.z,
            self.range_shape[1:],
            precision=precision,
            batching=self.batching,
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "NetworkGenerator":
        """See :meth:`dipct.operator.Operator.to`."""
        moved = super().to(device, dtype)
        moved._check_precision()
        return moved

    def initial(self, seed: int) -> Tensor:
        """See :meth:`Generator.initial`."""
        return self.layout.join(self.network.initial(seed))

    def _apply(self, theta: Tensor) -> Tensor:
        batch = tuple(theta.shape[:-1])
        input_batch = tuple(self.z.shape[: self.z.ndim - len(self._input_shape)])
        if input_batch and input_batch != batch:
            raise ShapeError(
                f"This generator has one input for each element of a batch {input_batch}; theta "
                f"has batch axes {batch}."
            )
        if not batch:
            return self._image(theta, self.z)
        if 0 in batch:
            return theta.new_zeros((*batch, *self.range_shape))
        thetas = theta.reshape(-1, theta.shape[-1])
        inputs = self.z.expand(*batch, *self._input_shape).reshape(-1, *self._input_shape)
        if self.batching == "vmap":
            images = torch.func.vmap(self._image)(thetas, inputs)
        else:
            pairs = zip(thetas, inputs, strict=True)
            images = torch.stack([self._image(one, z) for one, z in pairs])
        return images.reshape(*batch, *self.range_shape)

    @property
    def _input_shape(self) -> tuple[int, ...]:
        return self.network.input_shape(self.range_shape[1:])

    def _image(self, theta: Tensor, z: Tensor) -> Tensor:
        return apply_network(self.network, theta, z[None], precision=self.precision)[0]


def apply_network(
    network: Network, theta: Tensor, z: Tensor, *, precision: Precision = "float32"
) -> Tensor:
    """Images of several inputs by one network.

    Args:
        network: the architecture.
        theta: its parameters, [P].
        z: inputs, [N C *input].
        precision: of the computation, see :class:`NetworkGenerator`.

    Returns:
        [N out_channels H W], in the type of theta.
    """
    layout = ParameterLayout(network.parameters)
    # Contiguous: torch has no forward derivative of a group norm in channels-last memory.
    z = z.contiguous()
    if precision == "float32":
        return network(layout.split(theta), z)
    exact, reduced = layout.split(theta), layout.split(_Reduction.apply(theta))
    last = [p.name for p in network.parameters if p.block == network.last_block]
    mixed = reduced | {name: exact[name] for name in last}
    z = z.to(torch.bfloat16, memory_format=torch.channels_last)
    return network(mixed, z).contiguous()


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Older releases of torch do not tell: they compute in float32.
    tell = getattr(torch.cpu, "get_capabilities", dict)
    return any(tell().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def check_bfloat16(device: torch.device) -> None:
    """Raise a :class:`DeviceUnavailableError` unless a device multiplies in bfloat16."""
    if not has_bfloat16(device):
        raise DeviceUnavailableError(
            f"The device {device} has no bfloat16 instructions: it would compute slower and less "
            "exactly. Use precision float32."
        )


_NO_DERIVATIVES = (
    "Directional derivatives of a network in bfloat16 are off by several per cent. Use "
    'generator.with_precision("float32") for Jacobians and under vmap.'
)


class _Reduction(torch.autograd.Function):
    """Rounds to bfloat16; has a gradient but no directional derivative."""

    @staticmethod
    def forward(theta: Tensor) -> Tensor:
        return theta.to(torch.bfloat16)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.to(torch.float32)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        raise DtypeError(_NO_DERIVATIVES)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], theta: Tensor) -> tuple[Tensor, int]:
        raise DtypeError(_NO_DERIVATIVES)
