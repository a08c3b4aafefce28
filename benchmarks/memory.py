"""Peak memory on a CPU, taken in a process of its own.

What a process holds also depends on the holes in its heap, and so on everything that ran before: up
to 32 MiB a hole. The same program therefore runs once more, only for memory, with an allocator
that takes every large block from the system and gives it back at once.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

Peaks = dict[tuple[str, str], int | None]  # bytes by (problem, provider)


def measured_apart() -> Peaks | None:
    """The peaks of this program's providers, or None where no benchmark is run as a program."""
    spec = sys.modules["__main__"].__spec__
    if spec is None or not spec.name.startswith("benchmarks."):
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "memory.json"
        subprocess.run(
            [sys.executable, "-m", spec.name, *sys.argv[1:], "--only-memory", "--out", str(file)],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)},
            stdout=subprocess.DEVNULL,
            check=False,  # a provider of ours that fails does so again, and is reported, here
        )
        rows = json.loads(file.read_text())["rows"]
    return {(row["problem"], row["provider"]): row["peak_bytes"] for row in rows}
