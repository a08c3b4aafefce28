"""What timings on an H100 should be: figured out from counts and rates before any was measured.

    python -m benchmarks.report              writes the table of docs/developers/predictions.md

Each prediction is arithmetic: units of work over the rate of the unit that does it, serial phases
added, and launches where they weigh. A results file of an H100 puts what was measured beside it; a
miss by more than a third is to be explained, not the prediction changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Rates of an H100 SXM that these are made with; none was measured by this project. The first two
# are what large products and copies are known to reach, the others follow from the clock (1.7 GHz
# under load) and the units (132 multiprocessors).
PRODUCT = 790e12  # FLOP/s of a large bf16 product
MEMORY = 3.0e12  # bytes/s, read and written
L2 = 5.5e12  # bytes/s
LAUNCH = 2.5e-6  # seconds from one kernel to the next in a CUDA graph
EXPONENTIAL = 132 * 16 * 1.7e9  # a second
GPU = "h100"


@dataclass(frozen=True)
class Prediction:
    """One timing.

    Attributes:
        problem: how the benchmark calls it.
        provider: who solves it.
        seconds: predicted.
        why: the arithmetic in words.
    """

    problem: str
    provider: str
    seconds: float
    why: str


def memory_bound() -> Iterator[Prediction]:
    """What only moves bytes: at 95 % of a copy's rate, or 85 % for what is not a plain stream."""
    count = 300.2e6
    for dtype, size in (("float32", 12), ("bfloat16", 10)):
        yield Prediction(
            f"ViT, width 1440: 148 tensors, 300.2 M, {dtype}", "sslfast triton",
            count * size / (0.95 * MEMORY), f"{size} bytes an element at 95 % of a copy",
        )  # fmt: skip
    yield Prediction(
        "small tensors: 5000 tensors, 0.3 M, float32", "sslfast triton, graph",
        LAUNCH + 5000 / (132 * 8) * 1.5e-6, "5,000 programs of 1.5 us, 8 at a time on each of 132",
    )  # fmt: skip
    for name, size in (("AdamW + EMA", 36), ("AdamW", 28)):
        yield Prediction(
            f"{name}, ViT, width 1440: 148 tensors, 300.2 M", "sslfast triton",
            count * size / (0.95 * MEMORY), f"{size} bytes an element at 95 % of a copy",
        )  # fmt: skip
    yield Prediction(
        "LARS + EMA, ResNet-50", "sslfast triton", 25.6e6 * 36 / (0.9 * MEMORY) + 10 * LAUNCH,
        "28 bytes an element and 8 for the norms, at 90 % of a copy, and about ten launches",
    )  # fmt: skip
    moved = 4.0 * 4096 * (2 * 49 * 768) + 8 * 4096 * (196 + 49) + 4096 * 196
    yield Prediction(
        "random mask and gather, B = 4096", "sslfast triton", moved / (0.85 * MEMORY) + 8e-6,
        "bytes at 85 % of a copy, and 8 us for the masks",
    )  # fmt: skip


def predictions() -> list[Prediction]:
    """All of them, in the order of the runs."""
    return [*memory_bound()]


def table(results: dict[str, Any]) -> str:
    """Predictions, beside what was measured where there is a run.

    Args:
        results: rows of all results files of the GPU, by (problem, provider).
    """
    lines = ["| problem | | predicted | measured | because |", "|---|---|---|---|---|"]
    for p in predictions():
        row = results.get((p.problem, p.provider))
        measured = f"{row['seconds'] * 1e3:.3g} ms" if row else "not yet"
        cells = p.problem, p.provider, f"{p.seconds * 1e3:.3g} ms", measured, p.why
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
