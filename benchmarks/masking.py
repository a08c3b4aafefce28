"""Masks, the visible patches, and the loss of masked models against their published formulations.

    python -m benchmarks.masking              the tables, and JSON with --out

Baselines, called eager: MAE's code (rand, two argsorts, repeated indices, gather), I-JEPA's
collator (a Python loop over samples), Conv2d over all patches and a gather, MAE's loss in torch.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from benchmarks.harness import floors
from benchmarks.harness.arguments import arguments
from benchmarks.harness.passes import Inputs, forward, gradients
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.timing import Replayed, Run
from sslfast.functional import gather_patches, masked_mse, patchify_visible
from sslfast.kernels import registry
from sslfast.masking import multiblock_mask, random_mask

LENGTH, KEEP, DIM, PATCH, SIDE = 196, 49, 768, 16, 14


def mae_masking(x: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """random_masking of MAE's models_mae.py."""
    batch, length, dim = x.shape
    noise = torch.rand(batch, length, device=x.device)
    ids_shuffle = torch.argsort(noise, dim=1)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    ids_keep = ids_shuffle[:, :keep]
    kept = torch.gather(x, 1, ids_keep.unsqueeze(-1).repeat(1, 1, dim))
    mask = torch.ones(batch, length, device=x.device)
    mask[:, :keep] = 0
    return kept, torch.gather(mask, 1, ids_restore), ids_restore


