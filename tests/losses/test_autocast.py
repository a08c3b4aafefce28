"""Two towers of different dtypes, as autocast leaves them: float32 and half precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import peers
from sslfast import losses
from sslfast.functional import clip, info_nce

lightly = peers.load("lightly.loss.ntx_ent_loss")
open_clip = peers.load_file("open_clip/loss.py")

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "NTXentLoss": losses.NTXentLoss(0.1),
    "a bank": lambda a, b: losses.NTXentLoss(0.1, (16, 8))(a.detach(), b) + 0 * a.sum(),
    "DCLWLoss": losses.DCLWLoss(0.1),
    "InfoNCE": losses.InfoNCE(),
    "unpaired": lambda a, b: info_nce(a, a.roll(1, 0), b.roll(2, 0)),
    "each row": lambda a, b: info_nce(a, b, b.roll(2, 0), reduction="none").sum(),
    "ClipLoss": lambda a, b: losses.ClipLoss()(a, b, 3.0),
    "hard negatives": lambda a, b: losses.ClipLoss()(a, a.roll(1, 0), 3.0, negatives=b),
    "in batch": lambda a, b: info_nce(a, a.roll(1, 0), b, in_batch=True),
    "BarlowTwinsLoss": losses.BarlowTwinsLoss(),
    "VICRegLoss": losses.VICRegLoss(),
    "SigLipLoss": lambda a, b: losses.SigLipLoss()(a, b, 3.0, -2.0),
}


def result(loss: Callable[[Tensor, Tensor], Tensor], *inputs: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    leaves = [x.detach().requires_grad_() for x in inputs]
    value = loss(*leaves)
    gradients = torch.autograd.grad(value, leaves)
    assert [g.dtype for g in gradients] == [x.dtype for x in inputs]
    return [value, *(g.float() for g in gradients)]


@pytest.mark.parametrize("name", LOSSES)
def test_two_dtypes_are_cast_to_autocasts(name: str) -> None:
    a, b = torch.randn(12, 8), torch.randn(12, 8, dtype=torch.bfloat16)
    loss = LOSSES[name]
    with torch.autocast("cpu", torch.bfloat16):
        for given in ((a, b), (b, a)):
            expected = result(loss, *(x.bfloat16() for x in given))
            for found, other in zip(result(loss, *given), expected, strict=True):
                torch.testing.assert_close(found, other, rtol=1e-2, atol=1e-3)
        with pytest.raises(ValueError, match=r"torch.float64, but .* is torch.bfloat16"):
            loss(a.double(), b)
    with pytest.raises(ValueError, match=r"is torch.float32, but .* is torch.bfloat16"):
        loss(a, b)


@pytest.mark.parametrize("options", [{}, {"group_ids": torch.arange(12) // 2}])
def test_hard_negatives_are_cast_with_the_towers(options: dict[str, Tensor]) -> None:
    a, b, extra = torch.randn(12, 8), torch.randn(12, 8), torch.randn(5, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = clip(a, b, 3.0, negatives=extra, **options)
        assert torch.equal(mixed, clip(a.bfloat16(), b.bfloat16(), 3.0, negatives=extra, **options))


def test_peers_give_the_same_there() -> None:
    a, b = torch.randn(12, 8), torch.randn(12, 8, dtype=torch.bfloat16)
    pairs = [
        (losses.NTXentLoss(0.5), lightly.NTXentLoss(0.5)),
        (LOSSES["ClipLoss"], lambda a, b: open_clip.ClipLoss()(a, b, 3.0)),
    ]
    for ours, theirs in pairs:
        with torch.autocast("cpu", torch.bfloat16):
            found, truth = ours(a, b), theirs(a, b)
        torch.testing.assert_close(found.float(), truth.float(), rtol=2e-2, atol=0)
