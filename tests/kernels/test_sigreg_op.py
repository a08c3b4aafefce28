"""SIGReg: every backend against the float64 oracle, and the op against autograd of the formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from sslfast.kernels import registry
from sslfast.kernels import sigreg as kernels
from sslfast.kernels.dtypes import accumulation_dtype, statistics_dtype
from sslfast.kernels.sigreg import Form, Problem, directions_at_a_time, reference
from sslfast.kernels.sigreg.op import OP, _sigreg, sigreg

FORM = Form(3.0, 17)
DTYPES = (torch.float64, torch.float32)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def accepted() -> list[tuple[str, torch.dtype]]:
    return [
        (b.name, dtype)
        for b in registry.candidates(OP)
        for dtype in DTYPES
        if b.refusal(Problem("cpu", dtype)) is None
    ]


BACKENDS = {b.name: b.module for b in registry.candidates(OP) if b.module}


def directions(count: int, dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(count, dim, dtype=torch.float64), dim=1).to(dtype)


def eager(z: Tensor, along: Tensor, t_max: float = 3.0, knots: int = 17) -> Tensor:
    """The formula as the published code has it, with every node and all of its memory."""
    t = torch.linspace(0, t_max, knots, dtype=along.dtype)
    phi = torch.exp(-t.square() / 2)
    weight = torch.full((knots,), 2 * t_max / (knots - 1), dtype=along.dtype)
    weight[[0, -1]] /= 2
    angles = (z.to(along.dtype) @ along.T).unsqueeze(-1) * t
    apart = (angles.cos().mean(-3) - phi).square() + angles.sin().mean(-3).square()
    return (apart @ (weight * phi)).mean() * z.shape[-2]


@pytest.mark.parametrize(("name", "dtype"), accepted())
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 70), (1, 64, 64), (3, 133, 17), (2, 0, 3)])
@pytest.mark.parametrize("form", [FORM, Form(5.0, 2), Form(1.0, 40)], ids=str)
def test_against_float64(
    name: str, dtype: torch.dtype, shape: tuple[int, int, int], form: Form, scale: float
) -> None:
    p = (scale * torch.randn(shape)).to(dtype)
    coefficients = torch.randn(shape[0], 2, form.count, shape[2], dtype=torch.float64)
    sums = BACKENDS[name].sums(p, form)
    assert sums.dtype == statistics_dtype(p)
    assert sums.shape == coefficients.shape
    found, exact, base = p.clone(), p.double(), p.clone()
    BACKENDS[name].gradient_(found, coefficients.to(dtype), form)
    pairs = (sums, reference.sums(p.double(), form), reference.sums(p, form)), (found, exact, base)
    reference.gradient_(exact, coefficients.to(dtype).double(), form)
    reference.gradient_(base, coefficients.to(dtype), form)
    # What a float knows of an angle: eager's error is of this size too, and smaller by chance.
    angle = torch.finfo(dtype).eps * form.t_max * p.double().norm()
    for value, truth, plain in pairs:
        allowed = (plain - truth).norm() + TOLERANCE[dtype] * (truth.norm() + p.numel() ** 0.5)
        allowed += angle * form.count**0.5
        assert (value - truth).norm() <= allowed


@pytest.mark.parametrize("name", [n for n, dtype in accepted() if dtype == torch.float32])
def test_large_and_non_finite_projections(name: str) -> None:
    p = torch.tensor([1e6, -1e12, 3e30, torch.inf, -torch.inf, torch.nan])[None, None]
    sums = BACKENDS[name].sums(p, FORM)
    assert (sums[..., :3].abs() < 1.01).all()
    assert sums[..., 3:].isnan().all()
    BACKENDS[name].gradient_(p, torch.ones(1, 2, FORM.count, 6), FORM)
    assert (p[..., :3].abs() < 40).all()
    assert p[..., 3:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 2, 5), (3, 40, 9)])
def test_the_op_is_the_published_formula(
    dtype: torch.dtype, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_AT_A_TIME", {"cpu": 1})  # 64 directions at a time
    z = torch.randn(shape).to(dtype).requires_grad_()
    along = directions(150, shape[2], accumulation_dtype(dtype))
    value, rows = sigreg(z, along, 3.0, 17)
    (gradient,) = torch.autograd.grad(value, z)
    wide = z.detach().double().requires_grad_()
    truth = eager(wide, along.double())
    (expected,) = torch.autograd.grad(truth, wide)
    slack = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)
    assert (value.dtype, gradient.dtype) == (accumulation_dtype(dtype), dtype)
    assert int(rows) == shape[1]
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradient.double(), expected, rtol=slack, atol=slack * 0.01)


def test_errors_are_no_larger_than_eagers() -> None:
    """Of features like a normal distribution, of which the statistic is small, and collapsed."""
    for features in (torch.randn(512, 32), 1e-3 * torch.randn(512, 32), 30 * torch.randn(512, 32)):
        along = directions(96, 32, torch.float32)
        errors = []
        for dtype, function in (
            (torch.float64, eager),
            (torch.float32, eager),
            (torch.float32, lambda z, a: sigreg(z, a, 3.0, 17)[0]),
        ):
            z = features[None].to(dtype).requires_grad_()
            value = function(z, along.to(dtype))
            errors.append((value.detach(), *torch.autograd.grad(value, z)))
        exact, plain, ours = errors
        for truth, base, found in zip(exact, plain, ours, strict=True):
            error, allowed = ((x - truth).norm() for x in (found, base))
            assert error <= allowed + 2e-6 * truth.norm()


@pytest.mark.parametrize("name", [n for n, dtype in accepted() if dtype == torch.float64])
def test_gradcheck_and_opcheck(name: str) -> None:
    z = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    along = directions(5, 3)
    with sslfast.use_backend(name):
        assert torch.autograd.gradcheck(lambda z: sigreg(z, along, 3.0, 17)[0], z)
        for gradient in (True, False):
            # Of the gradient there is no gradient, which the check would ask for.
            torch.library.opcheck(_sigreg, (z.detach(), along, 3.0, 17, None, gradient))


def test_a_second_derivative_is_refused() -> None:
    z = torch.randn(1, 5, 4, requires_grad=True)
    value = sigreg(z, directions(3, 4, torch.float32), 3.0, 17)[0]
    (gradient,) = torch.autograd.grad(value, z, create_graph=True)
    with pytest.raises(RuntimeError, match="this loss has no second derivative"):
        torch.autograd.grad(gradient.sum(), z)


def test_a_retained_graph_and_strided_features() -> None:
    z = torch.randn(6, 2, 8)[:, :, ::2].transpose(0, 1).requires_grad_()
    value = sigreg(z, directions(3, 4, torch.float32), 3.0, 17)[0]
    (first,) = torch.autograd.grad(value, z, retain_graph=True)
    kept = first.clone()
    first.zero_()
    assert torch.equal(torch.autograd.grad(value, z)[0], kept)


def test_threads_change_no_bit() -> None:
    p, coefficients = torch.randn(2, 130, 200), torch.randn(2, 2, 16, 200)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        gradient = p.clone()
        BACKENDS["cpu"].gradient_(gradient, coefficients, FORM)
        found.append((BACKENDS["cpu"].sums(p, FORM), gradient))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_non_finite_in_non_finite_out() -> None:
    z = torch.randn(2, 6, 4)
    z[1, 2, 3] = torch.nan
    z.requires_grad_()
    value = sigreg(z, directions(3, 4, torch.float32), 3.0, 17)[0]
    assert value.isnan()
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient[1].isnan().all()
    assert gradient[0].isfinite().all()


def test_few_projections_are_in_memory_at_a_time() -> None:
    for rows in (1, 1000, 10**7):
        at_a_time = directions_at_a_time(rows, "cpu")
        assert at_a_time == 64 or at_a_time * rows <= 1 << 20
        assert at_a_time % 64 == 0
