"""DINO's loss: the formula, lightly's class, the centre, ranks, features and scores, bad input."""

from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import peers
from sslfast.functional import prototype_cross_entropy, sinkhorn
from sslfast.losses import DINOLoss

K = 23


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(shape, dtype=dtype), dim=-1)


def crops(views: int, samples: int = 7, dim: int = 9) -> list[Tensor]:
    return [unit(samples, dim).requires_grad_() for _ in range(views)]


def formula(
    teacher: list[Tensor], student: list[Tensor], temperature: float, center: Tensor
) -> Tensor:
    """Equations 1 and 3 of the paper, pair by pair, of scores."""
    terms = [
        -(((t - center) / temperature).softmax(1) * (s / 0.1).log_softmax(1)).sum(1).mean()
        for k, t in enumerate(teacher)
        for v, s in enumerate(student)
        if k != v
    ]
    return torch.stack(terms).mean()


@pytest.mark.parametrize(("teachers", "students"), [(2, 2), (2, 10), (1, 3), (2, 1)])
def test_formula_and_centre(teachers: int, students: int) -> None:
    criterion, center = DINOLoss(K, 0.03, 0.07, 3).double(), torch.zeros(K, dtype=torch.float64)
    for epoch, temperature in enumerate((0.03, 0.05, 0.07, 0.07)):
        w, v = unit(K, 9).requires_grad_(), unit(K, 9)
        teacher, student = crops(teachers), crops(students)
        scores = [x @ v.T for x in teacher], [x @ w.T for x in student]
        expected = formula(*scores, temperature, center)
        loss = criterion(teacher, student, epoch=epoch, weight=w, teacher_weight=v)
        torch.testing.assert_close(loss, expected)
        inputs = [*student[teachers == 1 :], w]  # the first learns from the second
        torch.testing.assert_close(
            torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs)
        )
        assert all(x.grad is None for x in teacher)
        center = 0.9 * center + 0.1 * torch.cat(scores[0]).mean(0).detach()
        torch.testing.assert_close(criterion.center.flatten(), center)
    assert criterion.center.shape == (1, 1, K)


@pytest.mark.parametrize("features", [False, True])
def test_it_is_lightlys_class(features: bool) -> None:
    theirs = peers.load("lightly.loss").DINOLoss(K, 0.04, 0.07, 4, 0.2, 0.8).double()
    ours = DINOLoss(K, 0.04, 0.07, 4, 0.2, 0.8).double()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for step in range(6):
        w, v, teacher, student = unit(K, 9), unit(K, 9), crops(2), crops(6)
        scores = [x @ v.T for x in teacher], [x @ w.T for x in student]
        given: dict[str, Any] = {"epoch": step} if step < 5 else {"teacher_temp": 0.5}
        expected = theirs(*scores, **given)
        if features:
            loss = ours(teacher, student, weight=w, teacher_weight=v, **given)
        else:
            loss = ours(*scores, **given)
        # Their schedule of temperatures is in float32.
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(
            torch.autograd.grad(loss, student, retain_graph=True),
            torch.autograd.grad(expected, student),
            rtol=1e-5,
            atol=1e-7,
        )
        torch.testing.assert_close(ours.center, theirs.center)


def test_scores_of_16_bits_are_summed_in_float32() -> None:
    teacher, student = ([x.detach() @ unit(K, 9).T for x in crops(2)] for _ in "ts")
    exact = DINOLoss(K).double()([x.bfloat16().double() for x in teacher], student)
    loss = DINOLoss(K)([x.bfloat16() for x in teacher], [x.float() for x in student])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)


def test_the_centre_stays_outside_of_training() -> None:
    criterion = DINOLoss(K).eval()
    views = [torch.randn(4, K) for _ in range(2)]
    with torch.no_grad():
        criterion(views, views)
    assert not criterion.center.any()


def test_sinkhorn_in_the_place_of_the_centre() -> None:
    criterion, w, v = DINOLoss(K, center_mode="sinkhorn").double(), unit(K, 9), unit(K, 9)
    teacher, student = crops(2), crops(5)
    found = criterion.parts(teacher, student, 0.3, weight=w, teacher_weight=v)
    rows = torch.cat(teacher).detach()
    bias = sinkhorn(rows, v, temperature=0.3)
    expected = DINOLoss(K).double()
    expected.center.copy_(-0.3 * bias)
    torch.testing.assert_close(
        found.loss, expected(teacher, student, 0.3, weight=w, teacher_weight=v)
    )
    assert not criterion.center.any()
    torch.testing.assert_close(found.usage, (rows @ v.T / 0.3 + bias).softmax(1).mean(0))
    with pytest.raises(ValueError, match="takes features, and their prototypes as weight"):
        criterion([x @ v.T for x in teacher], [x @ w.T for x in student])


def test_statistics_of_the_teacher() -> None:
    criterion, w, v, teacher = DINOLoss(K).double(), unit(K, 9), unit(K, 9), crops(2)
    student = crops(5)
    scores = [x.detach() @ v.T for x in teacher], [x.detach() @ w.T for x in student]
    of_features = criterion.eval().parts(teacher, student, weight=w, teacher_weight=v)
    for ours, other in zip(of_features, criterion.parts(*scores), strict=True):
        torch.testing.assert_close(ours, other)
    q = (torch.stack(scores[0]) / 0.04).softmax(-1)
    torch.testing.assert_close(of_features.entropy, torch.special.entr(q).sum(-1))
    torch.testing.assert_close(of_features.usage, q.mean((0, 1)))


