"""The size of an image's values, found from its projections alone."""

import numpy as np
import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.operator.base import LinearOperator
from dipct.solver.cgls import CGLS
from dipct.solver.iteration import iterate
from dipct.solver.solution import Status

# CGLS steps that give the size of the image values: enough for a blurred image.
_ITERATIONS = 5
DEFAULT_QUANTILE = 0.99


def image_scale(
    operator: LinearOperator, data: Tensor, *, quantile: float = DEFAULT_QUANTILE
) -> Tensor:
    """Size of the image values, found from the data alone: units of length change it in step.

    Args:
        operator: the ray transform.
        data: projections, [... *operator.range_shape].
        quantile: which of the image values to take, in [0, 1].

    Returns:
        For every element of the batch, up to rounding as for it alone, the quantile of the image
        of a few CGLS iterations; 1 where that is not positive. [...], float64, where the data is.

    Raises:
        ConfigurationError: a quantile outside [0, 1], or an operator without exact adjoint.
        ShapeError: data that do not fit the operator.
        DataError: data that are not finite.
        KeyboardInterrupt: stopped by the user.
    """
    if not 0 <= quantile <= 1:
        raise ConfigurationError(f"quantile must be from 0 to 1; got {quantile}.")
    solution = iterate(CGLS(operator, data), max_iterations=_ITERATIONS)
    if solution.status is Status.INTERRUPTED:
        # The loop ends early and well; here that would be another scale, and no end.
        raise KeyboardInterrupt
    values = quantiles(solution.value.flatten(-len(operator.domain_shape)), quantile)
    return torch.where(values > 0, values, 1.0)


def quantiles(values: Tensor, quantile: float) -> Tensor:
    """A quantile along the last axis, with linear interpolation.

    ``torch.quantile`` refuses more than 2^24 values, which a volume has.

    Args:
        values: [... N], finite.
        quantile: in [0, 1].

    Returns:
        [...], float64, on the device of the values.
    """
    if values.device.type == "cpu":
        found = np.quantile(values.numpy(), quantile, axis=-1)
        return torch.from_numpy(np.asarray(found, dtype=np.float64))
    return quantiles_on_device(values, quantile)


def quantiles_on_device(values: Tensor, quantile: float) -> Tensor:
    """What :func:`quantiles` gives, up to rounding, without moving the values to the host."""
    last = values.shape[-1] - 1
    below = min(int(quantile * last), last)
    share = quantile * last - below
    low = values.kthvalue(below + 1, dim=-1).values.double()
    high = values.kthvalue(min(below + 2, last + 1), dim=-1).values.double()
    return low + share * (high - low)
