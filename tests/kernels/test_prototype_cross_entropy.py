"""Cross-entropy between softmaxes over prototypes: backends, opcheck, gradients, threads."""

import pytest
import torch
from torch import Tensor

import sslfast
from sslfast.kernels import registry
from sslfast.kernels.library import NAMESPACE
from sslfast.kernels.prototype_cross_entropy import Problem, Side, Wants, reference
from sslfast.kernels.prototype_cross_entropy.op import prototype_losses, weighted_prototype_loss

OPS = getattr(torch.ops, NAMESPACE)
BOTH = Wants(rows=True, weight=True)

# Triton's interpreter is numpy, which tells of every inf - inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

# S, T, G, D, E, K: DINO's crops; iBOT's patches; one sample, one prototype; ragged, several blocks
SIZES = [
    (10, 2, 37, 20, 12, 300),
    (1, 1, 300, 24, 24, 700),
    (3, 2, 1, 5, 5, 1),
    (7, 3, 19, 33, 17, 1031),
]


def names() -> list[str]:
    asked = Problem("cpu", torch.float32, 4, 4, 9, 8)
    found = [b for b in registry.candidates("prototype_cross_entropy") if b.refusal(asked) is None]
    return [b.name for b in found if b.name != "reference"]


def problem(
    size: tuple[int, ...], dtype: torch.dtype = torch.float32, bias: bool = True
) -> tuple[Side, Side, Tensor, Tensor]:
    """The student, the teacher, weights of pairs, some of them 0, and of rows."""
    s, t, g, d, e, k = size
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    x, y, w, v = (torch.randn(n, dtype=dtype) for n in ((s, g, d), (t, g, e), (k, d), (k, e)))
    student = Side(x, w, torch.tensor(2.0 / d**0.5, dtype=acc))
    shift = 3 * torch.randn(t, k, dtype=acc) if bias else None
    teacher = Side(y, v, torch.tensor(7.0 / e**0.5, dtype=acc), shift)
    pairs = torch.rand(s, t, dtype=acc)
    pairs[0, 0] = 0.0
    return student, teacher, pairs, torch.randn(s, g, dtype=acc)


def wide(side: Side) -> Side:
    bias = None if side.bias is None else side.bias.double()
    return Side(side.rows.double(), side.weight.double(), side.scale.double(), bias)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_against_the_oracle(name: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    student, teacher, pairs, upstream = problem(size, dtype)
    backend = next(b for b in registry.candidates("prototype_cross_entropy") if b.name == name)
    found = backend.module.losses(student, teacher, pairs, upstream, BOTH)
    truth = reference.losses(wide(student), wide(teacher), pairs.double(), upstream.double(), BOTH)
    for ours, exact in zip(found, truth, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)
    none = backend.module.losses(student, teacher, pairs, None, BOTH)
    torch.testing.assert_close(none[:3], found[:3], rtol=1e-5, atol=1e-6)
    assert none[3].numel() == none[4].numel() == 0


@pytest.mark.parametrize("name", names())
def test_low_temperatures_and_sure_teachers(name: str) -> None:
    # Scores of hundreds: a fixed shift would overflow, and a mean of logs would be -inf.
    student, teacher, pairs, upstream = problem(SIZES[0])
    student = Side(student.rows * 60, student.weight, student.scale)
    teacher = Side(teacher.rows * 60, teacher.weight, teacher.scale, teacher.bias)
    backend = next(b for b in registry.candidates("prototype_cross_entropy") if b.name == name)
    found = backend.module.losses(student, teacher, pairs, upstream, BOTH)
    truth = reference.losses(wide(student), wide(teacher), pairs.double(), upstream.double(), BOTH)
    assert truth[0].max() > 100
    for ours, exact in zip(found, truth, strict=True):
        assert (ours.double() - exact).norm() <= 1e-4 * exact.norm()


@pytest.mark.parametrize("name", names())
def test_nothing_and_nan(name: str) -> None:
    backend = next(b for b in registry.candidates("prototype_cross_entropy") if b.name == name)
    student, teacher, pairs, upstream = problem((3, 2, 0, 4, 4, 9))
    found = backend.module.losses(student, teacher, pairs, upstream, BOTH)
    assert found[0].shape == (3, 0)
    assert found[4].shape == (9, 4)
    assert not found[4].any()
    assert not found[2].any()
    student, teacher, pairs, upstream = problem((3, 2, 5, 4, 4, 9))
    teacher.rows[1, 2, 0] = torch.nan
    loss, entropy, *_ = backend.module.losses(student, teacher, pairs, upstream, BOTH)
    assert loss[:, 2].isnan().all()
    assert entropy[1, 2].isnan()
    assert loss[:, :2].isfinite().all()
    assert entropy[0].isfinite().all()


def flat(student: Side, teacher: Side, pairs: Tensor) -> tuple[Tensor | None, ...]:
    """As the ops take them."""
    sides = student.rows, student.weight, teacher.rows, teacher.weight
    return *sides, student.scale, teacher.scale, teacher.bias, pairs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_opcheck(dtype: torch.dtype, bias: bool) -> None:
    student, teacher, pairs, upstream = problem((3, 2, 4, 5, 6, 7), dtype, bias)
    student.rows.requires_grad_(), student.weight.requires_grad_()
    given = flat(student, teacher, pairs)
    torch.library.opcheck(OPS.prototype_losses.default, given)
    # AOT dispatch differentiates all outputs; the gradients among these have none of their own.
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for wants in ((True, True), (True, False)):
        torch.library.opcheck(
            OPS.weighted_prototype_loss.default, (*given, upstream, *wants), test_utils=checks
        )


def test_gradcheck() -> None:
    student, teacher, pairs, upstream = problem((3, 2, 4, 5, 6, 7), torch.float64)
    rest = flat(student, teacher, pairs)[2:]
    inputs = student.rows.requires_grad_(), student.weight.requires_grad_()

    def each(rows: Tensor, weight: Tensor) -> Tensor:
        return prototype_losses(rows, weight, *rest)[0]  # type: ignore[arg-type]

    def total(rows: Tensor, weight: Tensor) -> Tensor:
        return weighted_prototype_loss(rows, weight, *rest, upstream, True, True)[0]  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(each, inputs)
    assert torch.autograd.gradcheck(total, inputs)
    torch.testing.assert_close((each(*inputs) * upstream).sum(), total(*inputs))


def test_no_gradient_to_the_teacher_and_no_second_one() -> None:
    student, teacher, pairs, upstream = problem((3, 2, 4, 5, 6, 7))
    student.rows.requires_grad_(), teacher.rows.requires_grad_()
    loss, entropy, usage, *_ = weighted_prototype_loss(
        *flat(student, teacher, pairs),
        upstream,
        True,
        False,  # type: ignore[arg-type]
    )
    assert not entropy.requires_grad
    assert not usage.requires_grad
    (d_rows,) = torch.autograd.grad(loss, student.rows, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        d_rows.sum().backward()
    assert teacher.rows.grad is None


def test_results_do_not_depend_on_threads() -> None:
    student, teacher, pairs, upstream = problem((10, 2, 40, 16, 16, 2000))
    threads = torch.get_num_threads()
    found = []
    with sslfast.use_backend("cpu"):
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(
                weighted_prototype_loss(
                    *flat(student, teacher, pairs),
                    upstream,
                    True,
                    True,  # type: ignore[arg-type]
                )
            )
    torch.set_num_threads(threads)
    for other in found[1:]:
        for ours, first in zip(other, found[0], strict=True):
            assert torch.equal(ours, first)
