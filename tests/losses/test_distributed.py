"""The loss over all ranks: gradients, averaged as DDP does, are those of one process."""

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import peers
from sslfast.functional import clip, info_nce, ntxent, siglip, supcon
from sslfast.losses import (
    ClipLoss,
    DCLLoss,
    DCLWLoss,
    InfoNCE,
    NTXentLoss,
    SigLipLoss,
    SupConLoss,
    cached,
)


def batches(sizes: list[int], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """The same inputs in every process: those of all ranks."""
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(n, 12, generator=generator, dtype=dtype),
            torch.randn(n, 12, generator=generator, dtype=dtype),
        )
        for n in sizes
    ]


def one_process(sizes: list[int], weight: Tensor, temperature: Tensor) -> Tensor:
    out0, out1 = (
        torch.cat(views) @ weight for views in zip(*batches(sizes, weight.dtype), strict=True)
    )
    return ntxent(out0, out1, temperature)


def compare(rank: int, size: int, sizes: list[int], dtype: torch.dtype, exchange: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 8, dtype=dtype, requires_grad=True)
    truth = one_process(sizes, weight, 0.2)
    (expected,) = torch.autograd.grad(truth, weight)

    views = batches(sizes, dtype)[rank]
    criterion = NTXentLoss(0.2, gather_distributed=True, exchange=exchange)
    loss = criterion(views[0] @ weight, views[1] @ weight)
    loss.backward()
    assert weight.grad is not None
    for local in (loss.detach(), weight.grad):
        dist.all_reduce(local)
        local /= size
    torch.testing.assert_close(loss.detach(), truth.detach())
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-6)


def of_the_batch(x: Tensor, y: Tensor) -> Tensor:
    """Weights that depend on all pairs, through which gradients pass; not symmetric."""
    return (x * (y.mean(0) + x[:, :1])).sum(1).softmax(0) * len(x)


def dcl_over_ranks(rank: int, size: int, sizes: list[int]) -> None:
    views = batches(sizes, torch.float64)
    weight = torch.randn(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weight.requires_grad_()
    for loss in (DCLLoss(0.2), DCLLoss(0.2, of_the_batch), DCLWLoss(0.2, 0.3)):
        truth = loss(*(torch.cat(v) @ weight for v in zip(*views, strict=True)))
        (expected,) = torch.autograd.grad(truth, weight)
        loss.gather_distributed = True
        local = loss(*(view @ weight for view in views[rank]))
        (gradient,) = torch.autograd.grad(local, weight)
        for value, whole in ((local.detach(), truth.detach()), (gradient, expected)):
            dist.all_reduce(value)
            torch.testing.assert_close(value / size, whole)


def all_losses(rank: int, size: int, sizes: list[int], dtype: torch.dtype) -> None:
    for exchange in ("gather", "ring"):
        compare(rank, size, sizes, dtype, exchange)
        clip_over_ranks(rank, size, sizes, local_loss=False, exchange=exchange)
    for dist_impl in ("gather", "bidir"):
        siglip_over_ranks(rank, size, sizes, dist_impl)
    dcl_over_ranks(rank, size, sizes)
    info_nce_over_ranks(rank, size, sizes)
    supcon_over_ranks(rank, size, sizes)


@pytest.mark.parametrize("sizes", [[5, 2], [1, 6, 3], [3, 3, 3, 3]], ids=str)
def test_gradient_is_that_of_one_process(sizes: list[int]) -> None:
    processes.run(
        len(sizes), all_losses, sizes, torch.float64 if len(sizes) == 3 else torch.float32
    )


def learned_temperature(rank: int, size: int) -> None:
    from sslfast.kernels.similarity_softmax import info_nce_from_logits
    from sslfast.kernels.similarity_softmax.ranks import global_ntxent_rows

    sizes = [4, 3]
    weight = torch.randn(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    truth = one_process(sizes, weight, 1 / scale)
    (expected,) = torch.autograd.grad(truth, scale)
    views = batches(sizes, torch.float64)[rank]
    z = nn.functional.normalize(torch.cat(views) @ weight, dim=1)
    lse, positive, factor = global_ntxent_rows(z, scale, None)
    losses = info_nce_from_logits(lse, positive, unit=True)
    (gradient,) = torch.autograd.grad(factor * losses.sum(), scale)
    dist.all_reduce(gradient)
    torch.testing.assert_close(gradient / size, expected)


def with_ddp(rank: int, size: int) -> None:
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    plain = nn.Linear(12, 8)
    model = DistributedDataParallel(nn.Linear(12, 8))
    model.module.load_state_dict(plain.state_dict())
    everything = batches([4, 4], torch.float32)
    for _ in range(3):
        views = everything[rank]
        out0, out1 = model(torch.cat(views)).chunk(2)
        NTXentLoss(0.2, gather_distributed=True)(out0, out1).backward()
        all0, all1 = (torch.cat(v) for v in zip(*everything, strict=True))
        NTXentLoss(0.2)(plain(all0), plain(all1)).backward()
        for ours, truth in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, truth.grad, rtol=1e-4, atol=1e-6)
            with torch.no_grad():
                ours -= 0.1 * ours.grad
                truth -= 0.1 * truth.grad
            ours.grad = truth.grad = None


def cached_with_ddp(rank: int, size: int) -> None:
    """Ranks have different numbers of chunks; a step's first half is accumulated without sync."""
    from torch.nn.parallel import DistributedDataParallel

    def encoder() -> nn.Sequential:
        torch.manual_seed(0)
        layers = [nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 8)]
        return nn.Sequential(*layers).double()

    everything = batches([11, 5], torch.float64)
    loss = NTXentLoss(0.2, gather_distributed=True)
    for options in ({}, {"find_unused_parameters": True}, {"gradient_as_bucket_view": True}):
        plain, model = encoder(), DistributedDataParallel(encoder(), **options)
        for _ in range(2):
            with model.no_sync():
                cached(loss, model, *everything[rank], chunk_size=3).backward()
            cached(loss, model, *everything[rank], chunk_size=3).backward()
            for _ in "ab":
                out0, out1 = (
                    torch.cat([plain(chunk) for pair in everything for chunk in pair[k].split(3)])
                    for k in (0, 1)
                )
                NTXentLoss(0.2)(out0, out1).backward()
            for ours, truth in zip(model.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, truth.grad)
        # Only first passes count: two steps of 8 or 4 chunks, each begun with rank 0's buffers.
        assert model.module[1].num_batches_tracked == 2 * 8 + 2 * (8, 4)[rank]


