"""The op of InfoNCE in one direction as torch sees it, on both kinds of kernels."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import sslfast
from sslfast.functional import info_nce
from sslfast.kernels.info_nce import op
from sslfast.kernels.info_nce.op import weighted_info_nce
from sslfast.kernels.info_nce.pairs import _scaled_pairs
from sslfast.kernels.unit_rows.op import _unit_rows


def inputs(n: int, k: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, negatives and positive logits that need a gradient."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows, negatives = (torch.randn(size, d, dtype=dtype).requires_grad_() for size in (n, k))
    return rows, negatives, torch.randn(n, dtype=wide).requires_grad_()


def plain(rows: Tensor, negatives: Tensor, positive: Tensor, weight: Tensor) -> Tensor:
    return (weight * F.softplus((rows @ negatives.T).logsumexp(1) - positive)).sum()


def fuse(patch: pytest.MonkeyPatch) -> None:
    """Take the way that is meant for a GPU."""
    patch.setattr(op, "runs_fused", lambda rows: True)
    function = "sslfast.losses.infonce"
    patch.setattr(f"{function}.runs_fused", lambda rows: True)
    patch.setattr(f"{function}.unit_rows", lambda x: _unit_rows(x)[0])
    patch.setattr(f"{function}.scaled_pairs", lambda *given: _scaled_pairs(*given)[:2])


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("fused", [False, True])
def test_gradcheck(backend: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.rand(5, dtype=torch.float64)
    if fused:
        fuse(monkeypatch)
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


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_no_second_derivative(factor: float) -> None:
    tensors, weight = inputs(4, 5, 3, torch.float64), torch.rand(4, dtype=torch.float64)
    total, d_rows, _, _ = weighted_info_nce(*tensors, weight, True)
    (gradient,) = torch.autograd.grad(factor * total, tensors[0], create_graph=True)
    torch.testing.assert_close(gradient.detach(), factor * d_rows.detach())
    with pytest.raises(RuntimeError, match="this loss has no second derivative"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("needed", [False, True])
def test_fused_and_by_blocks_agree(
    dtype: torch.dtype, shared: bool, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [torch.randn(n, 12).to(dtype).requires_grad_() for n in (60, 60, 333)[: 2 + shared]]
    tensors[-1].requires_grad_(needed)
    temperature = torch.tensor(0.1, requires_grad=True)
    inputs = [x for x in (*tensors, temperature) if x.requires_grad]

    def run() -> tuple[Tensor, ...]:
        loss = info_nce(*tensors, temperature=temperature)
        return loss, *torch.autograd.grad(loss, inputs)

    by_blocks = run()
    fuse(monkeypatch)
    with sslfast.use_backend("tiled"):
        found = run()
    for value, other in zip(found, by_blocks, strict=True):
        assert (value.double() - other).norm() <= (4e-6 if dtype == torch.float32 else 1e-2) * (
            other.double().norm()
        )


def test_the_rule() -> None:
    """Fused on a GPU while a gradient row of 16-bit numbers fits one program."""
    half = torch.bfloat16
    for device, dim, dtype, fused in (
        ("cuda", 256, half, True),
        ("cuda", 257, half, False),
        ("cuda", 256, torch.float32, False),
        ("cpu", 64, half, False),
    ):
        with FakeTensorMode():
            assert op.runs_fused(torch.empty(3, dim, device=device, dtype=dtype)) == fused


def test_a_queue_may_change_before_the_backward_pass() -> None:
    for run in (op._fused, op._by_blocks):
        rows, queue, positive = (x.detach() for x in inputs(6, 9, 4, torch.float32))
        with sslfast.use_backend("tiled"):
            found = run(rows, queue, positive, torch.ones(6), False)
        kept = [x.clone() for x in found]
        queue.zero_()
        assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))
