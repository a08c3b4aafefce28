"""Cross-correlation: every backend against the float64 oracle, and the op as torch sees it."""

import pytest
import torch
from torch import Tensor

import sslfast
from sslfast.kernels import cross_correlation as kernels
from sslfast.kernels import registry
from sslfast.kernels.cross_correlation import Form, reference, tiled
from sslfast.kernels.cross_correlation.op import _cross_correlation, cross_correlation
from sslfast.kernels.dtypes import accumulation_dtype

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
BACKENDS = {b.name: b.module for b in registry.candidates("cross_correlation") if b.module}
# Through Gram matrices and through C, one block and several, ragged.
SIZES = [(2, 1), (2, 3), (3, 4), (7, 5), (130, 207), (200, 131), (20, 1100), (1100, 20)]


def accepted() -> list[tuple[str, torch.dtype]]:
    return [
        (b.name, dtype)
        for b in registry.candidates("cross_correlation")
        for dtype in TOLERANCE
        if b.refusal(kernels.Problem("cpu", dtype, 8, 8, 2)) is None
    ]


def views(n: int, d: int, dtype: torch.dtype, two: bool) -> tuple[Tensor, Tensor | None]:
    """Two views that share what they show, with means that are not 0."""
    shared = torch.randn(n, d)
    x, y = (shared + 0.3 * torch.randn(n, d) + torch.randn(d) for _ in "xy")
    return x.to(dtype), y.to(dtype) if two else None


