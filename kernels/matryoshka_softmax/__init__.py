"""Similarity softmaxes of all prefixes of the features, in one sweep over the tiles of X Y^T.

With prefixes of d_1 < ... < d_K = D features, a_pi = 1 / ||x_i[:d_p]|| and b_pj = 1 / ||y_j[:d_p]||
(or 1 for both), cosines c_pij = a_pi b_pj <x_i[:d_p], y_j[:d_p]> and logits t_pij = s c_pij, every
backend has two functions. The pairing is that of kernels/similarity_softmax.

``forward(rows, columns, scale, prefixes, pairing, column_lse)
    -> (lse [K, M], positive [K, M], lse_columns [K, N])``
    Of every prefix what similarity_softmax returns: log-sum-exps over the negatives, logits of the
    positives, and the log-sum-exps of the columns, or an empty tensor.

``backward(rows, columns, scale, prefixes, pairing, row, column, positive, columns_gradient)
    -> (U [M, D], V [N, D], inner [K, M])``
    With G_pij = g_pi exp(t_pij - lse_pi) + h_pj exp(t_pij - lse_columns_pj) over the negatives, and
    positive_pi at the positive of row i: U_i = sum_p sum_j G_pij a_pi b_pj y_j, of which a prefix
    reaches its own features only, V likewise (empty where not asked for), and
    inner_pi = sum_j G_pij c_pij; with columns_gradient a fourth result, that of the columns [K, N].
    ``row`` is (lse, g), ``column`` is (lse_columns, h), each [K, ...]; either may be None.

The inner products of a prefix are partial sums of the longest one's, and a feature's gradient is a
sum over prefixes: the products are those of the longest prefix alone, the exponentials K times.
Backends whose FEATURES say that they keep logits take the memory as a last argument.

``columns=None`` is the symmetric form, in which row is column and positives are mutual. rows and
columns are contiguous, of one floating dtype; norms, log-sum-exps, positives and their gradients
have the statistics dtype, all else the accumulation dtype.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.kernels.dtypes import statistics_dtype
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.unit_rows import EPS


def stretches(ends: tuple[int, ...]) -> list[slice]:
    """What each prefix that ends there has beyond the one before."""
    return [slice(a, b) for a, b in zip((0, *ends[:-1]), ends, strict=True)]


@dataclass(frozen=True)
class Prefixes:
    """Lengths of the prefixes and 1 / norms of their rows.

    Attributes:
        dims: d_p, growing; the last is D.
        rows: a_p [K, M]; 0 for a prefix no longer than EPS, which has no direction.
        columns: b_p [K, N]; in the symmetric form the same tensor as rows.
    """

    dims: tuple[int, ...]
    rows: Tensor
    columns: Tensor

    @property
    def features(self) -> list[slice]:
        """What each prefix has beyond the one before."""
        return stretches(self.dims)

    def padded_ends(self, multiple: int) -> tuple[int, ...]:
        """Where the prefixes end in ``padded`` rows."""
        sizes = (f.stop - f.start for f in self.features)
        return tuple(accumulate(size + -size % multiple for size in sizes))

    def padded(self, x: Tensor, multiple: int) -> Tensor:
        """Rows [M, D] in which all prefixes end at multiples, after zeros where they must."""
        if self.padded_ends(multiple) == self.dims:
            return x
        parts = [F.pad(x[:, f], (0, (f.start - f.stop) % multiple)) for f in self.features]
        return torch.cat(parts, 1)

    def without_padding(self, x: Tensor, multiple: int) -> Tensor:
        """The inverse of ``padded``; an empty tensor [0] as it is."""
        ends = self.padded_ends(multiple)
        if ends == self.dims or x.dim() == 1:
            return x
        parts = zip(stretches(ends), self.features, strict=True)
        return torch.cat([x[:, wide][:, : f.stop - f.start] for wide, f in parts], 1)


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype
    rows: int
    columns: int
    dims: tuple[int, ...]
    symmetric: bool
    pairing: Pairing


def problem(
    rows: Tensor, columns: Tensor | None, dims: tuple[int, ...], pairing: Pairing
) -> Problem:
    """Describe the inputs of an op for the registry."""
    return Problem(
        device=rows.device.type,
        dtype=rows.dtype,
        rows=len(rows),
        columns=len(rows if columns is None else columns),
        dims=dims,
        symmetric=columns is None,
        pairing=pairing,
    )


def kept_prefixes(dims: tuple[int, ...]) -> list[bool]:
    """Of which prefixes a forward pass keeps the inner products, where it keeps any.

    Of those with a fourth of all features beyond the one before: few, and most of the products.
    """
    return [4 * (f.stop - f.start) >= dims[-1] for f in stretches(dims)]


def inverse_norms(x: Tensor, dims: tuple[int, ...], normalize: bool) -> Tensor:
    """1 / norms of the prefixes [K, M] of rows [M, D] in the statistics dtype, or ones."""
    dtype = statistics_dtype(x)
    if not normalize:
        return x.new_ones(len(dims), len(x), dtype=dtype)
    parts = [torch.linalg.vector_norm(x[:, f], dim=1, dtype=dtype) for f in stretches(dims)]
    norms = torch.stack(parts).square_().cumsum(0).sqrt_()
    return norms.reciprocal().masked_fill_(norms <= EPS, 0)
