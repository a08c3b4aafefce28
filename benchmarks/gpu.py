"""Everything there is to check and time on a machine with an NVIDIA GPU, in one command.

    python -m benchmarks.gpu --out DIR                    all of it, within nine minutes
    python -m benchmarks.gpu --out DIR --quick            a smoke run of two minutes
    python -m benchmarks.gpu --out DIR --only NAME ...    these parts, and the tests of their ops
    python -m benchmarks.gpu --out DIR --profile          the main kernels under ncu as well
    python -m benchmarks.gpu --out DIR --tune             measure tiles, and nothing else
    python -m benchmarks.gpu --out DIR --sanitize         compute-sanitizer, and nothing else
    python -m benchmarks.gpu --out DIR --device cpu       a rehearsal without a GPU: small sizes

Builds the extension with what is installed (no network, no setuptools), runs the GPU tests, then
every benchmark, the most important first. Each part has a limit, and all together a budget. One
file, DIR/gpu.json, holds machine, versions, commit, seeds, raw samples, and the end of each part's
output; it is whole at any time, so that a kill loses only what was not yet measured. A part that
fails is recorded, and the others go on; the exit status is 1 if any failed or was not run.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.build import link
from benchmarks.environment import COMMIT, ROOT, environment
from benchmarks.parts import Part, Run

BUDGET, QUICK_BUDGET = 530.0, 115.0  # seconds
BUILD_SECONDS = 170.0
PEERS = ("memeff", "inf_cl", "siglip_kernel", "cut_cross_entropy", "lightly", "open_clip")
TESTS = {  # files, by the benchmarks whose kernels they test
    "tests/gpu/test_kernels.py": ("similarity_softmax", "losses", "loss_memory", "clip_batch"),
    "tests/gpu/test_tensors.py": ("optim", "ema"),
    "tests/gpu/test_patches.py": ("masking", "train_mae"),
    "tests/gpu/test_dali_pipelines.py": ("dali",),
}


@dataclass(frozen=True)
class Plan:
    """A benchmark's part: its module and arguments, and its limits in seconds."""

    limit: float
    quick: float  # limit in a quick run; 0: not in it
    module: str
    arguments: tuple[str, ...] = ()
    timing: float | None = None  # of each problem, in a full run


# The most important come first, since the last may find no time left.
BENCHMARKS = {
    "peaks": Plan(30, 20, "peaks"),
    "similarity_softmax": Plan(75, 25, "similarity_softmax", timing=3),
    "losses": Plan(100, 25, "losses", timing=3),
    "optim": Plan(40, 20, "optim", timing=2),
    "ema": Plan(40, 20, "ema", timing=2),
    "train_vit": Plan(110, 0, "train_step", ("--preset", "vit")),
    "masking": Plan(45, 20, "masking", timing=2),
    "loss_memory": Plan(30, 20, "loss_memory"),
    "train_mae": Plan(140, 0, "train_step", ("--preset", "mae")),
    "train_resnet": Plan(110, 0, "train_step", ("--preset", "resnet")),
    "clip_batch": Plan(60, 0, "clip_batch"),
    "dali": Plan(110, 0, "dali"),
}


def python(*arguments: str) -> list[str]:
    """A command of this interpreter; -u, so that what is killed has said what it had to say."""
    return [sys.executable, "-u", *arguments]


def unpack(wheels: Path, target: Path) -> list[str]:
    """Unpack wheels into a folder, without pip; return their names."""
    target.mkdir(parents=True, exist_ok=True)
    found = sorted(wheels.glob("*.whl"))
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return [wheel.name for wheel in found]


def bring_peers(run: Run, wheels: Path | None) -> None:
    """Put peers where tests and benchmarks look for them, and name those that are missing."""
    target = ROOT / "build" / "peers"
    names = unpack(wheels, target) if wheels else []
    missing = [name for name in PEERS if not (target / name).is_dir()]
    words = f"unpacked {', '.join(names) or 'none'}; missing: {', '.join(missing) or 'none'}"
    run.note("peers", 0, words)


def test_parts(chosen: Sequence[str], seconds: float) -> list[Part]:
    """The GPU tests, of the chosen benchmarks only; several at a time where xdist is installed."""
    files = [file for file, names in TESTS.items() if not chosen or {*names, "tests"} & {*chosen}]
    if not files:
        return []
    # Another torch or numpy may warn of itself; here that must not hide results.
    command = python("-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", *files)
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(12, os.cpu_count() or 1))]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", "90", "--timeout-method", "thread"]  # a kernel may never end
    return [Part("tests", command, seconds)]


