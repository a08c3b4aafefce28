"""One provider's result on one problem, with its raw samples; as a table, and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.environment import environment


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


def write_rows(path: Path, rows: Sequence[Row], device: torch.device, **facts: Any) -> None:
    """Write rows with their environment as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(device), **facts, "rows": [asdict(r) for r in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwritten: {path}")
