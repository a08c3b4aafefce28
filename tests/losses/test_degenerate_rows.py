"""Rows of zeros, scales beyond fp16, infinite logits: a run survives, or is told, as eagerly."""

from collections.abc import Callable

import every_loss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from sslfast.functional import clip, info_nce, linear_cross_entropy, ntxent, siglip
from sslfast.losses import ClipLoss, InfoNCE, MatryoshkaLoss, NTXentLoss


def steps(dtype: torch.dtype) -> dict[str, every_loss.Made]:
    found = every_loss.steps(12, 8, "cpu", dtype)
    two = found["DCLLoss"]
    prefixes = MatryoshkaLoss(ClipLoss(), [4, 8], normalize=True)

    def paired() -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
        query, key = two()[1]
        others = torch.stack((key.roll(1, 0), key.roll(2, 0)), 1)
        return InfoNCE(negative_mode="paired"), (query, key, others)

    more = {"a normalised prefix": lambda: (prefixes, (*two()[1], 10.0)), "paired": paired}
    return found | more


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", list(steps(torch.float32)))
def test_short_rows_have_a_bounded_gradient(name: str, dtype: torch.dtype) -> None:
    """Theirs would be what comes from above times 1e12, as F.normalize has it."""
    loss, (first, *others) = steps(dtype)[name]()
    first = first.detach().clone()
    first[3], first[5] = 0, 1e-14 * first[5]  # 0 too, in fp16
    given = [x.detach() if isinstance(x, Tensor) else x for x in (first, *others)]
    needed = [x.requires_grad_() for x in given if getattr(x, "dtype", None) == dtype]
    value = loss(*given)
    assert value.isfinite()
    of_first, *more = torch.autograd.grad(value, needed, allow_unused=True)
    for gradient in (of_first, *(g for g in more if g is not None)):  # a teacher has none
        assert gradient.abs().max() < 100
        assert gradient.any()


def signs(n: int) -> Tensor:
    """Unit vectors of 16 numbers that fp16 holds exactly, as it does their cosines."""
    return torch.where(torch.rand(n, 16) < 0.5, -0.25, 0.25)


def in_batch(query: Tensor, key: Tensor, _: Tensor, temperature: float | Tensor) -> Tensor:
    return info_nce(query, key, temperature=temperature)


def unpaired(query: Tensor, key: Tensor, negatives: Tensor, t: float | Tensor) -> Tensor:
    return info_nce(query, key, negatives, t)


def bank(query: Tensor, key: Tensor, negatives: Tensor, temperature: float | Tensor) -> Tensor:
    loss = NTXentLoss(0.1, negatives.shape)
    loss.temperature = temperature  # type: ignore[assignment]
    assert loss.memory_bank is not None
    loss.memory_bank.bank.copy_(negatives.detach())
    return loss(query, key)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("loss", [in_batch, unpaired, bank])
def test_fp16_at_scales_beyond_its_numbers(loss: Callable[..., Tensor], learned: bool) -> None:
    t = 2.0**-17
    given = [signs(n) for n in (24, 24, 40)]
    given[1] = torch.where(torch.arange(24)[:, None] % 2 == 0, given[0], given[1])

    def result(dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in given]
        temperature = torch.tensor(t, requires_grad=True) if learned else t
        value = loss(*leaves, temperature)
        needed = leaves[:2] + ([temperature] if isinstance(temperature, Tensor) else [])
        return [x.double() for x in (value, *torch.autograd.grad(value, needed))]

    for found, truth in zip(result(torch.float16), result(torch.float64), strict=True):
        assert truth.any()
        torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-3 * truth.abs().max().item())


INF = torch.inf
# Features of one number each, rows and columns, whose products are the logits.
INFINITE = [
    ([INF, 1.0], [1.0, -1.0]),  # the first row: +inf for its positive, -inf for the negative
    ([INF, -INF], [1.0, -1.0]),
    ([-INF, 2.0], [1.0, 1.0]),
    ([1.0, 2.0], [1.0, -INF]),
]


def eager_clip(rows: Tensor, columns: Tensor) -> Tensor:
    logits, targets = rows @ columns.T, torch.arange(len(rows))
    both = (F.cross_entropy(t, targets, reduction="none") for t in (logits, logits.T))
    return sum(both, torch.zeros(())) / 2


def classes(reduction: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    targets = torch.arange(2)
    return (
        lambda x, w: linear_cross_entropy(x, w, targets, reduction=reduction),
        lambda x, w: F.cross_entropy(x @ w.T, targets, reduction=reduction),
    )


def eager_siglip(rows: Tensor, columns: Tensor) -> Tensor:
    return -F.logsigmoid((2 * torch.eye(len(rows)) - 1) * (rows @ columns.T)).sum(1)


def eager_ntxent(out0: Tensor, out1: Tensor) -> Tensor:
    z = torch.cat((out0, out1))
    logits = (z @ z.T).masked_fill(torch.eye(len(z), dtype=torch.bool), -INF)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(out0)), reduction="none")


PAIRS = {
    "clip": (lambda x, y: clip(x, y, 1.0, reduction="none"), eager_clip),
    "linear cross-entropy": classes("none"),
    "its mean": classes("mean"),
    "siglip": (lambda x, y: siglip(x, y, 1.0, 0.0, reduction="none"), eager_siglip),
    "ntxent": (lambda x, y: ntxent(x, y, 1.0, normalize=False, reduction="none"), eager_ntxent),
}


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
@pytest.mark.parametrize("name", PAIRS)
def test_infinite_logits_give_what_eager_gives(name: str, backend: str) -> None:
    """A softmax over +inf is NaN, also where every other logit is -inf."""
    for values in INFINITE:
        results = []
        for loss in PAIRS[name]:
            leaves = [torch.tensor(x)[:, None].requires_grad_() for x in values]
            with sslfast.use_backend(backend):
                found = loss(*leaves)
                gradients = torch.autograd.grad(found.sum(), leaves)
            results.append((found, *(g.where(g.isfinite(), torch.nan) for g in gradients)))
        for value, truth in zip(*results, strict=True):
            torch.testing.assert_close(value, truth, equal_nan=True)
