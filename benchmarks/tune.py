"""Measure tiles of the Triton kernels on this GPU, and keep the best for all later runs.

    python -m benchmarks.tune --short                    a dozen tiles, in about 45 seconds
    python -m benchmarks.tune [--dims 64,128,256,1024] [--arithmetic 16-bit] [--kinds ...]

Writes tiles-<GPU>.json to the cache folder ($SSLFAST_CACHE, else $XDG_CACHE_HOME/sslfast, else
~/.cache/sslfast), where the Triton backends find it; removing the file brings the static tables
back. Results depend on tiles in their last bits: tune before a run, not during one. Everything is
compiled first, in parallel; then each tile takes about half a second, and the file is written anew
after each, so that nothing is lost where the run is cut off.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.errors import OutOfResources

from benchmarks.harness.compiling import compile_all
from benchmarks.harness.launches import Launch, distinct, recording
from benchmarks.harness.timing import Run, interleave
from sslfast.kernels import tuning
from sslfast.kernels.gpu import capability, unavailable
from sslfast.kernels.products import in_blocks
from sslfast.kernels.sigmoid_contrast import triton as contrast
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.similarity_softmax import triton as softmax
from sslfast.kernels.tiles import ARITHMETICS, KINDS, Table, Tile, static_tile

ROWS = 16384
LEAST_GAIN = 0.03  # below that a timing may be noise: the table's tile stays
RESERVED = 1024  # bytes of shared memory that every program takes beside its own
DTYPE = {"16-bit": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}

# What reading the compiled kernels has left open, for compute capability 9.0: NT-Xent first.
SHORT: dict[tuple[str, int], tuple[Tile, ...]] = {
    ("gradient", 128): (Tile(64, 128, 128, 128, 4, 2), Tile(64, 64, 128, 128, 4, 2)),
    ("statistics", 128): (Tile(256, 64, 128, 0, 8, 3),),
    ("statistics", 256): (Tile(128, 32, 256, 0, 8, 2),),
    ("gradient", 256): (Tile(128, 32, 256, 256, 8, 2),),
    ("block", 512): (Tile(128, 128, 64, 0, 8, 3), Tile(128, 256, 64, 0, 8, 3)),
}


@dataclass(frozen=True)
class Trial:
    """A tile to be measured, for a kind of kernel, an arithmetic and D."""

    kind: str
    arithmetic: str
    dim: int
    tile: Tile

    def __str__(self) -> str:
        return f"{self.kind} {self.arithmetic} D={self.dim} {tuple(self.tile)}"


Seconds = Callable[[Trial], float | None]  # None: this tile does not fit


def candidates(kind: str, dim: int, static: Tile) -> Iterator[Tile]:
    """Tiles worth trying beside the table's own, which comes first."""
    yield static
    found = {static._replace(programs=1)}
    enough = max(triton.next_power_of_2(dim), 16)
    depths = {static.depth, min(enough, 512)}
    for rows, columns, warps in (
        *((128, 128, 8), (128, 64, 8), (128, 32, 8), (64, 64, 8)),
        *((256, 64, 8), (64, 128, 4), (64, 64, 4)),  # fewer loads; two programs at once
    ):
        for stages in (2, 3):
            if kind in ("statistics", "block"):
                shapes = [(depth, 0) for depth in sorted(depths)]
            else:
                outputs = sorted({min(enough, n) for n in (128, 256)})
                # The columns that make the logits also make the gradient, wherever they fit.
                shapes = [(n if dim <= n else min(static.depth, n), n) for n in outputs]
            for depth, output in shapes:
                tile = Tile(rows, columns, depth, output, warps, stages)
                if tile not in found:
                    found.add(tile)
                    yield tile


def is_launched(kind: str, arithmetic: str, dim: int) -> bool:
    """Whether there are such kernels: many features go by blocks, in float32 by cuBLAS's."""
    return in_blocks(dim) and arithmetic == "16-bit" if kind == "block" else not in_blocks(dim)


