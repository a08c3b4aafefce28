"""C++ on the CPU (csrc/cpu/matryoshka_softmax.cpp): float32, AVX-512 or AVX2 where there."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels.extension import address, cpu_unavailable, loaded
from sslfast.kernels.matryoshka_softmax import Prefixes, Problem, kept_prefixes
from sslfast.kernels.similarity_softmax import Features, Pairing
from sslfast.kernels.similarity_softmax.cpu import describe, memory_of

DEVICE = "cpu"
PRIORITY = 30
FEATURES = Features(keeps_logits=True)
PANEL = 32  # every prefix ends at a multiple of it, after zeros where it is shorter

available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """Anything in up to float32."""
    if problem.dtype == torch.float64:
        return "computes in float32 and takes no float64"
    return None


class _Call:
    """The problem as the extension takes it, and the tensors that it points to."""

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor | None,
        scale: Tensor,
        prefixes: Prefixes,
        pairing: Pairing,
    ) -> None:
        self.rows = prefixes.padded(rows, PANEL).float()
        self.columns = None if columns is None else prefixes.padded(columns, PANEL).float()
        self.ends = torch.tensor(prefixes.padded_ends(PANEL))
        self.inverse = [t.double().contiguous() for t in (prefixes.rows, prefixes.columns)]
        self.kept = torch.tensor(kept_prefixes(prefixes.dims), dtype=torch.int64)
        at = [t.data_ptr() for t in self.inverse]
        self.arguments: tuple[Any, ...] = (
            *describe(self.rows, self.columns, scale, pairing),
            (self.ends.data_ptr(), len(self.ends), *at, self.kept.data_ptr()),
        )


def forward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    prefixes: Prefixes,
    pairing: Pairing,
    column_lse: bool = False,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps and positive logits; see the package."""
    call = _Call(rows, columns, scale, prefixes, pairing)
    lse = torch.empty_like(prefixes.rows, dtype=torch.float64)
    positive = torch.full_like(lse, -torch.inf)
    lse_columns = torch.empty_like(prefixes.columns) if column_lse else lse.new_empty(0)
    loaded().matryoshka_forward_cpu(
        *call.arguments,
        lse.data_ptr(),
        positive.data_ptr(),
        lse_columns.data_ptr() if column_lse else 0,
        *memory_of(kept),
    )
    return lse, positive, lse_columns


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    prefixes: Prefixes,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
    positive: Tensor,
    columns_gradient: bool = False,
    kept: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Unscaled gradients and inner products; see the package."""
    call = _Call(rows, columns, scale, prefixes, pairing)
    u, inner = torch.empty_like(call.rows), torch.zeros_like(prefixes.rows, dtype=torch.float32)
    v = column_inner = u.new_empty(0)
    if columns_gradient:
        assert call.columns is not None
        v = torch.empty_like(call.columns)
        column_inner = torch.zeros_like(prefixes.columns, dtype=torch.float32)
    sides = [side or (None, None) for side in (row, column)]
    # A list keeps contiguous copies alive until the call has returned.
    given = [None if t is None else t.double().contiguous() for side in sides for t in side]
    weights = positive.float().contiguous()
    loaded().matryoshka_backward_cpu(
        *call.arguments,
        *(address(t) for t in given),
        weights.data_ptr(),
        *memory_of(kept),
        u.data_ptr(),
        v.data_ptr() if columns_gradient else 0,
        inner.data_ptr(),
        column_inner.data_ptr() if columns_gradient else 0,
    )
    u, v = (prefixes.without_padding(g, PANEL) for g in (u, v))
    return (u, v, inner, column_inner) if columns_gradient else (u, v, inner)
