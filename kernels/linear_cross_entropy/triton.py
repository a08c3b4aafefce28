"""Triton on NVIDIA GPUs, with cuBLAS (torch.mm) for the products where gradients are formed.

Forward alone is one kernel that keeps no logits: 2 N V D FLOP. With gradients, a block of rows at a
time has its logits in memory, in float32, and beside them the weights G in the operands' dtype
(float32 weights take the logits' place): 6 N V D FLOP in three products, 18 bytes of traffic a
logit in 16 bits and 24 in float32, and 8 V D bytes for every block but the first to add up d_weight
in float32 (16 before torch 2.10). Nothing is read back by the host.

Peak memory beside the inputs, for blocks of R rows (``rows_of_a_block``) and both gradients:

    R V (6 in 16 bits, 4 in float32) + 4 V D + 4 N D + O(N + V) bytes,

and V D times 4 more, for one block's product, where 16-bit gradients add up before torch 2.10. The
op's backward pass then holds 4 V D + 4 N D of it and the gradients in the inputs' dtypes. Results
are the same from run to run on GPUs with as much memory and as many multiprocessors: R follows from
the total memory, never from what is free.

Why torch's own F.linear_cross_entropy (2.13) is no backend: it returns the loss alone, and this op
is made of log-sum-exps without the targets (exact losses of sure rows, and targets that are no
class). It has no weight a row, its chunks take no label smoothing, and its ``auto`` policy may add
up 16-bit gradients in 16 bits. benchmarks/losses.py times it as a peer.
"""

import math

import torch
import triton
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, operand, unavailable
from sslfast.kernels.growth import growth_of
from sslfast.kernels.linear_cross_entropy import Problem, Wants
from sslfast.kernels.linear_cross_entropy._triton_kernels import (
    classifier_kernel,
    weigh_kernel,
)
from sslfast.kernels.logit_rows import CONSTANTS, OPTIONS, full, row_statistics
from sslfast.kernels.lse_parts import merged
from sslfast.kernels.products import block_memory, multiply, rows_of_a_block
from sslfast.kernels.tiles import arithmetic_of, multiprocessors, refuses, settings, splits
from sslfast.kernels.tuning import tile_for

__all__ = ["DEVICE", "PRIORITY", "available", "forward", "gradients"]

PRIORITY = 20

available = unavailable


def supports(problem: Problem) -> str | None:
    """Everything in up to float32."""
    return refuses(problem.dtype)


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps over the other classes, and the targets' logits; see the package."""
    n, dim = hidden.shape
    if not n:
        return _empty(hidden, 0), _empty(hidden, 0)
    classes, given = _classes(targets)
    hidden, weight = operand(hidden), operand(weight)
    dim = hidden.shape[1]
    arithmetic = arithmetic_of(hidden.dtype)
    tile = tile_for("statistics", dim, arithmetic, hidden.device)
    constants, options = settings(dim, hidden.dtype, arithmetic, tile)
    blocks, tiles = triton.cdiv(n, tile.rows), triton.cdiv(len(weight), tile.columns)
    parts = splits(blocks, tiles, multiprocessors(hidden.device))
    lse, target_logit = _empty(hidden, parts, n), _empty(hidden, parts, n)
    with torch.cuda.device_of(hidden):
        classifier_kernel[(blocks, parts)](
            hidden, weight, bias, classes, lse, target_logit, _to_base_2(softcap), n, len(weight),
            **constants, **options,
        )  # fmt: skip
    lse, target_logit = merged(lse, target_logit)
    return lse, target_logit if given is None else given


def _classes(targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """Classes of the targets, -1 where they are none, and then their logits."""
    if not targets.is_floating_point():
        return targets, None
    return torch.full_like(targets, -1, dtype=torch.int64), targets


def gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor,
    smoothing: float,
    wants: Wants,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Statistics and gradients; see the package.

    For 16-bit inputs the weights G_ij are rounded to that dtype before they multiply or add up.
    """
    n, dim = hidden.shape
    v = len(weight)
    lse, target_logit = _empty(hidden, n), _empty(hidden, n)
    d_hidden = _empty(hidden, n, dim) if wants.hidden else _empty(hidden, 0)
    d_weight = _empty(hidden, v, dim) if wants.weight else _empty(hidden, 0)
    d_bias = _empty(hidden, v if wants.bias else 0)
    if not n:
        return lse, target_logit, d_hidden, d_weight.zero_(), d_bias.zero_()
    row_weight, bias = row_weight.contiguous(), full(bias)
    growth = growth_of(row_weight) if hidden.dtype == torch.float16 else None
    a_logit = 4 if hidden.dtype == torch.float32 else 4 + hidden.dtype.itemsize
    step = rows_of_a_block(n, v * a_logit, 4 * v * dim, hidden.device)
    for first in range(0, n, step):
        rows = slice(first, first + step)
        x = hidden[rows]
        g, lse[rows], target_logit[rows] = _weights(
            x, weight, bias, targets[rows], row_weight[rows], growth, smoothing, softcap
        )
        if wants.hidden:
            multiply(g, weight, d_hidden[rows])
        if wants.weight:
            multiply(g.T, x, d_weight, add=first > 0)
        if wants.bias:
            part = g.sum(0, dtype=torch.float32)
            d_bias = d_bias.add_(part) if first else part
        del g  # before the next block takes its memory
    if growth is not None:
        for gradient in (d_hidden, d_weight, d_bias):
            gradient.mul_(growth[1])
    return lse, target_logit, d_hidden, d_weight, d_bias


def _weights(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor,
    growth: Tensor | None,
    smoothing: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """G of a block in the operands' dtype, times its growth; log-sum-exps and targets' logits."""
    n, v = len(x), len(weight)
    logits = multiply(x, weight.T, block_memory(x, n, v, torch.float32))
    g = logits if x.dtype == torch.float32 else block_memory(x, n, v)
    classes, given = _classes(targets)
    softcap = _to_base_2(softcap)
    lse, target_logit = row_statistics(logits, None, bias, classes, softcap)
    target_logit = target_logit if given is None else given
    with torch.cuda.device_of(x):
        weigh_kernel[(n, triton.cdiv(v, CONSTANTS["BLOCK"]))](
            logits, bias, classes, lse, target_logit, row_weight, growth, g,
            smoothing, smoothing / v, softcap, v, **CONSTANTS, **OPTIONS,
        )  # fmt: skip
    return g, lse, target_logit


def _to_base_2(softcap: float | None) -> float | None:
    """As the kernels take it."""
    return None if softcap is None else softcap / math.log(2)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)
