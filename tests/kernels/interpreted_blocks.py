"""The Triton kernels' form by blocks of rows against the oracles, through Triton's interpreter.

See ``interpreted_kernels.py``, which ``test_triton_interpreter.py`` runs the same way.
"""

import interpreted_kernels
import pytest
import torch
from interpreted_kernels import check, double, unit_rows
from torch import Tensor

from rounding import logit_error
from sslfast.functional import clip
from sslfast.kernels import products, registry, tiles
from sslfast.kernels.sigmoid_contrast import _triton_blocks as _sigmoid_blocks
from sslfast.kernels.sigmoid_contrast import reference as sigmoid_oracle
from sslfast.kernels.sigmoid_contrast import triton as sigmoid
from sslfast.kernels.similarity_softmax import Pairing, _triton_blocks, add_positives, problem
from sslfast.kernels.similarity_softmax import reference as oracle
from sslfast.kernels.similarity_softmax import triton as backend

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
# Of weights in memory; the interpreter truncates to bfloat16 where a GPU rounds.
ROUNDING = {FP32: 0.0, FP16: 2.0**-11, BF16: 2.0**-7}
TILE = tiles.Tile(16, 32, 16, 0, 4, 1)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any D by blocks, of at most 17 rows, in tiles of 16 x 32; triangles from 40 rows on."""
    monkeypatch.setattr(products, "RESIDENT_DIM", 0)
    for blocks in (_triton_blocks, _sigmoid_blocks):
        monkeypatch.setattr(blocks, "rows_of_a_block", lambda rows, *_: min(rows, 17))
    monkeypatch.setattr(_triton_blocks, "TRIANGLE_ROWS", 40)
    monkeypatch.setattr(interpreted_kernels, "ROUNDING", ROUNDING)
    for arithmetic in ("16-bit", "ieee"):
        monkeypatch.setitem(tiles.TILES, ("block", 8, arithmetic), ((0, TILE),))


@pytest.mark.parametrize(
    ("m", "n", "pairing", "dtype"),
    [
        (50, None, Pairing(50, 25, leave_out_self=True), FP16),  # forward from the triangle
        (41, None, Pairing(41, 0, leave_out_self=True), FP32),
        (38, None, Pairing(38, 19, leave_out_self=True), BF16),  # too few rows for it
        (44, None, Pairing(0), FP16),  # the diagonal counts
        (20, 60, Pairing(20, 10, 0, 20, leave_out_self=True), FP32),  # a rank's rows
        (40, 33, Pairing(20, 3, 10, 5), FP16),
        (40, 33, Pairing(20, 3, 10, 5), BF16),
        (33, 33, Pairing(33), FP32),
        (1, 40, Pairing(1, 0, 0, 33), FP16),
        (40, 1, Pairing(1, 0, 33), FP32),
    ],
)
def test_against_the_oracle(
    m: int, n: int | None, pairing: Pairing, dtype: torch.dtype, generator: torch.Generator
) -> None:
    x = unit_rows(m, 20, dtype, generator)
    y = None if n is None else unit_rows(n, 20, dtype, generator)
    check(x, y, 10.0, pairing, generator)


def relative(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_triangle(scale: float, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Its gradient, in blocks of 7 rows; with two exponentials an element at scale 100."""
    x = unit_rows(50, 20, dtype, generator)
    x[3] = -x[4]
    s, pairing = torch.tensor(scale), Pairing(50, 25, leave_out_self=True)
    lse, _, _ = oracle.forward(*double(x, None, s), pairing)
    wide = lse, torch.randn(50, generator=generator).double() / 1000
    side = wide[0].float(), wide[1].float()
    got = backend.backward(x, None, s, pairing, side, side)
    truth = oracle.backward(*double(x, None, s), pairing, wide, wide)
    assert relative(got, truth) <= 1e-7 * scale + 2e-6 + ROUNDING[dtype]
    assert torch.equal(got, backend.backward(x, None, s, pairing, side, side))


