"""Cross-entropy between softmaxes over prototypes, forward + backward: DINO's, iBOT's, SwAV's loss.

    python -m benchmarks.prototypes              the table, and JSON with --out

From unit features and prototypes of student and teacher to the loss and the gradients of the
student's. Beside it the loss written in PyTorch, one product of softmaxes for all pairs; the loop
over pairs of DINO's published code; lightly's class, on scores. The floor is torch.mm alone for the
products: scores of both sides, and the two gradients.

Predicted before the first measurement, for 512 rows of the student (8 crops of 64 images), two of
the teacher's crops as targets, D = 256, K = 65,536 in float32 on two cores with 160 GFLOP/s and 15
GB/s; a matrix of the student's scores is 128 MiB:

    products  56 GFLOP: 0.35 s
    eager     and about 16 passes over a matrix of scores, 0.14 s, 100 M exponentials, 0.05 s: 0.55
              s; peak five matrices, 640 MiB
    sslfast   and the epilogue's exponentials, 170 M at 0.25 ns, 0.04 s: 0.39 s, 1.4 times as fast;
              peak the scores of a block of 160 rows, 40 MiB, and the gradient of the prototypes, 64
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from benchmarks.harness import peers
from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import OURS, Record
from benchmarks.losses import Case, measure
from sslfast import functional

STUDENT, TEACHER = 0.1, 0.04  # temperatures
SIZES = {  # views of the student and of the teacher, samples, D, K
    "dino": (8, 2, 64, 256, 65536),
    "ibot": (1, 1, 1024, 256, 8192),
    "swav": (8, 2, 64, 128, 3000),
}
GPU_SIZES = {
    "dino": (8, 2, 256, 256, 65536),
    "ibot": (1, 1, 8192, 256, 65536),
    "swav": (8, 2, 512, 128, 3000),
}


def eager(student: Tensor, weight: Tensor, teacher: Tensor, of_teacher: Tensor) -> Tensor:
    """All pairs in one product of softmaxes."""
    with torch.no_grad():
        q = (teacher @ of_teacher.T / TEACHER).softmax(-1)
    log_p = (student @ weight.T / STUDENT).log_softmax(-1)
    return -torch.einsum("tgk,sgk->ts", q, log_p).mean() / q.shape[1]


def loop(student: Tensor, weight: Tensor, teacher: Tensor, of_teacher: Tensor) -> Tensor:
    """One pair of views after the other."""
    with torch.no_grad():
        targets = (teacher @ of_teacher.T / TEACHER).softmax(-1)
    scores = student @ weight.T / STUDENT
    terms = [-(q * s.log_softmax(-1)).sum(-1).mean() for q in targets for s in scores]
    return torch.stack(terms).mean()


def ours(student: Tensor, weight: Tensor, teacher: Tensor, of_teacher: Tensor) -> Tensor:
    """From features, scores never in memory."""
    return functional.prototype_cross_entropy(
        student, teacher, weight, of_teacher,
        student_temperature=STUDENT, teacher_temperature=TEACHER,
    )  # fmt: skip


def _lightly(prototypes: int, device: torch.device) -> Callable[..., Tensor]:
    made = peers.load("lightly.loss.dino_loss").DINOLoss(prototypes).to(device)

    def loss(student: Tensor, weight: Tensor, teacher: Tensor, of_teacher: Tensor) -> Tensor:
        value: Tensor = made(list(teacher @ of_teacher.T), list(student @ weight.T))
        return value

    return loss


def prototype_case(
    views: int, targets: int, samples: int, d: int, k: int, device: torch.device, dtype: torch.dtype
) -> Case:
    """The problem of one size; where views are one each, nothing is lightly's."""

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, device=device), dim=-1).to(dtype)

    def inputs() -> Sequence[Tensor]:
        student, weight = unit(views, samples, d), unit(k, d)
        return (
            student.requires_grad_(),
            weight.requires_grad_(),
            unit(targets, samples, d),
            unit(k, d),
        )

    providers: dict[str, Callable[..., Tensor]] = {"eager": eager}
    if views > 1:
        providers["eager, a loop over pairs"] = loop
        providers["lightly"] = peers.Lazy(lambda: _lightly(k, device))
    providers[OURS] = ours
    n, m = views * samples, targets * samples
    products = [(1, m, d, k), (1, n, d, k), (1, n, k, d), (1, k, n, d)]
    name = f"N={n} x {targets} D={d} K={k}"
    return Case(name, inputs, providers, products, "eager")


def cases(device: torch.device, quick: bool) -> dict[str, Callable[[], Case]]:
    """The problems, each made when it is called."""
    cpu = device.type == "cpu"
    dtype = torch.float32 if cpu else torch.bfloat16
    found = {}
    for name, (views, targets, samples, d, k) in (SIZES if cpu else GPU_SIZES).items():
        size = (
            (views, targets, samples // 2, d, k // 8) if quick else (views, targets, samples, d, k)
        )
        found[name] = partial(prototype_case, *size, device, dtype)
    return found


def main() -> int:
    """Print the tables and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SIZES), default=list(SIZES))
    options = parser.parse_args()
    record = Record("prototypes", options)
    for name, make in cases(record.device, record.quick).items():
        if name in options.only:
            measure(record, make())
    sslfast.use_backend("auto")
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
