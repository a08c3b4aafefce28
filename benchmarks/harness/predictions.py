"""What timings on an H100 should be: figured out from counts and rates before any was measured.

    python -m benchmarks.report              writes the table of docs/developers/predictions.md

Each prediction is arithmetic: units of work over the rate of the unit that does it, serial phases
added, and launches where they weigh. A results file of an H100 puts what was measured beside it; a
miss by more than a third is to be explained, not the prediction changed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Rates of an H100 SXM that these are made with; none was measured by this project. The first three
# are what large products and copies are known to reach, the others follow from the clock (under
# load) and the units.
PRODUCT = 790e12  # FLOP/s of a large bf16 product,
STRIPS = 660e12  # and of products of a few thousand rows
MEMORY = 3.0e12  # bytes/s, read and written
L2 = 5.5e12  # bytes/s
CLOCK, MULTIPROCESSORS = 1.7e9, 132
LAUNCH = 2e-6  # seconds that a small kernel takes in a CUDA graph
LAUNCHED = 2.5e-6  # and otherwise


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
        LAUNCH + 5000 / (8 * MULTIPROCESSORS) * 1.5e-6,
        "5,000 programs of 1.5 us, 8 at a time on each multiprocessor",
    )  # fmt: skip
    for name, size in (("AdamW + EMA", 36), ("AdamW", 28)):
        yield Prediction(
            f"{name}, ViT, width 1440: 148 tensors, 300.2 M", "sslfast triton",
            count * size / (0.95 * MEMORY), f"{size} bytes an element at 95 % of a copy",
        )  # fmt: skip
    yield Prediction(
        "LARS + EMA, ResNet-50", "sslfast triton", 25.6e6 * 36 / (0.9 * MEMORY) + 10 * LAUNCHED,
        "28 bytes an element and 8 for the norms, at 90 % of a copy, and about ten launches",
    )  # fmt: skip
    patches = 2 * 256 * 49 * 768 * 768
    yield Prediction(
        "visible patches, forward, B = 256", "sslfast triton", patches / (0.6 * PRODUCT) + LAUNCHED,
        "14.8 GFLOP at 60 % of a large product's rate",
    )  # fmt: skip
    yield Prediction(
        "visible patches, forward and backward, B = 256", "sslfast triton",
        2 * patches / (0.6 * PRODUCT) + 3 * 256 * 49 * 768 * 2 / MEMORY + 8 * LAUNCHED,
        "twice as many, the cut patches written and read, and about eight launches",
    )  # fmt: skip
    yield Prediction(
        "masked MSE, forward and backward, B = 256", "sslfast triton",
        4 * 4 * 256 * 196 * 768 / (0.9 * MEMORY) + 6 * LAUNCHED,
        "two numbers read twice where hidden, the gradient written: 16 bytes a number",
    )  # fmt: skip
    yield Prediction(
        "multi-block masks, B = 256", "sslfast triton", 40 * LAUNCHED, "about 40 small launches"
    )
    moved = 4.0 * 4096 * (2 * 49 * 768) + 8 * 4096 * (196 + 49) + 4096 * 196
    yield Prediction(
        "random mask and gather, B = 4096", "sslfast triton", moved / (0.85 * MEMORY) + 8e-6,
        "bytes at 85 % of a copy, and 8 us for the masks",
    )  # fmt: skip


# Clocks of a tile in the loops of the Triton kernels, from the compiled code: (rows, columns,
# clocks, programs at once on a multiprocessor). Forward at D = 128 the phases of two programs
# overlap: 512 clocks of products, 544 of exponentials, 554 of issue, 668 of L2. Elsewhere phases
# follow one another: 2,048 of products and 1,150 of exponentials backward.
FORWARD = {128: (128, 64, 700, 2), 256: (128, 64, 1800, 1)}
BACKWARD = {128: (128, 128, 3200, 1), 256: (128, 64, 2800, 1)}


def loop(m: int, shape: tuple[int, int, int, int], parts: int) -> float:
    """Seconds of a kernel over M x M logits, whose columns ``parts`` programs share.

    The time of two tiles goes by before the first.
    """
    rows, columns, clocks, resident = shape
    waves = math.ceil(m / rows * parts / (resident * MULTIPROCESSORS))
    return waves * resident * (m / columns / parts + 2) * clocks / CLOCK


def ntxent() -> Iterator[Prediction]:
    """NT-Xent: two loops over tiles, and the passes over M x D and over M numbers around them."""
    for m, d in ((32768, 128), (8192, 128), (131072, 128), (32768, 256)):
        parts = (4, 2) if m == 8192 else (1, 1)
        loops = loop(m, FORWARD[d], parts[0]), loop(m, BACKWARD[d], parts[1])
        # Concatenating and normalising read and write 2 bytes a number; finishing adds the parts.
        moved = m * d * (4 + 4 + 4 * parts[1] + 6) / MEMORY
        small = 12 * LAUNCH + m / 4096 * 0.75e-6  # passes over M numbers; the plan is one loop
        name = f"NT-Xent M={m} D={d} tau=0.1 bfloat16"
        why = (
            f"forward {loops[0] * 1e6:.0f} us, backward {loops[1] * 1e6:.0f} us of tiles; "
            f"{moved * 1e6:.0f} us for rows and gradients; {small * 1e6:.0f} us of small launches"
        )
        graph = ", graph" if m == 8192 else ""
        yield Prediction(name, f"sslfast triton{graph}", sum(loops) + moved + small, why)


def sweep(n: int, d: int) -> float:
    """Seconds of N x N logits in tiles of 256 x 128 that read both operands from L2, at 93 %."""
    return n / 256 * n / 128 * (256 + 128) * d * 2 / (0.93 * L2)


def losses() -> Iterator[Prediction]:
    """The other losses."""
    n, d = 65536, 512
    forward, weights, products = sweep(n, d), 1.05 * sweep(n, d), 4 * n * n * d / STRIPS
    why = (
        f"sweep forward {forward * 1e3:.1f} ms and with weights {weights * 1e3:.1f} ms, bound by "
        f"L2; two products of blocks {products * 1e3:.1f} ms"
    )
    yield Prediction(f"CLIP N={n} D={d}", "sslfast", forward + weights + products, why)
    n = 32768
    both, products = 1.15 * sweep(n, d), 4 * n * n * d / STRIPS
    why = f"one sweep {both * 1e3:.1f} ms, two products of blocks {products * 1e3:.1f} ms"
    yield Prediction(f"SigLIP N={n} D={d}", "sslfast", both + products, why)
    n, queue, d = 1024, 65536, 128
    products = 2 * n * queue * d / 600e12 + 4 * n * queue * d / 550e12
    moved = queue * d * 6 / MEMORY + 5e-6
    why = (
        f"fused products {products * 1e6:.0f} us, the queue to bfloat16 and parts of the gradient "
        f"{moved * 1e6:.0f} us, about 40 small launches"
    )
    name = f"MoCo N={n} queue={queue} D={d}"
    yield Prediction(name, "sslfast", products + moved + 40 * LAUNCHED, why)
    n, d, v = 8192, 2048, 128256
    products, logits = 6 * n * v * d / 690e12, 18 * n * v / MEMORY
    added, rounded = 2 * 8 * v * d / MEMORY, 6 * (v + n) * d / MEMORY
    why = (
        f"three products {products * 1e3:.1f} ms, 18 bytes a logit {logits * 1e3:.1f} ms, two of "
        f"three blocks added up {added * 1e3:.1f} ms, gradients to bfloat16 {rounded * 1e3:.1f} ms"
    )
    name = f"linear cross-entropy N={n} D={d} V={v}"
    yield Prediction(name, "sslfast", products + logits + added + rounded, why)


def trainings() -> Iterator[Prediction]:
    """Steps of the trainer: FLOP of the encoder (and decoder), at a guessed share of the peak."""
    simclr, mae = 512 * 3 * 9.2e9, 256 * 3 * (0.27 * 35e9 + 11e9)
    for problem, flop, share in (
        ("simclr, vit_small, 256 images of 224 x 224 a step, bf16, cuda", simclr, 0.25),
        ("mae, vit_base, 256 images of 224 x 224 a step, bf16, cuda", mae, 0.25),
        ("simclr, vit_small, 256 images of 224 x 224 a step, bf16, compiled, cuda", simclr, 0.40),
    ):
        why = f"{flop / 1e12:.0f} TFLOP at {share:.0%} of a large product's rate, a guess"
        yield Prediction(problem, "sslfast trainer", flop / (share * PRODUCT), why)


def predictions() -> list[Prediction]:
    """All of them, in the order of the runs."""
    return [*ntxent(), *losses(), *memory_bound(), *trainings()]


def table(measured: Mapping[tuple[str, str], float]) -> str:
    """Predictions, beside what was measured where there is a run.

    Args:
        measured: seconds by problem and provider.
    """
    lines = ["| problem | provider | predicted | measured | because |", "|---|---|---|---|---|"]
    for p in predictions():
        seconds = measured.get((p.problem, p.provider))
        found = f"{seconds * 1e3:.3g} ms" if seconds else "not yet"
        cells = p.problem, p.provider, f"{p.seconds * 1e3:.3g} ms", found, p.why
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
