"""The main kernels, each once, under a profiler: time, and how busy the units of the GPU were.

    python -m benchmarks.profiling --out results.json

Runs itself under ncu where that works, with the clocks left alone, and takes kernels and their
times from torch's profiler where it does not (--plain: at once).
"""

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import sslfast
from benchmarks import losses as loss_benchmark
from benchmarks import similarity_softmax as ntxent_benchmark
from benchmarks.ema import Size, vit_shapes
from benchmarks.harness.arguments import arguments
from benchmarks.harness.passes import forward_backward
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.rows import Row
from benchmarks.harness.timing import Run, synchronize
from benchmarks.masking import embedding, mask_and_gather, with_backends
from benchmarks.optim import adamw_runs
from sslfast.functional import ema_update_

NCU_SECONDS = 70
SHORT = ("NT-Xent, triton", "CLIP", "AdamW + EMA", "mask and gather")  # with --short
METRICS = {
    "gpu__time_duration.sum": "nanoseconds",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "multiprocessors %",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": "tensor instructions %",
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active": "exponentials %",
    "l1tex__throughput.avg.pct_of_peak_sustained_elapsed": "L1 %",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "L2 %",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps %",
    "launch__registers_per_thread": "registers",
}


def works(device: torch.device) -> dict[str, Callable[[], Run]]:
    """What is profiled, by name: makes inputs, returns a run."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    m, n, batch, width = (32768, 32768, 4096, 1440) if cuda else (256, 256, 8, 64)
    found: dict[str, Callable[[], Run]] = {}

    def ntxent(name: str) -> Run:
        size = ntxent_benchmark.Size(m, 128, 0.1, dtype)
        return ntxent_benchmark.runs(size, device)[name]

    def case(made: loss_benchmark.Case) -> Run:
        return forward_backward(made.providers[OURS], [made.inputs()])

    def ema() -> Run:
        size = Size("ViT", tuple(vit_shapes(width)))
        pairs = [[torch.randn(s, device=device) for s in size.shapes] for _ in range(2)]
        return lambda turn: ema_update_(pairs[0], pairs[1], 0.99)

    for name in ("triton", "cuda") if cuda else ("cpu",):
        found[f"NT-Xent, {name}"] = partial(ntxent, f"{OURS} {name}")
    found["CLIP"] = lambda: case(loss_benchmark.clip_case(n, 512, device, dtype))
    found["SigLIP"] = lambda: case(loss_benchmark.siglip_case(n, 512, device, dtype))
    found["linear cross-entropy"] = lambda: case(
        loss_benchmark.linear_case(n // 4, 512, n, device, dtype)
    )
    found["EMA"] = ema
    backend = f"{OURS} {'triton' if cuda else 'cpu'}"
    found["AdamW + EMA"] = lambda: adamw_runs(vit_shapes(width), device, True)[backend]
    for name, work in {
        "mask and gather": partial(mask_and_gather, device, batch),
        "visible patches": partial(embedding, device, min(batch, 256), True),
    }.items():
        found[name] = lambda work=work: with_backends(work(), device)[backend]
    return found


def once(name: str, device: torch.device) -> None:
    """Warm up, then run once where ncu looks."""
    run = works(device)[name]()
    for turn in range(2):
        run(turn)
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    run(0)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def by_torch(run: Run, device: torch.device) -> list[dict[str, Any]]:
    """Kernels of one call and their times, the longest first."""
    kinds = torch.profiler.ProfilerActivity
    cuda = device.type == "cuda"
    for turn in range(2):
        run(turn)
    synchronize(device)
    activities = [kinds.CUDA if cuda else kinds.CPU]
    # With acc_events torch 2.11 does not warn that it drops the events of earlier cycles.
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        run(0)
        synchronize(device)
    events = profile.key_averages()
    kernels: list[dict[str, Any]] = [
        {
            "kernel": e.key[:200],
            "calls": e.count,
            "nanoseconds": 1e3 * (e.self_device_time_total if cuda else e.self_cpu_time_total),
        }
        for e in events
    ]
    kernels.sort(key=lambda kernel: -kernel["nanoseconds"])
    return kernels[:20]


def parsed(text: str) -> Iterator[dict[str, Any]]:
    """Kernels from ncu's raw CSV: a line of names, one of units, one for each launch."""
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if begin is None:
        return
    for row in list(csv.DictReader(lines[begin:]))[1:]:
        kernel: dict[str, Any] = {"kernel": row["Kernel Name"][:200], "calls": 1}
        for metric, name in METRICS.items():
            value = (row.get(metric) or "").replace(",", "")
            kernel[name] = float(value) if value else None
        yield kernel


def by_ncu(tool: str, name: str) -> tuple[list[dict[str, Any]], str]:
    """Kernels of one call under ncu, and what it had to say."""
    command = [
        tool, "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw",
        "--print-units", "base", "--metrics", ",".join(METRICS), "--target-processes", "all",
        sys.executable, "-m", "benchmarks.profiling", "--once", name,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=".", capture_output=True, text=True, timeout=NCU_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return [], f"no result within {NCU_SECONDS} s"
    return list(parsed(done.stdout)), (done.stdout + done.stderr)[-2000:]


def measure(record: Record, tool: str | None, short: bool = False) -> None:
    """Everything, or what SHORT names; without ncu after its first failure."""
    for name, make in works(record.device).items():
        if record.over(name) or (short and name not in SHORT):
            continue
        with record.attempt(name, OURS, NCU_SECONDS):
            kernels: list[dict[str, Any]] = []
            if tool:
                kernels, said = by_ncu(tool, name)
                if not kernels:
                    print(f"ncu gives nothing, torch's profiler goes on without it: {said}")
                    record.facts["ncu"], tool = said, None
            if not kernels:
                kernels = by_torch(make(), record.device)
            sslfast.use_backend("auto")
            seconds = sum(kernel["nanoseconds"] or 0 for kernel in kernels) / 1e9
            extra = {"kernels": kernels, "profiler": "ncu" if tool else "torch"}
            record.add([Row("profile", name, OURS, seconds, extra=extra)])
            show(name, kernels)


def show(name: str, kernels: list[dict[str, Any]]) -> None:
    """Print the longest kernels of one work."""
    print(f"\n{name}")
    for kernel in sorted(kernels, key=lambda k: -(k["nanoseconds"] or 0))[:5]:
        more = {k: v for k, v in kernel.items() if k not in ("kernel", "nanoseconds", "calls")}
        print(f"  {(kernel['nanoseconds'] or 0) / 1e3:10.1f} us  {kernel['kernel'][:60]}  {more}")


def find_ncu() -> str | None:
    """Where it is."""
    return shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")


def main() -> int:
    """Profile, print and write."""
    parser: argparse.ArgumentParser = arguments(__doc__)
    parser.add_argument("--once", help="what ncu is to look at, and nothing else")
    parser.add_argument("--plain", action="store_true", help="torch's profiler, not ncu")
    parser.add_argument("--short", action="store_true", help=f"only {', '.join(SHORT)}")
    options = parser.parse_args()
    if options.once:
        once(options.once, torch.device("cuda"))
        return 0
    record = Record("profile", options)
    tool = None if options.plain or record.device.type == "cpu" else find_ncu()
    measure(record, tool, options.short)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
