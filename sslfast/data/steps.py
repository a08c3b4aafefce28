"""The loader: a source, an order and an executor, and an exact position among them."""

import logging
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sslfast._nests import map_tensors
from sslfast._versions import check_version
from sslfast.data.batch import Batch
from sslfast.data.executors.executor import Executor, Planned
from sslfast.data.order import EpochOrder
from sslfast.data.sources.manifest import Manifest
from sslfast.data.sources.source import OnBadImage

logger = logging.getLogger(__name__)  # of its own: heard from every rank (sslfast.cli)

_VERSION = 1  # of the saved position


class StepLoader:
    """See ``sslfast.data.make_loader``; the protocol is ``sslfast.data.Loader``.

    Which samples a step takes and what happens to them is a function of (seed, epoch, step), so
    the whole state is a position, and the executor can be restarted from it at any time: to resume,
    or because a sample broke a batch in work. Then the executor says which samples are bad, these
    are excluded, and the batches not handed out yet are run again.

    Args:
        executor: makes the views; not started.
        order: of its source's samples.
        train: go on into the next epoch, and keep batches full.
        prefetch: batches in work while the one handed out is used.
        on_bad_image: what to do with samples found bad.

    Attributes:
        num_samples: in the data set.
        steps_per_epoch: batches an epoch on this rank.
        skipped: (name, reason) of every sample found bad while loading.
    """

    def __init__(
        self,
        executor: Executor,
        order: EpochOrder,
        *,
        train: bool = True,
        prefetch: int = 2,
        on_bad_image: OnBadImage = "skip",
    ) -> None:
        self._executor, self._order, self._source = executor, order, executor.source
        self._device, self._train = executor.options.device, train
        self._prefetch, self._on_bad_image = prefetch, on_bad_image
        self.num_samples, self.steps_per_epoch = len(self._source), order.steps
        self.skipped: list[tuple[str, str]] = []
        self._excluded: list[int] = []
        self._epoch = self._step = 0
        self._pending: deque[Planned] = deque()
        self._depth = 0  # batches in work at a time; 0: the executor is not started
        self._closed = False

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

    @cached_property  # a source may make it anew each time, and every checkpoint asks
    def manifest(self) -> Manifest:
        """The contents that positions and sample ids are about."""
        return self._source.manifest

    def _identity(self) -> dict[str, int | bool | str]:
        return {
            "files": self.manifest.fingerprint,
            "seed": self._order.seed,
            "train": self._train,
            "num_samples": self.num_samples,
            "global_batch": self._order.global_batch,
        }

    def _restart(self) -> None:
        self._pending.clear()
        self._depth = 0
        self._executor.stop()

    def _next(self) -> Batch:
        """The next batch; the position moves past it."""
        while True:
            if self._closed:
                raise RuntimeError("this loader is closed; make a new one")
            try:
                self._fill()
                views = self._executor.collect()
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
            self._executor.start(depth)
            self._depth = depth
        while len(self._pending) < self._depth and (self._train or left() > 0):
            ahead = self._step + len(self._pending)
            batch = self._plan(self._epoch + ahead // self.steps_per_epoch, ahead)
            self._pending.append(batch)
            self._executor.submit(batch)

    def _plan(self, epoch: int, ahead: int) -> Planned:
        """The batch of a step (which may count on past its epoch's end)."""
        plan = self._order.epoch(epoch)
        return Planned(plan, ahead % self.steps_per_epoch, epoch if self._train else 0)

    def _finish(self, batch: Planned, views: Any) -> Batch:
        """With ids and labels; without ``train`` less the rows that only filled the batch."""
        ids = batch.ids.clone()  # not a view of the whole epoch's
        planned = ids == batch.places
        if not self._train and not planned.all():
            rows = planned.nonzero().squeeze(1)
            ids = ids[rows]
            views = map_tensors(views, lambda view: view[rows.to(view.device)])
        return Batch(views, ids.to(self._device), self._labels(ids))

    def _labels(self, ids: Tensor) -> Tensor | None:
        labels = [self._source.label(i) for i in ids.tolist()]
        if any(label is None for label in labels):
            return None
        return torch.tensor(labels, dtype=torch.int64, device=self._device)

    def _recover(self, error: RuntimeError) -> None:
        """Exclude what broke the oldest batch, or raise ``error`` if no file did."""
        if not self._pending:
            raise error
        batches = list(self._pending)
        self._restart()
        reasons = self._executor.find_bad(batches)
        if reasons is None:
            raise error
        if not reasons:
            return
        if self._on_bad_image == "raise":
            files = ", ".join(
                f"{self._source.sample_name(i)} ({why})" for i, why in reasons.items()
            )
            raise ValueError(f"unreadable {self._source.modality}: {files}") from error
        self._exclude(reasons)

    def _exclude(self, reasons: dict[int, str]) -> None:
        for i, reason in reasons.items():
            name = self._source.sample_name(i)
            logger.warning("skipping unreadable %s %s: %s", self._source.modality, name, reason)
            self.skipped.append((name, reason))
        self._excluded += reasons
        self._order.exclude(list(reasons))
