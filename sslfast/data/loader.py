"""What the trainer asks of a loader, and the way to make one."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from sslfast._arguments import NonNegativeInt, PositiveInt, Seed, Threads, checked
from sslfast.data.batch import Batch
from sslfast.data.sources.folder import ImageDataset, OnBadImage, VideoDataset
from sslfast.data.sources.manifest import Manifest
from sslfast.data.steps import Options
from sslfast.data.views.recipes import Recipe


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
        """The files that the samples are."""
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
    dataset: ImageDataset,
    recipe: Recipe,
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
    of videos [B, 3, num_frames, size, size]), ``sample_ids`` int64 [B], positions in
    ``dataset.paths``, and ``labels`` int64 [B] or None, all on ``device``.

    With ``train``, every epoch is shuffled anew, each rank gets its own share in the same number
    of steps, and the incomplete last batch is dropped. Without, samples come in file order with
    the last batch partial (so a rank may take fewer steps than another), and every pass is the
    same. Results depend on the seed, never on threads, prefetching or the number of ranks that
    share a global batch.

    Args:
        dataset: from ``open_dataset``.
        recipe: from ``recipe``.
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
    options = Options(
        batch_size,
        torch.device(device),
        seed,
        rank,
        world_size,
        threads,
        train,
        prefetch,
        on_bad_image,
    )
    if recipe.modality == "video":
        from sslfast.data.executors.pyav import VideoLoader

        return VideoLoader(dataset, recipe, options)
    if isinstance(dataset, VideoDataset):
        raise ValueError(
            f"recipe '{recipe.name}' makes views of images, and {dataset.name} was opened as "
            "videos: give the recipe num_frames, or open the data as images"
        )
    from sslfast.data.executors.dali import DaliLoader

    return DaliLoader(dataset, recipe, options)
