"""Scaled unit queries and the logits of their keys, against plain PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.ops.scaled_pairs import _scaled_pairs, scaled_pairs

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


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
    found, truth = scaled_pairs(*given), plain(*wide)
    above = [torch.randn(n, d).to(dtype), torch.randn(n)]

    def gradients(outputs: tuple[Tensor, ...], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        needed = [x for x in tensors if x.requires_grad]
        weights = [g.to(x.dtype) for g, x in zip(above, outputs, strict=True)]
        return torch.autograd.grad(outputs, needed, weights)

    step = torch.finfo(dtype).eps
    torch.testing.assert_close(found[0].double(), truth[0], rtol=4 * step, atol=0)
    torch.testing.assert_close(found[1].double(), truth[1], rtol=0, atol=7.3 * 4e-7)
    for value, exact in zip(gradients(found, list(given)), gradients(truth, wide), strict=True):
        # What cancels in a gradient is of the size of what comes from above.
        torch.testing.assert_close(value.double(), exact, rtol=2 * step, atol=2e-4)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_zeros(dtype: torch.dtype) -> None:
    query, key = (torch.zeros(3, 4, dtype=dtype) for _ in "qk")
    rows, positive = scaled_pairs(query, key, torch.tensor(10.0))
    assert not rows.any()
    assert not positive.any()


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_the_op(dtype: torch.dtype) -> None:
    given = inputs(9, 6, dtype)
    torch.library.opcheck(
        _scaled_pairs,
        given,
        # Three outputs have no gradient, which AOT dispatch would ask for.
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    compiled = torch.compile(lambda *a: scaled_pairs(*a)[1].square().sum(), fullgraph=True)
    for value, other in zip(
        torch.autograd.grad(compiled(*given), given),
        torch.autograd.grad(scaled_pairs(*given)[1].square().sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(value, other, rtol=1e-2, atol=1e-2)
