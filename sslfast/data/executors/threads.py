"""Executors that make one sample at a time, in background threads."""

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils._pytree import tree_map

from sslfast.data.executors.executor import BadSampleError, Executor, Planned


class ThreadedExecutor(Executor):
    """A subclass says how to make the views of one sample, and may change how they are joined.

    Threads pay off where reading releases Python's lock, as files and decoders do.
    """

    _pool: ThreadPoolExecutor | None = None

    @abstractmethod
    def make(self, sample: int, place: int, epoch: int, extra: Any) -> Any:
        """The views of one sample: a nest of tensors without the batch dimension.

        Args:
            sample: its number in the source.
            place: what to draw by, with ``epoch`` and the options' seed.
            epoch: likewise.
            extra: what ``prepare`` gave for it.

        Raises:
            BadSampleError: it cannot be read.
        """

    def prepare(self, batch: Planned) -> Sequence[Any]:
        """Something for each sample, made for a whole batch before its samples are."""
        return [None] * len(batch.ids)

    def join(self, batch: Planned, samples: list[Any]) -> Any:
        """The views of a batch, on the device."""
        del batch
        stacked = tree_map(lambda *parts: torch.stack(parts), *samples)
        return tree_map(lambda tensor: tensor.to(self.options.device), stacked)

    def start(self, depth: int) -> None:
        """Start the threads."""
        del depth
        self._pool = ThreadPoolExecutor(self.options.threads, f"sslfast-{self.source.modality}")
        self._work: deque[tuple[Planned, list[Future[Any]]]] = deque()
        self._bad: dict[int, str] = {}

    def submit(self, batch: Planned) -> None:
        """Hand its samples to the threads."""
        assert self._pool is not None
        rows = zip(batch.ids.tolist(), batch.places.tolist(), self.prepare(batch), strict=True)
        futures = [self._pool.submit(self.make, i, p, batch.epoch, extra) for i, p, extra in rows]
        self._work.append((batch, futures))

    def collect(self) -> Any:
        """Wait for the samples of the oldest batch, and join them."""
        batch, futures = self._work[0]
        samples = []
        for i, future in zip(batch.ids.tolist(), futures, strict=True):
            try:
                samples.append(future.result())
            except (BadSampleError, OSError) as error:  # a file that has gone, too
                self._bad[i] = str(error)
        if self._bad:
            raise BadSampleError(f"{len(self._bad)} samples of a batch cannot be read")
        self._work.popleft()
        return self.join(batch, samples)

    def stop(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._work.clear()
        self._pool = None

    def find_bad(self, batches: Sequence[Planned]) -> dict[int, str] | None:
        """Those of the oldest batch.

        What is bad in a later one may depend on its draws, and nothing may depend on how many
        batches were in work.
        """
        del batches
        bad, self._bad = self._bad, {}
        return bad or None
