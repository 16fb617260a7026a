"""The group normalisation of GPUs against PyTorch's, on the CPU."""

import pytest
import torch
from torch.nn import functional as F

from dipct.generator.group_norm import group_norm, group_norm_of_sums


def problem(dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, 5, 7, generator=rng, dtype=torch.float64) * 2 + 0.7
    weight, bias = torch.randn(2, 8, generator=rng, dtype=torch.float64)
    return tuple(part.to(dtype) for part in (x, weight, bias))


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_sums_give_the_same(groups):
    x, weight, bias = problem()
    expected = F.group_norm(x, groups, weight, bias)
    torch.testing.assert_close(group_norm_of_sums(x, groups, weight, bias), expected)
    torch.testing.assert_close(group_norm(x, groups, weight, bias), expected)
    # The law rejects another number of groups.
    other = 2 if groups != 2 else 4
    assert (group_norm_of_sums(x, other, weight, bias) - expected).abs().max() > 1e-2


def test_derivatives_are_the_same():
    x, weight, bias = (part.requires_grad_() for part in problem())
    assert torch.autograd.gradcheck(
        lambda *parts: group_norm_of_sums(parts[0], 2, *parts[1:]), (x, weight, bias)
    )
    direction = torch.ones_like(x).cumsum(-1)
    slopes = [
        torch.func.jvp(lambda x, each=each: each(x, 2, weight, bias), (x,), (direction,))[1]
        for each in (group_norm_of_sums, F.group_norm)
    ]
    torch.testing.assert_close(slopes[0], slopes[1])


def test_reduced_precision_keeps_the_order_of_memory_and_its_sums_are_exact():
    x, weight, bias = problem(torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    found = group_norm_of_sums(x, 2, weight, bias)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    exact = F.group_norm(
        *(p.double() if p.ndim else p for p in (x,)), 2, weight.double(), bias.double()
    )
    assert (found.double() - exact).abs().max() <= 2**-6 * exact.abs().max()
    # Sums in bfloat16 would be lost: 8 bits do not count 3000 pixels.
    large = torch.ones(1, 2, 64, 64, dtype=torch.bfloat16) + 0.5 * torch.eye(64).bfloat16()
    ones, zeros = torch.ones(2).bfloat16(), torch.zeros(2).bfloat16()
    wide = group_norm_of_sums(large, 1, ones, zeros).double()
    assert abs(wide.mean()) <= 0.05
