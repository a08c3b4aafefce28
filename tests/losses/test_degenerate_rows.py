"""Rows of zeros, and what fp16 cannot hold: no loss hands back what would end a training run."""

from collections.abc import Callable

import every_loss
import pytest
import torch
from torch import Tensor

from sslfast.functional import info_nce
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
    for gradient in torch.autograd.grad(value, needed):
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
