"""A step of every loss class on random inputs, for tests that hold for all of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast import losses

Made = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


class Crops(nn.Module):
    """DINO's loss of two views of the teacher and two of the student, with few prototypes."""

    def __init__(self, prototypes: int, dim: int) -> None:
        super().__init__()
        self.loss = losses.DINOLoss(prototypes).eval()
        torch.manual_seed(6)
        self.weight = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))

    def forward(self, *views: Tensor) -> Tensor:
        """The loss of features [N, D]."""
        value: Tensor = self.loss(views[:2], views[2:], weight=self.weight)
        return value


class Patches(nn.Module):
    """iBOT's loss of patches that are all masked, two images of them, with few prototypes."""

    def __init__(self, patches: int, dim: int) -> None:
        super().__init__()
        self.loss = losses.IBOTPatchLoss(patches + 3).eval()
        torch.manual_seed(6)
        self.weight = nn.Parameter(F.normalize(torch.randn(patches + 3, dim), dim=1))
        self.register_buffer("row_weight", torch.full((patches,), 2.0 / patches))

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The loss of features [N, D]."""
        return self.loss.parts(teacher, student, self.row_weight, 2, weight=self.weight).loss


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

    def crops() -> tuple[nn.Module, tuple[Tensor, ...]]:
        first, second, *student = features(4)
        return Crops(n + 3, d).to(device), (first.detach(), second.detach(), *student)

    def patches() -> tuple[nn.Module, tuple[Tensor, ...]]:
        teacher, student = features(2)
        return Patches(n, d).to(device), (teacher.detach(), student)

    prefixes = losses.MatryoshkaLoss(losses.InfoNCE(), [d // 2, d])
    return {
        "BarlowTwinsLoss": lambda: (losses.BarlowTwinsLoss(), features(2)),
        "ClipLoss": lambda: (losses.ClipLoss(), features(2) + numbers(10.0)),
        "DCLLoss": lambda: (losses.DCLLoss(), features(2)),
        "DCLWLoss": lambda: (losses.DCLWLoss(), features(2)),
        "DINOLoss": crops,
        "IBOTPatchLoss": patches,
        "InfoNCE": lambda: (losses.InfoNCE(), features(2)),
        "InfoNCE with negatives": lambda: (losses.InfoNCE(), features(3)),
        "KoLeoLoss": lambda: (losses.KoLeoLoss(), features(1)),
        "LinearCrossEntropyLoss": lambda: (
            losses.LinearCrossEntropyLoss(),
            (*features(2), classes(n)),
        ),
        "MatryoshkaLoss": lambda: (prefixes, features(2)),
        "NegativeCosineSimilarity": lambda: (losses.NegativeCosineSimilarity(), features(2)),
        "NTXentLoss": lambda: (losses.NTXentLoss(0.1), features(2)),
        "NTXentLoss with a queue": queue,
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
