"""The last screen of a run on a GPU: what passed, what failed and why, and every timing.

    python -m benchmarks.gpu_screen gpu.json

At most LINES lines: what has failed comes first, and where there is more to say than fits, the
timings of peers are left out before those of this package.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LINES, WIDTH = 100, 116
MOST_FAILURES = 30
OURS, FLOOR = "sslfast", "floor"
WORDS = {0: "ok", None: "NOT RUN", 124: "OUT OF TIME"}
# One test in pytest's verbose output: by a worker of pytest-xdist, or not.
WHAT = r"(PASSED|FAILED|ERROR|SKIPPED)"
TEST = re.compile(rf"^(?:\[gw\d+\] \[ *\d+%\] {WHAT} (\S+)|(\S+::\S+) {WHAT})", re.MULTILINE)
REASON = re.compile(r"^(?:FAILED|ERROR) (\S+?) - (.*)$", re.MULTILINE)


def outcomes(output: str) -> dict[str, str]:
    """What became of every test in the output of ``pytest -v``, whole or cut off."""
    found = {}
    for before, name, other, after in TEST.findall(output):
        found[name or other] = before or after
    return found


def _part(journal: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((part for part in journal["parts"] if part["name"] == name), None)


def failed_tests(journal: dict[str, Any]) -> list[str]:
    """Tests of a run that did not pass, as pytest takes them."""
    part = _part(journal, "tests")
    if part is None:
        return []
    found = outcomes(part["output"])
    # Without the group that xdist adds to the name.
    return [n.split("@")[0] for n, what in found.items() if what in ("FAILED", "ERROR")]


def cut(text: str, width: int = WIDTH) -> str:
    """The first line, no longer than ``width``."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= width else line[: width - 1] + "…"


def _tests(journal: dict[str, Any]) -> Iterator[str]:
    part = _part(journal, "tests")
    if part is None or part["status"] is None:
        return
    found, reasons = outcomes(part["output"]), dict(REASON.findall(part["output"]))
    counts = {what: list(found.values()).count(what) for what in sorted(set(found.values()))}
    yield "tests: " + (", ".join(f"{n} {what.lower()}" for what, n in counts.items()) or "none ran")
    for name, what in found.items():
        if what in ("FAILED", "ERROR"):
            yield cut(f"  {what} {name.removeprefix('tests/gpu/')}: {reasons.get(name, '')}")


def _failures(journal: dict[str, Any]) -> Iterator[str]:
    """Of benchmarks, ours first."""
    found = [
        (part, failure)
        for part, results in journal["results"].items()
        for failure in results["failures"]
    ]
    for part, failure in sorted(found, key=lambda pair: OURS not in pair[1]["provider"]):
        what = f"  FAILED {part}: {failure['problem']}: {failure['provider']}: {failure['error']}"
        yield cut(what)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _timings(journal: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """One line a provider of each problem; whether it may be left out."""
    for results in journal["results"].values():
        problems: dict[str, dict[str, Any]] = {}
        for row in results["rows"]:
            problems.setdefault(row["problem"], {})[row["provider"]] = row
        for problem, rows in problems.items():
            yield False, cut(problem)
            others = {n: r["seconds"] for n, r in rows.items() if OURS not in n and FLOOR not in n}
            # The fastest of the others: ahead of every peer is what is aimed at.
            peer = min(others.values(), default=0.0)
            floor = next((r["seconds"] for n, r in rows.items() if FLOOR in n), 0.0)
            for name, row in rows.items():
                ours = OURS in name
                yield not ours and len(rows) > 1, "  " + _line(name, row, ours * peer, floor)


def _line(name: str, row: dict[str, Any], peer: float, floor: float) -> str:
    seconds = row["seconds"]
    cells = []
    if peer and seconds:
        cells.append(f"{peer / seconds:.2f}x the fastest other")
    if floor and seconds:
        cells.append(f"{100 * floor / seconds:.0f} % of the floor")
    for key, unit in (("flop", "TFLOP/s"), ("bytes", "TB/s")):
        if row.get(key) and seconds:
            cells.append(f"{row[key] / seconds / 1e12:.3g} {unit}")
    if row.get("peak_bytes") is not None:
        cells.append(f"{row['peak_bytes'] / 2**20:.0f} MiB")
    extra = row["extra"]
    for key, form in (("images_per_second", "{:.0f} images/s"), ("overhead", "overhead {:+.1%}")):
        if key in extra:
            cells.append(form.format(extra[key]))
    if "mfu" in extra:
        cells.append(f"MFU {extra['mfu']:.1%}")
    return cut(f"{cut(name, 34):34}{_time(seconds) if seconds else '-':>10}  {', '.join(cells)}")


def screen(journal: dict[str, Any]) -> list[str]:
    """The lines of the last screen, from what a run has written."""
    facts = journal["environment"]
    versions = f"torch {facts['torch']}, Triton {facts['triton']}, Python {facts['python']}"
    lines = [f"{facts.get('gpu') or 'no GPU: a rehearsal'}, {versions}, {facts['commit'][:10]}"]
    parts = [
        f"{p['name']} {WORDS.get(p['status'], 'FAILED')} {p['seconds']:.0f} s"
        for p in journal["parts"]
    ]
    row = ""
    for words in parts:
        if row and len(row) + len(words) + 2 > WIDTH:
            lines.append(row)
            row = ""
        row += f"{', ' if row else ''}{words}"
    lines.append(row)
    for part in journal["parts"]:
        if part["status"] not in (0, None) and part["name"] not in ("tests", *journal["results"]):
            said = [line for line in part["output"].splitlines() if line.strip()]
            lines.append(
                cut(f"  FAILED {part['name']}: {said[-1] if said else 'nothing was said'}")
            )
    failures = [*_tests(journal), *_failures(journal)]
    if len(failures) > MOST_FAILURES:
        more = len(failures) - MOST_FAILURES + 1
        failures = [*failures[: MOST_FAILURES - 1], f"  and {more} more failures: see the file"]
    lines += failures
    timings = list(_timings(journal))
    if len(lines) + len(timings) > LINES:
        timings = [(extra, line) for extra, line in timings if not extra]
    lines += [line for _, line in timings]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"and {len(lines) - LINES + 1} more lines: see the file"]
    return lines


def main() -> None:
    """Print the last screen of a run again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("journal", type=Path, help="gpu.json of a run of benchmarks.gpu")
    print("\n".join(screen(json.loads(parser.parse_args().journal.read_text()))))


if __name__ == "__main__":
    main()
