"""A generator whose parameters are the singular values of pretrained convolutions."""

from collections.abc import Collection

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.generator.base import Generator
from dipct.generator.parameters import Kind, Parameter
from dipct.generator.subspace import check_parameters

_BLOCKS = ("up_", "down_")


class SingularValues(Generator):
    """A pretrained generator of which only singular values of convolutions are free.

    SVD-DIP (Nittscher et al., MIDL 2023, arXiv 2303.15748): the weight [out in rows columns] of a
    convolution, as the matrix [out, in rows columns], is ``U diag(s) V^T``, and s is the unknown.
    All else stays as pretrained: U and V, biases, normalisations and other blocks. The paper
    replaces the layer by a convolution with ``V^T``, a scaling by s and a 1 x 1 convolution with
    U; here the weight is put together again, which is the same map. Singular values may become
    negative, as there.

    Parameters: ``block.layer.singular_values`` for each layer, in the order and with the blocks
    of the wrapped generator.

    Args:
        generator: the generator to restrict.
        theta: its pretrained parameters, [P].
        blocks: names of the blocks whose convolutions are replaced; default: those whose names
            begin with ``up_`` or ``down_``.
        rank: most singular values of a layer; the smallest beyond them are set to zero for good.
            Default: all.

    Raises:
        ShapeError: parameters of another shape.
        DtypeError: parameters of another type or device than the generator.
        DataError: parameters that are not finite.
        ConfigurationError: an unknown block, blocks without convolutions, or a rank below one.
    """

    def __init__(
        self,
        generator: Generator,
        theta: Tensor,
        *,
        blocks: Collection[str] | None = None,
        rank: int | None = None,
    ) -> None:
        check_parameters(generator, theta, "pretrained parameters")
        if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
            raise ConfigurationError(f"rank must be a whole number of 1 or more; got {rank!r}.")
        layers = _convolutions(generator, blocks)
        self.generator = generator
        # A copy: the parameters of a network are often changed in place.
        self._theta = theta.detach().clone()
        weights = generator.layout.split(self._theta)
        factors = [_decompose(weights[layer.name], rank) for layer in layers]
        self._layers = tuple(layers)
        self._left = tuple(left for left, _, _ in factors)
        self._right = tuple(right for _, _, right in factors)
        self._pretrained = torch.cat([values for _, values, _ in factors])
        free = [
            Parameter(_name(layer), tuple(values.shape), layer.block, Kind.SINGULAR_VALUES)
            for layer, (_, values, _) in zip(layers, factors, strict=True)
        ]
        self._set_spaces(free, generator.range_shape)

    def initial(self, seed: int) -> Tensor:
        """The pretrained singular values; the seed does not matter."""
        return self._pretrained.to("cpu", torch.float32, copy=True)

    def parameters(self, values: Tensor) -> Tensor:
        """Parameters of the wrapped generator.

        Args:
            values: singular values of all layers, [... n_parameters].

        Returns:
            [... P].

        Raises:
            ShapeError: another number of singular values.
            DtypeError: singular values of another floating-point type or device.
        """
        self._check(values, self.domain_shape, "input")
        batch = values.shape[:-1]
        fixed = self.generator.layout.split(self._theta.expand(*batch, -1))
        free = self.layout.split(values)
        weights = {
            layer.name: ((left * free[_name(layer)][..., None, :]) @ right).unflatten(
                -1, layer.shape[1:]
            )
            for layer, left, right in zip(self._layers, self._left, self._right, strict=True)
        }
        return self.generator.layout.join(fixed | weights)

    def _apply(self, values: Tensor) -> Tensor:
        return self.generator(self.parameters(values))


def _name(layer: Parameter) -> str:
    return f"{layer.name.removesuffix('.weight')}.singular_values"


def _convolutions(generator: Generator, blocks: Collection[str] | None) -> list[Parameter]:
    """The weights of convolutions in some blocks."""
    there = generator.layout.blocks
    if blocks is None:
        chosen = {block for block in there if block.startswith(_BLOCKS)}
        wanted = "named up_ or down_"
    else:
        chosen = {blocks} if isinstance(blocks, str) else set(blocks)
        wanted = f"among {', '.join(sorted(chosen)) or 'none'}"
    unknown = sorted(chosen - set(there))
    if unknown:
        raise ConfigurationError(
            f"There is no block {', '.join(unknown)}; there are {', '.join(there)}."
        )
    found = [
        parameter
        for parameter in generator.layout.parameters
        if parameter.block in chosen and parameter.kind is Kind.CONVOLUTION
    ]
    if not found:
        raise ConfigurationError(
            f"{generator!r} has no convolution in blocks {wanted}; its blocks are "
            f"{', '.join(there)}. Name some of them in blocks."
        )
    return found


def _decompose(weight: Tensor, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Leading left vectors [out R], singular values [R], right vectors [R in*rows*columns]."""
    matrix = weight.flatten(1).to("cpu", torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    left, values, right = (
        part.to(weight) for part in (left[:, :rank], values[:rank], right[:rank])
    )
    return left, values, right
