"""C++ on the CPU (csrc/cpu/cross_correlation.cpp) around the products of torch's BLAS, float32.

The way through the blocks is that of tiled.py; every step between two products is one sweep.
"""

import torch
from torch import Tensor

from sslfast.kernels.cross_correlation import Form, Problem
from sslfast.kernels.cross_correlation.tiled import Walk
from sslfast.kernels.extension import address, cpu_unavailable, loaded

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """Everything in float32."""
    if problem.dtype != torch.float32:
        return f"takes float32, not {str(problem.dtype).removeprefix('torch.')}"
    return None


def _rows(x: Tensor) -> tuple[int, int]:
    return x.data_ptr(), x.stride(0)


class _Compiled(Walk):
    def moments(self, x: Tensor) -> Tensor:
        found = x.new_empty(2, x.shape[1])
        threads = torch.get_num_threads()
        loaded().column_moments_cpu(
            x.data_ptr(), *x.shape, threads, found[0].data_ptr(), found[1].data_ptr()
        )
        return found

    def standardize(self, x: Tensor, scaling: Tensor, out: Tensor) -> None:
        mean, factor = (numbers.data_ptr() for numbers in scaling)
        threads = torch.get_num_threads()
        loaded().standardize_columns_cpu(_rows(x), *x.shape, mean, factor, threads, _rows(out))

    def column_products(self, a: Tensor, b: Tensor) -> Tensor:
        out = a.new_empty(a.shape[1])
        threads = torch.get_num_threads()
        loaded().column_products_cpu(_rows(a), _rows(b), *a.shape, threads, out.data_ptr())
        return out

    def through(
        self,
        out: Tensor,
        product: Tensor,
        own: Tensor,
        other: Tensor,
        weights: tuple[Tensor, Tensor],
        along: Tensor | None,
        factor: Tensor,
        form: Form,
    ) -> None:
        alpha, beta = weights
        loaded().correlation_gradient_cpu(
            *map(_rows, (product, own, other)),
            *out.shape,
            alpha.item(),
            beta.data_ptr(),
            address(along if form.standardize else None),
            address(factor if form.standardize else None),
            torch.get_num_threads(),
            _rows(out),
        )


_walk = _Compiled()
moments, forward, backward = _walk.moments, _walk.forward, _walk.backward
