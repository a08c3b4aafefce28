"""NT-Xent forward + backward: sslfast's backends, eager PyTorch, lightly, and the matrix floor.

    python -m benchmarks.similarity_softmax              the table, and JSON with --out

The floor is the time that the device's own matrix product needs for 4 M^2 D FLOP (the triangular
forward and backward, the fewest known), on a CPU in tiles of 512 x 512.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from benchmarks.harness import floors, peers
from benchmarks.harness.arguments import arguments
from benchmarks.harness.passes import forward_backward
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.timing import Replayed, Run
from sslfast.functional import ntxent
from sslfast.kernels import registry
from sslfast.kernels.similarity_softmax import Pairing, Problem

MOST_EAGER = 65536  # rows whose M x M matrices fit
MOST_TILED = 32768  # rows for which torch's own operations in tiles take a reasonable time
MOST_GRAPH = 8192  # rows where launches weigh: also timed as a CUDA graph
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """One problem: M rows in all, their dimension, temperature and dtype."""

    m: int
    d: int = 128
    tau: float = 0.1
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"NT-Xent M={self.m} D={self.d} tau={self.tau} {dtype}"

    @property
    def flop(self) -> float:
        """4 M^2 D: a triangular forward and backward."""
        return 4.0 * self.m**2 * self.d


def eager(tau: float) -> Loss:
    """NT-Xent as most scripts write it: about 68 M^2 bytes of traffic in float32."""

    def loss(a: Tensor, b: Tensor) -> Tensor:
        z = F.normalize(torch.cat((a, b)), dim=1)
        logits = z @ z.T / tau
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        logits = logits.masked_fill(itself, -torch.inf)
        targets = torch.arange(len(z), device=z.device).roll(len(a))
        return F.cross_entropy(logits, targets)

    return loss


def losses(size: Size, device: torch.device) -> dict[str, Loss]:
    """Every provider that can run here."""
    found: dict[str, Loss] = {"eager": eager(size.tau)}
    found["lightly"] = peers.Lazy(
        lambda: peers.load("lightly.loss.ntx_ent_loss").NTXentLoss(size.tau)
    )
    half = size.m // 2
    pairing = Pairing(size.m, half, leave_out_self=True)
    problem = Problem(device.type, size.dtype, size.m, size.m, size.d, True, pairing)
    for backend in registry.candidates("similarity_softmax"):
        if backend.name != "reference" and backend.refusal(problem) is None:
            found[f"{OURS} {backend.name}"] = _forced(backend.name, size.tau)
    return found


def _forced(name: str, tau: float) -> Loss:
    def loss(a: Tensor, b: Tensor) -> Tensor:
        return ntxent(a, b, tau)

    def run(a: Tensor, b: Tensor) -> Tensor:
        sslfast.use_backend(name)
        return loss(a, b)

    return run


def matrix_floor(size: Size, device: torch.device) -> Run:
    """torch.mm for 4 M^2 D FLOP: whole strips on a GPU, tiles of at most 512 on a CPU."""
    z = torch.randn(size.m, size.d, dtype=size.dtype, device=device)
    tile = min(512, size.m) if device.type == "cpu" else min(8192, size.m)
    blocks = size.m // tile
    out = torch.empty(tile, tile, dtype=size.dtype, device=device)

    def run(turn: int) -> None:
        for i in range(blocks):
            for j in range(blocks):
                x, y = z[i * tile :][:tile], z[j * tile :][:tile]
                torch.mm(x, y.T, out=out)
                torch.mm(x, y.T, out=out)

    return run


def pairs(size: Size, device: torch.device, sets: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Sets of inputs: both views' embeddings [M / 2, D]."""
    shape = (size.m // 2, size.d)
    at: dict[str, Any] = {"dtype": size.dtype, "device": device, "requires_grad": True}
    return [(torch.randn(shape, **at), torch.randn(shape, **at)) for _ in range(sets)]


def _most(provider: str) -> float:
    """Rows up to which a provider is timed."""
    if provider == f"{OURS} tiled":
        return MOST_TILED
    return float("inf") if provider.startswith(OURS) else MOST_EAGER


def runs(size: Size, device: torch.device) -> dict[str, Run]:
    """Everything that is timed for one size."""
    table: dict[str, Run] = {
        name: forward_backward(loss, pairs(size, device))
        for name, loss in losses(size, device).items()
        if size.m <= _most(name)
    }
    if device.type == "cuda" and size.m <= MOST_GRAPH:
        ours = [name for name in table if name.startswith(OURS)]
        table |= {f"{name}, graph": Replayed(table[name]) for name in ours}
    table[floors.PRODUCTS] = matrix_floor(size, device)
    return table


def sizes(device: torch.device, quick: bool) -> list[Size]:
    """The sizes that the project's targets name."""
    if device.type == "cpu":
        return [Size(m) for m in ((1024, 2048) if quick else (1024, 4096, 8192, 16384))]
    shapes = ((32768, 128), (8192, 128), (131072, 128), (32768, 256))[: 2 if quick else 4]
    return [Size(m, d, 0.1, torch.bfloat16) for m, d in shapes]


def measure(record: Record) -> None:
    """All rows; eager providers are left out where their matrices would not fit in memory."""
    for size in sizes(record.device, record.quick):
        seconds = 3.0 if record.quick else 20.0 if size.m < 8192 else 45.0
        record.measure(
            str(size),
            partial(runs, size, record.device),
            seconds,
            flop=size.flop,
            without_memory=(floors.PRODUCTS,),
            baseline="eager",
            floor=floors.PRODUCTS,
        )
    sslfast.use_backend("auto")


def main() -> int:
    """Print the tables and write the results."""
    record = Record("similarity_softmax", arguments(__doc__).parse_args())
    measure(record)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
