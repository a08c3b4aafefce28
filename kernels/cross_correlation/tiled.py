"""Torch only, any device: standardized features exist a block at a time, symmetry halves products.

Through Gram matrices a block is BLOCK columns, otherwise BLOCK rows; x and y are read once a pass
for the moments, once forward and once backward, and dx and dy are written once. Beside these and
``kept`` memory is four blocks. Operations of two views, forward and backward: 2 N^2 D (1 + 1/s)
for s triangular strips, and 4 N^2 D; or 2 N D^2 and 4 N D^2. A view with itself takes half of that.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sslfast.kernels.cross_correlation import Form, through_grams
from sslfast.kernels.dtypes import accumulation_dtype

DEVICE = "any"
PRIORITY = 10

BLOCK = 1024  # columns or rows
STRIP = 256  # rows of a triangle that are multiplied at a time


def moments(x: Tensor) -> Tensor:
    """Mean and biased variance of the columns; see the package."""
    found = x.new_empty((2, x.shape[1]), dtype=accumulation_dtype(x.dtype))
    for columns in blocks(x.shape[1]):
        wide = x[:, columns].to(found.dtype)
        mean = torch.mean(wide, 0, out=found[0, columns])
        found[1, columns] = (wide - mean).square_().mean(0)
    return found


def blocks(count: int, block: int = BLOCK) -> Iterator[slice]:
    """Slices of nearly equal length, of ``block`` at most, that cover range(count)."""
    parts = -(-count // block)
    for i in range(parts):
        yield slice(count * i // parts, count * (i + 1) // parts)


def standardized(x: Tensor, scaling: Tensor) -> Tensor:
    """(x - mean) factor of some columns, or rows, of a view."""
    return (x.to(scaling.dtype) - scaling[0]).mul_(scaling[1])


def add_product(out: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """Add a b to out, or write it there where it is the first."""
    torch.addmm(out, a, b, beta=0 if first else 1, out=out)


def add_symmetric(out: Tensor, a: Tensor, first: bool) -> None:
    """Add a a' to out: of the triangle above the diagonal only what is in the way."""
    for strip in blocks(len(a), STRIP):
        add_product(out[strip, : strip.stop], a[strip], a[: strip.stop].T, first)


def mirror(out: Tensor) -> None:
    """Fill the triangle above the diagonal of what ``add_symmetric`` has made."""
    for strip in blocks(len(out), STRIP):
        out[: strip.start, strip] = out[strip, : strip.start].T


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of two symmetric matrices in float64, from a triangle of them."""
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for strip in blocks(len(a), STRIP):
        left, square = slice(0, strip.start), slice(strip.start, strip.stop)
        total += 2 * (a[strip, left] * b[strip, left]).sum(dtype=torch.float64)
        total += (a[strip, square] * b[strip, square]).sum(dtype=torch.float64)
    return total


def squares(c: Tensor, dim: int | None = None) -> Tensor:
    """Sum of squares of a matrix, 0-d in float64, or along a dimension in its own dtype."""
    if dim is not None:
        return torch.linalg.vecdot(c, c, dim=dim)
    parts = [
        torch.linalg.vecdot(c[rows], c[rows]).sum(dtype=torch.float64) for rows in blocks(len(c))
    ]
    return torch.stack(parts).sum()


def forward(
    x: Tensor, y: Tensor | None, scaling: Tensor, form: Form, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Diagonal, and sum of squares off it; see the package."""
    rows, dim = x.shape
    if not through_grams(rows, dim):
        return _forward_direct(x, y, scaling, form, kept[0])
    diagonal = scaling.new_empty(dim)
    for columns in blocks(dim):
        xh = standardized(x[:, columns], scaling[0, :, columns])
        yh = xh if y is None else standardized(y[:, columns], scaling[1, :, columns])
        diagonal[columns] = torch.linalg.vecdot(xh, yh, dim=0)
        add_symmetric(kept[0], xh, columns.start == 0)
        if y is not None:
            add_symmetric(kept[1], yh, columns.start == 0)
    for gram in kept:
        mirror(gram)
    diagonal /= form.divisor
    total = inner_product(kept[0], kept[-1]) / form.divisor**2
    return diagonal, (total - diagonal.double().square().sum()).to(diagonal.dtype)


