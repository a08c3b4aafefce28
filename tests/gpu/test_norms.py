"""Rows over their norms, and the end of the gradient, on a GPU: against float64, at its sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.functional import ntxent
from sslfast.kernels import registry
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.unit_rows import Positives, problem, reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def relative(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize(
    ("m", "d", "parts"),
    [(8192, 128, 2), (8192, 128, 1), (4096, 128, 4), (252, 123, 1), (256, 128, 66), (9, 512, 9)],
)
def test_against_float64(dtype: torch.dtype, m: int, d: int, parts: int) -> None:
    x = torch.randn(m, d, device="cuda").to(dtype)
    backend = registry.pick("unit_rows", problem(x))
    assert backend.__name__.endswith("triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        z, norms = backend.normalize(x)
        u, weight = torch.randn(parts, m, d, device="cuda"), torch.randn(m, device="cuda")
        scale, pairs = (
            torch.full((), 3.0, device="cuda"),
            Positives(Pairing(m, m // 2), z, weight, None),
        )
        dx, inner = backend.gradient(u, z, norms, scale, pairs, 0.5)
        again, same = backend.gradient(u, z, norms, scale, pairs, 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(dx, again)
    assert torch.equal(inner, same)
    assert relative(z, F.normalize(x.double(), dim=1)) <= ROUNDING[dtype]
    wide = Positives(pairs.pairing, z.double(), weight.double(), None)
    exact, product = reference.gradient(
        u.double(), z.double(), norms.double(), scale.double(), wide, 0.5
    )
    assert relative(dx, exact) <= ROUNDING[dtype]
    assert (inner - product).abs() <= 1e-6 * (z.double() * u.double().sum(0)).abs().sum()


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("n", [37, 4096])
def test_ntxent_from_rows_of_any_length(dtype: torch.dtype, n: int) -> None:
    """Norms, matrix kernels and the end of the gradient together; a temperature that learns."""
    a, b = (torch.exp(torch.randn(n, 1)) * torch.randn(n, 64) for _ in "ab")
    tau = torch.tensor(0.2)

    def gradients(dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        given = [t.to(device, dtype).requires_grad_() for t in (a.to(rounded), b.to(rounded))]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        given.append(tau.to(device, wide).requires_grad_())
        return torch.autograd.grad(ntxent(*given), given)

    rounded = dtype
    found, again = (gradients(dtype, "cuda") for _ in range(2))
    for value, same, truth in zip(found, again, gradients(torch.float64, "cpu"), strict=True):
        assert torch.equal(value, same)
        assert relative(value.cpu(), truth) <= 5 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_of_zeros_have_no_gradient(dtype: torch.dtype) -> None:
    out = torch.randn(64, 128, device="cuda").to(dtype)
    out[5] = 0
    out.requires_grad_()
    (65536 * ntxent(out, out.flip(0), 0.1)).backward()
    assert out.grad is not None
    assert out.grad.isfinite().all()
    assert (out.grad[5] == 0).all()
