"""Every op is timed by pytest-benchmark, by every backend that runs here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import benchmarks
from benchmarks.op_cases import BOTH, CASES, FORWARD
from sslfast.kernels import registry

FOLDER = Path(benchmarks.__file__).parent


def test_every_op_has_cases() -> None:
    assert set(CASES) == set(registry.ops())
    for op, cases in CASES.items():
        found = list(cases(torch.device("cpu")))
        assert found, op
        assert len({case.size for case in found}) == len(found), op
        assert all(list(case.passes) in ([FORWARD], [FORWARD, BOTH]) for case in found), op


def test_an_op_under_pytest_benchmark() -> None:
    """One group a pass, a line a backend; what cannot run here is skipped and says why."""
    pytest.importorskip("pytest_benchmark")
    if torch.cuda.is_available():
        pytest.skip("the CUDA backends run here")
    few = ["--benchmark-min-rounds=1", "--benchmark-max-time=0.01", "--benchmark-columns=rounds"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(FOLDER)]
    done = subprocess.run(
        [*command, "--benchmark-only", *few, "-k", "gather_patches"],
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    groups = re.findall(r"benchmark 'gather_patches: .*, (.*)'", done.stdout)
    assert sorted(groups) == [FORWARD, BOTH]
    assert len(re.findall(r"^tiled +\d+", done.stdout, re.MULTILINE)) == 2
    reason = "backend 'cuda' of gather_patches was forced, but no CUDA device is available"
    assert reason in done.stdout
