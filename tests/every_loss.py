"""A step of every loss class on random inputs, for tests that hold for all of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast import losses

Made = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


class WithPrototypes(nn.Module):
    """A loss that takes prototypes, of which there are a few."""

    def __init__(self, loss: nn.Module, prototypes: int, dim: int) -> None:
        super().__init__()
        self.loss = loss.eval()  # centres stay
        torch.manual_seed(6)
        self.weight = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))


class Crops(WithPrototypes):
    """DINO's loss of two views of the student and two of the teacher."""

    def forward(self, *views: Tensor) -> Tensor:
        """The loss of features [N, D]."""
        value: Tensor = self.loss(views[2:], views[:2], weight=self.weight)
        return value


class Codes(WithPrototypes):
    """SwAV's loss of two large views and small ones."""

    def forward(self, *views: Tensor) -> Tensor:
        """The loss of features [N, D]."""
        value: Tensor = self.loss(views[:2], views[2:], weight=self.weight)
        return value


class Anchors(WithPrototypes):
    """MSN's loss of one view of the student and one of the teacher."""

    def forward(self, anchors: Tensor, targets: Tensor) -> Tensor:
        """The loss of features [N, D]."""
        value: Tensor = self.loss(anchors, targets, self.weight.to(anchors.dtype))
        return value


class Patches(WithPrototypes):
    """iBOT's loss of patches that are all masked, two images of them."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of features [N, D]."""
        weight = torch.full((len(student),), 2.0 / len(student), device=student.device)
        return self.loss.parts(teacher, student, weight, 2, weight=self.weight).loss


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

    def of_prototypes(
        module: type[WithPrototypes], loss: nn.Module, learned: int, targets: int = 0
    ) -> tuple[nn.Module, tuple[Tensor, ...]]:
        given = features(learned + targets)
        detached = (x.detach() for x in given[learned:])
        return module(loss, n + 3, d).to(device), (*given[:learned], *detached)

    prefixes = losses.MatryoshkaLoss(losses.InfoNCE(), [d // 2, d])
    return {
        "BarlowTwinsLoss": lambda: (losses.BarlowTwinsLoss(), features(2)),
        "ClipLoss": lambda: (losses.ClipLoss(), features(2) + numbers(10.0)),
        "DCLLoss": lambda: (losses.DCLLoss(), features(2)),
        "DCLWLoss": lambda: (losses.DCLWLoss(), features(2)),
        "DINOLoss": lambda: of_prototypes(Crops, losses.DINOLoss(n + 3), 2, 2),
        "IBOTPatchLoss": lambda: of_prototypes(Patches, losses.IBOTPatchLoss(n + 3), 1, 1),
        "InfoNCE": lambda: (losses.InfoNCE(), features(2)),
        "InfoNCE with negatives": lambda: (losses.InfoNCE(), features(3)),
        "KoLeoLoss": lambda: (losses.KoLeoLoss(), features(1)),
        "LeJEPALoss": lambda: (Views(losses.LeJEPALoss().to(device)), features(2)),
        "LinearCrossEntropyLoss": lambda: (
            losses.LinearCrossEntropyLoss(),
            (*features(2), classes(n)),
        ),
        "MatryoshkaLoss": lambda: (prefixes, features(2)),
        "MSNLoss": lambda: of_prototypes(Anchors, losses.MSNLoss(), 1, 1),
        "NegativeCosineSimilarity": lambda: (losses.NegativeCosineSimilarity(), features(2)),
        "NTXentLoss": lambda: (losses.NTXentLoss(0.1), features(2)),
        "NTXentLoss with a queue": queue,
        "SIGReg": lambda: (losses.SIGReg().to(device), features(1)),
        "SigLipLoss": lambda: (losses.SigLipLoss(), features(2) + numbers(10.0, -10.0)),
        "SupConLoss": lambda: (losses.SupConLoss(), (*features(1), classes(7))),
        "SwaVLoss": lambda: of_prototypes(Codes, losses.SwaVLoss(), 3),
        "VICRegLoss": lambda: (losses.VICRegLoss(), features(2)),
    }


def step(made: Made) -> list[Tensor]:
    """The loss, and the gradients of all inputs that need one."""
    loss, inputs = made()
    value = loss(*inputs)
    needed = [x for x in inputs if x.requires_grad]
    return [value.detach(), *torch.autograd.grad(value, needed)]
