"""The op of InfoNCE in one direction as torch sees it; its kernels are linear_cross_entropy's."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from sslfast.ops.info_nce import weighted_info_nce


def inputs(n: int, k: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, negatives and positive logits that need a gradient."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows, negatives = (torch.randn(size, d, dtype=dtype).requires_grad_() for size in (n, k))
    return rows, negatives, torch.randn(n, dtype=wide).requires_grad_()


def plain(rows: Tensor, negatives: Tensor, positive: Tensor, weight: Tensor) -> Tensor:
    return (weight * F.softplus((rows @ negatives.T).logsumexp(1) - positive)).sum()


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_gradcheck(backend: str) -> None:
    weight = torch.rand(5, dtype=torch.float64)
    with sslfast.use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda *a: weighted_info_nce(*a, weight, True)[0], inputs(5, 7, 3, torch.float64)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("needed", [True, False])
def test_opcheck(dtype: torch.dtype, needed: bool) -> None:
    rows, negatives, positive = inputs(6, 9, 4, dtype)
    torch.library.opcheck(
        weighted_info_nce,
        (rows, negatives, positive, torch.rand_like(positive), needed),
        # AOT dispatch differentiates all outputs; the gradients among these have none of their own.
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_compile_fullgraph() -> None:
    tensors, weight = inputs(20, 33, 8, torch.float32), torch.rand(20)

    def loss(*tensors: Tensor) -> Tensor:
        return 3 * weighted_info_nce(*tensors, weight, True)[0]

    found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*tensors), tensors)
    for ours, truth in zip(
        found, torch.autograd.grad(3 * plain(*tensors, weight), tensors), strict=True
    ):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-6)


def test_no_second_derivative() -> None:
    tensors, weight = inputs(4, 5, 3, torch.float64), torch.rand(4, dtype=torch.float64)
    total, d_rows, _, _ = weighted_info_nce(*tensors, weight, True)
    (gradient,) = torch.autograd.grad(total, tensors[0], create_graph=True)
    torch.testing.assert_close(gradient.detach(), d_rows.detach())
    with pytest.raises(RuntimeError, match="this loss has no second derivative"):
        gradient.square().sum().backward()
