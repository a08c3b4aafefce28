"""Timing, memory and reporting shared by all benchmarks.

Providers of the same work are interleaved, so that a disturbance hits all of them; inputs are
random and rotate, so that no run finds them in the cache. A result keeps its raw samples.
"""

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import ROOT as ROOT
from benchmarks.environment import environment as environment
from sslfast.kernels.extension import extension

Run = Callable[[int], object]  # the argument chooses among the rotating inputs
HEAD_START = 1_000_000  # cycles of a GPU: about half a millisecond


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
    runs: Mapping[str, Run], device: torch.device, seconds: float, least: int = 5, most: int = 200
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
    """Seconds of one call: by device events on a GPU, by the clock on a CPU.

    The GPU idles for HEAD_START before, so that launches queue up as they do in a training step:
    what the host does in that time is not counted.
    """
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HEAD_START)
        begin.record()
        run(turn)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    run(turn)
    return time.perf_counter() - start


class Lazy:
    """A peer that is imported when it is first called: one that is missing fails alone."""

    def __init__(self, load: Callable[[], Callable[..., Any]]) -> None:
        self.load = load
        self.function: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        if self.function is None:
            self.function = self.load()
        return self.function(*args, **kwargs)


class Replayed:
    """The same work as a CUDA graph, captured when it is first called; always on inputs 0."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, turn: int) -> None:
        """Replay."""
        if self.graph is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # kernels compile, libraries take their buffers
                for _ in range(2):
                    self.run(0)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.run(0)
            self.graph = graph
        self.graph.replay()


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
    # What was freed must not hide what is taken.
    module = extension()
    if module is not None:
        module.release_buffers()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark (Linux)
    before = _status("VmRSS")
    run(0)
    return max(_status("VmHWM") - before, 0)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


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
    runs: Mapping[str, Run],
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
    parser.add_argument("--seconds", type=float, help="of timing for each problem")
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument("--only-memory", action="store_true", help="time nothing")
    memory.add_argument("--no-memory", action="store_true", help="no peaks; on a CPU half the time")
    parser.add_argument(
        "--go-on", action="store_true", help="keep what --out has; try nothing again that failed"
    )
    return parser
