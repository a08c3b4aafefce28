"""What loaders share: a position in the data, batches in work, and what to do about bad files."""

import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sslfast._versions import check_version
from sslfast.data.batch import Batch
from sslfast.data.order import EpochOrder
from sslfast.data.sources.folder import ImageDataset, OnBadImage, check_policy
from sslfast.data.sources.manifest import Manifest
from sslfast.data.views.color import recolor
from sslfast.data.views.draws import Draw, draw
from sslfast.data.views.recipes import Recipe

logger = logging.getLogger(__name__)  # of its own: heard from every rank (sslfast.cli)

_VERSION = 1  # of the saved position


@dataclass(frozen=True)
class Options:
    """The keywords of ``sslfast.data.make_loader``."""

    batch_size: int
    device: torch.device
    seed: int
    rank: int
    world_size: int
    threads: int | None
    train: bool
    prefetch: int
    on_bad_image: OnBadImage


@dataclass(frozen=True)
class Planned:
    """One batch in work.

    Attributes:
        ids: int64 [B], positions in the data set.
        planned: bool [B], False where a row only fills the batch (see EpochOrder.epoch).
        draws: one Draw a view.
    """

    ids: Tensor
    planned: Tensor
    draws: list[Draw]


class StepLoader(ABC):
    """See ``sslfast.data.make_loader``; the protocol is ``sslfast.data.Loader``.

    Which samples a step takes and what happens to them is a function of (seed, epoch, step), so
    the whole state is a position, and the executor can be restarted from it at any time: to resume,
    or because a file broke a batch in work. Then the executor says which files are bad, these are
    excluded, and the batches not handed out yet are run again.

    An executor is a subclass that makes the views of planned batches, in the order submitted.

    Attributes:
        num_samples: files in the data set.
        steps_per_epoch: batches an epoch on this rank.
        skipped: (path, reason) of every file found bad while loading.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sizes: list[tuple[int, int]],
        recipe: Recipe,
        options: Options,
    ) -> None:
        if options.prefetch < 1 or (options.threads is not None and options.threads < 1):
            raise ValueError(
                f"prefetch and threads must be at least 1; got {options.prefetch}, "
                f"{options.threads}"
            )
        check_policy(options.on_bad_image)
        device = options.device
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"loaders run on 'cpu' and 'cuda' devices, not on '{device}'")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._dataset, self._recipe, self._device = dataset, recipe, device
        self._order = EpochOrder(
            len(dataset.paths),
            options.batch_size,
            rank=options.rank,
            world_size=options.world_size,
            shuffle=options.train,
            seed=options.seed,
        )
        self._train, self._seed = options.train, options.seed
        self._prefetch, self._on_bad_image = options.prefetch, options.on_bad_image
        self._threads = options.threads or max(1, min(16, len(os.sched_getaffinity(0)) // 2))
        self._sizes = torch.tensor(sizes).view(-1, 2).clamp_min(1)
        self._labels = None if dataset.labels is None else torch.tensor(dataset.labels)
        self.num_samples = len(dataset.paths)
        self.steps_per_epoch = self._order.steps
        self.skipped: list[tuple[str, str]] = []
        self._excluded: list[int] = []
        self._epoch = self._step = 0
        # Random numbers are drawn for several steps at once, as the cost is in the calls; but not
        # for so many that torch would share out the work among its threads (see color.py).
        self._block = max(1, 1024 // max(1, len(recipe.views)) // options.batch_size)
        self._drawn: tuple[tuple[int, int], list[Draw]] | None = None
        self._pending: deque[Planned] = deque()
        self._depth = 0  # batches in work at a time; 0: the executor is not started
        self._closed = False

    @abstractmethod
    def _start(self, depth: int) -> None:
        """Get ready for ``depth`` batches in work at a time."""

    @abstractmethod
    def _submit(self, batch: Planned) -> None:
        """Begin to work on a batch; RuntimeError where a file breaks it."""

    @abstractmethod
    def _collect(self) -> list[Tensor]:
        """Wait for the views of the oldest batch; RuntimeError where a file broke it."""

    @abstractmethod
    def _stop(self) -> None:
        """Forget all batches in work."""

    @abstractmethod
    def _find_bad(self, batches: list[Planned]) -> dict[int, str] | None:
        """After _submit or _collect raised: {sample: reason} of the bad files in what was in work.

        None where no file was at fault; none in it where the fault has been mended.
        """

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._epoch
        while self._epoch == epoch and self.steps_per_epoch > 0:
            batch = self._next()
            if len(batch) > 0:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position, what it is a position in, and the files found bad on the way."""
        return {
            "version": _VERSION,
            "epoch": self._epoch,
            "step": self._step,
            "excluded": list(self._excluded),
            **self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same data set, seed and global batch, on any number of ranks.

        Raises:
            ValueError: the state belongs to other files, another seed or global batch size.
        """
        check_version("the saved position of the loader", state.get("version"), _VERSION)
        for key, mine in self._identity().items():
            if (was := state.get(key, mine)) != mine:  # earlier states lack the files
                raise ValueError(f"cannot resume the data order: {key} was {was} and is now {mine}")
        self._restart()
        self._epoch, self._step = state["epoch"], state["step"]
        new = [i for i in state["excluded"] if i not in self._excluded]
        self._exclude(dict.fromkeys(new, "found bad before the run was resumed"))

    def close(self) -> None:
        """Free threads and memory. Batches handed out stay valid."""
        self._restart()
        self._closed = True

    @cached_property
    def manifest(self) -> Manifest:
        """The files that positions and sample ids are about."""
        return self._dataset.manifest

    def _identity(self) -> dict[str, int | bool | str]:
        return {
            "files": self.manifest.fingerprint,
            "seed": self._seed,
            "train": self._train,
            "num_samples": self.num_samples,
            "global_batch": self._order.global_batch,
        }

    def _restart(self) -> None:
        self._pending.clear()
        self._drawn = None
        self._depth = 0
        self._stop()

    def _next(self) -> Batch:
        """The next batch; the position moves past it."""
        while True:
            if self._closed:
                raise RuntimeError("this loader is closed; make a new one")
            try:
                self._fill()
                views = self._collect()
            except RuntimeError as error:
                self._recover(error)
                continue
            break
        planned = self._pending.popleft()
        self._step += 1
        if self._step == self.steps_per_epoch:
            self._epoch, self._step = self._epoch + 1, 0
        return self._finish(planned, views)

    def _fill(self) -> None:
        """Keep ``prefetch`` batches in work beside the one about to be collected.

        Training goes on into the next epoch; evaluation, which may be the last, does not.
        """

        def left() -> int:
            return self.steps_per_epoch - self._step - len(self._pending)

        if self._depth == 0:
            depth = self._prefetch + 1
            depth = depth if self._train else min(depth, left())
            self._start(depth)
            self._depth = depth
        while len(self._pending) < self._depth and (self._train or left() > 0):
            ahead = self._step + len(self._pending)
            batch = self._plan(self._epoch + ahead // self.steps_per_epoch, ahead)
            self._pending.append(batch)
            self._submit(batch)

    def _plan(self, epoch: int, ahead: int) -> Planned:
        """The batch of a step (which may count on past its epoch's end)."""
        block, row = divmod(ahead % self.steps_per_epoch, self._block)
        ids, places = self._order.epoch(epoch)
        steps = slice(block * self._block, (block + 1) * self._block)
        ids, places = ids[steps], places[steps]
        if self._drawn is None or self._drawn[0] != (epoch, block):
            flat = ids.flatten()
            draws = draw(
                self._recipe.views,
                places.flatten(),
                self._sizes[flat],
                epoch=epoch if self._train else 0,
                seed=self._seed,
            )
            self._drawn = ((epoch, block), draws)
        size = self._order.batch_size
        rows = slice(row * size, (row + 1) * size)
        planned = ids[row] == places[row]
        return Planned(ids[row], planned, [draws.rows(rows) for draws in self._drawn[1]])

    def _finish(self, batch: Planned, images: list[Tensor]) -> Batch:
        """Colours, and without ``train`` the removal of rows that only filled the batch."""
        views = []
        for view, draws, image in zip(self._recipe.views, batch.draws, images, strict=True):
            if view.recolors:
                flat = image.flatten(2, -2)  # a clip keeps its colours: one tall image
                flat = recolor(flat, view, draws.matrix, draws.lift, draws.solarize)
                image = flat.view_as(image)
            views.append(image)
        ids = batch.ids.clone()  # not a view of the whole epoch's
        if not self._train and not batch.planned.all():
            rows = batch.planned.nonzero().squeeze(1)
            ids = ids[rows]
            views = [view[rows.to(view.device)] for view in views]
        labels = None if self._labels is None else self._labels[ids].to(self._device)
        return Batch(tuple(views), ids.to(self._device), labels)

    def _recover(self, error: RuntimeError) -> None:
        """Exclude what broke the oldest batch, or raise ``error`` if no file did."""
        if not self._pending:
            raise error
        batches = list(self._pending)
        self._restart()
        reasons = self._find_bad(batches)
        if reasons is None:
            raise error
        if not reasons:
            return
        if self._on_bad_image == "raise":
            files = ", ".join(f"{self._dataset.paths[i]} ({why})" for i, why in reasons.items())
            raise ValueError(f"unreadable {self._recipe.modality}: {files}") from error
        self._exclude(reasons)

    def _exclude(self, reasons: dict[int, str]) -> None:
        for i, reason in reasons.items():
            path = self._dataset.paths[i]
            logger.warning("skipping unreadable %s %s: %s", self._recipe.modality, path, reason)
            self.skipped.append((path, reason))
        self._excluded += reasons
        self._order.exclude(list(reasons))
