"""Contrastive losses over the batch of all ranks.

Rank r returns (W / M) times the sum of its own rows' losses, for W ranks and M rows in all.
Averaging gradients over ranks, as DDP and FSDP do, then gives exactly the gradient of one process
with the global batch, batches of different sizes included; summing them gives W times that.

What travels are the embeddings, and in the backward pass two numbers a row: the log-sum-exp and its
gradient. With these every rank computes the whole gradient of its own rows, also the part that they
have as columns of other ranks' rows. No gradient of size M x D travels. Blocks of other ranks' rows
come from an Exchange: all at once, or around a ring in memory that does not grow with W.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.losses.exchange import Exchange, Group, gather_rows, uncompiled, world_size
from sslfast.ops._gradients import first_order
from sslfast.ops.sigmoid_contrast import sigmoid_contrast, weighted_sigmoid_contrast
from sslfast.ops.similarity_softmax import similarity_softmax, similarity_softmax_backward

Side = tuple[Tensor, Tensor]  # log-sum-exps of rows, and what comes from above for them


def _forward(
    exchange: Exchange, rows: Tensor, columns: Tensor, scale: Tensor, shift: int, itself: bool
) -> tuple[Tensor, Tensor]:
    """(lse, positive) of this rank's rows among the columns of all ranks."""
    lse = positive = torch.empty(0)
    for own, (block,) in exchange.blocks(columns):
        found, at, _ = similarity_softmax(
            rows,
            block,
            scale,
            shift if own >= 0 else -1,
            max(own, 0),
            itself and own >= 0,
            normalize=False,
            column_lse=False,
        )
        lse = torch.logaddexp(lse, found) if len(lse) else found
        positive = at if own >= 0 else positive
    return lse, positive


