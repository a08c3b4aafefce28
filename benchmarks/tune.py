"""Measure tiles of the Triton kernels on this GPU, and keep the best for all later runs.

    python -m benchmarks.tune [--dims 64,128,256,1024] [--arithmetic 16-bit] [--kinds ...]

Writes tiles-<GPU>.json to the cache folder ($SSLFAST_CACHE, else $XDG_CACHE_HOME/sslfast, else
~/.cache/sslfast), where the Triton backends find it; removing the file brings the static tables
back. Results depend on tiles in their last bits: tune before a run, not during one. Compiles about
a dozen kernels for each kind and D, some seconds each.
"""

import argparse
import logging
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from benchmarks import common
from sslfast.kernels import _tuning
from sslfast.kernels._tiles import ARITHMETICS, KINDS, Table, Tile, static_tile
from sslfast.kernels._triton import capability, unavailable
from sslfast.kernels.sigmoid_contrast import triton as contrast
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.similarity_softmax import triton as softmax

ROWS = 16384
LEAST_GAIN = 0.03  # below that a timing may be noise: the table's tile stays
DTYPE = {"16-bit": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}

Seconds = Callable[[str, str, int, Tile], float | None]  # None: this tile does not fit


def candidates(kind: str, dim: int, static: Tile) -> Iterator[Tile]:
    """Tiles worth trying beside the table's own, which comes first."""
    yield static
    enough = triton.next_power_of_2(dim)
    outputs = {static.output} if kind == "statistics" else {min(enough, n) for n in (128, 256)}
    for rows, columns in ((128, 128), (128, 64), (128, 32), (64, 64)):
        for stages in (2, 3):
            for output in sorted(outputs):
                depth = static.depth if kind == "statistics" else min(static.depth, output)
                depth = output if kind != "statistics" and dim <= output else depth
                tile = Tile(rows, columns, depth, output, 8, stages)
                if tile != static:
                    yield tile


def best(found: dict[Tile, float], static: Tile) -> Tile:
    """The fastest, or the table's own where no other gains enough."""
    tile = min(found, key=lambda t: found[t])
    gains = static not in found or found[tile] < (1 - LEAST_GAIN) * found[static]
    return tile if gains else static


def tune(
    seconds: Seconds,
    architecture: int,
    kinds: Sequence[str],
    arithmetics: Sequence[str],
    dims: Sequence[int],
) -> dict[tuple[str, str], Table]:
    """Tables of the fastest tiles; the last of ``dims`` stands for every larger D."""
    tables: dict[tuple[str, str], Table] = {}
    for kind in kinds:
        for arithmetic in arithmetics:
            entries = []
            for dim in dims:
                static = static_tile(kind, dim, arithmetic, architecture)
                timed = {
                    t: seconds(kind, arithmetic, dim, t) for t in candidates(kind, dim, static)
                }
                found = {t: s for t, s in timed.items() if s is not None}
                tile = best(found, static) if found else static
                entries.append((0 if dim == dims[-1] else dim, tile))
            tables[kind, arithmetic] = tuple(entries)
    return tables


def measure(kind: str, arithmetic: str, dim: int, tile: Tile) -> float | None:
    """Median seconds of a launch at ROWS x ROWS on the current GPU."""
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    x, y = (
        torch.randn(ROWS, dim, device=device, generator=generator, dtype=DTYPE[arithmetic])
        for _ in range(2)
    )
    scale, pairing = torch.tensor(0.1, device=device), Pairing(ROWS)
    weight = torch.full((ROWS,), 1 / ROWS, device=device)
    lse, _, _ = softmax.forward(x, y, scale, pairing)

    def run(turn: int) -> tuple[Tensor, ...] | Tensor:
        if kind == "statistics":
            return softmax.forward(x, y, scale, pairing)
        if kind == "gradient":
            return softmax.backward(x, y, scale, pairing, (lse, weight), (lse, weight))
        return contrast.gradients(x, y, scale, -scale, pairing, weight, False)

    torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
    with _tuning.trying(kind, arithmetic, tile):
        try:
            samples = common.interleave({"tile": run}, device, seconds=0.3)["tile"]
        except OutOfResources as error:
            print(f"{kind} {arithmetic} D={dim} {tile}: {error}")
            return None
    median = statistics.median(samples)
    print(f"{kind} {arithmetic} D={dim} {tile}: {median * 1e3:.3f} ms", flush=True)
    return median


def main() -> None:
    """Tune and write."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", default="64,128,256,1024", help="the last is for larger ones too")
    parser.add_argument("--arithmetic", nargs="+", choices=ARITHMETICS, default=["16-bit"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    reason = unavailable()
    if reason is not None or not torch.cuda.is_available():
        raise SystemExit(f"nothing to tune: the Triton backend {reason or 'runs on no GPU here'}")
    dims = [int(d) for d in options.dims.split(",")]
    architecture = capability(torch.device("cuda"))
    tables = tune(measure, architecture, options.kinds, options.arithmetic, dims)
    print(f"written: {_tuning.write(_tuning.gpu_name(None), tables)}")


if __name__ == "__main__":
    main()
