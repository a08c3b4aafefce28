"""A benchmark's results: on disk after every problem, whatever becomes of the next.

A kernel that has never run may raise, hang, or spoil the process's CUDA context. Every provider is
therefore tried alone before it is timed. What raises is noted and left out; what hangs or spoils
the context ends the process, and the same command with --go-on takes up where it stopped.
"""

import argparse
import faulthandler
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.environment import CLOCKS, environment, nvidia_smi
from benchmarks.harness.memory import Peaks, measured_apart, peak_memory
from benchmarks.harness.parts import MOST_SECONDS, RESTART
from benchmarks.harness.rows import Row, print_table
from benchmarks.harness.timing import Run, interleave, synchronize

# Of one provider's first calls, compilation included; nothing hangs on a CPU.
ATTEMPT_SECONDS = {"cuda": 100.0, "cpu": 600.0}
OURS = "sslfast"  # in the name of every provider whose failure fails the benchmark
STDERR = 2  # the process's own, whatever a test has put in its place
SET_UP, TIMING = "set-up of sslfast and others", "timing of sslfast and others"


@dataclass(frozen=True)
class Failure:
    """A provider that gave no result."""

    problem: str
    provider: str
    error: str

    @property
    def ours(self) -> bool:
        """Whether it is this package's own."""
        return OURS in self.provider