def trials(
    architecture: int, kinds: Sequence[str], arithmetics: Sequence[str], dims: Sequence[int]
) -> list[Trial]:
    """All candidates, the tables' own first for each kind, arithmetic and D."""
    return [
        Trial(kind, arithmetic, dim, tile)
        for kind in kinds
        for arithmetic in arithmetics
        for dim in dims
        if is_launched(kind, arithmetic, dim)
        for tile in candidates(kind, dim, static_tile(kind, dim, arithmetic, architecture))
    ]


def short_trials(architecture: int) -> list[Trial]:
    """Those of SHORT, each after the table's own."""
    found = []
    for (kind, dim), tiles in SHORT.items():
        static = static_tile(kind, dim, "16-bit", architecture)
        others = [t for t in tiles if t != static._replace(programs=1)]
        found += [Trial(kind, "16-bit", dim, tile) for tile in (static, *others) if others]
    return found


def best(found: dict[Tile, float], static: Tile) -> Tile:
    """The fastest, or the table's own where no other gains enough."""
    if not found:
        return static
    tile = min(found, key=lambda t: found[t])
    gains = static not in found or found[tile] < (1 - LEAST_GAIN) * found[static]
    return tile if gains else static


def tune(
    seconds: Seconds,
    architecture: int,
    plan: Sequence[Trial],
    save: Callable[[dict[tuple[str, str], Table]], object],
) -> dict[tuple[str, str], Table]:
    """Tables of the fastest tiles, saved after every trial.

    A table has an entry for every D of the plan, the last of which stands for every larger D too;
    until something is measured, that is the table's own.
    """
    tables: dict[tuple[str, str], Table] = {}
    timed: dict[tuple[str, str], dict[int, dict[Tile, float]]] = {}
    for trial in plan:
        of_kind = timed.setdefault((trial.kind, trial.arithmetic), {})
        of_kind.setdefault(trial.dim, {})
    for trial in plan:
        of_kind = timed[trial.kind, trial.arithmetic]
        found = seconds(trial)
        if found is not None:
            of_kind[trial.dim][trial.tile] = found
        dims = sorted(of_kind)
        tables[trial.kind, trial.arithmetic] = tuple(
            (
                0 if dim == dims[-1] else dim,
                best(of_kind[dim], static_tile(trial.kind, dim, trial.arithmetic, architecture)),
            )
            for dim in dims
        )
        save(tables)
    return tables


def runs(kind: str, arithmetic: str, dim: int, device: torch.device) -> Run:
    """A launch at ROWS x ROWS."""
    torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
    torch.manual_seed(0)
    x, y = (torch.randn(ROWS, dim, device=device, dtype=DTYPE[arithmetic]) for _ in range(2))
    scale, pairing = torch.full((), 0.1, device=device), Pairing(ROWS)
    weight = torch.full((ROWS,), 1 / ROWS, device=device)
    lse, _, _ = softmax.forward(x, y, scale, pairing)

    def run(turn: int) -> tuple[Tensor, ...] | Tensor:
        if kind == "statistics":
            return softmax.forward(x, y, scale, pairing)
        if kind == "block":
            softmax.forward(x, y, scale, pairing, True)
            sides = (lse, weight), (lse, weight)
            return softmax.backward_both(x, y, scale, pairing, *sides, weight)
        if kind == "gradient":
            return softmax.backward_parts(x, y, scale, pairing, (lse, weight), (lse, weight))
        return contrast.gradients(x, y, scale, -scale, pairing, weight, False)

    return run


def launches(plan: Sequence[Trial], architecture: int) -> list[tuple[Trial, list[Launch]]]:
    """What every trial would launch; needs no GPU."""
    found = []
    with recording(architecture) as since:
        for t in plan:
            with tuning.trying(t.kind, t.arithmetic, t.tile):
                runs(t.kind, t.arithmetic, t.dim, torch.device("meta"))(0)
            found.append((t, since(str(t))))
    return found


