"""Barlow Twins and VICReg, forward + backward, beside lightly's classes and the matrix products.

    python -m benchmarks.redundancy              the table, and JSON with --out

The floor is torch.mm alone for the products of the fewest known operations, 6 N^2 D where N < D:
two Gram matrices by their triangles, N^2 D each, and a product of each with features, 2 N^2 D.

Predicted before the first measurement, for N = 1,024, D = 8,192 in float32 on two cores with 180
GFLOP/s and 15 GB/s; a matrix D x D is 256 MiB:

    Barlow Twins  lightly  6 N D^2 = 412 GFLOP, 2.3 s; about 15 passes over a matrix, 0.3 s; peak
                           five matrices, 1.3 GiB
                  sslfast  2 N^2 D 9/8 + 4 N^2 D = 54 GFLOP, 0.30 s; 8 passes over features of
                           32 MiB, 0.02 s; peak two gradients, two Gram matrices and three blocks,
                           85 MiB: 8 times as fast in 1/15 of the memory
    VICReg        lightly  12 N D^2 = 825 GFLOP, 4.6 s; it picks the elements off the diagonal by
                           their indices, 1 GiB of them, at 5 ns an element and pass, 2 s; peak
                           2.5 GiB
                  sslfast  the same 54 GFLOP, and the invariance's passes, 0.35 s; peak 100 MiB:
                           19 times as fast in 1/25 of the memory
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

import sslfast
from benchmarks.harness import peers
from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import OURS, Record
from benchmarks.losses import Case, measure
from sslfast import losses

Loss = Callable[..., Tensor]


def _case(name: str, ours: Loss, lightly: Callable[[], Loss], n: int, d: int, at: Tensor) -> Case:
    def inputs() -> tuple[Tensor, ...]:
        shared = torch.randn(n, d, device=at.device)
        views = (shared + 0.5 * torch.randn(n, d, device=at.device) for _ in "ab")
        return tuple(z.to(at.dtype).requires_grad_() for z in views)

    k, m = min(n, d), max(n, d)
    products = [(1, k, m, k), (2, k, k, m)] if n < d else [(3, d, n, d)]
    providers = {"lightly": peers.Lazy(lightly), OURS: ours}
    return Case(f"{name} N={n} D={d}", inputs, providers, products, "lightly")


def barlow_twins_case(n: int, d: int, at: Tensor) -> Case:
    """Barlow Twins, of features with the device and dtype of ``at``."""

    def lightly() -> Loss:
        return peers.load("lightly.loss.barlow_twins_loss").BarlowTwinsLoss()

    return _case("Barlow Twins", losses.BarlowTwinsLoss(), lightly, n, d, at)


def vicreg_case(n: int, d: int, at: Tensor) -> Case:
    """VICReg, of features with the device and dtype of ``at``."""

    def lightly() -> Loss:
        return peers.load("lightly.loss.vicreg_loss").VICRegLoss()

    return _case("VICReg", losses.VICRegLoss(), lightly, n, d, at)


CASES = {"barlow_twins": barlow_twins_case, "vicreg": vicreg_case}


def sizes(device: torch.device, quick: bool) -> list[tuple[int, int]]:
    """(N, D): the papers' projector with few rows and with many."""
    if quick:
        return [(256, 1024)]
    return [(1024, 8192), (256, 2048)] if device.type == "cpu" else [(2048, 8192), (16384, 8192)]


def main() -> int:
    """Print the tables and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    record = Record("redundancy", options)
    like = torch.empty(0, device=record.device)
    like = like if record.device.type == "cpu" else like.bfloat16()
    for n, d in sizes(record.device, record.quick):
        for name in options.only:
            measure(record, CASES[name](n, d, like))
    sslfast.use_backend("auto")
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
