"""Named parameters of a generator and their places in one flat vector."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError


class Kind(Enum):
    """What a parameter is."""

    CONVOLUTION = "convolution"
    BIAS = "bias"
    NORMALISATION = "normalisation"
    PIXELS = "pixels"
    COEFFICIENTS = "coefficients"
    SINGULAR_VALUES = "singular_values"


@dataclass(frozen=True)
class Parameter:
    """One tensor of parameters.

    Attributes:
        name: unique, ``block.layer.weight``.
        shape: of the tensor; of a convolution ``(out, in, rows, columns)``.
        block: name of the block it belongs to: blocks share a prior and a learning rate.
        kind: what it is.
        used: whether the output depends on it; published networks keep some that it does not.
    """

    name: str
    shape: tuple[int, ...]
    block: str
    kind: Kind
    used: bool = True

    @property
    def size(self) -> int:
        """Number of values."""
        return int(torch.Size(self.shape).numel())


class ParameterLayout:
    """The order of the parameters in the flat vector theta.

    Attributes:
        parameters: in order.
        size: their number of values P.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        names = [parameter.name for parameter in parameters]
        if not names or len(set(names)) != len(names):
            raise ConfigurationError(f"Parameters need unique names; got {names}.")
        self.parameters = tuple(parameters)
        self._sizes = [parameter.size for parameter in parameters]
        self.size = sum(self._sizes)

    @property
    def blocks(self) -> dict[str, int]:
        """Names of the blocks in order, with their numbers of values."""
        sizes: dict[str, int] = {}
        for parameter in self.parameters:
            sizes[parameter.block] = sizes.get(parameter.block, 0) + parameter.size
        return sizes

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """The named tensors in a flat vector, as views.

        Args:
            theta: [... P].

        Returns:
            [... *shape] by name.

        Raises:
            ShapeError: another number of values.
        """
        if theta.ndim == 0 or theta.shape[-1] != self.size:
            raise ShapeError(
                f"theta must have shape [... P] with P={self.size}; got {tuple(theta.shape)}."
            )
        parts = torch.split(theta, self._sizes, dim=-1)
        return {
            parameter.name: part.unflatten(-1, parameter.shape)
            for parameter, part in zip(self.parameters, parts, strict=True)
        }

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The flat vector of named tensors; the inverse of :meth:`split`.

        Args:
            tensors: [... *shape] by name, all of them.

        Returns:
            [... P].

        Raises:
            ConfigurationError: a missing or unknown name.
            ShapeError: a tensor of another shape.
        """
        wanted = [parameter.name for parameter in self.parameters]
        if set(tensors) != set(wanted):
            missing, unknown = (
                sorted(set(wanted) - set(tensors)),
                sorted(set(tensors) - set(wanted)),
            )
            raise ConfigurationError(
                f"These are not the parameters of this generator: missing {missing or 'none'}, "
                f"unknown {unknown or 'none'}."
            )
        flat = []
        for parameter in self.parameters:
            tensor, ndim = tensors[parameter.name], len(parameter.shape)
            if tuple(tensor.shape[tensor.ndim - ndim :]) != parameter.shape:
                raise ShapeError(
                    f"{parameter.name} must have shape [... {' '.join(map(str, parameter.shape))}]"
                    f"; got {tuple(tensor.shape)}."
                )
            flat.append(tensor.flatten(-ndim))
        return torch.cat(flat, dim=-1)

    def mask(
        self,
        *,
        blocks: Collection[str] | None = None,
        kinds: Collection[Kind] | None = None,
        used: bool = False,
    ) -> Tensor:
        """Where in the flat vector the parameters of some blocks and kinds are.

        Args:
            blocks: names of blocks; default: all.
            kinds: kinds of parameters; default: all.
            used: leave out those that the output does not depend on.

        Returns:
            bool [P].

        Raises:
            ConfigurationError: there is no such block.
        """
        unknown = sorted(set(blocks or ()) - set(self.blocks))
        if unknown:
            raise ConfigurationError(
                f"There is no block {', '.join(unknown)}; there are {', '.join(self.blocks)}."
            )
        chosen = [
            (blocks is None or parameter.block in blocks)
            and (kinds is None or parameter.kind in kinds)
            and (parameter.used or not used)
            for parameter in self.parameters
        ]
        return torch.repeat_interleave(torch.tensor(chosen), torch.tensor(self._sizes))
