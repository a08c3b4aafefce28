"""The device's own ceilings: a large matrix product, and a large copy.

    python -m benchmarks.peaks               prints them, and JSON with --out

Floors and shares of peak are taken from these, not from data sheets.
"""

import sys
from functools import partial

import torch

from benchmarks import common
from benchmarks.record import Record

PRODUCT, COPY = "matrix product", "copy"


def product_run(device: torch.device, dtype: torch.dtype, side: int) -> tuple[common.Run, float]:
    """A square product on random data (zeros are multiplied faster), and its FLOP."""
    pairs = [torch.randn(2, side, side, device=device).to(dtype) for _ in range(2)]
    out = torch.empty(side, side, dtype=dtype, device=device)

    def run(turn: int) -> None:
        torch.mm(pairs[turn % 2][0], pairs[turn % 2][1], out=out)

    return run, 2.0 * side**3


def measure(record: Record) -> None:
    """All ceilings."""
    device, small = record.device, record.quick or record.device.type == "cpu"
    side, count = (512, 1 << 22) if small else (8192, 1 << 30)

    for dtype in (torch.bfloat16, torch.float32):
        run, flop = product_run(device, dtype, side)
        name = f"{PRODUCT}, {str(dtype).removeprefix('torch.')}"
        record.measure(name, partial(dict, torch=run), 1.0, flop=flop)

    def copy() -> dict[str, common.Run]:
        source = torch.randn(count, device=device)
        target = torch.empty_like(source)
        return {"torch": lambda turn: target.copy_(source)}

    record.measure(COPY, copy, 1.0, moved=8.0 * count)


def main() -> int:
    """Print and write."""
    record = Record("peaks", common.arguments(__doc__).parse_args())
    measure(record)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