class Record:
    """Takes the options of ``arguments``; sets seed and threads, and measures.

    Attributes:
        device: to run on.
        seed: of the inputs.
        quick: whether sizes and times are to be small.
        only_memory: nothing is timed, and ``measure`` returns no rows.
    """

    def __init__(self, benchmark: str, options: argparse.Namespace, **facts: Any) -> None:
        self.benchmark = benchmark
        self.device = torch.device(options.device)
        self.seed: int = options.seed
        self.quick: bool = options.quick
        self.only_memory: bool = options.only_memory
        self._memory: bool = not options.no_memory
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self.facts = facts
        self._path: Path | None = options.out
        self._seconds: float | None = options.seconds
        self._trying: dict[str, str] | None = None
        self._apart: Peaks | None = None
        torch.manual_seed(self.seed)
        torch.set_num_threads(options.threads or torch.get_num_threads())
        if options.go_on and self._path is not None and self._path.exists():
            self._take_up(json.loads(self._path.read_text()))
        self._environment = environment(self.device)
        self.save()

    def measure(
        self,
        problem: str,
        make: Callable[[], dict[str, Run]],
        seconds: float,
        *,
        flop: float | None = None,
        moved: float | None = None,
        without_memory: Sequence[str] = (),
        baseline: str | None = None,
        floor: str | None = None,
    ) -> list[Row]:
        """Try every provider and take its peak memory, then time all interleaved.

        Args:
            problem: its name, once a benchmark.
            make: builds the inputs and the providers; not called for a problem already done.
            seconds: of timing, where --seconds does not say.
            flop: of the best known algorithm.
            moved: bytes that must move.
            without_memory: providers whose memory says nothing.
            baseline: the provider that others are compared with; the first by default.
            floor: the provider that bounds them.
        """
        done = [row for row in self.rows if row.problem == problem]
        failed = {f.provider for f in self.failures if f.problem == problem}
        if done or failed & {SET_UP, TIMING}:
            return done
        found: list[Row] = []
        with self.attempt(problem, SET_UP):
            runs = {name: run for name, run in make().items() if name not in failed}
            for name, peak in self._peaks(problem, runs, without_memory).items():
                found.append(Row(self.benchmark, problem, name, 0.0, flop, moved, peak_bytes=peak))
        if self.only_memory:
            self.add(found)
        if not found or self.only_memory:
            return []
        limit = self._seconds or seconds
        with self.attempt(problem, TIMING, limit):
            chosen = {row.provider: runs[row.provider] for row in found}
            for name, samples in interleave(chosen, self.device, limit).items():
                row = next(row for row in found if row.provider == name)
                row.samples, row.seconds = samples, statistics.median(samples)
            print_table(found, baseline or found[0].provider, floor)
            self.add(found)
        return found

    def _peaks(
        self, problem: str, runs: dict[str, Run], without_memory: Sequence[str]
    ) -> dict[str, int | None]:
        """Peak memory of every provider that works; None where it says nothing."""
        peaks: dict[str, int | None] = {}
        apart = self.device.type == "cpu" and not self.only_memory
        if self._memory and apart and self._apart is None:
            self._apart = measured_apart()
        for name, run in runs.items():
            with self.attempt(problem, name):
                peak: int | None = None
                if self._memory and self._apart is None:
                    peak = peak_memory(run, self.device)
                else:
                    run(0)
                    peak = (self._apart or {}).get((problem, name))
                synchronize(self.device)
                peaks[name] = None if name in without_memory else peak
        return peaks

    def over(self, problem: str, provider: str | None = None) -> bool:
        """Whether a problem, or one provider's, has been measured or has failed before."""
        before = (*self.rows, *self.failures)
        return any(x.problem == problem and provider in (None, x.provider) for x in before)

    @contextmanager
    def attempt(self, problem: str, provider: str, seconds: float = 0.0) -> Iterator[None]:
        """What raises inside is a failure of ``provider``; what hangs ends the process.

        Args:
            problem: what is measured.
            provider: who is tried.
            seconds: that it is known to take, beside what any attempt may.
        """
        above = self._trying
        self._trying = {"problem": problem, "provider": provider}
        self.save()
        # The way out of a kernel that never ends: no handler of Python's would run.
        seconds += ATTEMPT_SECONDS[self.device.type]
        # In a part of a run, something must be left for what comes after it.
        seconds = min(seconds, float(os.environ.get(MOST_SECONDS, "inf")))
        faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)
        try:
            yield
        except Exception as error:  # any: it is a result, printed, written, and in the exit status
            self._fail(problem, provider, f"{type(error).__name__}: {error}")
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._trying = above
        self._check_context()
        self.save()

    def _check_context(self) -> None:
        """End the process if its CUDA context takes no more work."""
        try:
            synchronize(self.device)
        except RuntimeError as error:
            print(f"the CUDA context is lost ({error}): the benchmark starts again", flush=True)
            self._trying = None  # its failure is written down
            self.save()
            sys.stdout.flush()
            os._exit(RESTART)  # without the destructors, which would raise once more
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fail(self, problem: str, provider: str, error: str) -> None:
        self.failures.append(Failure(problem, provider, error[:4000]))
        print(f"{problem}: {provider} FAILED: {error[:1000]}", flush=True)

    def add(self, rows: Sequence[Row]) -> None:
        """Keep rows of a problem, and write."""
        self.rows += rows
        self.save()

    def save(self) -> None:
        """Write everything so far; a reader never sees half a file."""
        if self._path is None:
            return
        content = {
            "environment": self._environment,
            "seed": self.seed,
            **self.facts,
            "rows": [asdict(row) for row in self.rows],
            "failures": [asdict(failure) for failure in self.failures],
            "trying": self._trying,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self._path)

    def _take_up(self, content: dict[str, Any]) -> None:
        self.rows = [Row(**row) for row in content["rows"]]
        self.failures = [Failure(**failure) for failure in content["failures"]]
        if content["trying"]:
            self._fail(**content["trying"], error="no result: it crashed, or took too long")

    def finish(self) -> int:
        """Write, say what failed, and return the exit status: 1 if something of ours did."""
        if self.device.type == "cuda":
            self._environment["clocks after"] = nvidia_smi(CLOCKS)
        self.save()
        for failure in self.failures:
            print(f"FAILED {failure.problem}: {failure.provider}: {failure.error.splitlines()[0]}")
        if self._path is not None:
            print(f"\nwritten: {self._path}")
        return int(any(failure.ours for failure in self.failures))
