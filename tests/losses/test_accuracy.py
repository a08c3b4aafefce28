"""Errors against float64 are no larger than those of the best eager form in the same dtype."""

from collections.abc import Callable

import processes
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import sslfast
from sslfast.functional import clip, info_nce, linear_cross_entropy, ntxent, siglip, supcon
from sslfast.losses import ClipLoss, DCLWLoss, NTXentLoss, SupConLoss

Loss = Callable[[Tensor, Tensor, float], Tensor]  # of two views and a temperature


def unit(*views: Tensor) -> list[Tensor]:
    return [F.normalize(view, dim=1) for view in views]


def labels(n: int) -> Tensor:
    return torch.arange(2 * n) % 20


def other_rows(n: int) -> Tensor:
    return ~torch.eye(n, dtype=torch.bool)


def eager_ntxent(a: Tensor, b: Tensor, t: float) -> Tensor:
    z = torch.cat(unit(a, b))
    logits = (z @ z.T / t).masked_fill(~other_rows(len(z)), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))


def eager_decoupled(a: Tensor, b: Tensor, t: float) -> Tensor:
    z = torch.cat(unit(a, b))
    logits = z @ z.T / t
    others = other_rows(len(z))
    negatives = logits.masked_fill(~(others & others.roll(len(a), 0)), -torch.inf)
    positive = logits.diagonal(len(a)).repeat(2)
    return (negatives.logsumexp(1) - positive).mean()


def eager_info_nce(a: Tensor, b: Tensor, t: float) -> Tensor:
    a, b = unit(a, b)
    return F.cross_entropy(a @ b.T / t, torch.arange(len(a)))


def eager_clip(a: Tensor, b: Tensor, t: float) -> Tensor:
    return (eager_info_nce(a, b, t) + eager_info_nce(b, a, t)) / 2


def eager_siglip(a: Tensor, b: Tensor, t: float) -> Tensor:
    a, b = unit(a, b)
    signs = 2 * torch.eye(len(a), dtype=a.dtype) - 1
    return -F.logsigmoid(signs * (a @ b.T / t - 10)).sum() / len(a)


