"""Negative cosine similarity: lightly's values and gradients, extreme rows, what is refused."""

import pytest
import torch
from torch import Tensor

import peers
from sslfast.functional import negative_cosine_similarity
from sslfast.losses import NegativeCosineSimilarity

theirs = peers.load("lightly.loss.negative_cosine_similarity").NegativeCosineSimilarity


@pytest.mark.parametrize(("shape", "dim"), [((7, 5), 1), ((7, 5), 0), ((3, 4, 5), -2), ((6,), 0)])
def test_lightlys_values_and_gradients(shape: tuple[int, ...], dim: int) -> None:
    x, y = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in "xy")
    values = [kind(dim)(x, y) for kind in (NegativeCosineSimilarity, theirs)]
    torch.testing.assert_close(*values)
    ours, truth = (torch.autograd.grad(value, (x, y)) for value in values)
    torch.testing.assert_close(ours, truth)


def test_short_rows_are_divided_by_eps() -> None:
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    x[1] *= 0.01
    torch.testing.assert_close(NegativeCosineSimilarity(eps=0.5)(x, y), theirs(eps=0.5)(x, y))


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_rows_of_zeros_get_no_gradient(eps: float) -> None:
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    x[1], x[2] = 0, 1e-9 * x[2]
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(negative_cosine_similarity(x, y, eps=eps), x)
    assert not gradient[1:3].any()
    assert gradient[[0, 3]].any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_rows_have_their_cosine(dtype: torch.dtype) -> None:
    x, y = torch.randn(4, 8).to(dtype), torch.randn(4, 8).to(dtype)
    large = (x * 1e25).requires_grad_()
    loss = negative_cosine_similarity(large, y)
    truth = theirs()(large.double(), y.double())
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)
    ours, expected = (torch.autograd.grad(value, large)[0].double() for value in (loss, truth))
    torch.testing.assert_close(ours * 1e25, expected * 1e25, rtol=2e-2, atol=1e-3)


X = torch.randn(2, 3, 4)


@pytest.mark.parametrize(
    ("x0", "x1", "dim", "message"),
    [
        (X.long(), X.long(), 1, "x0 must hold floating-point embeddings"),
        (X, X[:1], 1, r"x0 and x1 must have the same shape, got \[2, 3, 4\] and \[1, 3, 4\]"),
        (X, X.double(), 1, "x0 is torch.float32, but x1 is torch.float64"),
        (X, X.to("meta"), 1, "x0 is on cpu, but x1 is on meta"),
        (X[:0], X[:0], 1, "x0 is empty"),
        (X, X, 3, r"dim must be one of the 3 of x0, \[2, 3, 4\], got 3"),
        (X[0, 0], X[0, 0], 1, "dim must be one of the 1 of x0"),
    ],
)
def test_bad_input(x0: Tensor, x1: Tensor, dim: int, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        negative_cosine_similarity(x0, x1, dim)
