"""Similarity softmax with several positives a row and without false negatives, matrix never held.

With logits t_ij = s <x_i, y_j>, the groups sort the columns of every row i: column ``own + i`` is
the row itself, and is left out; of the others, those of the row's group are positives; of the rest,
those that share the row's ignored id, or whose inner product <x_i, y_j> exceeds the threshold, are
left out; all others are negatives. The same holds of every column's rows. Every backend has two
functions; a ``Side`` is (log-sum-exps, upstream gradients of them).

``forward(rows, columns, scale, groups, sides) -> (lse, positive [M], lse, positive [N])``
    Log-sum-exps over the negatives and over the positives of every row; with ``sides`` those of
    every column too, else [0]. -inf where there are none.

``backward(rows, columns, scale, groups, row, row_positive, column, column_positive,
    columns_gradient) -> (U [M, D], V [N, D])``
    U_i = sum_j G_ij y_j and V_j = sum_i G_ij x_i (empty where not asked for), with
    G_ij = g_i exp(t_ij - lse_i) + h_j exp(t_ij - lse_columns_j), of the log-sum-exps over the
    negatives where j is one, of those over the positives where it is one, and 0 elsewhere. A side
    of the columns may be None. What is left out has no gradient, and the threshold has none.

``columns=None`` is the symmetric form, Y = X, in which a column's sides are its row's.
rows, columns: one floating dtype, contiguous. Ids int64. Log-sum-exps and their gradients have the
statistics dtype, all else the accumulation dtype.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Side = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Groups:
    """What decides which columns a row takes for positives and for negatives.

    Attributes:
        row: group of every row, int64 [M].
        column: of every column [N]; in the symmetric form the same tensor.
        row_ignored: ids of rows [M], and ``column_ignored`` those of columns [N]: no negative has
            the row's. None: nothing is left out for them.
        column_ignored: see row_ignored.
        threshold: of inner products, beyond which a column is no negative; None: no limit.
        own: column own + i is row i itself; None: no column is.
    """

    row: Tensor
    column: Tensor
    row_ignored: Tensor | None = None
    column_ignored: Tensor | None = None
    threshold: float | None = None
    own: int | None = None


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype
    rows: int
    columns: int
    dim: int
    symmetric: bool


def problem(rows: Tensor, columns: Tensor | None) -> Problem:
    """Describe the inputs of an op for the registry."""
    n = len(rows if columns is None else columns)
    return Problem(rows.device.type, rows.dtype, len(rows), n, rows.shape[1], columns is None)


def sort_columns(
    products: Tensor, groups: Groups, rows: slice, columns: slice
) -> tuple[Tensor, Tensor]:
    """Which of a block of inner products are positives, and which are negatives."""
    positive = groups.row[rows, None] == groups.column[columns]
    out = positive
    if groups.row_ignored is not None and groups.column_ignored is not None:
        out = out | (groups.row_ignored[rows, None] == groups.column_ignored[columns])
    if groups.threshold is not None:
        out = out | (products > groups.threshold)
    negative = ~out
    if groups.own is not None:
        i = torch.arange(rows.start, rows.stop, device=products.device)
        j = torch.arange(columns.start, columns.stop, device=products.device)
        other = groups.own + i[:, None] != j
        positive, negative = positive & other, negative & other
    return positive, negative