def shared_bank(rank: int, size: int) -> None:
    torch.manual_seed(0)
    loss = NTXentLoss(0.2, memory_bank_size=(16, 8), gather_distributed=True)
    out0, out1 = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(rank)).unbind()
    loss(out0.requires_grad_(), out1)
    bank = loss.memory_bank.bank
    banks = [torch.empty_like(bank) for _ in range(size)]
    dist.all_gather(banks, bank)
    assert torch.equal(banks[0], banks[1])
    assert loss.memory_bank.bank_ptr.item() == 8
    own = nn.functional.normalize(out1, dim=1)
    torch.testing.assert_close(bank[4 * rank : 4 * rank + 4], own)


class Towers:
    """Two linear towers, their unit features on a rank and of all ranks, and the comparison."""

    def __init__(self, rank: int, sizes: list[int]) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weights = [
            torch.randn(12, 8, dtype=torch.float64, generator=generator).requires_grad_()
            for _ in "it"
        ]
        everything = batches(sizes, torch.float64)
        self.whole = self.features(*(torch.cat(v) for v in zip(*everything, strict=True)))
        self.own = self.features(*everything[rank])

    def features(self, *views: Tensor) -> list[Tensor]:
        pairs = zip(views, self.weights, strict=True)
        return [nn.functional.normalize(view @ weight, dim=1) for view, weight in pairs]

    def compare(self, loss: Tensor, truth: Tensor, size: int, *learned: Tensor) -> None:
        """Values and gradients averaged over ranks, against one process."""
        inputs = [*self.weights, *learned]
        expected = torch.autograd.grad(truth, inputs)
        gradients = torch.autograd.grad(loss, inputs)
        pairs = zip((loss.detach(), *gradients), (truth.detach(), *expected), strict=True)
        for ours, theirs in pairs:
            dist.all_reduce(ours)
            torch.testing.assert_close(ours / size, theirs)


