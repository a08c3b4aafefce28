"""What the trainer asks of a loader, and the way to make one."""

import os
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from sslfast._arguments import NonNegativeInt, PositiveInt, Seed, Threads, checked
from sslfast.data.batch import Batch
from sslfast.data.executors.executor import EXECUTORS, AnyRecipe, Options
from sslfast.data.order import EpochOrder
from sslfast.data.sources.manifest import Manifest
from sslfast.data.sources.source import OnBadImage, Source, check_policy
from sslfast.data.steps import StepLoader


@runtime_checkable
class Loader(Protocol):
    """An endless source of batches, cut into epochs, that knows exactly where it is.

    Attributes:
        num_samples: samples in the data set.
        steps_per_epoch: batches that an epoch yields on this rank.
    """

    num_samples: int
    steps_per_epoch: int

    @property
    def manifest(self) -> Manifest:
        """What the samples are: files, with their sizes."""
        ...

    def __len__(self) -> int:
        """The same as ``steps_per_epoch``."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch: all of it, unless a batch of it was handed out before.

        With the last batch of an epoch the position moves to the start of the next one.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position after the batches handed out so far, as plain numbers and lists."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: what follows is what would have followed, bit for bit."""
        ...

    def close(self) -> None:
        """Free threads and memory; the loader yields nothing more."""
        ...


@checked
def make_loader(
    dataset: Source,
    recipe: AnyRecipe,
    *,
    batch_size: PositiveInt,
    device: str | torch.device = "cpu",
    seed: Seed = 0,
    rank: NonNegativeInt = 0,
    world_size: PositiveInt = 1,
    threads: Threads | None = None,
    train: bool = True,
    prefetch: PositiveInt = 2,
    on_bad_image: OnBadImage = "skip",
) -> Loader:
    """A loader that executes ``recipe`` on a data set: on images by DALI, on videos by PyAV.

    Batches hold ``views``, a tuple of contiguous float32 tensors, one a view ([B, 3, size, size],
    of videos [B, 3, num_frames, size, size]; of other data any nest of tensors), ``sample_ids``
    int64 [B], positions in ``dataset.paths``, and ``labels`` int64 [B] or None, all on ``device``.

    With ``train``, every epoch is shuffled anew, each rank gets its own share in the same number
    of steps, and the incomplete last batch is dropped. Without, samples come in file order with
    the last batch partial (so a rank may take fewer steps than another), and every pass is the
    same. Results depend on the seed, never on threads, prefetching or the number of ranks that
    share a global batch.

    Args:
        dataset: from ``open_dataset``, or any other source.
        recipe: from ``recipe``; the executor is that of its modality.
        batch_size: images or videos a step on this rank.
        device: "cpu", or a CUDA device, where DALI then decodes and transforms; videos are decoded
            on the CPU all the same.
        seed: of the shuffle and of the augmentation.
        rank: this process.
        world_size: number of processes.
        threads: CPU threads for DALI or PyAV; None is half of this process's cores, at most 16.
        train: see above.
        prefetch: batches in work while the one handed out is used.
        on_bad_image: what to do with a file that passed ``open_dataset``'s check and yet cannot be
            decoded: "skip" puts another sample in its place (without ``train``: leaves it out),
            names it in the log and in the loader's ``skipped``, and goes on; "raise" stops.

    Raises:
        ValueError: a data set smaller than one global batch (with ``train``), a recipe for the
            other kind of data, or a bad argument.
        MissingExtra: DALI or PyAV is not installed.
    """
    if prefetch < 1 or (threads is not None and threads < 1):
        raise ValueError(f"prefetch and threads must be at least 1; got {prefetch}, {threads}")
    check_policy(on_bad_image)
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"loaders run on 'cpu' and 'cuda' devices, not on '{device}'")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if dataset.modality != recipe.modality:
        wanted, given = _plural(recipe.modality), _plural(dataset.modality)
        raise ValueError(
            f"recipe '{recipe.name}' makes views of {wanted}, and {dataset.manifest.given} was "
            f"opened as {given}: choose another recipe, or open the data with "
            f'modality="{recipe.modality}"'
        )
    threads = threads or max(1, min(16, len(os.sched_getaffinity(0)) // 2))
    options = Options(batch_size, device, seed, threads)
    executor = EXECUTORS.get(recipe.modality)(dataset, recipe, options)
    order = EpochOrder(
        len(dataset),
        batch_size,
        rank=rank,
        world_size=world_size,
        shuffle=train,
        seed=seed,
        unit=dataset.modality if dataset.modality in ("image", "video") else "sample",
    )
    return StepLoader(executor, order, train=train, prefetch=prefetch, on_bad_image=on_bad_image)


def _plural(modality: str) -> str:
    return f"{modality}s" if modality in ("image", "video") else modality
