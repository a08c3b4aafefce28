"""How the rows of other ranks get here: all at once, or one rank's at a time around a ring.

Embeddings travel without a gradient; what they contribute is computed where their gradient belongs
(sslfast.losses.distributed). Batches of different sizes are allowed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = Any  # dist.ProcessGroup | None

# Row counts are read on the host, which no graph can do.
uncompiled = torch.compiler.disable(
    reason="sslfast: ranks may differ in rows, which are counted on the host"
)


def world_size(group: Group = None) -> int:
    """Ranks of the group; 1 where torch.distributed is not in use."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


@uncompiled
def row_counts(x: Tensor, group: Group) -> list[int]:
    """Rows of every rank's tensor, read on the host: batches may differ in size."""
    count = torch.tensor([len(x)], device=x.device)
    counts = [torch.empty_like(count) for _ in range(world_size(group))]
    dist.all_gather(counts, count, group=group)
    return torch.cat(counts).tolist()


@uncompiled
def gather_rows(x: Tensor, counts: list[int], group: Group) -> Tensor:
    """Concatenate the rows of all ranks, in the order of ranks; carries no gradient."""
    longest = max(counts)
    padded = x.new_zeros(longest, *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@dataclass(frozen=True)
class Exchange:
    """All ranks' rows, block by block.

    Args:
        counts: rows of every rank.
        rank: this rank in the group.
        group: the process group; None: all ranks.
        ring: one rank's rows at a time, each sent on while it is computed with: memory of two
            blocks. Otherwise one block with all rows.
    """

    counts: tuple[int, ...]
    rank: int
    group: Group
    ring: bool

    @classmethod
    def of(cls, x: Tensor, group: Group, how: str) -> "Exchange":
        """The exchange of tensors with as many rows as ``x`` on every rank.

        Raises:
            ValueError: ``how`` is neither "gather" nor "ring".
        """
        check_exchange(how)
        return cls(tuple(row_counts(x, group)), dist.get_rank(group), group, how == "ring")

    @property
    def total(self) -> int:
        """Rows of all ranks."""
        return sum(self.counts)

    @property
    def base(self) -> int:
        """Where this rank's rows begin among all."""
        return sum(self.counts[: self.rank])

    def blocks(self, *tensors: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Yield (first own row within the block or -1, the block of every tensor)."""
        if not self.ring:
            yield self.base, tuple(gather_rows(t, list(self.counts), self.group) for t in tensors)
            return
        ranks = len(self.counts)
        ahead, behind = (self._global((self.rank + d) % ranks) for d in (1, -1))
        held = tuple(t.contiguous() for t in tensors)
        for step in range(ranks):
            coming: tuple[Tensor, ...] = ()
            pending: list[Any] = []
            if step + 1 < ranks:
                count = self.counts[(self.rank - step - 1) % ranks]
                coming = tuple(t.new_empty(count, *t.shape[1:]) for t in held)
                operations = [dist.P2POp(dist.isend, t, ahead, self.group) for t in held]
                operations += [dist.P2POp(dist.irecv, t, behind, self.group) for t in coming]
                pending = dist.batch_isend_irecv(operations)
            yield (0 if step == 0 else -1), held
            for work in pending:
                work.wait()
            held = coming

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


def check_exchange(how: str) -> None:
    """Raise ValueError unless it is "gather" or "ring"."""
    if how not in ("gather", "ring"):
        raise ValueError(f"exchange must be 'gather' or 'ring', got {how!r}")


def check_rank(what: str, rank: int, size: int, group: Group) -> None:
    """Raise ValueError unless torch.distributed knows this process by these numbers."""
    known = (dist.get_rank(group), world_size(group)) if dist.is_initialized() else (0, 1)
    if (rank, size) != known:
        raise ValueError(
            f"{what} was made for rank {rank} of {size}, but torch.distributed says rank "
            f"{known[0]} of {known[1]}"
        )
