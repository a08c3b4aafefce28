"""Contrastive losses over the batch of all ranks.

Rank r returns (W / M) times the sum of its own rows' losses, for W ranks and M rows in all.
Averaging gradients over ranks, as DDP and FSDP do, then gives exactly the gradient of one process
with the global batch, batches of different sizes included; summing them gives W times that.

What travels are the embeddings, and in the backward pass two numbers a row: the log-sum-exp and its
gradient. With these every rank computes the whole gradient of its own rows, also the part that they
have as columns of other ranks' rows. No gradient of size M x D travels.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.ops.similarity_softmax import similarity_softmax, similarity_softmax_backward

Group = Any  # dist.ProcessGroup | None


def world_size(group: Group = None) -> int:
    """Ranks of the group; 1 where torch.distributed is not in use."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def row_counts(x: Tensor, group: Group) -> list[int]:
    """Rows of every rank's tensor, read on the host: batches may differ in size."""
    count = torch.tensor([len(x)], device=x.device)
    counts = [torch.empty_like(count) for _ in range(world_size(group))]
    dist.all_gather(counts, count, group=group)
    return torch.cat(counts).tolist()


def gather_rows(x: Tensor, counts: list[int], group: Group) -> Tensor:
    """Concatenate the rows of all ranks, in the order of ranks; carries no gradient."""
    longest = max(counts)
    padded = x.new_zeros(longest, *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _SlabOfNTXent(torch.autograd.Function):
    """This rank's rows against all ranks' rows: (lse, positive) of the symmetric problem."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, counts: list[int], group: Group
    ) -> tuple[Tensor, Tensor]:
        everything = gather_rows(x.detach().contiguous(), counts, group)
        base = sum(counts[: dist.get_rank(group)])
        structure = (len(x) // 2, base, True, False)  # shift, base, leave_out_self, normalize
        lse, positive, _ = similarity_softmax(x.detach(), everything, scale, *structure, False)
        ctx.save_for_backward(x, everything, scale, lse)
        ctx.structure, ctx.counts, ctx.group = structure, counts, group
        return lse, positive

    @staticmethod
    def backward(ctx: Any, d_lse: Tensor, d_positive: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, everything, scale, lse = ctx.saved_tensors
        statistics = torch.stack((lse, d_lse), dim=1)
        lse_all, d_lse_all = gather_rows(statistics, ctx.counts, ctx.group).unbind(1)
        dx, _, d_scale = similarity_softmax_backward(
            d_lse.contiguous(),
            d_positive + d_positive.roll(len(x) // 2),  # a pair is the positive of both its rows
            d_lse_all.contiguous(),
            x.detach(),
            everything,
            scale,
            lse,
            lse_all.contiguous(),
            *ctx.structure,
            False,
        )
        return dx, d_scale / 2, None, None  # every similarity is counted from both its ends


def global_ntxent_rows(z: Tensor, scale: Tensor, group: Group) -> tuple[Tensor, Tensor, float]:
    """Per-row statistics of this rank's embeddings among those of all ranks.

    Args:
        z: unit embeddings [2n, D] of this rank, the second views after the first; n may differ
            between ranks.
        scale: 1 / temperature, 0-d.
        group: the process group, or None for all ranks.

    Returns:
        lse [2n] over the negatives of all ranks, positive logits [2n], and W / M: the factor of the
        sum of this rank's losses.
    """
    counts = row_counts(z, group)
    lse, positive = _SlabOfNTXent.apply(z, scale, counts, group)
    return lse, positive, world_size(group) / sum(counts)


class _SlabOfClip(torch.autograd.Function):
    """This rank's images against all texts and its texts against all images."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, counts: list[int], group: Group
    ) -> tuple[Tensor, Tensor, Tensor]:
        image, text = image.detach(), text.detach()
        images = gather_rows(image.contiguous(), counts, group)
        texts = gather_rows(text.contiguous(), counts, group)
        base = sum(counts[: dist.get_rank(group)])
        structure = (0, base, False, False)  # shift, base, leave_out_self, normalize
        lse_image, positive, _ = similarity_softmax(image, texts, scale, *structure, False)
        lse_text, _, _ = similarity_softmax(text, images, scale, *structure, False)
        ctx.save_for_backward(image, text, images, texts, scale, lse_image, lse_text)
        ctx.structure, ctx.counts, ctx.group = structure, counts, group
        return lse_image, lse_text, positive

    @staticmethod
    def backward(
        ctx: Any, d_lse_image: Tensor, d_lse_text: Tensor, d_positive: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        image, text, images, texts, scale, lse_image, lse_text = ctx.saved_tensors
        own_image, own_text = (lse_image, d_lse_image), (lse_text, d_lse_text)
        statistics = gather_rows(torch.stack((*own_image, *own_text), 1), ctx.counts, ctx.group)
        all_image, all_text = statistics.T.contiguous().split(2)

        def gradient(
            rows: Tensor, columns: Tensor, own: tuple[Tensor, Tensor], others: Tensor
        ) -> tuple[Tensor, Tensor]:
            lse, d_lse = own
            d_rows, _, d_scale = similarity_softmax_backward(
                d_lse.contiguous(),
                d_positive.contiguous(),
                others[1],
                rows,
                columns,
                scale,
                lse,
                others[0],
                *ctx.structure,
                False,
            )
            return d_rows, d_scale

        d_image, d_scale = gradient(image, texts, own_image, all_text)
        d_text, _ = gradient(text, images, own_text, all_image)
        return d_image, d_text, d_scale, None, None


def global_clip_rows(
    image: Tensor, text: Tensor, scale: Tensor, group: Group
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Per-row statistics of this rank's pairs among those of all ranks.

    Args:
        image: unit features [n, D] of this rank; n may differ between ranks.
        text: those of the texts [n, D].
        scale: 0-d.
        group: the process group, or None for all ranks.

    Returns:
        lse [n] of the images and of the texts over the negatives of all ranks, positive logits [n],
        and W / N: the factor of the sum of this rank's losses, for N pairs over all W ranks.
    """
    counts = row_counts(image, group)
    lse_image, lse_text, positive = _SlabOfClip.apply(image, text, scale, counts, group)
    return lse_image, lse_text, positive, world_size(group) / sum(counts)
