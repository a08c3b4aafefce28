"""Writes tables and plots of README.md and docs/ from benchmarks/results/*.json; none by hand.

The table of methods comes from the registry of methods, that of the house from the sources.

    python -m benchmarks.report                     rewrite the tables and plots
    python -m benchmarks.report --check             exit 1 where one is not what the results say
    python -m benchmarks.report --take gpu.json     first make results of a run of benchmarks.gpu

A table stands between <!-- table NAME --> and <!-- end -->.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import floors, gpu_report, house, learned, method_table, predictions
from benchmarks.harness.environment import ROOT

RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(name: str) -> dict[str, Any]:
    """Results of one benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def milliseconds(seconds: float) -> str:
    """A time with three significant digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def machine(results: dict[str, Any], *commits: str) -> str:
    """Where and when a table's figures were measured; commits, where runs have their own."""
    facts = results["environment"]
    made = ", ".join(commits or [facts["commit"][:10]])
    name = facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads, {facts['isa']}"
    return f"Measured on {facts['date'][:10]} at commit {made}: {name}, torch {facts['torch']}."


def provenance(results: dict[str, Any]) -> str:
    """The machine, how times were taken, and what gave none."""
    failed = [
        f"{floors.shown(f['provider'])} ({f['problem']})" for f in results.get("failures", [])
    ]
    without = f" Without a result: {', '.join(failed)}." if failed else ""
    return f"{machine(results)} Medians of interleaved runs; ratios are within one run.{without}\n"


def ratio(above: dict[str, Any] | None, row: dict[str, Any], digits: int = 1) -> str:
    """How many times faster than the other row, where there is one."""
    return f"{above['seconds'] / row['seconds']:.{digits}f}x" if above else "-"


def share(products: dict[str, Any] | None, row: dict[str, Any]) -> str:
    """The time of the matrix products alone over the row's, where there is one."""
    return f"{products['seconds'] / row['seconds']:.2f}" if products else "-"


def mebibytes(row: dict[str, Any]) -> str:
    """A row's peak memory; a dash where it was not taken."""
    return "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f} MiB"


def similarity_softmax(results: dict[str, Any]) -> str:
    """NT-Xent: one line a size and provider."""
    lines = [
        "| rows M | provider | forward + backward | faster than eager | time of the matrix product "
        "alone / time | peak extra memory |",
        "|---|---|---|---|---|---|",
    ]
    problems = dict.fromkeys(row["problem"] for row in results["rows"])
    for problem in problems:
        rows = {r["provider"]: r for r in results["rows"] if r["problem"] == problem}
        size = re.search(r"M=(\d+)", problem)
        for name, row in rows.items():
            if name == floors.PRODUCTS:
                continue
            lines.append(
                f"| {size[1] if size else problem} | {name} | {milliseconds(row['seconds'])} "
                f"| {ratio(rows.get('eager'), row)} | {share(rows.get(floors.PRODUCTS), row)} "
                f"| {mebibytes(row)} |"
            )
    return "\n".join([*lines, "", provenance(results)])


def masking(results: dict[str, Any]) -> str:
    """Masks, visible patches and their loss: one line a problem and provider."""
    lines = [
        "| work | provider | time | faster than eager | peak extra memory |",
        "|---|---|---|---|---|",
    ]
    for problem in dict.fromkeys(row["problem"] for row in results["rows"]):
        rows = [r for r in results["rows"] if r["problem"] == problem]
        eager = next((r for r in rows if r["provider"] == "eager"), None)
        for row in rows:
            lines.append(
                f"| {problem} | {floors.shown(row['provider'])} | {milliseconds(row['seconds'])} "
                f"| {ratio(eager, row)} | {mebibytes(row)} |"
            )
    return "\n".join([*lines, "", provenance(results)])


def many_tensors(results: dict[str, Any]) -> str:
    """EMA updates and optimiser steps: one line a problem and provider, GB/s of what must move."""
    lines = [
        "| problem | provider | time | GB/s | faster than the first |",
        "|---|---|---|---|---|",
    ]
    whole = [row for row in results["rows"] if " a step" not in row["problem"]]
    for problem in dict.fromkeys(row["problem"] for row in whole):
        rows = [r for r in whole if r["problem"] == problem]
        for row in rows:
            rate = f"{row['bytes'] / row['seconds'] / 1e9:.3g}" if row["bytes"] else "-"
            cells = [problem, floors.shown(row["provider"]), milliseconds(row["seconds"]), rate]
            lines.append(f"| {' | '.join(cells)} | {ratio(rows[0], row, 2)} |")
    return "\n".join([*lines, "", provenance(results)])


