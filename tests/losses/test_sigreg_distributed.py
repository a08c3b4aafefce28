"""SIGReg and LeJEPA over all ranks: averages of ranks are what one process has."""

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.losses import LeJEPALoss, SIGReg


def views(sizes: list[int], dtype: torch.dtype) -> list[Tensor]:
    """The same inputs in every process: those of all ranks, whose means and deviations differ."""
    generator = torch.Generator().manual_seed(7)
    return [
        (r + 1) / 2 * torch.randn(3, n, 6, generator=generator, dtype=dtype) + r
        for r, n in enumerate(sizes)
    ]


def compare(loss: torch.nn.Module, whole: torch.nn.Module, parts: list[Tensor], rank: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 5, dtype=parts[0].dtype, generator=generator).requires_grad_()
    lejepa = isinstance(loss, LeJEPALoss)

    def of(module: torch.nn.Module, z: Tensor) -> Tensor:
        z = z @ weight
        return module(global_proj=z[:2], local_proj=z[2:]) if lejepa else module(z)

    truth = of(whole, torch.cat(parts, 1))
    (expected,) = torch.autograd.grad(truth, weight)
    value = of(loss, parts[rank])
    (gradient,) = torch.autograd.grad(value, weight)
    if not lejepa:  # every rank has the whole of it
        torch.testing.assert_close(value.detach(), truth.detach())
    for local, all_of_it in ((value.detach(), truth.detach()), (gradient, expected)):
        dist.all_reduce(local)
        torch.testing.assert_close(local / len(parts), all_of_it, rtol=1e-4, atol=1e-6)


def on_all_ranks(rank: int, size: int, sizes: list[int], dtype: torch.dtype) -> None:
    parts = views(sizes, dtype)
    compare(SIGReg(num_vectors=70, gather_distributed=True), SIGReg(num_vectors=70), parts, rank)
    compare(LeJEPALoss(0.3, gather_distributed=True), LeJEPALoss(0.3), parts, rank)
    group = [dist.new_group([r]) for r in range(size)][rank]
    alone = SIGReg(gather_distributed=True, process_group=group)
    torch.testing.assert_close(alone(parts[rank]), SIGReg()(parts[rank]))


@pytest.mark.parametrize("sizes", [[9], [5, 2], [1, 6, 3]], ids=str)
def test_gradient_is_that_of_one_process(sizes: list[int]) -> None:
    dtype = torch.float32 if len(sizes) == 2 else torch.float64
    processes.run(len(sizes), on_all_ranks, sizes, dtype)
