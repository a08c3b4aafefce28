"""KoLeo: the formula, lightly's class, ranks, rows alone and equal rows, the op behind it."""

import processes
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import peers
from sslfast.functional import koleo
from sslfast.kernels import registry
from sslfast.kernels.library import NAMESPACE
from sslfast.kernels.nearest_rows import Problem, reference, tiled
from sslfast.losses import KoLeoLoss


def formula(x: Tensor) -> Tensor:
    z = F.normalize(x, dim=1)
    others = torch.cdist(z.detach(), z.detach()).fill_diagonal_(torch.inf).argmin(1)
    return -((z - z[others] + 1e-8).norm(dim=1) + 1e-8).log().mean()


@pytest.mark.parametrize("shape", [(2, 3), (17, 5), (300, 24)])
def test_formula_and_lightlys_class(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    loss, theirs = KoLeoLoss()(x), peers.load("lightly.loss").KoLeoLoss()(x)
    torch.testing.assert_close(loss, formula(x))
    torch.testing.assert_close(loss, theirs)
    grads = [torch.autograd.grad(value, x)[0] for value in (loss, theirs)]
    torch.testing.assert_close(*grads)
    assert torch.autograd.gradcheck(koleo, x[:9].detach().requires_grad_())
    half = koleo(x.detach().bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(
        half.double(), koleo(x.detach().bfloat16().double()), rtol=1e-4, atol=0
    )


def test_equal_rows_and_a_row_alone() -> None:
    x = torch.randn(4, 6)
    x[2] = x[0]
    x.requires_grad_()
    loss = koleo(x)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.norm() < 10
    with pytest.raises(ValueError, match="at least 2 rows"):
        koleo(x[:1])
    with pytest.raises(ValueError, match="at least 2 rows"):
        KoLeoLoss()(x[:1])
    with pytest.raises(ValueError, match="eps must be at least 0"):
        KoLeoLoss(eps=-1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_op(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "STRIP_ELEMENTS", 100)
    x, y = torch.randn(31, 7).to(dtype), torch.randn(40, 7).to(dtype)
    x[3] = y[8] * 5  # would be its own neighbour, and is that of another row
    own = torch.arange(31) + 5
    for backend in registry.candidates("nearest_rows"):
        if backend.refusal(Problem("cpu", dtype)) is None:
            found = backend.module.nearest(x, y, own)
            assert torch.equal(found, reference.nearest(x.double(), y.double(), own))
            assert not (found == own).any()
    torch.library.opcheck(getattr(torch.ops, NAMESPACE).nearest_rows.default, (x, y, own))


def on_all_ranks(rank: int, size: int, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(7)
    rows = [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in sizes]
    weight = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    truth = koleo(torch.cat(rows) @ weight)
    (expected,) = torch.autograd.grad(truth, weight)
    loss = KoLeoLoss(gather_distributed=True)(rows[rank] @ weight)
    (gradient,) = torch.autograd.grad(loss, weight)
    for local, whole in ((loss.detach(), truth.detach()), (gradient, expected)):
        dist.all_reduce(local)
        torch.testing.assert_close(local / size, whole)


@pytest.mark.parametrize("sizes", [[9], [5, 1], [1, 6, 3]], ids=str)
def test_averages_of_ranks_are_what_one_process_has(sizes: list[int]) -> None:
    processes.run(len(sizes), on_all_ranks, sizes)


def test_compile_fullgraph() -> None:
    x = torch.randn(12, 5, requires_grad=True)
    compiled = torch.compile(koleo, fullgraph=True)(x)
    torch.testing.assert_close(compiled, koleo(x))
    torch.testing.assert_close(*(torch.autograd.grad(f, x)[0] for f in (compiled, koleo(x))))
