"""Several target blocks and a context without them: I-JEPA."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sslfast._arguments import NonNegativeInt, PositiveInt, checked
from sslfast.kernels.patch_mask.op import compact_mask, smallest_keys
from sslfast.kernels.philox.reference import random_bits, rounds
from sslfast.masking._common import (
    MULTIBLOCK,
    MULTIBLOCK_SIZE,
    STREAM_MASKS,
    STREAMS,
    Source,
    Stream,
    below,
    check_grid,
    interval,
    source,
)

TRIES = 3  # layouts drawn for a sample
PILOTS, SHORT = 1024, 0.02  # samples that fix the context's length, and the share that falls short
COMPAT_TRIES = 20  # of the published code, before it drops a constraint

Size = tuple[int, int]


class MultiBlockMask(NamedTuple):
    """Which patches are seen and which are to be predicted.

    Attributes:
        context: int64 [B, K], the patches that the context encoder sees, ascending.
        targets: int64 [B, T, N], the patches of each target block, ascending.
    """

    context: Tensor
    targets: Tensor


class Shape(NamedTuple):
    """Everything that is the same for all samples of a step."""

    grid: Size
    target: Size  # height and width of a target
    context: Size
    targets: int


def _block_size(grid: Size, scale: float, aspect: float, most: Size) -> Size:
    """Height and width of a block of this share of the grid and ratio of height to width."""
    area = int(grid[0] * grid[1] * scale)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(height, 1), most[0]), min(max(width, 1), most[1])


def _corners(words: Tensor, size: Size, grid: Size, compat: bool = False) -> tuple[Tensor, Tensor]:
    """Corners (top, left) [..., n] of n blocks of one size from words [..., 2 n]."""
    tops, lefts = words.unflatten(-1, (-1, 2)).unbind(-1)
    # The published code draws from [0, room): the last row and column are never chosen.
    places = (g - s + (0 if compat else 1) for g, s in zip(grid, size, strict=True))
    return below(tops, next(places)), below(lefts, next(places))


def _layouts(words: Tensor, shape: Shape, compat: bool = False) -> tuple[Tensor, Tensor]:
    """Corners (top, left) [..., T + 1] of the targets and, last, the context."""
    sides = (words[..., :-2], shape.target), (words[..., -2:], shape.context)
    (top, left), (last_top, last_left) = (_corners(w, s, shape.grid, compat) for w, s in sides)
    return torch.cat((top, last_top), -1), torch.cat((left, last_left), -1)


def _available(top: Tensor, left: Tensor, shape: Shape) -> Tensor:
    """1 at the patches of the context block that no target holds, else 0: [..., rows, columns]."""
    sides = []
    for corner, axis in ((top, 0), (left, 1)):
        target = interval(corner[..., :-1], shape.target[axis], shape.grid[axis])
        context = interval(corner[..., -1:], shape.context[axis], shape.grid[axis])
        sides.append(torch.cat((target.float() * (-1 if axis else 1), context.float()), -2))
    # Targets count -1 and the context 1: the sum is 1 inside it and outside all of them.
    return (sides[0].transpose(-1, -2) @ sides[1]).clamp_min_(0)


@lru_cache(maxsize=4096)
def _context_length(shape: Shape) -> int:
    """Patches of every context: what all but SHORT of the layouts of these sizes leave at least.

    From a fixed set of layouts, so that it depends on nothing but the sizes.
    """
    words = random_bits(torch.arange(PILOTS), torch.tensor(0), 0, 0, 2 * (shape.targets + 1))
    counts = _available(*_layouts(words, shape), shape).sum((1, 2))
    usual = int(counts.kthvalue(int(SHORT * PILOTS)).values)
    (h, w), (height, width) = shape.target, shape.context
    # One target's worth less than the context block is left by the last resort.
    certain = height * width - h * w
    if certain < 1:
        raise ValueError(
            f"targets of {h} x {w} can cover the whole context of {height} x {width} patches: "
            "use smaller targets, a larger context or a larger grid"
        )
    return max(min(usual, certain), 1)


@checked
def multiblock_mask(
    batch: NonNegativeInt,
    grid: tuple[PositiveInt, PositiveInt],
    *,
    targets: PositiveInt = 4,
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
    compat: bool = False,
    min_keep: NonNegativeInt = 10,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    stream: Stream = 0,
    device: torch.device | str | None = None,
) -> MultiBlockMask:
    """Choose target blocks, and a context block without them (I-JEPA).

    Assran et al. 2023, arXiv:2301.08243, section 3 and appendix A.1. One size for all targets and
    one for the context is drawn from (seed, step), the places of the blocks from the sample.
    Targets may overlap. Scale and aspect are two independent uniform draws, and every place where a
    block fits is equally likely.

    The context's length K follows from the sizes alone, not from the batch: it is what 98 % of all
    layouts leave at least. A sample whose layout leaves less draws again, up to three times (after
    that its targets lie on top of each other: less than one sample in 100,000). Of what a layout
    leaves, K patches are taken at random.

    ``compat=True`` does what the published collator does: one number drives scale and aspect, no
    block touches the last row and column, places are drawn again until the context has more than
    ``min_keep`` patches, and all contexts are cut to the batch's shortest, from its first patch on:
    K then depends on how the batch is split, hides the lower rows more often, and is read back from
    the device.

    Args:
        batch: B.
        grid: rows and columns of patches.
        targets: T, target blocks a sample.
        target_scale: smallest and largest share of the grid that a target covers.
        target_aspect: smallest and largest ratio of its height to its width.
        context_scale: smallest and largest share of the grid that the context block covers, before
            the targets are taken out; it is square where the grid allows.
        compat: as the published code.
        min_keep: with ``compat``, the context has more patches than that.
        seed: see ``sslfast.masking``, as for all that follow.
        step: an int, or a tensor on the CPU: shapes depend on it.
        sample_ids: see ``sslfast.masking``.
        stream: see ``sslfast.masking``.
        device: see ``sslfast.masking``.

    Returns:
        MultiBlockMask(context [B, K], targets [B, T, N]) with N the area of a target.

    Raises:
        ValueError: an empty grid, no targets, ranges that are none, a step on another device than
            the CPU, or sizes that can leave no context.
    """
    rows, columns = check_grid(grid)
    if targets < 1:
        raise ValueError(f"targets must be at least 1, got {targets}")
    for name, (low, high), top in (
        ("target_scale", target_scale, 1.0),
        ("target_aspect", target_aspect, math.inf),
        ("context_scale", context_scale, 1.0),
    ):
        if not 0 < low <= high <= top:
            raise ValueError(f"{name} must be (smallest, largest), got {(low, high)}")
    if isinstance(step, Tensor) and step.device.type != "cpu":
        raise ValueError("the shapes of a multi-block mask depend on step: give it as an int")
    words = source(
        MULTIBLOCK, batch, seed=seed, step=step, sample_ids=sample_ids, stream=stream,
        device=device,
    )  # fmt: skip
    number = STREAM_MASKS + MULTIBLOCK_SIZE * STREAMS + stream
    bits = rounds(0, 0, int(step) % 2**32, number, words.seed)
    u_scale, u_aspect, u_context = (word * 2.0**-32 for word in bits[:3])

    def between(bounds: tuple[float, float], u: float) -> float:
        return bounds[0] + u * (bounds[1] - bounds[0])

    most = (max(rows - 1, 1), max(columns - 1, 1)) if compat else (rows, columns)
    aspect = between(target_aspect, u_scale if compat else u_aspect)
    target = _block_size((rows, columns), between(target_scale, u_scale), aspect, most)
    context = _block_size((rows, columns), between(context_scale, u_context), 1.0, most)
    shape = Shape((rows, columns), target, context, targets)
    return _compat(words, shape, min_keep) if compat else _draw(words, shape)


def _target_ids(top: Tensor, left: Tensor, shape: Shape) -> Tensor:
    """Patches int64 [B, T, N] of target blocks with corners [B, T]."""
    (height, width), columns = shape.target, shape.grid[1]
    row, column = (torch.arange(n, device=top.device) for n in (height, width))
    inside = (row[:, None] * columns + column).flatten()
    return (top * columns + left)[..., None] + inside


def _draw(words: Source, shape: Shape) -> MultiBlockMask:
    length = _context_length(shape)
    blocks, patches = shape.targets + 1, shape.grid[0] * shape.grid[1]
    drawn = words.words(2 * TRIES * blocks + patches)
    tries = drawn[:, : 2 * TRIES * blocks].unflatten(1, (TRIES, 2 * blocks))
    top, left = _layouts(tries, shape)
    # The last resort: all targets of the first try where its first one is.
    top, left = (
        torch.cat((t, torch.cat((t[:, :1, :1].expand(-1, -1, shape.targets), t[:, :1, -1:]), 2)), 1)
        for t in (top, left)
    )
    available = _available(top, left, shape).flatten(2)
    enough = available.sum(2) >= length
    sample = torch.arange(len(top), device=top.device)
    chosen = enough.long().argmax(1)  # the first of equal ones
    top, left, available = (t[sample, chosen] for t in (top, left, available))
    keys = drawn[:, 2 * TRIES * blocks :]
    keys = torch.where(available > 0, keys, keys + (1 << 32))
    seen = smallest_keys(keys, torch.full_like(words.sample_ids, length))
    context, _ = compact_mask(~seen, length)
    return MultiBlockMask(context, _target_ids(top[:, :-1], left[:, :-1], shape))


def _compat(words: Source, shape: Shape, min_keep: int) -> MultiBlockMask:
    height, width = shape.context
    if height * width <= min_keep:
        raise ValueError(
            f"a context of {height} x {width} patches never has more than min_keep={min_keep}"
        )
    tries = COMPAT_TRIES * (shape.targets + 1)
    drawn = words.words(2 * (shape.targets + tries))
    corner_words, tries_words = drawn.split((2 * shape.targets, 2 * tries), 1)
    available = torch.zeros(len(drawn), *shape.grid, device=drawn.device)
    found = torch.zeros(len(drawn), dtype=torch.bool, device=drawn.device)
    for attempt in range(tries):
        if bool(found.all()):
            break
        # After every twenty failures one target fewer is kept out, the last first.
        kept_out = shape._replace(targets=shape.targets - attempt // COMPAT_TRIES)
        corner = torch.cat(
            (
                corner_words[:, : 2 * kept_out.targets],
                tries_words[:, 2 * attempt : 2 * attempt + 2],
            ),
            1,
        )
        left_over = _available(*_layouts(corner, kept_out, compat=True), kept_out)
        fits = ~found & (left_over.sum((1, 2)) > min_keep)
        available = torch.where(fits[:, None, None], left_over, available)
        found = found | fits
    shortest = int(available.sum((1, 2)).min()) if len(drawn) else 0
    context, _ = compact_mask(available.flatten(1) == 0, shortest)
    top, left = _corners(corner_words, shape.target, shape.grid, compat=True)
    return MultiBlockMask(context, _target_ids(top, left, shape))
