"""The DALI loader: order and random draws from Philox, pixels from DALI, then the colours."""

import os

import torch
from torch import Tensor

from .check import check_file
from .pipeline import ViewPipeline
from .recipe import Recipe
from .sources import ImageDataset
from .steps import Options, Planned, StepLoader


class DaliLoader(StepLoader):
    """DALI as the executor: images, on the CPU or a GPU.

    DALI gives up on the first file that it cannot decode; then the files in work are decoded one by
    one to find the bad ones.
    """

    def __init__(self, dataset: ImageDataset, recipe: Recipe, options: Options) -> None:
        sizes = dataset.sizes
        if sizes is None:
            sizes = [(seen.height, seen.width) for seen in map(check_file, dataset.paths)]
        super().__init__(dataset, sizes, recipe, options)
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
        self._pipeline.submit([self._dataset.paths[i] for i in batch.ids], batch.draws)

    def _collect(self) -> list[Tensor]:
        assert self._pipeline is not None
        return self._pipeline.collect()

    def _stop(self) -> None:
        self._pipeline = None

    def _find_bad(self, batches: list[Planned]) -> dict[int, str]:
        candidates = torch.cat([batch.ids for batch in batches]).unique().tolist()
        bad = find_undecodable([self._dataset.paths[i] for i in candidates], self._device)
        return {candidates[i]: reason for i, reason in bad.items()}


def find_undecodable(paths: list[str], device: torch.device) -> dict[int, str]:
    """Decode files one by one, as the loader does; {position in paths: reason} of those that fail.

    Args:
        paths: image files.
        device: where the loader decodes.
    """
    bad: dict[int, str] = {}
    pipeline = None
    for i, path in enumerate(paths):
        try:
            if not os.path.isfile(path):
                bad[i] = "the file is gone"
                continue
            if pipeline is None:
                pipeline = ViewPipeline((), 1, device, depth=1)
            pipeline.submit([path], [])
            pipeline.collect()
        except RuntimeError as error:
            bad[i] = _reason(error)
            pipeline = None
    return bad


def _reason(error: RuntimeError) -> str:
    """The line of DALI's message that says what happened, after where it happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    return f"DALI: {lines[after]}" if after < len(lines) else "DALI could not decode it"
