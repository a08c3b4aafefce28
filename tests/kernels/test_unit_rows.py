"""Rows over their norms, and their gradient: every backend against the float64 oracle."""

import math
import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.unit_rows import EPS, Positives, problem, reference

# Triton's interpreter is numpy, which tells of every inf / inf; it truncates float32 to bfloat16.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
TRUNCATED = torch.bfloat16 if "TRITON_INTERPRET" in os.environ else None

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
PAIRINGS = {  # of 40 rows with 90 others, unless the rows are their own others
    "ntxent": Pairing(40, 20, leave_out_self=True),
    "slab": Pairing(40, 20, 0, 43),
    "window": Pairing(20, 3, 7, 60),
    "back": Pairing(20, 3, 7, 60).transposed(),
    "clip": Pairing(40),
    "none": Pairing(0),
}


def accepted() -> list[Any]:
    return [
        pytest.param(b.module, dtype, id=f"{b.name}-{str(dtype).removeprefix('torch.')}")
        for b in registry.candidates("unit_rows")
        for dtype in TOLERANCE
        if b.refusal(problem(torch.empty(1, 2, dtype=dtype))) is None
    ]


def double(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.double()


def distance(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize(("backend", "dtype"), accepted())
@pytest.mark.parametrize(("m", "d"), [(7, 3), (50, 123), (33, 128), (2, 3000), (1, 1), (0, 5)])
def test_unit_rows(backend: Any, dtype: torch.dtype, m: int, d: int) -> None:
    x = (3 * torch.randn(m, d)).to(dtype)
    z, norms = backend.normalize(x)
    assert z.dtype == dtype
    assert norms.dtype == accumulation_dtype(dtype)
    assert distance(norms, x.double().norm(dim=1)) <= 1e-6
    truth = F.normalize(x.double(), dim=1)
    assert distance(z, truth) <= TOLERANCE[dtype]
    # Rounded once, number by number: half a step of the dtype, or a whole one where bits are cut.
    about, steps = torch.finfo(dtype), 1.0 if dtype == TRUNCATED else 0.5
    step = about.eps * 2.0 ** (torch.frexp(truth).exponent - 1).clamp_min(
        math.log2(about.smallest_normal)
    )
    computing = 30 * torch.finfo(norms.dtype).eps * truth.abs()
    assert ((z.double() - truth).abs() <= steps * step + computing).all()
    assert torch.equal(z, backend.normalize(x)[0])


@pytest.mark.parametrize(("backend", "dtype"), accepted())
@pytest.mark.parametrize(
    ("pairs", "parts", "d", "unit", "sides"),
    [
        ("ntxent", 1, 17, True, "both"),
        ("ntxent", 11, 40, True, "both"),
        ("slab", 3, 64, True, "own"),
        ("window", 2, 33, False, "own"),
        ("back", 2, 33, True, "partner"),
        ("clip", 1, 128, False, "partner"),
        ("none", 5, 40, True, "own"),
    ],
)
def test_gradient(
    backend: Any, dtype: torch.dtype, pairs: str, parts: int, d: int, unit: bool, sides: str
) -> None:
    p, acc = PAIRINGS[pairs], accumulation_dtype(dtype)
    m = p.row_base + 40 if pairs == "back" else 40
    x = (3 * torch.randn(m, d)).to(dtype)
    z, norms = reference.normalize(x) if unit else (x, None)
    u, scale = torch.randn(parts, m, d, dtype=acc), torch.tensor(2.5, dtype=acc)
    other = z if pairs == "ntxent" else torch.randn(90, d).to(dtype)
    own, partner = torch.randn(2, p.length, dtype=torch.float64)
    own, partner = own if sides != "partner" else None, partner if sides != "own" else None
    given = [None if w is None else w.to(acc) for w in (own, partner)]
    dx, inner = backend.gradient(u.clone(), z, norms, scale, Positives(p, other, *given), 0.5)
    wide = Positives(p, other.double(), *given)
    exact, product = reference.gradient(
        u.double(), z.double(), double(norms), scale.double(), wide, 0.5
    )
    assert dx.dtype == dtype
    assert inner.dtype == acc
    assert distance(dx, exact) <= TOLERANCE[dtype]
    size = (z.double() * u.double().sum(0)).abs().sum() + 1
    assert (inner - product).abs() <= 1e-6 * size
    again, nothing = backend.gradient(u.clone(), z, norms, scale, Positives(p, other, *given), None)
    assert torch.equal(dx, again)
    assert nothing.shape == (0,)
    alone, _ = backend.gradient(u.clone(), z, norms, scale, None, None)
    without, _ = backend.gradient(u.clone(), z, norms, scale, Positives(p, other, None, None), None)
    assert torch.equal(alone, without)
    assert torch.equal(alone, dx) == (pairs == "none")


def test_the_oracle_is_the_gradient_of_normalize() -> None:
    x = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    u, scale = torch.randn(1, 20, 6, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
    z, norms = reference.normalize(x.detach())
    p = Pairing(12, 5, 3, 2)
    other, weight = torch.randn(20, 6, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    unit, a = F.normalize(x, dim=1), torch.arange(12)
    logits = (unit[3 + a] * other[2 + (a + 5) % 12]).sum(1)
    value = (unit * u[0]).sum() + (weight * logits).sum()
    (truth,) = torch.autograd.grad(scale * value, x)
    found, inner = reference.gradient(u, z, norms, scale, Positives(p, other, weight, None), 1.0)
    torch.testing.assert_close(found, truth)
    torch.testing.assert_close(inner, value.detach())


@pytest.mark.parametrize(("backend", "dtype"), accepted())
def test_rows_without_a_direction(backend: Any, dtype: torch.dtype) -> None:
    """They are divided by EPS, as by F.normalize; nothing comes back, where it has 1 / EPS."""
    x = torch.randn(6, 9).to(dtype)
    x[2], x[3] = 0, 1e-14 * x[3]  # 0 too, in fp16
    z, norms = backend.normalize(x)
    torch.testing.assert_close(z[2:4], (x[2:4].double() / EPS).to(dtype))
    assert (norms[2:4] == norms.new_tensor(EPS)).all()
    u = torch.randn(1, 6, 9, dtype=norms.dtype)
    dx, _ = backend.gradient(u.clone(), z, norms, norms.new_tensor(1e3), None, None)
    assert (dx == 0).all(1).tolist() == [n in (2, 3) for n in range(6)]


@pytest.mark.parametrize(("backend", "dtype"), accepted())
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_rows_show(backend: Any, dtype: torch.dtype, value: float) -> None:
    x = torch.randn(6, 9).to(dtype)
    clean, _ = backend.normalize(x)
    x[2, 4] = value
    z, norms = backend.normalize(x)
    assert z[2, 4].isnan()
    assert not norms[2].isfinite()
    others = torch.arange(6) != 2
    assert torch.equal(z[others], clean[others])
    u = torch.randn(1, 6, 9, dtype=norms.dtype)
    u[0, 1, 1] = value
    dx, inner = backend.gradient(u, z, norms, torch.ones_like(norms[0]), None, 1.0)
    assert dx.isfinite().all(1).tolist() == [n not in (1, 2) for n in range(6)]
    assert not inner.isfinite()
