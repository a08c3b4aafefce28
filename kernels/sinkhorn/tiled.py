"""Torch only, any device: a block of rows meets all prototypes. Extra memory: its scores, twice.

Where all rows are one block its scores are kept from iteration to iteration.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype

DEVICE = "any"
PRIORITY = 10

BLOCK_ELEMENTS = 1 << 23


def log_scaling(
    rows: Tensor, weight: Tensor, scale: Tensor, iterations: int, merged: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sinkhorn's log v; see the package."""
    dtype = accumulation_dtype(rows.dtype)
    rows, columns = rows.to(dtype) * scale, weight.to(dtype).T
    shift, most = rows.new_zeros(len(weight)), max(BLOCK_ELEMENTS // len(weight), 1)
    kept = rows @ columns if len(rows) <= most else None
    buffer = rows.new_empty(min(most, len(rows)), len(weight))

    def shifted(by: Tensor) -> Iterator[Tensor]:
        """Scores, shifted, of some rows at a time, which may be overwritten."""
        if kept is not None:
            yield torch.add(kept, by, out=buffer)
            return
        for block in rows.split(most):
            yield torch.addmm(by, block, columns, out=buffer[: len(block)])

    lse = torch.full_like(shift, -torch.inf)
    for scores in shifted(shift) if len(rows) else ():
        greatest = scores.amax(0)
        lse = torch.logaddexp(lse, scores.sub_(greatest).exp_().sum(0).log_().add_(greatest))
    shift = before = -merged(lse)
    for step in range(1, iterations):
        # Since the columns' sums were equal, the largest softmax of a prototype is 1 / NK at least:
        # sums of softmaxes do not become 0.
        total = torch.zeros_like(shift)
        if kept is not None and step % 2 == 0:  # the buffer's exponentials are near enough
            factor = (shift - before).exp_()
            total = ((buffer @ factor).reciprocal_() @ buffer).mul_(factor)
        else:
            before = shift
            for scores in shifted(shift) if len(rows) else ():
                scores.sub_(scores.amax(1, keepdim=True)).exp_()
                total += scores.sum(1).reciprocal_() @ scores
        shift = shift - merged(total.log_())
    return shift
