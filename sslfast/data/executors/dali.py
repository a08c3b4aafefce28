"""DALI as the executor of images: geometry in its pipeline, then the colours."""

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from sslfast._extras import MissingExtra
from sslfast.data.executors.drawing import Drawer, recolored
from sslfast.data.executors.executor import (
    EXECUTORS,
    BadSampleError,
    Executor,
    Options,
    Planned,
)
from sslfast.data.executors.image_files import ImageFiles, OpenFiles
from sslfast.data.executors.pillow import BadPixelsError, decode
from sslfast.data.executors.pipeline import ViewPipeline
from sslfast.data.sources.header import pillow
from sslfast.data.sources.source import Source
from sslfast.data.sources.walk import why_not_a_file
from sslfast.data.views.draws import Draw

logger = logging.getLogger("sslfast")


class DaliExecutor(Executor):
    """Images, on the CPU or a GPU.

    DALI gives up on the first file that it cannot decode; then the files in work are decoded one by
    one to find it. If Pillow can decode it, Pillow does from then on; else the file is bad.
    """

    def __init__(self, source: Source, recipe: Any, options: Options) -> None:
        super().__init__(source, recipe, options)
        self._files = ImageFiles(source, options.threads)
        if self._files.by_pillow:
            pillow()  # or say at once that it is missing
        sizes = self._files.sizes or []
        self._drawer = Drawer(recipe.views, sizes, options.batch_size, options.seed)
        self._pipeline: ViewPipeline | None = None
        self._work: deque[tuple[OpenFiles, list[Draw]]] = deque()  # of the batches in work

    def start(self, depth: int) -> None:
        """Build the pipeline."""
        self._files.reserve(depth * self.options.batch_size)
        self._pool = ThreadPoolExecutor(self.options.threads, "sslfast-samples")
        self._pipeline = ViewPipeline(
            self.recipe.views,
            self.options.batch_size,
            self.options.device,
            threads=self.options.threads,
            depth=depth,
        )

    def submit(self, batch: Planned) -> None:
        """Feed a batch to the pipeline."""
        assert self._pipeline is not None
        ids = batch.ids.tolist()
        files, draws = self._files.open(ids, self._pool), self._drawer.draws(batch)
        self._work.append((files, draws))
        pairs = zip(ids, files.paths, strict=True)
        by_pillow = {path for i, path in pairs if i in self._files.by_pillow}
        self._pipeline.submit(files.paths, draws, by_pillow)

    def collect(self) -> tuple[Tensor, ...]:
        """The views of the oldest batch: float32 [B, 3, size, size] each."""
        assert self._pipeline is not None
        images = self._pipeline.collect()
        files, draws = self._work.popleft()
        files.close()
        rows = zip(images, self.recipe.views, draws, strict=True)
        return tuple(recolored(*row) for row in rows)

    def stop(self) -> None:
        """Free the pipeline."""
        if self._pipeline is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pipeline.close()
        self._pipeline = None
        for files, _ in self._work:
            files.close()
        self._work.clear()
        self._drawer.forget()

    def find_bad(self, batches: Sequence[Planned]) -> dict[int, str] | None:
        """Those that cannot be read, or that neither DALI nor Pillow can decode."""
        candidates = torch.cat([batch.ids for batch in batches]).unique().tolist()
        bad, mended = find_undecodable(self._files, candidates, self.options.device)
        self._files.by_pillow |= mended
        return bad if bad or mended else None


EXECUTORS.add("image", DaliExecutor)


def find_undecodable(
    files: ImageFiles, ids: list[int], device: torch.device
) -> tuple[dict[int, str], set[int]]:
    """Decode samples one by one, as the loader does, to find those that fail.

    Args:
        files: of all samples.
        ids: the samples to look at.
        device: where the loader decodes.

    Returns:
        bad: {sample: reason}.
        mended: those that DALI cannot decode and Pillow can.
    """
    bad: dict[int, str] = {}
    mended: set[int] = set()
    pipeline = None
    for i in ids:
        try:
            opened = files.open([i])
        except BadSampleError as error:
            bad[i] = str(error)
            continue
        (path,) = opened.paths
        reason = why_not_a_file(path)
        if reason is not None:
            bad[i] = reason
            continue
        if i not in files.by_pillow:
            if pipeline is None:
                pipeline = ViewPipeline((), 1, device, depth=1)
            try:
                pipeline.submit([path], [])
                pipeline.collect()
                opened.close()
                continue
            except RuntimeError as error:
                reason = _reason(error)
                pipeline.close()
                pipeline = None
        try:
            decode(path)
        except BadPixelsError as error:
            bad[i] = str(error)
        except MissingExtra:
            bad[i] = f"{reason}; Pillow, which may read it, is not installed"
        else:
            if reason is not None:
                name = files.name(i)
                logger.info("%s: Pillow decodes it, as DALI cannot (%s)", name, reason)
                mended.add(i)
        opened.close()
    if pipeline is not None:
        pipeline.close()
    return bad, mended


def _reason(error: RuntimeError) -> str:
    """The line of DALI's message that says what happened, after where it happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    return f"DALI: {lines[after]}" if after < len(lines) else "DALI could not decode it"
