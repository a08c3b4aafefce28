"""The DALI loader: order and random draws from Philox, pixels from DALI, then the colours."""

import logging

import torch
from torch import Tensor

from sslfast._extras import MissingExtra
from sslfast.data.executors.pillow import BadPixelsError, decode
from sslfast.data.executors.pipeline import ViewPipeline
from sslfast.data.sources.check import check_file
from sslfast.data.sources.folder import ImageDataset
from sslfast.data.sources.header import pillow
from sslfast.data.sources.walk import why_not_a_file
from sslfast.data.steps import Options, Planned, StepLoader
from sslfast.data.views.recipes import Recipe

logger = logging.getLogger("sslfast")


class DaliLoader(StepLoader):
    """DALI as the executor: images, on the CPU or a GPU.

    DALI gives up on the first file that it cannot decode; then the files in work are decoded one by
    one to find it. If Pillow can decode it, Pillow does from then on; else the file is bad.
    """

    def __init__(self, dataset: ImageDataset, recipe: Recipe, options: Options) -> None:
        sizes, by_pillow = dataset.sizes, set(dataset.by_pillow)
        if sizes is None:
            seen = [check_file(path) for path in dataset.paths]
            sizes = [(one.height, one.width) for one in seen]
            by_pillow |= {
                path for path, one in zip(dataset.paths, seen, strict=True) if one.by_pillow
            }
        if by_pillow:
            pillow()  # or say at once that it is missing
        super().__init__(dataset, sizes, recipe, options)
        self._by_pillow = by_pillow
        self._pipeline: ViewPipeline | None = None

    def _start(self, depth: int) -> None:
        self._pipeline = ViewPipeline(
            self._recipe.views,
            self._order.batch_size,
            self._device,
            threads=self._threads,
            depth=depth,
        )

    def _submit(self, batch: Planned) -> None:
        assert self._pipeline is not None
        paths = [self._dataset.paths[i] for i in batch.ids]
        self._pipeline.submit(paths, batch.draws, self._by_pillow)

    def _collect(self) -> list[Tensor]:
        assert self._pipeline is not None
        return self._pipeline.collect()

    def _stop(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
        self._pipeline = None

    def _find_bad(self, batches: list[Planned]) -> dict[int, str] | None:
        candidates = torch.cat([batch.ids for batch in batches]).unique().tolist()
        paths = [self._dataset.paths[i] for i in candidates]
        bad, mended = find_undecodable(paths, self._by_pillow, self._device)
        self._by_pillow |= mended
        if not bad and not mended:
            return None
        return {candidates[i]: reason for i, reason in bad.items()}


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
