"""Normalisation in the dtype of the input, against F.normalize in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.kernels.unit_rows.op import _unit_rows, unit_rows, wide_unit_rows

HALVES = [torch.float16, torch.bfloat16]  # for which there is an op, on a GPU


def both(x: Tensor, unit: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    return unit.detach(), torch.autograd.grad(unit, x, above.to(unit.dtype))[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (33, 20), (5, 7, 12)])
def test_against_float64(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    above = torch.randn(shape).to(dtype)
    wide = x.detach().double().requires_grad_()
    truth = both(wide, F.normalize(wide, dim=-1), above)
    step = torch.finfo(dtype).eps
    on_a_gpu = _unit_rows(x)[0] if dtype in HALVES else unit_rows(x)
    for unit in (unit_rows(x), on_a_gpu):
        compare(both(x, unit, above), truth, step)


def compare(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], step: float) -> None:
    for value, exact in zip(found, truth, strict=True):
        # What cancels in a gradient is of the size of what comes from above.
        torch.testing.assert_close(value.double(), exact, rtol=2 * step, atol=4e-6)


def test_derivatives_of_both_orders_are_those_of_normalize() -> None:
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64)
    orders = []
    for unit in (wide_unit_rows(x), F.normalize(x, dim=1)):
        (first,) = torch.autograd.grad((unit * weight).sum(), x, create_graph=True)
        orders.append((unit, first, torch.autograd.grad(first.square().sum(), x)[0]))
    for found, truth in zip(*orders, strict=True):
        torch.testing.assert_close(found, truth)


def test_what_is_not_contiguous_and_zeros() -> None:
    x = torch.randn(8, 6, dtype=torch.bfloat16).T
    torch.testing.assert_close(_unit_rows(x)[0], F.normalize(x.float(), dim=1).bfloat16())
    zeros = torch.zeros(3, 4, dtype=torch.float16, requires_grad=True)
    unit, _ = _unit_rows(zeros)
    (gradient,) = torch.autograd.grad(unit, zeros, torch.ones_like(unit))
    assert torch.equal(unit, torch.zeros_like(unit))
    assert torch.equal(gradient, zeros)  # F.normalize's is 1e12, beyond fp16


@pytest.mark.parametrize("dtype", HALVES)
def test_the_op(dtype: torch.dtype) -> None:
    x = torch.randn(6, 9).to(dtype).requires_grad_()
    torch.library.opcheck(
        _unit_rows,
        (x,),
        # The norms are an output without a gradient, which AOT dispatch would ask for.
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    found = torch.compile(lambda x: (_unit_rows(x)[0].float() ** 3).sum(), fullgraph=True)
    truth = (F.normalize(x.float(), dim=1) ** 3).sum()
    torch.testing.assert_close(found(x), truth, rtol=1e-2, atol=1e-2)