def eager_dclw(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y = unit(a, b)
    with torch.no_grad():
        weight = 2 - len(a) * ((x * y).sum(1) / 0.5).softmax(0)
    positive = (x * y).sum(1) / t
    return eager_decoupled(a, b, t) + (positive * (1 - weight)).mean()


def eager_bank(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y = unit(a, b.detach())
    logits = torch.cat(((x * y).sum(1, keepdim=True), x @ y.roll(1, 1).T), 1) / t
    return F.cross_entropy(logits, torch.zeros(len(a), dtype=torch.int64)) + 0 * b.sum()


def bank(a: Tensor, b: Tensor, t: float) -> Tensor:
    loss = NTXentLoss(t, memory_bank_size=b.shape).to(b.dtype)
    assert loss.memory_bank is not None
    loss.memory_bank.bank.copy_(unit(b.detach())[0].roll(1, 1))
    return loss(a, b.detach()) + 0 * b.sum()


def eager_supcon(a: Tensor, b: Tensor, t: float, ids: Tensor | None = None) -> Tensor:
    z, ids = torch.cat(unit(a, b)), labels(len(a)) if ids is None else ids
    others = other_rows(len(z))
    log_p = (z @ z.T / t).masked_fill(~others, -torch.inf).log_softmax(1)
    same = (ids[:, None] == ids) & others
    return -(log_p.masked_fill(~same, 0).sum(1) / same.sum(1)).mean()


def own_keys(b: Tensor) -> Tensor:
    """For each query three keys of other rows."""
    return torch.stack([b.roll(k, 0) for k in (1, 2, 3)], 1)


def eager_paired(a: Tensor, b: Tensor, t: float) -> Tensor:
    a, b = unit(a, b)
    keys = torch.cat((b[:, None], own_keys(b)), 1)
    logits = torch.einsum("nd,nkd->nk", a, keys) / t
    return F.cross_entropy(logits, torch.zeros(len(a), dtype=torch.int64))


PAIRS: dict[str, tuple[Loss, Loss]] = {
    "ntxent": (ntxent, eager_ntxent),
    "decoupled": (lambda a, b, t: ntxent(a, b, t, decoupled=True), eager_decoupled),
    "info_nce": (lambda a, b, t: info_nce(a, b, temperature=t), eager_info_nce),
    "paired": (
        lambda a, b, t: info_nce(a, b, own_keys(b), t, negative_mode="paired"),
        eager_paired,
    ),
    "clip": (lambda a, b, t: clip(*unit(a, b), 1 / t), eager_clip),
    "siglip": (lambda a, b, t: siglip(*unit(a, b), 1 / t, -10.0), eager_siglip),
    "supcon": (lambda a, b, t: supcon(torch.cat((a, b)), labels(len(a)), t), eager_supcon),
    "linear_cross_entropy": (
        lambda a, b, t: linear_cross_entropy(
            unit(a)[0] / t, unit(b)[0], torch.arange(len(a)), reduction="mean"
        ),
        eager_info_nce,
    ),
}


CONVERGED: dict[str, tuple[Loss, Loss]] = PAIRS | {
    "bank": (bank, eager_bank),
    "dclw": (lambda a, b, t: DCLWLoss(t)(a, b), eager_dclw),
    "supcon of pairs": (
        lambda a, b, t: supcon(torch.cat((a, b)), torch.arange(len(a)).repeat(2), t),
        lambda a, b, t: eager_supcon(a, b, t, torch.arange(len(a)).repeat(2)),
    ),
}


def value_and_gradient(loss: Loss, views: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    leaves = [view.clone().requires_grad_() for view in views]
    value = loss(leaves[0], leaves[1], t)
    return value.detach().double(), torch.cat(torch.autograd.grad(value, leaves)).double()


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
@pytest.mark.parametrize("noise", [5.0, 0.5], ids=["untrained", "trained"])
@pytest.mark.parametrize("name", PAIRS)
def test_errors_are_no_larger_than_those_of_eager(name: str, noise: float, backend: str) -> None:
    ours, eager = PAIRS[name]
    generator = torch.Generator().manual_seed(3)
    for t in (0.01, 0.07, 0.5):
        # Squared errors (value, gradient) of both, over a few batches.
        squares = {ours: torch.zeros(2), eager: torch.zeros(2)}
        rounding = 0.0
        for n in (130, 200, 270, 300):
            centre = torch.randn(n, 48, generator=generator)
            views = [centre + noise * torch.randn(n, 48, generator=generator) for _ in "ab"]
            value, gradient = value_and_gradient(eager, [view.double() for view in views], t)
            rounding += (2**-24 * value.item()) ** 2  # of a result in float32
            for loss, errors in squares.items():
                with sslfast.use_backend(backend):
                    v, g = value_and_gradient(loss, views, t)
                errors += torch.stack(((v - value) ** 2, ((g - gradient) ** 2).sum()))
        # A tenth for luck: both are sums of the same number of roundings. SupCon's positives are
        # sums of rows here and logits there: in torch's own operations a quarter more, as measured.
        luck = 1.3 if (name, backend) == ("supcon", "tiled") else 1.1
        assert squares[ours][0].sqrt() <= luck * squares[eager][0].sqrt() + rounding**0.5, t
        assert squares[ours][1].sqrt() <= luck * squares[eager][1].sqrt(), t


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONVERGED)
def test_converged_pairs(name: str, dtype: torch.dtype, backend: str) -> None:
    """Losses down to 1e-6, which no difference of two logits of 10 to 20 can tell."""
    ours, eager = CONVERGED[name]
    generator = torch.Generator().manual_seed(3)
    for t in (0.05, 0.1):
        squares, rounding = {ours: torch.zeros(2), eager: torch.zeros(2)}, torch.zeros(2)
        for n in range(24, 34, 2):
            centre = torch.randn(n, 48, generator=generator)
            views = [centre + 0.03 * torch.randn(n, 48, generator=generator) for _ in "ab"]
            views = [view.to(dtype) for view in views]
            value, gradient = value_and_gradient(eager, [view.double() for view in views], t)
            size = torch.stack((value.abs(), gradient.norm()))
            rounding += (torch.tensor((2**-24, torch.finfo(dtype).eps / 4)) * size).square()
            for loss, errors in squares.items():
                with sslfast.use_backend(backend):
                    v, g = value_and_gradient(loss, views, t)
                errors += torch.stack(((v - value) ** 2, ((g - gradient) ** 2).sum()))
        # What is lost where two logits are subtracted is a hundred times this, and more.
        allowed = 1.5 * squares[eager].sqrt() + 2 * rounding.sqrt() + 1e-14
        assert (squares[ours].sqrt() <= allowed).all(), t


def over_ranks(rank: int, size: int) -> None:
    """Squared errors of gradients, summed over a few batches, against those of one process."""
    group = dist.group.WORLD
    t = 0.01

    def supcon_of(a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        return SupConLoss(t, process_group=group)(torch.cat((a, b)), ids)

    def clip_of(a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        return ClipLoss(rank=rank, world_size=size)(*unit(a, b), 1 / t)

    def ntxent_of(a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        return NTXentLoss(t, gather_distributed=True)(a, b)

    forms = {"ntxent": ntxent_of, "clip": clip_of, "supcon": supcon_of}
    forms["supcon of pairs"] = supcon_of
    for noise in (5.0, 0.5):
        generator = torch.Generator().manual_seed(4)
        squares = {name: [0.0, 0.0] for name in forms}
        for n in (130, 200, 270):
            centre = torch.randn(n, 48, generator=generator)
            views = [centre + noise * torch.randn(n, 48, generator=generator) for _ in "ab"]
            mine = slice(rank * n // size, (rank + 1) * n // size)
            for name, form in forms.items():
                eager = CONVERGED[name][1]
                truth, plain = (
                    value_and_gradient(eager, [view.to(dtype) for view in views], t)[1]
                    for dtype in (torch.float64, torch.float32)
                )
                leaves = [view.clone().requires_grad_() for view in views]
                ids = torch.arange(n).repeat(2) if "pairs" in name else labels(n)
                ids = ids.view(2, n)[:, mine].flatten()
                form(*(leaf[mine] for leaf in leaves), ids).backward()
                ours = torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None]).double()
                dist.all_reduce(ours)
                for k, found in enumerate((ours / size, plain)):
                    squares[name][k] += (found - truth).square().sum().item()
        for name, (ours_, plain_) in squares.items():
            assert ours_**0.5 <= 1.1 * plain_**0.5, (name, noise)


def test_errors_over_ranks_are_no_larger_than_those_of_eager_in_one_process() -> None:
    processes.run(2, over_ranks)


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
@pytest.mark.parametrize("scale", [1e4, 1e6, 1e8])
def test_logits_of_any_size(scale: float, backend: str) -> None:
    """Columns that are alike share the weight, however large their logits are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 6, generator=generator)
    y = torch.randn(8, 6, generator=generator).repeat(3, 1)
    with sslfast.use_backend(backend):
        gradient = value_and_gradient(lambda a, b, s: clip(a, b, s), [x, y], scale)[1]
    truth = value_and_gradient(lambda a, b, s: clip(a, b, s), [x.double(), y.double()], scale)[1]
    assert (gradient - truth).norm() <= 1e-5 * truth.norm()
