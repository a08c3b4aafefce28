"""Every loss class on a GPU: the same bits twice, near float64, and what InfoNCE runs on."""

import every_loss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from sslfast.functional import info_nce
from sslfast.kernels.class_sums import reference, tiled
from sslfast.kernels.info_nce import op
from sslfast.kernels.unit_rows.op import unit_rows

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 1e-2}
NAMES = list(every_loss.steps(2, 2, "cpu", torch.float32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_the_same_bits_twice(name: str, dtype: torch.dtype) -> None:
    """Without a wait for the GPU, and without an algorithm that torch knows to vary."""
    made = every_loss.steps(3000, 128, "cuda", dtype)[name]
    first = every_loss.step(made)
    loss, inputs = made()
    needed = [x for x in inputs if x.requires_grad]
    torch.use_deterministic_algorithms(True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = loss(*inputs)
        second = [value.detach(), *torch.autograd.grad(value, needed)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("n", "k", "d"), [(1024, 65_536, 128), (300, 5001, 123), (77, 900, 256)])
def test_info_nce_is_fused(dtype: torch.dtype, n: int, k: int, d: int) -> None:
    """Both kinds of kernels that can do it, against float64."""
    rows, negatives = (F.normalize(torch.randn(m, d, device="cuda"), dim=1) for m in (n, k))
    x, y = (10 * rows).to(dtype), negatives.to(dtype)
    positive, weight = torch.randn(n, device="cuda") + 8, torch.rand(n, device="cuda") / n
    assert op.runs_fused(x) == (dtype != torch.float32)
    with sslfast.use_backend("reference"):
        wide = x.double(), y.double(), positive.double(), weight.double()
        truth = op._by_blocks(*wide, True)
    for run in (op._fused, op._by_blocks):
        for value, exact in zip(run(x, y, positive, weight, True), truth, strict=True):
            error = (value.double() - exact).norm() / exact.norm()
            assert error <= TOLERANCE[dtype]


def test_moco_holds_no_logits() -> None:
    made = every_loss.steps(1024, 128, "cuda", torch.bfloat16)["NTXentLoss"]
    _, (query, key) = made()
    bank = F.normalize(torch.randn(65_536, 128, device="cuda"), dim=1).to(torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    info_nce(query, key.detach(), bank).backward()
    # A copy of the bank, normalised; partial gradients, four tiles a multiprocessor at most.
    partial = 4 * torch.cuda.get_device_properties(0).multi_processor_count * 128 * 128 * 4
    assert torch.cuda.max_memory_allocated() - before < bank.numel() * 2 + partial + (16 << 20)


@pytest.mark.parametrize("classes", [1, 10, 5000])
def test_class_sums(classes: int) -> None:
    x, of = torch.randn(9001, 130, device="cuda"), torch.randint(classes, (9001,), device="cuda")
    found, truth = tiled.sums(x, of), reference.sums(x.double(), of)
    assert (found - truth).norm() <= 1e-6 * truth.norm()
    assert torch.equal(tiled.sums(x, of), found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unit_rows(dtype: torch.dtype) -> None:
    x = torch.randn(5000, 128, device="cuda").to(dtype).requires_grad_()
    g = torch.randn(5000, 128, device="cuda").to(dtype)

    def both(x: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        return unit.detach(), torch.autograd.grad(unit, x, g.to(unit.dtype))[0]

    wide = x.detach().double().requires_grad_()
    for value, truth in zip(both(x, unit_rows(x)), both(wide, F.normalize(wide)), strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), truth, rtol=1e-2, atol=1e-4)
