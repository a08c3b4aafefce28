"""The Triton kernels of grouped_softmax against the oracle, through Triton's interpreter.

See ``interpreted_kernels.py``, which ``test_triton_interpreter.py`` runs the same way.
"""

import pytest
import torch
from interpreted_blocks import ROUNDING, TILE
from interpreted_kernels import double, unit_rows
from torch import Tensor

from rounding import between, logit_error
from sslfast.kernels import registry, tiles
from sslfast.kernels.grouped_softmax import Groups, Side, reference, triton
from sslfast.kernels.grouped_softmax.op import grouped_softmax

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
DIM, SCALE = 20, 10.0
S = torch.tensor(SCALE)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of at most 17 rows, in tiles of 16 x 32."""
    monkeypatch.setattr(triton, "rows_of_a_block", lambda rows, *_: min(rows, 17))
    for arithmetic in ("16-bit", "ieee"):
        monkeypatch.setitem(tiles.TILES, ("sorted block", 8, arithmetic), ((0, TILE),))


def groups_of(x: Tensor, y: Tensor | None, kind: str, generator: torch.Generator) -> Groups:
    """Ids beyond 32 bits: of few groups, of few with ids and a threshold, of one, or of none."""

    def ids(kinds: int) -> tuple[Tensor, Tensor]:
        row, column = (
            (torch.randint(kinds, (len(t),), generator=generator) << 33) - 7
            for t in (x, x if y is None else y)
        )
        return row, row if y is None else column

    if kind == "masked":
        limit = between(x, x if y is None else y, 0.2) if len(x) and (y is None or len(y)) else 0.2
        return Groups(*ids(5), *ids(4), limit, 0 if y is None else 3)
    if kind == "none":
        row, column = ids(9)
        return Groups(row, column + 1)
    return Groups(*ids(1 if kind == "one" else 5), own=0 if y is None else None)


def sides_of(
    x: Tensor, y: Tensor | None, groups: Groups, sides: bool, generator: torch.Generator
) -> list[Side | None]:
    """What a backward pass is given; in the symmetric form columns have what rows have."""
    found = reference.forward(*double(x, y, S), groups, sides)
    given: list[Side | None] = [
        (lse, torch.randn(lse.shape, generator=generator).double() / 1000) for lse in found
    ]
    if y is None:
        given[2:] = given[:2]
    return given if sides or y is None else [*given[:2], None, None]


def narrow(sides: list[Side | None]) -> list[Side | None]:
    return [None if side is None else (side[0].float(), side[1].float()) for side in sides]


def check(
    x: Tensor, y: Tensor | None, groups: Groups, sides: bool, generator: torch.Generator
) -> None:
    """Log-sum-exps to a logit's error, gradients to that of their weights, whatever their signs."""
    known = logit_error(SCALE, DIM)
    found = triton.forward(x, y, S, groups, sides)
    for a, b in zip(found, reference.forward(*double(x, y, S), groups, sides), strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=0, atol=known)
    wide = sides_of(x, y, groups, sides, generator)
    truth = reference.backward(*double(x, y, S), groups, *wide, y is not None)
    given = x, y, S, groups, *narrow(wide), y is not None
    got = triton.backward(*given)
    # The weights of a log-sum-exp add up to 1.
    size = sum(side[1].abs().sum() for side in wide if side is not None)
    for value, exact, again in zip(got, truth, triton.backward(*given), strict=True):
        assert value.dtype == torch.float32
        assert value.shape == exact.shape
        assert (value - exact).norm() <= (2 * known + ROUNDING[x.dtype]) * size
        assert torch.equal(value, again)


@pytest.mark.parametrize(
    ("m", "n", "dtype", "kind"),
    [
        (37, None, FP32, "masked"),
        (20, None, FP16, "groups"),
        (18, None, BF16, "one"),  # no negatives
        (40, 33, FP16, "masked"),
        (19, 45, BF16, "masked"),
        (19, 20, FP32, "one"),
        (20, 20, FP32, "none"),  # no positives
        (1, 40, FP16, "groups"),
        (40, 1, FP32, "groups"),
        (3, 0, FP16, "masked"),
        (0, 3, FP32, "groups"),
    ],
)
def test_against_the_oracle(
    m: int, n: int | None, dtype: torch.dtype, kind: str, generator: torch.Generator
) -> None:
    x = unit_rows(m, DIM, dtype, generator)
    y = None if n is None else unit_rows(n, DIM, dtype, generator)
    groups = groups_of(x, y, kind, generator)
    for sides in (False, True):
        check(x, y, groups, sides, generator)


@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_tiles_as_they_are(
    dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    x, y = unit_rows(150, DIM, dtype, generator), unit_rows(140, DIM, dtype, generator)
    check(x, y, groups_of(x, y, "masked", generator), True, generator)


def test_positives_far_below_the_negatives() -> None:
    """Each kind has a maximum of its own: e^-300 times another's is 0 in float32."""
    x, y = torch.zeros(2, DIM), torch.zeros(3, DIM)
    x[:, 0], y[:, 0] = 1, torch.tensor([15.0, -15.0, -14.5])
    groups = Groups(torch.tensor([1, 1]), torch.tensor([0, 1, 1]))
    found = triton.forward(x, y, S, groups, True)
    for a, b in zip(found, reference.forward(*double(x, y, S), groups, True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_loses_nothing_of_tiny_weights(generator: torch.Generator) -> None:
    for dtype in (FP16, FP32):
        x, y = unit_rows(20, DIM, dtype, generator), unit_rows(40, DIM, dtype, generator)
        groups = groups_of(x, y, "masked", generator)
        sides = narrow(sides_of(x, y, groups, True, generator))
        small = [(lse, 2.0**-40 * g) for lse, g in sides]
        for a, b in zip(
            triton.backward(x, y, S, groups, *small, True),
            triton.backward(x, y, S, groups, *sides, True),
            strict=True,
        ):
            assert torch.equal(a * 2.0**40, b)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_non_finite_rows_show(dtype: torch.dtype, value: float, generator: torch.Generator) -> None:
    x, y = unit_rows(20, DIM, dtype, generator), unit_rows(50, DIM, dtype, generator)
    groups = groups_of(x, y, "groups", generator)
    x[7, 3] = y[44, 5] = value
    want = reference.forward(*double(x, y, S), groups, True)
    for a, b in zip(triton.forward(x, y, S, groups, True), want, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
    sides = [(lse, torch.ones_like(lse)) for lse in want]
    truth = reference.backward(*double(x, y, S), groups, *sides, True)
    got = triton.backward(x, y, S, groups, *narrow(sides), True)
    for a, b, bad in zip(got, truth, (7, 44), strict=True):
        assert not a[bad].isfinite().any()
        # The oracle's log-sum-exp of one kind reaches elements of the other one too.
        assert (a.isfinite() | ~b.isfinite()).all()


@pytest.mark.parametrize("two", [False, True])
def test_op(two: bool, generator: torch.Generator) -> None:
    """As torch sees it, with the gradient of the scale."""
    leaf, other = (unit_rows(n, DIM, FP32, generator) for n in (35, 40))
    groups = groups_of(leaf, other if two else None, "groups", generator)
    results = []
    for name in ("triton", "reference"):
        x, y, s = (t.clone().requires_grad_() for t in (leaf, other, S))
        with registry.use_backend(name):
            found = grouped_softmax(x, y if two else None, s, groups, sides=True)
            total = sum(t[t.isfinite()].square().mean() for t in found)
            results.append(torch.autograd.grad(total, (x, y, s) if two else (x, s)))
    for value, truth in zip(*results, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-5)
