"""Barlow Twins and VICReg over all ranks: averages of ranks are what one process has."""

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.functional import barlow_twins, vicreg
from sslfast.losses import BarlowTwinsLoss, VICRegLoss

LOSSES = ((BarlowTwinsLoss, barlow_twins), (VICRegLoss, vicreg))


def views(sizes: list[int], dtype: torch.dtype) -> list[list[Tensor]]:
    """The same inputs in every process: those of all ranks, whose means and deviations differ."""
    generator = torch.Generator().manual_seed(7)
    return [
        [(r + 1) * torch.randn(n, 6, generator=generator, dtype=dtype) + 3 * r for _ in range(2)]
        for r, n in enumerate(sizes)
    ]


def compare(rank: int, size: int, sizes: list[int], dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(dim)
    weight = torch.randn(6, dim, dtype=dtype, generator=generator).requires_grad_()
    everything = views(sizes, dtype)
    for made, function in LOSSES:
        truth = function(*(torch.cat(view) @ weight for view in zip(*everything, strict=True)))
        (expected,) = torch.autograd.grad(truth, weight)
        criterion = made(gather_distributed=True)
        loss = criterion(*(view @ weight for view in everything[rank]))
        with torch.no_grad():
            torch.testing.assert_close(
                criterion(*(view @ weight for view in everything[rank])), loss
            )
        (gradient,) = torch.autograd.grad(loss, weight)
        if made is BarlowTwinsLoss:  # every rank has the whole of it
            torch.testing.assert_close(loss.detach(), truth.detach())
        for local, whole in ((loss.detach(), truth.detach()), (gradient, expected)):
            dist.all_reduce(local)
            torch.testing.assert_close(local / size, whole, rtol=1e-4, atol=1e-5)


def on_all_ranks(rank: int, size: int, sizes: list[int], dtype: torch.dtype) -> None:
    for dim in (4, 23):  # fewer columns than rows, and more
        compare(rank, size, sizes, dim, dtype)
    one_each = [made(gather_distributed=True) for made, _ in LOSSES]
    group = [dist.new_group([r]) for r in range(size)][rank]
    for criterion, (made, function) in zip(one_each, LOSSES, strict=True):
        z = torch.randn(2, 1, 3)
        if size == 2:
            assert criterion(*z).isfinite()  # a row on each of two ranks is enough
        alone = made(gather_distributed=True, process_group=group)
        with pytest.raises(ValueError, match="at least 2 rows"):
            alone(*z)
        z = torch.randn(2, 5, 3)
        torch.testing.assert_close(alone(*z), function(*z))


@pytest.mark.parametrize("sizes", [[9], [5, 2], [1, 6, 3]], ids=str)
def test_gradient_is_that_of_one_process(sizes: list[int]) -> None:
    dtype = torch.float32 if len(sizes) == 2 else torch.float64
    processes.run(len(sizes), on_all_ranks, sizes, dtype)
