"""What an EMA teacher adds to a step: in the optimiser's pass, and in a pass of its own.

    python -m benchmarks.teacher               the table, and JSON with --out

A method with a teacher computes gradients once. Then AdamW moves the weights, and the teacher
follows: in the same pass, as the trainer does it; by ``EMATeacher.update`` afterwards; or by
torch's own fused AdamW and one foreach call. Each is given in milliseconds and as a share of the
whole step. Expected: AdamW alone moves 28 bytes a float32 parameter, the fused pass 36 and two
passes 40, so that the teacher costs 8 / 28 more than nothing and not 12 / 28.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.timing import Run
from benchmarks.train_step import Memory, Preset
from sslfast import EMATeacher
from sslfast.ema.pairs import named_tensors
from sslfast.methods.base import Context, Method
from sslfast.optim import AdamW
from sslfast.training.loop import to_device
from sslfast.training.trainer import build_method

STEP = "views to gradients"
ONE_PASS = f"{OURS}: AdamW with the teacher"


@dataclass(frozen=True)
class Case:
    """One method and its batch."""

    preset: Preset

    def runs(self, device: torch.device) -> dict[str, Run]:
        """The providers: every way on a copy of the weights of its own."""
        batch = to_device(Memory(self.preset, device, batches=1).batches[0], device)
        ctx = Context(0, 0, 100)

        def gradients(method: Method) -> None:
            method.zero_grad()
            method(batch, ctx)["loss"].backward()

        found: dict[str, Run] = {}
        for name, way in WAYS.items():
            method = build_method(self.preset.config("", 1), device).train()
            gradients(method)
            update = way(method, *method.teachers())
            found[name] = lambda turn, update=update: update()
        found[STEP] = lambda turn: gradients(method)
        return found


def one_pass(method: Method, teacher: EMATeacher) -> Callable[[], Any]:
    """The trainer's."""
    return AdamW(method.param_groups(), 1e-4, ema=teacher).step


def two_passes(method: Method, teacher: EMATeacher) -> Callable[[], Any]:
    """Our AdamW, then our update of the teacher."""
    optimizer = AdamW(method.param_groups(), 1e-4)

    def update() -> None:
        optimizer.step()
        teacher.update(teacher.student)

    return update


def without(method: Method, teacher: EMATeacher) -> Callable[[], Any]:
    """Our AdamW, and a teacher that stays."""
    return AdamW(method.param_groups(), 1e-4).step


def of_torch(method: Method, teacher: EMATeacher) -> Callable[[], Any]:
    """Torch's fused AdamW, then one foreach call over parameters and statistics."""
    optimizer = torch.optim.AdamW(method.param_groups(), 1e-4, fused=True)
    theirs = named_tensors(teacher.student)
    pairs: list[tuple[Tensor, Tensor]] = [
        (own, theirs[name].detach())
        for name, own in named_tensors(teacher.module).items()
        if own.is_floating_point()
    ]
    ours, students = ([pair[i] for pair in pairs] for i in (0, 1))

    def update() -> None:
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ours, students, 1 - 0.996)

    return update


WAYS = {
    ONE_PASS: one_pass,
    f"{OURS}: AdamW, then the teacher": two_passes,
    f"{OURS}: AdamW alone": without,
    "torch fused AdamW + foreach lerp": of_torch,
}
CASES = {
    "resnet18": Preset("byol", "resnet18", 64, 32, 2),
    "resnet50": Preset("byol", "resnet50", 256, 224, 2),
    "tiny": Preset("byol", "convnet_small", 8, 32, 2),
}


def measure(record: Record, name: str) -> None:
    """One case: all ways interleaved with the rest of the step, and their shares of it."""
    preset = CASES[name]
    problem = f"{preset}, {record.device}"
    rows = record.measure(
        problem,
        lambda: Case(preset).runs(record.device),
        1.0 if record.quick else 60.0,
        without_memory=(STEP, *WAYS),
        baseline=ONE_PASS,
    )
    times = {row.provider: row.seconds for row in rows}
    for row in rows:
        if row.provider != STEP and STEP in times:
            row.extra["share"] = row.seconds / (row.seconds + times[STEP])
            print(
                f"{row.provider:36}{row.seconds * 1e3:9.2f} ms{row.extra['share']:8.1%} of a step"
            )
    record.save()


def main() -> int:
    """Print the tables and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--case", nargs="+", choices=list(CASES))
    options = parser.parse_args()
    record = Record("teacher", options)
    usual = "tiny" if record.quick else "resnet50" if record.device.type == "cuda" else "resnet18"
    for name in options.case or [usual]:
        measure(record, name)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
