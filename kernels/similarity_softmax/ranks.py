"""Contrastive losses over the batch of all ranks.

Rank r returns (W / M) times the sum of its own rows' losses, for W ranks and M rows in all.
Averaging gradients over ranks, as DDP and FSDP do, then gives exactly the gradient of one process
with the global batch, batches of different sizes included; summing them gives W times that.

What travels are the embeddings, and in the backward pass two numbers a row: the log-sum-exp and its
gradient. With these every rank computes the whole gradient of its own rows, also the part that they
have as columns of other ranks' rows. No gradient of size M x D travels. Blocks of other ranks' rows
come from an Exchange: all at once, or around a ring in memory that does not grow with W.

The sigmoid loss has its form in kernels/sigmoid_contrast, the class means of SupCon in
kernels/class_sums.
"""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels.dtypes import statistics_dtype
from sslfast.kernels.exchange import Exchange, Group, group_of, name_of, world_size
from sslfast.kernels.library import NAMESPACE, no_double_backward
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.similarity_softmax.op import similarity_softmax, similarity_softmax_backward

Side = tuple[Tensor, Tensor]  # log-sum-exps of rows, and their upstream gradients


def _pairing(rows: Tensor, own: int, shift: int, itself: bool) -> Pairing:
    """Of this rank's rows with the columns from ``own`` on, which are this rank's too."""
    return Pairing(len(rows), shift, column_base=own, leave_out_self=itself)


def _forward(
    exchange: Exchange, rows: Tensor, columns: Tensor, scale: Tensor, *, shift: int, itself: bool
) -> tuple[Tensor, Tensor]:
    """(lse, positive) of this rank's rows among the columns of all ranks."""
    lse: Tensor | None = None
    positive: Tensor | None = None
    for own, (block,) in exchange.blocks(columns):
        pairing = None if own is None else _pairing(rows, own, shift, itself)
        found, at, _ = similarity_softmax(rows, block, scale, pairing)
        lse = found if lse is None else torch.logaddexp(lse, found)
        positive = positive if own is None else at
    assert lse is not None
    assert positive is not None  # this rank's own block is always among them
    return lse, positive


