"""The CUDA kernels of the similarity softmax, thread by thread on an emulated GPU.

The code that nvcc compiles (csrc/include/sslfast/similarity_*.h) runs here as plain C++ over
tests/emulation: every index, mask, pipeline stage and split, with the tensor cores' documented
layouts. What it cannot see is said in docs/developers/performance.md.
"""

import ctypes
import math
from dataclasses import astuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from emulation.backend import ELEMENTS, Emulated, EmulatedProblem, Side, build
from rounding import logit_error
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.similarity_softmax import reference as oracle

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "tf32": 2.0**-11, "ieee": 0.0}  # of weights
H200 = (132, 227 << 10)
L40 = (142, 99 << 10)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = build(tmp_path_factory.mktemp("emulation"))
    if built is None:
        pytest.skip("no C++ compiler")
    return built


def rows_of(element: str, count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Unit rows as elements; in float32 memory, those of TF32 have 10 bits of fraction."""
    x = F.normalize(torch.randn(count, dim, generator=generator), dim=1)
    if element == "tf32":
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return x.to(DTYPES.get(element, torch.float32))


def weight_sums(logits: Tensor, row: Side, column: Side) -> Tensor:
    """sum_j |G_ij|: what the rounding of every weight adds up to."""
    total = torch.zeros_like(logits)
    for side, axis in ((row, 1), (column, 0)):
        if side is not None:
            lse, weight = (t.unsqueeze(axis) for t in side)
            total += (logits - lse).exp().nan_to_num() * weight.abs()
    return total.sum(1)


def check(
    backend: Emulated,
    m: int,
    n: int | None,
    dim: int,
    scale: float,
    pairing: Pairing,
    generator: torch.Generator,
    sides: tuple[str, ...] = ("both", "rows", "columns"),
) -> None:
    """Compare with float64; n None: the symmetric form."""
    x = rows_of(backend.element, m, dim, generator)
    y = x if n is None else rows_of(backend.element, n, dim, generator)
    s = torch.tensor(scale)
    x64, y64, s64 = x.double(), y.double(), s.double()
    lse, positive, lse_columns = oracle.forward(x64, y64, s64, pairing, True)
    tolerance = logit_error(scale, dim)
    for got, want in zip(backend.forward(x, y, s, pairing), (lse, positive), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)
    row = lse, torch.randn(m, generator=generator).double()
    column = lse_columns, torch.randn(len(y), generator=generator).double()
    chosen: dict[str, tuple[Side, Side]] = {
        "both": (row, column),
        "rows": (row, None),
        "columns": (None, column),
    }
    logits, _, _ = oracle.logits_of(x64, y64, s64, pairing)
    for name in sides:
        given = [None if p is None else (p[0].float(), p[1].float()) for p in chosen[name]]
        u = backend.backward(x, y, s, pairing, *given)
        v = oracle.backward(x64, y64, s64, pairing, *chosen[name])
        bound = 1.02 * (tolerance + ROUNDING[backend.element]) * weight_sums(logits, *chosen[name])
        bound += 2.0**-36 * len(y)  # weights at the bottom of the range of float16
        assert ((u - v).norm(dim=1) <= bound).all(), (name, ((u - v).norm(dim=1) / bound).max())


def ntxent(m: int) -> Pairing:
    return Pairing(m, m // 2, leave_out_self=True)


def draw(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize(
    ("m", "n", "dim", "pairing", "sides"),
    [
        (150, None, 123, ntxent(150), "both"),  # rows that are not aligned
        (70, 140, 64, Pairing(60, 37, 7, 70), "rows"),
        (70, 140, 200, Pairing(70, 0, 0, 40, leave_out_self=True), "columns"),
        (40, 40, 300, Pairing(40), "both"),  # several panels of gradients
    ],
)
def test_against_float64(library, element, m, n, dim, pairing, sides, generator) -> None:
    """Few rows of columns enough are split; on the smaller GPU rows do not stay in memory."""
    gpu = H200 if draw(0, 1, generator) else L40
    print(gpu)
    backend = Emulated(library, element, gpu, draw(0, 2**31, generator))
    check(backend, m, n, dim, 10.0, pairing, generator, (sides,))


@pytest.mark.parametrize("gpu", [H200, L40, (1, 99 << 10)])
def test_any_pairing(library, gpu, generator) -> None:
    for _ in range(8):
        m, n = draw(1, 140, generator), draw(1, 140, generator)
        length = draw(0, min(m, n), generator)
        pairing = Pairing(
            length,
            draw(0, max(length - 1, 0), generator),
            draw(0, m - length, generator),
            draw(0, n - length, generator),
            leave_out_self=bool(draw(0, 1, generator)),
        )
        element = ELEMENTS[draw(0, 3, generator)]
        scale = (0.5, 10.0, 100.0, -3.0)[draw(0, 3, generator)]
        print(element, m, n, scale, pairing)
        backend = Emulated(library, element, gpu, draw(0, 2**31, generator))
        check(backend, m, n, draw(1, 20, generator), scale, pairing, generator, ("both",))


def test_many_features(library, generator) -> None:
    """Rows that no longer stay in shared memory, and seventeen panels of gradients."""
    backend = Emulated(library, "bfloat16", H200, 3)
    check(backend, 20, 30, 4096, 10.0, Pairing(20), generator, ())
    check(backend, 5, 6, 1030, 10.0, Pairing(5), generator, ("both",))


@pytest.mark.parametrize("element", ELEMENTS)
def test_no_negatives_and_no_columns(library, element, generator) -> None:
    backend = Emulated(library, element, H200, 1)
    check(backend, 2, None, 8, 10.0, ntxent(2), generator)
    check(backend, 1, 1, 8, 10.0, Pairing(1), generator)
    x, nothing = rows_of(element, 3, 8, generator), rows_of(element, 0, 8, generator)
    s = torch.tensor(2.0)
    lse, positive = backend.forward(x, nothing, s, Pairing(0))
    assert torch.cat((lse, positive)).isneginf().all()
    empty = torch.empty(0)
    row, column = (lse, torch.ones(3)), (empty, empty)
    assert (backend.backward(x, nothing, s, Pairing(0), row, column) == 0).all()


@pytest.mark.parametrize("element", ELEMENTS)
def test_columns_beyond_the_last_add_nothing(library, element) -> None:
    """Where all logits are low, the zeros that fill a tile up would weigh 2^173."""
    backend = Emulated(library, element, H200, 1)
    x = torch.zeros(3, 8, dtype=DTYPES.get(element, torch.float32))
    x[:, 0] = 1
    y = -x[:1].expand(5, 8).contiguous()
    s, pairing = torch.tensor(120.0), Pairing(0)
    lse, _ = backend.forward(x, y, s, pairing)
    torch.testing.assert_close(lse, torch.full((3,), -120 + math.log(5)))
    row, column = (lse, torch.ones(3)), (torch.full((5,), -120 + math.log(3)), torch.ones(5))
    for sides in ((row, column), (row, None)):
        want = oracle.backward(x.float(), y.float(), s, pairing, *sides)
        got = backend.backward(x, y, s, pairing, *sides)
        torch.testing.assert_close(got, want, rtol=ROUNDING[element] + 1e-4, atol=0)


@pytest.mark.parametrize("element", ["bfloat16", "ieee"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_rows_show(library, element, value, generator) -> None:
    backend = Emulated(library, element, H200, 1)
    x, y = rows_of(element, 20, 20, generator), rows_of(element, 90, 20, generator)
    x[7, 3] = y[84, 5] = value
    s, pairing = torch.tensor(10.0), Pairing(20, 3, 0, 10)
    got = backend.forward(x, y, s, pairing)
    want = oracle.forward(x.double(), y.double(), s.double(), pairing)[:2]
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
    x[7, 3] = 0
    lse, _ = backend.forward(x, y, s, pairing)
    row, column = (lse, torch.ones(20)), (torch.zeros(90), torch.ones(90))
    assert not backend.backward(x, y, s, pairing, row, column).isfinite().all(1).any()
    assert backend.forward(x, y, torch.tensor(math.nan), pairing)[0].isnan().all()


@pytest.mark.parametrize("element", ["float16", "tf32"])
def test_the_order_of_events_changes_nothing(library, element, generator) -> None:
    """Copies that land early or late, and warps that run ahead, give the same bits."""
    x = rows_of(element, 150, 130, generator)
    s, g = torch.tensor(10.0), torch.randn(150, generator=generator)
    results = []
    for seed in range(4):
        backend = Emulated(library, element, L40, seed)
        lse, _ = backend.forward(x, x, s, ntxent(150))
        results.append((lse, backend.backward(x, x, s, ntxent(150), (lse, g), (lse, g))))
    for lse, u in results[1:]:
        assert torch.equal(lse, results[0][0])
        assert torch.equal(u, results[0][1])


@pytest.mark.parametrize("element", ["bfloat16", "float16"])
def test_tiny_upstream_gradients_lose_nothing(library, element, generator) -> None:
    backend = Emulated(library, element, H200, 2)
    x = rows_of(element, 40, 20, generator)
    s, pairing = torch.tensor(10.0), ntxent(40)
    lse, _ = backend.forward(x, x, s, pairing)
    g, h = torch.randn(2, 40, generator=generator)
    for row, column in ((g, h), (g, None), (None, h)):

        def u(size: float, row: Tensor | None = row, column: Tensor | None = column) -> Tensor:
            sides = [None if w is None else (lse, size * w) for w in (row, column)]
            return backend.backward(x, x, s, pairing, *sides)

        assert torch.equal(u(2.0**-40) * 2.0**40, u(1.0))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_named_elements_and_the_tiles_that_hold_them(library, data: st.DataObject) -> None:
    m, n = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    length = data.draw(st.integers(0, min(m, n)))
    pairing = Pairing(
        length,
        data.draw(st.integers(0, max(length - 1, 0))),
        data.draw(st.integers(0, m - length)),
        data.draw(st.integers(0, n - length)),
        data.draw(st.booleans()),
    )
    problem = EmulatedProblem()
    for name, value in zip(("length", "shift", "row_base", "column_base", "leave_out_self"),
                           astuple(pairing), strict=True):  # fmt: skip
        setattr(problem, name, value)
    p = ctypes.byref(problem)
    positive, itself = {}, {}
    for a in range(length):
        row = pairing.row_base + a
        positive[row] = pairing.column_base + (a + pairing.shift) % length
        if pairing.leave_out_self:
            itself[row] = pairing.column_base + a
    for i in range(m):
        assert library.positive_of(p, ctypes.c_int64(i)) == positive.get(i, -1)
        assert library.self_of(p, ctypes.c_int64(i)) == itself.get(i, -1)
    block, tile = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    for i in range(0, m, block):
        named = {d[r] for d in (positive, itself) for r in range(i, i + block) if r in d}
        for j in range(0, n, tile):
            if named & set(range(j, j + tile)):
                assert library.named_meets(p, ctypes.c_int64(i), block, j, j + tile)
    # Tiles without any are not masked needlessly: a diagonal meets as many columns as rows.
    met = sum(
        library.named_meets(p, ctypes.c_int64(i), 1, j, j + 1) for i in range(m) for j in range(n)
    )
    assert met == sum(len({d[i] for d in (positive, itself) if i in d}) for i in range(m))


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("shared", [99, 163, 227])
def test_plans_fit_every_gpu(library, element, shared) -> None:
    backend = Emulated(library, element, (108, shared << 10), 0)
    for dim in (1, 32, 64, 128, 129, 256, 300, 768, 4096):
        for m, n in ((1, 1), (256, 65536), (4096, 4096), (20000, 20000), (131072, 131072)):
            for backward in (False, True):
                wide, resident, panels, stages, splits, used, rows, gradients = backend.plan(
                    m, n, dim, backward
                )
                assert used <= shared << 10
                assert stages in (2, 3)
                assert rows == -(-m // 128)
                assert gradients == (panels if backward else 1)
                assert wide <= backward
                assert 1 <= splits <= max(1, -(-n // 32))
                blocks = rows * gradients
                assert splits == 1 or blocks * splits <= 4 * 2 * 108
                if (m, n) == (256, 65536) and dim <= 256:  # MoCo's queue occupies the GPU
                    assert blocks * splits >= 100
                assert resident or dim > 32
    with pytest.raises(RuntimeError, match="99 KB"):
        Emulated(library, element, (108, 48 << 10), 0).plan(8, 8, 300, True)
    with pytest.raises(RuntimeError, match="split the batch"):
        backend.plan(2**31, 8, 8, False)


def test_swizzled_rows_meet_no_bank_twice(library) -> None:
    offset = library.swizzled_offset
    assert sorted(offset(r, v) for r in range(16) for v in range(8)) == list(range(0, 2048, 16))
    for v in range(8):
        assert {offset(r, v) // 16 % 8 for r in range(8)} == set(range(8))
        for r in range(16):
            assert offset(r, v) == offset(r, v % 2) ^ (v // 2 * 32)  # other_vector


def test_elements_round_as_torch_rounds(library, generator) -> None:
    values = torch.randn(500, generator=generator) * 2.0 ** torch.randint(
        -30, 20, (500,), generator=generator
    )
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, 65504.0, 65519.0, 65520.0, 2.0**-25])
    for value in torch.cat((values, special)):
        as_bf16 = value.bfloat16().view(torch.int16).item() & 0xFFFF
        as_fp16 = value.half().view(torch.int16).item() & 0xFFFF
        assert library.bfloat16_bits(value.item()) & 0xFFFF == as_bf16
        assert library.float16_bits(value.item()) & 0xFFFF == as_fp16
        assert library.float16_value(as_fp16) == value.half().item()
