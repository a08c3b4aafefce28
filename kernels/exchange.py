"""How the rows of other ranks get here: all at once, or one rank's at a time around a ring.

Batches of different sizes are allowed: row counts are read on the host, which no graph can do. So
whatever exchanges rows is an op, with results as long as this rank's own batch, and torch.compile
takes it up whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.library import NAMESPACE, no_double_backward

Group = Any  # dist.ProcessGroup | None


def world_size(group: Group = None) -> int:
    """Ranks of the group; 1 where torch.distributed is not in use."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def name_of(group: Group) -> str:
    """What an op takes in place of the group: ops have no such arguments."""
    return "" if group is None else group.group_name


def group_of(name: str) -> Group:
    """The group of this name; None, which is all ranks, for ""."""
    if not name:
        return None
    # The counterpart of group_name, which torch's own collectives for graphs use.
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


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
    def of(cls, x: Tensor, group: str, how: str = "gather") -> "Exchange":
        """The exchange of tensors with as many rows as ``x`` on every rank.

        The numbers of rows are read on the host, for batches may differ in size. They travel by way
        of the host too where the group has a backend for it (torch.distributed's default has), so
        that nothing waits for the GPU.

        Args:
            x: this rank's rows.
            group: its ``name_of``.
            how: "gather" or "ring".

        Raises:
            ValueError: another ``how``.
        """
        check_exchange(how)
        ranks = group_of(group)
        backends = dist.get_backend_config(ranks).split(",")
        host = any(backend.startswith("cpu:") for backend in backends)
        count = torch.tensor([len(x)], device="cpu" if host else x.device)
        counts = [torch.empty_like(count) for _ in range(world_size(ranks))]
        dist.all_gather(counts, count, group=ranks)
        return cls.again(torch.cat(counts), group, how)

    @classmethod
    def again(cls, counts: Tensor, group: str, how: str = "gather") -> "Exchange":
        """The exchange with these numbers of rows [W], which need not be asked for once more."""
        ranks = group_of(group)
        return cls(tuple(counts.tolist()), dist.get_rank(ranks), ranks, how == "ring")

    @property
    def sizes(self) -> Tensor:
        """The numbers of rows int64 [W], on the host."""
        return torch.tensor(self.counts)

    @property
    def total(self) -> int:
        """Rows of all ranks."""
        return sum(self.counts)

    @property
    def base(self) -> int:
        """Where this rank's rows begin among all."""
        return sum(self.counts[: self.rank])

    @property
    def factor(self) -> float:
        """W / M for W ranks and M rows in all: that of the sum of this rank's losses."""
        return len(self.counts) / self.total

    @property
    def own(self) -> slice:
        """This rank's rows among all."""
        return slice(self.base, self.base + self.counts[self.rank])

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate the rows of all ranks, in the order of ranks."""
        padded = x.new_zeros(max(self.counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:n] for part, n in zip(parts, self.counts, strict=True)])

    def blocks(self, *tensors: Tensor) -> Iterator[tuple[int | None, tuple[Tensor, ...]]]:
        """Yield where this rank's rows begin in a block (None: none do), and the block of each."""
        if not self.ring:
            yield self.base, tuple(self.gather(t) for t in tensors)
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
            yield (0 if step == 0 else None), held
            for work in pending:
                work.wait()
            held = coming

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


@torch.library.custom_op(f"{NAMESPACE}::gather_rows", mutates_args=())
def gather_rows(x: Tensor, group: str) -> tuple[Tensor, Tensor]:
    """The rows of all ranks, in the order of ranks.

    Gradients pass: the backward pass sums what all ranks ask of this rank's rows.

    Args:
        x: [n, ...]; n may differ between ranks.
        group: ``name_of`` the group.

    Returns:
        The rows [M, ...] of all ranks, and the places int64 [n] of this rank's among them.
    """
    exchange = Exchange.of(x, group)
    own = exchange.own
    return exchange.gather(x), torch.arange(own.start, own.stop, device=x.device)


@gather_rows.register_fake
def _(x: Tensor, group: str) -> tuple[Tensor, Tensor]:
    rows = torch.library.get_ctx().new_dynamic_size()
    return x.new_empty(rows, *x.shape[1:]), x.new_empty(len(x), dtype=torch.int64)


@torch.library.custom_op(f"{NAMESPACE}::sum_rows", mutates_args=())
def _sum_rows(gradient: Tensor, places: Tensor, group: str) -> Tensor:
    """Sum over ranks of gradients [M, ...], of which this rank's rows [n, ...] are returned."""
    total = gradient.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group_of(group))
    return total[places]


@_sum_rows.register_fake
def _(gradient: Tensor, places: Tensor, group: str) -> Tensor:
    return gradient.new_empty(len(places), *gradient.shape[1:])


def _setup(ctx: Any, inputs: tuple[Tensor, str], output: tuple[Tensor, Tensor]) -> None:
    ctx.group = inputs[1]
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, None]:
    return _sum_rows(gradient, ctx.saved_tensors[0], ctx.group), None


gather_rows.register_autograd(_backward, setup_context=_setup)
_sum_rows.register_autograd(no_double_backward)


def gather_own_first(x: Tensor, group: str) -> Tensor:
    """The rows of all ranks in their order, but from this rank's on, around to those before it.

    So row i of this rank, which has one at least, is row i of them all. Gradients pass, as through
    ``gather_rows``.
    """
    rows, places = gather_rows(x, group)
    order = (places[0] + torch.arange(len(rows), device=x.device)) % len(rows)
    return rows.index_select(0, order)


@torch.library.custom_op(f"{NAMESPACE}::sum_over_ranks", mutates_args=())
def _sum_over_ranks(x: Tensor, group: str) -> Tensor:
    """Sum of every rank's x, in its dtype; no gradient passes."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group_of(group))
    return total


@_sum_over_ranks.register_fake
def _(x: Tensor, group: str) -> Tensor:
    return x.new_empty(x.shape)


class RanksMean(NamedTuple):
    """The mean row of all ranks.

    Attributes:
        mean: [E]; 0 where no rank has rows.
        share: W n / M for n rows of M on W ranks, 0-d: how much this rank's mean weighs among the
            ranks'. Means over this rank's rows times this, averaged over ranks, are those over all.
        rows: M, 0-d.
    """

    mean: Tensor
    share: Tensor
    rows: Tensor


def mean_over_ranks(x: Tensor, group: Group = None) -> RanksMean:
    """The mean row of all ranks, in the accumulation dtype; no gradient passes.

    Ranks may have different numbers of rows. One message of E + 1 numbers travels, and nothing is
    read back by the host.

    Args:
        x: [n, E].
        group: the process group; None: all ranks.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        dtype = accumulation_dtype(x.dtype)
        sums = torch.cat((x.sum(0, dtype=dtype), x.new_full((1,), len(x), dtype=dtype)))
        ranks = world_size(group)
        if ranks > 1:
            sums = _sum_over_ranks(sums, name_of(group))
        rows = sums[-1]
        return RanksMean(sums[:-1] / rows.clamp_min(1), ranks * len(x) / rows.clamp_min(1), rows)


def check_exchange(how: str, gathers: bool = False) -> None:
    """Raise ValueError unless it is "gather" or "ring", or where nothing can be gathered."""
    if gathers and not dist.is_available():
        raise ValueError(
            "gather_distributed=True needs torch.distributed, which this torch was built without: "
            "leave it out"
        )
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
