"""Which samples a rank takes in each step of an epoch: a pure function of (seed, epoch)."""

from typing import NamedTuple

import torch
from torch import Tensor

from sslfast.kernels.philox.reference import random_bits

STREAM_ORDER = 0x0DA7A000  # the shuffle's own random bits


class EpochPlan(NamedTuple):
    """The samples of an epoch of one rank.

    Attributes:
        ids: int64 [steps, batch_size], the samples to hand out.
        places: int64 [steps, batch_size], the samples that the places were made for, -1 past the
            end. Where they differ from ``ids``, a filler stands there; random draws by place differ
            from those of the filler's other appearance.
    """

    ids: Tensor
    places: Tensor


class EpochOrder:
    """The order of one rank.

    A shuffled epoch is a permutation of the data set, cut into global batches of
    ``batch_size * world_size`` samples, of which each rank takes its own slice; the incomplete last
    one is dropped, so every rank takes the same number of steps. Without shuffling, file order,
    and the last batch may be partial.

    Args:
        num_samples: size of the data set.
        batch_size: samples a rank takes a step.
        rank: this process.
        world_size: number of processes.
        shuffle: permute anew in each epoch and drop the incomplete batch.
        seed: of the permutations.
        unit: what samples are called in messages.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        unit: str = "image",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size); got {rank} of {world_size}")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.global_batch = batch_size * world_size
        if shuffle and num_samples < self.global_batch:
            raise ValueError(
                f"the data set has {num_samples} {unit}s, fewer than one global batch of "
                f"{self.global_batch} ({batch_size} on each of {world_size} ranks): training would "
                "drop them all. Lower the batch size."
            )
        self.num_samples, self.shuffle, self.seed = num_samples, shuffle, seed
        self._unit = unit
        self._cached: tuple[int, EpochPlan] | None = None
        self._usable = torch.ones(num_samples, dtype=torch.bool)
        self.steps = len(self._planned(0))

    def exclude(self, sample_ids: list[int]) -> None:
        """Never hand out these samples again."""
        self._usable[sample_ids] = False
        self._cached = None

    def epoch(self, epoch: int) -> EpochPlan:
        """The samples of an epoch.

        The place of an excluded sample (and, without shuffling, one past the end) is filled, so
        shapes and the number of steps never change and ranks need not agree on what was excluded.
        The filler is a usable sample from half an epoch further on, so that no batch holds a sample
        twice unless the epoch is one batch, or little is left.

        Raises:
            ValueError: no usable sample is left.
        """
        if self._cached is None or self._cached[0] != epoch:
            places = self._planned(epoch)
            flat = places.flatten()
            good = ((flat >= 0) & self._usable[flat.clamp_min(0)]).nonzero().squeeze(1)
            if len(good) == 0:
                raise ValueError(f"no readable {self._unit} is left in the data set")
            away = (len(places) + 1) // 2 * self.batch_size
            empty = torch.ones(len(flat), dtype=torch.bool).index_fill(0, good, False)
            wanted = (empty.nonzero().squeeze(1) + away) % len(flat)
            fillers = flat[good[torch.searchsorted(good, wanted) % len(good)]]
            ids = flat.masked_scatter(empty, fillers)
            self._cached = epoch, EpochPlan(ids.view_as(places), places)
        return self._cached[1]

    def _planned(self, epoch: int) -> Tensor:
        """The rank's samples before exclusions, int64 [steps, batch_size]; -1 is no sample."""
        order = torch.arange(self.num_samples)
        if self.shuffle:
            bits = random_bits(order, torch.tensor(epoch), self.seed, STREAM_ORDER, 2)
            # 63-bit keys: a permutation of its own, whatever the version of any library.
            order = torch.argsort((bits[:, 0] >> 1 << 32) | bits[:, 1], stable=True)
            order = order[: self.num_samples // self.global_batch * self.global_batch]
        else:
            padding = -self.num_samples % self.global_batch
            order = torch.nn.functional.pad(order, (0, padding), value=-1)
        mine = order.view(-1, self.world_size, self.batch_size)[:, self.rank]
        return mine[(mine >= 0).any(1)]
