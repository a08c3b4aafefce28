"""Timing, the same for all benchmarks.

Providers of the same work are interleaved, so that a disturbance hits all of them; inputs are
random and rotate, so that no run finds them in the cache.
"""

import time
from collections.abc import Callable, Mapping

import torch

Run = Callable[[int], object]  # the argument chooses among the rotating inputs
HEAD_START = 1_000_000  # cycles of a GPU: about half a millisecond


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


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Replayed:
    """The same work as a CUDA graph, captured when it is first called; always on inputs 0."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, turn: int) -> None:
        """Replay the graph; capture it first if there is none."""
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
