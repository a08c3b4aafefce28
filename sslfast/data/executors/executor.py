"""What makes views of samples: the contract, and executors by the modality that they are for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sslfast.data.order import EpochPlan
from sslfast.data.registry import Registry
from sslfast.data.sources.source import Source


@runtime_checkable
class AnyRecipe(Protocol):
    """What the loader needs of a recipe; all else is between recipe and executor.

    A recipe is plain data, a frozen dataclass: of images and videos ``sslfast.data.Recipe``.
    """

    @property
    def name(self) -> str:
        """In messages."""
        ...

    @property
    def modality(self) -> str:
        """The kind of data that it is for; the executor is found by it."""
        ...

    @property
    def view_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of each view, the shape without the batch: what an encoder will be given."""
        ...


@dataclass(frozen=True)
class Options:
    """What an executor is told beside source and recipe.

    Attributes:
        batch_size: samples of each batch, always full.
        device: where views go, with its index.
        seed: of all random draws.
        threads: on the CPU.
    """

    batch_size: int
    device: torch.device
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Planned:
    """One batch to make views of: a step of an epoch.

    Random numbers are keyed by (seed, place, epoch, view), so that what happens to a sample depends
    on nothing else. The other steps of the epoch are there for who draws for several at once.

    Attributes:
        plan: the whole epoch's samples and places.
        step: which of its steps.
        epoch: keys the draws (0 in evaluation, whose passes are all the same).
    """

    plan: EpochPlan
    step: int
    epoch: int

    @property
    def ids(self) -> Tensor:
        """The samples: int64 [B], their numbers in the source."""
        return self.plan.ids[self.step]

    @property
    def places(self) -> Tensor:
        """What to draw by: int64 [B], mostly ``ids``; see ``EpochOrder.epoch``."""
        return self.plan.places[self.step]


class BadSampleError(RuntimeError):
    """A sample cannot be read, or no view be made of it; the message says why."""


class Executor(ABC):
    """Makes the views of planned batches, in the order submitted, by all steps of a recipe.

    One class for each modality, in a file of this package, registered in ``EXECUTORS``. Order,
    shards, resuming and the exclusion of bad samples are the loader's. After ``stop`` an executor
    is as new, and may be started again with other batches.

    Args:
        source: of the samples.
        recipe: of the executor's modality.
        options: see there.

    Raises:
        ValueError: a source or recipe that it cannot take.
    """

    def __init__(self, source: Source, recipe: Any, options: Options) -> None:
        self.source, self.recipe, self.options = source, recipe, options

    @abstractmethod
    def start(self, depth: int) -> None:
        """Get ready for ``depth`` batches in work at a time."""

    @abstractmethod
    def submit(self, batch: Planned) -> None:
        """Begin to work on a batch; RuntimeError where a sample breaks it."""

    @abstractmethod
    def collect(self) -> Any:
        """Wait for the views of the oldest batch: any nest of tensors [B, ...] on the device.

        Raises:
            RuntimeError: a sample broke it.
        """

    @abstractmethod
    def stop(self) -> None:
        """Forget all batches in work, and free threads and memory."""

    @abstractmethod
    def find_bad(self, batches: Sequence[Planned]) -> dict[int, str] | None:
        """After submit or collect raised, and stop: {sample: reason} of the bad samples in work.

        None where no sample was at fault; none in it where the fault has been mended.
        """


EXECUTORS: Registry[type[Executor]] = Registry("sslfast.data.executors", "modality")
