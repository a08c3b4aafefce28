"""The Triton kernels of whole losses against their oracles, through Triton's interpreter.

See ``interpreted_kernels.py``, which ``test_triton_interpreter.py`` runs the same way.
"""

import math

import pytest
import torch
from interpreted_kernels import DTYPES, double, set_tile, unit_rows
from torch import Tensor

from rounding import logit_error
from sslfast.kernels import logit_rows, registry
from sslfast.kernels.info_nce import op as info_nce
from sslfast.kernels.linear_cross_entropy import Wants
from sslfast.kernels.linear_cross_entropy import problem as classifier_problem
from sslfast.kernels.linear_cross_entropy import reference as classifier_oracle
from sslfast.kernels.linear_cross_entropy import triton as classifier
from sslfast.kernels.sigmoid_contrast import problem, triton
from sslfast.kernels.sigmoid_contrast import reference as oracle
from sslfast.kernels.similarity_softmax import Pairing

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

# Of the weights: the interpreter keeps those of bf16 similarities in float32, and truncates where
# a GPU rounds.
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}
ALL = Wants(hidden=True, weight=True, bias=True)


def check(
    x: Tensor, y: Tensor, scale: float, bias: float, pairing: Pairing, generator: torch.Generator
) -> None:
    """Compare value and gradients with the oracle in float64."""
    s, b = torch.tensor(scale), torch.tensor(bias)
    weight = torch.randn(len(x), generator=generator) / 1000
    known = logit_error(scale, x.shape[1], bias)
    loss, u, v, d_bias = triton.gradients(x, y, s, b, pairing, weight, True)
    wide = *double(x, y, s, b), pairing
    want = oracle.gradients(*wide, weight.double(), True)
    torch.testing.assert_close(loss.double(), want[0], rtol=known, atol=1e-36)
    torch.testing.assert_close(triton.forward(x, y, s, b, pairing), loss, rtol=1e-6, atol=0)
    # The sum of |G_ij| bounds what rounding adds up to, whatever their signs.
    size = oracle.gradients(*wide, torch.ones(len(x)).double(), True)[3].abs()
    of_rows = weight.double().abs() * (size + 2)
    assert ((d_bias - want[3]).abs() <= known * of_rows).all()
    error = known + (ROUNDING[x.dtype] if x.dtype == torch.float16 else 0)
    assert ((u - want[1]).norm(dim=1) <= error * of_rows + 1e-13).all()
    assert (v - want[2]).norm() <= error * of_rows.sum() + 1e-13
    assert triton.gradients(x, y, s, b, pairing, weight, False)[2].numel() == 0


