"""C++ on the CPU (csrc/cpu/prototype_cross_entropy.cpp): float32, AVX-512 or AVX2 where there."""

import torch
from torch import Tensor

from sslfast.kernels.extension import address, cpu_unavailable, loaded
from sslfast.kernels.prototype_cross_entropy import Problem, Results, Side, Wants

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """Anything in up to float32."""
    if problem.dtype == torch.float64:
        return "computes in float32 and takes no float64"
    return None


def losses(
    student: Side, teacher: Side, pairs: Tensor, row_weight: Tensor | None, wants: Wants
) -> Results:
    """Losses, entropies, usage and gradients; see the package."""
    x, w, y, v = (t.float() for t in (student.rows, student.weight, teacher.rows, teacher.weight))
    views, samples, _ = x.shape
    loss, entropy = x.new_empty(views, samples), x.new_empty(len(y), samples)
    usage = x.new_empty(len(w))
    wants = wants if row_weight is not None else Wants(rows=False, weight=False)
    d_rows = torch.empty_like(x) if wants.rows else x.new_empty(0)
    d_weight = torch.empty_like(w) if wants.weight else x.new_empty(0)
    if not samples or not views or not len(y):  # nobody to learn, or to learn from
        for result in (loss, usage, d_rows, d_weight):
            result.zero_()
        return loss, entropy.zero_(), usage, d_rows, d_weight

    biases = [None if s.bias is None else s.bias.contiguous() for s in (student, teacher)]
    sides = [
        (r.data_ptr(), len(r), m.data_ptr(), m.shape[1], float(side.scale), address(bias))
        for side, r, m, bias in zip((student, teacher), (x, y), (w, v), biases, strict=True)
    ]
    pairs = pairs.contiguous()
    row_weight = None if row_weight is None else row_weight.contiguous()
    loaded().prototype_cross_entropy_cpu(
        *sides,
        samples,
        len(w),
        pairs.data_ptr(),
        torch.get_num_threads(),
        loss.data_ptr(),
        entropy.data_ptr(),
        usage.data_ptr(),
        address(row_weight),
        address(d_rows if wants.rows else None),
        address(d_weight if wants.weight else None),
    )
    return loss, entropy, usage, d_rows, d_weight
