"""Scaled unit queries and the logits of their keys, against plain PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.kernels.info_nce.pairs import _scaled_pairs, scaled_pairs

HALVES = [torch.float16, torch.bfloat16]  # for which there is an op, on a GPU
DTYPES = [*HALVES, torch.float32, torch.float64]


def inputs(n: int, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    query, key = (3 * torch.randn(n, d) for _ in "qk")
    key = key + query
    vectors = (x.to(dtype).requires_grad_() for x in (query, key))
    return *vectors, torch.tensor(7.3, dtype=wide, requires_grad=True)


def plain(query: Tensor, key: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    q, k = F.normalize(query, dim=1), F.normalize(key, dim=1)
    return scale * q, scale * (q * k).sum(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (33, 20), (200, 7)])
@pytest.mark.parametrize("key_gradient", [False, True])
def test_against_float64(dtype: torch.dtype, n: int, d: int, key_gradient: bool) -> None:
    given = inputs(n, d, dtype)
    given[1].requires_grad_(key_gradient)
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in given]
    truth = plain(*wide)
    above = [torch.randn(n, d).to(dtype), torch.randn(n)]

    def gradients(outputs: tuple[Tensor, ...], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        needed = [x for x in tensors if x.requires_grad]
        weights = [g.to(x.dtype) for g, x in zip(above, outputs, strict=True)]
        return torch.autograd.grad(outputs, needed, weights)

    step, exact = torch.finfo(dtype).eps, gradients(truth, wide)
    on_a_gpu = _scaled_pairs(*given)[:2] if dtype in HALVES else scaled_pairs(*given)
    for found in (scaled_pairs(*given), on_a_gpu):
        compare(found, truth, gradients(found, list(given)), exact, step)


def compare(
    found: tuple[Tensor, ...],
    truth: tuple[Tensor, ...],
    gradients: tuple[Tensor, ...],
    exact: tuple[Tensor, ...],
    step: float,
) -> None:
    torch.testing.assert_close(found[0].double(), truth[0], rtol=4 * step, atol=0)
    torch.testing.assert_close(found[1].double(), truth[1], rtol=0, atol=7.3 * 4e-7)
    for value, other in zip(gradients, exact, strict=True):
        # What cancels in a gradient is of the size of what comes from above.
        torch.testing.assert_close(value.double(), other, rtol=2 * step, atol=2e-4)


@pytest.mark.parametrize("dtype", HALVES)
def test_zeros(dtype: torch.dtype) -> None:
    query, key = (torch.zeros(3, 4, dtype=dtype) for _ in "qk")
    rows, positive, *_ = _scaled_pairs(query, key, torch.tensor(10.0))
    assert not rows.any()
    assert not positive.any()


@pytest.mark.parametrize("dtype", HALVES)
def test_the_op(dtype: torch.dtype) -> None:
    given = inputs(9, 6, dtype)
    torch.library.opcheck(
        _scaled_pairs,
        given,
        # Three outputs have no gradient, which AOT dispatch would ask for.
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    compiled = torch.compile(lambda *a: _scaled_pairs(*a)[1].square().sum(), fullgraph=True)
    for value, other in zip(
        torch.autograd.grad(compiled(*given), given),
        torch.autograd.grad(_scaled_pairs(*given)[1].square().sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(value, other, rtol=1e-2, atol=1e-2)
