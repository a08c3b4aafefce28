"""Selection, compaction, gather, cutting and restoring: every backend against the oracle."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sslfast
import sslfast.kernels.patchify_visible
import sslfast.kernels.restore_with_tokens
from sslfast import kernels
from sslfast.kernels import registry
from sslfast.kernels.gather_patches.op import gather_patches, scatter_patches
from sslfast.kernels.patch_mask import KEY_BITS
from sslfast.kernels.patch_mask.op import compact_mask, random_patch_mask, smallest_keys
from sslfast.kernels.patchify_visible.op import cut_patches, patchify_visible
from sslfast.kernels.philox.op import random_bits
from sslfast.kernels.restore_with_tokens.op import restore_with_tokens, restore_with_tokens_backward

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHAPES = [(0, 7, 3), (3, 1, 1), (3, 1, 0), (1, 5, 5), (5, 196, 49), (2, 1001, 333)]


def backends(op: str) -> list[str]:
    found = (b for b in registry.candidates(op) if b.name != "reference")
    return [b.name for b in found if b.unavailable() is None and b.module.DEVICE != "cuda"]


def both(name: str, op: Any, *arguments: Any) -> tuple[Any, Any]:
    """What a backend and the oracle give."""
    results = []
    for backend in (name, "reference"):
        with sslfast.use_backend(backend):
            results.append(op(*arguments))
    return results[0], results[1]


def check_equal(name: str, op: Any, *arguments: Any) -> None:
    got, want = both(name, op, *arguments)
    if isinstance(got, Tensor):
        got, want = (got,), (want,)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", backends("patch_mask"))
@pytest.mark.parametrize(("batch", "length", "keep"), SHAPES)
def test_selection_gives_the_same_bits(name: str, batch: int, length: int, keep: int) -> None:
    ids = torch.randint(-(2**62), 2**62, (batch,))
    for seed, step in ((0, 0), (-5, 2**33 + 1)):
        check_equal(name, random_patch_mask, ids, torch.tensor(step), seed, 3, length, keep)
    check_equal(name, compact_mask, torch.rand(batch, length) < 0.6, keep)
    counts = torch.randint(-1, length + 2, (batch,))
    for top in (1, 5, 2**32, 2**KEY_BITS):  # many ties, a few, none
        check_equal(name, smallest_keys, torch.randint(top, (batch, length)), counts)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_smallest_is_a_sort(data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.integers(0, 2**KEY_BITS - 1) | st.integers(0, 2), min_size=1))
    count = data.draw(st.integers(0, len(keys)))
    smallest = set(sorted(range(len(keys)), key=lambda e: (keys[e], e))[:count])
    for name in [*backends("patch_mask"), "reference"]:
        with sslfast.use_backend(name):
            chosen = smallest_keys(torch.tensor([keys]), torch.tensor([count]))[0]
        assert {e for e, c in enumerate(chosen.tolist()) if c} == smallest


def test_random_mask_is_the_smallest_words() -> None:
    ids, step = torch.arange(9), torch.tensor(4)
    words = random_bits(ids, step, 7, 2, 50)
    ids_keep, ids_restore, mask = random_patch_mask(ids, step, 7, 2, 50, 13)
    for row in range(9):
        smallest = words[row].argsort()[:13].sort().values
        assert torch.equal(ids_keep[row], smallest)
    assert torch.equal(mask.sum(1), torch.full((9,), 37))
    order = torch.arange(50).expand(9, 50).gather(1, ids_restore.argsort(1))
    assert torch.equal(order[:, :13], ids_keep)
    assert torch.equal(order[:, 13:], torch.arange(50).expand(9, 50)[mask].view(9, 37))


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot keep 6 of 5"):
        random_patch_mask(torch.arange(2), torch.tensor(0), 0, 0, 5, 6)
    with pytest.raises(ValueError, match="cannot keep -1 of 5"):
        compact_mask(torch.zeros(2, 5, dtype=torch.bool), -1)


@pytest.mark.parametrize("name", backends("gather_patches"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "length", "keep", "dim"), [(3, 7, 4, 5), (2, 15, 15, 130), (0, 4, 2, 3), (2, 3, 0, 4)]
)
def test_gather_and_scatter(
    name: str, dtype: torch.dtype, batch: int, length: int, keep: int, dim: int
) -> None:
    tokens = torch.randn(batch, length, 2 * dim).to(dtype)[..., ::2]  # not contiguous
    rows = torch.randn(batch, keep, dim).to(dtype)
    distinct = torch.rand(batch, length).argsort(1)[:, :keep]
    check_equal(name, gather_patches, tokens, distinct)
    check_equal(name, scatter_patches, rows, distinct, length)
    repeated = torch.randint(length, (batch, keep))
    check_equal(name, gather_patches, tokens, repeated)
    got, want = both(name, scatter_patches, rows, repeated, length)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", backends("gather_patches"))
def test_sums_of_repeated_rows_are_the_same_from_run_to_run(name: str) -> None:
    rows, ids = torch.randn(2, 40, 33), torch.randint(3, (2, 40))
    with sslfast.use_backend(name):
        first = scatter_patches(rows, ids, 5)
        for _ in range(3):
            assert torch.equal(scatter_patches(rows, ids, 5), first)


@pytest.mark.parametrize("bad", [-1, 6])
def test_indices_out_of_range_raise_on_the_cpu(bad: int) -> None:
    ids = torch.tensor([[0, bad]])
    for name in [*backends("gather_patches"), "reference"]:
        with sslfast.use_backend(name):
            with pytest.raises(IndexError, match=r"\[0, 6\)"):
                gather_patches(torch.randn(1, 6, 4), ids)
            with pytest.raises(IndexError, match=r"\[0, 6\)"):
                cut_patches(torch.randn(1, 3, 1, 4, 6), [1, 2, 2], ids)


# Triton in its interpreter, too, leaves undefined what a GPU leaves undefined.
ON_THE_CPU = sorted({*backends("restore_with_tokens"), "reference"} - {"triton"})


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
@pytest.mark.parametrize("name", ON_THE_CPU)
def test_restoring_refuses_indices_out_of_range_on_the_cpu(name: str, bad: int) -> None:
    ids = torch.tensor([[0, 1, 2], [0, bad, 1]])
    with sslfast.use_backend(name):
        with pytest.raises(IndexError, match=r"ids_restore must lie in \[0, 3\)"):
            restore_with_tokens(torch.randn(2, 2, 4), torch.randn(4), ids, None)
        with pytest.raises(IndexError, match=r"ids_restore must lie in \[0, 3\)"):
            restore_with_tokens_backward(torch.randn(2, 3, 4), ids, 2)


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_restoring_with_repeated_indices(name: str) -> None:
    visible, token = torch.randn(2, 3, 4), torch.randn(4)
    ids = torch.tensor([[1, 1, 3, 1, 4], [2, 4, 4, 0, 0]])
    gradient = torch.randn(2, 5, 4)
    a, b = gradient
    none = torch.zeros(4)
    expected = torch.stack(
        (torch.stack((none, a[0] + a[1] + a[3], none)), torch.stack((b[3] + b[4], none, b[0])))
    )
    with sslfast.use_backend(name):
        out = restore_with_tokens(visible, token, ids, None)
        d_visible, d_token = restore_with_tokens_backward(gradient, ids, 3)
    rows = torch.cat((visible, token.expand(2, 2, 4)), 1)
    assert torch.equal(out, torch.stack([r[i] for r, i in zip(rows, ids, strict=True)]))
    torch.testing.assert_close(d_visible, expected)
    torch.testing.assert_close(d_token, a[2] + a[4] + b[1] + b[2])


def accepted(op: str, problem: Any) -> list[tuple[str, torch.dtype]]:
    """Backends and dtypes, as ``problem(tensor of the dtype)`` is taken or refused."""
    pairs = [(name, dtype) for name in backends(op) for dtype in DTYPES]
    found = {b.name: b for b in registry.candidates(op)}
    rows = {dtype: torch.empty(1, 1, 1, dtype=dtype) for dtype in DTYPES}
    return [(name, dtype) for name, dtype in pairs if not found[name].refusal(problem(rows[dtype]))]


def restore_problem(rows: Tensor) -> Any:
    return kernels.restore_with_tokens.problem(rows, torch.zeros(1, 1), 1)


def patchify_problem(rows: Tensor) -> Any:
    return kernels.patchify_visible.problem(rows[None], (1, 1, 1), torch.zeros(1, 1))


@pytest.mark.parametrize(("name", "dtype"), accepted("restore_with_tokens", restore_problem))
@pytest.mark.parametrize("with_positions", [False, True])
@pytest.mark.parametrize(
    ("batch", "length", "keep", "dim"), [(3, 7, 4, 5), (2, 15, 6, 130), (0, 4, 2, 3), (2, 3, 3, 4)]
)
def test_restore_with_tokens(
    name: str,
    dtype: torch.dtype,
    with_positions: bool,
    batch: int,
    length: int,
    keep: int,
    dim: int,
) -> None:
    visible, token = torch.randn(batch, keep, dim).to(dtype), torch.randn(dim).to(dtype)
    ids_restore = torch.rand(batch, length).argsort(1)
    positions = torch.randn(length, dim).to(dtype) if with_positions else None
    given = visible, token, ids_restore, positions
    if with_positions:
        torch.testing.assert_close(*both(name, restore_with_tokens, *given))
    else:
        check_equal(name, restore_with_tokens, *given)
    gradient = torch.randn(batch, length, dim).to(dtype)
    got, want = both(name, restore_with_tokens_backward, gradient, ids_restore, keep)
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1], want[1])


GEOMETRIES = [  # (images, patch, D)
    ((2, 3, 1, 8, 12), (1, 4, 4), 10),
    ((2, 2, 4, 6, 9), (2, 2, 3), 33),
    ((1, 1, 1, 5, 5), (1, 5, 5), 4),
    ((0, 3, 1, 8, 8), (1, 4, 4), 6),
]


@pytest.mark.parametrize(("name", "dtype"), accepted("patchify_visible", patchify_problem))
@pytest.mark.parametrize(("shape", "patch", "dim"), GEOMETRIES)
@pytest.mark.parametrize("extras", ["both", "bias", "positions", "none"])
def test_patchify_visible(
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    patch: tuple[int, int, int],
    dim: int,
    extras: str,
) -> None:
    images = torch.randn(shape).to(dtype).transpose(3, 4).contiguous().transpose(3, 4)
    weight = torch.randn(dim, shape[1], *patch).to(dtype)
    bias = torch.randn(dim).to(dtype) if extras in ("both", "bias") else None
    length = (shape[2] // patch[0]) * (shape[3] // patch[1]) * (shape[4] // patch[2])
    positions = torch.randn(length, dim).to(dtype) if extras in ("both", "positions") else None
    ids = torch.randint(length, (shape[0], 3))
    check_equal(name, cut_patches, images, list(patch), ids)
    got, _ = both(name, patchify_visible, images, weight, bias, positions, ids)
    with sslfast.use_backend("reference"):
        wide = (None if t is None else t.double() for t in (images, weight, bias, positions))
        truth = patchify_visible(*wide, ids)
    assert got.dtype == dtype
    # One rounding of the result, and one of bias + position before the product is added to it.
    tolerance = 3 * torch.finfo(dtype).eps * (1 + 2 * truth.abs().amax() if len(truth) else 1)
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=float(tolerance))


@pytest.mark.parametrize("name", backends("patchify_visible"))
def test_patchify_visible_of_views_that_begin_anywhere(name: str) -> None:
    """GPU kernels copy what does not begin at a multiple of 16 bytes."""
    shapes = ((2, 3, 1, 8, 12), (10, 3, 1, 4, 4), (10,), (6, 10))
    given = [torch.randn(1 + math.prod(shape))[1:].view(shape) for shape in shapes]
    ids = torch.randint(6, (1 + 2 * 3,))[1:].view(2, 3)
    with sslfast.use_backend(name):
        found = patchify_visible(*given, ids)
        assert torch.equal(found, patchify_visible(*(t.clone() for t in given), ids.clone()))
