"""SIGReg, on one process or over ranks: schema, fake, autograd -> a backend of the registry.

The maths is in kernels/sigreg. Once the sums over all rows are known the gradient is, too: it is
formed in the forward pass, while the projections are at hand, and only [V, N, D] is kept of it.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.exchange import Exchange
from sslfast.kernels.library import NAMESPACE, refuse_double_backward, times
from sslfast.kernels.sigreg import Form, Problem, directions_at_a_time

OP = "sigreg"


def sigreg(
    z: Tensor, directions: Tensor, t_max: float, knots: int, group: str | None = None
) -> tuple[Tensor, Tensor]:
    """The statistic of Epps and Pulley, the mean over views and directions.

    Args:
        z: features [V, N, D] of V views, float16, bfloat16, float32 or float64.
        directions: [M, D], rows of unit length in the accumulation dtype. They need no gradient,
            and get none.
        t_max: the largest t at which characteristic functions are compared.
        knots: how many t from 0 to that.
        group: ``name_of`` the process group whose rows are taken together; N may differ between
            its ranks, directions not. None: this process alone.

    Returns:
        The statistic, 0-d, in the accumulation dtype, and the number of rows N of all ranks, 0-d,
        on the host. Every rank gets the same statistic, and W times its rows' share of the gradient
        for W ranks: gradients averaged over ranks (DDP, FSDP) are those of one process with all
        rows.
    """
    gradient = torch.is_grad_enabled() and z.requires_grad
    return _sigreg(z, directions, t_max, knots, group, gradient)[:2]


@torch.library.custom_op(f"{NAMESPACE}::sigreg", mutates_args=())
def _sigreg(
    z: Tensor, directions: Tensor, t_max: float, knots: int, group: str | None, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and the gradient of z in the accumulation dtype (empty where not asked for)."""
    dtype, form = accumulation_dtype(z.dtype), Form(t_max, knots)
    (views, own, dim), exchange = z.shape, None
    ranks, rows, most = 1, own, own
    if group is not None:
        exchange = Exchange.of(z[0], group)
        ranks, rows, most = len(exchange.counts), exchange.total, max(exchange.counts)
    backend = registry.pick(OP, Problem(z.device.type, dtype))
    flat, shares = z.reshape(-1, dim).to(dtype), []
    d_z = torch.zeros_like(flat) if gradient else flat.new_empty(0)
    scale = 1 / (views * len(directions))
    with torch.autocast(z.device.type, enabled=False):  # sums are never in half precision
        for part in directions.split(directions_at_a_time(views * most, z.device.type)):
            p = torch.mm(flat, part.T)
            sums = backend.sums(p.view(views, own, len(part)), form)
            if exchange is not None:
                dist.all_reduce(sums, group=exchange.group)
            t, phi, weight = (x[:, None] for x in form.nodes(sums))
            apart = sums / rows
            apart[:, 0] -= phi
            shares.append((weight * apart.square()).sum() * (rows * scale))
            if gradient:
                apart *= 2 * ranks * scale * weight * t
                coefficients = torch.stack((apart[:, 1], -apart[:, 0]), 1).to(dtype)
                backend.gradient_(p.view(views, own, len(part)), coefficients, form)
                d_z.addmm_(p, part)
    statistic = torch.stack(shares).sum().to(dtype)
    return statistic, torch.tensor(rows), d_z.view_as(z) if gradient else d_z


@_sigreg.register_fake
def _(
    z: Tensor, directions: Tensor, t_max: float, knots: int, group: str | None, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(z.dtype)
    rows = torch.empty((), dtype=torch.int64, device="cpu")
    return (
        z.new_empty((), dtype=dtype),
        rows,
        z.new_empty(z.shape if gradient else (0,), dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[2])


def _backward(
    ctx: Any, upstream: Tensor | None, _: None, d_gradient: Tensor | None
) -> tuple[Tensor | None, ...]:
    refuse_double_backward((d_gradient,))
    if upstream is None:
        return (None,) * 6
    return times(ctx.saved_tensors[0], upstream, ctx.dtype), *[None] * 5


_sigreg.register_autograd(_backward, setup_context=_setup_context)
