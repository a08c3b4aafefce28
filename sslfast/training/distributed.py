"""One process or many: torchrun's environment, process groups, and who writes.

``torchrun --nproc-per-node 4 --no-python sslfast train ...`` runs the line of a single process on
four ranks. Every rank draws its own part of each batch, and DistributedDataParallel averages the
gradients. Contrastive losses gather embeddings themselves, so that negatives come from the batch of
all ranks (sslfast.losses.distributed).
"""

import inspect
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from sslfast.training.config import ConfigError

_GROUPS = itertools.count()


@dataclass(frozen=True)
class Ranks:
    """This process among its peers.

    Attributes:
        device: where this rank computes.
        rank: 0 to world_size - 1.
        world_size: how many processes train together; 1 without torchrun.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def share(self, value: Any) -> Any:
        """Rank 0's ``value``, on every rank (any picklable object)."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """Every rank's ``value``, in order, on rank 0 (elsewhere an empty list)."""
        if self.world_size == 1:
            return [value]
        box = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, box)
        return box or []

    def agree(self, bad_step: Tensor, stop_signal: int) -> tuple[int, int]:
        """The first bad step and a stop signal (0: none) over all ranks, the same on each.

        Args:
            bad_step: int64 0-dim, on ``device``; is read here.
            stop_signal: this rank's.
        """
        if self.world_size == 1:
            return int(bad_step), stop_signal
        both = torch.stack([bad_step, torch.full_like(bad_step, -stop_signal)])
        dist.all_reduce(both, dist.ReduceOp.MIN)
        first, negated = both.tolist()
        return first, -negated

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over ranks; all start from rank 0's weights.

        Buffers stay each rank's own (a queue or running statistics are not overwritten in every
        step); those of rank 0 are exported.
        """
        if self.world_size == 1:
            return model
        # The keyword's name since torch 2.13; until then, the older one.
        names = inspect.signature(DistributedDataParallel).parameters
        renamed = "forward_sync_buffers" in names
        keyword: dict[str, Any] = {
            "forward_sync_buffers" if renamed else "broadcast_buffers": False
        }
        return DistributedDataParallel(model, **keyword)


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device for "auto", "cpu" or "cuda".

    Raises:
        ConfigError: CUDA was asked for, but torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        built = torch.version.cuda
        why = "sees no GPU: check nvidia-smi" if built else "was built without CUDA"
        raise ConfigError(f"device cuda: torch {torch.__version__} {why}; or use --device cpu")
    if name == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun's environment describes, for a ``with`` block.

    A group that exists already is used and left alone.

    Args:
        device: "auto", "cpu" (gloo) or "cuda" (NCCL, and gloo for the host; one GPU a rank).
    """
    if not dist.is_initialized() and "RANK" not in os.environ:
        yield Ranks(resolve_device(device))
        return
    where = resolve_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if where.type == "cuda":
        torch.cuda.set_device(where)
    joined = not dist.is_initialized()
    if joined:
        backend, bound = "gloo", None
        if where.type == "cuda":
            backend, bound = "cpu:gloo,cuda:nccl", where
        store, rank, world_size = next(rendezvous("env://"))
        # torchrun's store outlives a group, whose keys would mislead the next one.
        store = dist.PrefixStore(f"sslfast/{next(_GROUPS)}", store)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, device_id=bound
        )
    try:
        yield Ranks(where, dist.get_rank(), dist.get_world_size())
    finally:
        if joined:
            dist.destroy_process_group()