def _forward_direct(
    x: Tensor, y: Tensor | None, scaling: Tensor, form: Form, c: Tensor
) -> tuple[Tensor, Tensor]:
    for rows in blocks(len(x)):
        xh = standardized(x[rows], scaling[0])
        if y is None:
            add_symmetric(c, xh.T, rows.start == 0)
        else:
            add_product(c, xh.T, standardized(y[rows], scaling[1]), rows.start == 0)
    if y is None:
        mirror(c)
    c /= form.divisor
    diagonal = c.diagonal().clone()
    c.fill_diagonal_(0)
    return diagonal, squares(c).to(c.dtype)


def backward(
    d_diagonal: Tensor,
    d_off_diagonal: Tensor,
    x: Tensor,
    y: Tensor | None,
    scaling: Tensor,
    form: Form,
    diagonal: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and y; see the package."""
    rows, dim = x.shape
    both = 2 if y is None else 1  # a view with itself has the gradients of both roles
    dx, dy = torch.empty_like(x), x.new_empty(0) if y is None else torch.empty_like(y)
    d_off, d_diagonal = both * d_off_diagonal, both * d_diagonal
    if not through_grams(rows, dim):
        _backward_direct(d_diagonal, d_off, x, y, scaling, form, diagonal, kept[0], dx, dy)
        return dx, dy
    alpha = 2 * d_off / form.divisor**2
    beta = (d_diagonal - 2 * d_off * diagonal) / form.divisor
    for columns in blocks(dim):
        xh = standardized(x[:, columns], scaling[0, :, columns])
        yh = xh if y is None else standardized(y[:, columns], scaling[1, :, columns])
        for own, other, gram, factor, out in (
            (xh, yh, kept[-1], scaling[0, 1, columns], dx),
            (yh, xh, kept[0], scaling[-1, 1, columns], dy),
        ):
            if out.numel():
                g = (gram @ own).mul_(alpha).addcmul_(beta[columns], other)
                along = torch.linalg.vecdot(g, own, dim=0) / form.rows
                out[:, columns] = through_scaling(g, own, along, factor, form)
    return dx, dy


def _backward_direct(
    d_diagonal: Tensor,
    d_off: Tensor,
    x: Tensor,
    y: Tensor | None,
    scaling: Tensor,
    form: Form,
    diagonal: Tensor,
    c: Tensor,
    dx: Tensor,
    dy: Tensor,
) -> None:
    """Here sum_i g_ij xh_ij = 2 d_off sum_k c0_jk^2 + d_diagonal_j c_jj is known beforehand."""
    alpha, beta = 2 * d_off / form.divisor, d_diagonal / form.divisor
    of_rows, of_columns = (
        (2 * d_off * squares(c, k) + d_diagonal * diagonal) / form.rows for k in (1, 0)
    )
    for rows in blocks(len(x)):
        xh = standardized(x[rows], scaling[0])
        yh = xh if y is None else standardized(y[rows], scaling[1])
        for own, other, matrix, along, factor, out in (
            (xh, yh, c.T, of_rows, scaling[0, 1], dx),
            (yh, xh, c, of_columns, scaling[-1, 1], dy),
        ):
            if out.numel():
                g = (other @ matrix).mul_(alpha).addcmul_(beta, other)
                out[rows] = through_scaling(g, own, along, factor, form)


def through_scaling(g: Tensor, own: Tensor, along: Tensor, factor: Tensor, form: Form) -> Tensor:
    """The gradient of features from that of standardized ones, in place; centered ones have it."""
    return g.addcmul_(along, own, value=-1).mul_(factor) if form.standardize else g
