"""Torch only, any device: one tile of the logits at a time, M x N never.

The symmetric form visits tiles on and above the diagonal only; a tile serves its rows and its
columns. Forward M^2 D FLOP, backward 3 M^2 D; extra memory: a few tiles of 16 MiB.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype, statistics_dtype
from sslfast.kernels.similarity_softmax import Features, Pairing, as_factors

DEVICE = "any"
PRIORITY = 10
FEATURES = Features()

TILE_ROWS = 512
TILE_ELEMENTS = 1 << 22


def tiles(
    m: int, n: int, symmetric: bool, at_a_time: int = 1
) -> Iterator[tuple[int, int, int, int]]:
    """Bounds (i0, i1, j0, j1) of the tiles; a symmetric strip starts with its square.

    Tiles are the smaller, the more of them are held ``at_a_time``.
    """
    width = max(TILE_ELEMENTS // TILE_ROWS // at_a_time, 1)
    for i0 in range(0, m, TILE_ROWS):
        i1 = min(i0 + TILE_ROWS, m)
        start = 0
        if symmetric:
            yield i0, i1, i0, i1
            start = i1
        for j0 in range(start, n, width):
            yield i0, i1, j0, min(j0 + width, n)


def segments(
    tile: Tensor, i0: int, j0: int, diagonals: list[tuple[int, int, int]]
) -> Iterator[tuple[int, int, Tensor]]:
    """Rows (first, last) and view of what the tile holds of (row, column, length) diagonals."""
    for r, c, n in diagonals:
        first = max(i0 - r, j0 - c, 0)
        last = min(i0 + tile.shape[0] - r, j0 + tile.shape[1] - c, n)
        if first < last:
            inside = tile[r + first - i0 :, c + first - j0 :].diagonal()[: last - first]
            yield r + first, r + last, inside


def positives(p: Pairing) -> list[tuple[int, int, int]]:
    """The diagonals (row, column, length) that hold the positives."""
    wrap = p.length - p.shift
    return [
        (p.row_base, p.column_base + p.shift, wrap),
        (p.row_base + wrap, p.column_base, p.shift),
    ]


def left_out(p: Pairing) -> list[tuple[int, int, int]]:
    """The diagonals of what is no negative."""
    self_ = [(p.row_base, p.column_base, p.length)] if p.leave_out_self else []
    return positives(p) + self_


def add_to_lse(lse: Tensor, tile: Tensor, dim: int) -> None:
    """Add exp of a tile to exp(lse), in place; only the logarithms need many digits."""
    maximum = tile.amax(dim, keepdim=True)
    shift = maximum.masked_fill(maximum.isinf(), 0)
    found = (tile - shift).exp_().sum(dim).to(lse.dtype).log_().add_(shift.squeeze(dim))
    torch.logaddexp(lse, found, out=lse)


def forward(
    rows: Tensor, columns: Tensor | None, scale: Tensor, pairing: Pairing, column_lse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps and positive logits; see the package."""
    symmetric = columns is None
    y = rows if columns is None else columns
    dtype = accumulation_dtype(rows.dtype)
    lse = scale.new_full((len(rows),), -torch.inf, dtype=statistics_dtype(rows))
    lse_columns = lse.new_full((len(y) if column_lse else 0,), -torch.inf)
    positive = lse.clone()
    for i0, i1, j0, j1 in tiles(len(rows), len(y), symmetric):
        tile = (rows[i0:i1].to(dtype) @ y[j0:j1].to(dtype).T).mul_(scale)
        for first, last, values in segments(tile, i0, j0, positives(pairing)):
            positive[first:last] = values
        for _, _, values in segments(tile, i0, j0, left_out(pairing)):
            values.fill_(-torch.inf)
        add_to_lse(lse[i0:i1], tile, 1)
        if symmetric and j0 != i0:
            add_to_lse(lse[j0:j1], tile, 0)
        if column_lse and not symmetric:
            add_to_lse(lse_columns[j0:j1], tile, 0)
    if symmetric and pairing.shift:  # the other halves of the pairs are below the diagonal
        positive[pairing.shift :] = positive[: pairing.shift]
    if symmetric and column_lse:
        lse_columns = lse.clone()
    return lse, positive, lse_columns


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Unscaled gradient of the rows; see the package."""
    symmetric = columns is None
    y = rows if columns is None else columns
    dtype = accumulation_dtype(rows.dtype)
    row, column = (None if side is None else as_factors(side, dtype) for side in (row, column))
    gradient = torch.zeros_like(rows, dtype=dtype)
    for i0, i1, j0, j1 in tiles(len(rows), len(y), symmetric):
        x, z = rows[i0:i1].to(dtype), y[j0:j1].to(dtype)
        logits = (x @ z.T).mul_(scale)
        weight = torch.zeros_like(logits)
        if row is not None:
            lse, g = (t[i0:i1, None] for t in row)
            weight.add_((logits - lse).exp_().mul_(g))
        if column is not None:
            lse, h = (t[j0:j1] for t in column)
            weight.add_(logits.sub_(lse).exp_().mul_(h))
        for _, _, values in segments(weight, i0, j0, left_out(pairing)):
            values.zero_()
        gradient[i0:i1].addmm_(weight, z)
        if symmetric and j0 != i0:
            gradient[j0:j1].addmm_(weight.T, x)
    return gradient
