"""What a figure depends on: machine, versions, commit."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "SSLFAST_COMMIT"  # for a copy of the checkout without its history

# Read-only queries of nvidia-smi.
DRIVER = "driver_version"
CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"


def output(*command: str) -> str:
    """What a program prints; "" where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def nvidia_smi(query: str) -> str:
    """One line a GPU; says so where it cannot be asked."""
    found = output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    return found or "nvidia-smi does not say"


def environment(device: torch.device) -> dict[str, Any]:
    """The facts, as JSON takes them."""
    import sslfast

    commit = output("git", "rev-parse", "HEAD")
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or os.environ.get(COMMIT, "unknown"),
        "changed": bool(output("git", "status", "--porcelain")) if commit else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sslfast": sslfast.__version__,
        "device": str(device),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
    }
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError as error:
        facts["triton"] = str(error)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["capability"] = [properties.major, properties.minor]
        facts["multiprocessors"] = properties.multi_processor_count
        facts["memory"] = properties.total_memory
        facts["cuda"] = torch.version.cuda
        facts["driver"] = nvidia_smi(DRIVER)
        facts["clocks"] = nvidia_smi(CLOCKS)
    return facts


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