def _backward(
    exchange: Exchange,
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    *,
    shift: int,
    itself: bool,
    own_side: Side | None,
    columns_side: Side | None,
    d_positive: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of this rank's rows, also as the columns of other ranks' rows, and of the scale.

    Either side may be None; columns_side holds the statistics of this rank's own columns.
    """
    travelling = (columns,) if columns_side is None else (columns, torch.stack(columns_side, 1))
    lse, d_lse = (None, None) if own_side is None else own_side
    total: tuple[Tensor, Tensor] | None = None
    for own, (block, *others) in exchange.blocks(*travelling):
        lse_columns, d_columns = others[0].T.contiguous() if others else (None, None)
        d_rows, _, d_s = similarity_softmax_backward(
            None if d_lse is None else d_lse.contiguous(),
            torch.zeros_like(d_positive) if own is None else d_positive.contiguous(),
            d_columns,
            rows,
            block,
            scale,
            lse,
            lse_columns,
            None if own is None else _pairing(rows, own, shift, itself).numbers,
            columns_gradient=False,
            scale_gradient=True,
        )
        total = (d_rows, d_s) if total is None else (total[0] + d_rows, total[1] + d_s)
    assert total is not None  # there is a block of this rank at least
    return total


@torch.library.custom_op(f"{NAMESPACE}::global_similarity_softmax", mutates_args=())
def global_similarity_softmax(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    shift: int,
    both: bool,
    group: str,
    how: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Statistics of this rank's rows among the columns of all ranks.

    Args:
        rows: unit vectors [n, D] of this rank; n may differ between ranks.
        columns: those of the other side [n, D], or None for the symmetric form, in which no row is
            its own candidate.
        scale: 0-d.
        shift: the positive of row i is this rank's column (i + shift) % n; 0 where columns are
            given.
        both: also the log-sum-exps of this rank's columns among the rows of all ranks.
        group: ``name_of`` the process group.
        how: "gather" or "ring".

    Returns:
        lse [n] over the negatives, that of the columns ([0] without ``both``), positive logits [n],
        W / M, 0-d: the factor of the sum of this rank's losses, and the numbers of rows of all
        ranks int64 [W], on the host.
    """
    exchange = Exchange.of(rows, group, how)
    x = rows.contiguous()
    y = x if columns is None else columns.contiguous()
    lse, positive = _forward(exchange, x, y, scale, shift=shift, itself=columns is None)
    lse_columns = lse.new_empty(0)
    if both:
        lse_columns, _ = _forward(exchange, y, x, scale, shift=0, itself=False)
    return lse, lse_columns, positive, torch.full_like(scale, exchange.factor), exchange.sizes


@global_similarity_softmax.register_fake
def _(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    shift: int,
    both: bool,
    group: str,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    lse = rows.new_empty(len(rows), dtype=statistics_dtype(rows))
    lse_columns = lse.new_empty(len(rows) if both else 0)
    sizes = torch.empty(world_size(group_of(group)), dtype=torch.int64, device="cpu")
    return lse, lse_columns, torch.empty_like(lse), torch.empty_like(scale), sizes


@torch.library.custom_op(f"{NAMESPACE}::global_similarity_softmax_backward", mutates_args=())
def _global_backward(
    d_lse: Tensor,
    d_lse_columns: Tensor | None,
    d_positive: Tensor,
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    lse: Tensor,
    lse_columns: Tensor,
    sizes: Tensor,
    shift: int,
    group: str,
    how: str,
    rows_gradient: bool,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of this rank's rows, its columns ([0] where not asked for) and the scale.

    Either side's products give that of the scale: summed over ranks they are the same.
    """
    exchange = Exchange.again(sizes, group, how)
    x, side = rows.contiguous(), (lse, d_lse)
    if columns is None:
        # A pair is the positive of both its rows.
        mutual = d_positive + d_positive.roll(shift)
        dx, d_scale = _backward(
            *(exchange, x, x, scale),
            shift=shift,
            itself=True,
            own_side=side,
            columns_side=side,
            d_positive=mutual,
        )
        # Every similarity is counted from both its ends.
        return dx, x.new_empty(0), d_scale / 2
    y = columns.contiguous()
    other = None if d_lse_columns is None else (lse_columns, d_lse_columns)
    same: dict[str, Any] = {"shift": shift, "itself": False, "d_positive": d_positive}
    dx = dy = x.new_empty(0)
    if columns_gradient:
        dy, d_scale = _backward(exchange, y, x, scale, own_side=other, columns_side=side, **same)
    if rows_gradient or not columns_gradient:
        dx, d_scale = _backward(exchange, x, y, scale, own_side=side, columns_side=other, **same)
    return dx, dy, d_scale


@_global_backward.register_fake
def _(
    d_lse: Tensor,
    d_lse_columns: Tensor | None,
    d_positive: Tensor,
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    lse: Tensor,
    lse_columns: Tensor,
    sizes: Tensor,
    shift: int,
    group: str,
    how: str,
    rows_gradient: bool,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dy = rows.new_empty(0 if columns is None or not columns_gradient else columns.shape)
    dx = rows.new_empty(rows.shape if rows_gradient or not columns_gradient else 0)
    return dx, dy, torch.empty_like(scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    rows, columns, scale, ctx.shift, ctx.both, *ctx.ranks = inputs
    lse, lse_columns, _, factor, sizes = output
    ctx.save_for_backward(rows, columns, scale, lse, lse_columns, sizes)
    ctx.mark_non_differentiable(factor, sizes)


def _global_autograd(
    ctx: Any, d_lse: Tensor, d_lse_columns: Tensor, d_positive: Tensor, *_: None
) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    upstream = d_lse.contiguous(), d_lse_columns.contiguous() if ctx.both else None
    wanted = rows_gradient, columns_gradient = ctx.needs_input_grad[:2]
    dx, dy, d_scale = _global_backward(
        *upstream, d_positive.contiguous(), *tensors, ctx.shift, *ctx.ranks, *wanted
    )
    return dx if rows_gradient else None, dy if columns_gradient else None, d_scale, *[None] * 4


global_similarity_softmax.register_autograd(_global_autograd, setup_context=_setup_context)
_global_backward.register_autograd(no_double_backward)


def global_ntxent_rows(
    z: Tensor, scale: Tensor, group: Group, how: str = "gather"
) -> tuple[Tensor, Tensor, Tensor]:
    """Per-row statistics of this rank's embeddings among those of all ranks.

    Args:
        z: unit embeddings [2n, D] of this rank, the second views after the first; n may differ
            between ranks.
        scale: 1 / temperature, 0-d.
        group: the process group, or None for all ranks.
        how: "gather" or "ring".

    Returns:
        lse [2n] over the negatives of all ranks, positive logits [2n], and W / M, 0-d: the factor
        of the sum of this rank's losses.
    """
    lse, _, positive, factor, _ = global_similarity_softmax(
        z, None, scale, shift=len(z) // 2, both=False, group=name_of(group), how=how
    )
    return lse, positive, factor


def global_pair_rows(
    x: Tensor, y: Tensor, scale: Tensor, group: Group, both: bool = True, how: str = "gather"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-row statistics of this rank's pairs among those of all ranks.

    Args:
        x: unit features [n, D] of this rank; n may differ between ranks.
        y: those of the other side [n, D], row i belonging to row i of x.
        scale: 0-d.
        group: the process group, or None for all ranks.
        both: also the statistics of y among all x.
        how: "gather" or "ring".

    Returns:
        lse [n] of x and of y ([0] without ``both``) over the negatives of all ranks, positive
        logits [n], and W / N, 0-d: the factor of the sum of this rank's losses, for N pairs over
        all W ranks.
    """
    return global_similarity_softmax(
        x, y, scale, shift=0, both=both, group=name_of(group), how=how
    )[:4]
