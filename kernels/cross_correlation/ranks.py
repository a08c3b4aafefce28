"""Cross-correlation of the features of all ranks: statistics, C and both results are global.

Every rank gets the same diagonal and sum of squares, and for its own rows W times their share of
the gradient of these, for W ranks: gradients averaged over ranks (DDP, FSDP) are those of one
process with all rows; summed, W times those.

What travels, for M rows in all and V views, one or two:

    always       mean and variance of the columns of every rank, V 2 D numbers from each
    M <= 3/4 D   the rows of all ranks, V M D numbers in their own dtype: every rank multiplies its
                 rows of the Gram matrices out; then (1 + V) D + 1 sums are added up in float64
    otherwise    the ranks' shares of C are added up: D^2 numbers, about half of them for a view
                 with itself

An all-reduce moves its numbers twice, so that by bytes of float32 the second would be chosen where
V M D < 2 D^2, M < D for two views; by operations, 8 n M D with slabs that have no symmetry against
6 n D^2 for n rows of two views, where M < 3/4 D. The second bound is that of one process, too.

The gradient of the global sums with respect to a standardized row needs only what is at hand in
the forward pass: P = Yh C0', [n, D] as x, and its inner products with the columns of Xh. So P is
formed there, and the backward pass waits for no other rank.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.kernels import cross_correlation as kernels
from sslfast.kernels import registry
from sslfast.kernels.cross_correlation import Form, is_wide, through_grams
from sslfast.kernels.cross_correlation.op import OP
from sslfast.kernels.cross_correlation.tiled import (
    STRIP,
    add_product,
    add_symmetric,
    blocks,
    mirror,
    squares,
    standardized,
    through_scaling,
)
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.exchange import Exchange, Group, group_of, name_of, world_size
from sslfast.kernels.library import NAMESPACE, no_double_backward

Views = tuple[Tensor, ...]


def _views(x: Tensor, y: Tensor | None) -> Views:
    return (x.contiguous(),) if y is None else (x.contiguous(), y.contiguous())


def _global_moments(views: Views, exchange: Exchange) -> list[Tensor]:
    """Mean and biased variance of the columns of every view [2, D], over all ranks."""
    backend = registry.pick(OP, kernels.problem(views[0], None))
    own = torch.stack([backend.moments(view) for view in views])
    ranks = [torch.empty_like(own) for _ in exchange.counts]
    dist.all_gather(ranks, own, group=exchange.group)
    means, variances = torch.stack(ranks).unbind(2)  # [W, V, D]
    part = torch.tensor(exchange.counts, dtype=own.dtype, device=own.device) / exchange.total
    part = part[:, None, None]
    mean = (part * means).sum(0)
    variance = (part * (variances + (means - mean).square())).sum(0)
    return list(torch.stack((mean, variance), 1))


def _by_grams(
    views: Views, exchange: Exchange, scaling: Tensor, form: Form, products: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Diagonal, sum of squares off it and <P, Xh> of the columns [V, D], from gathered rows."""
    everyones = [exchange.gather(view) for view in views]
    n, dim = views[0].shape
    grams = scaling.new_empty(len(views), n, form.rows)
    sums = scaling.new_zeros(1 + len(views), dim, dtype=torch.float64)

    def of_columns(columns: slice) -> list[Tensor]:
        pairs = zip(everyones, scaling, strict=True)
        return [standardized(view[:, columns], s[:, columns]) for view, s in pairs]

    for columns in blocks(dim):
        hats = of_columns(columns)
        for gram, hat in zip(grams, hats, strict=True):
            add_product(gram, hat[exchange.own], hat.T, columns.start == 0)
        own = [hat[exchange.own] for hat in hats]
        sums[0, columns] = torch.linalg.vecdot(own[0], own[-1], dim=0)
    if products.numel():
        for columns in blocks(dim):
            hats = of_columns(columns)
            for v, (hat, gram) in enumerate(zip(hats, grams.flip(0), strict=True)):
                product = torch.div(gram @ hat, form.divisor, out=products[v, :, columns])
                sums[1 + v, columns] = torch.linalg.vecdot(product, hat[exchange.own], dim=0)
    inner = [
        (grams[0][strip] * grams[-1][strip]).sum(dtype=torch.float64) for strip in blocks(n, STRIP)
    ]
    added = torch.cat((sums.flatten(), torch.stack(inner).sum(0, keepdim=True)))
    dist.all_reduce(added, group=exchange.group)
    diagonal = added[:dim] / form.divisor
    if products.numel():
        for v, product in enumerate(products):  # from Yh C' to Yh C0'
            other = standardized(views[-1 - v], scaling[-1 - v])
            product.addcmul_(diagonal.to(other.dtype), other, value=-1)
    along = added[dim:-1].view(len(views), dim) - form.divisor * diagonal.square()
    off_diagonal = added[-1] / form.divisor**2 - diagonal.square().sum()
    return diagonal, off_diagonal, along


