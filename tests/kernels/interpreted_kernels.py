"""The Triton kernels against the oracles, through Triton's interpreter.

``test_triton_interpreter.py`` runs this file in a process of its own with TRITON_INTERPRET=1.
bfloat16 weights stay in float32 here, since the interpreter cannot multiply bfloat16, and truncates
where a GPU rounds: the error of that rounding can be seen on a GPU only.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from rounding import logit_error
from sslfast.kernels import registry, tiles
from sslfast.kernels.philox import reference as philox_oracle
from sslfast.kernels.philox import triton as philox
from sslfast.kernels.similarity_softmax import Pairing, problem
from sslfast.kernels.similarity_softmax import reference as oracle
from sslfast.kernels.similarity_softmax import triton as backend
from sslfast.kernels.similarity_softmax.op import similarity_softmax as op

# The interpreter is numpy, which tells of every inf - inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

Side = tuple[Tensor, Tensor] | None

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 0.0}  # of the weights


def set_tile(patch: pytest.MonkeyPatch, rows: int, columns: int, depth: int, output: int) -> None:
    tile = tiles.Tile(rows, columns, depth, output, warps=4, stages=2)
    for kind, arithmetic in itertools.product(tiles.KINDS, ("16-bit", "ieee")):
        patch.setitem(tiles.TILES, (kind, 8, arithmetic), ((0, tile),))


def unit_rows(m: int, d: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(m, d, generator=generator), dim=1).to(dtype)


def double(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.double() for t in tensors)


def weight_sums(logits: Tensor, row: Side, column: Side) -> Tensor:
    """sum_j |G_ij|: what the rounding of every term adds up to, whatever their signs."""
    total = torch.zeros_like(logits)
    if row is not None:
        total += (logits - row[0][:, None]).exp().nan_to_num() * row[1].abs()[:, None]
    if column is not None:
        total += (logits - column[0]).exp().nan_to_num() * column[1].abs()
    return total.sum(1)


def check(
    x: Tensor,
    y: Tensor | None,
    scale: float,
    pairing: Pairing,
    generator: torch.Generator,
    sides: tuple[str, ...] = ("both", "rows", "columns"),
) -> tuple[Tensor, Tensor]:
    """Compare forward and backward with the oracle in float64; return the statistics."""
    s = torch.tensor(scale)
    tolerance = logit_error(scale, x.shape[1])
    got = backend.forward(x, y, s, pairing, True)
    want = oracle.forward(*double(x, y, s), pairing, True)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance)
    lse, _, lse_columns = want
    row, column = (
        (lse, torch.randn(lse.shape, generator=generator).double()),
        (lse_columns, torch.randn(lse_columns.shape, generator=generator).double()),
    )
    chosen: dict[str, tuple[Side, Side]] = {
        "both": (row, column),
        "rows": (row, None),
        "columns": (None, column),
    }
    logits, _, _ = oracle.logits_of(*double(x, y, s), pairing)
    for name in sides:
        given = [None if p is None else (p[0].float(), p[1].float()) for p in chosen[name]]
        u = backend.backward(x, y, s, pairing, *given)
        v = oracle.backward(*double(x, y, s), pairing, *chosen[name])
        assert u.dtype == torch.float32
        bound = (tolerance + ROUNDING[x.dtype]) * weight_sums(logits, *chosen[name])
        bound += 2.0**-36 * logits.shape[1]  # weights at the bottom of the range of fp16
        assert ((u - v).norm(dim=1) <= bound).all(), (name, (u - v).norm(dim=1) / bound)
    return lse, lse_columns


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [2.0, 10.0, 100.0, -5.0])
@pytest.mark.parametrize(
    ("m", "n", "d", "pairing"),
    [
        (70, None, 17, Pairing(70, 35, leave_out_self=True)),  # NT-Xent
        (40, 90, 33, Pairing(40, 20, 0, 40, leave_out_self=True)),  # a rank's rows
        (33, 70, 40, Pairing(20, 3, 5, 40).transposed().transposed()),
        (65, 65, 64, Pairing(65)),  # CLIP
    ],
)
def test_small(
    m: int,
    n: int | None,
    d: int,
    pairing: Pairing,
    scale: float,
    dtype: torch.dtype,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_tile(monkeypatch, 64, 32, 64, 64)
    x = unit_rows(m, d, dtype, generator)
    y = None if n is None else unit_rows(n, d, dtype, generator)
    check(x, y, scale, pairing, generator, ("both",))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "pairing"),
    [
        (252, None, Pairing(252, 126, leave_out_self=True)),
        (252, 507, Pairing(200, 37, 11, 300)),
        (507, 252, Pairing(200, 37, 11, 300).transposed()),
    ],
)
def test_several_ragged_tiles(
    m: int,
    n: int | None,
    pairing: Pairing,
    dtype: torch.dtype,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if n is not None and (n < m) != (dtype == torch.float16):
        pytest.skip("one dtype for the transposed form, the others for the plain one")
    set_tile(monkeypatch, 128, 64, 128, 128)
    y = None if n is None else unit_rows(n, 123, dtype, generator)
    check(unit_rows(m, 123, dtype, generator), y, 10.0, pairing, generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("d", [1, 16, 130])
def test_features_in_chunks(
    d: int, dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tile(monkeypatch, 32, 64, 32, 64)
    x, y = unit_rows(50, d, dtype, generator), unit_rows(70, d, dtype, generator)
    check(x, y, 10.0, Pairing(50, 7, 0, 20), generator)


@pytest.mark.parametrize(
    ("parts", "dtype"), [(2, torch.float32), (3, torch.float16), (8, torch.float32)]
)
def test_columns_shared_among_programs(
    parts: int, dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also among more programs than there are tiles."""
    set_tile(monkeypatch, 32, 16, 32, 32)
    monkeypatch.setattr(backend, "splits", lambda *sizes: parts)
    x, y = unit_rows(40, 24, dtype, generator), unit_rows(100, 24, dtype, generator)
    check(x, None, 10.0, Pairing(40, 20, leave_out_self=True), generator, ("both",))
    check(x, y, 10.0, Pairing(40, 7, 0, 60), generator, ("both", "rows"))
    one = unit_rows(1, 8, dtype, generator)
    lse, _ = check(one, one.clone(), 10.0, Pairing(1), generator, ("both",))
    assert lse.isneginf().all()
    x[3, 1] = math.nan
    lse, _, _ = backend.forward(x, y, torch.tensor(10.0), Pairing(0))
    assert lse.isnan().tolist() == [i == 3 for i in range(40)]