def _backward(
    exchange: Exchange,
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
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
    gradient = d_scale = torch.empty(0)
    for own, (block, *others) in exchange.blocks(*travelling):
        lse_columns, d_columns = others[0].T.contiguous() if others else (rows.new_empty(0), None)
        d_rows, _, d_s = similarity_softmax_backward(
            None if own_side is None else own_side[1].contiguous(),
            d_positive.contiguous() if own >= 0 else torch.zeros_like(d_positive),
            d_columns,
            rows,
            block,
            scale,
            None if own_side is None else own_side[0],
            lse_columns,
            shift if own >= 0 else -1,
            max(own, 0),
            itself and own >= 0,
            normalize=False,
            columns_gradient=False,
        )
        gradient = gradient + d_rows if len(gradient) else d_rows
        d_scale = d_scale + d_s if d_scale.dim() == 0 else d_s
    return gradient, d_scale


class _SlabOfSelf(torch.autograd.Function):
    """This rank's rows against all ranks' rows: (lse, positive) of the symmetric problem."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: int, exchange: Exchange
    ) -> tuple[Tensor, Tensor]:
        rows = x.detach().contiguous()
        lse, positive = _forward(exchange, rows, rows, scale, shift, True)
        ctx.save_for_backward(x, scale, lse)
        ctx.shift, ctx.exchange = shift, exchange
        return lse, positive

    @staticmethod
    @first_order
    def backward(ctx: Any, d_lse: Tensor, d_positive: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scale, lse = (t.detach().contiguous() for t in ctx.saved_tensors)
        # A pair is the positive of both its rows.
        mutual = d_positive + d_positive.roll(ctx.shift)
        side = (lse, d_lse)
        dx, d_scale = _backward(ctx.exchange, x, x, scale, ctx.shift, True, side, side, mutual)
        return dx, d_scale / 2, None, None  # every similarity is counted from both its ends


@uncompiled
def global_ntxent_rows(
    z: Tensor, scale: Tensor, group: Group, how: str = "gather"
) -> tuple[Tensor, Tensor, float]:
    """Per-row statistics of this rank's embeddings among those of all ranks.

    Args:
        z: unit embeddings [2n, D] of this rank, the second views after the first; n may differ
            between ranks.
        scale: 1 / temperature, 0-d.
        group: the process group, or None for all ranks.
        how: "gather" or "ring".

    Returns:
        lse [2n] over the negatives of all ranks, positive logits [2n], and W / M: the factor of the
        sum of this rank's losses.
    """
    exchange = Exchange.of(z, group, how)
    lse, positive = _SlabOfSelf.apply(z, scale, len(z) // 2, exchange)
    return lse, positive, world_size(group) / exchange.total


class _SlabOfPairs(torch.autograd.Function):
    """This rank's x against all y and, with ``both``, its y against all x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, both: bool, exchange: Exchange
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = x.detach().contiguous(), y.detach().contiguous()
        lse_x, positive = _forward(exchange, rows, columns, scale, 0, False)
        lse_y = lse_x.new_empty(0)
        if both:
            lse_y, _ = _forward(exchange, columns, rows, scale, 0, False)
        ctx.save_for_backward(x, y, scale, lse_x, lse_y)
        ctx.both, ctx.exchange = both, exchange
        return lse_x, lse_y, positive

    @staticmethod
    @first_order
    def backward(
        ctx: Any, d_lse_x: Tensor, d_lse_y: Tensor, d_positive: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, y, scale, lse_x, lse_y = (t.detach().contiguous() for t in ctx.saved_tensors)
        side_x, side_y = (lse_x, d_lse_x), (lse_y, d_lse_y) if ctx.both else None
        structure = scale, 0, False
        dx, d_scale = _backward(ctx.exchange, x, y, *structure, side_x, side_y, d_positive)
        dy, _ = _backward(ctx.exchange, y, x, *structure, side_y, side_x, d_positive)
        return dx, dy, d_scale, None, None


@uncompiled
def global_pair_rows(
    x: Tensor, y: Tensor, scale: Tensor, group: Group, both: bool = True, how: str = "gather"
) -> tuple[Tensor, Tensor, Tensor, float]:
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
        logits [n], and W / N: the factor of the sum of this rank's losses, for N pairs over all W
        ranks.
    """
    exchange = Exchange.of(x, group, how)
    lse_x, lse_y, positive = _SlabOfPairs.apply(x, y, scale, both, exchange)
    return lse_x, lse_y, positive, world_size(group) / exchange.total


class _SlabOfSigmoid(torch.autograd.Function):
    """W / N times the sigmoid losses of this rank's images against all texts.

    Weights are known beforehand, so the gradients are formed here: those of the images from their
    rows, those of the texts from the same loss with the roles exchanged.
    """

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, exchange: Exchange
    ) -> Tensor:
        inputs = image, text, scale, bias
        image, text = image.detach().contiguous(), text.detach().contiguous()
        factor = world_size(exchange.group) / exchange.total
        weight = torch.full((len(image),), factor, dtype=scale.dtype, device=image.device)
        total = d_scale = d_bias = torch.zeros_like(scale)
        d_image, d_text = (torch.zeros_like(x, dtype=scale.dtype) for x in (image, text))
        for own, (images, texts) in exchange.blocks(image, text):
            if not any(ctx.needs_input_grad):
                total = total + factor * sigmoid_contrast(image, texts, scale, bias, own).sum()
                continue
            loss, d_rows, _, d_s, d_b = weighted_sigmoid_contrast(
                image, texts, scale, bias, weight, own, False
            )
            total, d_scale, d_bias = total + loss, d_scale + d_s, d_bias + d_b
            d_image += d_rows
            d_text += weighted_sigmoid_contrast(text, images, scale, bias, weight, own, False)[1]
        ctx.save_for_backward(d_image, d_text, d_scale, d_bias, *inputs)
        ctx.dtype = image.dtype
        return total

    @staticmethod
    @first_order
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        d_image, d_text, d_scale, d_bias = ctx.saved_tensors[:4]
        d_image, d_text = ((above * d).to(ctx.dtype) for d in (d_image, d_text))
        return d_image, d_text, above * d_scale, above * d_bias, None


@uncompiled
def global_sigmoid(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, group: Group, how: str = "gather"
) -> Tensor:
    """This rank's share of the sigmoid loss over the pairs of all ranks.

    Args:
        image: unit features [n, D] of this rank; n may differ between ranks.
        text: those of the texts [n, D].
        scale: 0-d.
        bias: 0-d.
        group: the process group, or None for all ranks.
        how: "gather" or "ring".

    Returns:
        W / N times the sum of the losses of this rank's images, 0-d.
    """
    exchange = Exchange.of(image, group, how)
    return _SlabOfSigmoid.apply(image, text, scale, bias, exchange)


class _ClassMeans(torch.autograd.Function):
    """Mean logit of every row with the other rows of its class, over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, scale: Tensor, group_of: Tensor, classes: int, exchange: Exchange
    ) -> tuple[Tensor, Tensor]:
        sums = _summed(z, group_of, classes, exchange)
        others = _summed(torch.ones_like(z[:, :1]), group_of, classes, exchange)[:, 0] - 1
        found = (z * sums).sum(1) - (z * z).sum(1)
        means = found / others.clamp_min(1)
        ctx.save_for_backward(z, scale, group_of, sums, others, means)
        ctx.classes, ctx.exchange = classes, exchange
        ctx.mark_non_differentiable(others)
        return scale * means, others

    @staticmethod
    @first_order
    def backward(
        ctx: Any, above: Tensor, unused: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        z, scale, group_of, sums, others, means = ctx.saved_tensors
        share = (above / others.clamp_min(1))[:, None]
        # A row is also a member of the class for its other rows, here and elsewhere.
        shares = _summed(share * z, group_of, ctx.classes, ctx.exchange)
        dz = scale * (share * (sums - z) + shares - share * z)
        return dz, (above * means).sum(), None, None, None


def _summed(x: Tensor, group_of: Tensor, classes: int, exchange: Exchange) -> Tensor:
    """Sum over the rows of all ranks with the class of each row of this rank."""
    sums = x.new_zeros(classes, x.shape[1]).index_add(0, group_of, x)
    dist.all_reduce(sums, group=exchange.group)
    return sums[group_of]


@uncompiled
def global_supcon_rows(
    z: Tensor, labels: Tensor, scale: Tensor, group: Group, how: str = "gather"
) -> tuple[Tensor, Tensor, Tensor]:
    """Per-row statistics of supervised contrast among the rows of all ranks.

    Args:
        z: unit features [n, D] of this rank, in the accumulation dtype; n may differ between ranks.
        labels: integers [n].
        scale: 1 / temperature, 0-d.
        group: the process group, or None for all ranks.
        how: "gather" or "ring".

    Returns:
        lse [n] over all other rows of all ranks, the mean logit [n] of the rows with the same label
        and how many these are [n].
    """
    exchange = Exchange.of(z, group, how)
    # Shift 0 makes a row its own positive, which the sum leaves out: all others remain.
    lse, _ = _SlabOfSelf.apply(z, scale, 0, exchange)
    everyone = gather_rows(labels, list(exchange.counts), group)
    known, group_of = everyone.unique(return_inverse=True)
    mine = group_of[exchange.base : exchange.base + len(z)]
    means, others = _ClassMeans.apply(z, scale, mine, len(known), exchange)
    return lse, means, others
