"""A step of every loss class on random inputs, for tests that hold for all of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast import losses

Made = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


class Views(nn.Module):
    """LeJEPA's loss of two views, one global and one local."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.inner = loss

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        value: Tensor = self.inner(global_proj=first[None], local_proj=second[None])
        return value


def steps(n: int, d: int, device: str, dtype: torch.dtype) -> dict[str, Made]:
    """By name: a function that makes the loss and its inputs anew, always the same."""

    def features(count: int) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        made = (F.normalize(torch.randn(n, d, device=device), dim=1) for _ in range(count))
        return tuple(x.to(dtype).requires_grad_() for x in made)

    def numbers(*values: float) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(v, device=device, requires_grad=True) for v in values)

    def queue() -> tuple[nn.Module, tuple[Tensor, ...]]:
        query, key = features(2)
        return losses.NTXentLoss(0.1, memory_bank_size=(3 * n, d)).to(device), (query, key.detach())

    def classes(count: int) -> Tensor:
        return torch.arange(n, device=device).flip(0) * 7 % count

    prefixes = losses.MatryoshkaLoss(losses.InfoNCE(), [d // 2, d])
    return {
        "BarlowTwinsLoss": lambda: (losses.BarlowTwinsLoss(), features(2)),
        "ClipLoss": lambda: (losses.ClipLoss(), features(2) + numbers(10.0)),
        "DCLLoss": lambda: (losses.DCLLoss(), features(2)),
        "DCLWLoss": lambda: (losses.DCLWLoss(), features(2)),
        "InfoNCE": lambda: (losses.InfoNCE(), features(2)),
        "InfoNCE with negatives": lambda: (losses.InfoNCE(), features(3)),
        "LeJEPALoss": lambda: (Views(losses.LeJEPALoss().to(device)), features(2)),
        "LinearCrossEntropyLoss": lambda: (
            losses.LinearCrossEntropyLoss(),
            (*features(2), classes(n)),
        ),
        "MatryoshkaLoss": lambda: (prefixes, features(2)),
        "NegativeCosineSimilarity": lambda: (losses.NegativeCosineSimilarity(), features(2)),
        "NTXentLoss": lambda: (losses.NTXentLoss(0.1), features(2)),
        "NTXentLoss with a queue": queue,
        "SIGReg": lambda: (losses.SIGReg().to(device), features(1)),
        "SigLipLoss": lambda: (losses.SigLipLoss(), features(2) + numbers(10.0, -10.0)),
        "SupConLoss": lambda: (losses.SupConLoss(), (*features(1), classes(7))),
        "VICRegLoss": lambda: (losses.VICRegLoss(), features(2)),
    }


def step(made: Made) -> list[Tensor]:
    """The loss, and the gradients of all inputs that need one."""
    loss, inputs = made()
    value = loss(*inputs)
    needed = [x for x in inputs if x.requires_grad]
    return [value.detach(), *torch.autograd.grad(value, needed)]