def learnable(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def clip_over_ranks(
    rank: int, size: int, sizes: list[int], local_loss: bool, exchange: str = "gather"
) -> None:
    """Both towers, the scale and the value; a bias cancels."""
    towers, scale, bias = Towers(rank, sizes), learnable(5.0), learnable(0.0)
    truth = clip(*towers.whole, scale)
    criterion = ClipLoss(local_loss=local_loss, rank=rank, world_size=size, exchange=exchange)
    loss = criterion(*towers.own, scale, bias)
    assert torch.autograd.grad(loss, bias, retain_graph=True)[0] == 0
    if not local_loss:
        torch.testing.assert_close(loss.detach(), truth.detach())
    towers.compare(loss, truth, size, scale)


def distill_over_ranks(rank: int, size: int, local_loss: bool) -> None:
    """open_clip's DistillClipLoss over this class: it calls get_logits and get_ground_truth."""
    theirs = peers.load_file("open_clip/loss.py").DistillClipLoss
    methods = {"dist_loss": theirs.dist_loss, "forward": theirs.forward}
    ours = type("DistillClipLoss", (ClipLoss,), methods)
    towers, scale = Towers(rank, [4] * size), learnable(5.0)
    generator = torch.Generator().manual_seed(11)
    teachers = torch.randn(2, 4 * size, 6, dtype=torch.float64, generator=generator)
    own = teachers[:, 4 * rank : 4 * rank + 4]
    clip_truth, truth = theirs()(*towers.whole, scale, *teachers, 3.0)
    contrast, loss = ours(local_loss, rank=rank, world_size=size)(*towers.own, scale, *own, 3.0)
    towers.compare(contrast + 2 * loss, clip_truth + 2 * truth, size, scale)
    if local_loss:
        ragged = Towers(rank, [4 - r for r in range(size)]).own
        with pytest.raises(ValueError, match="takes batches of one size"):
            ours(True, rank=rank, world_size=size).get_logits(*ragged, 2.0)


def siglip_over_ranks(rank: int, size: int, sizes: list[int], dist_impl: str) -> None:
    towers, scale, bias = Towers(rank, sizes), learnable(5.0), learnable(-2.0)
    criterion = SigLipLoss(rank=rank, world_size=size, dist_impl=dist_impl)
    loss = criterion(*towers.own, scale, bias)
    with torch.no_grad():
        torch.testing.assert_close(criterion(*towers.own, scale, bias), loss.detach())
    towers.compare(loss, siglip(*towers.whole, scale, bias), size, scale, bias)


def info_nce_over_ranks(rank: int, size: int, sizes: list[int]) -> None:
    towers = Towers(rank, sizes)
    loss = InfoNCE(0.3, process_group=dist.group.WORLD)(*towers.own)
    towers.compare(loss, info_nce(*towers.whole, temperature=0.3), size)


def supcon_over_ranks(rank: int, size: int, sizes: list[int]) -> None:
    first = sum(sizes[:rank])
    some = torch.randint(4, (sum(sizes),), generator=torch.Generator().manual_seed(5))
    pairs = torch.arange(sum(sizes)) // 2  # on one rank, mostly
    for labels in (some, pairs):
        towers = Towers(rank, sizes)
        own = labels[first : first + sizes[rank]]
        loss = SupConLoss(0.3, process_group=dist.group.WORLD)(towers.own[0] + towers.own[1], own)
        towers.compare(loss, supcon(towers.whole[0] + towers.whole[1], labels, 0.3), size)


def a_group_of_one(rank: int) -> None:
    """A process group smaller than the world: ranks within it are not those of the world."""
    groups = [dist.new_group([r]) for r in range(2)]
    out0, out1 = torch.randn(2, 5, 4)
    for exchange in ("gather", "ring"):
        features = Towers(0, [5])
        loss = ClipLoss(rank=0, world_size=1, process_group=groups[rank], exchange=exchange)
        torch.testing.assert_close(loss(*features.own, 2.0), clip(*features.own, 2.0))
    torch.testing.assert_close(
        InfoNCE(0.2, process_group=groups[rank])(out0, out1), info_nce(out0, out1, None, 0.2)
    )


def two_ranks(rank: int, size: int) -> None:
    compare(rank, size, [5, 5], torch.float32, "gather")
    learned_temperature(rank, size)
    with_ddp(rank, size)
    shared_bank(rank, size)
    cached_with_ddp(rank, size)
    for local_loss in (False, True):
        clip_over_ranks(rank, size, [5, 2], local_loss)
        distill_over_ranks(rank, size, local_loss)
    with pytest.raises(ValueError, match="made for rank 1 of 3"):
        ClipLoss(rank=1, world_size=3)(*torch.randn(2, 4, 3), 1.0)
    with pytest.raises(ValueError, match="leave negative_keys out"):
        InfoNCE(process_group=dist.group.WORLD)(*torch.randn(3, 4, 3))
    a_group_of_one(rank)


def test_temperature_ddp_memory_bank_and_clip_on_two_ranks() -> None:
    processes.run(2, two_ranks)


def test_without_a_process_group_nothing_is_gathered() -> None:
    a, b = torch.randn(2, 6, 4).unbind()
    assert torch.equal(NTXentLoss(0.2, gather_distributed=True)(a, b), NTXentLoss(0.2)(a, b))


@pytest.mark.parametrize("kind", [NTXentLoss, DCLLoss, DCLWLoss])
def test_gathering_in_a_torch_without_distributed_is_refused(kind, monkeypatch) -> None:
    """As in lightly."""
    monkeypatch.setattr(dist, "is_available", lambda: False)
    kind(gather_distributed=False)
    with pytest.raises(ValueError, match=r"needs torch\.distributed"):
        kind(gather_distributed=True)


def test_other_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="exchange must be 'gather' or 'ring', got 'tree'"):
        NTXentLoss(exchange="tree")
    with pytest.raises(ValueError, match="dist_impl must be one of"):
        SigLipLoss(dist_impl="tree")
    with pytest.raises(ValueError, match="reduction must be 'mean', got 'sum'"):
        InfoNCE(reduction="sum", process_group=object())