def _by_matrix(
    views: Views, exchange: Exchange, scaling: Tensor, form: Form, products: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same from C, of which every rank has its rows' share."""
    n, dim = views[0].shape
    c = scaling.new_empty(dim, dim)

    def of_rows(rows: slice) -> list[Tensor]:
        return [standardized(view[rows], s) for view, s in zip(views, scaling, strict=True)]

    for rows in blocks(n):
        hats = of_rows(rows)
        if len(hats) == 1:
            add_symmetric(c, hats[0].T, rows.start == 0)
        else:
            add_product(c, hats[0].T, hats[1], rows.start == 0)
    if len(views) == 1:
        triangle = [c[strip, : strip.stop] for strip in blocks(dim, STRIP)]
        packed = torch.cat([strip.flatten() for strip in triangle])
        dist.all_reduce(packed, group=exchange.group)
        for strip, part in zip(triangle, packed.split([s.numel() for s in triangle]), strict=True):
            strip.copy_(part.view_as(strip))
        mirror(c)
    else:
        dist.all_reduce(c, group=exchange.group)
    c /= form.divisor
    diagonal = c.diagonal().clone()
    c.fill_diagonal_(0)
    if products.numel():
        for rows in blocks(n):
            hats = of_rows(rows)
            for product, hat, matrix in zip(products, reversed(hats), (c.T, c), strict=False):
                torch.mm(hat, matrix, out=product[rows])
    along = torch.stack([squares(c, k) for k in (1, 0)[: len(views)]])
    return diagonal, squares(c), form.divisor * along


@torch.library.custom_op(f"{NAMESPACE}::global_cross_correlation", mutates_args=())
def _global_cross_correlation(
    x: Tensor, y: Tensor | None, standardize: bool, eps: float, group: str, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The results, and for the backward pass M (0-d, on the host), scaling, P and <P, Xh>."""
    views = _views(x, y)
    exchange = Exchange.of(x, group)
    if exchange.total < 2:
        raise ValueError("this loss needs at least 2 rows, of all ranks together, got 1")
    form = Form(exchange.total, standardize, eps)
    dtype = accumulation_dtype(x.dtype)
    with torch.autocast(x.device.type, enabled=False):  # sums are never in half precision
        scaling = form.scaling(*_global_moments(views, exchange))
        if is_wide(form.rows, x.shape[1], len(views), standardize):
            scaling = scaling.double()
        products = scaling.new_empty(len(views), len(x) if gradients else 0, x.shape[1])
        way = _by_grams if through_grams(form.rows, x.shape[1]) else _by_matrix
        diagonal, off_diagonal, along = way(views, exchange, scaling, form, products)
    rows = torch.tensor(form.rows)
    found = (t.to(dtype) for t in (diagonal, off_diagonal, scaling, products, along))
    diagonal, off_diagonal, *kept = found
    return diagonal, off_diagonal, rows, kept[0], kept[1], kept[2]


@_global_cross_correlation.register_fake
def _(
    x: Tensor, y: Tensor | None, standardize: bool, eps: float, group: str, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, (n, dim), views = accumulation_dtype(x.dtype), x.shape, 1 if y is None else 2
    shapes = ((dim,), (), (views, 2, dim), (views, n if gradients else 0, dim), (views, dim))
    found = [x.new_empty(shape, dtype=dtype) for shape in shapes]
    rows = torch.empty((), dtype=torch.int64, device="cpu")
    return found[0], found[1], rows, found[2], found[3], found[4]


@torch.library.custom_op(f"{NAMESPACE}::global_cross_correlation_backward", mutates_args=())
def _global_backward(
    d_diagonal: Tensor,
    d_off_diagonal: Tensor,
    x: Tensor,
    y: Tensor | None,
    standardize: bool,
    eps: float,
    group: str,
    diagonal: Tensor,
    rows: Tensor,
    scaling: Tensor,
    products: Tensor,
    along: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of this rank's x and y (empty where y is None)."""
    views = _views(x, y)
    form = Form(int(rows), standardize, eps)
    factor = world_size(group_of(group)) * (3 - len(views))  # with itself: of both roles
    d_off, d_diagonal = factor * d_off_diagonal, factor * d_diagonal
    found = [torch.empty_like(view) for view in views]
    sums = (2 * d_off / form.divisor * along + d_diagonal * diagonal) / form.rows
    for part in blocks(len(x)):
        hats = [standardized(view[part], s) for view, s in zip(views, scaling, strict=True)]
        for v, dx in enumerate(found):
            g = (2 * d_off / form.divisor) * products[v, part]
            g.addcmul_(d_diagonal / form.divisor, hats[-1 - v])
            dx[part] = through_scaling(g, hats[v], sums[v], scaling[v, 1], form)
    return found[0], x.new_empty(0) if y is None else found[1]


@_global_backward.register_fake
def _(
    d_diagonal: Tensor, d_off_diagonal: Tensor, x: Tensor, y: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((0,) if y is None else y.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, *ctx.options, _ = inputs
    diagonal, _, *kept = output
    ctx.save_for_backward(x, y, diagonal, *kept)
    ctx.mark_non_differentiable(*kept)


def _backward(
    ctx: Any, d_diagonal: Tensor, d_off_diagonal: Tensor, *_: None
) -> tuple[Tensor | None, ...]:
    x, y, *saved = ctx.saved_tensors
    dx, dy = _global_backward(d_diagonal, d_off_diagonal, x, y, *ctx.options, *saved)
    return dx, None if y is None else dy, None, None, None, None


_global_cross_correlation.register_autograd(_backward, setup_context=_setup_context)
_global_backward.register_autograd(no_double_backward)


def global_cross_correlation(
    x: Tensor, y: Tensor | None, standardize: bool, eps: float = 0.0, group: Group = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``cross_correlation`` of the rows of all ranks.

    Args:
        x: features [n, D] of this rank's rows; n may differ between ranks.
        y: those of the other view, or None for the same.
        standardize: see ``cross_correlation``.
        eps: see ``cross_correlation``.
        group: the process group, or None for all ranks.

    Returns:
        The diagonal [D] and the sum of squares off it, 0-d, the same on every rank, whose gradients
        are W times the share of this rank's rows; and how many rows there are, 0-d, on the host.

    Raises:
        ValueError: fewer than 2 rows in all.
    """
    gradients = torch.is_grad_enabled() and (x.requires_grad or (y is not None and y.requires_grad))
    found = _global_cross_correlation(x, y, standardize, eps, name_of(group), gradients)
    return found[0], found[1], found[2]
