"""Sinkhorn-Knopp over prototypes: schema, fake -> a backend. It has no gradient."""

import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels import sinkhorn as kernels
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.exchange import group_of
from sslfast.kernels.library import NAMESPACE

OP = "sinkhorn"


@torch.library.custom_op(f"{NAMESPACE}::sinkhorn", mutates_args=())
def sinkhorn(
    rows: Tensor, weight: Tensor, scale: Tensor, iterations: int, group: str | None
) -> Tensor:
    """The logarithm of Sinkhorn's scaling vector of the prototypes, up to a constant.

    Args:
        rows: [N, D], float16, bfloat16, float32 or float64.
        weight: prototypes [K, D], of any of these; used in the dtype of rows.
        scale: 1 / temperature, 0-d, in the accumulation dtype.
        iterations: at least 1.
        group: ``exchange.name_of`` the ranks whose rows count; None: this rank's alone.

    Returns:
        [K] in the accumulation dtype, the same on all ranks.
    """
    x, w = rows.contiguous(), weight.to(rows.dtype).contiguous()

    def of_all(lse: Tensor) -> Tensor:
        return lse if group is None else merged(lse, group)

    with torch.autocast(rows.device.type, enabled=False):
        backend = registry.pick(OP, kernels.problem(x, w))
        return backend.log_scaling(x, w, scale, iterations, of_all)


@sinkhorn.register_fake
def _(rows: Tensor, weight: Tensor, scale: Tensor, iterations: int, group: str | None) -> Tensor:
    return rows.new_empty(weight.shape[0], dtype=accumulation_dtype(rows.dtype))


@torch.library.custom_op(f"{NAMESPACE}::merged_lse", mutates_args=())
def merged(lse: Tensor, group: str) -> Tensor:
    """Log-sum-exps over all ranks of those of each, of which some may be of nothing."""
    greatest = lse.clone()
    dist.all_reduce(greatest, dist.ReduceOp.MAX, group_of(group))
    total = (lse - greatest).exp()
    dist.all_reduce(total, group=group_of(group))
    return greatest + total.log()


@merged.register_fake
def _(lse: Tensor, group: str) -> Tensor:
    return lse.new_empty(lse.shape)
