"""C++ on the CPU (csrc/cpu/sigreg.cpp), in float32: one cosine and sine a projection."""

import torch
from torch import Tensor

from sslfast.kernels.extension import cpu_unavailable, loaded
from sslfast.kernels.sigreg import Form, Problem

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """Everything in float32."""
    if problem.dtype != torch.float32:
        return f"takes float32, not {str(problem.dtype).removeprefix('torch.')}"
    return None


def sums(p: Tensor, form: Form) -> Tensor:
    """Sums of cosines and sines; see the package."""
    views, _, directions = p.shape
    found = torch.empty(views, 2, form.count, directions, dtype=torch.float64)
    threads = torch.get_num_threads()
    loaded().sigreg_sums_cpu(
        p.data_ptr(), *p.shape, form.step, form.count, threads, found.data_ptr()
    )
    return found


def gradient_(p: Tensor, coefficients: Tensor, form: Form) -> None:
    """Gradient of the projections, in their place; see the package."""
    coefficients, threads = coefficients.contiguous(), torch.get_num_threads()
    loaded().sigreg_gradient_cpu(
        p.data_ptr(), *p.shape, form.step, form.count, threads, coefficients.data_ptr()
    )