def test_masked_patches_with_weights() -> None:
    # iBOT: each masked patch weighs 1 / (masked patches of its image), one view of each side.
    student, teacher, w, v = unit(12, 9).requires_grad_(), unit(12, 9), unit(K, 9), unit(K, 9)
    image = torch.tensor([0] * 5 + [1] * 7)
    weight = 1 / image.bincount()[image].double() / 2
    p, q = (student @ w.T / 0.1).log_softmax(1), (teacher @ v.T / 0.05).softmax(1)
    each = -(q * p).sum(1)
    expected = torch.stack([each[image == k].mean() for k in (0, 1)]).mean()
    given: dict[str, Any] = {"teacher_temperature": torch.tensor(0.05)}
    loss = prototype_cross_entropy(student, teacher, w, v, row_weight=weight, **given)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    found = prototype_cross_entropy(student, teacher, w, v, reduction="none", **given)
    torch.testing.assert_close(found, each, rtol=1e-6, atol=1e-7)
    (d_rows,) = torch.autograd.grad(found @ weight, student)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], d_rows)
    total = prototype_cross_entropy(student, teacher, w, v, reduction="sum", **given)
    torch.testing.assert_close(total, each.sum(), rtol=1e-6, atol=1e-6)


def on_all_ranks(rank: int, size: int, sizes: list[int]) -> None:
    torch.manual_seed(3)
    w, v = unit(K, 9), unit(K, 9)
    everything = [[unit(n, 9) + r for _ in range(6)] for r, n in enumerate(sizes)]
    whole = [torch.cat(view) for view in zip(*everything, strict=True)]
    mine = DINOLoss(K).double()
    alone = dist.new_group([0])  # as all ranks must call it
    reference = DINOLoss(K, process_group=alone).double()
    given: dict[str, Any] = {"teacher_weight": v}
    for _ in range(2):
        leaf, truth = w.clone().requires_grad_(), w.clone().requires_grad_()
        views = everything[rank]
        loss = mine(views[:2], views[2:], weight=leaf, **given)
        loss.backward()
        gradient = leaf.grad
        assert gradient is not None
        for part in (total := loss.detach().clone(), gradient):
            dist.all_reduce(part)
        if rank == 0:
            expected = reference(whole[:2], whole[2:], weight=truth, **given)
            expected.backward()
            torch.testing.assert_close(total / size, expected.detach())
            torch.testing.assert_close(gradient / size, truth.grad)
            torch.testing.assert_close(mine.center, reference.center)


@pytest.mark.parametrize("sizes", [[9], [5, 2], [1, 6, 3]], ids=str)
def test_averages_of_ranks_are_what_one_process_has(sizes: list[int]) -> None:
    processes.run(len(sizes), on_all_ranks, sizes)


def test_compile_fullgraph() -> None:
    criterion, weight = DINOLoss(K), unit(K, 9, dtype=torch.float32)
    views = [x.detach().float().requires_grad_(k > 1) for k, x in enumerate(crops(5))]

    def loss() -> Tensor:
        value: Tensor = criterion(views[:2], views[2:], weight=weight)
        return value

    eager, center = loss(), criterion.center.clone()
    criterion.center.zero_()
    compiled = torch.compile(loss, fullgraph=True)()
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(criterion.center, center)
    torch.testing.assert_close(
        torch.autograd.grad(compiled, views[2:]), torch.autograd.grad(eager, views[2:])
    )


def test_bad_input() -> None:
    views, w = [torch.randn(4, 8) for _ in range(2)], torch.randn(K, 8)
    criterion = DINOLoss(K)
    with pytest.raises(ValueError, match="made for output_dim=23 prototypes, got 8: make it with"):
        criterion(views, views)
    with pytest.raises(ValueError, match="other views, and there are none: got 1 of the teacher"):
        criterion(views[:1], views[:1], weight=w)
    with pytest.raises(ValueError, match="student_out has no views"):
        criterion(views, [], weight=w)
    with pytest.raises(TypeError, match=r"teacher_out must be a list of views"):
        criterion(views[0], views, weight=w)
    with pytest.raises(
        ValueError, match=r"teacher_out\[0\] and teacher_out\[1\] must have the sam"
    ):
        criterion([views[0], views[0][:3]], views, weight=w)
    with pytest.raises(ValueError, match="views of the same samples, got 4 and 3"):
        criterion([v[:3] for v in views], views, weight=w)
    with pytest.raises(ValueError, match="temperature must be at least"):
        criterion(views, views, 0.0, weight=w)
    with pytest.raises(ValueError, match="student_temp must be more than 0"):
        DINOLoss(K, student_temp=0.0)
    with pytest.raises(ValueError, match="must have the same last dimension"):
        prototype_cross_entropy(views[0], views[1], torch.randn(K, 7))
    with pytest.raises(ValueError, match="must have the same prototypes, got 23 and 22"):
        prototype_cross_entropy(*views, w, w[1:])
    with pytest.raises(ValueError, match=r"pairs must have shape \[1, 1\]"):
        prototype_cross_entropy(*views, w, pairs=torch.ones(2, 1))
    with pytest.raises(ValueError, match="row_weight the loss is the weighted sum"):
        prototype_cross_entropy(*views, w, row_weight=torch.ones(4), reduction="none")
    with pytest.raises(TypeError, match="weight must be a floating-point tensor, got"):
        prototype_cross_entropy(*views, torch.ones(K, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"teacher is empty: shape \[0, 8\]"):
        prototype_cross_entropy(views[0], views[1][:0], w)
