"""Triton on NVIDIA GPUs, with cuBLAS (torch.mm) for the products: a block of samples at a time.

The scores of all views of a block, of student and teacher, are in memory in float32. Log-sum-exps
of their rows come first (kernels/logit_rows.py). Then one kernel reads the scores of a sample
together, sums its losses, and writes the weights G in the operands' dtype, for two more products;
those of float32 take the scores' place.

FLOP: 2 (3 S D + T E) G K with both gradients, 2 (S D + T E) G K for losses alone. Memory traffic
beside the operands: 12 bytes a score of the teacher, and of the student for losses alone; with both
gradients 18 a score of the student in 16 bits, and 24 in float32. d_weight adds up in float32:
8 K D bytes for every block but the first (16 before torch 2.10). Nothing is read back by the host.

Peak memory beside the inputs, for blocks of B samples (``rows_of_a_block``) and both gradients:

    B K (S (6 in 16 bits, 4 in float32) + 4 T) + 4 K D + 4 S G D bytes,

and K D times 4 more, for one block's product, where 16-bit gradients add up before torch 2.10; and
little for copies of a block's rows, B (S D + T E), and for partial sums. Results are the same from
run to run on GPUs with as much memory and as many multiprocessors.
"""

from dataclasses import replace

import torch
import triton
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, unavailable
from sslfast.kernels.growth import growth_of
from sslfast.kernels.logit_rows import full, row_statistics
from sslfast.kernels.products import block_memory, multiply, rows_of_a_block
from sslfast.kernels.prototype_cross_entropy import Problem, Results, Side, Wants
from sslfast.kernels.prototype_cross_entropy._triton_kernels import prototype_kernel
from sslfast.kernels.tiles import multiprocessors, refuses, splits

__all__ = ["DEVICE", "PRIORITY", "available", "losses", "supports"]

PRIORITY = 20

available = unavailable

# With no limit to registers the assembler aims at more programs at a time, and spills.
_OPTIONS = {"num_warps": 4, "maxnreg": 96, "enable_fp_fusion": True}
_RESIDENT = 5  # programs of the kernel that a multiprocessor runs at a time
_MOST_PROTOTYPES = 1024  # of a program, and
_MOST_SCORES = 2048  # of the teacher that it holds


def supports(problem: Problem) -> str | None:
    """Everything in up to float32."""
    return refuses(problem.dtype)


def losses(
    student: Side, teacher: Side, pairs: Tensor, row_weight: Tensor | None, wants: Wants
) -> Results:
    """Losses, entropies, usage and gradients; see the package.

    For 16-bit inputs the weights G are rounded to that dtype before they multiply.
    """
    x, w = student.rows, student.weight
    (views, samples, dim), targets = x.shape, len(teacher.rows)
    wants = wants if row_weight is not None else Wants(rows=False, weight=False)
    loss, entropy = _empty(x, views, samples), _empty(x, targets, samples)
    usage = _empty(x, len(w)).zero_()
    d_rows = _empty(x, *x.shape) if wants.rows else _empty(x, 0)
    d_weight = _empty(x, *w.shape) if wants.weight else _empty(x, 0)
    if not samples or not views or not targets:  # nobody to learn, or to learn from
        return loss.zero_(), entropy.zero_(), usage, d_rows.zero_(), d_weight.zero_()

    pairs, teacher = pairs.contiguous(), replace(teacher, bias=full(teacher.bias))
    factor = row_weight * student.scale if row_weight is not None and any(wants) else None
    growth = None
    if factor is not None and x.dtype == torch.float16:
        growth = growth_of((factor * pairs.abs().sum(1, keepdim=True)).flatten())
        factor *= growth[0]
    a_score = 4 if factor is None or x.dtype == torch.float32 else 4 + x.dtype.itemsize
    a_sample = len(w) * (views * a_score + targets * 4)
    step = rows_of_a_block(samples, a_sample, 4 * d_weight.numel(), x.device)
    for first in range(0, samples, step):
        block = slice(first, first + step)
        of_block = None if factor is None else factor[:, block].contiguous()
        rows, g, loss[:, block], entropy[:, block], part = _weights(
            student, teacher, block, pairs, of_block
        )
        usage += part
        if wants.rows:
            d_rows[:, block] = multiply(g, w, _empty(x, *rows.shape)).view(views, -1, dim)
        if wants.weight:
            multiply(g.T, rows, d_weight, add=first > 0)
        del g  # before the next block takes its memory
    if growth is not None:
        for gradient in (d_rows, d_weight):
            gradient.mul_(growth[1])
    return loss, entropy, usage.div_(targets * samples), d_rows, d_weight


def _weights(
    student: Side, teacher: Side, block: slice, pairs: Tensor, factor: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The student's rows of a block of samples, and their weights G in the operands' dtype.

    Then losses, entropies and the sum of the teacher's softmaxes. ``factor`` [S, B] is what G has
    before its brackets; where it is None, scores stand in the place of G.
    """
    (views, targets), k = pairs.shape, len(student.weight)
    rows, scores, lse = _scores(student, block)
    _, target_scores, target_lse = _scores(teacher, block)
    samples = len(rows) // views
    g = scores
    if factor is not None and rows.dtype != torch.float32:
        g = block_memory(rows, len(rows), k)
    teachers = triton.next_power_of_2(targets)
    size = min(triton.next_power_of_2(k), _MOST_PROTOTYPES, max(_MOST_SCORES // teachers, 16))
    chunks = triton.cdiv(k, size)
    shares = splits(chunks, samples, _RESIDENT * multiprocessors(rows.device))
    loss, entropy = _empty(rows, chunks, views, samples), _empty(rows, chunks, targets, samples)
    usage = block_memory(rows, shares, k, torch.float32)
    with torch.cuda.device_of(rows):
        prototype_kernel[(chunks, shares)](
            scores, student.scale, lse, target_scores, teacher.scale, teacher.bias, target_lse,
            pairs, factor, loss, entropy, usage, None if factor is None else g,
            views, targets, samples, k, TEACHERS=teachers, BLOCK=size, **_OPTIONS,
        )  # fmt: skip
    return rows, g, loss.sum(0), entropy.sum(0), usage.sum(0)


def _scores(side: Side, block: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a block of samples, their products with prototypes, log-sum-exps of the scores."""
    rows, w = side.rows[:, block].flatten(0, 1), side.weight
    products = multiply(rows, w.T, block_memory(rows, len(rows), len(w), torch.float32))
    lse, _ = row_statistics(products, side.scale, side.bias, None, None)
    return rows, products, lse


def _empty(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)