def ijepa_block(
    height: int, width: int, size: tuple[int, int], regions: list[Tensor] | None, min_keep: int
) -> tuple[Tensor, Tensor]:
    """_sample_block_mask of I-JEPA's multiblock.py: one block, and its complement."""
    h, w = size
    failures = 0
    while True:
        top, left = (torch.randint(0, n, (1,)) for n in (height - h, width - w))
        mask = torch.zeros((height, width), dtype=torch.int32)
        mask[top : top + h, left : left + w] = 1
        for region in (regions or [])[: max(len(regions or []) - failures // 20, 0)]:
            mask *= region
        ids = torch.nonzero(mask.flatten())
        if len(ids) > min_keep:
            break
        failures += 1
    complement = torch.ones((height, width), dtype=torch.int32)
    complement[top : top + h, left : left + w] = 0
    return ids.squeeze(1), complement


def ijepa_collator(batch: int, side: int, step: int) -> tuple[Tensor, Tensor]:
    """__call__ of I-JEPA's MaskCollator, ViT-H/14's settings: contexts and targets of a batch."""
    generator = torch.Generator().manual_seed(step)

    def size(scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        u = torch.rand(1, generator=generator).item()
        area = int(side * side * (scale[0] + u * (scale[1] - scale[0])))
        ratio = aspect[0] + u * (aspect[1] - aspect[0])
        sides = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return min(sides[0], side - 1), min(sides[1], side - 1)

    target_size, context_size = size((0.15, 0.2), (0.75, 1.5)), size((0.85, 1.0), (1.0, 1.0))
    contexts, targets = [], []
    for _ in range(batch):
        blocks = [ijepa_block(side, side, target_size, None, 10) for _ in range(4)]
        targets.append(torch.stack([ids for ids, _ in blocks]))
        regions = [complement for _, complement in blocks]
        contexts.append(ijepa_block(side, side, context_size, regions, 10)[0])
    shortest = min(len(ids) for ids in contexts)
    return torch.stack([ids[:shortest] for ids in contexts]), torch.stack(targets)


def names(op: str, device: torch.device) -> list[str]:
    """Backends of an op that run here, but the oracle."""
    found = (b for b in registry.candidates(op) if b.unavailable() is None)
    return [
        b.name for b in found if b.name != "reference" and b.module.DEVICE in ("any", device.type)
    ]


@dataclass(frozen=True)
class Work:
    """One problem.

    Attributes:
        op: whose backends are compared.
        eager: the baseline.
        ours: the same by the backend in force.
        inputs: of both, in turn.
        passes: forward, or forward and backward.
    """

    op: str
    eager: Callable[..., Any]
    ours: Callable[..., Any]
    inputs: Inputs
    passes: Callable[[Callable[..., Any], Inputs], Run] = forward


def mask_and_gather(device: torch.device, batch: int) -> Work:
    """MAE's first step: 75 % hidden, tokens of the rest."""
    ids = torch.arange(batch, device=device)  # a batch brings its own

    def eager(tokens: Tensor, step: int) -> object:
        return mae_masking(tokens, KEEP)

    def ours(tokens: Tensor, step: int) -> Tensor:
        kept = random_mask(batch, LENGTH, 0.75, seed=0, step=step, sample_ids=ids)
        return gather_patches(tokens, kept.ids_keep)

    inputs = [(torch.randn(batch, LENGTH, DIM, device=device), step) for step in range(2)]
    return Work("patch_mask", eager, ours, inputs)


def multiblock(device: torch.device, batch: int) -> Work:
    """I-JEPA's masks of a batch; sizes differ from step to step."""

    def eager(step: int) -> object:
        return ijepa_collator(batch, SIDE, step)

    def ours(step: int) -> object:
        return multiblock_mask(batch, (SIDE, SIDE), seed=0, step=step, device=device)

    return Work("patch_mask", eager, ours, [(step,) for step in range(1000)])


def embedding(device: torch.device, batch: int, backward: bool) -> Work:
    """Patch embedding of ViT-B/16 with positions, 49 of 196 patches visible."""
    # On a GPU as in training: cuDNN's float32 convolutions would be TF32, and ours not.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    at: dict[str, Any] = {"device": device, "dtype": dtype}
    weight = torch.randn(DIM, 3, PATCH, PATCH, **at, requires_grad=backward)
    bias = torch.randn(DIM, **at, requires_grad=backward)
    positions = torch.randn(LENGTH, DIM, **at)
    ids = random_mask(batch, LENGTH, 0.75, seed=0, device=device).ids_keep

    def eager(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        every = F.conv2d(images, weight, bias, stride=PATCH).flatten(2).transpose(1, 2)
        return (every + positions).gather(1, ids[..., None].expand(-1, -1, DIM))

    def ours(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return patchify_visible(images, ids, weight, bias, positions)

    shape = batch, 3, SIDE * PATCH, SIDE * PATCH
    inputs = [(torch.randn(shape, **at), weight, bias) for _ in range(2)]
    passes = gradients if backward else forward
    return Work("patchify_visible", eager, ours, inputs, passes)


def loss(device: torch.device, batch: int) -> Work:
    """MAE's loss with normalised targets."""
    shape = batch, LENGTH, 3 * PATCH * PATCH
    mask = random_mask(batch, LENGTH, 0.75, seed=0, device=device).mask

    def eager(x: Tensor, target: Tensor) -> Tensor:
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        rows = (x - (target - mean) / (var + 1e-6) ** 0.5).square().mean(-1)
        return (rows * mask).sum() / mask.sum()

    def ours(x: Tensor, target: Tensor) -> Tensor:
        return masked_mse(x, target, mask, norm_target=True)

    at: dict[str, Any] = {"device": device}
    inputs = [
        (torch.randn(shape, **at, requires_grad=True), torch.randn(shape, **at)) for _ in range(2)
    ]
    return Work("masked_mse", eager, ours, inputs, gradients)


def with_backends(work: Work, device: torch.device) -> dict[str, Run]:
    """The baseline, and the same work by every backend."""
    ours = work.passes(work.ours, work.inputs)

    def forced(name: str) -> Run:
        def run(turn: int) -> None:
            sslfast.use_backend(name)
            ours(turn)

        return run

    eager = work.passes(work.eager, work.inputs)
    return {"eager": eager, **{f"{OURS} {name}": forced(name) for name in names(work.op, device)}}


def launches(run: Run) -> int:
    """Kernels that one call starts on the GPU."""
    run(0)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(0)
        torch.cuda.synchronize()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in profile.events())


def with_graphs(runs: dict[str, Run], device: torch.device) -> dict[str, Run]:
    """On a GPU the same once more as CUDA graphs, without what the host does."""
    if device.type == "cpu":
        return runs
    return runs | {f"{name}, graph": Replayed(run) for name, run in runs.items()}


def measure(record: Record) -> None:
    """Measure masks, visible patches and the loss."""
    device = record.device
    big, small = (256, 64) if device.type == "cpu" else (4096, 256)
    moved = 4.0 * big * (2 * KEEP * DIM) + 8 * big * (LENGTH + KEEP) + big * LENGTH
    seconds = 2.0 if record.quick else 8.0

    def mask_and_gather_runs() -> dict[str, Run]:
        runs = with_graphs(with_backends(mask_and_gather(device, big), device), device)
        return runs | {floors.COPY: floors.copy_of(moved, device)}

    problem = f"random mask and gather, B = {big}"
    record.measure(problem, mask_and_gather_runs, seconds, moved=moved, floor=floors.COPY)
    if device.type == "cuda":
        runs = with_backends(mask_and_gather(device, big), device)
        for row in record.rows:
            if row.problem == problem and row.provider in runs and "launches" not in row.extra:
                with record.attempt(problem, f"launches of {row.provider}"):
                    row.extra["launches"] = launches(runs[row.provider])
        del runs
    others: dict[str, Callable[[], Work]] = {
        f"visible patches, forward, B = {small}": lambda: embedding(device, small, False),
        f"visible patches, forward and backward, B = {small}": lambda: embedding(
            device, small, True
        ),
        f"masked MSE, forward and backward, B = {small}": lambda: loss(device, small),
        "multi-block masks, B = 256": lambda: multiblock(device, 256),
    }
    for problem, make in others.items():
        record.measure(problem, lambda make=make: with_backends(make(), device), seconds)
    sslfast.use_backend("auto")


def main() -> int:
    """Print the tables and write the results."""
    record = Record("masking", arguments(__doc__).parse_args())
    measure(record)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
