"""Peak memory of a call; on a CPU it is taken in a process of its own.

What a process holds also depends on the holes in its heap, and so on everything that ran before: up
to 32 MiB a hole. The same program therefore runs once more, only for memory, with an allocator
that takes every large block from the system and gives it back at once.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.harness.timing import Run
from sslfast.kernels.extension import extension

Peaks = dict[tuple[str, str], int | None]  # bytes by (problem, provider)


def peak_memory(run: Run, device: torch.device) -> int:
    """Bytes that one call takes at most beyond what was allocated before it."""
    run(0)  # libraries take their own buffers once
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(0)
        return torch.cuda.max_memory_allocated(device) - before
    # What was freed must not hide what is taken.
    module = extension()
    if module is not None:
        module.release_buffers()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark (Linux)
    before = _status("VmRSS")
    run(0)
    return max(_status("VmHWM") - before, 0)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


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
