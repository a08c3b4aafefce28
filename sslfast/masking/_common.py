"""What the samplers share: where their random words come from, and what most of them return."""

import operator
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from sslfast._arguments import Range, checked
from sslfast.kernels.patch_mask.op import compact_mask
from sslfast.kernels.philox.op import random_bits

STREAMS = 1 << 16
Stream = Annotated[int, Range(0, STREAMS - 1)]
# Sampler n draws from streams STREAM_MASKS + n * STREAMS + stream.
STREAM_MASKS = 0x4D000000
RANDOM, BLOCK, MULTIBLOCK, MULTIBLOCK_SIZE, SPAN, TOKEN, IMAGE_RATIO, SPREAD, SPREAD_ORDER = range(
    9
)


class PatchMask(NamedTuple):
    """Which patches of each sample an encoder sees.

    Attributes:
        ids_keep: int64 [B, K], the visible patches, ascending.
        ids_restore: int64 [B, L], each patch's place when visible ones come first and hidden ones
            follow, both ascending: ``cat(visible, tokens)[ids_restore]`` is in the image's order.
        mask: bool [B, L], true = hidden.
    """

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Source:
    """The random words of a batch for one sampler and stream."""

    sample_ids: Tensor
    step: Tensor
    seed: int
    stream: int

    def words(self, count: int) -> Tensor:
        """The first ``count`` words of each sample: int64 [B, count] in [0, 2^32)."""
        return random_bits(self.sample_ids, self.step, self.seed, self.stream, count)


def source(
    sampler: int,
    batch: int,
    *,
    seed: int,
    step: int | Tensor,
    sample_ids: Tensor | None,
    stream: int,
    device: torch.device | str | None,
) -> Source:
    """Check a sampler's keywords and put them where the words are drawn.

    Raises:
        TypeError: sample_ids, a seed or a step that are not integers.
        ValueError: sample_ids of another length, a step of more than one element.
    """
    where: torch.device | str = "cpu"
    for given in (device, *(t.device for t in (sample_ids, step) if isinstance(t, Tensor))):
        if given is not None:
            where = given
            break
    if sample_ids is None:
        sample_ids = torch.arange(batch, device=where)
    if sample_ids.dtype != torch.int64:
        raise TypeError(f"sample_ids must be int64, got {sample_ids.dtype}")
    if tuple(sample_ids.shape) != (batch,):
        raise ValueError(f"sample_ids must have shape [{batch}], got {list(sample_ids.shape)}")
    if isinstance(step, Tensor):
        if step.is_floating_point() or step.is_complex():
            raise TypeError(f"step must be an integer, got a tensor of {step.dtype}")
        if step.numel() != 1:
            raise ValueError(f"step must be one integer, got a tensor of {list(step.shape)}")
        step = step.reshape(()).to(where, torch.int64)
    else:
        step = torch.full((), _signed("step", step), dtype=torch.int64, device=where)
    number = STREAM_MASKS + sampler * STREAMS + stream
    return Source(sample_ids.to(where), step, _signed("seed", seed), number)


def _signed(name: str, value: int) -> int:
    """An integer modulo 2^64 as ops take it, signed.

    Raises:
        TypeError: not an integer.
    """
    if not isinstance(value, int):  # numpy's integers
        try:
            value = operator.index(value)
        except TypeError as error:
            raise TypeError(f"{name} must be an integer, got {value!r}") from error
    return value if -(2**63) <= value < 2**63 else (value + 2**63) % 2**64 - 2**63


def below(words: Tensor, bound: int | Tensor) -> Tensor:
    """Uniform integers in [0, bound) from words; bound up to 2^31 (bias below bound / 2^32)."""
    return (words * bound) >> 32


def fixed_point(value: float, bits: int) -> int:
    """Return value * 2^bits as an integer, so that devices agree on every product with it."""
    return round(value * (1 << bits))


def check_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        ValueError: not two positive numbers.
    """
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise ValueError(f"grid must be (rows, columns) of patches, both positive, got {grid}")
    return rows, columns


def interval(start: Tensor, size: Tensor | int, length: int) -> Tensor:
    """Where start [...] <= position < start + size: bool [..., length]."""
    place = torch.arange(length, device=start.device)
    return (place >= start[..., None]) & (place < (start + size)[..., None])


@checked
def as_patch_mask(mask: Tensor, keep: int) -> PatchMask:
    """A mask of your own as the samplers return theirs.

    Args:
        mask: bool [B, L], true = hidden; every row leaves ``keep`` patches visible. Values are not
            looked at: a row that leaves fewer goes on with its first hidden ones, of a row that
            leaves more the last are not kept.
        keep: K, visible patches of each sample.

    Raises:
        TypeError: a mask that is not bool.
        ValueError: another number of dimensions, a keep outside [0, L].
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (true = hidden), got {mask.dtype}")
    if mask.dim() != 2:
        raise ValueError(f"mask must have shape [B, L], got {list(mask.shape)}")
    if not 0 <= keep <= mask.shape[1]:
        raise ValueError(f"cannot keep {keep} of {mask.shape[1]} patches")
    ids_keep, ids_restore = compact_mask(mask, keep)
    return PatchMask(ids_keep, ids_restore, mask)
