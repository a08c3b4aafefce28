"""Losses and gradients a block of rows at a time, with weights in memory: for large D.

One sweep of tiles, 2 M N D FLOP, gives losses, d_bias and the weights G in the operands' dtype,
with one exponential and one division a logit; cuBLAS forms U = G Y and V = G^T X, which adds block
to block in a deterministic order: 6 M N D FLOP in all. A program has its tile of logits from a
product over all features and never writes it; float32 logits come from cuBLAS through memory, where
G takes their place. When, and memory: see ``in_blocks`` of kernels/products.py and
similarity_softmax/_triton_blocks.py.

Predicted, never measured, for N = 32,768, D = 512, bf16, on an H100: a sweep of 32,768 tiles of
256 x 128 takes 12.9 GB from L2, 2.3 ms at 5.5 TB/s, and in a multiprocessor 249 x (8,192 clocks of
products + 1,200 to fill and drain + 4,096 of exponentials and reciprocals + 4,000 of other work) =
2.6 ms at 1.7 GHz: about 2.9 ms. Two products of 1.1 TFLOP at 660 TFLOP/s: 3.3 ms; together 6.2.
Logits in float32 through memory: 7.4; kernels that keep the gradient beside the products: 34.
"""

# mypy: disable-error-code="no-untyped-def, index"

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.growth import growth_of
from sslfast.kernels.products import block_memory as new_block
from sslfast.kernels.products import block_settings, logits_in_memory, multiply, rows_of_a_block
from sslfast.kernels.sigmoid_contrast._triton_kernel import SIZES, log2_of_one_plus
from sslfast.kernels.tiles import arithmetic_of
from sslfast.kernels.triton_tiles import (
    LN2,
    LOG2E,
    block_logits,
    block_memory,
    halves,
    nth_block,
    on_diagonal,
    touches,
)


@triton.jit(do_not_specialize=[*SIZES, "i_first"])
def block_kernel(
    p_x, p_y, p_logits, p_scale, p_bias, p_weight, p_growth, p_loss, p_d_bias, p_g,
    M, N, length, shift, row_base, column_base, i_first,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """Partial losses and d_bias [C, M - i_first] of a tile's rows, and G times its growth.

    Of the rows i_first to M and all columns, in C columns of tiles. Without gradients, weights,
    d_bias and G are None; ``p_g`` may be ``p_logits``. See _triton_kernel.py for the formulas.
    """
    row_blocks, column_blocks = tl.cdiv(M - i_first, BLOCK_M), tl.cdiv(N, BLOCK_N)
    n_row, n_column = nth_block(tl.program_id(0), row_blocks, column_blocks)
    i_row, i_column = i_first + n_row * BLOCK_M, n_column * BLOCK_N
    i = i_row + tl.arange(0, BLOCK_M)
    wrapped = (row_base + length - shift, column_base, shift)
    straight = (row_base, column_base + shift, length - shift)
    masked = touches(i_row, i_column, wrapped, BLOCK_M, BLOCK_N)
    masked |= touches(i_row, i_column, straight, BLOCK_M, BLOCK_N)
    b_t = block_logits(
        p_x, p_y, p_logits, n_row * BLOCK_M, i_column, i_first, 0, M, N, D,
        BLOCK_M, BLOCK_N, BLOCK_D, OPERAND,
    )  # fmt: skip
    scale, bias = tl.load(p_scale) * LOG2E, tl.load(p_bias) * LOG2E
    HALF: tl.constexpr = BLOCK_N // 2
    parts = halves(b_t, BLOCK_M, HALF)
    b_loss = tl.zeros((BLOCK_M,), tl.float32)
    b_d_bias = tl.zeros((BLOCK_M,), tl.float32)
    if p_g is not None:
        b_weight = tl.load(p_weight + tl.minimum(i, M - 1))
        grow = 1.0
        if p_growth is not None:
            grow = tl.load(p_growth)
    for n in tl.static_range(2):
        j = i_column + n * HALF + tl.arange(0, HALF)
        b_c = parts[n] * scale + bias
        if masked:
            i_positive = tl.maximum(on_diagonal(i, wrapped), on_diagonal(i, straight))
            b_c = tl.where(j[None, :] == i_positive[:, None], -b_c, b_c)
        if i_column + BLOCK_N > N:
            b_c = tl.where((j < N)[None, :], b_c, -float("inf"))
        b_e = tl.exp2(-tl.abs(b_c))
        b_loss += tl.sum(tl.maximum(b_c, 0) + log2_of_one_plus(b_e), 1)
        if p_g is not None:
            b_p = tl.where(b_c >= 0, 1.0, b_e) / (1 + b_e)
            if masked:
                i_positive = tl.maximum(on_diagonal(i, wrapped), on_diagonal(i, straight))
                b_p = tl.where(j[None, :] == i_positive[:, None], -b_p, b_p)
            b_d_bias += tl.sum(b_p, 1)
            b_g = b_p * (b_weight * grow)[:, None]
            p_half, m_half = block_memory(p_g, i - i_first, j, M - i_first, N)
            tl.store(p_half, b_g.to(p_g.dtype.element_ty), mask=m_half)
    i_out = n_column * (M - i_first) + i - i_first
    tl.store(p_loss + i_out, b_loss * LN2, mask=i < M)
    if p_g is not None:
        tl.store(p_d_bias + i_out, b_d_bias * b_weight, mask=i < M)


def run(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairs: tuple[int, ...],
    row_weight: Tensor | None,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, U, V and d_bias of the rows, or only losses without weights; empty where not formed.

    ``pairs`` are length, shift, row_base and column_base of the pairing, as in the kernel.
    """
    (m, dim), n = rows.shape, len(columns)
    weighted = row_weight is not None
    loss = scale.new_zeros(m)
    d_bias = scale.new_zeros(m if weighted else 0)
    u = (
        scale.new_zeros(m, dim)
        if weighted and not n
        else scale.new_empty(m if weighted else 0, dim)
    )
    v = scale.new_empty((n, dim) if columns_gradient else (0,))
    if not (m and n):
        return loss, u, v.zero_(), d_bias
    tile, constants, options = block_settings(m, n, rows)
    a_logit = rows.element_size() if weighted or rows.dtype == torch.float32 else 0
    row_bytes = n * (a_logit + 8 / tile.columns)
    step = rows_of_a_block(m, row_bytes, 4 * v.numel(), rows.device)
    with torch.cuda.device_of(rows):
        growth = None
        if row_weight is not None and arithmetic_of(rows.dtype) == "16-bit":
            growth = growth_of(row_weight)
        for first in range(0, m, step):
            last = min(first + step, m)
            high, wide = triton.cdiv(last - first, tile.rows), triton.cdiv(n, tile.columns)
            x = rows[first:last]
            logits = logits_in_memory(x, columns)
            g = new_block(x, len(x), n) if weighted and logits is None else logits
            losses = scale.new_empty(wide, len(x))
            d_biases = torch.empty_like(losses) if weighted else None
            block_kernel[(high * wide,)](
                rows, columns, logits, scale, bias, row_weight, growth, losses, d_biases,
                g if weighted else None, last, n, *pairs, first, **constants, **options,
            )  # fmt: skip
            torch.sum(losses, 0, out=loss[first:last])
            if d_biases is not None and g is not None:
                torch.sum(d_biases, 0, out=d_bias[first:last])
                multiply(g, columns, u[first:last])
                if columns_gradient:
                    multiply(g.T, x, v, add=first > 0)
            del g, logits  # before the next block takes their memory
    if growth is not None:
        for gradient in (u, v):
            gradient.mul_(growth[1])
    return loss, u, v, d_bias