@pytest.mark.parametrize("sides", ["both", "rows", "columns"])
@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_both_gradients(sides: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    x, y = unit_rows(40, 20, dtype, generator), unit_rows(45, 20, dtype, generator)
    s, pairing = torch.tensor(10.0), Pairing(40, 7, 0, 3)
    lse, _, lse_columns = oracle.forward(*double(x, y, s), pairing, True)
    g, h, w = (torch.randn(n, generator=generator).double() / 1000 for n in (40, 45, 40))
    row = None if sides == "columns" else (lse, g)
    column = None if sides == "rows" else (lse_columns, h)
    back, (xd, yd, sd) = pairing.transposed(), double(x, y, s)
    truth = (
        oracle.backward(xd, yd, sd, pairing, row, column),
        oracle.backward(yd, xd, sd, back, column, row),
    )
    add_positives(truth[0], yd, w, pairing)
    add_positives(truth[1], xd, w.roll(7), back)
    given = [None if p is None else (p[0].float(), p[1].float()) for p in (row, column)]
    got = backend.backward_both(x, y, s, pairing, *given, w.float())
    for value, exact in zip(got, truth, strict=True):
        assert value.dtype == torch.float32
        assert relative(value, exact) <= 3e-6 + ROUNDING[dtype]
    again = backend.backward_both(x, y, s, pairing, *given, w.float())
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize(
    ("m", "n", "pairing", "scale", "bias", "dtype"),
    [
        (40, 70, Pairing(35, 7, 5, 20), 10.0, -10.0, FP16),
        (40, 70, Pairing(35, 7, 5, 20), 10.0, -10.0, BF16),
        (33, 33, Pairing(33), 100.0, -20.0, FP32),
        (33, 33, Pairing(33), 100.0, -20.0, FP16),
        (1, 40, Pairing(1, 0, 0, 33), -3.0, 2.0, FP16),
        (40, 1, Pairing(0), 10.0, -60.0, FP32),
        (3, 0, Pairing(0), 10.0, -10.0, FP32),
        (0, 3, Pairing(0), 10.0, -10.0, FP16),
    ],
)
def test_sigmoid(
    m: int,
    n: int,
    pairing: Pairing,
    scale: float,
    bias: float,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    x, y = unit_rows(m, 20, dtype, generator), unit_rows(n, 20, dtype, generator)
    given = x, y, torch.tensor(scale), torch.tensor(bias), pairing
    wide = *double(*given[:4]), pairing
    weight = torch.randn(m, generator=generator) / 1000
    got = sigmoid.gradients(*given, weight, True)
    want = sigmoid_oracle.gradients(*wide, weight.double(), True)
    known = logit_error(scale, x.shape[1], bias)
    torch.testing.assert_close(got[0].double(), want[0], rtol=known, atol=1e-36)
    torch.testing.assert_close(sigmoid.forward(*given), got[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(got[3].double(), want[3], rtol=0, atol=known * m * n / 1000)
    # The sum of |G_ij| bounds what rounding adds up to, whatever their signs.
    error = 2 * known + ROUNDING[dtype]
    size = sigmoid_oracle.gradients(*wide, torch.ones(m).double(), True)[3].abs() + 2
    of_rows = weight.double().abs() * size
    assert ((got[1] - want[1]).norm(dim=1) <= error * of_rows + 1e-12).all()
    assert (got[2] - want[2]).norm() <= error * of_rows.sum() + 1e-12
    again = sigmoid.gradients(*given, weight, True)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    without = sigmoid.gradients(*given, weight, False)
    assert without[2].numel() == 0
    assert all(torch.equal(without[k], got[k]) for k in (0, 1, 3))


def test_sigmoid_loses_nothing_of_tiny_weights_and_shows_nan(generator: torch.Generator) -> None:
    for dtype in (FP16, FP32):
        x, y = unit_rows(20, 20, dtype, generator), unit_rows(40, 20, dtype, generator)
        given = x, y, torch.tensor(10.0), torch.tensor(-5.0), Pairing(20)
        weight = torch.randn(20, generator=generator)
        small = sigmoid.gradients(*given, 2.0**-40 * weight, True)[1:]
        for a, b in zip(small, sigmoid.gradients(*given, weight, True)[1:], strict=True):
            assert torch.equal(a * 2.0**40, b)
        x[7, 3] = torch.nan
        loss, u, v, d_bias = sigmoid.gradients(*given, weight, True)
        bad = torch.arange(20) == 7
        assert torch.equal(loss.isnan(), bad)
        assert torch.equal(d_bias.isnan(), bad)
        assert torch.equal(u.isnan().all(1), bad)
        assert not v.isfinite().any()


def test_positives_alone_and_nothing(generator: torch.Generator) -> None:
    x, y = unit_rows(3, 20, FP16, generator), unit_rows(3, 20, FP16, generator)
    u, v = backend.backward_both(x, y, torch.tensor(1.0), Pairing(3), None, None, torch.ones(3))
    assert torch.equal(u, y.float())
    assert torch.equal(v, x.float())
    for m, n in ((0, 0), (0, 3), (3, 0)):
        for dtype in (FP16, FP32):
            x, y = torch.zeros(m, 8, dtype=dtype), torch.zeros(n, 8, dtype=dtype)
            check(x, y, 10.0, Pairing(0), generator)
            sides = (torch.ones(m), torch.ones(m)), (torch.ones(n), torch.ones(n))
            both = backend.backward_both(x, y, torch.tensor(1.0), Pairing(0), *sides, x[:, 0])
            assert [t.shape for t in both] == [(m, 8), (n, 8)]
            assert all((t == 0).all() for t in both)


@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_tiny_upstream_gradients_lose_nothing(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    x, y = unit_rows(20, 20, dtype, generator), unit_rows(20, 20, dtype, generator)
    s, pairing = torch.tensor(10.0), Pairing(20)
    lse, _, lse_columns = backend.forward(x, y, s, pairing, True)
    g, h, w = torch.randn(3, 20, generator=generator)

    def both(size: float, row: bool) -> tuple[Tensor, Tensor]:
        column = None if row else (lse_columns, size * h)
        return backend.backward_both(x, y, s, pairing, (lse, size * g), column, size * w)

    for row in (True, False):
        for small, one in zip(both(2.0**-40, row), both(1.0, row), strict=True):
            assert torch.equal(small * 2.0**40, one)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_non_finite_rows_show(dtype: torch.dtype, value: float, generator: torch.Generator) -> None:
    x, y = unit_rows(20, 20, dtype, generator), unit_rows(50, 20, dtype, generator)
    x[7, 3] = y[44, 5] = value
    s, pairing = torch.tensor(10.0), Pairing(20, 3, 0, 10)
    got = backend.forward(x, y, s, pairing, True)
    want = oracle.forward(*double(x, y, s), pairing, True)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_large_d_goes_by_blocks(
    dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rule, the tiles and the budget as they are."""
    monkeypatch.undo()
    calls = []
    for name in ("statistics", "gradients"):
        whole = getattr(_triton_blocks, name)

        def spied(*given, name=name, whole=whole):
            calls.append(name)
            return whole(*given)

        monkeypatch.setattr(_triton_blocks, name, spied)
    for d in (256, 300, 512):
        x, y = unit_rows(70, d, dtype, generator), unit_rows(140, d, dtype, generator)
        check(x, y, 10.0, Pairing(70, 0, 0, 70), generator, ("both",))
        assert calls == ([] if d <= 256 else ["statistics", "gradients"])
        assert backend.FEATURES.one_pass(problem(x, y, Pairing(70, 0, 0, 70))) == (d > 256)
        calls.clear()


def test_op_has_both_gradients_from_one_sweep(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    whole = _triton_blocks.gradients
    monkeypatch.setattr(
        _triton_blocks, "gradients", lambda *given: calls.append(given) or whole(*given)
    )
    leaves = [unit_rows(20, 20, FP32, generator) for _ in range(2)]
    found = []
    for name in ("triton", "reference"):
        x, y = (t.clone().requires_grad_() for t in leaves)
        s = torch.tensor(10.0, requires_grad=True)
        with registry.use_backend(name):
            clip(x, y, s).backward()
        found.append((x.grad, y.grad, s.grad))
    assert len(calls) == 1
    for value, truth in zip(*found, strict=True):
        assert relative(value, truth.double()) <= 1e-5


def test_rows_of_a_block() -> None:
    """Within the budget, nearly equal, never none."""
    device = torch.device("cpu")
    budget = products.block_bytes(device)
    assert budget == 2.5 * 2**30  # of the 80 GiB that are supposed where there is no GPU
    for rows, row_bytes, added in (
        (1, 4.0, 0),
        (100, 4 * 50_000, 12_800_000),
        (100_000, 6 * 30_522, 4 * 30_522 * 768),
        (5000, 6 * 256_000, 4 * 256_000 * 4096),
        (3, 2.0**33, 0),  # a row takes more than the budget
        (7, 0.0, 0),  # there are no columns
    ):
        step = products.rows_of_a_block(rows, row_bytes, added, device)
        assert 1 <= step <= rows
        assert step == 1 or step * row_bytes <= max(budget, added)
        count = -(-rows // step)
        assert count * step - rows < count