def of_the_first(
    results: dict[str, Any],
    rows: list[dict[str, Any]],
    what: str = "; forward and backward:",
    digits: str = ".2f",
    memory: bool = False,
) -> str:
    """One line a provider of one problem: its time, as a share of the first's too, and memory."""
    heads = ["what runs", "time", "of the first", *(["peak extra memory"] if memory else [])]
    lines = [f"{rows[0]['problem']}{what}", "", f"| {' | '.join(heads)} |"]
    lines.append("|---" * len(heads) + "|")
    for row in rows:
        part = format(row["seconds"] / rows[0]["seconds"], digits)
        cells = [floors.shown(row["provider"]), milliseconds(row["seconds"]), part]
        lines.append(f"| {' | '.join([*cells, *([mebibytes(row)] if memory else [])])} |")
    return "\n".join([*lines, "", provenance(results)])


def ema_step(results: dict[str, Any]) -> str:
    """What a teacher adds to a training step."""
    rows = [row for row in results["rows"] if " a step" in row["problem"]]
    return of_the_first(results, rows, ":", ".2%")


def teacher(results: dict[str, Any]) -> str:
    """What a teacher adds to a training step, in the optimiser's pass and beside it."""
    problems = dict.fromkeys(row["problem"] for row in results["rows"])
    lines = [f"{', '.join(problems)}:", "", "| what runs after the gradients | time | of a step |"]
    lines.append("|---|---|---|")
    for row in results["rows"]:
        if "share" in row["extra"]:
            share = f"{row['extra']['share']:.1%}"
            cells = row["provider"], milliseconds(row["seconds"]), share
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", provenance(results)])


def losses(results: dict[str, Any]) -> str:
    """The other losses: one line a problem and provider, ratios to the first provider."""
    lines = [
        "| problem | provider | forward + backward | faster than the first | time of the matrix "
        "products alone / time | peak extra memory |",
        "|---|---|---|---|---|---|",
    ]
    for problem in dict.fromkeys(row["problem"] for row in results["rows"]):
        rows = [r for r in results["rows"] if r["problem"] == problem]
        products = next((r for r in rows if r["provider"] == floors.PRODUCTS), None)
        for row in rows:
            if row["provider"] == floors.PRODUCTS:
                continue
            lines.append(
                f"| {problem} | {floors.shown(row['provider'])} | {milliseconds(row['seconds'])} "
                f"| {ratio(rows[0], row, 2)} | {share(products, row)} | {mebibytes(row)} |"
            )
    return "\n".join([*lines, "", provenance(results)])


def headline(results: dict[str, Any]) -> str:
    """The README's first number."""
    rows = {r["provider"]: r for r in results["rows"] if "M=8192 " in r["problem"]}
    ours, eager, lightly = (rows[n] for n in ("sslfast cpu", "eager", "lightly"))
    return (
        f"NT-Xent forward + backward over 8,192 embeddings of 128 float32 numbers on two CPU "
        f"cores: **{milliseconds(ours['seconds'])}**, {eager['seconds'] / ours['seconds']:.1f} "
        f"times faster than eager PyTorch, {lightly['seconds'] / ours['seconds']:.1f} times faster "
        f"than lightly, in 1/{eager['peak_bytes'] / max(ours['peak_bytes'], 1):.0f} of eager's "
        f"memory.\n"
    )


def demo(results: dict[str, Any]) -> str:
    """What `make demo` prints: its report.json."""
    probe = f"linear probe, {results['labels_per_class']} labels a class"
    lines = [f"| features | kNN, k = {results['k']} | {probe} |", "|---|---|---|"]
    for row in results["scores"]:
        lines.append(f"| {row['features']} | {row['knn']:.1%} | {row['linear']:.1%} |")
    return "\n".join(lines) + "\n"


def vit(results: dict[str, Any]) -> str:
    """MAE's steps, as shares of the time on all patches."""
    return of_the_first(results, results["rows"])


def cached(results: dict[str, Any]) -> str:
    """A step in chunks, as shares of the whole batch's time."""
    return of_the_first(results, results["rows"], memory=True)


