"""A run in parts: each a command with a limit, all within a budget, nothing lost by a failure."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Between a run and its benchmarks (record.py), which are processes of their own.
RESTART = 75  # exit status of a benchmark: call again with --go-on
MOST_SECONDS = "SSLFAST_ATTEMPT_SECONDS"  # of any attempt, where the environment says so

RESERVE = 3.0  # seconds kept for writing the end
LEAST = 5.0  # seconds that a part needs to be worth starting
RESTARTS = 8  # of a benchmark whose providers crash or hang
POLL = 0.5
SHOWN, KEPT = 800, 400_000  # characters of a part's output on the screen, and in the journal
TIMED_OUT = 124


@dataclass(frozen=True)
class Part:
    """One step of a run.

    Attributes:
        name: how it is called.
        command: what to run.
        seconds: the most it may take.
        benchmark: whether it takes --out and --go-on, and writes results as it goes.
        environment: variables beside those of the run.
        attempt: the share of ``seconds`` that one attempt of a benchmark may take, so that
            something is left for those after one that hangs.
    """

    name: str
    command: Sequence[str]
    seconds: float
    benchmark: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    attempt: float = 0.5


@dataclass
class Outcome:
    """What became of a part."""

    name: str
    status: int | None  # None: not started
    seconds: float
    limit: float
    output: str  # the end of it
    restarts: int = 0

    def __str__(self) -> str:
        words = {0: "ok", None: "NOT RUN", TIMED_OUT: "OUT OF TIME"}
        return f"{self.name}: {words.get(self.status, 'FAILED')} ({self.seconds:.0f} s)"


class Run:
    """Runs parts one after the other, and keeps one file up to date with all of it.

    Args:
        file: the journal, whole at any time: written after every part, and whenever a benchmark
            has written something.
        scratch: folder for the parts' own files.
        facts: what the journal says beside parts and results.
        budget: seconds for all parts together.
        cwd: where commands run.
    """

    def __init__(
        self, file: Path, scratch: Path, facts: dict[str, Any], budget: float, cwd: Path
    ) -> None:
        self.file, self.scratch, self.facts, self.cwd = file, scratch, facts, cwd
        self.outcomes: list[Outcome] = []
        self.results: dict[str, Any] = {}
        self._deadline = time.monotonic() + budget
        for folder in (file.parent, scratch):
            folder.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds of the budget."""
        return self._deadline - time.monotonic() - RESERVE

    def do(self, part: Part) -> Outcome:
        """Run one part within its limit and the budget."""
        limit = min(part.seconds, self.left())
        if limit < LEAST:
            outcome = Outcome(part.name, None, 0.0, 0.0, "no time was left")
        else:
            print(f"\n== {part.name} (at most {limit:.0f} s): {' '.join(part.command)}", flush=True)
            outcome = self._run(part, limit)
            print(outcome.output[-SHOWN:], flush=True)
        print(f"== {outcome}; {max(self.left(), 0):.0f} s left", flush=True)
        self.outcomes.append(outcome)
        self.write()
        return outcome

    def _run(self, part: Part, limit: float) -> Outcome:
        begin, end = time.monotonic(), time.monotonic() + limit
        results = self.scratch / f"{part.name}.json"
        results.unlink(missing_ok=True)
        log = self.scratch / f"{part.name}.log"
        log.unlink(missing_ok=True)
        command, restarts = list(part.command), 0
        if part.benchmark:
            command += ["--out", str(results)]

        def collect() -> None:
            if part.benchmark and results.exists():
                self.results[part.name] = json.loads(results.read_text())
                self.write()

        while True:
            attempts = {MOST_SECONDS: str(max(LEAST, limit * part.attempt))}
            environment = attempts | dict(part.environment)
            status = run_command(command, end, log, environment, self.cwd, results, collect)
            collect()
            trying = (self.results.get(part.name) or {}).get("trying")
            again = status == RESTART or (status not in (0, TIMED_OUT) and trying)
            if not again or restarts == RESTARTS or end - time.monotonic() < LEAST:
                break
            restarts += 1
            print(f"== {part.name} starts again (status {status}, was trying {trying})", flush=True)
            if "--go-on" not in command:
                command.append("--go-on")
        seconds = time.monotonic() - begin
        output = log.read_text(errors="replace")[-KEPT:]
        return Outcome(part.name, status, seconds, limit, output, restarts)

    def note(self, name: str, status: int, output: str) -> None:
        """Keep something that was found out without a command."""
        print(f"\n== {name}: {output}", flush=True)
        self.outcomes.append(Outcome(name, status, 0.0, 0.0, output))
        self.write()

    def write(self) -> None:
        """Write the journal; a reader never sees half of it."""
        content = {
            **self.facts,
            "parts": [asdict(outcome) for outcome in self.outcomes],
            "results": self.results,
        }
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.file)

    def status(self) -> int:
        """0 if every part ran and passed."""
        return int(any(outcome.status != 0 for outcome in self.outcomes))


def run_command(
    command: Sequence[str],
    end: float,
    log: Path,
    environment: dict[str, str],
    cwd: Path,
    watched: Path,
    changed: Callable[[], None],
) -> int:
    """Run until it ends or ``end`` comes; its whole process group is killed then.

    Args:
        command: what to run.
        end: of time, as ``time.monotonic`` counts.
        log: takes its output, behind what is there.
        environment: variables beside this process's.
        cwd: where.
        watched: a file; ``changed`` is called after it was written.
        changed: see ``watched``.
    """
    seen = 0.0
    with log.open("ab") as stream:
        try:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **environment},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            stream.write(f"{error}\n".encode())
            return 127
        try:
            while True:
                try:
                    return child.wait(timeout=min(POLL, max(end - time.monotonic(), 0.01)))
                except subprocess.TimeoutExpired:
                    if time.monotonic() >= end:
                        stream.write(b"\n(stopped: its time was up)\n")
                        return TIMED_OUT
                if watched.exists() and watched.stat().st_mtime > seen:
                    seen = watched.stat().st_mtime
                    changed()
        finally:
            # Also what it left running: nothing may disturb the next part.
            if _group_lives(child.pid):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
