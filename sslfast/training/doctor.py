"""What works on this machine, what does not, why not, and what to install."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

from sslfast import __version__

# The modules that the extras of the package bring.
_EXTRAS = {
    "train": [
        *("jsonargparse", "matplotlib", "mlxtend", "PIL", "rich", "safetensors", "skimage"),
        *("sklearn", "tensorboard"),
    ],
    "dali": ["nvidia.dali"],
    "video": ["av", "skvideo"],
}


def diagnose() -> str:
    """A report in plain text; needs no optional package."""
    import torch

    from sslfast import methods, models
    from sslfast.kernels.registry import backends

    advice: list[str] = []
    lines = ["Versions", *_table({"python": platform.python_version(), **_versions()})]
    lines += ["", "Machine", *_table(_machine(advice))]
    lines += ["", "Ops and backends"]
    for op, found in backends().items():
        lines.append(f"  {op}")
        lines += _table({name: reason or "usable" for name, reason in found.items()}, indent=4)
    lines += ["", "Encoders", f"  {', '.join(models.names())}"]
    lines += ["", "Methods", *_table({n: methods.get(n).reference.paper for n in methods.names()})]
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if not _installed(module)]
        if missing:
            advice.append(f"pip install 'sslfast[{extra}]'  (missing: {', '.join(missing)})")
    if torch.cuda.is_available() and not _installed("nvidia.dali") and torch.version.cuda:
        major = torch.version.cuda.split(".")[0]
        if major == "12":
            advice.append("this torch is built for CUDA 12: take 'sslfast[dali-cuda12]' for DALI")
    lines += ["", "To install", *([f"  {line}" for line in advice] or ["  nothing: all is there"])]
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    versions = {"sslfast": __version__}
    for name in ("torch", "triton", "numpy"):
        versions[name] = _version(name)
    dali = [d for d in ("nvidia-dali-cuda130", "nvidia-dali-cuda120") if _version(d) != _ABSENT]
    versions["DALI"] = ", ".join(f"{_version(d)} ({d})" for d in dali) or _ABSENT
    return versions


_ABSENT = "not installed"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return _ABSENT


def _installed(module: str) -> bool:
    parent = module.rpartition(".")[0]
    if parent and importlib.util.find_spec(parent) is None:
        return False
    return importlib.util.find_spec(module) is not None


def _machine(advice: list[str]) -> dict[str, str]:
    import torch

    facts = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "CPU": f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()} kernels in torch",
        "cores": f"{len(os.sched_getaffinity(0))} for this process of {os.cpu_count()}",
        "threads": f"torch {torch.get_num_threads()}, OMP_NUM_THREADS "
        f"{os.environ.get('OMP_NUM_THREADS', 'not set')}",
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            memory = gpu.total_memory / 2**30
            facts[f"GPU {index}"] = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {memory:.0f} GiB"
    else:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
        facts["GPU"] = f"none that torch sees (torch is built for: {built})"
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    facts["C++ compiler"] = compiler or "none"
    extension = importlib.util.find_spec("sslfast._C") is not None
    facts["extension sslfast._C"] = "built" if extension else "not built: no CPU kernels"
    if not extension:
        step = "" if compiler else "install a C++ compiler with OpenMP (g++), then "
        advice.append(f"{step}pip install sslfast again, to build the CPU kernels")
    return facts


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def _table(rows: dict[str, str], indent: int = 2) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"{'':{indent}}{name:{width}}  {value}" for name, value in rows.items()]