def limits() -> tuple[int, int, int]:
    """Registers, bytes of shared memory and threads of a multiprocessor of this GPU."""
    device = torch.cuda.current_device()
    gpu = torch.cuda.get_device_properties(device)
    most = driver.active.utils.get_device_properties(device)["max_shared_mem"]  # of one program
    return gpu.regs_per_multiprocessor, most + RESERVED, gpu.max_threads_per_multi_processor


def programs(kernel: CompiledKernel) -> int:
    """How many programs of a compiled kernel a multiprocessor of this GPU has room for."""
    _ = kernel.run  # loads it, which says how many registers it takes
    registers, shared, most = limits()
    threads = 32 * kernel.metadata.num_warps
    room = min(
        registers // (triton.cdiv(kernel.n_regs, 8) * 8 * threads),
        shared // (kernel.metadata.shared + RESERVED),
        most // threads,
    )
    return max(room, 1)


def measure(trial: Trial, seconds: float) -> float | None:
    """Median seconds of a launch at ROWS x ROWS on the current GPU."""
    device = torch.device("cuda")
    with tuning.trying(trial.kind, trial.arithmetic, trial.tile):
        try:
            run = runs(trial.kind, trial.arithmetic, trial.dim, device)
            samples = interleave({"tile": run}, device, seconds)["tile"]
        except OutOfResources as error:
            print(f"{trial}: {error}", flush=True)
            return None
    median = statistics.median(samples)
    print(f"{trial}: {median * 1e3:.3f} ms", flush=True)
    return median


def fitting(
    launched: Sequence[tuple[Trial, list[Launch]]], architecture: int, failed: Mapping[str, str]
) -> Iterator[Trial]:
    """Trials that compiled and that this GPU has room for: once, or for several programs."""
    for trial, some in launched:
        if any(launch.name in failed for launch in some):
            continue
        kernel = [launch for launch in some if "OPERAND" in launch.constants][-1].compiled()
        try:
            room = programs(kernel)
        except OutOfResources as error:
            print(f"{trial}: {error}", flush=True)
            continue
        own = static_tile(trial.kind, trial.dim, trial.arithmetic, architecture)
        tile = trial.tile if trial.tile == own else trial.tile._replace(programs=room)
        yield replace(trial, tile=tile)


def main() -> None:
    """Compile, measure and write."""
    begin = time.monotonic()
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="the dozen that matter most")
    parser.add_argument("--dims", default="64,128,256,1024", help="the last is for larger ones too")
    parser.add_argument("--arithmetic", nargs="+", choices=ARITHMETICS, default=["16-bit"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=0.3, help="for each tile")
    options = parser.parse_args()
    reason = unavailable()
    if reason is not None or not torch.cuda.is_available():
        raise SystemExit(f"nothing to tune: the Triton backend {reason or 'runs on no GPU here'}")
    gpu, architecture = tuning.gpu_name(None), capability(torch.device("cuda"))
    if options.short:
        plan = short_trials(architecture)
    else:
        dims = [int(d) for d in options.dims.split(",")]
        plan = trials(architecture, options.kinds, options.arithmetic, dims)
    launched = launches(plan, architecture)
    # Only compilers run in processes of their own: this one may use the GPU already.
    outcome = compile_all(distinct([launch for _, some in launched for launch in some]))
    spent = time.monotonic() - begin
    print(f"{len(plan)} tiles, {outcome.compiled} kernels compiled, {spent:.0f} s", flush=True)
    plan = list(fitting(launched, architecture, outcome.failed))
    known = dict(tuning.measured(gpu))
    tune(
        partial(measure, seconds=options.seconds),
        architecture,
        plan,
        lambda tables: tuning.write(gpu, known | tables),
    )
    print(f"written: {tuning.file_for(gpu)}, {time.monotonic() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
