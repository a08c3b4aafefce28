"""Small, ragged problems through every CUDA C++ kernel, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python -m benchmarks.sanitize

``python -m benchmarks.gpu --sanitize`` builds the kernels with their own checks and runs this under
memcheck and racecheck.
"""

import itertools

import torch

from sslfast.kernels.philox import cuda as philox
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.similarity_softmax import cuda as similarity_softmax

SHAPES = ((130, 0, 123), (70, 300, 64), (33, 2000, 128), (40, 40, 300))  # (M, N or symmetric, D)


def similarity_softmax_everywhere(dtype: torch.dtype, m: int, n: int, dim: int) -> None:
    """Forward and backward with statistics of either side or both."""
    x = torch.randn(m, dim, device="cuda").to(dtype)
    y = torch.randn(n, dim, device="cuda").to(dtype) if n else None
    pairing = Pairing(m, 3, 0, 0) if n else Pairing(m, m // 2, leave_out_self=True)
    scale = torch.tensor(0.1, device="cuda")
    lse, _, lse_columns = similarity_softmax.forward(x, y, scale, pairing, True)
    row, column = (lse, torch.ones_like(lse)), (lse_columns, torch.ones_like(lse_columns))
    for sides in ((row, column), (row, None), (None, column)):
        similarity_softmax.backward(x, y, scale, pairing, *sides)


def main() -> None:
    """Run everything once."""
    ids = torch.arange(37, device="cuda")
    philox.random_bits(ids, torch.tensor(5, device="cuda"), 1, 2, 197)
    for precision in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = precision
        for dtype, shape in itertools.product(
            (torch.float32, torch.float16, torch.bfloat16), SHAPES
        ):
            similarity_softmax_everywhere(dtype, *shape)
    torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
