"""DALI as the executor of images: geometry in its pipeline, then the colours."""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslfast._extras import MissingExtra
from sslfast.data.executors.drawing import Drawer, recolored
from sslfast.data.executors.executor import EXECUTORS, Executor, Options, Planned
from sslfast.data.executors.pillow import BadPixelsError, decode
from sslfast.data.executors.pipeline import ViewPipeline
from sslfast.data.sources.check import check_file
from sslfast.data.sources.header import pillow
from sslfast.data.sources.images import ImageDataset
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
        if not isinstance(source, ImageDataset):
            raise ValueError(f"DALI reads image files, and {source.manifest.given} has none")
        sizes, by_pillow = source.sizes, set(source.by_pillow)
        if sizes is None:
            seen = [check_file(path) for path in source.paths]
            sizes = [(one.height, one.width) for one in seen]
            by_pillow |= {
                path for path, one in zip(source.paths, seen, strict=True) if one.by_pillow
            }
        if by_pillow:
            pillow()  # or say at once that it is missing
        self._paths, self._by_pillow = source.paths, by_pillow
        self._drawer = Drawer(recipe.views, sizes, options.batch_size, options.seed)
        self._pipeline: ViewPipeline | None = None
        self._draws: deque[list[Draw]] = deque()  # of the batches in work

    def start(self, depth: int) -> None:
        """Build the pipeline."""
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
        draws = self._drawer.draws(batch)
        self._draws.append(draws)
        self._pipeline.submit([self._paths[i] for i in batch.ids], draws, self._by_pillow)

    def collect(self) -> tuple[Tensor, ...]:
        """The views of the oldest batch: float32 [B, 3, size, size] each."""
        assert self._pipeline is not None
        images = self._pipeline.collect()
        rows = zip(images, self.recipe.views, self._draws.popleft(), strict=True)
        return tuple(recolored(*row) for row in rows)

    def stop(self) -> None:
        """Free the pipeline."""
        if self._pipeline is not None:
            self._pipeline.close()
        self._pipeline = None
        self._draws.clear()
        self._drawer.forget()

    def find_bad(self, batches: Sequence[Planned]) -> dict[int, str] | None:
        """Those that neither DALI nor Pillow can decode."""
        candidates = torch.cat([batch.ids for batch in batches]).unique().tolist()
        paths = [self._paths[i] for i in candidates]
        bad, mended = find_undecodable(paths, self._by_pillow, self.options.device)
        self._by_pillow |= mended
        if not bad and not mended:
            return None
        return {candidates[i]: reason for i, reason in bad.items()}


EXECUTORS.add("image", DaliExecutor)


def find_undecodable(
    paths: list[str], by_pillow: set[str], device: torch.device
) -> tuple[dict[int, str], set[str]]:
    """Decode files one by one, as the loader does, to find those that fail.

    Args:
        paths: image files.
        by_pillow: those that Pillow decodes.
        device: where the loader decodes.

    Returns:
        bad: {position in paths: reason}.
        mended: those that DALI cannot decode and Pillow can.
    """
    bad: dict[int, str] = {}
    mended: set[str] = set()
    pipeline = None
    for i, path in enumerate(paths):
        reason = why_not_a_file(path)
        if reason is not None:
            bad[i] = reason
            continue
        if path not in by_pillow:
            if pipeline is None:
                pipeline = ViewPipeline((), 1, device, depth=1)
            try:
                pipeline.submit([path], [])
                pipeline.collect()
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
                logger.info("%s: Pillow decodes it, as DALI cannot (%s)", path, reason)
                mended.add(path)
    if pipeline is not None:
        pipeline.close()
    return bad, mended


def _reason(error: RuntimeError) -> str:
    """The line of DALI's message that says what happened, after where it happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    return f"DALI: {lines[after]}" if after < len(lines) else "DALI could not decode it"
