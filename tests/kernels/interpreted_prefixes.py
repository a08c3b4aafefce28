"""The Triton kernels of matryoshka_softmax against the oracle, through Triton's interpreter.

See ``interpreted_kernels.py``, which ``test_triton_interpreter.py`` runs the same way.
"""

import pytest
import torch
from interpreted_blocks import ROUNDING, TILE
from interpreted_kernels import Side, double
from torch import Tensor

from rounding import logit_error
from sslfast.kernels import registry, tiles
from sslfast.kernels.matryoshka_softmax import Prefixes, inverse_norms, reference, triton
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.similarity_softmax import reference as one_prefix
from sslfast.losses import ClipLoss, MatryoshkaLoss, NTXentLoss

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
DIMS, SCALE = (7, 16, 36), 10.0
S = torch.tensor(SCALE)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of at most 17 rows, in tiles of 16 x 32."""
    monkeypatch.setattr(triton, "rows_of_a_block", lambda rows, *_: min(rows, 17))
    for arithmetic in ("16-bit", "ieee"):
        monkeypatch.setitem(tiles.TILES, ("prefix block", 8, arithmetic), ((0, TILE),))


def rows_of_any_length(
    m: int, dims: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    lengths = torch.logspace(-2, 2, max(m, 1))[:m, None]
    return (lengths * torch.randn(m, dims[-1], generator=generator)).to(dtype)


def problem(
    x: Tensor, y: Tensor | None, dims: tuple[int, ...], normalize: bool = True
) -> tuple[Tensor, Tensor | None, Tensor, Prefixes]:
    a = inverse_norms(x, dims, normalize)
    b = a if y is None else inverse_norms(y, dims, normalize)
    return x, y, S.to(torch.float64 if x.dtype == torch.float64 else FP32), Prefixes(dims, a, b)


def chosen(row: Side, column: Side, sides: str) -> tuple[Side, Side]:
    return None if sides == "columns" else row, None if sides == "rows" else column


def sums_of_weights(
    x: Tensor, y: Tensor | None, prefixes: Prefixes, pairing: Pairing, sides: tuple, w: Tensor
) -> Tensor:
    """sum_j |G_pij| [K, M, N]: what an error of every term adds up to."""
    found = []
    for p, d in enumerate(prefixes.dims):
        rows = x[:, :d] * prefixes.rows[p, :, None]
        columns = None if y is None else y[:, :d] * prefixes.columns[p, :, None]
        logits, _, _ = one_prefix.logits_of(rows, columns, S.double(), pairing)
        found.append(one_prefix.weights(logits, *((s and (s[0][p], s[1][p].abs())) for s in sides)))
    return torch.stack(found) + w.abs()[:, :, None] / max(len(x if y is None else y), 1)


def check(
    x: Tensor,
    y: Tensor | None,
    pairing: Pairing,
    dims: tuple[int, ...],
    sides: str,
    generator: torch.Generator,
) -> None:
    ours, wide = problem(x, y, dims), problem(*double(x, y), dims)
    got = triton.forward(*ours, pairing, True)
    want = reference.forward(*wide, pairing, True)
    known = logit_error(SCALE, dims[-1])
    for value, exact in zip(got, want, strict=True):
        assert value.dtype == FP32
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=known)
    lse, positive, lse_columns = want

    def upstream(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).double() / 1000

    row, column = (lse, upstream(lse)), (lse_columns, upstream(lse_columns))
    given = (row, row) if y is None else chosen(row, column, sides)
    w = upstream(positive)
    truth = reference.backward(*wide, pairing, *given, w, y is not None)
    narrow = [s and (s[0].float(), s[1].float()) for s in given]
    result = triton.backward(*ours, pairing, *narrow, w.float(), y is not None)
    size = sums_of_weights(*double(x, y), wide[3], pairing, given, w)
    error = 2 * known + ROUNDING[x.dtype]
    a, b = wide[3].rows, wide[3].columns
    of_rows, of_columns = size.sum(2), size.sum(1)
    assert ((result[0] - truth[0]).norm(dim=1) <= error * (a * of_rows).sum(0) + 1e-30).all()
    assert ((result[2] - truth[2]).abs() <= 3 * known * of_rows + 1e-30).all()
    if y is not None:
        positives = w.abs().sum(1, keepdim=True)  # some of them may be any column's
        of_columns = of_columns + positives
        assert ((result[1] - truth[1]).norm(dim=1) <= error * (b * of_columns).sum(0)).all()
        assert ((result[3] - truth[3]).abs() <= 3 * known * of_columns).all()
    again = triton.backward(*ours, pairing, *narrow, w.float(), y is not None)
    assert all(torch.equal(s, t) for s, t in zip(result, again, strict=True))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize(
    ("m", "n", "pairing", "dims", "sides"),
    [
        (38, None, Pairing(38, 19, leave_out_self=True), DIMS, "both"),
        (40, 33, Pairing(20, 3, 10, 5), DIMS, "both"),
        (33, 40, Pairing(33), DIMS, "rows"),
        (20, 60, Pairing(20, 10, 0, 20, leave_out_self=True), (16, 32), "columns"),
        (40, 40, Pairing(40, 7), (20,), "both"),  # one prefix
        (2, None, Pairing(2, 1, leave_out_self=True), DIMS, "both"),  # no negatives
        (1, 40, Pairing(1, 0, 0, 33), DIMS, "both"),
    ],
)
def test_against_the_oracle(
    m: int,
    n: int | None,
    pairing: Pairing,
    dims: tuple[int, ...],
    sides: str,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    x = rows_of_any_length(m, dims, dtype, generator)
    y = None if n is None else rows_of_any_length(n, dims, dtype, generator)
    check(x, y, pairing, dims, sides, generator)


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_empty(dtype: torch.dtype) -> None:
    for m, n in ((0, 0), (0, 3), (3, 0)):
        given = problem(torch.ones(m, 36, dtype=dtype), torch.ones(n, 36, dtype=dtype), DIMS)
        lse, positive, lse_columns = triton.forward(*given, Pairing(0), True)
        assert [t.shape for t in (lse, positive, lse_columns)] == [(3, m), (3, m), (3, n)]
        assert all(t.isneginf().all() for t in (lse, positive, lse_columns))
        back = triton.backward(
            *given, Pairing(0), (lse, lse), (lse_columns, lse_columns), lse, True
        )
        assert [t.shape for t in back] == [(m, 36), (n, 36), (3, m), (3, n)]
        assert all((t == 0).all() for t in back)


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_tiny_upstream_gradients_lose_nothing(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    x, y = (rows_of_any_length(20, DIMS, dtype, generator) for _ in range(2))
    given = *problem(x, y, DIMS), Pairing(20)
    lse, _, lse_columns = triton.forward(*given, True)
    g, h, w = torch.randn(3, 3, 20, generator=generator)

    def back(size: float) -> tuple[Tensor, ...]:
        return triton.backward(*given, (lse, size * g), (lse_columns, size * h), size * w, True)

    for small, one in zip(back(2.0**-40), back(1.0), strict=True):
        assert torch.equal(small * 2.0**40, one)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_non_finite_rows_show(dtype: torch.dtype, value: float, generator: torch.Generator) -> None:
    """In the prefixes that hold the feature, of the row itself and of all columns."""
    x, y = (rows_of_any_length(n, DIMS, dtype, generator) for n in (20, 50))
    x[7, 10] = value
    given = *problem(x, y, DIMS), Pairing(20, 3, 0, 10)
    lse, positive, lse_columns = triton.forward(*given, True)
    bad = torch.zeros(3, 20, dtype=torch.bool)
    bad[1:, 7] = True
    assert torch.equal(~lse.isfinite(), bad)
    assert torch.equal(~positive.isfinite(), bad)
    clean, _, _ = reference.forward(*problem(*double(x, y), DIMS), Pairing(20, 3, 0, 10))
    torch.testing.assert_close(lse[0].double(), clean[0], rtol=0, atol=logit_error(SCALE, 36))
    assert torch.equal(lse_columns.isfinite().all(1), torch.tensor([True, False, False]))
    row, w = (lse, torch.ones_like(lse)), torch.ones_like(positive)
    u, _, inner = triton.backward(*given, row, None, w)
    assert torch.equal(~inner.isfinite(), bad)
    assert torch.equal(~u.isfinite().all(1), bad.any(0))


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("loss", [NTXentLoss(0.2), ClipLoss()])
def test_the_losses_in_one_sweep(
    loss: torch.nn.Module, dtype: torch.dtype, generator: torch.Generator
) -> None:
    leaves = [rows_of_any_length(20, DIMS, dtype, generator) for _ in range(2)]
    found = []
    for name, to in (("triton", dtype), ("reference", torch.float64)):
        x, y = (t.to(to, copy=True).requires_grad_() for t in leaves)
        scale = [S.to(torch.float64 if to == torch.float64 else FP32)] * isinstance(loss, ClipLoss)
        with registry.use_backend(name):
            value = MatryoshkaLoss(loss, DIMS, normalize=True)(x, y, *scale)
            value.backward()
        found.append((value.detach(), x.grad, y.grad))
    for ours, exact in zip(*found, strict=True):
        error = (ours.double() - exact).norm() / exact.norm()
        assert error <= (1e-5 if dtype == FP32 else 4e-3)
