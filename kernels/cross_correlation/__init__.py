"""Cross-correlation of the features of two views, without the matrix: what redundancy losses need.

With m_j and v_j the mean and the biased variance of column j of X [N, D],

    xh_ij = (x_ij - m_j) f_j,   C = Xh' Yh / n,
    f = 1 / sqrt(v + eps) and n = N where the form standardizes (Barlow Twins),
    f = 1 and n = N - 1 where it only centers (covariances, VICReg),

backends return the diagonal c_jj [D] and the sum of squares off the diagonal
sum_{i != j} c_ij^2, 0-d. ``y=None`` is a view with itself, Y = X: c_jj are variances then.

Of the two ways to the sum of squares the one with fewer operations is taken (``through_grams``):

    N <= 3/4 D   |C|_F^2 = <Gx, Gy> / n^2 with Gx = Xh Xh' and Gy = Yh Yh' [N, N], both symmetric,
                 so that triangles are multiplied out; the diagonal's squares are subtracted
    otherwise    C itself [D, D], which is then smaller than 4/3 X; with itself, a triangle of it

The bound is below 1 for what is subtracted: where all c_jj are equal, |C|_F^2 is at least
D^2 c_jj^2 / (N - 1), of which a quarter is left, however well the features are decorrelated.
Variances of one view may differ, and then next to nothing is left: that is taken in float64
(``is_wide``), which costs its products twice the time.

``moments(x) -> [2, D]``
    The mean and the biased variance of every column.

``forward(x, y, scaling, form, kept) -> (diagonal [D], off_diagonal)``
    scaling [V, 2, D] holds m and f of the V views, one or two. ``kept`` is memory that the forward
    pass may leave for the backward pass whatever it likes in: [V, N, N] or [1, D, D].

``backward(d_diagonal, d_off_diagonal, x, y, scaling, form, diagonal, kept) -> (dx, dy)``
    With the gradients of both results. Of Xh it is, for two views,

        g = 2 d_off / n^2 Gy Xh + b Yh,   b_j = (d_diagonal_j - 2 d_off c_jj) / n,   or
        g = 2 d_off / n Yh C0' + b Yh,    b_j = d_diagonal_j / n,   C0 = C without its diagonal;

    that of Yh is the same with the roles exchanged, and of a view with itself the sum of both. The
    columns of g have mean 0 as those of Yh have, so dx = f (g - xh_j mean_i(g_ij xh_ij)) where the
    form standardizes, dx = g where not. dy is empty where y is None.

Everything but x, y, dx and dy, which may have any floating dtype, is in the accumulation dtype.
Non-finite in, non-finite out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype


@dataclass(frozen=True)
class Form:
    """What is correlated.

    Attributes:
        rows: N, of all ranks.
        standardize: divide columns by their standard deviation, and by N in the end; else only
            center them, and divide by N - 1.
        eps: added to the variance; only where the form standardizes.
    """

    rows: int
    standardize: bool
    eps: float

    @property
    def divisor(self) -> int:
        """What sums over rows are divided by: n."""
        return self.rows if self.standardize else self.rows - 1

    def scaling(self, *moments: Tensor) -> Tensor:
        """The mean and the factor of every column [V, 2, D], from ``moments`` of the views."""
        if self.standardize:
            return torch.stack([torch.stack((m, (v + self.eps).rsqrt())) for m, v in moments])
        return torch.stack([torch.stack((m, torch.ones_like(v))) for m, v in moments])


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype
    rows: int
    dim: int
    views: int


def problem(x: Tensor, y: Tensor | None) -> Problem:
    """Describe the inputs of an op for the registry."""
    return Problem(x.device.type, x.dtype, x.shape[0], x.shape[1], 1 if y is None else 2)


def through_grams(rows: int, dim: int) -> bool:
    """Whether N x N matrices stand for the D x D one; see above."""
    return 4 * rows <= 3 * dim


def is_wide(rows: int, dim: int, views: int, standardize: bool) -> bool:
    """Whether a difference is taken that wants float64; see above."""
    return views == 1 and not standardize and through_grams(rows, dim)


def new_kept(x: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Memory for ``kept``."""
    rows, dim = x.shape
    size = (1 if y is None else 2, rows, rows) if through_grams(rows, dim) else (1, dim, dim)
    return x.new_empty(size, dtype=dtype)


def computed_in(x: Tensor, y: Tensor | None, standardize: bool) -> torch.dtype:
    """The dtype of scaling and ``kept``: float64, or the accumulation dtype."""
    wide = is_wide(len(x), x.shape[1], 1 if y is None else 2, standardize)
    return torch.float64 if wide else accumulation_dtype(x.dtype)