@pytest.mark.parametrize(
    ("scale", "bias", "parts", "dtype"),
    [
        (10.0, -10.0, 1, torch.bfloat16),
        (10.0, -10.0, 2, torch.float16),
        (100.0, -20.0, 3, torch.float32),
        (-3.0, 2.0, 7, torch.float16),
    ],
)
def test_sigmoid(
    scale: float,
    bias: float,
    parts: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Columns of a program alone, shared among 3, and among more programs than tiles."""
    set_tile(monkeypatch, 32, 16, 32, 32)
    monkeypatch.setattr(triton, "splits", lambda *sizes: parts)
    monkeypatch.setattr(triton, "_shared", lambda *about: parts != 2)  # logarithms
    d = 40 if parts == 3 else 24  # features in chunks, or all at once
    x, y = unit_rows(40, d, dtype, generator), unit_rows(70, d, dtype, generator)
    check(x, y, scale, bias, Pairing(35, 7, 5, 20), generator)
    check(x[:7, :5].contiguous(), y[:1, :5].contiguous(), scale, bias, Pairing(1), generator)


def test_sigmoid_with_tiles_as_they_are(generator: torch.Generator) -> None:
    x, y = (unit_rows(66, 96, torch.float32, generator) for _ in range(2))
    check(x, y, 10.0, -10.0, Pairing(66), generator)


@pytest.mark.parametrize("columns", [16, 32, 64, 256])
def test_columns_that_share_a_logarithm(
    columns: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs from 1e-9 to ln 2 in all columns, where the product is largest, and to hundreds."""
    set_tile(monkeypatch, 16, columns, 16, 16)
    monkeypatch.setattr(triton, "_shared", lambda *about: True)
    x, y = (unit_rows(n, 16, torch.float32, generator) for n in (20, 300))
    for scale, bias in ((0.0, 0.0), (1.0, -20.0), (4.0, -3.0), (100.0, 5.0)):
        s, b = torch.tensor(scale), torch.tensor(bias)
        loss = triton.forward(x, y, s, b, Pairing(0))
        exact = oracle.forward(*double(x, y, s, b), Pairing(0))
        known = logit_error(scale, 16, bias)
        torch.testing.assert_close(loss.double(), exact, rtol=known, atol=0)


@pytest.mark.parametrize("shared", [False, True])
def test_sigmoid_keeps_tiny_probabilities(
    shared: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At t = -60 a pair costs 1e-26, and that is its gradient."""
    monkeypatch.setattr(triton, "_shared", lambda *about: shared)
    x, y = (unit_rows(20, 16, torch.float32, generator) for _ in range(2))
    s, b, weight = torch.tensor(1.0), torch.tensor(-60.0), torch.ones(20)
    loss, _, _, d_bias = triton.gradients(x, y, s, b, Pairing(0), weight, False)
    exact = (x.double() @ y.double().T - 60).exp().sum(1)
    torch.testing.assert_close(loss.double(), exact, rtol=2e-5, atol=0)
    torch.testing.assert_close(d_bias.double(), exact, rtol=2e-5, atol=0)


@pytest.mark.parametrize("shared", [False, True])
def test_sigmoid_non_finite_and_empty(
    shared: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "_shared", lambda *about: shared)
    x, y = unit_rows(40, 20, torch.float32, generator), unit_rows(50, 20, torch.float32, generator)
    x[7, 3] = math.nan
    s, b, weight = torch.tensor(10.0), torch.tensor(-5.0), torch.ones(40)
    loss, u, v, _ = triton.gradients(x, y, s, b, Pairing(40), weight, True)
    assert (loss.isnan() == (torch.arange(40) == 7)).all()
    assert (u.isnan().all(1) == (torch.arange(40) == 7)).all()
    assert not v.isfinite().any()
    for m, n in ((0, 0), (0, 3), (3, 0)):
        check(torch.ones(m, 8), torch.ones(n, 8), 2.0, 0.0, Pairing(0), generator)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_upstream_gradients_lose_nothing(
    dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tile(monkeypatch, 32, 32, 32, 32)
    x, y = unit_rows(40, 20, dtype, generator), unit_rows(40, 20, dtype, generator)
    s, b, weight = torch.tensor(10.0), torch.tensor(-5.0), torch.randn(40, generator=generator)
    targets = torch.randint(40, (40,), generator=generator)

    def both(size: float) -> tuple[Tensor, ...]:
        contrasted = triton.gradients(x, y, s, b, Pairing(40), size * weight, True)
        classified = classifier.gradients(x, y, None, targets, size * weight, 0.0, ALL)
        return *contrasted[1:], *classified[2:]

    for small, one in zip(both(2.0**-40), both(1.0), strict=True):
        assert torch.equal(small * 2.0**40, one)


@pytest.mark.parametrize(
    ("parts", "rows", "biased", "smoothing", "softcap", "dtype"),
    [
        (1, 40, True, 0.1, None, torch.float32),
        (1, 14, True, 0.0, 1.0, torch.bfloat16),
        (3, 14, False, 0.0, None, torch.float16),
        (12, 40, True, 0.1, 3.0, torch.float32),
    ],
)
def test_classifier(
    parts: int,
    rows: int,
    biased: bool,
    smoothing: float,
    softcap: float | None,
    dtype: torch.dtype,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Classes of a program alone and shared, rows in one block and in three."""
    set_tile(monkeypatch, 32, 16, 32, 32)
    for module in (classifier, logit_rows):
        monkeypatch.setattr(module, "splits", lambda *sizes: parts)
    monkeypatch.setattr(classifier, "rows_of_a_block", lambda *sizes: rows)
    monkeypatch.setitem(logit_rows.CONSTANTS, "BLOCK", 64)
    x, w = 3 * unit_rows(40, 40, dtype, generator), 3 * unit_rows(133, 40, dtype, generator)
    bias = torch.randn(133, generator=generator).to(dtype) if biased else None
    targets = torch.randint(133, (40,), generator=generator)
    weight = torch.randn(40, generator=generator) / 1e6
    given = x, w, bias, targets
    wide = x.double(), w.double(), None if bias is None else bias.double(), targets
    got = classifier.gradients(*given, weight, smoothing, ALL, softcap)
    want = classifier_oracle.gradients(*wide, weight.double(), smoothing, ALL, softcap)
    for statistics in (got[:2], classifier.forward(*given, softcap)):
        for a, b in zip(statistics, want[:2], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-5)
    for a, b in zip(got[2:], want[2:], strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= (1e-5 + ROUNDING[dtype]) * b.norm()


def test_classifier_is_sure_or_alone(generator: torch.Generator) -> None:
    """Probabilities next to 1 leave exact remainders; a single class has none at all."""
    w = torch.eye(30)
    targets = torch.arange(30)
    given = 25 * w, w, None, targets
    lse, target_logit, d_hidden, *_ = classifier.gradients(*given, torch.ones(30), 0.0, ALL)
    exact = math.log(29)
    torch.testing.assert_close(lse - target_logit, torch.full((30,), exact - 25), rtol=1e-6, atol=0)
    remainder = -torch.sigmoid(torch.tensor(exact - 25, dtype=torch.float64))
    diagonal = d_hidden.diagonal().double()
    torch.testing.assert_close(diagonal, remainder.expand(30), rtol=1e-5, atol=0)
    one = classifier.gradients(
        torch.ones(3, 4), torch.ones(1, 4), None, torch.zeros(3).long(), torch.ones(3), 0.0, ALL
    )
    assert one[0].isneginf().all()
    assert all((gradient == 0).all() for gradient in one[2:])


def test_classifier_non_finite_and_no_rows(generator: torch.Generator) -> None:
    x, w = (unit_rows(40, 8, torch.float32, generator) for _ in range(2))
    x[7, 3] = math.nan
    given = x, w, None, torch.arange(40)
    lse, _, d_hidden, d_weight, _ = classifier.gradients(*given, torch.ones(40), 0.0, ALL)
    bad = torch.arange(40) == 7
    assert torch.equal(lse.isnan(), bad)
    assert torch.equal(classifier.forward(*given)[0].isnan(), bad)
    assert torch.equal(d_hidden.isnan().all(1), bad)
    assert d_weight.isnan().all()
    none = classifier.gradients(x[:0], w, None, torch.arange(0), torch.ones(0), 0.0, ALL)
    assert [len(t) for t in none] == [0, 0, 0, 40, 40]
    assert all((t == 0).all() for t in none)
    assert classifier.forward(x[:0], w, None, torch.arange(0))[0].shape == (0,)


def test_refuse_float64_and_are_dispatched() -> None:
    x = torch.ones(4, 3)
    for op, module, describe in (
        ("sigmoid_contrast", triton, lambda t: problem(t, t, Pairing(4))),
        ("linear_cross_entropy", classifier, lambda t: classifier_problem(t, t)),
    ):
        with registry.use_backend("triton"):
            assert registry.pick(op, describe(x)) is module
            with pytest.raises(registry.BackendError, match="float32, not float64"):
                registry.pick(op, describe(x.double()))


def test_targets_that_are_no_class(generator: torch.Generator) -> None:
    """Their logits are given, as those of MoCo's keys."""
    x, w = torch.randn(5, 12, generator=generator), torch.randn(70, 12, generator=generator)
    given, row_weight = torch.randn(5, generator=generator), torch.rand(5, generator=generator)
    got = classifier.gradients(x, w, None, given, row_weight, 0.0, ALL)
    want = classifier_oracle.gradients(*double(x, w), None, *double(given, row_weight), 0.0, ALL)
    for value, truth in zip(got, want, strict=True):
        torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-6)
    lse, target_logit = classifier.forward(x, w, None, given)
    torch.testing.assert_close(lse.double(), want[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(target_logit, given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_info_nce_by_the_similarity_softmax(
    dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MoCo on a GPU, with gradients of its queue too; one of them loses nothing when tiny."""
    set_tile(monkeypatch, 32, 16, 32, 32)
    x, y = 10 * unit_rows(40, 24, dtype, generator), unit_rows(70, 24, dtype, generator)
    positive = 8 + torch.randn(40, generator=generator)
    weight = torch.rand(40, generator=generator) / 1e6
    with registry.use_backend("triton"):
        got = info_nce._fused(x, y, positive, weight, True)
    with registry.use_backend("reference"):
        want = info_nce._by_blocks(*double(x, y, positive, weight), True)
    for value, exact in zip(got, want, strict=True):
        assert (value - exact).norm() <= (2e-5 + ROUNDING[dtype]) * exact.norm()
