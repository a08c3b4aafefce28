"""Crops of two sizes through a ViT-S: in one pass, in one for each size, in one for each crop.

    python -m benchmarks.packed_crops --out benchmarks/results/packed-crops-cpu.json

Forward and backward in training mode, 2 crops of 224 and 8 of 96 pixels of every image. Aimed at:
1.2 times as fast as two passes.

Predicted before the first measurement, for 2 images in float32 on two cores with 180 GFLOP/s and
15 GB/s; 4 x 197 + 16 x 37 = 1,380 tokens:

    all         products 3 x 2 x 21.3 M x 1,380 = 176 GFLOP, attention 12: 1.04 s; passes over
                activations 0.3 s
    two passes  weights of 85 MB are read twice more and their gradients added, 0.5 GB, 34 ms; 2,000
                more operations of 5 us, 10 ms: 1.03 times as long as one pass
    ten passes  weights and gradients nine times, 0.3 s, products of 74 and 394 rows at 0.9 of the
                rate: 1.3 times as long as one pass
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.timing import Run
from sslfast import models

TWO, TEN, PACKED = "a pass a size", "a pass a crop", f"{OURS}, one pass"
TARGET = 1.2  # times as fast as a pass for each size
CROPS = {224: 2, 96: 8}  # pixels: crops of an image


def runs(name: str, batch: int, crops: dict[int, int], device: torch.device) -> dict[str, Run]:
    """Everything that is timed."""
    encoder = models.create(name, dynamic_img_size=True).to(device).train()
    views = [
        torch.randn(batch, 3, side, side, device=device)
        for side, count in crops.items()
        for _ in range(count)
    ]
    sizes = [torch.cat([v for v in views if v.shape[-1] == side]) for side in crops]

    def step(encode: Callable[[], list[Tensor]], turn: int) -> None:
        torch.stack([features.square().mean() for features in encode()]).sum().backward()
        encoder.zero_grad(set_to_none=True)

    return {
        TWO: partial(step, lambda: [encoder(x) for x in sizes]),
        TEN: partial(step, lambda: [encoder(x) for x in views]),
        PACKED: partial(step, lambda: encoder.forward_crops(views)),
    }


def main() -> int:
    """Print the tables and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", help="images a step")
    options = parser.parse_args()
    record = Record("packed_crops", options)
    usual = [64] if record.device.type == "cuda" else [2, 4]
    name, crops = ("vit_micro", {32: 2, 16: 8}) if record.quick else ("vit_small", CROPS)
    for batch in options.batch or usual:
        rows = record.measure(
            f"{name}, {batch} images, {' + '.join(f'{n} x {side}' for side, n in crops.items())}",
            partial(runs, name, batch, crops, record.device),
            5.0 if record.quick else 60.0,
        )
        seconds = {row.provider: row.seconds for row in rows}
        if {TWO, PACKED} <= set(seconds):
            ratio = seconds[TWO] / seconds[PACKED]
            print(f"{ratio:.2f} times as fast as a pass for each size (target: {TARGET})")
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
