"""Where the time of a training step goes, and what share of the device's peak it makes use of."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sslfast import EMATeacher
from sslfast.data import Batch
from sslfast.methods.base import Context, Method

PHASES = ("forward", "loss", "backward", "optimiser", "EMA")


class Clock:
    """Marks between phases: events on a GPU, which cost the host nothing, else the time."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Mark that a phase ends now and the next begins."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Times between marks, which are forgotten."""
        marks, self._marks = self._marks, []
        if self._cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]
        return [b - a for a, b in itertools.pairwise(marks)]


def phases(
    method: Method,
    encode: Callable[[Batch, Context], Any],
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    amp: Callable[[], Any],
    device: torch.device,
    skipped: int,
    timed: int,
) -> dict[str, list[float]]:
    """Seconds of every phase in every timed step of a bare loop.

    "loss" is its forward and backward pass, down to the embeddings; "EMA" a teacher of the whole
    method, updated apart from the optimiser.
    """
    teacher, clock = EMATeacher(method), Clock(device)
    for step in range(skipped + timed):
        batch, there = batches[step % len(batches)], torch.full((), step, device=device)
        ctx = Context(step, 0, skipped + timed, device_step=there)
        if step == skipped:
            clock.seconds()
        clock.mark()
        with amp():
            outputs = encode(batch, ctx)
        clock.mark()
        leaves = tuple(_leaf(x) for x in outputs)
        with amp():
            loss = method.loss(leaves, ctx)["loss"]
        loss.backward()
        clock.mark()
        pairs = [(x, leaf.grad) for x, leaf in zip(outputs, leaves, strict=True) if x.requires_grad]
        torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])
        clock.mark()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.mark()
        teacher.update(method)
        clock.mark()
    times, count = clock.seconds(), len(PHASES) + 1  # the last of each: from one step to the next
    return {name: times[n::count] for n, name in enumerate(PHASES)}


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.requires_grad)


def flop_of_a_step(method: Method, batch: Batch) -> float:
    """FLOP of the encoder's forward and backward pass, counted on two samples by torch.

    Products and convolutions only; custom operators count nothing (the loss, and the patch
    embedding of visible patches: about 1 % of MAE's encoder).
    """
    two = Batch(tuple(view[:2] for view in batch.views), batch.sample_ids[:2])
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # which is made of products that are counted
        outputs = [x for x in method.encode(two, Context(0, 0, 1)) if x.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
    method.zero_grad(set_to_none=True)
    return counter.get_total_flops() * len(batch) / 2


def shares(found: dict[str, list[float]]) -> dict[str, float]:
    """Each phase's part of a step, by medians."""
    medians = {name: statistics.median(times) for name, times in found.items()}
    return {name: seconds / sum(medians.values()) for name, seconds in medians.items()}


def parameters(module: nn.Module) -> int:
    """How many it has."""
    return sum(p.numel() for p in module.parameters())
