"""Timing, memory and reporting shared by all benchmarks.

Providers of the same work are interleaved, so that a disturbance hits all of them; inputs are
random and rotate, so that no run finds them in the cache. A result keeps its raw samples.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[[int], object]  # the argument chooses among the rotating inputs


@dataclass
class Row:
    """One provider's result on one problem."""

    benchmark: str
    problem: str
    provider: str
    seconds: float  # median
    flop: float | None = None  # of the best known algorithm: the floor
    bytes: float | None = None
    peak_bytes: int | None = None  # beside the inputs
    samples: list[float] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def interleave(
    runs: dict[str, Run], device: torch.device, seconds: float, least: int = 5, most: int = 200
) -> dict[str, list[float]]:
    """Time every run in turn, after two warm-up rounds, for about ``seconds`` altogether."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(2):
        for run in runs.values():
            run(turn)
    synchronize(device)
    begin = time.perf_counter()
    turn = 0
    while turn < least or (turn < most and time.perf_counter() - begin < seconds):
        # In turns from either end, since what runs before a provider weighs on it.
        for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            samples[name].append(time_once(runs[name], turn, device))
        turn += 1
    return samples


def time_once(run: Run, turn: int, device: torch.device) -> float:
    """Seconds of one call: by device events on a GPU, by the clock on a CPU."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run(turn)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    run(turn)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(run: Run, device: torch.device) -> int:
    """Bytes that one call takes at most beyond what was allocated before it."""
    run(0)  # libraries take their own buffers once
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(0)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed must not hide what is taken
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark (Linux)
    before = _status("VmRSS")
    run(0)
    return max(_status("VmHWM") - before, 0)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on: machine, versions, commit."""
    import sslfast

    def output(*command: str) -> str:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": output("git", "rev-parse", "HEAD"),
        "changed": bool(output("git", "status", "--porcelain")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sslfast": sslfast.__version__,
        "device": str(device),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
    }
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError as error:
        facts["triton"] = str(error)
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["capability"] = list(torch.cuda.get_device_capability(device))
        facts["cuda"] = torch.version.cuda
        facts["driver"] = output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
        facts["clocks"] = output(
            "nvidia-smi", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"
        )
    return facts


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def print_table(rows: Sequence[Row], baseline: str, floor: str | None = None) -> None:
    """Print each problem's providers: time, ratio to the baseline and the floor, peak memory."""
    for problem in dict.fromkeys(r.problem for r in rows):
        here = {r.provider: r for r in rows if r.problem == problem}
        print(f"\n{problem}")
        head = f"{'provider':28}{'median':>12}{'faster than ' + baseline:>26}"
        print(head + f"{'% of floor':>12}{'GFLOP/s':>10}{'peak extra':>14}")
        for name, row in here.items():
            ratio = f"{here[baseline].seconds / row.seconds:.2f}x" if baseline in here else "-"
            share = f"{100 * here[floor].seconds / row.seconds:.0f} %" if floor in here else "-"
            rate = f"{row.flop / row.seconds / 1e9:.0f}" if row.flop else "-"
            peak = f"{row.peak_bytes / 2**20:.1f} MiB" if row.peak_bytes is not None else "-"
            time_ = f"{row.seconds * 1e3:.3f} ms"
            print(f"{name:28}{time_:>12}{ratio:>26}{share:>12}{rate:>10}{peak:>14}")


def rows_of(
    benchmark: str,
    problem: str,
    runs: dict[str, Run],
    device: torch.device,
    seconds: float,
    flop: float | None = None,
    without_memory: Sequence[str] = (),
) -> list[Row]:
    """Measure peak memory of every run once, then time them interleaved."""
    peaks = {
        name: None if name in without_memory else peak_memory(run, device)
        for name, run in runs.items()
    }
    samples = interleave(runs, device, seconds)
    return [
        Row(
            benchmark,
            problem,
            name,
            statistics.median(samples[name]),
            flop=flop,
            peak_bytes=peaks[name],
            samples=samples[name],
        )
        for name in runs
    ]


def write(path: Path, rows: Sequence[Row], device: torch.device, **facts: Any) -> None:
    """Write rows with their environment as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(device), **facts, "rows": [asdict(r) for r in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwritten: {path}")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    parser.add_argument("--quick", action="store_true", help="small sizes, short runs")
    parser.add_argument("--seed", type=int, default=0)
    return parser
