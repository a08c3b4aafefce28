"""Everything there is to check and time on a machine with an NVIDIA GPU, in two runs.

    python -m benchmarks.gpu --first --out DIR          does it work, how fast are the main losses
    python -m benchmarks.gpu --main --out DIR           the other benchmarks, with their peers
    python -m benchmarks.gpu --only NAME ... --out DIR  these parts
    python -m benchmarks.gpu --sanitize --out DIR       compute-sanitizer over every CUDA kernel

The first run takes at most four minutes, the main one six. Each part has a limit, and a run its
budget, whatever its parts do; the most important come first. One file, DIR/gpu.json, holds machine,
versions, commit, seeds, raw samples, and the end of each part's output; it is whole at any time, so
that a kill loses only what was not yet measured. A part that fails is recorded, and the others go
on; the exit status is 1 if any failed or was not run. The last screen says it all in 100 lines.

What takes long can be brought along (``make gpu-bundle``): --extension, the compiled C++ and CUDA
parts, and --kernels, the compiled Triton kernels. --device cpu is a rehearsal without a GPU, on
small sizes.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.build import BUILT, bring, link
from benchmarks.gpu_screen import failed_tests, screen
from benchmarks.harness.environment import COMMIT, ROOT, environment
from benchmarks.harness.parts import Part, Run

BUILD_SECONDS = 90.0
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"  # of torch
PEERS = ("memeff", "inf_cl", "siglip_kernel", "cut_cross_entropy", "lightly", "open_clip")
TESTS = {  # files, by the benchmarks whose kernels they test
    "tests/gpu/test_kernels.py": ("similarity_softmax", "losses", "loss_memory", "clip_batch"),
    "tests/gpu/test_losses.py": ("losses", "loss_memory"),
    "tests/gpu/test_norms.py": ("similarity_softmax", "losses"),
    "tests/gpu/test_tensors.py": ("optim", "ema"),
    "tests/gpu/test_patches.py": ("masking", "train_mae"),
    "tests/gpu/test_dali_pipelines.py": ("dali",),
}


@dataclass(frozen=True)
class Plan:
    """A benchmark's part.

    Attributes:
        limit: seconds that it may take.
        module: of this package.
        arguments: its own.
        timing: seconds of timing for each problem.
        attempt: the share of the limit that a single attempt within the part may take.
        small: arguments in place of ``arguments`` without a GPU.
    """

    limit: float
    module: str
    arguments: tuple[str, ...] = ()
    timing: float | None = None
    attempt: float = 0.5
    small: tuple[str, ...] | None = None


def training(limit: float, *presets: str, attempt: float = 0.8, small: str) -> Plan:
    """Trainings; an attempt is a loop of steps, the first of which may have to compile."""
    given = ("--preset", *presets)
    return Plan(limit, "train_step", given, None, attempt, ("--preset", *small.split()))


BENCHMARKS = {
    "peaks": Plan(20, "peaks", timing=0.3),
    "similarity_softmax": Plan(45, "similarity_softmax", timing=2),
    "contrast": Plan(35, "losses", ("--only", "clip", "siglip"), timing=2),
    "trainer": training(50, "simclr-first", "mae-first", attempt=0.4, small="tiny tiny-mae"),
    "losses": Plan(90, "losses", timing=2.5),
    "prototypes": Plan(40, "prototypes", timing=2),
    "optim": Plan(30, "optim", timing=1.5),
    "ema": Plan(30, "ema", timing=1.5),
    "masking": Plan(30, "masking", timing=1.5),
    "train_vit": training(80, "vit", small="tiny-compiled"),
    "profile": Plan(60, "profiling", ("--short",)),
    "tune": Plan(50, "tune", ("--short",), attempt=1),
    "loss_memory": Plan(40, "loss_memory"),
    "train_mae": training(120, "mae", small="tiny-mae"),
    "train_resnet": training(120, "resnet", small="tiny"),
    "clip_batch": Plan(60, "clip_batch"),
    "dali": Plan(110, "dali"),
}
NO_RECORD = ("tune",)  # writes a file of its own, and no rows

# Their parts in order, the most important first: the last may find no time left.
RUNS = {
    "first": (225.0, ("kernels", "tests", "peaks", "similarity_softmax", "contrast", "trainer")),
    "main": (
        345.0,
        ("kernels", "tests", "losses", "optim", "ema", "masking", "train_vit", "profile", "tune"),
    ),
}
ALONE = 540.0  # seconds, the budget of parts that were asked for by name
KERNELS_SECONDS = {"first": 75.0, "main": 60.0, "only": 120.0}
TESTS_SECONDS = {"first": 100.0, "main": 40.0, "only": 150.0}


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


def bring_extension(run: Run, options: argparse.Namespace, tree: Path) -> None:
    """Take an extension that was built before; build one where it does not load."""
    if options.extension:
        problem = bring(options.extension, tree, needs_cuda=options.device == "cuda")
        run.note("extension", 0, problem or f"{options.extension} is taken")
        if problem is None:
            return
    checks = {"SSLFAST_CUDA_DEBUG": "1"} if options.sanitize else {}
    checks |= {"SSLFAST_CUDA": "0"} if options.device == "cpu" else {}
    command = python("-m", "benchmarks.build", str(tree))
    run.do(Part("build", command, BUILD_SECONDS, environment=checks))


def kernels_part(options: argparse.Namespace, name: str) -> Part:
    """All Triton kernels compiled, by as many processes as there are cores, and kept."""
    command = python(
        "-m", "benchmarks.compiled", "--keep", str(options.out.resolve() / "kernels.tar.xz")
    )
    if options.kernels:
        command += ["--take", str(options.kernels.resolve())]
    if options.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        count = torch.cuda.get_device_properties(0).multi_processor_count
        command += [
            "--load",
            "--architecture",
            f"{10 * major + minor}",
            "--multiprocessors",
            f"{count}",
        ]
    elif not options.kernels:
        command += ["--only", "philox"]  # a rehearsal must not take ten minutes
    # CUDA must first be used in the processes that are forked: asked for by NVML only.
    return Part("kernels", command, KERNELS_SECONDS[name], environment={NVML: "1"})


def tests_part(names: Sequence[str], chosen: Sequence[str], seconds: float) -> Part:
    """GPU tests, several at a time where xdist is installed: files, or single tests."""
    # Another torch or numpy may warn of itself; here that must not hide results.
    command = python("-m", "pytest", "-v", "-W", "default", "-p", "no:cacheprovider", "--tb=short")
    command += [*(chosen or names)]
    if importlib.util.find_spec("xdist"):
        # By group (tests/gpu/conftest.py): no two workers compile the same kernel.
        command += ["-n", str(min(16, os.cpu_count() or 1)), "--dist", "loadgroup"]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", "60", "--timeout-method", "thread"]  # a kernel may never end
    return Part("tests", command, seconds)


def benchmark_part(name: str, options: argparse.Namespace) -> Part:
    """The part that runs one benchmark: its command, limit and environment."""
    plan = BENCHMARKS[name]
    small = plan.small if options.device == "cpu" else None
    command = python("-m", f"benchmarks.{plan.module}", *(small or plan.arguments))
    environment = {}
    if name in NO_RECORD:
        environment["SSLFAST_CACHE"] = str(options.out.resolve())
    else:
        command += ["--device", options.device]
        if options.device == "cpu":
            command += ["--quick", "--no-memory"]
        elif plan.timing:
            command += ["--seconds", str(plan.timing)]
    return Part(name, command, plan.limit, name not in NO_RECORD, environment, plan.attempt)


def run_named(options: argparse.Namespace) -> str:
    """Which limits hold: those of a run of RUNS, or of parts alone."""
    return "first" if options.first else "main" if options.main else "only"


def chosen_parts(options: argparse.Namespace, run: Run) -> list[Part]:
    """What follows the build."""
    if options.sanitize:
        return sanitize_parts(run)
    name_of_run = run_named(options)
    names = options.only or list(RUNS[name_of_run][1])
    # Tests of what was asked for; in a main run after a first one, those that failed.
    wanted = {*options.only} - {"kernels", "tests"}
    files = [file for file, of in TESTS.items() if not wanted or wanted & {*of}]
    failed = failed_tests(json.loads(options.after.read_text())) if options.after else []
    parts = []
    for name in names:
        if name == "kernels":
            parts.append(kernels_part(options, name_of_run))
        elif name == "tests":
            if name_of_run != "main" or failed or not options.after:
                parts.append(tests_part(files, failed, TESTS_SECONDS[name_of_run]))
        elif name != "tune" or options.device == "cuda":
            parts.append(benchmark_part(name, options))
    return parts


def sanitize_parts(run: Run) -> list[Part]:
    """The CUDA kernels, built with their own checks, under compute-sanitizer."""
    where = "/usr/local/cuda/bin/compute-sanitizer"
    tool = shutil.which("compute-sanitizer") or shutil.which(where)
    if tool is None:
        words = (
            "compute-sanitizer was not found: it comes with the CUDA toolkit, put it in the PATH"
        )
        run.note("sanitize", 127, words)
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
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--first", action="store_true", help="does it work: at most four minutes")
    what.add_argument("--main", action="store_true", help="what the first leaves: at most six")
    what.add_argument("--only", nargs="+", choices=["kernels", "tests", *BENCHMARKS], default=[])
    what.add_argument("--sanitize", action="store_true", help="only run compute-sanitizer")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--after", type=Path, help="gpu.json of a run: its failed tests, once more")
    parser.add_argument("--extension", type=Path, help="sslfast._C, built for this Python and GPU")
    parser.add_argument("--kernels", type=Path, help="archive of compiled Triton kernels")
    parser.add_argument("--peers", type=Path, help="folder of the peers' wheels")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to import from, as DALI's")
    parser.add_argument("--skip-build", action="store_true", help="take what the last run built")
    parser.add_argument("--seconds", type=float, help="budget of all parts, instead of the run's")
    parser.add_argument("--commit", help="to record, where there is no git history")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build", help="folder for what is built and unpacked"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts and write the results."""
    options = arguments().parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is available to torch: --device cpu is a rehearsal without one")
        return 1
    if options.commit:
        os.environ[COMMIT] = options.commit
    work = options.work.resolve() / ("gpu-checked" if options.sanitize else "gpu")
    tree = work / "tree"
    if not options.skip_build or not (tree / BUILT).exists():
        link(tree)  # where all commands run
    sys.path.insert(0, str(tree))  # nothing need be installed
    facts = {"environment": environment(torch.device(options.device)), "command": sys.argv}
    budget = options.seconds or RUNS.get(run_named(options), (ALONE,))[0]
    run = Run(options.out / "gpu.json", work / "parts", facts, budget, tree)
    wheels = work / "wheels"
    if options.wheels:
        unpack(options.wheels, wheels)
    paths = [str(wheels), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    bring_peers(run, options.peers)
    if not options.skip_build:
        bring_extension(run, options, tree)
    for part in chosen_parts(options, run):
        run.do(part)
    lines = screen(json.loads(run.file.read_text()))
    print("\n" + "\n".join(lines))
    return run.status()


if __name__ == "__main__":
    sys.exit(main())
