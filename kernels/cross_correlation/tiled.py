"""Torch only, any device: standardized features exist a block at a time, symmetry halves products.

Through Gram matrices a block is BLOCK columns, otherwise BLOCK rows. x and y are read once for the
moments, once forward and once backward, and dx and dy are written once; beside these and ``kept``,
memory is a few blocks. Operations of two views, forward and backward: 2 N^2 D (1 + 1/s) for s
triangular strips, and 4 N^2 D; or 2 N D^2 and 4 N D^2. A view with itself takes half of that.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sslfast.kernels.cross_correlation import Form, through_grams
from sslfast.kernels.dtypes import accumulation_dtype

DEVICE = "any"
PRIORITY = 10

BLOCK = 1024  # columns or rows
STRIP = 128  # rows of a triangle that are multiplied at a time
PADDING = 16  # numbers after every row of a block: columns are then spread over the whole cache


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
    parts = []
    for strip in blocks(len(a), STRIP):
        left, square = slice(0, strip.start), slice(strip.start, strip.stop)
        parts.append(2 * (a[strip, left] * b[strip, left]).sum(dtype=torch.float64))
        parts.append((a[strip, square] * b[strip, square]).sum(dtype=torch.float64))
    return torch.stack(parts).sum()


def squares(c: Tensor, dim: int | None = None) -> Tensor:
    """Sum of squares of a matrix, 0-d in float64, or along a dimension in its own dtype."""
    if dim is not None:
        return torch.linalg.vecdot(c, c, dim=dim)
    parts = [torch.linalg.vecdot(c[rows], c[rows]) for rows in blocks(len(c))]
    return torch.cat(parts).sum(dtype=torch.float64)


def through_scaling(g: Tensor, own: Tensor, along: Tensor, factor: Tensor, form: Form) -> Tensor:
    """The gradient of features from that of standardized ones, in place; centered ones have it."""
    return g.addcmul_(along, own, value=-1).mul_(factor) if form.standardize else g


class Walk:
    """The way through the blocks; backends replace the steps that they have kernels for."""

    def moments(self, x: Tensor) -> Tensor:
        """Mean and biased variance of the columns; see the package."""
        found = x.new_empty((2, x.shape[1]), dtype=accumulation_dtype(x.dtype))
        for columns in blocks(x.shape[1]):
            wide = x[:, columns].to(found.dtype)
            mean = torch.mean(wide, 0, out=found[0, columns])
            found[1, columns] = (wide - mean).square_().mean(0)
        return found

    def standardize(self, x: Tensor, scaling: Tensor, out: Tensor) -> None:
        """Write (x - mean) factor of a block of a view."""
        torch.sub(x.to(out.dtype), scaling[0], out=out).mul_(scaling[1])

    def column_products(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products of columns."""
        return torch.linalg.vecdot(a, b, dim=0)

    def through(
        self,
        out: Tensor,
        product: Tensor,
        own: Tensor,
        other: Tensor,
        weights: tuple[Tensor, Tensor],
        along: Tensor | None,
        factor: Tensor,
        form: Form,
    ) -> None:
        """Write the gradient of a block of features, from g = alpha product + beta other.

        Args:
            out: the block of dx.
            product: may be overwritten.
            own: standardized features of the block.
            other: those of the other view.
            weights: alpha, 0-d, and beta of the columns.
            along: mean_i(g_ij own_ij); None: the block has all rows, take it here.
            factor: of the columns.
            form: whether features were standardized.
        """
        alpha, beta = weights
        g = product.mul_(alpha).addcmul_(beta, other)
        if along is None:
            along = torch.linalg.vecdot(g, own, dim=0) / form.rows
        out.copy_(through_scaling(g, own, along, factor, form))

    def _blocks(
        self, x: Tensor, y: Tensor | None, scaling: Tensor, results: int
    ) -> Iterator[tuple[slice, slice, list[Tensor]]]:
        """Rows and columns of every block, its standardized views, and room for ``results`` more.

        The memory is that of the block before.
        """
        grams, whole = through_grams(*x.shape), slice(None)
        n, dim = (
            min(size, BLOCK) if cut else size
            for size, cut in zip(x.shape, (not grams, grams), strict=True)
        )
        views = (x,) if y is None else (x, y)
        room = scaling.new_empty(len(views) + results, n, dim + PADDING)
        for block in blocks(x.shape[1] if grams else len(x)):
            rows, columns = (whole, block) if grams else (block, whole)
            shape = x[rows, columns].shape
            found = list(room[:, : shape[0], : shape[1]])
            for view, s, out in zip(views, scaling, found, strict=False):
                self.standardize(view[rows, columns], s[:, columns], out)
            if y is None:
                found.insert(0, found[0])
            yield rows, columns, found

    def forward(
        self, x: Tensor, y: Tensor | None, scaling: Tensor, form: Form, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Diagonal, and sum of squares off it; see the package."""
        if not through_grams(*x.shape):
            return self._forward_by_rows(x, y, scaling, form, kept[0])
        diagonal = scaling.new_empty(x.shape[1])
        for _, columns, views in self._blocks(x, y, scaling, results=0):
            diagonal[columns] = self.column_products(*views)
            for gram, view in zip(kept, views, strict=False):
                add_symmetric(gram, view, columns.start == 0)
        for gram in kept:
            mirror(gram)
        diagonal /= form.divisor
        total = inner_product(kept[0], kept[-1]) / form.divisor**2
        return diagonal, (total - diagonal.double().square().sum()).to(diagonal.dtype)

    def _forward_by_rows(
        self, x: Tensor, y: Tensor | None, scaling: Tensor, form: Form, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        for rows, _, (xh, yh) in self._blocks(x, y, scaling, results=0):
            if y is None:
                add_symmetric(c, xh.T, rows.start == 0)
            else:
                add_product(c, xh.T, yh, rows.start == 0)
        if y is None:
            mirror(c)
        c /= form.divisor
        diagonal = c.diagonal().clone()
        c.fill_diagonal_(0)
        return diagonal, squares(c).to(c.dtype)

    def backward(
        self,
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
        dx, dy = torch.empty_like(x), x.new_empty(0) if y is None else torch.empty_like(y)
        both = 2 if y is None else 1  # a view with itself has the gradients of both roles
        alpha = 2 * both * d_off_diagonal / form.divisor
        beta = both * d_diagonal / form.divisor
        grams, along = through_grams(*x.shape), []
        if grams:
            beta = beta - alpha * diagonal
            alpha = alpha / form.divisor
        else:  # sum_i g_ij xh_ij is known beforehand, so that rows need not wait for others
            for k in (1, 0):
                inner = form.divisor * (alpha * squares(kept[0], k) + beta * diagonal)
                along.append(inner / form.rows)
        for rows, columns, (xh, yh, product) in self._blocks(x, y, scaling, results=1):
            for v, (own, other, out) in enumerate(((xh, yh, dx), (yh, xh, dy))[: 3 - both]):
                if grams:
                    torch.mm(kept[-1 - v], own, out=product)
                else:
                    torch.mm(other, kept[0] if v else kept[0].T, out=product)
                self.through(
                    out[rows, columns],
                    product,
                    own,
                    other,
                    (alpha, beta[columns]),
                    None if grams else along[v],
                    scaling[v, 1, columns],
                    form,
                )
        return dx, dy


_walk = Walk()
moments, forward, backward = _walk.moments, _walk.forward, _walk.backward
