"""SIGReg, forward + backward, beside its formula in eager torch, lightly's class and the products.

    python -m benchmarks.sigreg                  the table, and JSON with --out

The floor is torch.mm alone for the two products, features with directions and the gradient of the
projections with directions, 4 N M D operations; beside it every projection takes a cosine, a sine
and 10 K operations for the K nodes that are not 0, forward and backward.

For N = 1,024 rows, M = 1,024 directions, D = 256 and 17 nodes, counted:

    formula   18 M cosines and as many sines, twice with the backward pass, and a dozen passes over
              arrays of 71 MB, of which about five are in memory at once
    sslfast   1.1 GFLOP of products; a cosine and a sine for each of 1 M projections, twice; at its
              peak the projections and the gradient, 5 MB
"""

import sys

import torch
from torch import Tensor

import sslfast
from benchmarks.harness import peers
from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import OURS, Record
from benchmarks.losses import Case, measure
from sslfast import functional
from sslfast.losses.sigreg import random_directions

FORMULA = "formula"


def formula(z: Tensor, directions: Tensor) -> Tensor:
    """The definition in eager torch, as people write it."""
    t = torch.linspace(0, 3, 17, device=z.device)
    phi, weight = torch.exp(-t.square() / 2), torch.full_like(t, 2 * 3 / 16)
    weight[[0, -1]] /= 2
    angles = (z @ directions.T.to(z.dtype)).unsqueeze(-1) * t
    apart = (angles.cos().mean(-3) - phi).square() + angles.sin().mean(-3).square()
    return ((apart @ (weight * phi)) * z.shape[-2]).mean()


def lightly(z: Tensor, directions: Tensor) -> Tensor:
    """Lightly's class, which is given the directions."""
    criterion = peers.load("lightly.loss.lejepa_loss").SIGReg().to(z.device)
    criterion._generate_unit_vectors = lambda *_: directions.T.to(z.dtype)
    found: Tensor = criterion(z)
    return found


def case(n: int, m: int, d: int, at: Tensor) -> Case:
    """Features [1, N, D] with the device and dtype of ``at``, and M directions."""
    directions = random_directions(m, d, seed=0, step=0, device=at.device)

    def inputs() -> tuple[Tensor, ...]:
        z = torch.randn(1, n, d, device=at.device).to(at.dtype)
        return (z.requires_grad_(),)

    providers = {
        FORMULA: lambda z: formula(z, directions),
        "lightly": lambda z: lightly(z, directions),
        OURS: lambda z: functional.sigreg(z, directions),
    }
    products = [(1, n, d, m), (1, n, m, d)]
    return Case(f"SIGReg N={n} M={m} D={d}", inputs, providers, products, FORMULA)


def sizes(device: torch.device, quick: bool) -> list[tuple[int, int, int]]:
    """(N, M, D): a usual batch, and a larger one on GPUs."""
    if quick:
        return [(256, 128, 64)]
    return [(1024, 1024, 256)] if device.type == "cpu" else [(1024, 1024, 256), (8192, 1024, 512)]


def main() -> int:
    """Print the table and write the results."""
    options = arguments(__doc__).parse_args()
    record = Record("sigreg", options)
    like = torch.empty(0, device=record.device)
    for n, m, d in sizes(record.device, record.quick):
        measure(record, case(n, m, d, like))
    sslfast.use_backend("auto")
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
