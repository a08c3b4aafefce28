"""The op of groups: opcheck, backends against the oracle, what is kept, threads, compile."""

import pytest
import torch
from torch import Tensor

import rounding
import sslfast
from sslfast.functional import clip
from sslfast.kernels import registry
from sslfast.kernels import similarity_softmax as one
from sslfast.kernels.grouped_softmax import Groups, Problem, reference
from sslfast.kernels.grouped_softmax.op import grouped_softmax
from sslfast.kernels.library import NAMESPACE

# Triton's interpreter is numpy, which tells of every inf - inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

OPS = getattr(torch.ops, NAMESPACE)


def ids(n: int, kinds: int) -> Tensor:
    return torch.randint(kinds, (n,), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("n", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sides", [False, True])
def test_opcheck(n: int | None, dtype: torch.dtype, masked: bool, sides: bool) -> None:
    x = torch.randn(6, 4, dtype=dtype, requires_grad=True)
    y = None if n is None else torch.randn(n, 4, dtype=dtype, requires_grad=True)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.tensor(1.7, dtype=acc, requires_grad=True)
    row, column = ids(6, 3), ids(n or 6, 3)
    ignored = (ids(6, 4), ids(n or 6, 4)) if masked else (None, None)
    rest = 0.5 if masked else None, 0 if n is None else None
    torch.library.opcheck(
        OPS.grouped_softmax.default, (x, y, scale, row, column, *ignored, *rest, sides, 0)
    )


def names() -> list[str]:
    asked = Problem("cpu", torch.float32, 9, 9, 20, False)
    found = [b for b in registry.candidates("grouped_softmax") if b.refusal(asked) is None]
    return [b.name for b in found if b.name != "reference"]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("m", "n"), [(9, None), (650, None), (500, 730), (1, 1)])
@pytest.mark.parametrize("scale", [6.0, -6.0])
@pytest.mark.parametrize("masked", [False, True])
def test_against_the_oracle(name: str, m: int, n: int | None, scale: float, masked: bool) -> None:
    x, kinds = torch.nn.functional.normalize(torch.randn(m, 20), dim=1), max(m // 3, 2)
    y = None if n is None else torch.nn.functional.normalize(torch.randn(n, 20), dim=1)
    row = ids(m, kinds)
    column = row if n is None else ids(n, kinds)
    ignored = (ids(m, 5), ids(m if n is None else n, 5)) if masked else (None, None)
    limit = rounding.between(x, x if y is None else y, 0.3) if masked else None
    groups = Groups(row, column, *ignored, limit, 0 if n is None else 4)
    backend = next(b for b in registry.candidates("grouped_softmax") if b.name == name).module
    results = []
    for run, wide in ((backend, False), (reference, True)):
        rows, columns = (None if t is None else t.double() if wide else t for t in (x, y))
        problem = rows, columns, torch.tensor(scale, dtype=rows.dtype), groups
        found = run.forward(*problem, True)
        given = [(lse, 1.0 + torch.arange(len(lse), dtype=lse.dtype) % 3) for lse in found]
        given = given if n is not None else [given[0], given[1]] * 2
        results.append((*found, *run.backward(*problem, *given, n is not None)))
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), truth.double(), rtol=1e-4, atol=1e-4)


def step(x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
    x = x.detach().requires_grad_()
    groups = Groups(row := ids(len(x), 200), row, own=0 if y is None else None)
    found = grouped_softmax(x, y, torch.tensor(9.0), groups, sides=True)
    total = sum(lse.masked_fill(lse.isinf(), 0).square().sum() for lse in found)
    return (*(lse.detach() for lse in found), *torch.autograd.grad(total, x))


@pytest.mark.parametrize("two", [False, True])
def test_what_is_kept_and_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch, two: bool) -> None:
    x = torch.randn(700, 40) / 6
    y = torch.randn(700, 40) / 6 if two else None
    before, results = torch.get_num_threads(), []
    for floats, threads in ((0, 1), (16 + 128 * 128, 2), (200_000, 1), (2**22, 3)):
        monkeypatch.setattr(one, "KEPT_FLOATS", floats)
        torch.set_num_threads(threads)
        results.append(step(x, y))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_compiles_whole_and_refuses_a_second_derivative() -> None:
    a, b = torch.randn(2, 20, 8)
    groups = ids(20, 7)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return clip(x, y, 2.0, group_ids=groups, negatives=y[:3], false_negative_threshold=2.0)

    made = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = []
    for run in (loss, made):
        x = a.clone().requires_grad_()
        value = run(x, b)
        results.append((value.detach(), *torch.autograd.grad(value, x)))
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)
    x = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, b), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_a_backend_may_be_forced() -> None:
    x = torch.randn(30, 8)
    with sslfast.use_backend("tiled"):
        tiled = step(x, None)
    for ours, other in zip(step(x, None), tiled, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)