def learning(results: dict[str, Any]) -> str:
    """What methods learn in a few minutes."""
    return learned_table(
        results,
        learned.accuracies(results["runs"]),
        "Gains are in points; the linear probe has 100 labels a class, the mean of five draws.",
    )


def learning_health(results: dict[str, Any]) -> str:
    """Whether their features have collapsed."""
    return learned_table(
        results,
        learned.health(results["runs"]),
        "The spread is feature_std times the root of the dimensions.",
    )


def learning_collapse(results: dict[str, Any]) -> str:
    """What keeps embeddings apart, and what becomes of them without it."""
    return learned_table(
        results,
        learned.collapse(results["runs"]),
        "Spread and rank are of a batch's embeddings of unit length, at the end.",
    )


def learned_table(results: dict[str, Any], lines: list[str], note: str) -> str:
    """A table of benchmarks/learning.py, with the commits that its rows were made at."""
    commits = dict.fromkeys(run["commit"][:10] for run in results["runs"])
    means = "Means over the seeds, lowest and highest in brackets."
    return "\n".join([*lines, "", f"{machine(results, *commits)} {means} {note}\n"])


TABLES = {
    "headline": (headline, "similarity_softmax-cpu"),
    "demo": (demo, "demo"),
    "losses-cpu": (losses, "losses-cpu"),
    "masking-cpu": (masking, "masking-cpu"),
    "ema-cpu": (many_tensors, "ema-cpu"),
    "ema-step-cpu": (ema_step, "ema-cpu"),
    "optim-cpu": (many_tensors, "optim-cpu"),
    "teacher-cpu": (teacher, "teacher-cpu"),
    "learning": (learning, "learning"),
    "learning-health": (learning_health, "learning"),
    "learning-collapse": (learning_collapse, "learning"),
    "vit-cpu": (vit, "vit-cpu"),
    "cached-cpu": (cached, "cached-cpu"),
    "similarity-softmax-cpu": (similarity_softmax, "similarity_softmax-cpu"),
}


MAKERS = {
    "similarity-softmax": similarity_softmax,
    "losses": losses,
    "redundancy": losses,
    "prototypes": losses,
    "packed-crops": losses,
    "sigreg": losses,
    "masking": masking,
    "ema": many_tensors,
    "optim": many_tensors,
    "teacher": teacher,
    **gpu_report.TABLES,
}


def measured(gpu: str) -> dict[tuple[str, str], float]:
    """Seconds of everything that has been measured on a GPU, by problem and provider."""
    rows = [row for file in RESULTS.glob(f"*-{gpu}*.json") for row in load(file.stem)["rows"]]
    return {(row["problem"], row["provider"]): row["seconds"] for row in rows}


def make_table(name: str) -> str:
    """The table of this name: of TABLES, or OP-MACHINE from a results file of that machine."""
    if name == "methods":
        return method_table.table()
    if name == "house":
        return house.table()
    if name == "predictions-h100":
        return predictions.table(measured("h100"))
    if name in TABLES:
        make, results = TABLES[name]
        return make(load(results))
    op, _, where = name.rpartition("-")
    return MAKERS[op](load(f"{op.replace('-', '_')}-{where}"))


def rewritten(text: str) -> str:
    """The page with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        return match[1] + make_table(match["name"]) + match[3]

    return MARKED.sub(table, text)


def plots() -> dict[Path, str]:
    """Every plot that there are results for, by the file it belongs in."""
    images = ROOT / "docs" / "images"
    return {
        images / f"{file.stem.replace('_', '-')}-{name}.svg": make(load(file.stem))
        for file in sorted(RESULTS.glob("similarity_softmax-*.json"))
        for name, make in {"time": gpu_report.time_plot, "floor": gpu_report.floor_plot}.items()
    }


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def stale() -> dict[Path, str]:
    """What pages and plots should hold, where they do not."""
    wanted = {page: rewritten(page.read_text()) for page in pages()} | plots()
    return {
        path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text
    }


def main() -> int:
    """Rewrite or check all pages and plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--take", type=Path, help="gpu.json of a run of benchmarks.gpu")
    options = parser.parse_args()
    if options.take:
        for path in gpu_report.take(json.loads(options.take.read_text()), RESULTS):
            print(f"{path.relative_to(ROOT)}: written")
    found = stale()
    for path, text in found.items():
        print(f"{path.relative_to(ROOT)}: {'out of date' if options.check else 'rewritten'}")
        if not options.check:
            path.write_text(text)
    return int(options.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
