"""MSN: lightly's class, targets that even out, half precision, ranks, bad input."""

from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import peers
from sslfast.losses import MSNLoss

K, D = 13, 6


def rows(*shape: int) -> Tensor:
    return 3 * torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("views", [1, 4])
def test_it_is_lightlys_class(iterations: int, weight: float, views: int) -> None:
    settings: dict[str, Any] = {"temperature": 0.2, "sinkhorn_iterations": iterations}
    settings["regularization_weight"] = weight
    ours, theirs = MSNLoss(**settings), peers.load("lightly.loss").MSNLoss(**settings)
    inputs = [rows(n, D).requires_grad_() for n in (7 * views, 7, K)]
    losses = [criterion(*inputs, 0.4) for criterion in (ours, theirs)]
    torch.testing.assert_close(*losses)
    learned = inputs[0], inputs[2]  # the targets have no gradient
    found = [torch.autograd.grad(loss, learned) for loss in losses]
    torch.testing.assert_close(*found)
    assert torch.autograd.grad(ours(*inputs), inputs[1], allow_unused=True) == (None,)


def test_targets_use_all_prototypes_alike() -> None:
    anchors, targets, w = rows(40, D) + 2, rows(40, D) + 2, rows(K, D)
    found = MSNLoss(sinkhorn_iterations=200).parts(anchors, targets, w, 1.0)
    torch.testing.assert_close(found.usage, torch.full((K,), 1 / K).double(), rtol=1e-3, atol=0)
    without = MSNLoss(sinkhorn_iterations=0).parts(anchors, targets, w, 1.0)
    assert without.usage.max() > 2 / K


def test_half_precision_at_a_low_temperature() -> None:
    given = [rows(20, D).half(), rows(10, D).half(), rows(K, D).half()]
    criterion = MSNLoss(temperature=0.004)
    exact = criterion(*(x.double() for x in given))
    for x in given:
        x.requires_grad_()
    loss = criterion(*given)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-4)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, given[::2]))


def on_all_ranks(rank: int, size: int, sizes: list[int]) -> None:
    torch.manual_seed(3)
    w = rows(K, D)
    everything = [(rows(3, n, D) + r, rows(n, D) + r) for r, n in enumerate(sizes)]
    anchors, targets = (torch.cat(x, -2) for x in zip(*everything, strict=True))
    leaf, truth = w.clone().requires_grad_(), w.clone().requires_grad_()
    expected = MSNLoss()(anchors.flatten(0, 1), targets, truth)
    expected.backward()
    own, target = everything[rank]
    loss = MSNLoss(gather_distributed=True)(own.flatten(0, 1), target, leaf)
    loss.backward()
    gradient = leaf.grad
    assert gradient is not None
    for part in (total := loss.detach().clone(), gradient):
        dist.all_reduce(part)
    torch.testing.assert_close(total / size, expected.detach())
    torch.testing.assert_close(gradient / size, truth.grad)


@pytest.mark.parametrize("sizes", [[9], [5, 2], [1, 6, 3]], ids=str)
def test_averages_of_ranks_are_what_one_process_has(sizes: list[int]) -> None:
    processes.run(len(sizes), on_all_ranks, sizes)


def test_compile_fullgraph() -> None:
    criterion, (a, t, w) = MSNLoss(), (rows(n, D).float() for n in (8, 4, K))
    leaves = [a.requires_grad_(), w.requires_grad_()]
    compiled = torch.compile(lambda: criterion(a, t, w), fullgraph=True)()
    torch.testing.assert_close(compiled, criterion(a, t, w))
    both = (torch.autograd.grad(x, leaves) for x in (compiled, criterion(a, t, w)))
    torch.testing.assert_close(*both)


def test_bad_input() -> None:
    a, w = torch.randn(6, D), torch.randn(K, D)
    criterion = MSNLoss()
    with pytest.raises(ValueError, match="as many views of every target, got 6 anchors of 4"):
        criterion(a, a[:4], w)
    with pytest.raises(ValueError, match="anchors must be as many views of every target"):
        criterion(a[:3], a, w)
    with pytest.raises(ValueError, match="anchors and prototypes must have the same dimension"):
        criterion(a, a, w[:, 1:])
    with pytest.raises(TypeError, match="targets must hold floating-point"):
        criterion(a, a.int(), w)
    with pytest.raises(ValueError, match="targets is empty"):
        criterion(a, a[:0], w)
    with pytest.raises(ValueError, match="temperature must be at least 1e-8"):
        criterion(a, a, w, 0.0)
    with pytest.raises(ValueError, match="temperature must be more than 0"):
        MSNLoss(temperature=0.0)
    with torch.no_grad():
        a[0, 0] = torch.nan
        assert criterion(a, F.normalize(a), w).isnan()