def benchmark_parts(chosen: Sequence[str], quick: bool, device: str) -> list[Part]:
    """The benchmarks that were asked for, in order."""
    parts = []
    for name, plan in BENCHMARKS.items():
        limit = plan.quick if quick and not chosen else plan.limit
        if not limit or (chosen and name not in chosen):
            continue
        command = python("-m", f"benchmarks.{plan.module}", "--device", device, *plan.arguments)
        if quick:
            command.append("--quick")
        elif plan.timing:
            command += ["--seconds", str(plan.timing)]
        parts.append(Part(name, command, limit, benchmark=True))
    return parts


def sanitize_parts() -> list[Part]:
    """The CUDA kernels, built with their own checks, under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    if tool is None:
        return []
    program = python("-m", "benchmarks.sanitize")
    # Every tensor has an allocation of its own, so that an access beyond it is seen.
    watched = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Part(check, [tool, "--tool", check, "--error-exitcode", "1", *program], 240, False, watched)
        for check in ("memcheck", "racecheck")
    ]


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--quick", action="store_true", help="small sizes, in two minutes")
    parser.add_argument("--only", nargs="+", choices=["tests", *BENCHMARKS], default=[])
    parser.add_argument("--peers", type=Path, help="folder of the peers' wheels")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to import from, as DALI's")
    parser.add_argument("--skip-build", action="store_true", help="take what the last run built")
    parser.add_argument("--profile", action="store_true", help="profile the main kernels as well")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--sanitize", action="store_true", help="only run compute-sanitizer")
    only.add_argument("--tune", action="store_true", help="only measure tiles, into DIR")
    parser.add_argument("--seconds", type=float, help=f"for all parts (default {BUDGET:.0f})")
    parser.add_argument("--commit", help="to record, where there is no git history")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build", help="folder for what is built and unpacked"
    )
    return parser


def chosen_parts(options: argparse.Namespace, run: Run) -> list[Part]:
    """What follows the build."""
    if options.sanitize:
        parts = sanitize_parts()
        if not parts:
            words = "compute-sanitizer was not found: it comes with the CUDA toolkit, put it in the"
            run.note("sanitize", 127, f"{words} PATH")
        return parts
    if options.tune:
        folder = {"SSLFAST_CACHE": str(options.out.resolve())}
        return [Part("tune", python("-m", "benchmarks.tune"), 480, environment=folder)]
    parts = test_parts(options.only, 50 if options.quick else 150)
    quick = options.quick or options.device == "cpu"
    parts += benchmark_parts(options.only, quick, options.device)
    if options.profile:
        command = python("-m", "benchmarks.profiling", "--device", options.device)
        parts.append(Part("profile", command, 160, benchmark=True))
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts and write the results."""
    options = arguments().parse_args(argv)
    cpu = options.device == "cpu"
    if not cpu and not torch.cuda.is_available():
        print("no CUDA device is available to torch: --device cpu is a rehearsal without one")
        return 1
    if options.commit:
        os.environ[COMMIT] = options.commit
    work = options.work.resolve() / ("gpu-checked" if options.sanitize else "gpu")
    tree = work / "tree"
    facts = {"environment": environment(torch.device(options.device)), "command": sys.argv}
    # A quick run on a machine that has built nothing has the time of the build on top.
    built = 0.0 if options.skip_build else BUILD_SECONDS
    budget = options.seconds or (QUICK_BUDGET + built if options.quick else BUDGET)
    run = Run(options.out / "gpu.json", work / "parts", facts, budget, tree)
    if not options.skip_build or not tree.exists():
        link(tree)  # where all commands run
    wheels = work / "wheels"
    if options.wheels:
        unpack(options.wheels, wheels)
    paths = [str(wheels), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    bring_peers(run, options.peers)
    if not options.skip_build:
        checks = {"SSLFAST_CUDA_DEBUG": "1"} if options.sanitize else {}
        checks |= {"SSLFAST_CUDA": "0"} if cpu else {}
        command = python("-m", "benchmarks.build", str(tree))
        run.do(Part("build", command, BUILD_SECONDS, environment=checks))
    for part in chosen_parts(options, run):
        run.do(part)
    print("\n" + "\n".join(map(str, run.outcomes)) + f"\nwritten: {run.file}")
    return run.status()


if __name__ == "__main__":
    sys.exit(main())
