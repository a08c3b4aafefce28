"""Draws the masks of docs/guide/masking.md: one picture a sampler, eight samples each.

    python -m benchmarks.mask_pictures [--out docs/images]

Light: visible. Dark: hidden. The multi-block picture has the context light, what neither it
nor a target holds dark, and the targets in colours.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness.environment import ROOT
from sslfast.masking import (
    block_mask,
    image_ratio_mask,
    multiblock_mask,
    random_mask,
    span_mask,
    tube_mask,
)

SAMPLES, SIDE, CELL, GAP = 8, 14, 7, 10
VISIBLE, HIDDEN, PAGE = (222, 226, 230), (52, 58, 64), (255, 255, 255)
TARGETS = ((230, 119, 0), (25, 113, 194), (47, 158, 68), (156, 54, 181))


def colored(mask: Tensor) -> Tensor:
    """Colours uint8 [..., 3] of a mask."""
    return torch.where(mask[..., None], torch.tensor(HIDDEN), torch.tensor(VISIBLE)).byte()


def sheet(tiles: Tensor) -> Image.Image:
    """A row of tiles uint8 [N, H, W, 3], every cell enlarged, with a gap between them."""
    large = tiles.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    n, height, width, _ = large.shape
    page = torch.tensor(PAGE, dtype=torch.uint8).repeat(height, n * (width + GAP) - GAP, 1)
    for i, tile in enumerate(large):
        page[:, i * (width + GAP) : i * (width + GAP) + width] = tile
    return Image.fromarray(page.numpy())


def multiblock() -> Tensor:
    """Contexts and targets of I-JEPA in colours."""
    drawn = multiblock_mask(SAMPLES, (SIDE, SIDE), seed=0, step=3)
    cells = torch.tensor(HIDDEN, dtype=torch.uint8).repeat(SAMPLES, SIDE * SIDE, 1)
    for sample in range(SAMPLES):
        cells[sample, drawn.context[sample]] = torch.tensor(VISIBLE, dtype=torch.uint8)
        for target, color in zip(drawn.targets[sample], TARGETS, strict=True):
            cells[sample, target] = torch.tensor(color, dtype=torch.uint8)
    return cells.view(SAMPLES, SIDE, SIDE, 3)


def pictures() -> dict[str, Image.Image]:
    """Every picture by the name of its sampler."""
    grid = (SIDE, SIDE)
    square = (SAMPLES, SIDE, SIDE)
    tubes = tube_mask(1, SAMPLES, SIDE * SIDE, seed=0).mask.view(square)
    spans = span_mask(24, 120, seed=0)[None]
    return {
        "random_mask": sheet(colored(random_mask(SAMPLES, SIDE * SIDE, seed=0).mask.view(square))),
        "block_mask": sheet(colored(block_mask(SAMPLES, grid, seed=0).mask.view(square))),
        "image_ratio_mask": sheet(colored(image_ratio_mask(SAMPLES, grid, seed=0).view(square))),
        "multiblock_mask": sheet(multiblock()),
        "tube_mask": sheet(colored(tubes)),
        "span_mask": sheet(colored(spans)),
    }


def main() -> None:
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        picture.quantize(16).save(folder / f"{name}.png", optimize=True)
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
