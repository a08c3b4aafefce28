"""Another share of each image of a batch, the shares evenly spread: DINOv2's masks, and iBOT's."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslfast._arguments import Part, PositiveInt, Probability, checked
from sslfast.masking._common import SPREAD, SPREAD_ORDER, Stream, check_grid, source
from sslfast.masking.blocks import (
    ROUNDS,
    check_blocks,
    check_ratios,
    hide_blocks,
    smallest_block,
)


class SpreadMask(NamedTuple):
    """What is hidden of a batch.

    Attributes:
        mask: bool [B, L], true = hidden.
        ids: int64 [N], the hidden patches' places among the B L of the batch, ascending.
        weight: float32 [N], 1 / the number that is hidden of the patch's image.
    """

    mask: Tensor
    ids: Tensor
    weight: Tensor

    @classmethod
    def joined(cls, *parts: "SpreadMask") -> "SpreadMask":
        """Of several batches, as of one with the first one's images first."""
        places, ids = 0, []
        for part in parts:
            ids.append(part.ids + places)
            places += part.mask.numel()
        mask, weight = (torch.cat([part[k] for part in parts]) for k in (0, 2))
        return cls(mask, torch.cat(ids), weight)


def hidden_counts(
    batch: int, length: int, ratios: tuple[float, float], probability: float
) -> list[int]:
    """How many patches the images of a batch hide, ascending: the same in every step."""
    masked = math.ceil(probability * batch)
    low, high = ratios
    shares = [low + (k + 0.5) / masked * (high - low) for k in range(masked)]
    return [0] * (batch - masked) + [max(int(share * length), 1) for share in shares]


@checked
def spread_mask(
    batch: PositiveInt,
    grid: tuple[PositiveInt, PositiveInt],
    ratios: tuple[Probability, Probability] = (0.1, 0.5),
    *,
    probability: Part = 0.5,
    min_patches: PositiveInt | None = None,
    min_aspect: Part = 0.3,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    stream: Stream = 0,
    device: torch.device | str | None = None,
) -> SpreadMask:
    """Hide blocks, in some images of a batch, of evenly spread sizes (DINOv2).

    Oquab et al. 2023, arXiv:2304.07193, published code: of the images of a batch ``probability``
    are masked, the k-th of m such by a ratio in the k-th of m equal parts of ``ratios``; which
    images these are is drawn. Here it is the middle of the part, so that a batch hides the same
    number of patches N in every step, and the ids need no padding. It also is iBOT's mask
    (arXiv:2111.07832, section 4.1), whose ratios are drawn for each image by itself
    (``image_ratio_mask``).

    How much an image hides depends on its place in the batch; where, on its sample id.

    Args:
        batch: B.
        grid: rows and columns of patches; L is their product.
        ratios: smallest and largest share of hidden patches.
        probability: share of the images that are masked, rounded up.
        min_patches: smallest area of a block, while that many are missing; None: the square of a
            third of the grid's shorter side, rounded down (16 of 14 x 14).
        min_aspect: smallest ratio of height to width of a block.
        seed: see ``sslfast.masking``, as for all that follow.
        step: see ``sslfast.masking``.
        sample_ids: see ``sslfast.masking``.
        stream: see ``sslfast.masking``.
        device: see ``sslfast.masking``.

    Raises:
        ValueError: ratios or a probability outside [0, 1], an empty grid, a bad aspect or area.
    """
    rows, columns = check_grid(grid)
    min_patches = smallest_block(grid) if min_patches is None else min_patches
    check_blocks(min_patches, min_aspect)
    check_ratios(ratios)
    table = hidden_counts(batch, rows * columns, ratios, probability)
    at: dict[str, Any] = {"seed": seed, "step": step, "stream": stream, "device": device}
    drawn = source(SPREAD, batch, sample_ids=sample_ids, **at).words(4 * ROUNDS + rows * columns)
    places = torch.arange(batch, device=drawn.device)
    keys = source(SPREAD_ORDER, batch, sample_ids=places, **at).words(1)
    order = keys.squeeze(1).argsort(stable=True)
    counts = torch.tensor(table, device=drawn.device)[order]
    mask = hide_blocks(drawn, counts, (rows, columns), min_patches, min_aspect)
    ids = torch.nonzero_static(mask.flatten(), size=sum(table)).squeeze(1)
    weight = 1 / counts.float().clamp_min(1)
    return SpreadMask(mask, ids, weight[ids // (rows * columns)])
