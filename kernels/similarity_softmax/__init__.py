"""Similarity softmax: row-wise log-sum-exps of X Y^T without the matrix, and their gradient.

With logits t_ij = s <x_i, y_j>, every backend has two functions.

``forward(rows, columns, scale, pairing, column_lse) -> (lse [M], positive [M], lse_columns [N])``
    lse_i = log sum_j exp(t_ij) over the *negatives* of row i: neither its positive nor, where the
    pairing says so, itself. positive_i is the logit of the positive. lse_columns_j is the same sum
    over the rows i, or an empty tensor where it was not asked for. Leaving the positive out keeps
    every loss exact when pairs have converged: NT-Xent is softplus(lse - positive).

``backward(rows, columns, scale, pairing, row, column) -> U [M, D]``
    U_i = sum_j G_ij y_j over the same elements, with
    G_ij = g_i exp(t_ij - lse_i) + h_j exp(t_ij - lse_columns_j); ``row`` is (lse, g), ``column`` is
    (lse_columns, h), and either may be None for nothing from that side. The gradient of x_i is
    s U_i; that of y is the transposed call.

What else a backend has is said by its ``FEATURES``, a ``Features``.

``columns=None`` is the symmetric form: Y = X, column = row statistics, and mutual positives: shift
is M / 2, or 0 where a row has no positive but itself.
rows, columns: any floating dtype, contiguous. Log-sum-exps, positives and the upstream gradients of
them (g, h) have the statistics dtype; all else has the accumulation dtype. Nothing here checks
values: non-finite in, non-finite out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.kernels.extension import extension

# As in csrc/cpu: a line of 16 before the logits (kept_logits.h), blocks of up to 256 (schedule.h).
KEPT_HEADER, BLOCK = 16, 256
KEPT_FLOATS = KEPT_HEADER + 16 * 2**18  # 16 MiB of logits


@dataclass(frozen=True)
class Pairing:
    """Which elements of the logit matrix are positives, and which are no candidates at all.

    Row ``row_base + a`` and column ``column_base + (a + shift) % length`` are a positive pair for
    0 <= a < length; with ``leave_out_self``, row ``row_base + a`` and column ``column_base + a``
    are the same sample. NT-Xent over M rows: Pairing(M, M // 2, leave_out_self=True); CLIP:
    Pairing(N); a rank's rows against all ranks' columns: column_base = where its own begin.
    """

    length: int
    shift: int = 0
    row_base: int = 0
    column_base: int = 0
    leave_out_self: bool = False

    @classmethod
    def of(cls, numbers: Sequence[int] | None) -> "Pairing":
        """The pairing with these ``numbers``; None: no pairs."""
        if numbers is None:
            return cls(0)
        length, shift, row_base, column_base, leave_out_self = numbers
        return cls(length, shift, row_base, column_base, bool(leave_out_self))

    @property
    def numbers(self) -> list[int]:
        """The fields in their order, as ops take them."""
        around = self.length, self.shift, self.row_base, self.column_base
        return [*around, int(self.leave_out_self)]

    def transposed(self) -> "Pairing":
        """The same pairs with the roles of rows and columns exchanged."""
        back = -self.shift % self.length if self.length else 0
        return Pairing(self.length, back, self.column_base, self.row_base, self.leave_out_self)


@dataclass(frozen=True)
class Features:
    """What a backend has beside forward and backward.

    Attributes:
        in_parts: ``backward_parts(...) -> [S, M, D]`` with the arguments of backward: U in parts,
            to be added up in their order, which kernels/unit_rows does on its way.
        both_sides: for which problems a backend gains from doing both sides of the rectangular form
            in one pass; None: it cannot. ``backward_both(..., positive) -> (U [M, D], V [N, D])``
            has the arguments of backward and the weights [M] that stand in G at the rows'
            positives; V_j = sum_i G_ij x_i.
        keeps_logits: ``forward(..., kept)`` leaves logits in its last argument, as far as they fit,
            which ``backward(..., kept)`` and ``backward_both(..., kept)`` of the same problem then
            do not compute again. The first float is 1 when a forward pass has written there; the
            tensor may be empty.
    """

    in_parts: bool = False
    both_sides: Callable[["Problem"], bool] | None = None
    keeps_logits: bool = False

    def one_pass(self, problem: "Problem") -> bool:
        """Whether backward_both is to be asked for both gradients."""
        return self.both_sides is not None and self.both_sides(problem)


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype
    rows: int
    columns: int
    dim: int
    symmetric: bool
    pairing: Pairing


def problem(rows: Tensor, columns: Tensor | None, pairing: Pairing) -> Problem:
    """Describe the inputs of an op for the registry."""
    return Problem(
        device=rows.device.type,
        dtype=rows.dtype,
        rows=rows.shape[0],
        columns=(rows if columns is None else columns).shape[0],
        dim=rows.shape[1],
        symmetric=columns is None,
        pairing=pairing,
    )


def kept_size(rows: Tensor, columns: Tensor | None, copies: int = 1) -> int:
    """How many floats of memory pay for logits that a forward pass keeps for its backward pass.

    ``copies`` times as many as there are logits, at most KEPT_FLOATS: 0 on a GPU, where computing
    is cheaper than fetching.
    """
    if rows.device.type != "cpu" or rows.dtype == torch.float64:
        return 0

    def filled_up(n: int) -> int:
        return (n + BLOCK - 1) // BLOCK * BLOCK

    m = filled_up(rows.shape[0])
    logits = m * (m + BLOCK) // 2 if columns is None else m * filled_up(columns.shape[0])
    return min(KEPT_HEADER + copies * logits, KEPT_FLOATS)


def new_kept(like: Tensor, size: int) -> Tensor:
    """Memory for ``size`` floats on the device of ``like``; it says that nothing was kept yet."""
    module = extension()
    if like.device.type == "cpu" and module is not None and size > 0:
        kept = torch.frombuffer(module.Floats(size), dtype=torch.float32)
    else:
        kept = like.new_empty(size, dtype=torch.float32)
    if size:
        kept[:1] = 0
    return kept


def as_factors(side: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(lse, g) in a dtype, g making up for what rounding takes from lse.

    g exp(t - lse) = (g exp(rounded - lse)) exp(t - rounded).
    """
    lse, g = side
    rounded = lse.to(dtype)
    lost = (rounded - lse).nan_to_num(0.0)  # of rows without negatives
    return rounded, (g * lost.exp()).to(dtype)


def add_positives(gradient: Tensor, other: Tensor, weight: Tensor, pairing: Pairing) -> None:
    """gradient_i += weight_i other_positive(i), in place; weight is per row of the window."""
    p, n = pairing, pairing.length
    wrap = n - p.shift
    for first, to, count in ((0, p.column_base + p.shift, wrap), (wrap, p.column_base, p.shift)):
        rows = slice(p.row_base + first, p.row_base + first + count)
        share = weight[first : first + count, None].to(gradient.dtype)
        gradient[rows].addcmul_(share, other[to : to + count].to(gradient.dtype))


def info_nce_from_logits(lse: Tensor, positive: Tensor, unit: bool) -> Tensor:
    """-log(exp(positive) / (exp(positive) + exp(lse))) per row, exact when pairs have converged.

    ``lse`` is over the negatives alone, so that the loss is softplus(lse - positive) and no two
    large numbers are subtracted where the result is small.

    Args:
        lse: over the negatives [M].
        positive: logits of the positives [M].
        unit: whether logits are cosines times the scale. Others may be +inf, and then the loss is
            NaN as in F.cross_entropy: +inf against -inf would pass for certainty here.
    """
    gap = lse - positive
    if not unit:
        gap = torch.add(gap, torch.maximum(lse, positive).detach(), alpha=0)  # 0 * inf is NaN
    # Beyond 40, log1p(exp(-x)) is below the resolution of float64: softplus(x) is x.
    return F.softplus(gap, threshold=40.0)
