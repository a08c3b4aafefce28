"""What only a run on a GPU has: its results by part, tables of training and memory, plots."""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import floors
from benchmarks.harness.plots import line_plot

# Parts of a run that belong in one table.
NAMES = {"contrast": "losses"} | dict.fromkeys(
    ("trainer", "train_vit", "train_mae", "train_resnet"), "train_step"
)
GENERIC = {"nvidia", "geforce", "tesla", "graphics", "device"}


def slug(gpu: str) -> str:
    """A GPU's name in a file's: "NVIDIA H200" is h200."""
    words = [w for w in re.findall(r"[a-z0-9]+", gpu.lower()) if w not in GENERIC]
    return "".join(words) or "gpu"


def take(run: dict[str, Any], folder: Path) -> list[Path]:
    """Write the parts of a run's gpu.json that have rows as results files, NAME-GPU.json.

    Raises:
        ValueError: a rehearsal without a GPU, or a quick run.
    """
    gpu = run["environment"].get("gpu")
    if gpu is None:
        raise ValueError("this run had no GPU: a rehearsal is no result")
    if "--quick" in run.get("command", []):
        raise ValueError("a quick run is no result: run it without --quick")
    files: dict[Path, dict[str, Any]] = {}
    for part, results in run["results"].items():
        if results["rows"]:
            name = NAMES.get(part, part)
            path = folder / f"{name}-{slug(gpu)}.json"
            if path in files:
                files[path]["rows"] += results["rows"]
                files[path]["failures"] += results["failures"]
            else:
                files[path] = results
    for path, results in files.items():
        path.write_text(json.dumps(results, indent=1) + "\n")
    return list(files)


def origin(results: dict[str, Any]) -> str:
    """Where and when."""
    facts = results["environment"]
    name = facts.get("gpu") or facts["cpu"]
    return (
        f"\nMeasured on {facts['date'][:10]} at commit {facts['commit'][:10]}: {name}, "
        f"torch {facts['torch']}.\n"
    )


def train_step(results: dict[str, Any]) -> str:
    """One line a training."""
    names = ("forward", "loss", "backward", "optimiser", "EMA")
    lines = [
        f"| training | images/s | step | over a bare loop | MFU | {' | '.join(names)} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        extra = row["extra"]
        if "overhead" not in extra:
            continue
        shares = extra.get("shares")
        parts = [f"{shares[n]:.1%}" if shares else "-" for n in names]
        mfu = f"{extra['mfu']:.1%}" if "mfu" in extra else "-"
        step = f"{row['seconds'] * 1e3:.1f} ms"
        figures = [f"{extra['images_per_second']:.0f}", step, f"{extra['overhead']:+.1%}", mfu]
        lines.append(f"| {' | '.join([row['problem'], *figures, *parts])} |")
    note = "MFU is of the measured rate of a large matrix product."
    return "\n".join([*lines, origin(results).rstrip() + f" {note}\n"])


def loss_memory(results: dict[str, Any]) -> str:
    """One line a loss."""
    by_loss = defaultdict(list)
    for row in results["rows"]:
        by_loss[row["problem"]].append(row)
    first = next(iter(by_loss.values()))
    sizes = " | ".join(row["provider"] for row in first)
    lines = [f"| loss | {sizes} | growth (a line: 2) |", "|---" * (len(first) + 2) + "|"]
    for name, rows in by_loss.items():
        peaks = " | ".join(f"{row['peak_bytes'] / 2**20:.1f} MiB" for row in rows)
        lines.append(f"| {name} | {peaks} | {rows[-1]['extra']['growth']:.2f} |")
    return "\n".join([*lines, origin(results)])


def clip_batch(results: dict[str, Any]) -> str:
    """One line a way of training."""
    lines = ["| problem | training | samples |", "|---|---|---|"]
    for row in results["rows"]:
        lines.append(f"| {row['problem']} | {row['provider']} | {row['extra']['batch']:,} |")
    return "\n".join([*lines, origin(results)])


def dali(results: dict[str, Any]) -> str:
    """One line a recipe, and memory."""
    lines = ["| recipe | images/s on the GPU | on the CPU | mean difference |", "|---|---|---|---|"]
    more = ""
    for row in results["rows"]:
        extra = row["extra"]
        if "growth" in extra:
            more = f"{row['problem']}: grew by {extra['growth'] / 2**20:.1f} MiB.\n"
            continue
        rates = extra["images a second"]
        here = next(rate for where, rate in rates.items() if where == row["provider"])
        difference = f"{extra['mean levels']:.2f} of 255 levels"
        lines.append(f"| {row['problem']} | {here:.0f} | {rates['cpu']:.0f} | {difference} |")
    return "\n".join([*lines, origin(results) + more])


def peaks(results: dict[str, Any]) -> str:
    """The device's ceilings."""
    lines = ["| ceiling | rate |", "|---|---|"]
    for row in results["rows"]:
        flop = row["flop"] is not None
        rate = (row["flop"] if flop else row["bytes"]) / row["seconds"]
        lines.append(f"| {row['problem']} | {rate / 1e12:.3g} {'TFLOP/s' if flop else 'TB/s'} |")
    return "\n".join([*lines, origin(results)])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "train-step": train_step,
    "loss-memory": loss_memory,
    "clip-batch": clip_batch,
    "dali": dali,
    "peaks": peaks,
}


def _by_rows(results: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """Rows of NT-Xent at D = 128: {provider: {M: row}}."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in results["rows"]:
        size = re.search(r"M=(\d+) D=128 ", row["problem"])
        if size and not row["provider"].endswith(", graph"):
            found[row["provider"]][int(size[1])] = row
    return found


def _title(results: dict[str, Any], what: str) -> str:
    facts = results["environment"]
    where = facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads"
    return f"NT-Xent, D = 128, {what}: {where}"


def time_plot(results: dict[str, Any]) -> str:
    """Time against M, with that of the matrix products alone."""
    alone = floors.shown(floors.PRODUCTS)
    series = {
        floors.shown(provider): [(m, row["seconds"] * 1e3) for m, row in rows.items()]
        for provider, rows in _by_rows(results).items()
    }
    title = _title(results, "forward + backward")
    return line_plot(title, "rows M", "milliseconds", series, dashed=[alone])


def floor_plot(results: dict[str, Any]) -> str:
    """The matrix products' time in per cent of each provider's, against M."""
    found, alone = _by_rows(results), floors.shown(floors.PRODUCTS)
    products = found.pop(floors.PRODUCTS)
    series = {
        provider: [
            (m, 100 * products[m]["seconds"] / row["seconds"])
            for m, row in rows.items()
            if m in products
        ]
        for provider, rows in found.items()
    }
    series[alone] = [(m, 100.0) for m in products]
    title = _title(results, "per cent of the matrix product's rate")
    return line_plot(title, "rows M", "per cent", series, dashed=[alone], log_y=False)
