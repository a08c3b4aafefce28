"""EMA updates: sslfast's backends, foreach kernels, the loop of most scripts, and a plain copy.

    python -m benchmarks.ema                 the table, and JSON with --out

Networks are lists of tensors in the shapes of a real one. Bytes are those that an update must move;
the floor is torch's own copy of as many. On a GPU the many small tensors are also timed as a
replayed graph, without what the host does.
"""

import sys
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import sslfast
from benchmarks.harness import floors
from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import Record
from benchmarks.harness.timing import Replayed, Run
from sslfast import EMATeacher
from sslfast.functional import ema_update_
from sslfast.kernels import ema, registry
from sslfast.models import resnet50
from sslfast.optim import AdamW

STEP, FOLLOW = "forward, backward, optimiser", "teacher's update"
MOMENTUM = 0.996


def vit_shapes(width: int, depth: int = 12) -> list[tuple[int, ...]]:
    """A vision transformer's tensors; width 768 is ViT-B/16, 85.8 million parameters."""
    block: list[tuple[int, ...]] = [(width,)] * 6 + [(3 * width, width), (3 * width,)]
    block += [(width, width), (4 * width, width), (4 * width,), (width, 4 * width)]
    return [(width, 3, 16, 16), (1, 197, width), *block * depth, (width,), (width,)]


@dataclass(frozen=True)
class Size:
    """One problem: shapes, and the dtype of the student beside a float32 teacher."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32

    @property
    def elements(self) -> int:
        """Of all tensors."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    @property
    def bytes(self) -> int:
        """A student read, a teacher read and written."""
        return self.elements * (8 + self.dtype.itemsize)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}: {len(self.shapes)} tensors, {self.elements / 1e6:.1f} M, {dtype}"


def loop(teacher: list[Tensor], student: list[Tensor]) -> None:
    """As lightly's update_momentum and DINO's script write it: 20 bytes a float32 element."""
    for t, s in zip(teacher, student, strict=True):
        t.mul_(MOMENTUM).add_(s.to(t.dtype), alpha=1 - MOMENTUM)


def foreach(teacher: list[Tensor], student: list[Tensor]) -> None:
    """One foreach call, after a cast where dtypes differ."""
    torch._foreach_lerp_(teacher, [s.to(t.dtype) for t, s in zip(teacher, student, strict=True)],
                         1 - MOMENTUM)  # fmt: skip


def teachers_and_students(
    size: Size, device: torch.device
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Sets of both; large tensors are past the cache by themselves."""
    return [
        (
            [torch.randn(shape, device=device) for shape in size.shapes],
            [torch.randn(shape, device=device).to(size.dtype) for shape in size.shapes],
        )
        for _ in range(1 if size.elements > 3e7 else 4)
    ]


def runs(size: Size, device: torch.device) -> dict[str, Run]:
    """Every provider that can run here."""
    pairs = teachers_and_students(size, device)
    sets, problem = len(pairs), ema.problem(*pairs[0])

    def forced(name: str) -> Run:
        def run(turn: int) -> None:
            with sslfast.use_backend(name):
                ema_update_(*pairs[turn % sets], MOMENTUM)

        return run

    table: dict[str, Run] = {
        "eager loop": lambda turn: loop(*pairs[turn % sets]),
        "foreach": lambda turn: foreach(*pairs[turn % sets]),
    }
    for backend in registry.candidates("ema"):
        if backend.name != "reference" and backend.refusal(problem) is None:
            table[f"sslfast {backend.name}"] = forced(backend.name)
    if len(size.shapes) > 1000:
        table["EMATeacher"] = followed(pairs)
    if device.type == "cuda" and len(size.shapes) > 1000:
        table |= {f"{name}, graph": Replayed(table[name]) for name in list(table)[1:]}
    table[floors.COPY] = floors.copy_of(size.bytes, device)
    return table


def followed(pairs: list[tuple[list[Tensor], list[Tensor]]]) -> Run:
    """The students as networks, with a teacher each."""
    students = [nn.ParameterList(student) for _, student in pairs]
    teachers = [EMATeacher(student, MOMENTUM) for student in students]
    return lambda turn: teachers[turn % len(pairs)].update(students[turn % len(pairs)])


def teacher_runs(device: torch.device) -> dict[str, Run]:
    """A whole ResNet-50 with its buffers, through EMATeacher, and the same by foreach calls."""
    student = resnet50().to(device)
    teacher, other = EMATeacher(student, MOMENTUM), EMATeacher(student, MOMENTUM)

    @torch.no_grad()
    def by_hand(turn: int) -> None:
        for ours, theirs in (
            (other.module.parameters(), student.parameters()),
            (other.module.buffers(), student.buffers()),
        ):
            pairs = list(zip(ours, theirs, strict=True))
            floats = [(t, s) for t, s in pairs if t.is_floating_point()]
            foreach([t for t, _ in floats], [s for _, s in floats])
            for t, s in pairs:
                if not t.is_floating_point():
                    t.copy_(s)

    return {"foreach": by_hand, "EMATeacher": lambda turn: teacher.update(student)}


def step_runs(device: torch.device, batch: int) -> dict[str, Run]:
    """A training step of ResNet-50 at 224 pixels, and the teacher that follows it."""
    student = resnet50().to(device, memory_format=torch.channels_last)
    optimizer, teacher = AdamW(student.parameters()), EMATeacher(student, MOMENTUM)
    images = torch.randn(batch, 3, 224, 224, device=device)
    images = images.contiguous(memory_format=torch.channels_last)

    def step(turn: int) -> None:
        optimizer.zero_grad()
        student(images).square().mean().backward()
        optimizer.step()

    return {STEP: step, FOLLOW: lambda turn: teacher.update(student)}


def sizes(device: torch.device, quick: bool) -> list[Size]:
    """The sizes that the project's targets name."""
    width = 192 if quick else 768 if device.type == "cpu" else 1440
    network = tuple(vit_shapes(width))
    name = f"ViT, width {width}"
    return [
        Size(name, network),
        Size(name, network, torch.bfloat16),
        Size("small tensors", ((64,),) * (500 if quick else 5000)),
    ]


def measure(record: Record) -> None:
    """Measure updates of every size, and what a teacher adds to a training step."""
    device, seconds = record.device, 1.0 if record.quick else 8.0
    for size in sizes(device, record.quick):
        record.measure(
            str(size),
            partial(runs, size, device),
            seconds,
            moved=size.bytes,
            without_memory=(floors.COPY,),
            baseline="foreach",
            floor=floors.COPY,
        )
    if not record.quick:
        record.measure("ResNet-50 with buffers", lambda: teacher_runs(device), seconds)
        batch = 16 if device.type == "cpu" else 128
        problem = f"ResNet-50, {batch} images of 224 x 224 a step, AdamW, float32"
        rows = record.measure(problem, lambda: step_runs(device, batch), seconds)
        times = {row.provider: row.seconds for row in rows}
        if {STEP, FOLLOW} <= set(times):
            share = times[FOLLOW] / times[STEP]
            print(f"the teacher adds {share:.2%} to a step (target: under 1 %)")


def main() -> int:
    """Print the tables and write the results."""
    record = Record("ema", arguments(__doc__).parse_args())
    measure(record)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
