"""One process or many: torchrun's environment, process groups, and who writes.

``torchrun --nproc-per-node 4 --no-python sslfast train ...`` runs the line of a single process on
four ranks. Every rank draws its own part of each batch, and DistributedDataParallel averages the
gradients. Contrastive losses gather embeddings themselves, so that negatives come from the batch of
all ranks (sslfast.kernels.similarity_softmax.ranks).
"""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.training.config import ConfigError
from sslfast.training.roll_call import (
    Facts,
    RankError,
    RollCall,
    connect,
    difference,
    environment,
    is_broken,
    patience,
)

_GROUPS = itertools.count()
_TIDY = 0.1  # seconds


@dataclass(frozen=True)
class Ranks:
    """This process among its peers.

    Attributes:
        device: where this rank computes.
        rank: 0 to world_size - 1.
        world_size: how many processes train together; 1 without torchrun.
        host: a gloo group of all ranks, for what does not concern the devices.
        roll_call: finds out which rank is missing; None in a group of the caller's own.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    host: Any = None
    roll_call: RollCall | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks."""
        return self.rank == 0

    @property
    def group(self) -> Any:
        """The process group of all ranks, as losses take it; None where there is one."""
        return None if self.world_size == 1 else dist.group.WORLD

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

    def first(self, step: Tensor) -> int:
        """The smallest ``step`` over all ranks (int64 0-dim, on ``device``; is read here)."""
        if self.world_size > 1:
            step = step.clone()
            dist.all_reduce(step, dist.ReduceOp.MIN)
        return int(step)

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over all ranks; no device is waited for."""
        if self.world_size == 1:
            return list(values)
        most = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.host)
        return most.tolist()

    def must_agree(self, facts: Facts) -> None:
        """Compare what has to be the same on all ranks.

        Args:
            facts: by topic, plain values by name.

        Raises:
            RankError: on every rank; it names one that differs from rank 0, and in what.
        """
        if self.world_size == 1:
            return
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, facts, group=self.host)
        if (found := difference(everyone)) is not None:
            raise RankError(f"{found}. Start every rank with the same line, on the same data")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """For a ``with`` block: a broken connection names its rank; an error is told the others.

        Raises:
            RankError: another rank ended or hangs.
        """
        try:
            yield
        except RankError:
            raise
        except BaseException as error:
            if not is_broken(error):
                if self.roll_call is not None:
                    self.roll_call.leave_word(error)
                raise
            if self.roll_call is None:
                raise RankError(f"another rank ended or hangs ({error})") from error
            raise self.roll_call.explain(error) from error


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

    Raises:
        RankError: a rank did not come, ended, or has not answered for as long as ``patience``.
    """
    if not dist.is_initialized() and "RANK" not in os.environ:
        yield Ranks(resolve_device(device))
        return
    where = resolve_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if where.type == "cuda":
        torch.cuda.set_device(where)
    joined, wait = not dist.is_initialized(), patience()
    roll_call = None
    if joined:
        backend, bound = "gloo", None
        if where.type == "cuda":
            backend, bound = "cpu:gloo,cuda:nccl", where
        rank, world_size, address = environment()
        # torchrun's store outlives a group and its ranks, whose keys would mislead the next.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        name = f"sslfast/{attempt}/{next(_GROUPS)}"
        store = dist.PrefixStore(name, connect(address, rank, world_size, wait))
        calls = dist.PrefixStore("roll_call", store)
        roll_call = RollCall(calls, rank, world_size, address)
        with Ranks(where, rank, world_size, roll_call=roll_call).watched():
            roll_call.begin(wait)
            dist.init_process_group(
                backend,
                timeout=wait,
                store=store,
                rank=rank,
                world_size=world_size,
                device_id=bound,
            )
    host = None
    try:
        host = dist.new_group(timeout=wait, backend="gloo")
        here = Ranks(where, dist.get_rank(), dist.get_world_size(), host, roll_call)
        with here.watched():
            yield here
    finally:
        # When a group goes, torch joins gloo's threads with Python's lock held. One that still
        # tidies up after its last work wants that lock: both would wait for ever.
        time.sleep(_TIDY)
        if joined or host is not None:
            dist.destroy_process_group(None if joined else host)
