"""The mean logit of a row with its class, over the rows of all ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.kernels.class_sums.op import class_sums, classes_of
from sslfast.kernels.exchange import Exchange, group_of
from sslfast.kernels.library import NAMESPACE, no_double_backward


def _class_sums(x: Tensor, class_of: Tensor, classes: Tensor, group: str) -> Tensor:
    """Sum over the rows of all ranks with the class of each row of this rank."""
    sums = x.new_zeros(int(classes), x.shape[1])
    here, _ = classes_of(class_of)
    sums[class_of] = class_sums(x, here)  # every row of a class brings the same
    dist.all_reduce(sums, group=group_of(group))
    return sums[class_of]


@torch.library.custom_op(f"{NAMESPACE}::global_class_means", mutates_args=())
def global_class_means(
    z: Tensor, scale: Tensor, labels: Tensor, sizes: Tensor, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean logit of every row with the other rows of its class, over all ranks.

    Args:
        z: unit features [n, D] of this rank, in the accumulation dtype; n may differ between ranks.
        scale: 1 / temperature, 0-d.
        labels: integers [n].
        sizes: the numbers of rows of all ranks int64 [W], on the host.
        group: ``name_of`` the process group.

    Returns:
        The means [n], how many rows each is taken over [n], the sums [n, D] of the classes, the
        number int64 [n] of each row's class, and how many classes there are, 0-d, on the host.
    """
    exchange = Exchange.again(sizes, group)
    known, everyones = exchange.gather(labels.long()).unique(return_inverse=True)
    class_of, classes = everyones[exchange.own].clone(), torch.tensor(len(known))
    with_ones = torch.cat((z, torch.ones_like(z[:, :1])), 1)
    sums, count = _class_sums(with_ones, class_of, classes, group).split((z.shape[1], 1), 1)
    others = count[:, 0] - 1
    found = (z * sums).sum(1) - (z * z).sum(1)
    means = scale * found / others.clamp_min(1)
    return means, others, sums.contiguous(), class_of, classes


@global_class_means.register_fake
def _(
    z: Tensor, scale: Tensor, labels: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    class_of = z.new_empty(len(z), dtype=torch.int64)
    classes = torch.empty((), dtype=torch.int64, device="cpu")
    return z.new_empty(len(z)), z.new_empty(len(z)), z.new_empty(z.shape), class_of, classes


@torch.library.custom_op(f"{NAMESPACE}::global_class_means_backward", mutates_args=())
def _global_backward(
    upstream: Tensor,
    z: Tensor,
    scale: Tensor,
    others: Tensor,
    sums: Tensor,
    class_of: Tensor,
    classes: Tensor,
    group: str,
) -> tuple[Tensor, Tensor]:
    z, share = z.contiguous(), (upstream / others.clamp_min(1))[:, None]
    # A row is also a member of the class for its other rows, here and elsewhere.
    shares = _class_sums(share * z, class_of, classes, group)
    along = share * (sums - z)
    return scale * (along + shares - share * z), (along * z).sum()


@_global_backward.register_fake
def _(upstream: Tensor, z: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), torch.empty_like(scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, scale, *_, ctx.group = inputs
    ctx.save_for_backward(z, scale, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 5
    dz, d_scale = _global_backward(upstream.contiguous(), *ctx.saved_tensors, ctx.group)
    return dz, d_scale, None, None, None


global_class_means.register_autograd(_backward, setup_context=_setup_context)
_global_backward.register_autograd(no_double_backward)
