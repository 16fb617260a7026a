"""Tests that any operator must pass, for the project's suite and for users' own operators."""

import torch
from torch import Tensor

from dipct.operator.base import LinearOperator, Operator


def random_tensor(
    shape: tuple[int, ...], operator: Operator, seed: int, *, nonnegative: bool = False
) -> Tensor:
    """Standard normal numbers (or their absolute values) in the operator's type and device."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x.abs() if nonnegative else x
    return x.to(device=operator.device, dtype=operator.dtype or torch.float64)


def adjoint_mismatch(operator: LinearOperator, *, seed: int = 0, probes: int = 3) -> float:
    """Largest dot-product mismatch ``|<A x, y> - <x, A^T y>| / (|A x| |y|)``.

    Half of the probes are nonnegative, since for those errors cannot cancel.

    Args:
        operator: the operator to test.
        seed: of the probes.
        probes: pairs of random and of nonnegative probes.

    Returns:
        Near the rounding error for a matched pair: 1e-7 in float32, 1e-16 in float64.
    """
    worst = 0.0
    for k in range(2 * probes):
        x, y = (
            random_tensor(shape, operator, seed + 2 * k + i, nonnegative=bool(k % 2))
            for i, shape in enumerate((operator.domain_shape, operator.range_shape))
        )
        forward, backward = operator(x), operator.adjoint(y)
        # Sums in double precision, so that the test measures the operator and not itself.
        one = torch.sum(forward.double() * y.double())
        other = torch.sum(x.double() * backward.double())
        scale = torch.linalg.vector_norm(forward.double()) * torch.linalg.vector_norm(y.double())
        if float(scale) > 0:
            worst = max(worst, float((one - other).abs() / scale))
        elif float(other) != 0:
            worst = float("inf")
    return worst


def linearity_mismatch(operator: LinearOperator, *, seed: int = 0) -> float:
    """``|A(a x + b z) - a A x - b A z|`` relative to the norm of its terms."""
    x, z = (random_tensor(operator.domain_shape, operator, seed + i) for i in range(2))
    left, right = operator(1.5 * x - 0.7 * z), 1.5 * operator(x) - 0.7 * operator(z)
    scale = 1.5 * operator(x).norm() + 0.7 * operator(z).norm()
    return float((left - right).norm() / scale) if float(scale) > 0 else float(left.norm())


def taylor_slope(operator: Operator, *, seed: int = 0) -> float:
    """Order at which ``|A(x + h v) - A(x) - h J v|`` falls with ``h``.

    Returns:
        Near 2 for a right derivative of a nonlinear operator, near 1 for a wrong one, and
        infinity where the remainder is at rounding level, as for linear operators.
    """
    x, v = (random_tensor(operator.domain_shape, operator, seed + i) for i in range(2))
    value, derivative = operator(x), operator.jvp(x, v)
    eps = torch.finfo(value.dtype).eps
    steps = eps**0.125 * 2.0 ** -torch.arange(6, dtype=torch.float64)
    remainders = torch.stack(
        [(operator(x + float(h) * v) - value - float(h) * derivative).norm() for h in steps]
    ).double()
    rounding = 20 * eps * float(value.norm() + derivative.norm())
    if float(remainders[0]) <= rounding:
        return float("inf")
    kept = max(2, int((remainders > rounding).sum()))
    log_h, log_r = steps[:kept].log(), remainders[:kept].log()
    centred = log_h - log_h.mean()
    return float((centred * (log_r - log_r.mean())).sum() / (centred**2).sum())


def derivative_mismatch(operator: Operator, *, seed: int = 0) -> float:
    """Largest of ``|<J v, w> - <v, J^T w>| / (|J v| |w|)`` at a random point."""
    x, v = (random_tensor(operator.domain_shape, operator, seed + i) for i in range(2))
    w = random_tensor(operator.range_shape, operator, seed + 2)
    forward, backward = operator.jvp(x, v), operator.vjp(x, w)
    scale = float(forward.double().norm() * w.double().norm())
    gap = abs(float((forward.double() * w).sum() - (v.double() * backward).sum()))
    return gap / scale if scale > 0 else gap
