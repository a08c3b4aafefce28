"""Peak memory of every loss, forward and backward, at M, 2 M and 4 M rows: linear, not quadratic.

    python -m benchmarks.loss_memory          the table, and JSON with --out

With peak(M) = a + b M + c M^2, (peak(4M) - peak(2M)) / (peak(2M) - peak(M)) is 2 where c = 0, and
tends to 4 where M^2 rules. A constant (a block of logits, say) weighs on neither.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.arguments import arguments
from benchmarks.harness.memory import peak_memory
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.rows import Row
from benchmarks.harness.timing import Run, time_once
from sslfast import losses

DIM = 128
MOST_GROWTH = 2.5
NOISE = {"cuda": 2 << 20, "cpu": 32 << 20}  # bytes of a difference that say nothing


def cases(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[int], Run]]:
    """Every loss of the package: a step at M rows."""
    scale = torch.tensor(10.0, device=device, requires_grad=True)
    bias = torch.tensor(-10.0, device=device, requires_grad=True)

    def embeddings(m: int) -> Tensor:
        x = F.normalize(torch.randn(m, DIM, device=device), dim=1)
        return x.to(dtype).requires_grad_()

    def pairs(loss: Callable[..., Any], *more: Any) -> Callable[[int], Run]:
        def make(m: int) -> Run:
            given = embeddings(m), embeddings(m)
            return lambda turn: loss(*given, *more).backward()

        return make

    def labeled(m: int) -> Run:
        x, labels = embeddings(m), torch.arange(m, device=device) % 100
        return lambda turn: losses.SupConLoss()(x, labels).backward()

    def classes(m: int) -> Run:
        # Rows grow, the vocabulary stays: the logits would be M x V.
        x, weight = embeddings(m), embeddings(8192 if device.type == "cuda" else 512)
        targets = torch.arange(m, device=device) % len(weight)
        return lambda turn: losses.LinearCrossEntropyLoss()(x, weight, targets).backward()

    many = 8192 if device.type == "cuda" else 512  # prototypes: scores would be M x this

    def crops(m: int) -> Run:
        loss, weight = losses.DINOLoss(many).to(device), embeddings(many)
        teacher, student = ([embeddings(m // 2) for _ in range(2)] for _ in "ts")
        return lambda turn: loss(teacher, student, weight=weight).backward()

    def patches(m: int) -> Run:
        loss, weight, student = (
            losses.IBOTPatchLoss(many).to(device),
            embeddings(many),
            embeddings(m),
        )
        teacher, each = embeddings(m).detach(), torch.full((m,), 1 / m, device=device)
        return lambda turn: loss.parts(teacher, student, each, 1, weight=weight).loss.backward()

    def codes(m: int) -> Run:
        views, weight = [embeddings(m // 2) for _ in range(2)], embeddings(many)
        return lambda turn: losses.SwaVLoss()(views, [], weight=weight).backward()

    def anchors(m: int) -> Run:
        given = embeddings(m), embeddings(m // 2).detach(), embeddings(64)
        return lambda turn: losses.MSNLoss()(*given).backward()

    def alone(loss: Callable[[Tensor], Tensor]) -> Callable[[int], Run]:
        def make(m: int) -> Run:
            x = embeddings(m)
            return lambda turn: loss(x).backward()

        return make

    def views(m: int) -> Run:
        loss, x = losses.LeJEPALoss().to(device), embeddings(m)
        return lambda turn: loss(global_proj=x.view(2, -1, DIM)).backward()

    prefixes = losses.MatryoshkaLoss(losses.NTXentLoss(0.1), [DIM // 2, DIM])
    return {
        "NTXentLoss": pairs(losses.NTXentLoss(0.1)),
        "InfoNCE": pairs(losses.InfoNCE(0.1)),
        "DCLLoss": pairs(losses.DCLLoss(0.1)),
        "DCLWLoss": pairs(losses.DCLWLoss(0.1)),
        "ClipLoss": pairs(losses.ClipLoss(), scale),
        "SigLipLoss": pairs(losses.SigLipLoss(), scale, bias),
        "MatryoshkaLoss": pairs(prefixes),
        "BarlowTwinsLoss": pairs(losses.BarlowTwinsLoss()),
        "VICRegLoss": pairs(losses.VICRegLoss()),
        "NegativeCosineSimilarity": pairs(losses.NegativeCosineSimilarity()),
        "SupConLoss": labeled,
        "LinearCrossEntropyLoss": classes,
        "DINOLoss": crops,
        "IBOTPatchLoss": patches,
        "SwaVLoss": codes,
        "MSNLoss": anchors,
        "KoLeoLoss": alone(losses.KoLeoLoss()),
        "SIGReg": alone(losses.SIGReg().to(device)),
        "LeJEPALoss": views,
    }


def growth(peaks: list[int], noise: int) -> float:
    """See the top: 2 for a line; differences within the noise count as one."""
    first, second = peaks[1] - peaks[0], peaks[2] - peaks[1]
    return 2.0 if second <= noise else second / max(first, noise / 2)


def measure(record: Record) -> None:
    """All losses; memory that grows faster than a line is a failure."""
    device = record.device
    cuda = device.type == "cuda"
    first = (16384 if record.quick else 32768) if cuda else 2048
    dtype = torch.bfloat16 if cuda else torch.float32
    for name, make in cases(device, dtype).items():
        if record.over(name):
            continue
        with record.attempt(name, OURS):
            rows, peaks = [], []
            for m in (first, 2 * first, 4 * first):
                run = make(m)
                peaks.append(peak_memory(run, device))
                seconds = time_once(run, 0, device)
                row = Row("loss_memory", name, f"M={m}", seconds, peak_bytes=peaks[-1])
                row.extra["all logits"] = m * m * dtype.itemsize
                rows.append(row)
            grown = growth(peaks, NOISE[device.type])
            rows[-1].extra["growth"] = grown
            record.add(rows)
            sizes = ", ".join(
                f"{row.provider} {peak / 2**20:.1f} MiB"
                for row, peak in zip(rows, peaks, strict=True)
            )
            print(f"{name:24}{sizes}; growth {grown:.2f}", flush=True)
            if grown > MOST_GROWTH:
                raise MemoryError(f"memory of {name} grows by {grown:.2f}, a line by 2")


def main() -> int:
    """Print and write."""
    record = Record("loss_memory", arguments(__doc__).parse_args())
    measure(record)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
