"""Batch norm over ranks is batch norm of the joined batch, uneven parts included."""

import copy

import processes
import pytest
import torch
import torch.distributed as dist
from tokens import needed
from torch import Tensor, nn

from sslfast import methods, models
from sslfast.data.batch import Batch
from sslfast.methods.base import Context
from sslfast.models.batch_norm import RanksBatchNorm, synchronize_batch_norm


def joined(rows: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same in every process."""
    generator = torch.Generator().manual_seed(4)
    # Off zero, so that the variance between ranks counts.
    return torch.randn(rows, *shape, generator=generator, dtype=dtype) + torch.arange(
        rows, dtype=dtype
    ).view(-1, *[1] * len(shape))


def part(x: Tensor, rank: int, sizes: list[int]) -> Tensor:
    return x.split(sizes)[rank]


def compare_layers(rank: int, size: int, sizes: list[int]) -> None:
    for norm, shape in (
        (nn.BatchNorm2d(3), (3, 4, 5)),
        (nn.BatchNorm1d(6, momentum=None), (6,)),
        (nn.BatchNorm1d(6, affine=False, track_running_stats=False), (6,)),
    ):
        torch.manual_seed(0)
        plain = nn.Sequential(norm).double()
        for p in plain.parameters():
            nn.init.normal_(p)
        ours = copy.deepcopy(plain)
        kept = dict(ours.named_parameters())
        assert synchronize_batch_norm(ours) == 1
        assert synchronize_batch_norm(ours) == 1  # once more changes nothing
        assert isinstance(ours[0], RanksBatchNorm)
        assert all(p is kept[name] for name, p in ours.named_parameters())
        assert list(ours.state_dict()) == list(plain.state_dict())

        whole = joined(sum(sizes), *shape).requires_grad_()
        own = part(whole.detach(), rank, sizes).clone().requires_grad_()
        for _ in range(2):  # running statistics
            expected, found = plain(whole), ours(own)
        torch.testing.assert_close(found, part(expected, rank, sizes))
        expected.pow(3).sum().backward()
        found.pow(3).sum().backward()
        assert whole.grad is not None
        torch.testing.assert_close(own.grad, part(whole.grad, rank, sizes))
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            dist.all_reduce(p.grad)
            torch.testing.assert_close(p.grad, q.grad)
        for name, buffer in ours.named_buffers():
            torch.testing.assert_close(buffer, plain.get_buffer(name))
        if norm.track_running_stats:
            torch.testing.assert_close(ours.eval()(own), part(plain.eval()(whole), rank, sizes))
        half = ours.to(torch.bfloat16).train()(own.detach().bfloat16())
        assert half.dtype == torch.bfloat16


def compare_methods(rank: int, size: int, names: list[str]) -> None:
    sizes = [5, 7]
    for name in names:
        torch.manual_seed(0)
        encoder = models.create("convnet_small", width=8, depth=2)
        method = methods.create(name, encoder, **needed(name)).double()
        other = copy.deepcopy(method)
        if hasattr(method.criterion, "gather_distributed"):
            method.criterion.gather_distributed = False  # what one process does by itself
        views = torch.stack([joined(12, 3, 8, 8), joined(12, 3, 8, 8).flip(-1)])
        expected = method(Batch(tuple(views), torch.arange(12)), Context(0, 0, 1))
        expected["loss"].backward()

        synchronize_batch_norm(other)
        own = Batch(tuple(view.split(sizes)[rank] for view in views), torch.arange(sizes[rank]))
        ctx = Context(0, 0, 1, rank=rank, world_size=size, process_group=dist.group.WORLD)
        loss = other(own, ctx)["loss"]
        # Losses of rows alone are means over this rank's; the trainer's batches are even.
        weight = 1.0 if other.contrastive or name == "mocov2" else sizes[rank] * size / 12
        (loss * weight).backward()
        for (key, p), q in zip(other.named_parameters(), method.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), key
            if p.grad is not None:
                dist.all_reduce(p.grad)
                torch.testing.assert_close(p.grad / size, q.grad, msg=f"{name}: {key}")
        for key, buffer in other.named_buffers():
            torch.testing.assert_close(buffer, method.get_buffer(key), msg=f"{name}: {key}")


@pytest.mark.parametrize("sizes", [[4, 4], [1, 7, 3]])
def test_ranks_normalise_as_one_process(sizes: list[int]) -> None:
    processes.run(len(sizes), compare_layers, sizes)


def test_two_ranks_learn_what_one_process_does() -> None:
    processes.run(2, compare_methods, ["simsiam", "byol", "mocov3", "barlow_twins", "vicreg"])


def test_a_rank_of_images_alone_is_explained() -> None:
    with pytest.raises(ValueError, match=r"takes \[B, C, ...\], got \[3\]"):
        RanksBatchNorm(3)(torch.zeros(3))
