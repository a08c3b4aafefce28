"""The Triton kernels of prototype_cross_entropy against the oracle, through Triton's interpreter.

See ``interpreted_kernels.py``, which ``test_triton_interpreter.py`` runs the same way.
"""

import pytest
import torch
from interpreted_losses import ROUNDING
from test_prototype_cross_entropy import BOTH, flat, problem, wide
from torch import Tensor

from sslfast.kernels import logit_rows, registry
from sslfast.kernels.prototype_cross_entropy import Problem, Side, Wants, reference, triton
from sslfast.kernels.prototype_cross_entropy.op import weighted_prototype_loss

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
NEITHER = Wants(rows=False, weight=False)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """Blocks of at most 3 samples, in 2 shares; 64 prototypes a program, rows in 2 parts."""
    monkeypatch.setattr(triton, "rows_of_a_block", lambda rows, *_: min(rows, 3))
    monkeypatch.setattr(triton, "splits", lambda *sizes: 2)
    monkeypatch.setattr(triton, "_MOST_PROTOTYPES", 64)
    monkeypatch.setattr(triton, "_MOST_SCORES", 256)
    monkeypatch.setattr(logit_rows, "splits", lambda *sizes: 2)
    monkeypatch.setitem(logit_rows.CONSTANTS, "BLOCK", 64)
    torch.manual_seed(generator.initial_seed())


def truth(student: Side, teacher: Side, pairs: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    return reference.losses(wide(student), wide(teacher), pairs.double(), upstream.double(), BOTH)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize(
    ("size", "bias"),
    [
        ((3, 2, 7, 20, 12, 130), True),  # DINO: three blocks, three chunks
        ((1, 1, 6, 24, 24, 128), True),  # iBOT
        ((4, 1, 4, 16, 16, 70), False),  # MSN, without a bias
        ((2, 5, 3, 33, 17, 100), True),  # the teacher's views are no power of 2
        ((3, 2, 1, 5, 5, 1), True),  # one sample, one prototype
    ],
)
def test_against_the_oracle(size: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    student, teacher, pairs, upstream = problem(size, dtype, bias)
    upstream /= 1e6
    got = triton.losses(student, teacher, pairs, upstream, BOTH)
    want = truth(student, teacher, pairs, upstream)
    for ours, exact in zip(got[:3], want, strict=False):
        assert ours.dtype == FP32
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)
    for ours, exact in zip(got[3:], want[3:], strict=True):
        assert ours.dtype == FP32
        assert (ours - exact).norm() <= (2e-5 + ROUNDING[dtype]) * exact.norm() + 1e-12
    again = triton.losses(student, teacher, pairs, upstream, BOTH)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_only_what_is_wanted(dtype: torch.dtype) -> None:
    student, teacher, pairs, upstream = problem((3, 2, 4, 20, 12, 90), dtype)
    both = triton.losses(student, teacher, pairs, upstream, BOTH)
    for n, wants in enumerate((Wants(rows=True, weight=False), Wants(rows=False, weight=True))):
        one = triton.losses(student, teacher, pairs, upstream, wants)
        assert all(torch.equal(one[k], both[k]) for k in (0, 1, 2, 3 + n))
        assert one[4 - n].numel() == 0
    for row_weight, wants in ((None, BOTH), (upstream, NEITHER)):
        none = triton.losses(student, teacher, pairs, row_weight, wants)
        assert all(torch.equal(a, b) for a, b in zip(none[:3], both, strict=False))
        assert none[3].numel() == none[4].numel() == 0


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_low_temperatures_and_sure_teachers(dtype: torch.dtype) -> None:
    """Scores of hundreds, of which float32 knows 24 bits, and some roundings less."""
    student, teacher, pairs, upstream = problem((3, 2, 4, 20, 12, 100), dtype)
    student = Side(student.rows * 60, student.weight, student.scale)
    teacher = Side(teacher.rows * 60, teacher.weight, teacher.scale, teacher.bias)
    got = triton.losses(student, teacher, pairs, upstream, BOTH)
    want = truth(student, teacher, pairs, upstream)
    assert want[0].max() > 100
    scores = [s.scale * (s.rows @ s.weight.T).abs().max() for s in (wide(student), wide(teacher))]
    known = 10 * 2.0**-24 * max(scores)
    for ours, exact in zip(got[:3], want, strict=False):
        assert ((ours - exact).abs() <= known * (1 + exact)).all()
    for ours, exact in zip(got[3:], want[3:], strict=True):
        assert (ours - exact).norm() <= (known + ROUNDING[dtype]) * exact.norm()


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("shape", [(3, 2, 0), (0, 2, 5), (3, 0, 5)])
def test_nobody_to_learn_or_to_learn_from(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    s, t, g = shape
    x, y, w, v = (torch.ones(n, dtype=dtype) for n in ((s, g, 4), (t, g, 6), (9, 4), (9, 6)))
    one = torch.tensor(1.0)
    sides = Side(x, w, one), Side(y, v, one)
    got = triton.losses(*sides, torch.ones(s, t), torch.ones(s, g), BOTH)
    shapes = [(s, g), (t, g), (9,), (s, g, 4), (9, 4)]
    assert [r.shape for r in got] == [torch.Size(n) for n in shapes]
    assert not any(r.any() for r in got)


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_rows_show(value: float, dtype: torch.dtype) -> None:
    """Those of the teacher in all views of their sample, those of the student in their own."""
    student, teacher, pairs, upstream = problem((3, 2, 5, 20, 12, 90), dtype)
    teacher.rows[1, 2, 0] = student.rows[0, 4, 3] = value
    loss, entropy, usage, d_rows, d_weight = triton.losses(student, teacher, pairs, upstream, BOTH)
    bad = torch.zeros(3, 5, dtype=torch.bool)
    bad[:, 2] = bad[0, 4] = True
    assert torch.equal(~loss.isfinite(), bad)
    assert torch.equal(~d_rows.isfinite().all(2), bad)
    assert torch.equal((~entropy.isfinite()).nonzero(), torch.tensor([[1, 2]]))
    assert not usage.isfinite().any()
    assert not d_weight.isfinite().any()


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_tiny_upstream_gradients_lose_nothing(dtype: torch.dtype) -> None:
    student, teacher, pairs, upstream = problem((3, 2, 4, 20, 12, 90), dtype)
    small = triton.losses(student, teacher, pairs, 2.0**-40 * upstream, BOTH)
    one = triton.losses(student, teacher, pairs, upstream, BOTH)
    for a, b in zip(small[3:], one[3:], strict=True):
        assert torch.equal(a * 2.0**40, b)


def test_the_op_takes_it() -> None:
    student, teacher, pairs, upstream = problem((3, 2, 4, 20, 12, 90))
    leaves = student.rows.requires_grad_(), student.weight.requires_grad_()
    found = []
    for name in ("triton", "reference"):
        with registry.use_backend(name):
            given = *flat(student, teacher, pairs), upstream, True, True
            loss = weighted_prototype_loss(*given)[0]  # type: ignore[arg-type]
            found.append((loss.detach(), *torch.autograd.grad(3 * loss, leaves)))
    for ours, other in zip(*found, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_float64_is_refused() -> None:
    op = "prototype_cross_entropy"
    with registry.use_backend("triton"):
        assert registry.pick(op, Problem("cpu", FP16, 4, 4, 9, 8)) is triton
        with pytest.raises(registry.BackendError, match="float32, not float64"):
            registry.pick(op, Problem("cpu", torch.float64, 4, 4, 9, 8))
