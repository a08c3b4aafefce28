"""Masked mean squared error: every backend against the float64 oracle."""

import pytest
import torch
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels.masked_mse import problem, reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
EPS = 1e-6


def accepted() -> list[tuple[str, torch.dtype]]:
    return [
        (b.name, dtype)
        for b in registry.candidates("masked_mse")
        for dtype in TOLERANCE
        if b.refusal(problem(torch.empty(1, 2, dtype=dtype))) is None
    ]


def distance(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize(("name", "dtype"), accepted())
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("rows", "dim"), [(7, 3), (50, 123), (20, 768), (0, 5)])
def test_against_float64(
    name: str, dtype: torch.dtype, normalise: bool, rows: int, dim: int
) -> None:
    backend = {b.name: b.module for b in registry.candidates("masked_mse")}[name]
    # A mean far above the deviation, where a variance by one sweep would cancel.
    x, t = torch.randn(rows, dim).to(dtype), (torch.randn(rows, dim) + 30).to(dtype)
    mask, g = torch.rand(rows) < 0.7, torch.randn(rows, dtype=torch.float64)
    truth = reference.forward(x.double(), t.double(), mask, normalise, EPS)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    loss = backend.forward(x, t, mask, normalise, EPS)
    assert loss.dtype == acc
    assert (loss[~mask] == 0).all()
    assert distance(loss, truth) <= TOLERANCE[dtype] / 10
    wide = (g, x.double(), t.double(), mask, normalise, EPS, True)
    given = (g.to(acc), x, t, mask, normalise, EPS)
    gradients = backend.backward(*given, True)
    eager = reference.backward(*given, True)
    for value, base, exact in zip(gradients, eager, reference.backward(*wide), strict=True):
        assert value.dtype == dtype
        assert (value[~mask] == 0).all()
        assert distance(value, exact) <= distance(base, exact) + TOLERANCE[dtype]
    alone, nothing = backend.backward(*given, False)
    assert torch.equal(alone, gradients[0])
    assert nothing.numel() == 0


@pytest.mark.parametrize(("name", "dtype"), accepted())
def test_what_is_not_hidden_is_not_used(name: str, dtype: torch.dtype) -> None:
    backend = {b.name: b.module for b in registry.candidates("masked_mse")}[name]
    x, t = torch.randn(4, 9).to(dtype), torch.randn(4, 9).to(dtype)
    mask = torch.tensor([True, False, True, False])
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    clean = backend.forward(x, t, mask, True, EPS)
    x[1], t[3] = torch.nan, torch.inf
    assert torch.equal(backend.forward(x, t, mask, True, EPS), clean)
    for gradient in backend.backward(torch.ones(4, dtype=acc), x, t, mask, True, EPS, True):
        assert (gradient[~mask] == 0).all()
        assert gradient.isfinite().all()
    x[0, 3] = torch.nan
    assert backend.forward(x, t, mask, True, EPS)[0].isnan()
