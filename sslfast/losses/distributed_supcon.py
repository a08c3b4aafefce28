"""Supervised contrast over all ranks: the mean logit of a row with its class."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.losses.distributed import global_similarity_softmax
from sslfast.losses.exchange import Group, gather_rows, group_of, name_of
from sslfast.ops._gradients import refuse_double_backward


def _class_sums(x: Tensor, labels: Tensor, group: str) -> Tensor:
    """Sum over the rows of all ranks with the class of each row of this rank."""
    everyone, places = gather_rows(labels, group)
    known, class_of = everyone.unique(return_inverse=True)
    mine = class_of[places]
    sums = x.new_zeros(len(known), x.shape[1]).index_add(0, mine, x)
    dist.all_reduce(sums, group=group_of(group))
    return sums[mine]


@torch.library.custom_op("sslfast::global_class_means", mutates_args=())
def global_class_means(
    z: Tensor, scale: Tensor, labels: Tensor, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean logit of every row with the other rows of its class, over all ranks.

    Args:
        z: unit features [n, D] of this rank, in the accumulation dtype; n may differ between ranks.
        scale: 1 / temperature, 0-d.
        labels: integers [n].
        group: ``name_of`` the process group.

    Returns:
        The means [n], how many rows each is taken over [n], and the sums [n, D] of the classes.
    """
    ones = torch.ones_like(z[:, :1])
    sums, count = _class_sums(torch.cat((z, ones), 1), labels, group).split((z.shape[1], 1), 1)
    others = count[:, 0] - 1
    found = (z * sums).sum(1) - (z * z).sum(1)
    return scale * found / others.clamp_min(1), others, sums.contiguous()


@global_class_means.register_fake
def _(z: Tensor, scale: Tensor, labels: Tensor, group: str) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(len(z)), z.new_empty(len(z)), z.new_empty(z.shape)


@torch.library.custom_op("sslfast::global_class_means_backward", mutates_args=())
def _global_backward(
    above: Tensor,
    z: Tensor,
    scale: Tensor,
    labels: Tensor,
    others: Tensor,
    sums: Tensor,
    group: str,
) -> tuple[Tensor, Tensor]:
    z, share = z.contiguous(), (above / others.clamp_min(1))[:, None]
    # A row is also a member of the class for its other rows, here and elsewhere.
    shares = _class_sums(share * z, labels, group)
    along = share * (sums - z)
    return scale * (along + shares - share * z), (along * z).sum()


@_global_backward.register_fake
def _(
    above: Tensor,
    z: Tensor,
    scale: Tensor,
    labels: Tensor,
    others: Tensor,
    sums: Tensor,
    group: str,
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), torch.empty_like(scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.group = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, above: Tensor | None, *_: None
) -> tuple[Tensor | None, Tensor | None, None, None]:
    if above is None:
        return None, None, None, None
    dz, d_scale = _global_backward(above.contiguous(), *ctx.saved_tensors, ctx.group)
    return dz, d_scale, None, None


def _no_double_backward(ctx: Any, *gradients: Tensor) -> None:
    refuse_double_backward(gradients)


global_class_means.register_autograd(_backward, setup_context=_setup_context)
_global_backward.register_autograd(_no_double_backward)


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
    name = name_of(group)
    # Shift 0 makes a row its own positive, which the sum leaves out: all others remain.
    lse, *_ = global_similarity_softmax(z, None, scale, 0, False, name, how)
    means, others, _ = global_class_means(z, scale, labels, name)
    return lse, means, others
