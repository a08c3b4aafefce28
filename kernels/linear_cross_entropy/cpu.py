"""C++ on the CPU (csrc/cpu/linear_cross_entropy.cpp): float32, AVX-512 or AVX2 where there."""

import torch
from torch import Tensor

from sslfast.kernels.extension import address, cpu_unavailable, loaded
from sslfast.kernels.linear_cross_entropy import Problem, Wants

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """Anything in up to float32."""
    if problem.dtype == torch.float64:
        return "computes in float32 and takes no float64"
    return None


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps over the other classes, and the targets' logits; see the package."""
    none = Wants(hidden=False, weight=False, bias=False)
    return _run(hidden, weight, bias, targets, None, 0.0, none, softcap)[:2]


def gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor,
    smoothing: float,
    wants: Wants,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Statistics and gradients; see the package."""
    row_weight = row_weight.contiguous()
    return _run(hidden, weight, bias, targets, row_weight, smoothing, wants, softcap)


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor | None,
    smoothing: float,
    wants: Wants,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    hidden, weight = hidden.float(), weight.float()
    bias = None if bias is None else bias.float()
    n, dim = hidden.shape
    v = len(weight)
    given = targets.is_floating_point()
    lse, target_logit = hidden.new_empty(n), targets if given else hidden.new_empty(n)
    d_hidden = hidden.new_empty((n, dim) if wants.hidden else (0,))
    d_weight = hidden.new_empty((v, dim) if wants.weight else (0,))
    d_bias = hidden.new_empty(v if wants.bias else 0)
    if not n:  # no weights of rows, which ask the extension for gradients
        return lse, target_logit, d_hidden, d_weight.zero_(), d_bias.zero_()

    loaded().linear_cross_entropy_cpu(
        hidden.data_ptr(),
        n,
        weight.data_ptr(),
        v,
        dim,
        address(bias),
        address(None if given else targets),
        torch.get_num_threads(),
        lse.data_ptr(),
        target_logit.data_ptr(),
        address(row_weight),
        smoothing,
        softcap or 0.0,
        address(d_hidden if wants.hidden else None),
        address(d_weight if wants.weight else None),
        address(d_bias if wants.bias else None),
    )
    return lse, target_logit, d_hidden, d_weight, d_bias
