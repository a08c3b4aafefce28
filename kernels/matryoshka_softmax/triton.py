"""Triton on NVIDIA GPUs: a block of rows at a time, with the weights of all prefixes in memory.

Forward: one sweep of tiles over the features of the longest prefix, with K exponentials a logit and
side. Backward: the same sweep writes the weights W_p, and cuBLAS forms U and V from them. In 16
bits from U[:, :d_p] += W_p Y[:, :d_p], products of sum_p d_p features: cuBLAS reads every W_p once,
which with few features takes as long as the product, and weights are rounded once. In float32 from
U[:, features of p] = (W_p + ... + W_K) Y[:, features of p], products of D features, since these
take longer than memory does; inner products of every prefix are formed by cuBLAS too, and the
weights take their place.

Memory beside the results: at most ``block_bytes`` (2.5 GiB on an H100), the size of V in float32 or
one row of all W, whichever is the largest; copies of rows of which some prefix is no multiple of 16
features, or in float16. Results are the same from run to run on a GPU.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, aligned, unavailable
from sslfast.kernels.growth import growth_of
from sslfast.kernels.lse_parts import merged_lse
from sslfast.kernels.matryoshka_softmax import Prefixes, Problem, stretches
from sslfast.kernels.matryoshka_softmax._triton_kernels import statistics_kernel, weights_kernel
from sslfast.kernels.products import block_memory, multiply, rows_of_a_block
from sslfast.kernels.similarity_softmax import Features, Pairing
from sslfast.kernels.tiles import arithmetic_of, refuses, settings
from sslfast.kernels.tuning import tile_for

__all__ = ["DEVICE", "FEATURES", "PRIORITY", "available", "backward", "forward", "supports"]

PRIORITY = 20
FEATURES = Features()
MULTIPLE = 16  # of features at which every prefix ends: what a tensor core takes at once

available = unavailable

Side = tuple[Tensor, Tensor] | None


def supports(problem: Problem) -> str | None:
    """Everything in up to float32."""
    return refuses(problem.dtype)


def _operand(
    x: Tensor, inverse: Tensor, prefixes: Prefixes
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows as kernels take them, 1 / norms of their prefixes, and what rows were multiplied by.

    In float16 the power of two that brings the norm of a row to (0.5, 1], so that weights, which
    hold 1 / norms, keep within its range; None in other dtypes.
    """
    x, inverse = aligned(prefixes.padded(x, MULTIPLE)), inverse.float()
    if x.dtype != torch.float16:
        return x, inverse, None
    power = (inverse[-1].view(torch.int32) & 0x7F800000).view(torch.float32)
    power = torch.where((power > 0) & (power < torch.inf), power, 1)  # norms of 0, inf and NaN
    return (x * power[:, None]).to(x.dtype), inverse / power, power


class _Call:
    """The problem as kernels take it."""

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor | None,
        scale: Tensor,
        prefixes: Prefixes,
        pairing: Pairing,
    ) -> None:
        self.x, self.a, self.row_power = _operand(rows, prefixes.rows, prefixes)
        self.y, self.b, self.column_power = self.x, self.a, self.row_power
        if columns is not None:
            self.y, self.b, self.column_power = _operand(columns, prefixes.columns, prefixes)
        self.scale, self.pairing = scale, pairing
        self.ends = prefixes.padded_ends(MULTIPLE)
        arithmetic = arithmetic_of(rows.dtype)
        self.tile = tile_for("prefix block", self.ends[-1], arithmetic, rows.device)
        constants, options = settings(self.ends[-1], rows.dtype, arithmetic, self.tile)
        del constants["PRECISION"], constants["D"]
        self.options: dict[str, Any] = {**constants, "ENDS": self.ends, **options}

    def blocks(self, logit_bytes: float, added_bytes: int) -> list[slice]:
        """Blocks of rows, of which every logit of a prefix takes so many bytes."""
        m, row_bytes = len(self.x), len(self.ends) * len(self.y) * logit_bytes
        step = rows_of_a_block(m, row_bytes, added_bytes, self.x.device)
        return [slice(first, min(first + step, m)) for first in range(0, m, step)]

    def launch(
        self, kernel: Any, block: slice, logits: Tensor | None, *given: Tensor | None, **more: int
    ) -> None:
        """A program for every tile of a block of rows."""
        x, p = self.x[block], self.pairing
        shift = p.shift % p.length if p.length else 0
        self_length = p.length if p.leave_out_self else 0
        pairs = p.length, shift, p.row_base - block.start, p.column_base, self_length
        tiles = triton.cdiv(len(x), self.tile.rows) * triton.cdiv(len(self.y), self.tile.columns)
        kernel[(tiles,)](
            x, self.y, logits, self.scale, *given, len(x), len(self.y), *pairs,
            **more, **self.options,
        )  # fmt: skip

    def parts(self, block: slice, both: bool) -> tuple[Tensor, Tensor | None]:
        """Memory for partial results of the rows [C, K, m], and of the columns [R, K, N]."""
        m, n, k = block.stop - block.start, len(self.y), len(self.ends)
        high, wide = triton.cdiv(m, self.tile.rows), triton.cdiv(n, self.tile.columns)
        of_columns = self.scale.new_empty(high, k, n) if both else None
        return self.scale.new_empty(wide, k, m), of_columns

    def memory(self, block: slice) -> Tensor:
        """[K, m, N] in the dtype of the operands."""
        m, k = block.stop - block.start, len(self.ends)
        return block_memory(self.x, k * m, len(self.y)).unflatten(0, (k, m))

    def logits_in_memory(self, block: slice) -> Tensor | None:
        """Inner products of every prefix where cuBLAS has the faster product; else None."""
        if self.x.dtype != torch.float32:
            return None
        logits, x = self.memory(block), self.x[block]
        for p, f in enumerate(stretches(self.ends)):
            if p:
                torch.addmm(logits[p - 1], x[:, f], self.y[:, f].T, out=logits[p])
            else:
                multiply(x[:, f], self.y[:, f].T, logits[0])
        return logits


