"""Linear maps known only by their products with blocks of vectors."""

from collections.abc import Callable

import torch
from torch import Tensor

from dipct.errors import DataError, DtypeError
from dipct.shapes import check_shape

BlockMap = Callable[[Tensor], Tensor]
"""A linear map on a block of vectors: leading axis = vectors."""


def product_of_block(
    function: BlockMap, name: str, vectors: Tensor, length: int | None = None
) -> Tensor:
    """A product of a caller's map with a block of vectors, checked.

    Args:
        function: the map.
        name: what the caller calls it, for messages.
        vectors: [k n].
        length: of the products; None stands for any.

    Returns:
        [k length].

    Raises:
        DtypeError: the result is no tensor, or of another type or device.
        ShapeError: it does not belong to the block.
        DataError: it is not finite.
    """
    result = function(vectors)
    if not isinstance(result, Tensor):
        raise DtypeError(f"The result of {name} must be a tensor; got {type(result).__name__}.")
    result = result.detach()
    sizes = {"k": len(vectors)} | ({} if length is None else {"n": length})
    check_shape(
        result,
        "k n",
        name=f"the result of {name}",
        advice=f"It must map each of the k vectors of its block, {tuple(vectors.shape)}.",
        **sizes,
    )
    if (result.dtype, result.device) != (vectors.dtype, vectors.device):
        raise DtypeError(
            f"The result of {name} must have the type and device of its vectors, "
            f"{vectors.dtype} on {vectors.device}; got {result.dtype} on {result.device}."
        )
    if not torch.isfinite(result).all():
        raise DataError(
            f"The result of {name} must be finite; it holds NaN or infinite values for vectors "
            f"that are finite. Check the point at which the map is linearised, and its type."
        )
    return result
