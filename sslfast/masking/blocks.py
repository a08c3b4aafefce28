"""Rectangles of patches hidden until a number is reached: BEiT's mask, and iBOT's share of it."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from sslfast._arguments import NonNegativeInt, Part, PositiveInt, Probability, checked
from sslfast.kernels.patch_mask.op import smallest_keys
from sslfast.masking._common import (
    BLOCK,
    IMAGE_RATIO,
    PatchMask,
    Stream,
    as_patch_mask,
    below,
    check_grid,
    fixed_point,
    interval,
    source,
)

ROUNDS = 16  # blocks tried; after them a handful of patches is missing, if any
ASPECTS = 256  # aspect ratios, evenly spaced in the logarithm


@torch.compiler.assume_constant_result  # a compiled graph holds the table
def _thresholds(side: int, min_aspect: float, device: torch.device) -> Tensor:
    """Areas from which a block has 1, 2 ... side + 1 rows, and columns.

    int64 [ASPECTS, 2, side + 1]: sqrt(area * aspect) rounds to n or more from (n - 1/2)^2 / aspect.
    """
    return _table(side, min_aspect, device)


@lru_cache(maxsize=64)
def _table(side: int, min_aspect: float, device: torch.device) -> Tensor:
    span = -2 * math.log(min_aspect)
    aspects = [math.exp(math.log(min_aspect) + (j + 0.5) / ASPECTS * span) for j in range(ASPECTS)]
    ratios = torch.tensor([(a, 1 / a) for a in aspects], dtype=torch.float64)
    halves = torch.arange(side + 1, dtype=torch.float64) + 0.5
    return (halves.square() / ratios[..., None]).ceil().clamp(max=2**62).long().to(device)


def hide_blocks(
    words: Tensor, counts: Tensor, grid: tuple[int, int], min_patches: int, min_aspect: float
) -> Tensor:
    """Mask bool [B, L] with counts[b] hidden patches; words [B, 4 ROUNDS + L]."""
    thresholds = _thresholds(max(grid), min_aspect, words.device)
    draws, fill = words[:, : 4 * ROUNDS].unflatten(1, (ROUNDS, 4)), words[:, 4 * ROUNDS :]
    hidden = torch.zeros(len(words), *grid, dtype=torch.bool, device=words.device)
    for draw in draws.unbind(1):
        area_word, aspect_word, top_word, left_word = draw.unbind(1)
        missing = counts - hidden.sum((1, 2))
        low, high = missing.clamp(0, min_patches), missing.clamp_min(min_patches)
        area = low + below(area_word, high - low + 1)
        begun = area[:, None, None] >= thresholds[below(aspect_word, ASPECTS)]
        height, width = begun.sum(2).unbind(1)
        room = grid[0] - height, grid[1] - width
        top, left = (below(w, r + 1) for w, r in zip((top_word, left_word), room, strict=True))
        rows, columns = interval(top, height, grid[0]), interval(left, width, grid[1])
        new = rows[:, :, None] & columns[:, None] & ~hidden
        added = new.sum((1, 2))
        accepted = (room[0] >= 0) & (room[1] >= 0) & (added <= missing)
        hidden |= new & accepted[:, None, None]
    # What is missing grows out of the blocks: first patches beside a hidden one, then any.
    edge = torch.nn.functional.pad(hidden, (1, 1, 1, 1))
    beside = edge[:, 2:, 1:-1] | edge[:, :-2, 1:-1] | edge[:, 1:-1, 2:] | edge[:, 1:-1, :-2]
    order = torch.where(hidden, 0, 2 - beside.long()).flatten(1)
    return smallest_keys((order << 32) + torch.where(order > 0, fill, 0), counts)


def smallest_block(grid: tuple[int, int]) -> int:
    """The area of iBOT's smallest block: the square of a third of the grid's shorter side."""
    return max((min(grid) // 3) ** 2, 1)


def check_ratios(ratios: tuple[float, float]) -> None:
    """Raise ValueError unless they are a smallest and a largest share."""
    if not 0 <= ratios[0] <= ratios[1] <= 1:
        raise ValueError(f"ratios must be (smallest, largest) within [0, 1], got {ratios}")


def check_blocks(min_patches: int, min_aspect: float) -> None:
    """Raise ValueError for a block without patches, or of no shape."""
    if min_patches < 1:
        raise ValueError(f"min_patches must be at least 1, got {min_patches}")
    if not 0 < min_aspect <= 1:
        raise ValueError(f"min_aspect must lie in (0, 1], got {min_aspect}")


@checked
def block_mask(
    batch: NonNegativeInt,
    grid: tuple[PositiveInt, PositiveInt],
    num_masked: NonNegativeInt = 75,
    *,
    min_patches: PositiveInt = 16,
    min_aspect: Part = 0.3,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    stream: Stream = 0,
    device: torch.device | str | None = None,
) -> PatchMask:
    """Hide rectangular blocks, exactly ``num_masked`` patches in every sample (BEiT).

    Bao et al. 2022, arXiv:2106.08254, algorithm 1: blocks of area min_patches to what is missing
    and aspect ratio min_aspect to 1 / min_aspect (log-uniform), anywhere in the grid; one that
    would hide too many is dropped. Up to 16 are drawn; what is then missing is chosen at random
    among the patches beside hidden ones, so that the number is always the one asked for (the
    published code may fall short of it).

    Args:
        batch: B.
        grid: rows and columns of patches; L is their product.
        num_masked: hidden patches of each sample (BEiT: 75 of 14 x 14).
        min_patches: smallest area of a block, while that many are missing.
        min_aspect: smallest ratio of height to width.
        seed: see ``sslfast.masking``, as for all that follow.
        step: see ``sslfast.masking``.
        sample_ids: see ``sslfast.masking``.
        stream: see ``sslfast.masking``.
        device: see ``sslfast.masking``.

    Returns:
        PatchMask(ids_keep [B, L - num_masked], ids_restore [B, L], mask [B, L]).

    Raises:
        ValueError: a number that hides no patch or all, an empty grid, a bad aspect or area.
    """
    rows, columns = check_grid(grid)
    length = rows * columns
    check_blocks(min_patches, min_aspect)
    if not 0 < num_masked < length:
        raise ValueError(
            f"num_masked={num_masked} of {length} patches: choose a number that hides some and "
            "keeps some"
        )
    words = source(
        BLOCK, batch, seed=seed, step=step, sample_ids=sample_ids, stream=stream, device=device
    )
    counts = torch.full_like(words.sample_ids, num_masked)
    drawn = words.words(4 * ROUNDS + length)
    mask = hide_blocks(drawn, counts, (rows, columns), min_patches, min_aspect)
    return as_patch_mask(mask, length - num_masked)


def _image_counts(
    words: Tensor, length: int, probability: float, ratios: tuple[float, float]
) -> Tensor:
    """Hidden patches int64 [B] of each image, from two words [B, 2] of it."""
    whether, how_many = words.unbind(1)
    # Rounded up: a fifth of 5 patches is 1, not 0.99.
    low, high = (math.ceil(r * (1 << 30)) for r in ratios)
    ratio = low + below(how_many, high - low + 1)
    return torch.where(whether < fixed_point(probability, 32), (ratio * length) >> 30, 0)


@checked
def image_ratio_mask(
    batch: NonNegativeInt,
    grid: tuple[PositiveInt, PositiveInt],
    ratios: tuple[Probability, Probability] = (0.1, 0.5),
    *,
    probability: Probability = 0.5,
    blocks: bool = True,
    min_patches: PositiveInt | None = None,
    min_aspect: Part = 0.3,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    stream: Stream = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Hide another share of each image, and nothing of some (iBOT).

    Zhou et al. 2022, arXiv:2111.07832, section 4.1: with probability 0.5 an image is whole, else a
    ratio r uniform in 0.3 +- 0.2 is drawn for it, and int(r L) patches are hidden block-wise.

    Args:
        batch: B.
        grid: rows and columns of patches; L is their product.
        ratios: smallest and largest share of hidden patches.
        probability: that anything of an image is hidden.
        blocks: hide as ``block_mask`` does, or every patch independently.
        min_patches: smallest area of a block, while that many are missing; None: as published, the
            square of a third of the grid's shorter side, rounded down (16 of 14 x 14).
        min_aspect: smallest ratio of height to width of a block.
        seed: see ``sslfast.masking``, as for all that follow.
        step: see ``sslfast.masking``.
        sample_ids: see ``sslfast.masking``.
        stream: see ``sslfast.masking``.
        device: see ``sslfast.masking``.

    Returns:
        mask bool [B, L], true = hidden. Images differ in how many are hidden, so there is no
        ids_keep: such methods let the encoder see a mask token instead.

    Raises:
        ValueError: ratios or a probability outside [0, 1], an empty grid, a bad aspect or area.
    """
    rows, columns = check_grid(grid)
    length = rows * columns
    min_patches = smallest_block(grid) if min_patches is None else min_patches
    check_blocks(min_patches, min_aspect)
    check_ratios(ratios)
    words = source(
        IMAGE_RATIO, batch, seed=seed, step=step, sample_ids=sample_ids, stream=stream,
        device=device,
    )  # fmt: skip
    drawn = words.words(2 + 4 * ROUNDS + length)
    counts = _image_counts(drawn[:, :2], length, probability, ratios)
    if blocks:
        return hide_blocks(drawn[:, 2:], counts, (rows, columns), min_patches, min_aspect)
    return smallest_keys(drawn[:, 2 + 4 * ROUNDS :], counts)
