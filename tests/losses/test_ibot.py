"""iBOT's loss of masked patches: the formula, lightly's class, no masks, ranks, bad input."""

from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import peers
from sslfast.losses import IBOTPatchLoss

K = 19


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(shape, dtype=torch.float64), dim=-1)


def masked(images: int = 5) -> Tensor:
    mask = torch.rand(images, 3, 4) < 0.4
    mask[1] = False  # an image that is whole
    mask[0, 0, 0] = True
    return mask


@pytest.mark.parametrize("features", [False, True])
def test_formula_and_lightlys_class(features: bool) -> None:
    theirs = peers.load("lightly.loss").IBOTPatchLoss(K, 0.05, 0.2, center_momentum=0.8).double()
    ours = IBOTPatchLoss(K, 0.05, 0.2, center_momentum=0.8).double()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for step in range(3):
        mask, w, v = masked(), unit(K, 8).requires_grad_(), unit(K, 8)
        n = int(mask.sum())
        teacher, student = unit(n, 8), unit(n, 8).requires_grad_()
        scores = teacher @ v.T, student @ w.T
        center, temperature = ours.center.center.clone(), 0.05 if step < 2 else 0.5
        given: dict[str, Any] = {} if step < 2 else {"teacher_temp": temperature}
        expected = theirs(*scores, mask, **given)
        if features:
            loss = ours(teacher, student, mask, weight=w, teacher_weight=v, **given)
        else:
            loss = ours(*scores, mask, **given)
        each = -((scores[0] - center) / temperature).softmax(1) * (scores[1] / 0.2).log_softmax(1)
        of = torch.arange(5).repeat_interleave(mask.flatten(1).sum(1))
        means = [each[of == k].sum(1).mean() for k in of.unique()]
        torch.testing.assert_close(loss, torch.stack(means).sum() / 5)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)
        found = [torch.autograd.grad(x, (student, w), retain_graph=True) for x in (loss, expected)]
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(ours.center.center, theirs.center.center)


def test_nothing_masked_is_no_loss_and_leaves_the_centre() -> None:
    criterion, w = IBOTPatchLoss(K).double(), unit(K, 8).requires_grad_()
    criterion.center.center += 1
    student = unit(0, 8).requires_grad_()
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    loss = criterion(unit(0, 8), student, nothing, weight=w)
    loss.backward()
    assert loss == 0
    assert criterion.center.center.eq(1).all()


def on_all_ranks(rank: int, size: int, sizes: list[int]) -> None:
    torch.manual_seed(3)
    w, v = unit(K, 8), unit(K, 8)
    masks = [torch.rand(images, 6) < 0.5 for images in sizes]
    masks[-1][:] = size == 1  # the last rank has nothing masked
    rows = [(unit(int(m.sum()), 8), unit(int(m.sum()), 8)) for m in masks]
    leaf, truth = w.clone().requires_grad_(), w.clone().requires_grad_()
    criterion = IBOTPatchLoss(K).double()
    loss = criterion(*rows[rank], masks[rank], weight=leaf, teacher_weight=v)
    loss.backward()
    gradient = torch.zeros_like(w) if leaf.grad is None else leaf.grad
    for part in (total := loss.detach().clone(), gradient):
        dist.all_reduce(part)
    alone = dist.new_group([0])  # as all ranks must call it
    if rank == 0:
        reference = IBOTPatchLoss(K, process_group=alone).double()
        teacher, student = (torch.cat(side) for side in zip(*rows, strict=True))
        expected = reference(teacher, student, torch.cat(masks), weight=truth, teacher_weight=v)
        expected.backward()
        torch.testing.assert_close(total / size, expected.detach())
        torch.testing.assert_close(gradient / size, truth.grad)
        torch.testing.assert_close(criterion.center.center, reference.center.center)


@pytest.mark.parametrize("sizes", [[4], [5, 2], [1, 6, 3]], ids=str)
def test_averages_of_ranks_are_what_one_process_has(sizes: list[int]) -> None:
    processes.run(len(sizes), on_all_ranks, sizes)


def test_bad_input() -> None:
    criterion, rows, w = IBOTPatchLoss(K), torch.randn(4, 8), torch.randn(K, 8)
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(TypeError, match="mask must be bool"):
        criterion(rows, rows, mask.int(), weight=w)
    with pytest.raises(
        ValueError, match=r"mask must have shape \[B, H, W\] or \[B, L\], got \[4\]"
    ):
        criterion(rows, rows, mask.flatten(), weight=w)
    with pytest.raises(ValueError, match="mask hides 2 patches, but student_out has 4 rows"):
        criterion(rows, rows, mask[:1], weight=w)
    with pytest.raises(ValueError, match="made for output_dim=19 prototypes, got 8"):
        criterion(rows, rows, mask)
    with pytest.raises(ValueError, match="views of the same samples, got 4 and 3"):
        criterion(rows[:3], rows, mask, weight=w)
