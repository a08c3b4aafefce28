"""Losses over all ranks as torch sees them: torch.compile, opcheck, no second derivative."""

import copy
from collections.abc import Callable
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from test_distributed import Towers
from torch import Tensor

from sslfast.kernels.class_sums.ranks import global_class_means
from sslfast.kernels.cross_correlation.ranks import _global_cross_correlation
from sslfast.kernels.exchange import gather_rows
from sslfast.kernels.sigmoid_contrast.ranks import global_sigmoid_contrast
from sslfast.kernels.similarity_softmax.ranks import global_similarity_softmax
from sslfast.losses import (
    BarlowTwinsLoss,
    ClipLoss,
    DCLLoss,
    DCLWLoss,
    InfoNCE,
    MatryoshkaLoss,
    NTXentLoss,
    SigLipLoss,
    SupConLoss,
    VICRegLoss,
)


def every_form(rank: int, size: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Name -> the loss of this rank's features."""
    both = {"rank": rank, "world_size": size}
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    for how, dist_impl in (("gather", "gather"), ("ring", "bidir")):
        options = {"gather_distributed": True, "exchange": how}
        clip_loss, siglip_loss = (
            ClipLoss(**both, exchange=how),
            SigLipLoss(**both, dist_impl=dist_impl),
        )
        forms |= {
            f"ntxent {how}": NTXentLoss(0.2, **options),
            f"dcl {how}": DCLLoss(0.2, **options),
            f"dclw {how}": DCLWLoss(0.2, **options),
            f"clip {how}": lambda x, y, loss=clip_loss: loss(x, y, 2.0),
            f"siglip {how}": lambda x, y, loss=siglip_loss: loss(x, y, 2.0, -1.0),
        }
    forms["barlow_twins"] = BarlowTwinsLoss(gather_distributed=True)
    forms["vicreg"] = VICRegLoss(gather_distributed=True)
    group = dist.group.WORLD
    forms["info_nce"] = InfoNCE(0.3, process_group=group)
    forms["ntxent groups"] = lambda x, y: NTXentLoss(0.2, gather_distributed=True)(
        x, y, ignore_ids=torch.arange(len(x)) // 2
    )
    forms["clip groups"] = lambda x, y: ClipLoss(**both)(
        x, y, 2.0, group_ids=torch.arange(len(x)) // 2
    )
    forms["matryoshka"] = MatryoshkaLoss(NTXentLoss(0.2, gather_distributed=True), (3, 8))
    forms["supcon"] = lambda x, y: SupConLoss(0.3, process_group=group)(
        torch.cat((x, y)), torch.arange(len(x)).repeat(2)
    )
    return forms


def no_second_derivative(rank: int, size: int) -> None:
    for name, form in every_form(rank, size).items():
        towers = Towers(rank, [4, 3])
        weight, loss = towers.weights[0], form(*towers.own)
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        assert gradient.requires_grad, name
        with pytest.raises(RuntimeError, match="this loss has no second derivative"):
            torch.autograd.grad(gradient.square().sum(), weight)
        towers = Towers(rank, [4, 3])
        (plain,) = torch.autograd.grad(form(*towers.own), towers.weights[0])
        assert torch.equal(plain, gradient), name


def test_double_backward_is_refused_by_every_form() -> None:
    processes.run(2, no_second_derivative)


def compiled(rank: int, size: int) -> None:
    """The exchange is within the graph, also of batches that differ between ranks and steps."""
    forms: dict[str, Any] = every_form(rank, size)
    forms["moco"] = NTXentLoss(0.2, memory_bank_size=(16, 8), gather_distributed=True)
    for name, form in forms.items():
        twin = copy.deepcopy(form) if name == "moco" else form  # either has a bank of its own
        made = torch.compile(twin, backend="aot_eager", fullgraph=True)
        for sizes in ([4, 3], [4, 3], [2, 5]):
            results = []
            for loss in (form, made):
                towers = Towers(rank, sizes)
                value = loss(*towers.own)
                results.append((value.detach(), *torch.autograd.grad(value, towers.weights[0])))
            for eager, ours in zip(*results, strict=True):
                torch.testing.assert_close(ours, eager, msg=name)


def test_torch_compile_takes_up_the_exchange() -> None:
    processes.run(2, compiled)


def opchecks(rank: int, size: int) -> None:
    n = 3 + rank

    def unit() -> Tensor:
        return F.normalize(torch.randn(2 * n, 5, dtype=torch.float64), dim=1).requires_grad_()

    scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (4.0, -1.0))
    check = torch.library.opcheck
    for how in ("gather", "ring"):
        check(global_similarity_softmax, (unit(), None, scale, n, False, "", how))
        for both in (True, False):
            check(global_similarity_softmax, (unit(), unit(), scale, 0, both, "", how))
        # AOT dispatch differentiates all outputs; the gradients among these have none of their own.
        check(
            global_sigmoid_contrast,
            (unit(), unit(), scale, bias, "", how, True, True),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )
    sizes = torch.tensor([6, 8])
    check(global_class_means, (unit(), scale, torch.arange(2 * n) % 3, sizes, ""))
    check(gather_rows, (unit(), ""))
    for columns in (5, 40):  # through the matrix, and through gathered rows
        x, y = (torch.randn(n, columns, dtype=torch.float64).requires_grad_() for _ in "xy")
        for given in ((x, y, True, 0.1), (x, None, False, 0.0)):
            check(
                _global_cross_correlation,
                (*given, "", True),
                test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
            )
            made = torch.compile(_global_cross_correlation, backend="aot_eager", fullgraph=True)
            value = made(*given, "", True)[1]
            torch.testing.assert_close(value, _global_cross_correlation(*given, "", True)[1])
    # Whatever the strides of the inputs, results are contiguous, as the fakes say.
    across, other = (unit().T.contiguous().T.detach().requires_grad_() for _ in "xy")
    check(global_similarity_softmax, (across, None, scale, n, False, "", "gather"))
    check(global_similarity_softmax, (across, other, scale, 0, True, "", "ring"))
    check(global_class_means, (across, scale, torch.arange(2 * n) % 3, sizes, ""))


def test_opcheck() -> None:
    processes.run(2, opchecks)
