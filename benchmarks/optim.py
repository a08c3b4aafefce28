"""Optimiser steps with an EMA teacher: one pass of sslfast's against torch's and an update.

    python -m benchmarks.optim               the table, and JSON with --out

Bytes are those that step and teacher must move in one pass: 36 a float32 parameter for AdamW, 28
without the teacher; the floor is torch's own copy of as many.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import sslfast
from benchmarks.ema import MOMENTUM, vit_shapes
from benchmarks.harness import floors, peers
from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import Record
from benchmarks.harness.timing import Run
from sslfast import EMATeacher
from sslfast.kernels import registry
from sslfast.kernels.adamw import Problem
from sslfast.models import resnet50
from sslfast.optim import LARS, AdamW

Make = Callable[..., torch.optim.Optimizer]


def network(shapes: list[tuple[int, ...]], gradients: list[Tensor]) -> nn.Module:
    """Parameters of these shapes, with gradients that all providers share."""
    net = nn.ParameterList(torch.randn_like(g) * 0.02 for g in gradients)
    for p, gradient in zip(net, gradients, strict=True):
        p.grad = gradient
    return net


def apart(make: Make, net: nn.Module, teacher: bool, **options: Any) -> Run:
    """A step of torch's optimiser, then the teacher by one foreach call."""
    optimizer = make(net.parameters(), **options)
    params = [p.detach() for p in net.parameters()]
    copies = [p.clone() for p in params] if teacher else []

    def run(turn: int) -> None:
        optimizer.step()
        if teacher:
            torch._foreach_lerp_(copies, params, 1 - MOMENTUM)

    return run


def step_of_ours(make: Make, net: nn.Module, teacher: bool, **options: Any) -> Run:
    """One pass of ours, by the backend in force."""
    ema = EMATeacher(net, MOMENTUM) if teacher else None
    optimizer = make(net.parameters(), ema=ema, **options)
    return lambda turn: optimizer.step()


def fused(make: Make, net: nn.Module, backend: str, teacher: bool, **options: Any) -> Run:
    """One pass of ours, by this backend."""
    step = step_of_ours(make, net, teacher, **options)

    def run(turn: int) -> None:
        with sslfast.use_backend(backend):
            step(turn)

    return run


def backends(device: torch.device) -> list[str]:
    """Ours that run here."""
    problem = Problem(device.type, frozenset([torch.float32]))
    found = [b.name for b in registry.candidates("adamw") if b.refusal(problem) is None]
    return [name for name in found if name != "reference"]


def adamw_runs(
    shapes: list[tuple[int, ...]], device: torch.device, teacher: bool
) -> dict[str, Run]:
    """AdamW with every provider on a network of its own."""
    gradients = [torch.randn(shape, device=device) for shape in shapes]
    with_teacher = " + foreach lerp" if teacher else ""
    table = {
        f"torch {how}{with_teacher}": apart(
            torch.optim.AdamW, network(shapes, gradients), teacher, **{how: True}
        )
        for how in ("fused", "foreach")
    }
    for name in backends(device):
        table[f"sslfast {name}"] = fused(AdamW, network(shapes, gradients), name, teacher)
    count = sum(g.numel() for g in gradients)
    table[floors.COPY] = floors.copy_of(count * (36 if teacher else 28), device)
    return table


def lars_runs(device: torch.device) -> dict[str, Run]:
    """LARS and the teacher of a ResNet-50."""
    shapes = [tuple(p.shape) for p in resnet50().parameters()]
    gradients = [torch.randn(shape, device=device) * 1e-3 for shape in shapes]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-6}
    table: dict[str, Run] = {
        "lightly + foreach lerp": peers.Lazy(
            lambda: apart(
                peers.load("lightly.utils.lars").LARS, network(shapes, gradients), True, **options
            )
        )
    }
    for name in backends(device):
        table[f"sslfast {name}"] = fused(LARS, network(shapes, gradients), name, True, **options)
    return table


def measure(record: Record) -> None:
    """Measure AdamW with a teacher and without, and LARS."""
    device, quick = record.device, record.quick
    width = 192 if quick else 768 if device.type == "cpu" else 1440
    shapes = vit_shapes(width)
    count = sum(torch.Size(shape).numel() for shape in shapes)
    seconds = 1.0 if quick else 10.0
    for teacher in (True, False):
        names = "AdamW + EMA" if teacher else "AdamW"
        record.measure(
            f"{names}, ViT, width {width}: {len(shapes)} tensors, {count / 1e6:.1f} M",
            partial(adamw_runs, shapes, device, teacher),
            seconds,
            moved=count * (36 if teacher else 28),
            without_memory=(floors.COPY,),
            floor=floors.COPY,
        )
    record.measure("LARS + EMA, ResNet-50", lambda: lars_runs(device), seconds)


def main() -> int:
    """Print the tables and write the results."""
    record = Record("optim", arguments(__doc__).parse_args())
    measure(record)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
