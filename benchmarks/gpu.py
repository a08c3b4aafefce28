"""Everything there is to check and time on a machine with an NVIDIA GPU, in one command.

    python -m benchmarks.gpu --out DIR [--quick] [--only OP] [--peers DIR] [--skip-build]
    python -m benchmarks.gpu --out DIR --sanitize     compute-sanitizer instead of tests and times

Builds the extension with what is installed (no network, no build isolation, no dependencies), runs
the GPU tests, then every benchmark, and writes DIR/gpu.json. A part that fails is recorded with
its output, and the others go on; the exit status is 1 if any failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import common

BENCHMARKS = {
    "similarity_softmax": "benchmarks.similarity_softmax",
    "losses": "benchmarks.losses",
    "masking": "benchmarks.masking",
    "ema": "benchmarks.ema",
    "optim": "benchmarks.optim",
}
TESTS = ["tests/gpu"]


@dataclass
class Part:
    """One step of the run and what became of it."""

    name: str
    seconds: float
    status: int
    output: str  # the end of it


def run_part(name: str, command: list[str], limit: float, environment: dict[str, str]) -> Part:
    """Run one command; a failure or a time-out is a result like any other."""
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=common.ROOT,
            env=environment,
            timeout=limit,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        shown = error.stdout or b""
        output = shown.decode(errors="replace") if isinstance(shown, bytes) else shown
        status, output = 124, f"{output}\n(stopped after {limit:.0f} s)"
    print(output[-6000:], flush=True)
    return Part(name, time.perf_counter() - begin, status, output[-20000:])


def install_peers(folder: Path, environment: dict[str, str]) -> Part:
    """Install the wheels of ``folder`` where the tests and benchmarks look for peers."""
    wheels = sorted(str(w) for w in folder.glob("*.whl"))
    target = str(common.ROOT / "build" / "peers")
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", target]
    return run_part("peers", [*pip, *wheels], 120, environment)


def sanitize(environment: dict[str, str]) -> list[Part]:
    """Run the CUDA kernels, built with their own checks, under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    if tool is None:
        missing = (
            "compute-sanitizer was not found: it comes with the CUDA toolkit, put it in the PATH"
        )
        return [Part("sanitize", 0.0, 127, missing)]
    # Every tensor has an allocation of its own, so that an access beyond it is seen.
    watched = {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    program = [sys.executable, "-m", "benchmarks.sanitize"]
    return [
        run_part(check, [tool, "--tool", check, "--error-exitcode", "1", *program], 400, watched)
        for check in ("memcheck", "racecheck")
    ]


def main() -> int:
    """Run all parts and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--quick", action="store_true", help="a smoke run of two minutes")
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="one op")
    parser.add_argument("--peers", type=Path, help="folder of peers' wheels")
    parser.add_argument("--skip-build", action="store_true", help="take the extension as it is")
    parser.add_argument(
        "--sanitize", action="store_true", help="build with checks and run compute-sanitizer only"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    environment = dict(os.environ)
    if options.sanitize:
        environment |= {"SSLFAST_CUDA": "1", "SSLFAST_CUDA_DEBUG": "1"}
    parts: list[Part] = []
    if not options.skip_build:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--no-build-isolation",
            "--no-deps",
            "-e",
            ".",
        ]
        parts.append(run_part("build", pip, 240, environment))
    if options.peers:
        parts.append(install_peers(options.peers, environment))
    if not torch.cuda.is_available():
        print("no CUDA device is available to torch: nothing can be tested or timed on a GPU here")
        _write(options, parts, {})
        return 1
    if options.sanitize:
        parts += sanitize(environment)
        for part in parts:
            if part.status == 127:
                print(part.output)
        _write(options, parts, {})
        return int(any(part.status for part in parts))

    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    parts.append(run_part("tests", pytest, 60 if options.quick else 240, environment))
    results: dict[str, Any] = {}
    for name, module in BENCHMARKS.items():
        if options.only in (None, name):
            file = options.out / f"{name}.json"
            command = [sys.executable, "-m", module, "--device", "cuda", "--out", str(file)]
            command += ["--quick"] if options.quick else []
            parts.append(run_part(name, command, 90 if options.quick else 240, environment))
            if file.exists():
                results[name] = json.loads(file.read_text())
    _write(options, parts, results)
    return int(any(part.status for part in parts))


def _write(options: argparse.Namespace, parts: list[Part], results: dict[str, Any]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    content = {
        "environment": common.environment(device),
        "parts": [asdict(part) for part in parts],
        "results": results,
    }
    path = options.out / "gpu.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    summary = ", ".join(f"{p.name} {'ok' if p.status == 0 else 'FAILED'}" for p in parts)
    print(f"\n{summary}\nwritten: {path}")


if __name__ == "__main__":
    sys.exit(main())
