"""The device's own ceilings: a large matrix product, and a large copy.

    python -m benchmarks.peaks               prints them, and JSON with --out

Floors and shares of peak are taken from these, not from data sheets.
"""

import sys
from functools import partial

import torch

from benchmarks.harness.arguments import arguments
from benchmarks.harness.floors import copy_of, product_of
from benchmarks.harness.record import Record

PRODUCT, COPY = "matrix product", "copy"  # problems


def measure(record: Record) -> None:
    """Measure products in bfloat16 and float32, and a copy."""
    device, small = record.device, record.quick or record.device.type == "cpu"
    side, count = (512, 1 << 22) if small else (8192, 1 << 30)

    for dtype in (torch.bfloat16, torch.float32):
        run, flop = product_of(side, dtype, device)
        name = f"{PRODUCT}, {str(dtype).removeprefix('torch.')}"
        record.measure(name, partial(dict, torch=run), 1.0, flop=flop)

    moved = 8.0 * count
    record.measure(COPY, lambda: {"torch": copy_of(moved, device)}, 1.0, moved=moved)


def main() -> int:
    """Print and write."""
    record = Record("peaks", arguments(__doc__).parse_args())
    measure(record)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