def all_results(
    backend: object, x: Tensor, y: Tensor | None, form: Form, upstream: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Moments, diagonal, sum of squares and gradients."""
    moments = [backend.moments(v) for v in (x, y) if v is not None]
    scaling, kept = form.scaling(*moments), kernels.new_kept(x, y, moments[0].dtype)
    diagonal, off_diagonal = backend.forward(x, y, scaling, form, kept)
    given = tuple(g.to(diagonal.dtype) for g in upstream)
    gradients = backend.backward(*given, x, y, scaling, form, diagonal, kept)
    return [*moments, diagonal, off_diagonal, *gradients]


def eager_results(
    x: Tensor, y: Tensor | None, form: Form, upstream: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """The same in plain torch, as people write it: products of features of the inputs' dtype."""
    leaves = [v.detach().requires_grad_() for v in (x, y) if v is not None]
    moments, hats = [], []
    for view in leaves:
        wide = view.to(accumulation_dtype(view.dtype))
        variance, mean = torch.var_mean(wide, 0, correction=0)
        moments.append(torch.stack((mean, variance)).detach())
        factor = (variance + form.eps).rsqrt() if form.standardize else 1
        hats.append(((wide - mean) * factor).to(view.dtype))
    c = hats[0].T @ hats[-1] / form.divisor
    diagonal = c.diagonal()
    off_diagonal = (c - diagonal.diag()).square().sum()
    given = [g.to(c.dtype) for g in upstream]
    gradients = torch.autograd.grad((diagonal, off_diagonal), leaves, given)
    results = [*moments, diagonal.detach(), off_diagonal.detach(), *gradients]
    return results if y is not None else [*results, x.new_empty(0)]


def subtracted_from(
    x: Tensor, y: Tensor | None, form: Form, upstream: tuple[Tensor, Tensor]
) -> list[float]:
    """Norms of what the sum of squares and the gradients are differences of: all squares of C and
    their gradient, before its part along the features is taken away. Of few rows little is left.
    """
    given = [v for v in (x, y) if v is not None]
    scaling = form.scaling(*map(reference.moments, given))
    hats = [(v - mean) * factor for v, (mean, factor) in zip(given, scaling, strict=True)]
    as_they_are = torch.zeros_like(scaling)
    as_they_are[:, 1] = 1
    plain = Form(form.divisor + 1, False, 0.0)  # whose divisor is the same
    pair = hats[0], hats[1] if y is not None else None
    kept = kernels.new_kept(x, y, x.dtype)
    diagonal, rest = reference.forward(*pair, as_they_are, plain, kept)
    of_squares = 2 * upstream[1] * diagonal, upstream[1]
    gradients = reference.backward(*of_squares, *pair, as_they_are, plain, diagonal, kept)
    norms = [(g * factor).norm().item() for g, (_, factor) in zip(gradients, scaling, strict=False)]
    return [(rest + diagonal.square().sum()).item(), *norms, 0.0][:3]


def distance(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize(("name", "dtype"), accepted())
@pytest.mark.parametrize("two", [True, False], ids=["two views", "one view"])
@pytest.mark.parametrize("standardize", [True, False], ids=["standardized", "centered"])
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_against_float64(
    name: str, dtype: torch.dtype, two: bool, standardize: bool, n: int, d: int
) -> None:
    if kernels.is_wide(n, d, 1 + two, standardize) and dtype != torch.float64:
        pytest.skip("the op takes this in float64")
    form = Form(n, standardize, 1e-3 if standardize else 0.0)
    upstream = torch.randn(d, dtype=torch.float64), torch.randn((), dtype=torch.float64)
    x, y = views(n, d, dtype, two)
    found = all_results(BACKENDS[name], x, y, form, upstream)
    eager = eager_results(x, y, form, upstream)
    wide = x.double(), None if y is None else y.double()
    truth = all_results(reference, *wide, form, upstream)
    wide_dtype, statistics = accumulation_dtype(dtype), len(found) - 2
    scales = [0.0] * (statistics - 1) + subtracted_from(*wide, form, upstream)
    # Features that are rounded to be multiplied err as eager's do, and not in the same elements.
    rounded = name == "triton" and dtype in (torch.float16, torch.bfloat16)
    for at, (value, base, exact, scale) in enumerate(zip(found, eager, truth, scales, strict=True)):
        assert value.dtype == (wide_dtype if at < statistics else dtype)
        assert value.shape == base.shape
        allowed = (base - exact).norm() + TOLERANCE[dtype] * max(exact.norm(), scale)
        assert (value - exact).norm() <= (3 if rounded else 1) * allowed


@pytest.mark.parametrize("name", [n for n, dtype in accepted() if dtype == torch.float32])
@pytest.mark.parametrize(("n", "d"), [(96, 128), (96, 129), (160, 128)])
def test_no_digits_are_lost_where_features_are_decorrelated(name: str, n: int, d: int) -> None:
    """C near the identity, as near as so few rows allow: the loss's goal."""
    frame = torch.linalg.qr(torch.randn(max(n, d), min(n, d)).double()).Q
    x = (frame if n > d else frame.T) * 5 + 1
    x = x.float().contiguous()
    y = x + 1e-3 * torch.randn(n, d)
    form, upstream = Form(n, True, 1e-5), (torch.zeros(d), torch.ones(()))
    truth = all_results(
        reference, x.double(), y.double(), form, tuple(u.double() for u in upstream)
    )
    found = all_results(BACKENDS[name], x, y, form, upstream)
    eager = all_results(reference, x, y, form, upstream)
    for value, base, exact in zip(found, eager, truth, strict=True):
        assert distance(value, exact) <= 3 * distance(base, exact) + 2e-6


def test_the_matrix_is_kept_only_where_it_is_the_smaller_one() -> None:
    x = torch.empty(30, 40, device="meta")
    assert kernels.new_kept(x, x, x.dtype).shape == (2, 30, 30)
    assert kernels.new_kept(x, None, x.dtype).shape == (1, 30, 30)
    assert kernels.new_kept(torch.empty(31, 40, device="meta"), x, x.dtype).shape == (1, 40, 40)


@pytest.mark.parametrize("two", [True, False])
@pytest.mark.parametrize("name", [n for n, dtype in accepted() if dtype == torch.float64])
@pytest.mark.parametrize(("n", "d"), [(4, 7), (6, 3)])
def test_gradcheck_and_opcheck(name: str, two: bool, n: int, d: int) -> None:
    with sslfast.use_backend(name):
        x, y = views(n, d, torch.float64, two)
        given = [v.requires_grad_() for v in (x, y) if v is not None]
        for standardize in (True, False):

            def both(*v: Tensor, how: bool = standardize) -> tuple[Tensor, Tensor]:
                return cross_correlation(v[0], v[1] if two else None, how, 0.1)

            assert torch.autograd.gradcheck(both, given)
            if name != "reference":  # which leaves the memory that is kept as it was
                torch.library.opcheck(_cross_correlation, (x, y, standardize, 0.1))


def test_threads_change_no_bit() -> None:
    x, y = views(130, 1500, torch.float32, two=True)
    found = []
    threads = torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        moments = [BACKENDS["cpu"].moments(v) for v in (x, y)]
        products = BACKENDS["cpu"]._walk.column_products(x, y)
        found.append((*moments, products))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_strided_features_and_a_retained_graph() -> None:
    x = torch.randn(9, 40)[:, ::2].requires_grad_()
    y = torch.randn(20, 9).T.requires_grad_()
    diagonal, off_diagonal = cross_correlation(x, y, True, 1e-5)
    loss = diagonal.sum() + off_diagonal
    first = torch.autograd.grad(loss, (x, y), retain_graph=True)
    plain = (x.detach().contiguous(), y.detach().contiguous())
    leaves = [v.requires_grad_() for v in plain]
    diagonal, off_diagonal = cross_correlation(leaves[0], leaves[1], True, 1e-5)
    expected = torch.autograd.grad(diagonal.sum() + off_diagonal, leaves)
    for again in (first, torch.autograd.grad(loss, (x, y))):
        for a, b in zip(again, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(5, 4, requires_grad=True)
    diagonal, off_diagonal = cross_correlation(x, None, False)
    (gradient,) = torch.autograd.grad(diagonal.sum() + off_diagonal, x, create_graph=True)
    with pytest.raises(RuntimeError, match="this loss has no second derivative"):
        torch.autograd.grad(gradient.sum(), x)


@pytest.mark.parametrize("name", [n for n, dtype in accepted() if dtype == torch.float32])
def test_non_finite_in_non_finite_out(name: str) -> None:
    for n, d in ((6, 20), (20, 6)):
        x = torch.randn(n, d)
        x[1, 2] = torch.nan
        with sslfast.use_backend(name):
            diagonal, off_diagonal = cross_correlation(x, x, True, 1e-5)
        assert diagonal[2].isnan()
        assert diagonal[3].isfinite()
        assert off_diagonal.isnan()


def test_blocks_cover_everything_once() -> None:
    for count in (1, tiled.BLOCK, tiled.BLOCK + 1, 5000):
        parts = list(tiled.blocks(count))
        assert [i for part in parts for i in range(count)[part]] == list(range(count))
        assert max(part.stop - part.start for part in parts) <= tiled.BLOCK


def test_a_slower_backend_is_told_of_the_users_float64_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the op's own, about which they can do nothing."""
    monkeypatch.setattr(registry, "_told", set())
    registry._pick.cache_clear()
    x = torch.randn(6, 20, requires_grad=True)
    cross_correlation(x, None, False)[1].backward()
    assert not caplog.records
    cross_correlation(x.double(), None, False)
    assert "uses 'tiled' and not 'cpu': it takes float32, not float64" in caplog.text


@pytest.mark.parametrize("factor", [1e2, 1e4])
def test_covariances_of_unequal_columns_keep_their_digits(factor: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 100)
    x[:, 0] *= factor
    found, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    _, squares = cross_correlation(found, None, False)
    covariance = exact.T.cov()
    expected = (covariance - covariance.diagonal().diag()).square().sum()
    torch.testing.assert_close(squares, expected.float(), rtol=1e-5, atol=0.0)
    squares.backward()
    expected.backward()
    assert found.grad is not None
    assert exact.grad is not None
    columns = exact.grad.norm(dim=0)
    assert ((found.grad - exact.grad).norm(dim=0) < 1e-4 * columns).all()