@pytest.mark.parametrize(
    ("parts", "dtype"), [(1, torch.float16), (3, torch.float32), (6, torch.float32)]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_op_with_norms_and_a_scale_that_learns(
    symmetric: bool,
    parts: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Normalisation, matrix kernels and the end of the gradient, of rows of any length."""
    set_tile(monkeypatch, 32, 16, 32, 32)
    monkeypatch.setattr(backend, "splits", lambda *sizes: parts)
    x, y = (3 * torch.randn(n, 20, generator=generator).to(dtype) for n in (30, 50))
    pairing = Pairing(30, *((15, 0, 0) if symmetric else (7, 0, 13)), leave_out_self=True)
    g, h = torch.randn(2, 30, generator=generator).double()
    k = torch.randn(30 if symmetric else 50, generator=generator).double()

    def gradients(name: str, wide: torch.dtype, scale: Tensor) -> tuple[Tensor, ...]:
        rows = x.to(wide).requires_grad_()
        columns = None if symmetric else y.to(wide).requires_grad_()
        scale.requires_grad_()
        with registry.use_backend(name):
            lse, positive, lse_columns = op(
                rows, columns, scale, pairing, normalize=True, column_lse=True
            )
            total = (g * lse).sum() + (h * positive).sum() + (k * lse_columns).sum()
            wanted = [t for t in (rows, columns, scale) if t is not None]
            return torch.autograd.grad(total, wanted)

    found = gradients("triton", dtype, torch.tensor(5.0))
    truth = gradients("reference", torch.float64, torch.tensor(5.0).double())
    for value, exact in zip(found, truth, strict=True):
        size = exact.norm() if exact.dim() else sum(t.norm() for t in truth)
        assert (value.double() - exact).norm() <= (2e-6 if dtype == torch.float32 else 2e-3) * size


def test_tile_table_as_it_is(generator: torch.Generator) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = unit_rows(130, 96, dtype, generator)
        check(x, None, 10.0, Pairing(130, 65, leave_out_self=True), generator, ("both",))


def test_any_pairing(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    set_tile(monkeypatch, 32, 16, 16, 16)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for _ in range(25):
        m, n = draw(1, 70), draw(1, 70)
        length = draw(0, min(m, n))
        pairing = Pairing(
            length,
            draw(0, max(length - 1, 0)),
            draw(0, m - length),
            draw(0, n - length),
            leave_out_self=bool(draw(0, 1)),
        )
        print(m, n, pairing)
        x, y = unit_rows(m, 5, torch.float32, generator), unit_rows(n, 5, torch.float32, generator)
        check(x, y, 3.0, pairing, generator, ("both",))


def test_no_negatives_and_empty(generator: torch.Generator) -> None:
    for dtype in DTYPES:
        pair = Pairing(2, 1, leave_out_self=True)
        lse, _ = check(unit_rows(2, 8, dtype, generator), None, 10.0, pair, generator)
        assert (lse == -math.inf).all()
        one = unit_rows(1, 8, dtype, generator)
        check(one, one.clone(), 10.0, Pairing(1), generator)
    for m, n in ((0, 0), (0, 3), (3, 0)):
        x, y = torch.zeros(m, 8), torch.zeros(n, 8)
        check(x, y, 10.0, Pairing(0), generator)
    nothing = backend.backward(torch.ones(3, 2), None, torch.tensor(1.0), Pairing(0), None, None)
    assert torch.equal(nothing, torch.zeros(3, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [20.0, 100.0, 400.0])
def test_one_exponential_or_two(
    scale: float, dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row opposite to all others widens the spread of the statistics; both forms are right."""
    set_tile(monkeypatch, 32, 32, 32, 32)
    x = F.normalize(torch.randn(66, 24, generator=generator) + 9, dim=1)
    x[5] = -x[6]
    pairing = Pairing(66, 33, leave_out_self=True)
    lse, _ = check(x.to(dtype), None, scale, pairing, generator, ("both",))
    side = lse.float(), torch.randn(66, generator=generator)
    row_factor, column_factor, plan = backend._plan((*side, *side), 66, 66)
    assert (row_factor, column_factor, plan) != (None, None, None)
    fits = (lse.max() - lse.min()).item() / math.log(2) < 160
    assert fits == (scale < 100)
    assert plan is not None
    assert bool(plan[1]) == fits
    if fits:
        assert torch.equal(row_factor, column_factor)
        exact = side[1].double() * plan[2] * (plan[0] * math.log(2) - lse).exp()
        torch.testing.assert_close(row_factor.double(), exact, rtol=1e-4, atol=0)


def test_plan_scales_by_a_power_of_two() -> None:
    for top in (1e-30, 3e-8, 0.7, 1.0, 5e9, 0.0):
        weight = torch.tensor([0.0, -top, top / 3, math.inf, math.nan])
        _, _, plan = backend._plan((torch.zeros(5), weight, torch.zeros(5), weight), 5, 5)
        assert plan is not None
        grow, shrink = plan[2:].double()
        assert grow * shrink == 1
        assert math.frexp(grow)[0] == 0.5
        assert grow * top < 2**14 * (1 + 1e-6)
        assert top < 1e-29 or grow * top > 2**13 * (1 - 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_upstream_gradients_lose_nothing(
    dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """g is of the order of 1 / M: far below the range of fp16 once it multiplies probabilities."""
    set_tile(monkeypatch, 32, 32, 32, 32)
    x = unit_rows(40, 20, dtype, generator)
    s, pairing = torch.tensor(10.0), Pairing(40, 20, leave_out_self=True)
    lse, _, _ = backend.forward(x, None, s, pairing)
    g, h = torch.randn(2, 40, generator=generator)
    for row, column in ((g, h), (g, None), (None, h)):

        def u(size: float, row: Tensor | None = row, column: Tensor | None = column) -> Tensor:
            sides = [None if w is None else (lse, size * w) for w in (row, column)]
            return backend.backward(x, None, s, pairing, *sides)

        assert torch.equal(u(2.0**-40) * 2.0**40, u(1.0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_rows_show(
    dtype: torch.dtype, value: float, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the oracle is not finite nothing finite comes out, and elsewhere nothing changes."""
    set_tile(monkeypatch, 32, 16, 32, 32)
    x, y = unit_rows(40, 20, dtype, generator), unit_rows(50, 20, dtype, generator)
    x[7, 3] = y[44, 5] = value
    s, pairing = torch.tensor(10.0), Pairing(40, 3, 0, 10)
    got = backend.forward(x, y, s, pairing, True)
    want = oracle.forward(*double(x, y, s), pairing, True)
    assert not got[0][7].isfinite()
    assert not got[2][44].isfinite()
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
    x[7, 3] = 0  # now rows meet the bad column only
    lse, _, lse_columns = backend.forward(x, y, s, pairing, True)
    g, h = torch.randn(40, generator=generator), torch.randn(50, generator=generator)
    assert (
        not backend.backward(x, y, s, pairing, (lse, g), (lse_columns, h)).isfinite().all(1).any()
    )
    s = torch.tensor(math.nan)
    assert backend.forward(x, y, s, pairing)[0].isnan().all()


def test_refuses_float64_and_is_dispatched(generator: torch.Generator) -> None:
    x = unit_rows(4, 3, torch.float32, generator)
    pairing = Pairing(4, 2, leave_out_self=True)
    with registry.use_backend("triton"):
        assert registry.pick("similarity_softmax", problem(x, None, pairing)) is backend
        with pytest.raises(registry.BackendError, match="float32, not float64"):
            registry.pick("similarity_softmax", problem(x.double(), None, pairing))


@triton.jit
def philox_words(p_out, block, sample_id, step, stream, seed):  # type: ignore[no-untyped-def]
    words = philox.sample_words(block + tl.arange(0, 1), sample_id, step, seed, stream)
    for n in tl.static_range(4):
        tl.store(p_out + n + tl.arange(0, 1), words[n].to(tl.int64))


ALL_ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # kat_vectors of Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    got = torch.zeros(4, dtype=torch.int64)
    philox_words[(1,)](got, *counter, key[0] | key[1] << 32)
    assert got.tolist() == list(words)


def test_philox_equals_the_oracle(generator: torch.Generator) -> None:
    for batch, count in ((3, 1), (2, 7), (3, 1030), (1, 4), (0, 5), (3, 0)):
        ids = torch.randint(-(2**62), 2**62, (batch,), generator=generator)
        for step, seed, stream in (
            (0, 0, 0),
            (2**40 + 3, -5, 7),
            (-1, 2**64 - 1, 2**32 - 1),
            (2**33, 2**63 + 11, 1),
        ):
            given = ids, torch.tensor(step), seed, stream, count
            assert torch.equal(philox.random_bits(*given), philox_oracle.random_bits(*given))