def _part(t: Tensor, block: slice) -> Tensor:
    """A block of [..., M] in one stretch of memory; the whole is no copy."""
    return t[..., block].contiguous()


def _packed(inverse: Tensor, side: Side) -> Tensor:
    """1 / norms, log-sum-exps and their gradients [K, 3, M], or the first alone [K, 1, M]."""
    return torch.stack([inverse] if side is None else [inverse, *side], 1)


def forward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    prefixes: Prefixes,
    pairing: Pairing,
    column_lse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps and positive logits; see the package."""
    call = _Call(rows, columns, scale, prefixes, pairing)
    m, n, k = len(call.x), len(call.y), len(call.ends)
    positive = scale.new_full((k, m), -torch.inf)
    lse_columns = scale.new_full((k, n) if column_lse else (0,), -torch.inf)
    if not (m and n):
        return positive.clone(), positive, lse_columns
    lse = torch.empty_like(positive)
    logit_bytes = 4 / call.tile.columns + 4 / call.tile.rows
    logit_bytes += 4 if rows.dtype == torch.float32 else 0
    with torch.cuda.device_of(rows):
        for block in call.blocks(logit_bytes, 0):
            row_parts, column_parts = call.parts(block, column_lse and columns is not None)
            positives, logits = _part(positive, block), call.logits_in_memory(block)
            given = _part(call.a, block), call.b, row_parts, column_parts, positives
            call.launch(statistics_kernel, block, logits, *given)
            lse[:, block] = merged_lse(row_parts.flatten(1)).view(k, -1)
            positive[:, block] = positives
            if column_parts is not None:
                more = merged_lse(column_parts.flatten(1)).view(k, n)
                torch.logaddexp(lse_columns, more, out=lse_columns)
            del logits  # before the next block takes its memory
    return lse, positive, lse.clone() if column_lse and columns is None else lse_columns


def _growth(call: _Call, row: Side, column: Side, positive: Tensor) -> Tensor:
    """That of the largest weight that there may be, and its inverse; see kernels/growth.py."""
    a, b = call.a.nan_to_num(0), call.b.nan_to_num(0)
    bounds = [positive * a * b.amax(1, keepdim=True)]
    if row is not None:
        bounds.append(row[1] * a * b.amax(1, keepdim=True))
    if column is not None:
        bounds.append(column[1] * b * a.amax(1, keepdim=True))
    return growth_of(torch.cat([bound.flatten() for bound in bounds]))


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    prefixes: Prefixes,
    pairing: Pairing,
    row: Side,
    column: Side,
    positive: Tensor,
    columns_gradient: bool = False,
) -> tuple[Tensor, ...]:
    """Unscaled gradients and inner products; see the package.

    For 16-bit inputs weights are rounded to that dtype before they multiply the other side's rows.
    """
    call = _Call(rows, columns, scale, prefixes, pairing)
    row, column = (s and (s[0].float(), s[1].float()) for s in (row, column))
    positive = positive.float()
    u = torch.zeros_like(call.x, dtype=torch.float32)
    v = torch.zeros_like(call.y, dtype=torch.float32) if columns_gradient else u.new_empty(0)
    inner, column_inner = torch.zeros_like(call.a), torch.zeros_like(call.b)
    growth, any_logits = None, len(call.x) > 0 and len(call.y) > 0
    with torch.cuda.device_of(rows):
        if rows.dtype != torch.float32 and any_logits:
            growth = _growth(call, row, column, positive)
        of_rows, of_columns = _packed(call.a, row), _packed(call.b, column)
        counts = {"OF_ROW": of_rows.shape[1], "OF_COLUMN": of_columns.shape[1]}
        blocks = call.blocks(rows.element_size(), 4 * v.numel()) if any_logits else []
        for block in blocks:
            logits = call.logits_in_memory(block)
            w = call.memory(block) if logits is None else logits
            row_parts, column_parts = call.parts(block, columns_gradient)
            given = _part(of_rows, block), of_columns, _part(positive, block), growth, w
            call.launch(weights_kernel, block, logits, *given, row_parts, column_parts, **counts)
            inner[:, block] = row_parts.sum(0)
            if column_parts is not None:
                column_inner += column_parts.sum(0)
            for p, new in enumerate(stretches(call.ends)):
                f = slice(0, new.stop) if logits is None else new
                multiply(w[p], call.y[:, f], u[block, f], add=True)
                if columns_gradient:
                    multiply(w[p].T, call.x[block, f], v[:, f], add=True)
            del logits, w  # before the next block takes their memory
    for gradient, power in ((u, call.row_power), (v, call.column_power)):
        if growth is not None:
            gradient.mul_(growth[1])
        if power is not None and gradient.numel():
            gradient.mul_(power[:, None])
    u, v = (prefixes.without_padding(g, MULTIPLE) for g in (u, v))
    return (u, v, inner, column_inner) if columns_gradient else (u, v, inner)
